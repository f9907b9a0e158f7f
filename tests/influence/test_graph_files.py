"""Saved graphs: the same after loading, whole after a second save, and no damage goes unseen."""

from __future__ import annotations

import json

import numpy as np
import pytest

from shoal.core.errors import InputError, IntegrityError, NotFoundError
from shoal.data.graphgen import rmat
from shoal.influence import Graph


def made(form: str) -> Graph:
    if form == "plain":
        graph = rmat(8, 2000, seed=3)
        return Graph.from_edges(graph.source, graph.target, directed=True, n=graph.n)
    if form == "sparse":
        return Graph.from_edges([10**12, 5], [7, 10**12], directed=True, values=[0.5, 0.25])
    if form == "text":
        return Graph.from_edges(["å", "b", ""], ["b", "c", "å"], directed=False)
    return Graph.from_edges([], [], directed=True, n=3)


def same(a: Graph, b: Graph) -> None:
    assert (a.n, a.m, a.directed, a.report) == (b.n, b.m, b.directed, b.report)
    for name in ("out_ptr", "out_ids", "in_ptr", "in_ids"):
        assert np.array_equal(getattr(a, name), getattr(b, name))
        assert getattr(a, name).dtype == getattr(b, name).dtype
    rows = np.arange(a.n)
    assert a.labels(rows) == b.labels(rows)
    assert (a.values is None) == (b.values is None)
    if a.values is not None:
        assert np.array_equal(a.values, b.values)
        assert np.array_equal(a.in_values(), b.in_values())
    assert a.digest() == b.digest()


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("form", ["plain", "sparse", "text", "empty"])
def test_there_and_back(tmp_path, form, mmap):
    graph = made(form)
    graph.save(tmp_path / "g")
    found = Graph.load(tmp_path / "g", mmap=mmap)
    same(graph, found)
    same(graph.reversed(), found.reversed())
    same(graph, Graph.load(tmp_path / "g", mmap=mmap, verify=False))
    assert {path.name.split("-")[0] for path in (tmp_path / "g").iterdir()} == {
        "arrays",
        "manifest.json",
    }


def test_mapped_arrays_take_writing_for_themselves_alone(tmp_path):
    """Kernels are compiled once: for arrays that may be written."""
    graph = made("plain")
    graph.save(tmp_path / "g")
    found = Graph.load(tmp_path / "g")
    assert found.out_ids.flags.writeable
    found.out_ids[:] = 0
    same(graph, Graph.load(tmp_path / "g"))


def test_a_second_save_replaces_the_first_and_readers_keep_theirs(tmp_path):
    first, second = made("plain"), made("text")
    first.save(tmp_path / "g")
    held = Graph.load(tmp_path / "g")
    second.save(tmp_path / "g")
    same(held, first)
    same(Graph.load(tmp_path / "g"), second)
    second.save(tmp_path / "g")
    assert len(list((tmp_path / "g").iterdir())) == 2


def test_a_save_that_fails_leaves_the_first(tmp_path, monkeypatch):
    first = made("plain")
    first.save(tmp_path / "g")

    def fails(*_args, **_options):
        raise OSError("no space left")

    from shoal.influence import graph_files

    for step in ("write_arrays", "write_bytes"):
        with monkeypatch.context() as patch:
            patch.setattr(graph_files, step, fails)
            with pytest.raises(OSError, match="no space"):
                made("text").save(tmp_path / "g")
        same(Graph.load(tmp_path / "g"), first)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.999])
@pytest.mark.parametrize("damage", ["flip", "cut"])
@pytest.mark.parametrize("which", ["arrays", "manifest"])
def test_damage_is_told(tmp_path, which, damage, share):
    made("plain").save(tmp_path / "g")
    path = next((tmp_path / "g").glob(f"{which}*"))
    raw = bytearray(path.read_bytes())
    at = int(share * len(raw))
    if damage == "flip":
        raw[at] ^= 1
    else:
        del raw[at:]
    path.write_bytes(raw)
    with pytest.raises(IntegrityError):
        Graph.load(tmp_path / "g")


def test_rows_that_do_not_fit_are_told_even_unverified(tmp_path):
    graph = made("plain")
    graph.save(tmp_path / "g")
    path = next((tmp_path / "g").glob("arrays*"))
    raw = path.read_bytes()
    whole = np.ascontiguousarray(graph.out_ids).tobytes()
    at = raw.index(whole)
    path.write_bytes(raw[:at] + b"\xff\xff\xff\x7f" + raw[at + 4 :])
    with pytest.raises(IntegrityError, match="out-arcs"):
        Graph.load(tmp_path / "g", verify=False)


def test_other_folders_and_forms(tmp_path):
    with pytest.raises(NotFoundError, match="no graph"):
        Graph.load(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is no graph"):
        made("plain").save(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        made("plain").save(tmp_path / "notes.txt")
    made("plain").save(tmp_path / "g")
    next((tmp_path / "g").glob("arrays*")).unlink()
    with pytest.raises(IntegrityError, match="missing"):
        Graph.load(tmp_path / "g")


def test_a_newer_form_is_refused(tmp_path):
    import hashlib

    made("plain").save(tmp_path / "g")
    path = tmp_path / "g" / "manifest.json"
    signed = json.loads(path.read_bytes())
    signed["graph"]["schema"] = 99
    body = json.dumps(signed["graph"], separators=(",", ":"))
    digest = hashlib.sha256(body.encode()).hexdigest()
    path.write_text(f'{{"graph":{body},"sha256":"{digest}"}}')
    with pytest.raises(IntegrityError, match="form 99"):
        Graph.load(tmp_path / "g")


def test_names_that_cannot_be_kept(tmp_path):
    graph = Graph.from_edges([0], [1], directed=True, names=[(1, 2), "x"])
    with pytest.raises(InputError, match=r"row 1.*integers or text"):
        graph.save(tmp_path / "g")
