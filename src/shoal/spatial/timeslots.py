"""Slots of the visiting time: hours of the day or of the week, in a place's local time.

Slot 0 is midnight to one o'clock, of Monday where there are 168. A time zone is
an IANA name, an offset such as ``"+05:30"``, or a ``tzinfo``; daylight saving
is respected, so a shop that opens at nine opens in the same slot all year.

Source: the time part of NETR-Tree (Huang et al., arXiv 1908.09520), in the form
that ``VisitConfig`` documents; the paper's own slots are not known to us.
"""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError

__all__ = ["category_priors", "circular_gaussian", "slot_of", "slots_of_unix", "time_zone"]

_HOUR = 3600
_DAY = 24 * _HOUR
_SLOTS = (24, 168)
#: The Gaussian is cut off here, in standard deviations (1.5e-8 of its peak).
_REACH = 6.0
_OFFSET = re.compile(r"(?:UTC|GMT)?([+-])(\d{1,2}):?([0-5]\d)?")


def time_zone(tz: str | tzinfo) -> tzinfo:
    """Return the time zone of an IANA name, of an offset (``"+05:30"``) or of a ``tzinfo``.

    Raises
    ------
    InputError
        There is no such zone.
    """
    if isinstance(tz, tzinfo):
        return tz
    found = _OFFSET.fullmatch(tz)
    if found:
        sign, hours, minutes = found.groups()
        offset = timedelta(hours=int(hours), minutes=int(minutes or 0))
        if offset < timedelta(hours=24):
            return timezone(-offset if sign == "-" else offset)
    try:
        return ZoneInfo(tz)
    except (KeyError, ValueError, OSError):
        raise InputError(
            "no such time zone", field="tz", value=tz, hint='give an IANA name, or "+05:30"'
        ) from None


def slot_of(when: datetime | float, *, slots: int = 168, tz: str | tzinfo | None = None) -> int:
    """Return the slot of a moment in local time.

    Parameters
    ----------
    when : datetime or float
        A time, or seconds since 1970-01-01 UTC.
    slots : {24, 168}
        Hours of the day, or of the week.
    tz : str or tzinfo, optional
        The place's time zone. An aware ``datetime`` is brought into it; without
        it, the clock that the ``datetime`` itself shows counts. A naive
        ``datetime`` is a clock reading in it; without it, it is refused, and so
        are seconds.

    Returns
    -------
    int
        In ``0 .. slots - 1``.

    Raises
    ------
    InputError
        The time is naive (or in seconds) and no zone is given, the zone is
        unknown, or the time is out of range.
    """
    _check_slots(slots)
    zone = None if tz is None else time_zone(tz)
    if not isinstance(when, datetime):
        if zone is None:
            raise InputError("seconds need a time zone", field="tz", value=when)
        if not math.isfinite(when):
            raise InputError("a time must be finite", field="at", value=when)
        try:
            when = datetime.fromtimestamp(when, tz=zone)
        except (OverflowError, OSError, ValueError):
            raise InputError("a time out of range", field="at", value=when) from None
    elif when.tzinfo is None or when.utcoffset() is None:
        if zone is None:
            raise InputError(
                "a time without a time zone",
                field="at",
                value=when.isoformat(),
                hint="give an aware datetime, or the index a tz",
            )
    elif zone is not None:
        when = when.astimezone(zone)
    return when.hour if slots == 24 else 24 * when.weekday() + when.hour


def slots_of_unix(
    seconds: npt.ArrayLike,
    zones: Sequence[str | tzinfo],
    zone: npt.ArrayLike = 0,
    *,
    slots: int = 168,
) -> npt.NDArray[np.int64]:
    """Return the slots of many moments, each in the time zone of its place.

    Parameters
    ----------
    seconds : array of float [m]
        Seconds since 1970-01-01 UTC; NaN where unknown.
    zones : sequence of str or tzinfo
        The time zones.
    zone : array of int [m] or int
        Position in ``zones`` of each moment's; -1 where it is not known.
    slots : {24, 168}
        Hours of the day, or of the week.

    Returns
    -------
    int64 [m]
        Slots; -1 where the moment or its zone is not known.

    Raises
    ------
    InputError
        A zone is unknown, a position is out of range, or a time is infinite.
    """
    _check_slots(slots)
    times = np.atleast_1d(np.asarray(seconds, dtype=np.float64))
    if np.isinf(times).any():
        row = int(np.argmax(np.isinf(times)))
        raise InputError("a time must be finite", field="time", value=times[row], row=row + 1)
    numbers = np.broadcast_to(np.asarray(zone, dtype=np.int64), times.shape)
    outside = (numbers < -1) | (numbers >= len(zones))
    if outside.any():
        row = int(np.argmax(outside))
        raise InputError("no such time zone", field="zone", value=int(numbers[row]), row=row + 1)
    found = np.full(len(times), -1, dtype=np.int64)
    known = ~np.isnan(times)
    for number in np.unique(numbers[known & (numbers >= 0)]).tolist():
        mine = np.flatnonzero(known & (numbers == number))
        whole = np.floor(times[mine]).astype(np.int64)
        starts, offsets = _offsets(time_zone(zones[number]), int(whole.min()), int(whole.max()))
        local = whole + offsets[np.searchsorted(starts, whole, side="right") - 1]
        hours = local // _HOUR
        # 1970-01-01 was a Thursday: three days after the Monday that slot 0 belongs to.
        found[mine] = hours % 24 if slots == 24 else (hours + 72) % 168
    return found


