"""Stream functions against plain computations over the whole stream."""

from __future__ import annotations

import doctest
import importlib.util
import random
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.device.store import DeviceStore
from shoal.device.stream import operators
from shoal.device.stream.log import EventLog
from shoal.device.stream.operators import Sliding, Stream, Tumbling, Visit

FILE = Path(operators.__file__)


class E(NamedTuple):
    ts_us: int
    key: str = "a"
    n: int = 0
    visit: bytes | None = None


streams = st.lists(
    st.tuples(st.integers(0, 60), st.sampled_from("abc")), min_size=0, max_size=60
).map(lambda gaps: [E(t, k, n) for n, (t, k) in enumerate(gaps)])


def jumbled(events: list[E], by: int, seed: int) -> list[E]:
    rng = random.Random(seed)
    return sorted(events, key=lambda e: e.ts_us + rng.randrange(by + 1))


def expected(events: list[E], size: int, step: int) -> dict:
    found = defaultdict(list)
    for event in events:
        start = event.ts_us - event.ts_us % step
        while start > event.ts_us - size:
            found[event.key, start].append(event.n)
            start -= step
    return {place: sorted(ns) for place, ns in found.items()}


@given(streams, st.sampled_from([(5, 5), (10, 5), (12, 4), (30, 10)]), st.integers(0, 8),
       st.integers(0, 3))  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_windows_equal_a_computation_over_everything(
    events: list[E], shape: tuple[int, int], late: int, seed: int
) -> None:
    size, step = shape
    shuffled = jumbled(events, late, seed)
    kind = Tumbling(size) if size == step else Sliding(size, step)

    def stream() -> Stream:
        return Stream(shuffled, lateness_us=late).key_by(lambda e: e.key).window(kind)

    kept = list(stream())
    wanted = expected(events, size, step)
    assert {(w.key, w.start_us): sorted(e.n for e in w.events) for w in kept} == wanted
    assert len(kept) == len(wanted)  # each once
    assert [w.start_us for w in kept] == sorted(w.start_us for w in kept)
    assert all(w.end_us == w.start_us + size for w in kept)
    folded = stream().fold(int, lambda total, e: total + e.n, lambda a, b: a + b)
    assert {(w.key, w.start_us): w.value for w in folded} == {p: sum(n) for p, n in wanted.items()}


def test_windows_close_as_soon_as_the_lateness_allows_and_later_events_are_counted() -> None:
    stream = Stream(lateness_us=5).window(Tumbling(10))
    assert stream.push(E(3)) == []
    assert stream.push(E(14)) == []
    (window,) = stream.push(E(15))
    assert (window.start_us, window.end_us, len(window.events)) == (0, 10, 1)
    assert stream.push(E(9)) == []
    assert stream.late == 1
    assert [len(w.events) for w in stream.close()] == [2]


def test_a_late_event_beyond_the_lateness_changes_the_answer() -> None:
    """Negative control of the property above."""
    events = [E(0, n=1), E(50, n=2), E(1, n=3)]
    stream = Stream(events, lateness_us=5).window(Tumbling(10))
    got = {(w.key, w.start_us): [e.n for e in w.events] for w in stream}
    assert got != expected([e._replace(key=None) for e in events], 10, 10)
    assert stream.late == 1


def test_filter_and_map_before_and_after_the_window() -> None:
    events = [E(n, "ab"[n % 2], n) for n in range(20)]
    out = list(
        Stream(events, lateness_us=0)
        .filter(lambda e: e.n % 3 == 0)
        .map(lambda e: e._replace(n=e.n * 10))
        .key_by(lambda e: e.key)
        .window(Tumbling(10))
        .map(lambda w: sum(e.n for e in w.events))
        .filter(lambda w: w.value > 60)
    )
    assert [(w.key, w.start_us, w.value) for w in out] == [
        ("b", 0, 120),
        ("a", 10, 300),
        ("b", 10, 150),
    ]
    assert list(Stream(events).filter(lambda e: e.n > 17).map(lambda e: e.n)) == [18, 19]


def test_visits_by_id_and_by_gap() -> None:
    named = [E(0, "a", 1, b"x"), E(5, "a", 2, b"y"), E(9, "a", 3, b"x"), E(200, "a", 4, b"z")]
    out = list(Stream(named, lateness_us=0).window(Visit(gap_us=50)))
    assert [([e.n for e in w.events], w.start_us, w.end_us) for w in out] == [
        ([2], 5, 5), ([1, 3], 0, 9), ([4], 200, 200),
    ]  # fmt: skip
    gaps = [E(0, "a", 1), E(40, "b", 2), E(45, "a", 3), E(120, "a", 4), E(100, "b", 5)]
    out = list(Stream(gaps, lateness_us=30).key_by(lambda e: e.key).window(Visit(gap_us=50)))
    assert sorted((w.key, [e.n for e in w.events]) for w in out) == [
        ("a", [1, 3]), ("a", [4]), ("b", [2]), ("b", [5]),
    ]  # fmt: skip


def test_an_event_of_a_visit_that_is_over_is_late() -> None:
    stream = Stream(lateness_us=0).window(Visit(gap_us=10))
    stream.push(E(0, visit=b"x"))
    assert len(stream.push(E(100, visit=b"y"))) == 1
    assert stream.push(E(101, visit=b"x")) == []
    assert stream.late == 1


def test_reads_an_event_log(tmp_path: Path) -> None:
    with DeviceStore(tmp_path) as store:
        log = EventLog(store, burst=10**9)
        for n in range(2500):
            log.append(3, "p", ts_us=n)
        stream = Stream(log, lateness_us=0).window(Tumbling(1000)).map(lambda w: len(w.events))
        assert [w.value for w in stream] == [1000, 1000, 500]


def test_an_event_costs_the_same_however_long_the_stream() -> None:
    calls = 0

    def step(total: int, event: E) -> int:
        nonlocal calls
        calls += 1
        return total + 1

    stream = Stream(lateness_us=0).window(Sliding(1000, 10)).fold(int, step, lambda a, b: a + b)
    for n in range(5000):
        stream.push(E(n))
        assert len(stream._panes) <= 101
    assert calls == 5000


@pytest.mark.parametrize(
    "build",
    [
        lambda: Tumbling(0), lambda: Sliding(10, 3), lambda: Visit(0),
        lambda: Stream().window(Tumbling(1)).window(Tumbling(1)),
        lambda: Stream().window(Tumbling(1)).key_by(len),
        lambda: Stream().fold(int, max), lambda: Stream().window(Sliding(2, 1)).fold(int, max),
        lambda: list(Stream()),
    ],
)  # fmt: skip
def test_misuse_is_refused(build) -> None:
    with pytest.raises(ValueError, match=r"."):
        build()


@pytest.mark.parametrize("name", ["operators", "ipv"])
def test_loads_by_path_with_the_standard_library_alone(name: str) -> None:
    path = str(FILE.with_name(f"{name}.py"))
    script = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('m', {path!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "tops = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(tops & {'shoal', 'msgspec', 'numpy'}))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_the_example_in_the_docstring() -> None:
    spec = importlib.util.spec_from_file_location("operators_by_path", FILE)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    assert doctest.testmod(module).failed == 0
