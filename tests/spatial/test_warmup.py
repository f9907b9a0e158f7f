"""Compiling is announced when it happens and only then; a warm index compiles no more."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from shoal.core.compiling import compiling
from shoal.data.checkins import CheckinLog
from shoal.spatial import Query, SpatialKeywordIndex
from shoal.spatial.warmup import warm_up

KERNEL = """
from numba import njit

@njit(cache=True)
def double(x):
    return 2 * x
"""


@pytest.fixture
def fresh(tmp_path):
    """Return a module with one kernel, as a new process would load it."""
    path = tmp_path / "kernel_of_a_test.py"
    path.write_text(KERNEL)

    def load():
        spec = importlib.util.spec_from_file_location("kernel_of_a_test", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def test_the_first_compilation_is_announced_once_and_the_cached_one_is_not(fresh):
    said = []
    with compiling(lambda: said.append("now")):
        kernel = fresh()
        assert said == []
        assert kernel.double(2) == 4
        assert kernel.double(2.5) == 5.0
    assert said == ["now"]
    with compiling(lambda: said.append("again")):
        assert fresh().double(3) == 6
    assert said == ["now"]
    with compiling(lambda: said.append("other type")):
        assert fresh().double(1j) == 2j
    assert said == ["now", "other type"]


def test_nothing_is_said_after_the_block(fresh):
    said = []
    with compiling(lambda: said.append("now")):
        pass
    fresh().double(np.float32(2))
    assert said == []


def places(n=40, **more):
    rng = np.random.default_rng(5)
    return SpatialKeywordIndex.build(
        rng.uniform(-180, 180, n),
        rng.uniform(-80, 80, n),
        keywords=[["cafe", f"word {i % 7}"] for i in range(n)],
        attributes={"price": rng.uniform(0, 9, n)},
        **more,
    )


def test_a_warm_index_compiles_nothing_and_is_not_changed():
    with places() as index:
        before = index.ask(Query(point=(0, 0), keywords="cafe", explain=True))
        assert warm_up(index) == 9
        said = []
        with compiling(lambda: said.append("now")):
            after = index.ask(Query(point=(0, 0), keywords="cafe", explain=True))
            index.ask(Query(point=(3, 4), match="ranked", keywords="cafe", max_km=3))
            index.ask(Query(point=(3, 4), prefer={"price": "min"}, without="cafe"))
        assert said == []
        assert list(after.ids) == list(before.ids)
        assert index.n_live == 40


def test_an_index_that_changes_is_warm_for_what_comes():
    with places() as index:
        assert warm_up(index, changes=True) == 18
        index.upsert([5.0], [6.0], ids=[99], keywords=["cafe new"], attributes={"price": [3.0]})
        index.delete([4])
        said = []
        with compiling(lambda: said.append("now")):
            found = index.ask(Query(point=(5, 6), keywords="cafe", explain=True))
            index.ask(Query(point=(3, 4), match="ranked", keywords="cafe new", max_km=3))
            index.ask(Query(point=(3, 4), prefer={"price": "min"}, without="new"))
        assert said == []
        assert found.ids[0] == 99


def test_every_sort_of_index_is_warmed():
    log = CheckinLog(["a", "b"], [1, 2], [3, 4], slots=168)
    with places(checkins=log) as index:
        assert warm_up(index) > 9
    with SpatialKeywordIndex.build([], []) as empty:
        assert warm_up(empty) == 0
    with SpatialKeywordIndex.build([], []) as small:
        small.upsert([1.0], [2.0], ids=[7], keywords=["in memory alone"])
        assert warm_up(small) > 0
    with SpatialKeywordIndex.build([1.0], [2.0]) as silent:  # no words, no attributes
        assert warm_up(silent) > 0
