"""Check-ins (who was where, when) and friendships, checked, from tables and LBSN text files."""

from __future__ import annotations

import datetime
import io
import time as clock
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl

from shoal.core.errors import InputError, NotFoundError
from shoal.data.checkintimes import seconds, slot_numbers
from shoal.data.placecolumns import numbers
from shoal.data.placetable import PlaceTable, build_table, keyword_array
from shoal.data.sourcefile import bare_suffix, read_text

__all__ = ["CheckinLog", "Friendships", "read_checkins", "read_friendships", "read_lbsn_places"]

#: What happens to rows of one kind: stop, leave them out and count them, or keep them.
Policy: TypeAlias = Literal["error", "drop", "keep"]

_USUAL = {
    "user": ("user", "user_id", "userid", "uid", "visitor"),
    "poi": ("poi", "poi_id", "place", "place_id", "venue", "venue_id", "business_id", "item_id"),
    "time": ("time", "timestamp", "ts", "datetime", "date", "created_at", "slot"),
}


class CheckinLog:
    """Who was where, when: three columns of one length.

    Parameters
    ----------
    user, poi : sequences of int or str [m]
        Ids of users and places.
    time : sequence [m]
        Seconds since 1970 (UTC; fractions are cut off), aware ``datetime`` s, or
        numbers of time slots (with ``slots``). Naive times need ``tz``.
    slots : int, optional
        ``time`` holds slot numbers in ``[0, slots)``: 24 hours of a day, or 168
        of a week from Monday 0 h, in the places' own time.
    tz : str, optional
        IANA zone of naive times.
    duplicates : {"keep", "drop", "error"}
        Rows that repeat user, place and time. Kept by default: in logs by day
        or by slot they are visits of their own.
    future : {"drop", "keep", "error"}
        Times after ``now``.
    now : float, optional
        Seconds since 1970, the clock's by default.

    Attributes
    ----------
    user, poi : int64 [m] or object array of str [m]
    time : int64 [m]
        Seconds since 1970 (UTC), or slot numbers.
    slots : int or None
    dropped : dict of str to int
        Rows left out, by reason.

    Raises
    ------
    InputError
        Columns differ in length; an id is missing; a time is naive, not finite,
        no time at all or (with ``slots``) no slot; or by the policies.
    """

    __slots__ = ("dropped", "poi", "slots", "time", "user")

    def __init__(
        self,
        user: Any,
        poi: Any,
        time: Any,
        *,
        slots: int | None = None,
        tz: str | None = None,
        duplicates: Policy = "keep",
        future: Policy = "drop",
        now: float | None = None,
    ) -> None:
        self.user: npt.NDArray[Any] = _ids(user, "user")
        self.poi: npt.NDArray[Any] = _ids(poi, "poi")
        if slots is not None and (isinstance(slots, bool) or slots < 1):
            raise InputError("the number of slots must be positive", field="slots", value=slots)
        self.slots = slots
        self.time: npt.NDArray[np.int64] = (
            seconds(time, tz) if slots is None else slot_numbers(time, slots)
        )
        self.dropped: dict[str, int] = {}
        if not len(self.user) == len(self.poi) == len(self.time):
            raise InputError(
                f"{len(self.user)} users, {len(self.poi)} places and {len(self.time)} times",
                field="time",
            )
        if slots is None and future != "keep":
            limit = clock.time() if now is None else now
            self._settle(self.time > limit, future, "time in the future")
        if duplicates != "keep":
            self._settle(self._repeated(), duplicates, "duplicate check-in")

    def __len__(self) -> int:
        return len(self.time)

    def __repr__(self) -> str:
        kind = "seconds" if self.slots is None else f"{self.slots} slots"
        return f"CheckinLog({len(self):,} check-ins, time in {kind})"

    def take(self, rows: npt.ArrayLike) -> CheckinLog:
        """Return some check-ins (row numbers or a mask), in that order."""
        chosen = np.asarray(rows)
        made = CheckinLog.__new__(CheckinLog)
        made.user, made.poi, made.time = self.user[chosen], self.poi[chosen], self.time[chosen]
        made.slots, made.dropped = self.slots, dict(self.dropped)
        return made

    def before(self, moment: float) -> npt.NDArray[np.bool_]:
        """Return which check-ins lie before a moment (seconds since 1970), for splits by time."""
        if self.slots is not None:
            raise InputError("slot numbers have no order in time", field="time")
        earlier: npt.NDArray[np.bool_] = self.time < moment
        return earlier

    def _repeated(self) -> npt.NDArray[np.bool_]:
        rows = pl.DataFrame({"u": _numbered(self.user), "p": _numbered(self.poi), "t": self.time})
        return ~rows.select(pl.struct("u", "p", "t").is_first_distinct()).to_series().to_numpy()

    def _settle(self, rows: npt.NDArray[np.bool_], policy: Policy, reason: str) -> None:
        if policy not in {"error", "drop", "keep"}:
            raise InputError('a policy is "error", "drop" or "keep"', value=policy)
        if not rows.any():
            return
        if policy == "error":
            row = int(np.argmax(rows))
            raise InputError(
                reason,
                field="time",
                value=int(self.time[row]),
                row=row + 1,
                hint='"drop" leaves such rows out and counts them',
            )
        self.dropped[reason] = int(rows.sum())
        self.user, self.poi, self.time = self.user[~rows], self.poi[~rows], self.time[~rows]


