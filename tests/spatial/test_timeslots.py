"""Slots in local time, smoothing round the circle, and what categories are busy when."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import InputError
from shoal.spatial.timeslots import (
    category_priors,
    circular_gaussian,
    slot_of,
    slots_of_unix,
    time_zone,
)

ZONES = [
    *("Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"),
    *("America/St_Johns", "UTC", "+05:30"),
]


@pytest.mark.parametrize(
    ("when", "tz", "slot"),
    [
        (datetime(2026, 11, 23, 9, 30, tzinfo=UTC), None, 9),  # a Monday
        (datetime(2026, 11, 23, 9, 30, tzinfo=UTC), "Asia/Tokyo", 18),
        (datetime(2026, 11, 22, 23, 30, tzinfo=UTC), "Europe/Berlin", 0),
        (datetime(2026, 7, 5, 22, 30, tzinfo=UTC), "Europe/Berlin", 0),  # summer: two hours ahead
        (datetime(2026, 11, 23, 9, 30), "Asia/Tokyo", 9),
        (datetime(2026, 11, 29, 23, 59), "UTC", 167),
        (datetime(2026, 11, 23, 1, 0, tzinfo=UTC), "-02:00", 167),
        (0, "UTC", 72),  # 1970-01-01 was a Thursday
    ],
)
def test_a_moment_has_the_slot_of_the_clock_at_the_place(when, tz, slot):
    assert slot_of(when, tz=tz) == slot
    assert slot_of(when, slots=24, tz=tz) == slot % 24


@pytest.mark.parametrize(
    ("when", "options"),
    [
        (datetime(2026, 1, 1), {}),
        (12.0, {}),
        (float("nan"), {"tz": "UTC"}),
        (1e300, {"tz": "UTC"}),
        (datetime(2026, 1, 1), {"tz": "Mars/Olympus"}),
        (datetime(2026, 1, 1), {"tz": "+27:00"}),
        (datetime(2026, 1, 1), {"tz": "../etc/passwd"}),
        (datetime(2026, 1, 1), {"tz": "UTC", "slots": 7}),
    ],
    ids=["naive", "seconds", "nan", "far", "zone", "offset", "path", "slots"],
)
def test_what_has_no_slot_is_refused(when, options):
    with pytest.raises(InputError):
        slot_of(when, **options)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 2_000_000_000), st.integers(0, len(ZONES) - 1)), min_size=1)
)
def test_many_moments_have_the_slots_of_each(moments):
    seconds, zone = np.array(moments).T
    for slots in (24, 168):
        got = slots_of_unix(seconds, ZONES, zone, slots=slots)
        assert got.tolist() == [slot_of(s, slots=slots, tz=ZONES[z]) for s, z in moments]


def test_the_hour_of_a_change_of_clocks_is_right_to_the_second():
    change = int(datetime(2026, 3, 29, 1, 0, tzinfo=UTC).timestamp())
    seconds = np.arange(change - 3, change + 3)
    got = slots_of_unix(np.append(seconds, [0, 2_000_000_000]), ["Europe/Berlin"], slots=24)
    assert got[:6].tolist() == [1, 1, 1, 3, 3, 3]


def test_unknown_moments_and_zones_have_no_slot():
    assert slots_of_unix([np.nan, 0.0, 0.0], ["UTC"], [0, -1, 0]).tolist() == [-1, -1, 72]
    with pytest.raises(InputError, match="row 2"):
        slots_of_unix([0.0, np.inf], ["UTC"])
    with pytest.raises(InputError, match="row 1"):
        slots_of_unix([0.0], ["UTC"], [1])


def test_a_time_zone_is_a_name_an_offset_or_itself():
    assert time_zone("Europe/Berlin") == ZoneInfo("Europe/Berlin")
    assert time_zone("UTC-3").utcoffset(None) == timedelta(hours=-3)
    assert time_zone(UTC) is UTC


@pytest.mark.parametrize("slots", [24, 168])
@pytest.mark.parametrize("hours", [0.0, 0.5, 1.0, 12.0])
def test_smoothing_is_symmetric_and_keeps_the_sum(slots, hours):
    offsets, weights = circular_gaussian(slots, hours)
    table = dict(zip(offsets.tolist(), weights.tolist(), strict=True))
    assert sum(weights) == pytest.approx(1.0, abs=1e-12)
    assert all(table[offset] == table[-offset % slots] for offset in table)
    assert weights.argmax() == 0
    if hours == 1.0:
        assert table[1] / table[0] == pytest.approx(np.exp(-0.5))
    with pytest.raises(InputError):
        circular_gaussian(slots, -1.0)


def test_priors_are_shares_of_the_busiest_slot_or_of_all():
    counts = np.zeros((3, 24))
    counts[0, 5], counts[1, 20] = 4, 8
    peaks = category_priors(counts, 1.0)
    assert peaks.shape == (4, 24)
    assert peaks.max(axis=1).tolist() == [1, 1, 1, 1]
    assert peaks[0].argmax() == 5
    assert (peaks[2] == peaks[3]).all(), "a category without check-ins is like all"
    np.testing.assert_allclose(category_priors(counts, 1.0, normaliser="total").sum(axis=1), 1.0)
    assert (category_priors(np.zeros((2, 24)), 1.0) == 0).all()
