"""The IPV fold against a computation over each visit's whole list of events."""

from __future__ import annotations

import json
import math
import random
import struct
from collections import defaultdict
from datetime import UTC, datetime
from statistics import mean

import msgspec
import pytest

from shoal.data.shop import Shop, ShopConfig
from shoal.device.stream.ipv import ACTIONS, IpvFold, encode_record, ipv_vector
from shoal.wire import Event, new_ulid

MINUTE = 60_000_000
CLEAN = ShopConfig(out_of_order=0, duplicates=0, missing_exits=0, background=0)


def deduplicated(events: list) -> list[Event]:
    return [Event(*one) for one in {e.id: e for e in events}.values()]


def by_visit(events: list[Event]) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = defaultdict(list)
    for event in sorted(events, key=lambda e: (e.boot, e.mono_us)):
        if event.page == "detail" and event.visit:
            found[event.visit.hex()].append(event)
    return found


def oracle(events: list[Event]) -> dict:
    """What a visit's record says, from the sorted list of its events."""
    of = defaultdict(list)
    for event in events:
        of[event.kind].append(event)
    scrolls, shown = of[2], [e.content["duration_ms"] for e in of[3]]
    widgets = [e.content["widget"] for e in of[4]]
    began = (of[1] or events)[0]
    ended = (of[5] or events)[-1]
    dwell = (ended.mono_us - began.mono_us) / 1e6
    return {
        "item": events[0].content["item"],
        "category": events[0].content["category"],
        "source": of[1][0].content["source"] if of[1] else "other",
        "dwell_s": dwell,
        "entered_us": began.ts_us,
        "events": len(events),
        "clicks": len(of[4]),
        "exposures": len(shown),
        "scrolls": len(scrolls),
        "scroll_speed_max": max((e.content["speed"] for e in scrolls), default=0),
        "scroll_distance": round(math.fsum(e.content["distance"] for e in scrolls), 3),
        "scroll_depth_max": max((e.content["depth"] for e in scrolls), default=0),
        "scroll_duration_max_s": max((e.content["duration_ms"] for e in scrolls), default=0) / 1e3,
        "exposure_duration_max_s": max(shown, default=0) / 1e3,
        "exposure_duration_mean_s": sum(shown) / 1e3 / len(shown) if shown else 0.0,
        "actions": {name: widgets.count(name) for name in ACTIONS},
        "widgets": {w: widgets.count(w) for w in sorted({*widgets} - {*ACTIONS})},
        "path": [
            [e.content["widget"], (e.mono_us - began.mono_us) // 1000] for e in of[4]
        ][:32],
        "hour": datetime.fromtimestamp(began.ts_us // 10**6, UTC).hour,
    }  # fmt: skip


def run(fold: IpvFold, events: list[Event]) -> list[dict]:
    out = [record for event in events for record in fold.on(event)]
    return out + fold.close()


def final(records: list[dict]) -> dict[str, dict]:
    newest: dict[str, dict] = {}
    for record in records:
        held = newest.get(record["visit"])
        assert held is None or record["revision"] == held["revision"] + 1
        newest[record["visit"]] = record
    return newest


@pytest.mark.parametrize("seed", range(8))
def test_equals_the_oracle_on_messy_streams(seed: int) -> None:
    config = ShopConfig(out_of_order=0.03, missing_exits=0.05, background=0.05)
    events = deduplicated(Shop(config, seed).device(0, 12))
    fold = IpvFold()
    got = final(run(fold, events))
    wanted = {visit: oracle(found) for visit, found in by_visit(events).items()}
    assert got.keys() == wanted.keys()
    assert len(wanted) > 10
    for visit, expected in wanted.items():
        record = got[visit]
        found = {name: record[name] for name in expected}
        # An event can be the last of its visit, and the visit closed in the background later.
        if record["closed_by"] == "background":
            del found["dwell_s"], expected["dwell_s"]
        assert found == expected
    assert fold.state["late_dropped"] == 0


@pytest.mark.parametrize("seed", range(4))
def test_history_of_items_and_categories(seed: int) -> None:
    config = ShopConfig(items=30, categories=4, out_of_order=0, duplicates=0, missing_exits=0,
                        background=0)  # fmt: skip
    events = deduplicated(Shop(config, seed).device(0, 30))
    records = run(IpvFold(), events)
    seen: list[dict] = []
    for record in records:
        day = record["entered_us"] // 86_400_000_000
        today = [r for r in seen if r["entered_us"] // 86_400_000_000 == day]
        same = [r for r in seen if r["item"] == record["item"]]
        since = (record["entered_us"] - same[-1]["entered_us"]) // 10**6 if same else None
        assert record["since_item_s"] == since
        assert record["item_visits_today"] == sum(r["item"] == record["item"] for r in today)
        of_category = sum(r["category"] == record["category"] for r in today)
        assert record["category_visits_today"] == of_category
        seen.append(record)
    assert max(r["item_visits_today"] for r in records) >= 1


def test_order_within_the_late_bound_changes_nothing_to_the_last_bit() -> None:
    events = deduplicated(Shop(CLEAN, 3).device(0, 4))
    wanted = {
        v: encode_record({**r, "revision": 0}) for v, r in final(run(IpvFold(), events)).items()
    }
    rng = random.Random(3)
    jumbled = sorted(events, key=lambda e: (e.boot, e.mono_us + rng.random() * 20e6))
    got = final(run(IpvFold(), jumbled))
    history = ("since_item_s", "item_visits_today", "category_visits_today")
    for visit, record in got.items():
        plain = json.loads(wanted[visit])
        same = {**record, "revision": 0} | {name: plain[name] for name in history}
        assert encode_record(same) == wanted[visit]
    assert max(r["revision"] for r in got.values()) >= 1


def test_forgetting_an_event_is_noticed() -> None:
    """Negative control: the comparison with the oracle has teeth."""
    events = deduplicated(Shop(CLEAN, 3).device(0, 2))
    dropped = next(e for e in events if e.page == "detail" and e.kind == 2)
    got = final(run(IpvFold(), [e for e in events if e is not dropped]))
    found = got[dropped.visit.hex()]
    wanted = oracle(by_visit(events)[dropped.visit.hex()])
    assert any(found[name] != wanted[name] for name in wanted)


def test_state_is_json_and_a_fold_goes_on_from_it() -> None:
    events = deduplicated(Shop(ShopConfig(), 4).device(0, 8))
    wanted = run(IpvFold(), events)
    state: dict | None = None
    got: list[dict] = []
    for event in events:
        fold = IpvFold(state)
        got += fold.on(event)
        state = json.loads(json.dumps(fold.state))
    got += IpvFold(state).close()
    assert got == wanted


def make(kind: int, second: float, visit: bytes | None = None, page: str = "detail",
         boot: int = 1, **content: object) -> Event:  # fmt: skip
    at = int(second * 1e6)
    return Event(
        new_ulid(), kind, page, 10**15 + at, 10**9 + at, boot, visit, {"item": 1, **content}
    )


def test_without_visit_ids_every_way_to_close() -> None:
    fold = IpvFold()
    events = [
        make(1, 0), make(4, 1, widget="cart"), make(5, 2),  # exit
        make(1, 10), make(1, 20),  # implied
        make(1, 20 + 3000, page="home"),  # timeout
        make(1, 4000), make(17, 4010, page="app"), make(16, 4400, page="app"),  # background
        make(1, 5000), make(1, 0, boot=2),  # restart
    ]  # fmt: skip
    records = [r for event in events for r in fold.on(event)]
    assert [(r["closed_by"], r["dwell_s"], r["completeness"]) for r in records] == [
        ("exit", 2.0, 1.0), ("implied", 0.0, 0.5), ("timeout", 0.0, 0.5),
        ("background", 10.0, 0.5), ("restart", 0.0, 0.5),
    ]  # fmt: skip
    assert records[0]["actions"]["cart"] == 1


def test_late_events_revise_ten_minutes_long() -> None:
    fold, one = IpvFold(), bytes(16)
    for event in [make(1, 0, one), make(5, 10, one)]:
        fold.on(event)
    (record,) = fold.on(make(4, 5, one, widget="buy"))
    assert (record["revision"], record["clicks"], record["dwell_s"]) == (1, 1, 10.0)
    fold.on(make(4, 700, page="home"))
    assert fold.on(make(4, 6, one, widget="buy")) == []
    assert (fold.state["late"], fold.state["late_dropped"]) == (1, 1)


@pytest.mark.parametrize(
    "content",
    [{"speed": float("nan")}, {"speed": "fast", "distance": None}, {"distance": float("inf")},
     {"depth": True}, {"item": ["list"]}, {"duration_ms": 10**400}, {"widget": 3},
     {"reason": "x", "widget": "delete"}, {"source": {"a": 1}}],
)  # fmt: skip
def test_nonsense_in_content_never_breaks_a_record(content: dict) -> None:
    fold = IpvFold()
    records = []
    for n, kind in enumerate((1, 2, 3, 4, 5)):
        records += fold.on(make(kind, n, **content))
    numbers = struct.unpack("<32f", ipv_vector(records[0]))
    assert all(map(math.isfinite, numbers))
    json.loads(encode_record(records[0]))


def test_vector_has_the_slots_of_the_sheet() -> None:
    fold = IpvFold()
    content = {"widget": "delete", "reason": 2, "speed": 99.0, "distance": 9.0, "depth": 0.5,
               "duration_ms": 1000, "source": "search", "category": 5}  # fmt: skip
    for n, kind in enumerate((1, 2, 3, 4, 5)):
        records = fold.on(make(kind, n, **content))
    vector = ipv_vector(records[0])
    assert len(vector) == 128
    slots = struct.unpack("<32f", vector)
    expected = {
        0: math.log1p(4), 1: math.log1p(5), 2: math.log1p(1), 5: math.log1p(99), 6: math.log1p(9),
        7: 0.5, 8: 0.0, 18: 1.0, 19: 0.5, 20: math.log1p(1), 23: 0.0, 28: 2 / 7, 29: 0.0,
        30: 1.0, 31: 1.0,
    }  # fmt: skip
    assert {n: slots[n] for n in expected} == pytest.approx(expected)
    assert slots[26] ** 2 + slots[27] ** 2 == pytest.approx(1)


def test_memory_is_bounded() -> None:
    fold = IpvFold()
    for n in range(5000):
        visit = n.to_bytes(16, "big")
        fold.on(make(1, n * 0.01, visit, item=n, category=n))
        fold.on(make(5, n * 0.01 + 0.001, visit, item=n, category=n))
    assert len(fold.state["closed"]) <= 64
    assert len(fold.state["items"]) <= 2000
    assert len(fold.state["categories"]) <= 500


def test_a_record_is_about_one_kilobyte_and_a_visit_21() -> None:
    events = deduplicated(Shop(CLEAN, 5).device(0, 20))
    records = run(IpvFold(), events)
    raw = mean(
        sum(len(msgspec.msgpack.encode(e)) for e in found) for found in by_visit(events).values()
    )
    record = mean(len(encode_record(r)) for r in records)
    assert 700 < record < 1500
    assert record < 0.1 * raw
