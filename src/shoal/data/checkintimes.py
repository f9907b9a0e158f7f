"""Times of check-ins: seconds since 1970 (UTC) from all forms that say their zone, and slots."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from shoal.core.errors import InputError

__all__ = ["seconds", "slot_numbers"]


def seconds(time: Any, tz: str | None) -> npt.NDArray[np.int64]:
    """Return times as whole seconds since 1970 (UTC), int64.

    Parameters
    ----------
    time : sequence
        Seconds, ``datetime`` s, or a polars or NumPy column of times.
    tz : str or None
        IANA zone of naive times.

    Raises
    ------
    InputError
        A time is missing, not finite, naive without ``tz``, or no time at all.
    """
    if isinstance(time, np.ndarray) and time.dtype.kind == "M":
        time = pl.Series(time.astype("datetime64[us]"))
    if isinstance(time, pl.Series) and isinstance(time.dtype, (pl.Datetime, pl.Date)):
        return _zoned(time.cast(pl.Datetime("us")) if time.dtype == pl.Date else time, tz)
    listed: Any = time if isinstance(time, np.ndarray) else list(time)
    if len(listed) and isinstance(listed[0], datetime.datetime):
        return _of_datetimes(listed, tz)
    try:
        values = np.asarray(listed, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(
            "times are seconds since 1970 or aware datetimes", field="time", value=listed[0]
        ) from None
    endless = ~np.isfinite(values) | (np.abs(values) > 1e17)
    if endless.any():
        row = int(np.argmax(endless))
        raise InputError("not a time", field="time", value=float(values[row]), row=row + 1)
    if len(values) and np.median(np.abs(values)) > 1e11:
        raise InputError(
            "times are seconds since 1970; these look like milliseconds or finer",
            field="time",
            value=float(values[0]),
            row=1,
        )
    return np.floor(values).astype(np.int64)


def _of_datetimes(times: Sequence[Any], tz: str | None) -> npt.NDArray[np.int64]:
    zone = None if tz is None else _zone(tz)
    made = np.empty(len(times), dtype=np.int64)
    for row, moment in enumerate(times):
        if not isinstance(moment, datetime.datetime):
            raise InputError("not a time", field="time", value=moment, row=row + 1)
        if moment.tzinfo is None:
            if zone is None:
                raise _naive(moment, row)
            moment = moment.replace(tzinfo=zone)  # noqa: PLW2901
        made[row] = int(moment.timestamp() // 1)
    return made


def _zoned(column: pl.Series, tz: str | None) -> npt.NDArray[np.int64]:
    if column.null_count():
        row = int(column.is_null().arg_max() or 0)
        raise InputError("a time is missing", field="time", row=row + 1)
    if getattr(column.dtype, "time_zone", None) is None:
        if tz is None:
            raise _naive(column[0], 0)
        _zone(tz)
        return _of_datetimes(column.to_list(), tz)
    return column.dt.epoch("s").to_numpy().astype(np.int64)


def _zone(tz: str) -> datetime.tzinfo:
    import zoneinfo  # noqa: PLC0415

    try:
        return zoneinfo.ZoneInfo(tz)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        raise InputError("no such time zone", field="tz", value=tz) from None


def _naive(moment: object, row: int) -> InputError:
    return InputError(
        "a time without a time zone",
        field="time",
        value=str(moment),
        row=row + 1,
        hint='say the zone of such times with tz=, for example tz="Europe/Helsinki"',
    )


def slot_numbers(time: Any, slots: int) -> npt.NDArray[np.int64]:
    """Return numbers of time slots as int64.

    Raises
    ------
    InputError
        One is no whole number in ``[0, slots)``.
    """
    listed = time.to_list() if isinstance(time, pl.Series) else time
    try:
        values = np.asarray(listed, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError("a slot is a whole number", field="time") from None
    wrong = ~((values >= 0) & (values < slots) & (values == np.floor(values)))
    if wrong.any():
        row = int(np.argmax(wrong))
        hint = "these may count from 1" if (values[row] == slots) else None
        raise InputError(
            f"a slot is a whole number in [0, {slots})",
            field="time",
            value=float(values[row]),
            row=row + 1,
            hint=hint,
        )
    return values.astype(np.int64)
