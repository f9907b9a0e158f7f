"""The event log: order, durability, duplicates, storms, bad content, trimming."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import InputError, LimitError
from shoal.device.store import DeviceStore, DiskFullError
from shoal.device.stream.content import check_content
from shoal.device.stream.log import EventLog
from shoal.wire import DEFAULT_LIMITS, EventKind, new_ulid

YEAR_US = 365 * 86_400_000_000


class Clock:
    """A clock that the test sets."""

    def __init__(self, now: int = 1_700_000_000_000_000) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def store(tmp_path: Path):
    with DeviceStore(tmp_path) as store:
        yield store


def test_events_come_back_in_order_with_everything_they_said(store: DeviceStore) -> None:
    log = EventLog(store)
    visit = new_ulid()
    first = log.append(
        EventKind.PAGE_ENTER, "detail", {"item": 7, "tags": ["a", None]}, visit=visit
    )
    second = log.append(200, "own", ts_us=5)
    assert log.read(0) == [(1, first), (2, second)]
    assert log.read(1) == [(2, second)]
    assert log.read(0, limit=1) == [(1, first)]
    assert log.read(2) == []
    assert (first.boot, first.visit, second.ts_us) == (1, visit, 5)
    assert len(log) == log.last_seq == 2


def test_numbers_and_boots_rise_over_restarts(tmp_path: Path) -> None:
    for start in range(1, 4):
        with DeviceStore(tmp_path) as store:
            log = EventLog(store)
            assert log.boot == start
            log.append(1, "p")
            assert [seq for seq, _ in log.read(0)] == list(range(1, start + 1))


def test_numbers_are_not_used_twice_after_the_log_was_emptied(tmp_path: Path) -> None:
    with DeviceStore(tmp_path) as store:
        log = EventLog(store)
        for _ in range(5):
            log.append(1, "p")
        assert log.trim(megabytes=0) == 5
    with DeviceStore(tmp_path) as store:
        log = EventLog(store)
        log.append(1, "p")
        assert [seq for seq, _ in log.read(0)] == [6]


def test_group_commit_writes_at_the_hundredth_event_or_after_200_ms(store: DeviceStore) -> None:
    mono = Clock()
    log = EventLog(store, monotonic=mono)

    def stored() -> int:
        with store.read() as cursor:
            return cursor.execute("SELECT count(*) FROM event").fetchone()[0]

    for _ in range(99):
        log.append(1, "p")
    assert stored() == 0
    log.append(1, "p")
    assert stored() == 100
    log.append(1, "p")
    mono.now += 200_000
    log.append(1, "p")
    assert stored() == 102
    each = EventLog(store, durability="each")
    each.append(1, "p")
    assert stored() == 103


def test_a_duplicate_is_ignored_and_counted_before_and_after_the_flush(store: DeviceStore) -> None:
    log = EventLog(store)
    same = new_ulid()
    log.append(1, "p", {"n": 1}, event_id=same)
    log.append(1, "p", {"n": 2}, event_id=same)
    log.flush()
    log.append(1, "p", {"n": 3}, event_id=same)
    assert [event.content["n"] for _, event in log.read(0)] == [1]
    assert log.counts["duplicate"] == 2
    assert log.counts["appended"] == 1


def test_late_events_keep_their_time_and_a_monotonic_time_that_fits(store: DeviceStore) -> None:
    wall, mono = Clock(10_000_000_000), Clock(3_000_000)
    log = EventLog(store, clock=wall, monotonic=mono)
    now = log.append(1, "p")
    mono.now += 1_000_000
    wall.now += 5 * YEAR_US  # the wall clock jumps; the monotonic one does not
    jumped = log.append(1, "p")
    late = log.append(1, "p", ts_us=10_000_000_000 - 2_000_000)
    assert jumped.mono_us - now.mono_us == 1_000_000
    assert late.mono_us - now.mono_us == -2_000_000
    assert [event.ts_us for _, event in log.read(0)] == [now.ts_us, jumped.ts_us, late.ts_us]


def test_a_clock_jump_of_five_years_neither_freezes_a_page_nor_empties_the_log(
    store: DeviceStore,
) -> None:
    wall = Clock()
    log = EventLog(store, clock=wall, burst=3, rate_per_s=1.0)
    for jump in (0, 5 * YEAR_US, -5 * YEAR_US, -5 * YEAR_US):
        wall.now += jump
        for _ in range(3):
            wall.now += 1_000_000
            log.append(1, "p")
    assert log.counts["rate_limited"] == 0
    with store.transaction() as cursor:
        cursor.execute("INSERT INTO consumer VALUES ('t', 1, 2, NULL)")
    wall.now += 50 * YEAR_US
    assert log.trim(days=7) == 2  # only what the consumer has read
    assert len(log) == 10


def test_a_storm_on_one_page_is_cut_and_counted_and_others_go_on(store: DeviceStore) -> None:
    wall = Clock()
    log = EventLog(store, clock=wall, burst=10, rate_per_s=5.0)
    for _ in range(100):
        log.append(2, "stormy")
    log.append(2, "calm")
    assert log.counts["rate_limited"] == 90
    wall.now += 1_000_000
    for _ in range(100):
        log.append(2, "stormy")
    assert log.counts["rate_limited"] == 90 + 95
    assert len(log) == 10 + 1 + 5


def test_the_table_of_page_rates_is_bounded(store: DeviceStore) -> None:
    log = EventLog(store)
    for n in range(3000):
        log.append(1, f"page{n}")
    assert len(log._buckets) <= 1024


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"x": float("nan")}, "content.x.*finite"),
        ({"a": {"b": [1.0, float("inf")]}}, "content.a.b.*finite"),
        ({"a": {"b": {"c": {"d": 1}}}}, "nested deeper than 4"),
        ({"s": "x" * 1025}, "longer than 1024"),
        ({f"k{n}": "x" * 1000 for n in range(9)}, "larger than 8192"),
        ({1: 2}, "keys must be strings"),
        ({"b": b"bytes"}, "must be null, bool"),
        ({"o": object()}, "must be null, bool"),
        ({"n": 1 << 64}, "64 bits"),
        ([1], "must be a map"),
    ],
)
def test_content_that_cannot_travel_is_refused_by_name(
    store: DeviceStore, content: object, words: str
) -> None:
    log = EventLog(store)
    if isinstance(content, dict) and "a" in content and "c" in str(content):
        content = {"z": content}
    with pytest.raises(InputError, match=words):
        log.append(1, "p", content)  # type: ignore[arg-type]
    assert log.counts["refused"] == 1
    log.append(1, "p", {"fine": 1})
    assert len(log) == 1


@pytest.mark.parametrize(
    "bad",
    [
        {"kind": 0}, {"kind": 256}, {"kind": "click"}, {"page": ""}, {"page": "*"},
        {"page": "x" * 2000}, {"ts_us": 1.5}, {"ts_us": 1 << 64}, {"visit": b"short"},
        {"event_id": "text"},
    ],
)  # fmt: skip
def test_bad_fields_are_refused_by_name(store: DeviceStore, bad: dict) -> None:
    log = EventLog(store)
    with pytest.raises(InputError, match=next(iter(bad))):
        log.append(**{"kind": 1, "page": "p", **bad})
    assert log.last_seq == 0


@given(
    st.dictionaries(
        st.text(max_size=20),
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=50)
            | st.floats(allow_nan=False, allow_infinity=False),
            lambda inner: st.lists(inner, max_size=4)
            | st.dictionaries(st.text(max_size=10), inner, max_size=4),
            max_leaves=10,
        ),
        max_size=5,
    )
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_accepted_content_is_within_the_limits(content: dict) -> None:
    def depth(value: object) -> int:
        if isinstance(value, dict):
            return 1 + max(map(depth, value.values()), default=0)
        if isinstance(value, list):
            return 1 + max(map(depth, value), default=0)
        return 0

    if depth(content) <= DEFAULT_LIMITS.event_depth:
        assert len(check_content(content)) <= DEFAULT_LIMITS.event_content
    else:
        with pytest.raises(LimitError):
            check_content(content)


def test_a_full_disk_keeps_events_in_memory_then_says_so_and_goes_on(tmp_path: Path) -> None:
    with DeviceStore(tmp_path, max_megabytes=0.4) as store:
        log = EventLog(store, max_waiting=300, burst=10**9)
        content = {f"k{n}": "x" * 900 for n in range(4)}
        raised = 0
        for _ in range(1000):
            try:
                log.append(1, "p", content)
            except DiskFullError:
                raised += 1
        assert raised == log.counts["disk_full"] > 0
        with pytest.raises(DiskFullError):
            log.read(0)
        assert log.counts["appended"] + raised == 1000
        with store.transaction() as cursor:
            cursor.execute("PRAGMA max_page_count=1000000")  # the user frees some space
        log.append(1, "p")
        assert len(log.read(0, 2000)) == log.counts["appended"] == 1001 - raised
        assert [seq for seq, _ in log.read(0, 2000)] == list(range(1, 1002 - raised))


def test_a_rolled_back_outer_transaction_gives_the_events_back(store: DeviceStore) -> None:
    log = EventLog(store)
    log.append(1, "p")
    with pytest.raises(RuntimeError), store.transaction():
        log.flush()
        raise RuntimeError
    assert len(log.read(0)) == 1


def test_trim_by_size_drops_the_oldest_and_counts_unread(store: DeviceStore) -> None:
    log = EventLog(store, burst=10**6)
    for _ in range(1000):
        log.append(1, "p", {"x": "y" * 900})
    with store.transaction() as cursor:
        cursor.execute("INSERT INTO consumer VALUES ('t', 1, 300, NULL)")
    before = store.size_bytes()
    gone = log.trim(megabytes=0.5)
    left = [seq for seq, _ in log.read(0, 2000)]
    assert left == list(range(gone + 1, 1001))
    assert 400 <= len(left) <= 510
    assert log.counts["trimmed_unread"] == gone - 300
    assert store.size_bytes() < before * 0.7


def test_kill_at_any_moment_loses_nothing_that_was_flushed(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import sys
        from shoal.device.store import DeviceStore
        from shoal.device.stream.log import EventLog
        log = EventLog(DeviceStore(sys.argv[1]), burst=10**9, group=7)
        n = log.last_seq
        while True:
            n += 1
            log.append(1, "p", {"n": n})
            if n % 10 == 0:
                log.flush()
                print(n, flush=True)
    """)
    for attempt in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        for _ in range(5 + 7 * attempt):
            flushed = int(child.stdout.readline())
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        with DeviceStore(tmp_path) as store:
            events = EventLog(store).read(0, 10**6)
            assert [seq for seq, _ in events] == list(range(1, len(events) + 1))
            assert [event.content["n"] for _, event in events] == [seq for seq, _ in events]
            assert len(events) >= flushed