def circular_gaussian(
    slots: int, hours: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the smoothing of visiting times: (offsets int64 [t], weights float64 [t]).

    Parameters
    ----------
    slots : {24, 168}
        Slots in the circle; each is one hour.
    hours : float
        Standard deviation; 0 is no smoothing.

    Returns
    -------
    tuple
        Offsets in ``0 .. slots - 1``, ascending, with the weight that a check-in
        gets so many slots later round the circle. The weights fall with the
        circular distance, are symmetric and have the sum 1, so that smoothing
        keeps the number of check-ins; beyond 6 standard deviations they are 0.

    Raises
    ------
    InputError
        ``hours`` is negative or not finite, or there are other slots.
    """
    _check_slots(slots)
    if not math.isfinite(hours) or hours < 0:
        raise InputError("must be finite and not negative", field="smoothing_hours", value=hours)
    offsets = np.arange(slots, dtype=np.int64)
    away = np.minimum(offsets, slots - offsets)
    if hours == 0:
        return offsets[:1], np.ones(1)
    weights = np.where(away <= _REACH * hours, np.exp(-0.5 * (away / hours) ** 2), 0.0)
    kept = weights > 0
    return offsets[kept], weights[kept] / weights[kept].sum()


def category_priors(
    counts: npt.NDArray[np.float64], hours: float, *, normaliser: str = "max"
) -> npt.NDArray[np.float64]:
    """Return how each category's visits are spread over the slots.

    Parameters
    ----------
    counts : float64 [categories, slots]
        Check-ins of each category in each slot.
    hours : float
        Smoothing, as in :func:`circular_gaussian`.
    normaliser : {"max", "total"}
        The busiest slot of a category is 1, or the sum over its slots is 1.

    Returns
    -------
    float64 [categories + 1, slots]
        The last row is that of all check-ins together; it also stands in for a
        category without any. All 0 where there are no check-ins at all.
    """
    slots = counts.shape[1]
    offsets, weights = circular_gaussian(slots, hours)
    table = np.vstack([counts, counts.sum(axis=0)])
    smooth = np.zeros_like(table, dtype=np.float64)
    for offset, weight in zip(offsets.tolist(), weights.tolist(), strict=True):
        smooth += weight * np.roll(table, offset, axis=1)
    empty = table.sum(axis=1) == 0
    smooth[empty] = smooth[-1]
    scale = smooth.max(axis=1) if normaliser == "max" else smooth.sum(axis=1)
    scale[scale == 0] = 1.0
    priors: npt.NDArray[np.float64] = np.minimum(1.0, smooth / scale[:, None])
    return priors


def _check_slots(slots: int) -> None:
    if slots not in _SLOTS:
        raise InputError("there are 24 or 168 slots", field="time_slots", value=slots)


def _offsets(
    zone: tzinfo, first: int, last: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return (start of each span, its offset from UTC), in seconds, from ``first`` to ``last``.

    Looks once a day and closes in on each change; no zone changes twice in a day.
    """

    def offset_at(second: int) -> int:
        try:
            offset = datetime.fromtimestamp(second, tz=UTC).astimezone(zone).utcoffset()
        except (OverflowError, OSError, ValueError):
            raise InputError("a time out of range", field="time", value=second) from None
        assert offset is not None
        return math.floor(offset.total_seconds())

    starts, offsets = [first], [offset_at(first)]
    at = first
    while at < last:
        after = min(at + _DAY, last)
        now = offset_at(after)
        if now != offsets[-1]:
            before, changed = offsets[-1], range(at, after + 1)
            # The first second that no longer has the offset of the day before.
            place = bisect.bisect_left(changed, True, key=lambda t: offset_at(t) != before)
            starts.append(changed[place])
            offsets.append(now)
        at = after
    return np.array(starts, dtype=np.int64), np.array(offsets, dtype=np.int64)
