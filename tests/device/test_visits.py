"""Page visits against a batch over the whole, sorted log."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path

import pytest

from shoal.core.errors import InputError
from shoal.data.shop import Shop, ShopConfig
from shoal.device.store import DeviceStore
from shoal.device.stream.visits import Visit, VisitTracker
from shoal.wire import Event, EventKind, new_ulid

SECOND = 1_000_000
MINUTE = 60 * SECOND
ENTER, SCROLL, CLICK, EXIT, FORE, BACK = 1, 2, 4, 5, 16, 17


def make(
    kind: int, page: str, second: float, *, boot: int = 1, visit: bytes | None = None
) -> Event:
    at = int(second * SECOND)
    return Event(new_ulid(), kind, page, 10**15 + at, 10**9 + at, boot, visit, {})


def batch(events: list[Event]) -> dict[bytes, tuple]:
    """The oracle: sort everything, then cut each boot by plain rules over whole lists."""
    unique = {event.id: event for event in events}
    boots = defaultdict(list)
    for event in sorted(unique.values(), key=lambda e: (e.boot, e.mono_us)):
        boots[event.boot].append(event)
    found = {}
    for stream in boots.values():
        visits: list[dict] = []  # all visits of this boot, open ones have no "by"

        def shut(visit: dict, by: str, at: int) -> None:
            visit["by"], visit["at"] = by, at

        for place, event in enumerate(stream):
            now = event.mono_us
            opened = [v for v in visits if "by" not in v]
            before = stream[place - 1] if place else None
            if before is not None and before.kind == BACK and now - before.mono_us > 5 * MINUTE:
                for visit in opened:
                    shut(visit, "background", max(before.mono_us, visit["events"][-1].mono_us))
            for visit in opened:
                idle = now - visit["events"][-1].mono_us > 30 * MINUTE
                if "by" not in visit and (idle or now - visit["events"][0].mono_us > 240 * MINUTE):
                    shut(visit, "timeout", visit["events"][-1].mono_us)
            if event.kind in (FORE, BACK):
                continue
            opened = [v for v in visits if "by" not in v]
            if event.visit:
                mine = [v for v in opened if v["name"] == event.visit]
            elif event.kind == ENTER:
                mine = []
            else:
                mine = [v for v in opened if v["name"] is None and v["page"] == event.page]
            if not mine:
                mine = [{"name": event.visit, "page": event.page, "events": []}]
                visits.append(mine[0])
            visit = mine[-1]
            visit["events"].append(event)
            if event.kind == EXIT:
                if event.visit is None:
                    for above in visits[visits.index(visit) + 1 :]:
                        if "by" not in above:
                            shut(above, "implied", now)
                shut(visit, "exit", now)
        for visit in visits:
            if "by" not in visit:
                shut(visit, "restart", visit["events"][-1].mono_us)
            key = visit["events"][0].id
            found[key] = (
                visit["page"], visit["by"], visit["at"] - visit["events"][0].mono_us,
                [e.id for e in visit["events"]],
            )  # fmt: skip
    return found


def track(tracker: VisitTracker, events: list[Event]) -> list[Visit]:
    out = [visit for event in events for visit in tracker.on(event)]
    return out + tracker.close()


def final(visits: list[Visit]) -> dict[bytes, tuple]:
    newest: dict[bytes, Visit] = {}
    for visit in visits:
        held = newest.get(visit.id)
        assert held is None or visit.revision == held.revision + 1
        newest[visit.id] = visit
    return {
        v.events[0].id: (v.page, v.closed_by, v.dwell_us, [e.id for e in v.events])
        for v in newest.values()
    }


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_equals_the_batch_under_reordering_within_the_hold(named: bool, seed: int) -> None:
    shop = Shop(ShopConfig(visit_ids=named, trace_bytes=0, background=0.1, out_of_order=0), seed)
    clean = [Event(*one) for one in shop.device(0, 12)]
    rng = random.Random(seed)
    jumbled = sorted(clean, key=lambda e: (e.boot, e.mono_us + rng.random() * 29 * SECOND))
    tracker = VisitTracker()
    visits = track(tracker, jumbled)
    wanted = batch(clean)
    assert final(visits) == wanted
    assert len(wanted) > 60
    assert {"exit", "timeout", "background"} & {v.closed_by for v in visits}
    assert tracker.counts["late"] == tracker.counts["late_dropped"] == 0
    assert tracker.counts["duplicate"] == len(clean) - len({e.id for e in clean})


def test_reordering_beyond_the_hold_differs() -> None:
    """Negative control: without a hold and with unnamed visits the order matters."""
    shop = Shop(ShopConfig(visit_ids=False, trace_bytes=0, out_of_order=0), 1)
    clean = [Event(*one) for one in shop.device(0, 12)]
    rng = random.Random(1)
    jumbled = sorted(clean, key=lambda e: (e.boot, e.mono_us + rng.random() * 29 * SECOND))
    assert final(track(VisitTracker(hold_us=0), jumbled)) != batch(clean)


@pytest.mark.parametrize("seed", range(6))
def test_without_hold_visits_come_at_once_and_late_events_revise_them(seed: int) -> None:
    config = ShopConfig(trace_bytes=0, background=0, missing_exits=0, out_of_order=0.05)
    events = [Event(*one) for one in Shop(config, seed).device(0, 12)]
    tracker = VisitTracker(hold_us=0)
    at_once = sum(
        any(v.closed_by == "exit" and v.revision == 0 for v in tracker.on(event))
        for event in events
        if event.kind == EXIT
    )
    assert at_once > 50
    visits = track(VisitTracker(hold_us=0), events)
    assert max(v.revision for v in visits) >= 1
    wanted = {tuple(sorted(one[3])) for one in batch(events).values()}
    got = {tuple(sorted(one[3])) for one in final(visits).values()}
    assert len(got & wanted) / len(wanted) > 0.98  # a visit whose first event is late splits


def test_every_way_to_close() -> None:
    tracker = VisitTracker(hold_us=0)
    out = []
    for event in [
        make(ENTER, "list", 0), make(ENTER, "detail", 1), make(EXIT, "list", 5),  # implied, exit
        make(ENTER, "search", 10), make(CLICK, "search", 12),
        make(ENTER, "cart", 10 + 31 * 60),  # timeout of search
        make(BACK, "app", 20 + 31 * 60), make(FORE, "app", 21 + 37 * 60),  # background
        make(ENTER, "home", 40 * 60), make(ENTER, "home", 1, boot=2),  # restart
    ]:  # fmt: skip
        out += tracker.on(event)
    assert [(v.page, v.closed_by, v.dwell_us // SECOND) for v in out] == [
        ("detail", "implied", 4), ("list", "exit", 5), ("search", "timeout", 2),
        ("cart", "background", 10), ("home", "restart", 0),
    ]  # fmt: skip
    assert [v.complete for v in out] == [False, True, False, False, False]
    assert tracker.counts["restarts"] == 1
    assert [v.closed_by for v in tracker.close()] == ["restart"]


def test_a_short_background_does_not_end_a_visit() -> None:
    tracker = VisitTracker(hold_us=0)
    events = [
        make(ENTER, "p", 0),
        make(BACK, "app", 1),
        make(FORE, "app", 290),
        make(EXIT, "p", 300),
    ]
    (visit,) = [v for event in events for v in tracker.on(event)]
    assert (visit.closed_by, visit.dwell_us, visit.n_events) == ("exit", 300 * SECOND, 2)


def test_a_visit_ends_after_four_hours_and_without_events_by_the_clock() -> None:
    tracker = VisitTracker(hold_us=0)
    out = [v for n in range(15) for v in tracker.on(make(CLICK, "p", n * 20 * 60))]
    assert [(v.closed_by, v.n_events) for v in out] == [("timeout", 13)]
    assert tracker.advance(10**9 + 14 * 20 * MINUTE + 29 * MINUTE) == []
    assert [v.n_events for v in tracker.advance(10**9 + 14 * 20 * MINUTE + 31 * MINUTE)] == [2]


def test_late_events_revise_for_ten_minutes_then_are_dropped_and_counted() -> None:
    tracker = VisitTracker(hold_us=0)
    for event in [make(ENTER, "p", 0), make(EXIT, "p", 10), make(CLICK, "q", 500)]:
        tracker.on(event)
    (again,) = tracker.on(make(CLICK, "p", 5))
    assert (again.revision, again.n_events, again.dwell_us) == (1, 3, 10 * SECOND)
    assert [e.kind for e in again.events] == [ENTER, CLICK, EXIT]
    assert tracker.on(make(CLICK, "p", 11)) == []  # nobody was on p then
    tracker.on(make(CLICK, "q", 620))
    assert tracker.on(make(CLICK, "p", 6)) == []
    assert tracker.counts == {"late": 1, "late_dropped": 2}


def test_wall_clock_jumps_neither_cut_nor_stretch_a_visit() -> None:
    year = 365 * 24 * 60 * MINUTE
    tracker = VisitTracker(hold_us=0)
    for n, jump in enumerate((0, 5 * year, -5 * year, 0)):
        kind = (ENTER, CLICK, CLICK, EXIT)[n]
        out = tracker.on(
            Event(new_ulid(), kind, "p", 10**15 + jump, 10**9 + n * SECOND, 1, None, {})
        )
    assert [(v.closed_by, v.dwell_us, v.n_events) for v in out] == [("exit", 3 * SECOND, 4)]


def test_visits_have_a_bounded_number_of_events_and_say_so() -> None:
    tracker = VisitTracker(hold_us=0, max_events=10)
    for n in range(50):
        tracker.on(make(CLICK, "p", n))
    (visit,) = tracker.on(make(EXIT, "p", 51))
    assert (len(visit.events), visit.n_events) == (10, 51)
    assert tracker.counts["events_dropped"] == 41
    assert visit.exited_us == 10**15 + 51 * SECOND


def test_a_snapshot_at_any_event_changes_nothing(tmp_path: Path) -> None:
    events = [Event(*one) for one in Shop(ShopConfig(trace_bytes=0), 9).device(0, 6)]
    wanted = track(VisitTracker(), events)
    rng = random.Random(9)
    tracker, got = VisitTracker(), []
    for event in events:
        got += tracker.on(event)
        if rng.random() < 0.1:
            again = VisitTracker()
            again.restore(tracker.snapshot())
            tracker = again
    got += tracker.close()
    assert got == wanted
    with pytest.raises(InputError, match="snapshot"):
        tracker.restore(b"\x00")
    with DeviceStore(tmp_path) as store:
        with store.transaction() as cursor:
            tracker.save(cursor, wanted)
            tracker.save(cursor, wanted[:3])
        with store.read() as cursor:
            rows = cursor.execute("SELECT visit, revision, n_events FROM visit").fetchall()
    newest = {v.id: (v.revision, v.n_events) for v in wanted}
    assert {row[0]: row[1:] for row in rows} == newest


def test_a_bad_setting_is_refused() -> None:
    with pytest.raises(InputError, match="hold_us"):
        VisitTracker(hold_us=-1)


def test_events_without_page_make_no_visit() -> None:
    tracker = VisitTracker(hold_us=0)
    kinds = (EventKind.APP_FOREGROUND, EventKind.TIMER, EventKind.APP_BACKGROUND)
    for n, kind in enumerate(kinds):
        tracker.on(make(kind, "app", n))
    assert tracker.close() == []
