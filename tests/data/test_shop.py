"""The shop generator: repeatable, and with the figures that the sheet states."""

from __future__ import annotations

from collections import Counter, defaultdict
from statistics import mean, median

import msgspec
import pytest

from shoal.core.errors import InputError
from shoal.data.shop import PAGES, WIDGETS, Shop, ShopConfig, ShopEvent
from shoal.wire import DEFAULT_LIMITS, Event

CLEAN = ShopConfig(out_of_order=0, duplicates=0, missing_exits=0, background=0, skew_s=0)


def visits(events: list[ShopEvent], page: str) -> dict[bytes, list[ShopEvent]]:
    found: dict[bytes, list[ShopEvent]] = defaultdict(list)
    for event in events:
        if event.page == page and event.visit:
            found[event.visit].append(event)
    return found


def test_same_seed_same_bits_in_any_order() -> None:
    shop = Shop(seed=5)
    wanted = [shop.device(n) for n in range(4)]
    again = Shop(seed=5)
    assert [again.device(n) for n in (3, 1, 0, 2)] == [wanted[n] for n in (3, 1, 0, 2)]
    assert list(again.devices(4)) == wanted
    assert Shop(seed=6).device(0) != wanted[0]


def test_clean_streams_are_in_order_and_every_visit_is_entered_and_left() -> None:
    for events in Shop(CLEAN, seed=1).devices(20):
        assert [e.ts_us for e in events] == sorted(e.ts_us for e in events)
        assert [(e.boot, e.mono_us) for e in events] == sorted((e.boot, e.mono_us) for e in events)
        assert len({e.id for e in events}) == len(events)
        for page in PAGES:
            for visit in visits(events, page).values():
                assert (visit[0].kind, visit[-1].kind) == (1, 5)
                assert not {e.kind for e in visit[1:-1]} & {1, 5}


def test_detail_visits_average_19_events_and_21_kb_with_a_median_of_18_s() -> None:
    clean = Shop(CLEAN, seed=2)
    found = [v for events in clean.devices(120) for v in visits(events, "detail").values()]
    assert len(found) > 400
    clicks = [sum(e.kind == 4 for e in v) for v in found]
    assert 8 <= min(clicks) <= max(clicks) <= 30
    size = mean(sum(len(msgspec.msgpack.encode(Event(*e))) for e in v) for v in found)
    assert mean(map(len, found)) == pytest.approx(19.3, abs=0.5)
    assert size == pytest.approx(21_200, rel=0.05)
    assert median((v[-1].mono_us - v[0].mono_us) / 1e6 for v in found) == pytest.approx(
        18, rel=0.15
    )


def test_disorder_has_the_stated_shares() -> None:
    shop = Shop(ShopConfig(background=0.0), seed=3)
    count = late = copies = entered = left = 0
    for events in shop.devices(150):
        ids = Counter(e.id for e in events)
        copies += sum(ids.values()) - len(ids)
        seen: set[bytes] = set()
        newest = (0, 0)
        for event in events:
            if event.id not in seen:
                late += (event.boot, event.mono_us) < newest
                newest = max(newest, (event.boot, event.mono_us))
                count += 1
                entered += event.kind == 1
                left += event.kind == 5
            seen.add(event.id)
    assert count > 20_000
    assert copies / count == pytest.approx(0.005, abs=0.002)
    assert late / count == pytest.approx(0.0085, abs=0.003)  # a few late ones pass nobody
    assert 1 - left / entered == pytest.approx(0.02, abs=0.008)


def test_clocks_are_wrong_by_up_to_five_minutes_but_monotonic_time_is_not() -> None:
    skewed, true = Shop(ShopConfig(), seed=4), Shop(ShopConfig(skew_s=0), seed=4)
    shifts = set()
    for device in range(30):
        pairs = zip(skewed.device(device), true.device(device), strict=True)
        shift = {(a.ts_us - b.ts_us, a.mono_us - b.mono_us) for a, b in pairs}
        assert len(shift) == 1
        shifts |= shift
    assert all(abs(wall) <= 300_000_000 and mono == 0 for wall, mono in shifts)
    assert max(abs(wall) for wall, _ in shifts) > 150_000_000


def test_popular_items_are_exposed_more_and_good_ones_clicked_more() -> None:
    shop = Shop(CLEAN, seed=7)
    shown: Counter[int] = Counter()
    good, bad = [0, 0], [0, 0]
    middle = median(shop.quality)
    for events in shop.devices(200):
        for event in events:
            if event.page == "list" and event.kind in (3, 4):
                item = event.content["item"]
                tally = good if shop.quality[item] > middle else bad
                tally[event.kind == 4] += 1
                shown[item] += event.kind == 3
    assert sum(shown[n] for n in range(50)) > 3 * sum(shown[n] for n in range(1000, 1050))
    assert good[1] / good[0] > 1.5 * bad[1] / bad[0]


def test_every_event_fits_the_wire() -> None:
    for events in Shop(seed=8).devices(5):
        for event in events:
            assert Event(*event).page == event.page
            assert len(msgspec.msgpack.encode(event.content)) < DEFAULT_LIMITS.event_content
            assert event.content.get("widget", "image") in {*WIDGETS, "delete", "count", "remove",
                                                            "pay", "coupon"}  # fmt: skip


@pytest.mark.parametrize(
    "bad", [{"out_of_order": 1.5}, {"duplicates": -0.1}, {"items": 0}, {"categories": 0}]
)
def test_a_bad_setting_is_refused_by_name(bad: dict) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        ShopConfig(**bad)