@dataclass(frozen=True, eq=False)
class Friendships:
    """Pairs of users who know each other, each once.

    Parameters
    ----------
    edges : int64 [e, 2] or object array of str [e, 2]
        The smaller id first.
    dropped : dict of str to int
        Self-loops and repeated pairs that were left out.
    """

    edges: npt.NDArray[Any]
    dropped: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.edges)

    @classmethod
    def of(cls, first: Any, second: Any) -> Friendships:
        """Return the pairs of two columns, without loops and repetitions."""
        a, b = _ids(first, "user"), _ids(second, "user")
        if len(a) != len(b):
            raise InputError(f"{len(a)} users for {len(b)} friends", field="user")
        if a.dtype != b.dtype:
            a, b = a.astype(str).astype(object), b.astype(str).astype(object)
        smaller = a <= b if len(a) else np.empty(0, dtype=np.bool_)
        low, high = np.where(smaller, a, b), np.where(smaller, b, a)
        loops = np.asarray(low == high, dtype=np.bool_)
        pairs = pl.DataFrame({"a": low.tolist(), "b": high.tolist()})
        repeated = ~pairs.select(pl.struct("a", "b").is_first_distinct()).to_series().to_numpy()
        repeated &= ~loops
        kept = ~(loops | repeated)
        counts = {"self-loop": int(loops.sum()), "repeated pair": int(repeated.sum())}
        edges = np.stack([low[kept], high[kept]], axis=1) if len(a) else np.empty((0, 2), np.int64)
        return cls(edges, {reason: count for reason, count in counts.items() if count})


def read_checkins(
    path: str | Path,
    *,
    user: str | None = None,
    poi: str | None = None,
    time: str | None = None,
    slots: int | None = None,
    tz: str | None = None,
    duplicates: Policy = "keep",
    future: Policy = "drop",
    now: float | None = None,
) -> CheckinLog:
    """Read check-ins from a table, or from text with (user, poi, time) between blanks.

    Parameters
    ----------
    path : path-like
        .csv, .tsv or .parquet with column names, or .txt without (the LBSN
        sets' ``check_ins.txt``); text also packed.
    user, poi, time : str, optional
        Columns; by default those with a usual name.
    slots, tz, duplicates, future, now
        As :class:`CheckinLog`.

    Raises
    ------
    InputError
        As :class:`CheckinLog`, or a column is missing or unclear.
    """
    frame, named = _table(Path(path))
    source = Path(path).name
    if not named:
        if frame.width < 3:
            raise InputError("a check-in is user, poi and time", row=1, source=source)
        users, pois, times = (frame[column] for column in frame.columns[:3])
    else:
        users = frame[_column("user", user, frame, source)]
        pois = frame[_column("poi", poi, frame, source)]
        times = frame[_column("time", time, frame, source)]
    try:
        return CheckinLog(
            _parsed_ids(users),
            _parsed_ids(pois),
            _parsed_times(times),
            slots=slots,
            tz=tz,
            duplicates=duplicates,
            future=future,
            now=now,
        )
    except InputError as error:
        raise InputError(f"{source}: {error.message}", hint=error.hint) from error


def read_friendships(path: str | Path) -> Friendships:
    """Read pairs of users: the first two columns of a table, or of text between blanks.

    Raises
    ------
    InputError
        A row has no second user, or the file cannot be read.
    """
    frame, _ = _table(Path(path))
    if frame.width < 2:
        raise InputError("a friendship is two users", row=1, source=Path(path).name)
    first, second = (_parsed_ids(frame[column]) for column in frame.columns[:2])
    try:
        return Friendships.of(first, second)
    except InputError as error:
        raise InputError(f"{Path(path).name}: {error.message}") from error


