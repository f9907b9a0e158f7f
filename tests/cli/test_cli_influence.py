"""``shoal influence``: from a file to picks, a proof and reasons, and what is said of wrong use."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from shoal.cli import cli

#: Two hubs: 0 reaches 1 to 5, and 6 reaches 5, 7 and 8; 9 is alone with itself.
EDGES = "# who reaches whom\n" + "".join(f"0 {v}\n" for v in range(1, 6)) + "6 5\n6 7\n7 8\n9 9\n"


def run(*words: object, fails: int | None = None):
    result = CliRunner().invoke(cli, ["influence", *map(str, words), "--json"])
    if fails is None:
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)
    assert result.exit_code == fails, result.output
    said = json.loads(result.stderr)
    assert "\n" not in said["message"]
    return said


def text(*words: object) -> str:
    result = CliRunner().invoke(cli, ["influence", *map(str, words)])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def edges(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("influence") / "edges.txt"
    path.write_text(EDGES)
    return path


FORWARD = ("--directed", "--direction", "forward")


def test_solve(edges, tmp_path):
    out = tmp_path / "picks.csv"
    found = run("solve", edges, *FORWARD, "-k", 2, "--out", out)
    assert (found["seeds"], found["gains"], found["covered"]) == ([0, 6], [6.0, 2.0], 8.0)
    assert (found["nodes"], found["arcs"], found["directed"]) == (10, 8, True)
    assert "1 arcs from a node to itself left out" in found["read"]
    rows = list(csv.DictReader(out.open()))
    assert [(row["node"], float(row["covered"])) for row in rows] == [("0", 6.0), ("6", 8.0)]
    far = run("solve", edges, *FORWARD, "-k", 2, "--hops", 2, "--out", tmp_path / "p.json")
    assert (far["seeds"], far["covered"]) == ([0, 6], 9.0)
    assert json.loads((tmp_path / "p.json").read_text())["seeds"] == [0, 6]


def test_direction_and_sense_change_the_answer(edges):
    backward = run("solve", edges, "--directed", "--direction", "backward", "-k", 1)
    assert (backward["seeds"], backward["covered"]) == ([5], 3.0)
    undirected = run("solve", edges, "--undirected", "-k", 1)
    assert (undirected["seeds"], undirected["arcs"]) == ([0], 16)


def test_what_is_printed_for_a_person(edges):
    said = text("solve", edges, *FORWARD, "-k", 2, "--certificate", "online", "--show", 1)
    assert "2 picks reach 8 of 10 (80.00%) within 1 hop" in said
    assert "of the best possible (proven)" in said
    assert "and 1 more; --show or --out give all" in said


def test_weights_costs_candidates_and_exclude(edges, tmp_path):
    table = tmp_path / "nodes.csv"
    table.write_text("id,worth,price\n" + "".join(f"{v},{v},{v + 1}\n" for v in range(12)))
    found = run("solve", edges, *FORWARD, "-k", 1, "--table", table, "--weights", "worth")
    assert (found["seeds"], found["covered"]) == ([6], 18.0)
    cheap = run("solve", edges, *FORWARD, "--budget", 2, "--table", table, "--costs", "price")
    assert cheap["seeds"] == [0]
    (tmp_path / "who.txt").write_text("# these\n6\n7\n")
    only = run("solve", edges, *FORWARD, "-k", 1, "--candidates", tmp_path / "who.txt")
    assert only["seeds"] == [6]
    but = run("solve", edges, *FORWARD, "-k", 1, "--exclude", tmp_path / "who.txt")
    assert but["seeds"] == [0]
    most = run("solve", edges, *FORWARD, "--target", 0.8)
    assert most["covered"] >= 8


def test_named_nodes_kinds_and_columns(tmp_path):
    path = tmp_path / "needs.csv"
    path.write_text("package,needs,how\napp,libc,must\ntool,libc,must\nlibc,doc,may\n")
    asked = ("--from-column", "package", "--to-column", 2, "--kinds", "how", "--only", "must")
    found = run("solve", path, *asked, "--directed", "--direction", "backward", "-k", 1)
    assert (found["seeds"], found["covered"], found["nodes"]) == (["libc"], 3.0, 4)
    digits = run("solve", path, *asked[:4], "--undirected", "--text-ids", "-k", 1)
    assert digits["seeds"] == ["libc"]


def test_the_sample_needs_no_file_and_no_direction():
    found = run("solve", "sample", "-k", 50)
    assert found["seeds"][0] == "libc6"
    assert found["covered"] / found["total"] == pytest.approx(0.689, abs=0.001)
    worth = run("solve", "sample", "-k", 3, "--weights", "installed_kib")
    assert worth["total"] > found["total"]


def test_a_saved_graph(edges, tmp_path):
    from shoal.influence.graph import Graph

    Graph.read_edgelist(edges, directed=True, direction="forward").save(tmp_path / "g")
    assert run("solve", tmp_path / "g", "-k", 1)["seeds"] == [0]
    file = next((tmp_path / "g").glob("arrays*"))
    file.write_bytes(file.read_bytes()[:-9])
    assert run("solve", tmp_path / "g", "-k", 1, fails=3)["error"] == "IntegrityError"


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("-k", 1), "whether the arcs have a direction", "--undirected"),
        (("-k", 1, "--directed"), "which end", "--direction forward"),
        ((*FORWARD,), "how many", "k="),
        ((*FORWARD, "-k", 0), "1 to 10", ""),
        ((*FORWARD, "-k", 11), "1 to 10", ""),
        ((*FORWARD, "-k", 1, "--hops", 0), "1 to 126", ""),
        ((*FORWARD, "-k", 1, "--target", "nan"), "number", ""),
        ((*FORWARD, "--budget", 3), "needs costs", ""),
        ((*FORWARD, "-k", 1, "--weights", "w"), "which file", "--table"),
        ((*FORWARD, "-k", 1, "--out", "picks.txt"), ".csv or .json", ""),
        ((*FORWARD, "-k", 1, "--from-column", 5), "count from 1 to 2", ""),
    ],
)
def test_wrong_use_is_one_line_and_status_2(edges, words, message, hint):
    said = run("solve", edges, *words, fails=2)
    assert message in said["message"]
    assert hint in (said["hint"] or "")


def test_wrong_files(edges, tmp_path):
    junk = tmp_path / "junk.txt"
    junk.write_text("0 1\n1 2\n???\n")
    said = run("solve", junk, *FORWARD, "-k", 1, fails=2)
    assert "junk.txt, row 3" in said["message"]
    found = run("solve", junk, *FORWARD, "-k", 1, "--drop-bad-rows")
    assert found["read"][0] == "1 lines could not be read and were left out"
    assert "sample" in run("solve", tmp_path / "none.txt", "-k", 1, fails=4)["hint"]
    for content, words in [("x\n", "integers"), ("77\n", "77"), ("# no\n", "names no node")]:
        junk.write_text(content)
        said = run("solve", edges, *FORWARD, "-k", 1, "--candidates", junk, fails=2)
        assert words in said["message"]
    table = tmp_path / "nodes.csv"
    for content, words in [
        ("id,w\n0,much\n", "no number"),
        ("id,w\n0,1\n", "has none"),
        ("id,v\n0,1\n", "no column 'w'"),
        ("id,w\n" + "".join(f"{v},-1\n" for v in range(10)), "not below 0"),
        ("", "empty"),
    ]:
        table.write_text(content)
        said = run("solve", edges, *FORWARD, "-k", 1, "--table", table, "--weights", "w", fails=2)
        assert words in said["message"]


def test_an_interrupt_leaves_what_is_there(edges, tmp_path, monkeypatch):
    from shoal.influence import cover

    out = tmp_path / "picks.csv"
    run("solve", edges, *FORWARD, "-k", 1, "--out", out)
    before = out.read_bytes()

    def interrupted(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cover, "max_cover", interrupted)
    words = ["influence", "solve", str(edges), *FORWARD, "-k", "2", "--out", str(out)]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 130
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["picks.csv"]


def test_bench(edges):
    asked = ("bench", edges, *FORWARD, "-k", 2, "--hops", 1)
    found = run(*asked, "--method", "degree")
    rows = {row["method"]: row for row in found["methods"]}
    assert list(rows) == ["exact", "degree", "auto + swap"]
    assert rows["exact"]["greedy_ratio"] == 1.0
    assert rows["exact"]["covered"] == rows["auto + swap"]["covered"] == 8.0
    for row in rows.values():
        assert 0 < row["certified"] <= 1
        assert row["cpu"] >= 0
    said = text("bench", edges, *FORWARD, "-k", 2, "--hops", 1, "--no-certificate")
    assert "to greedy" in said
    assert run("bench", edges, *FORWARD, "-k", 0, fails=2)["message"].startswith("field 'k'")


def test_bench_of_our_form_of_the_network(edges, monkeypatch):
    from shoal.influence.fastcover import FastCover

    class Fixed:
        def select(self, graph, k):
            return [0, 6][:k]

    monkeypatch.setattr(FastCover, "bundled", lambda *_args, **_options: Fixed())
    asked = ("bench", edges, *FORWARD, "-k", 2, "--hops", 2, "--method", "improved")
    row = run(*asked, "--no-certificate")["methods"][1]
    assert (row["method"], row["covered"], row["greedy_ratio"]) == ("improved", 9.0, 1.0)


def test_bench_says_what_a_method_lacks_and_goes_on(edges, monkeypatch):
    from shoal.core.errors import UnavailableError
    from shoal.influence import cover

    real = cover.max_cover

    def lacking(graph, k, hops, **options):
        if options.get("method") == "grat":
            raise UnavailableError("needs torch")
        return real(graph, k, hops, **options)

    monkeypatch.setattr(cover, "max_cover", lacking)
    found = run("bench", edges, *FORWARD, "-k", 2, "--hops", 1, "--method", "grat")
    row = found["methods"][1]
    assert (row["method"], row["covered"], row["note"]) == ("grat", None, "needs torch")


def test_explain(edges):
    found = run("explain", edges, 0, *FORWARD, "-k", 2)
    assert len(found) == 1
    assert run("explain", edges, *FORWARD, "-k", 2) is not None
    assert text("explain", edges, 6, *FORWARD, "-k", 2)
    (other,) = run("explain", edges, 3, *FORWARD, "-k", 2)
    assert not other["is_seed"]
    run("explain", edges, 99, *FORWARD, "-k", 2, fails=4)


def test_train_and_evaluate(edges, tmp_path):
    pytest.importorskip("torch")
    assert "nothing to train" in run("train", "--out", tmp_path / "m", fails=2)["message"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    said = run("train", edges, *FORWARD, "--out", tmp_path / "full", fails=2)
    assert "there already" in said["message"]
    made = run("train", edges, *FORWARD, "--out", tmp_path / "m", "--epochs", 2)
    assert (made["graphs"], made["training"]["epochs"]) == (1, 2)
    assert not list(tmp_path.glob("*.checkpoint"))
    rows = run("evaluate", edges, *FORWARD, "-k", 2, "--model", tmp_path / "m")
    assert rows[0]["greedy"] == 8.0
    assert 0 < rows[0]["network"] <= 1
    assert {"degree", "vote", "k", "graph", "hops"} <= set(rows[0])
    asked = ("evaluate", edges, *FORWARD, "--model", tmp_path / "m")
    assert "for 1 hops" in run(*asked, "--hops", 2, fails=2)["message"]
    assert run(*asked[:-1], tmp_path / "none", fails=4)["error"] == "NotFoundError"


def test_an_interrupted_training_goes_on(edges, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from shoal.influence.fastcover import FastCover

    saved = FastCover.save

    def interrupted(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(FastCover, "save", interrupted)
    asked = ["influence", "train", str(edges), *FORWARD, "--out", str(tmp_path / "m")]
    assert CliRunner().invoke(cli, [*asked, "--epochs", "1"]).exit_code == 130
    assert [path.name for path in tmp_path.iterdir()] == ["m.checkpoint"]
    monkeypatch.setattr(FastCover, "save", saved)
    assert run(*asked[1:], "--epochs", 1)["training"]["epochs"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
