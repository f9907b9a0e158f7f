"""Places as one checked table, whatever file they came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from shoal.core.errors import InputError
from shoal.data.words import tokenize

__all__ = ["BadRows", "PlaceTable", "Problem", "build_table", "keyword_array"]

#: What happens to a row that cannot be used: stop at it, or leave it out and count it.
BadRows: TypeAlias = Literal["error", "drop"]

_SWAPPED = "longitude and latitude look swapped; name the columns with lon= and lat="


@dataclass(frozen=True, eq=False)
class PlaceTable:
    """Places in columns, checked: row i of every column is the i-th place.

    Parameters
    ----------
    ids : int64 [n] or list of str
        Unique.
    lon, lat : float64 [n]
        Degrees, finite, in [-180, 180] and [-90, 90].
    keywords : pyarrow.LargeListArray of text [n]
        The words of each place; :meth:`words` and :meth:`keyword_lists` give Python lists.
    attributes : dict of str to float64 [n]
        Numbers by name, NaN where a place has none.
    names : list of (str or None), optional
        What people call the place.
    timezone : list of (str or None), optional
        IANA name of the zone of each place.
    category : list of (str or None), optional
        Kind of each place.
    dropped : dict of str to int
        Rows that were left out, by reason.
    notes : tuple of str
        What looks wrong and is no error: for the reader of a report.
    source : str
        Where the places came from.
    """

    ids: npt.NDArray[np.int64] | list[str]
    lon: npt.NDArray[np.float64]
    lat: npt.NDArray[np.float64]
    keywords: Any
    attributes: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    names: list[str | None] | None = None
    timezone: list[str | None] | None = None
    category: list[str | None] | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    source: str = ""

    def __len__(self) -> int:
        return len(self.lon)

    def __repr__(self) -> str:
        return (
            f"PlaceTable({len(self):,} places from {self.source or 'memory'}, "
            f"attributes: {', '.join(self.attributes) or 'none'})"
        )

    def words(self, row: int) -> list[str]:
        """Return the keywords of one place."""
        found: list[str] = self.keywords[row].as_py()
        return found

    def keyword_lists(self) -> list[list[str]]:
        """Return the keywords of all places as Python lists."""
        found: list[list[str]] = self.keywords.to_pylist()
        return found

    def split_keywords(self) -> PlaceTable:
        """Return the places with every keyword split into its words.

        ``"Event Planning & Services"`` becomes ``event``, ``planning``,
        ``services``: what a query that is a text looks for. Keywords that are
        one word already stay as they are.
        """
        counts = self.keywords.value_lengths().to_numpy(zero_copy_only=False)
        encoded = self.keywords.flatten().dictionary_encode()
        split = [tokenize(word) for word in encoded.dictionary.to_pylist()]
        if all(len(words) == 1 for words in split):
            return self
        entries = iter(encoded.indices.to_pylist())
        lists = [
            list(dict.fromkeys(word for _ in range(count) for word in split[next(entries)]))
            for count in counts.tolist()
        ]
        return replace(self, keywords=keyword_array(lists, len(self)))

    def take(self, rows: npt.ArrayLike) -> PlaceTable:
        """Return the places of some rows (numbers or a mask), in that order."""
        chosen = np.asarray(rows)
        if chosen.dtype == np.bool_:
            chosen = np.flatnonzero(chosen)
        chosen = chosen.astype(np.int64)

        def pick(column: list[Any] | None) -> list[Any] | None:
            return None if column is None else [column[row] for row in chosen.tolist()]

        return PlaceTable(
            ids=self.ids[chosen] if isinstance(self.ids, np.ndarray) else pick(self.ids) or [],
            lon=self.lon[chosen],
            lat=self.lat[chosen],
            keywords=self.keywords.take(pa.array(chosen)),
            attributes={name: values[chosen] for name, values in self.attributes.items()},
            names=pick(self.names),
            timezone=pick(self.timezone),
            category=pick(self.category),
            dropped=dict(self.dropped),
            notes=self.notes,
            source=self.source,
        )


@dataclass(frozen=True)
class Problem:
    """Rows that cannot be used, and why.

    Parameters
    ----------
    reason : str
        Name under which dropped rows are counted.
    rows : bool [n]
        Which rows.
    field : str
        Column to name in the message.
    value : callable
        Row (from 0) to the value shown in the message.
    hint : str, optional
        What to do about it.
    """

    reason: str
    rows: npt.NDArray[np.bool_]
    field: str
    value: Callable[[int], object]
    hint: str | None = None


def keyword_array(keywords: Sequence[Sequence[str]] | None, n: int) -> Any:
    """Return lists of words as a pyarrow.LargeListArray; None is n empty lists."""
    entries: Sequence[Sequence[str]] = [[]] * n if keywords is None else keywords
    return pa.array(entries, type=pa.large_list(pa.large_string()))


def build_table(
    lon: npt.NDArray[np.float64],
    lat: npt.NDArray[np.float64],
    ids: pl.Series,
    *,
    source: str,
    keywords: Any,
    attributes: dict[str, npt.NDArray[np.float64]] | None = None,
    names: list[str | None] | None = None,
    timezone: list[str | None] | None = None,
    category: list[str | None] | None = None,
    country: list[str | None] | None = None,
    problems: Sequence[Problem] = (),
    on_bad_row: BadRows = "error",
    position_names: tuple[str, str] = ("lon", "lat"),
    check_swap: bool = True,
) -> PlaceTable:
    """Check columns of one length and make a :class:`PlaceTable` of them.

    Parameters
    ----------
    lon, lat : float64 [n]
        Degrees, anything where ``problems`` names the row.
    ids : polars.Series [n]
        Whole numbers or texts, null where missing.
    source : str
        File name for messages.
    keywords, attributes, names, timezone, category
        As the fields of :class:`PlaceTable`.
    country : list of (str or None), optional
        Two-letter codes; only read to see whether the columns are swapped.
    problems : sequence of Problem
        What the reader already found.
    on_bad_row : {"error", "drop"}
        Stop at the first row that cannot be used, or leave such rows out.
    position_names : (str, str)
        Names of the two columns, for messages.
    check_swap : bool
        Look whether the two columns are swapped.

    Raises
    ------
    InputError
        There is no row, a row cannot be used, or most rows only fit swapped.
    """
    n = len(lon)
    if n == 0:
        raise InputError("no places in it", source=source)
    if on_bad_row not in {"error", "drop"}:
        raise InputError('on_bad_row is "error" or "drop"', field="on_bad_row", value=on_bad_row)
    known = [*problems, *_position_problems(lon, lat, problems, position_names)]
    out_of_range = known[-1].rows
    if out_of_range.any():
        fits = (np.abs(lon) <= 90) & (np.abs(lat) <= 180)
        swapped = int((out_of_range & fits).sum()) > n // 2
        if swapped and on_bad_row == "drop":
            raise InputError(
                f"{int(out_of_range.sum()):,} of {n:,} rows are out of range as they are, "
                "and most of them would not be if swapped",
                field=", ".join(position_names),
                source=source,
                hint=_SWAPPED,
            )
        row = int(np.argmax(out_of_range))
        all_fit = bool(fits[np.isfinite(lon) & np.isfinite(lat)].all())
        if swapped or all_fit or (position_names != ("lon", "lat") and fits[row]):
            known[-1] = Problem(
                known[-1].reason, out_of_range, known[-1].field, known[-1].value, _SWAPPED
            )
    known.append(Problem("no id", ids.is_null().to_numpy(), "id", lambda _: None))
    bad = np.logical_or.reduce([problem.rows for problem in known])
    known.append(_duplicates(ids, bad))
    bad |= known[-1].rows
    dropped = _settle(known, bad, source, on_bad_row)
    made = PlaceTable(
        ids=_id_column(ids),
        lon=np.ascontiguousarray(lon),
        lat=np.ascontiguousarray(lat),
        keywords=keywords,
        attributes=attributes or {},
        names=names,
        timezone=timezone,
        category=category,
        dropped=dropped,
        source=source,
    )
    if bad.any():
        made = made.take(~bad)
        country = None if country is None else [country[i] for i in np.flatnonzero(~bad)]
        if not len(made):
            raise InputError(
                f"no row can be used: {', '.join(f'{k} {v:,}' for k, v in dropped.items())}",
                source=source,
            )
    if check_swap:
        from shoal.data.plausible import swap_note  # noqa: PLC0415 - reads the sample of cities

        note = swap_note(made.lon, made.lat, timezone=made.timezone, country=country)
        if note is not None:
            object.__setattr__(made, "notes", (note,))
    return made


def _position_problems(
    lon: npt.NDArray[np.float64],
    lat: npt.NDArray[np.float64],
    before: Sequence[Problem],
    names: tuple[str, str],
) -> list[Problem]:
    seen = np.zeros(len(lon), dtype=np.bool_)
    for problem in before:
        seen |= problem.rows
    endless = ~(np.isfinite(lon) & np.isfinite(lat)) & ~seen
    with np.errstate(invalid="ignore"):
        outside = ((np.abs(lon) > 180.0) | (np.abs(lat) > 90.0)) & ~seen & ~endless

    def value(row: int) -> object:
        return (float(lon[row]), float(lat[row]))

    place = ", ".join(names)
    return [
        Problem("position not finite", endless, place, value),
        Problem("position out of range", outside, place, value),
    ]


def _duplicates(ids: pl.Series, bad: npt.NDArray[np.bool_]) -> Problem:
    """Find ids that an earlier usable row has already."""
    good = np.flatnonzero(~bad)
    rows = np.zeros(len(ids), dtype=np.bool_)
    usable = ids.gather(good) if len(good) < len(ids) else ids
    rows[good] = ~usable.is_first_distinct().to_numpy()
    return Problem("duplicate id", rows, "id", lambda row: ids[row])


def _settle(
    problems: Sequence[Problem], bad: npt.NDArray[np.bool_], source: str, on_bad_row: BadRows
) -> dict[str, int]:
    """Raise for the first bad row, or count the rows by their first reason."""
    if not bad.any():
        return {}
    if on_bad_row == "error":
        row = int(np.argmax(bad))
        first = next(problem for problem in problems if problem.rows[row])
        raise InputError(
            first.reason,
            field=first.field,
            value=first.value(row),
            row=row + 1,
            source=source,
            hint=first.hint or 'on_bad_row="drop" leaves such rows out and counts them',
        )
    counted = np.zeros(len(bad), dtype=np.bool_)
    dropped: dict[str, int] = {}
    for problem in problems:
        fresh = problem.rows & ~counted
        if fresh.any():
            dropped[problem.reason] = int(fresh.sum()) + dropped.get(problem.reason, 0)
        counted |= fresh
    return dropped


def _id_column(ids: pl.Series) -> npt.NDArray[np.int64] | list[str]:
    if ids.dtype.is_integer():
        return ids.fill_null(0).cast(pl.Int64).to_numpy()
    return [text or "" for text in ids.to_list()]
