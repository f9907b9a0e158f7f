"""``shoal task init`` and ``build``: a folder that works, a package that repeats."""

from __future__ import annotations

import json
import tomllib

import pytest
from click.testing import CliRunner

from shoal.cli import cli
from shoal.wire.package import TaskPackage


@pytest.fixture
def shoal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*words: str):
        return CliRunner().invoke(cli, list(words))

    return run


def test_init_writes_a_task_folder(shoal, tmp_path):
    result = shoal("task", "init", "interest", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["files"] == [
        "main.py",
        "task.toml",
        "tests/events.jsonl",
        "tests/expected.jsonl",
    ]
    assert tomllib.loads((tmp_path / "interest/task.toml").read_text())["task"] == "interest"


def test_init_never_writes_over_something(shoal, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/main.py").write_text("precious")
    result = shoal("task", "init", "mine")
    assert result.exit_code == 5
    assert (tmp_path / "mine/main.py").read_text() == "precious"


@pytest.mark.parametrize("name", ["Upper", "9lives", "a/b", "", "x" * 65])
def test_init_refuses_names_that_cannot_be(shoal, tmp_path, name):
    result = shoal("task", "init", name)
    assert result.exit_code == 2
    assert "field 'task'" in result.stderr
    assert not list(tmp_path.iterdir())


def test_build_repeats_byte_for_byte(shoal, tmp_path):
    shoal("task", "init", "interest")
    first = json.loads(shoal("task", "build", "interest", "--json").output)
    again = json.loads(shoal("task", "build", "interest", "--out", "b", "--json").output)
    assert first["sha256"] == again["sha256"]
    assert (tmp_path / "interest-1.shoal").read_bytes() == (
        tmp_path / "b/interest-1.shoal"
    ).read_bytes()
    with TaskPackage.open(tmp_path / "interest-1.shoal") as package:
        assert package.manifest.task == "interest"
        assert "main.py" in package.names()


def test_build_warns_of_the_clock(shoal, tmp_path):
    shoal("task", "init", "interest")
    main = tmp_path / "interest/main.py"
    main.write_text("import time\n" + main.read_text() + "\nNOW = time.time()\n")
    result = shoal("task", "build", "interest")
    assert "warning: " in result.output
    assert "ctx.now()" in result.output


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('label = "first', 'lable = "first', "field 'lable'"),
        ("deadline_ms = 300", "deadline_ms = 0", "field 'limits.deadline_ms'"),
        ("deadline_ms = 300", 'deadline_ms = "soon"', "limits.deadline_ms"),
        ("page_exit@detail", "tap@detail", "kind@page"),
    ],
)
def test_build_names_what_is_wrong(shoal, tmp_path, old, new, said):
    shoal("task", "init", "interest")
    path = tmp_path / "interest/task.toml"
    path.write_text(path.read_text().replace(old, new))
    result = shoal("task", "build", "interest")
    assert result.exit_code == 2
    assert said in result.stderr
    assert not list(tmp_path.glob("*.shoal"))


def test_build_of_a_folder_without_a_task(shoal):
    result = shoal("task", "build", ".")
    assert result.exit_code == 4
    assert "shoal task init" in result.stderr


def test_large_files_travel_beside_the_package(shoal, tmp_path):
    shoal("task", "init", "interest")
    models = tmp_path / "interest/models"
    models.mkdir()
    (models / "big.onnx").write_bytes(b"\x08\x07" * 1000)
    with (tmp_path / "interest/task.toml").open("a") as toml:
        toml.write(
            '[[resources]]\nname = "big"\npath = "models/big.onnx"\nkind = "model"\n'
            "separate = true\n"
        )
    built = json.loads(shoal("task", "build", "interest", "--json").output)
    (separate,) = built["separate"]
    assert separate["size"] == 2000
    assert (tmp_path / separate["path"]).read_bytes() == b"\x08\x07" * 1000
    assert built["size"] < 5000


@pytest.fixture
def task(shoal):
    assert shoal("task", "init", "interest").exit_code == 0
    return shoal


def test_the_template_passes_its_own_test(task):
    result = task("task", "test", "interest")
    assert result.exit_code == 0, result.output
    assert "7 events, 2 runs, 2 results as expected" in result.output


def test_a_change_of_results_is_shown_and_fails(task, tmp_path):
    main = tmp_path / "interest/main.py"
    main.write_text(main.read_text().replace("1_000_000", "1_000"))
    result = task("task", "test", "interest")
    assert result.exit_code == 1
    assert '- {"visit": {"clicks": 2, "dwell_s": 21.5' in result.output
    assert '+ {"visit": {"clicks": 2, "dwell_s": 21500.0' in result.output
    assert "--update" in result.stderr
    assert task("task", "test", "interest", "--update").exit_code == 0
    assert task("task", "test", "interest").exit_code == 0


def test_a_failing_run_fails_the_test(task, tmp_path):
    main = tmp_path / "interest/main.py"
    main.write_text(main.read_text().replace("1_000_000", "0"))
    result = task("task", "test", "interest", "--json")
    assert result.exit_code == 1
    assert "ZeroDivisionError" in json.loads(result.stderr)["message"]
    assert json.loads(result.stdout)["runs"][0]["outcome"] == "exception"
    # --update must not turn a failure into an expectation that passes
    assert task("task", "test", "interest", "--update").exit_code == 1


def test_what_is_expected_must_be_there_and_be_json(task, tmp_path):
    expected = tmp_path / "interest/tests/expected.jsonl"
    expected.write_text("{}\nnot json\n")
    result = task("task", "test", "interest")
    assert (result.exit_code, "row 2" in result.stderr) == (2, True)
    expected.unlink()
    result = task("task", "test", "interest")
    assert (result.exit_code, "--update" in result.stderr) == (4, True)


def test_another_recording(task, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    result = task("task", "test", "interest", "--events", "empty.jsonl", "--json")
    assert result.exit_code == 1
    assert len(json.loads(result.stdout)["differences"]) == 2
