"""The part of ten million places: its figures join the evidence, and it runs, smaller."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import msgspec
import pytest

from shoal.core.evidence import read_evidence

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def benchmarks() -> Iterator[None]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


@pytest.mark.usefixtures("benchmarks")
def test_the_part_joins_the_evidence_and_changes_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("numba")
    record = import_module("_qdrtree.record")
    path = tmp_path / "qdrtree.json"
    path.write_bytes((ROOT / "evidence" / "qdrtree.json").read_bytes())
    before = read_evidence(path)
    record.add_huge({"places": 3}, 5, 0.25, path)
    record.add_huge({"places": 4}, 6, 0.5, path)
    after = read_evidence(path)
    part = after.details["huge"]
    assert (part["places"], part["load"]) == (4, 0.5)
    assert part["command"] == "python benchmarks/qdrtree.py --huge --seed 6"
    rest = {name: found for name, found in before.details.items() if name != "huge"}
    assert after == msgspec.structs.replace(before, details={**rest, "huge": part})
    assert record._kept(path) == {"huge": part}
    assert record._kept(tmp_path / "none.json") == {}


@pytest.mark.slow
@pytest.mark.usefixtures("benchmarks")
def test_the_part_runs_with_fewer_places() -> None:
    huge = import_module("_qdrtree.huge")
    found = huge.run(0, 20_000)
    assert (found["places"], found["wrong"], found["first_answers"] > 0) == (20_000, 0, True)
    assert found["checked"] == huge.CHECKED
    assert 0 < found["peak_gib_of_generating"] <= found["peak_gib"]