def read_lbsn_places(positions: str | Path, categories: str | Path | None = None) -> PlaceTable:
    """Read the places of an LBSN set: ``poi_coos.txt`` (poi, LATITUDE, longitude).

    Parameters
    ----------
    positions : path-like
        Text with three columns between blanks.
    categories : path-like, optional
        ``poi_categories.txt`` (poi, number of a category): the keywords
        ``category12``, and the place's first one is its category.

    Raises
    ------
    InputError
        A row cannot be used.
    """
    source = Path(positions).name
    frame, _ = _table(Path(positions))
    if frame.width < 3:
        raise InputError("a place is poi, latitude and longitude", row=1, source=source)
    lat, lon = (numbers(frame[column])[0] for column in frame.columns[1:3])
    ids = pl.Series("id", _parsed_ids(frame[frame.columns[0]]))
    words: list[list[str]] = [[] for _ in range(frame.height)]
    if categories is not None:
        pairs, _ = _table(Path(categories))
        row_of = {poi: row for row, poi in enumerate(ids.to_list())}
        pois = _parsed_ids(pairs[pairs.columns[0]]).to_list()
        for poi, category in zip(pois, pairs[pairs.columns[1]].to_list(), strict=True):
            if poi in row_of:
                words[row_of[poi]].append(f"category{category}")
    return build_table(
        lon,
        lat,
        ids,
        source=source,
        keywords=keyword_array(words, frame.height),
        category=[own[0] if own else None for own in words] if categories is not None else None,
        position_names=("longitude", "latitude"),
    )


def _table(path: Path) -> tuple[pl.DataFrame, bool]:
    """Return a file's columns as they are, and whether they have names."""
    if bare_suffix(path) in {".parquet", ".pq"}:
        if not path.is_file():
            raise NotFoundError(f"{path} is not there", hint="give the path of a file")
        try:
            return pl.read_parquet(path), True
        except (pl.exceptions.PolarsError, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"not a readable Parquet file: {reason}", source=path.name) from error
    text = read_text(path)
    head = text.partition("\n")[0]
    named = bare_suffix(path) in {".csv", ".tsv"}
    delimiter = next((mark for mark in "\t,;" if mark in head), " ")
    try:
        frame = pl.read_csv(
            io.BytesIO(text.encode()), separator=delimiter, has_header=named, infer_schema=False
        )
    except pl.exceptions.PolarsError as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"not a readable table: {reason}", source=path.name) from error
    if frame.is_empty():
        raise InputError("no rows in it", source=path.name)
    return frame, named


def _column(role: str, named: str | None, frame: pl.DataFrame, source: str) -> str:
    if named is not None and named in frame.columns:
        return named
    found = [column for column in frame.columns if column.strip().lower() in _USUAL[role]]
    if named is None and len(found) == 1:
        return found[0]
    listed = ", ".join(found if named is None and found else frame.columns)
    problem = f"no column {named!r}" if named is not None else "no single column for it"
    raise InputError(
        f"{problem}; there are {listed}",
        field=role,
        source=source,
        hint=f"name the column with {role}=",
    )


def _parsed_ids(column: pl.Series) -> pl.Series:
    """Return ids of a text file as whole numbers where all are, else as texts."""
    if column.dtype.is_integer():
        return column.cast(pl.Int64)
    text = column.cast(pl.String)
    number = text.cast(pl.Int64, strict=False)
    same = (number.cast(pl.String) == text) | text.is_null()
    return number if same.fill_null(value=False).all() else text


def _parsed_times(column: pl.Series) -> Any:
    if column.dtype != pl.String:
        return column
    values, wrong = numbers(column)
    if not wrong.any():
        return values
    parsed: list[datetime.datetime] = []
    for row, text in enumerate(column.to_list(), 1):
        try:
            parsed.append(datetime.datetime.fromisoformat(text.strip()))
        except (AttributeError, ValueError):
            raise InputError(
                "not a time: seconds since 1970 or ISO 8601", field="time", value=text, row=row
            ) from None
    return parsed


def _ids(values: Any, name: str) -> npt.NDArray[Any]:
    if isinstance(values, pl.Series):
        if values.null_count():
            row = int(values.is_null().arg_max() or 0)
            raise InputError("an id is missing", field=name, row=row + 1)
        values = values.to_numpy() if values.dtype.is_integer() else values.to_list()
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        return np.ascontiguousarray(values, dtype=np.int64)
    listed = values.tolist() if isinstance(values, np.ndarray) else list(values)
    if all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in listed):
        return np.array(listed, dtype=np.int64)
    column = np.empty(len(listed), dtype=object)
    for row, value in enumerate(listed):
        if not isinstance(value, str) or not value:
            raise InputError(
                "ids are all whole numbers or all texts", field=name, value=value, row=row + 1
            )
        column[row] = value
    return column


def _numbered(column: npt.NDArray[Any]) -> Any:
    return column if column.dtype == np.int64 else column.tolist()
