"""Recent places: appended by one writer, searched by any number of readers without a lock.

Rows are only ever added. A view is a number of rows and a number of deaths: the
rows below the first that had not died among the first so many deaths. ``died[row]``
holds the number of the row's death, so an older view keeps seeing a row that a
newer one does not. Arrays that grow are replaced, never moved: a view keeps its own.

The rows of each word are a list that a search follows (``link_words``), and how many
living rows have it is counted with every write. Both start from one number a word,
so a view has copies of those numbers, and what they lead to never changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.spatial import _kernels as layout
from shoal.spatial import _memtable_kernels as kernels
from shoal.spatial.columns import AttributeSpec, PlaceColumns, SearchStats
from shoal.spatial.query import TEXT_BM25, Answers, QueryPlan

__all__ = ["Memtable", "MemtableView"]

_NEVER = np.iinfo(np.int64).max
_NONE = np.empty(0, dtype=np.float64)
_NO_IDS = np.empty(0, dtype=np.int32)
_NO_PTR = np.zeros(1, dtype=np.int32)
_NO_POINTS = np.empty((0, 2), dtype=np.float64)
_WORDS_PER_ROW = 8

_Query = tuple[npt.NDArray[Any], ...]


class Memtable:
    """The newest rows of an index; at most ``capacity`` of them.

    Parameters
    ----------
    specs : sequence of AttributeSpec
        The index's attributes.
    capacity : int
        Most rows, at least 1.
    """

    def __init__(self, specs: Sequence[AttributeSpec], capacity: int = 4096) -> None:
        self.capacity = capacity
        self.rows = 0
        self.deaths = 0
        self.n_words = 0
        self.row_of: dict[int, int] = {}  # of the living; the writer's own
        self.vocabulary: dict[str, int] = {}
        self._words: list[str] = []
        self._keys = np.empty(capacity, dtype=np.int64)
        self._lon = np.empty(capacity, dtype=np.float64)
        self._lat = np.empty(capacity, dtype=np.float64)
        self._values = np.empty((len(specs), capacity), dtype=np.float64)
        self._died = np.full(capacity, _NEVER, dtype=np.int64)
        self._signature = np.zeros(capacity, dtype=np.uint64)
        self._ptr = np.zeros(capacity + 1, dtype=np.int64)
        self._ids = np.empty(_WORDS_PER_ROW * capacity, dtype=np.int32)
        self._before = np.empty(len(self._ids), dtype=np.int32)
        self._row_of = np.empty(len(self._ids), dtype=np.int32)
        self._counts = np.zeros(1024, dtype=np.int32)
        self._last = np.full(1024, -1, dtype=np.int32)
        self._low = np.array([spec.low for spec in specs], dtype=np.float64)
        self._span = np.array([spec.span for spec in specs], dtype=np.float64)
        self._missing = np.array([spec.missing_code for spec in specs], dtype=np.int64)
        self._described = self._describe()

    def _describe(self) -> npt.NDArray[np.int64]:
        """Return what kernels read positions, attributes and keys from, as of a layout."""
        a = np.zeros(layout.LAYOUT_SIZE, dtype=np.int64)
        a[layout.N], a[layout.D] = self.capacity, len(self._values)
        a[layout.EXACT] = a[layout.WIDE] = 1
        held = {
            layout.KEYS: self._keys,
            layout.LON64: self._lon,
            layout.LAT64: self._lat,
            layout.VALUES64: self._values,
            layout.SPEC_LOW: self._low,
            layout.SPEC_SPAN: self._span,
            layout.SPEC_MISSING: self._missing,
        }
        for place, array in held.items():
            a[place] = array.ctypes.data
        return a

    @property
    def room(self) -> int:
        """Return how many more rows fit."""
        return self.capacity - self.rows

    def append(self, columns: PlaceColumns) -> int:
        """Add rows; they are in no view yet. Return how many words they have.

        The caller sees to it that there is room and that no key is alive here. The
        vocabulary need not be sorted, and words may be repeated in it and in a row.
        """
        first, count = self.rows, len(columns)
        stop = first + count
        local, word_ptr = self.vocabulary, columns.word_ptr
        found = list(map(local.get, columns.words))
        if None in found:
            pairs = zip(columns.words, found, strict=True)
            new = list(dict.fromkeys(word for word, number in pairs if number is None))
            self._words += new  # before its id, so that a reader finds its text
            local.update(zip(new, range(len(local), len(self._words)), strict=True))
            found = list(map(local.get, columns.words))
        ids = np.array(found, dtype=np.int32)
        ids = ids[columns.word_ids] if len(ids) else ids
        if kernels.repeats(word_ptr, ids):
            word_ptr, ids = _each_once(word_ptr, ids)
        start = int(self._ptr[first])
        end = start + len(ids)
        if end > len(self._ids):
            self._grow_places(end, start)
        if len(local) > len(self._counts):
            self._grow_words(len(local))
        self._ids[start:end] = ids
        self._ptr[first + 1 : stop + 1] = word_ptr[1:] + start
        self._keys[first:stop] = columns.keys
        self._lon[first:stop] = columns.lon
        self._lat[first:stop] = columns.lat
        self._values[:, first:stop] = columns.values
        kernels.signatures(self._ptr, self._ids, first, stop, self._signature)
        kernels.link_words(
            self._ptr, self._ids, first, stop, self._counts, self._last, self._before, self._row_of
        )
        self.row_of.update(zip(columns.keys.tolist(), range(first, stop), strict=True))
        self.n_words += end - start
        self.rows = stop
        return end - start

    def _grow_places(self, least: int, used: int) -> None:
        size = max(least, 2 * len(self._ids))
        for name in ("_ids", "_before", "_row_of"):
            grown = np.empty(size, dtype=np.int32)
            grown[:used] = getattr(self, name)[:used]
            setattr(self, name, grown)

    def _grow_words(self, least: int) -> None:
        more = max(least, 2 * len(self._counts)) - len(self._counts)
        self._counts = np.concatenate([self._counts, np.zeros(more, dtype=np.int32)])
        self._last = np.concatenate([self._last, np.full(more, -1, dtype=np.int32)])

    def kill(self, keys: Sequence[int]) -> list[int]:
        """Let the rows of keys die; return the keys that are not alive here."""
        found = [self.row_of.pop(key, -1) for key in keys]
        rows = [row for row in found if row >= 0]
        if not rows:
            return list(keys)
        self.n_words -= kernels.kill_rows(
            np.array(rows, dtype=np.int64),
            self.deaths,
            self._died,
            self._ptr,
            self._ids,
            self._counts,
        )
        self.deaths += len(rows)
        return [key for key, row in zip(keys, found, strict=True) if row < 0]

    def view(self) -> MemtableView:
        """Return what is here now; later changes do not reach it."""
        words = len(self.vocabulary)
        return MemtableView(
            self,
            self.rows,
            self.deaths,
            self._ids,
            self._counts[:words].copy(),
            self._last[:words].copy(),
            self._before,
            self._row_of,
        )

    def died_since(self, deaths: int) -> npt.NDArray[np.int64]:
        """Return the keys of the rows that died after a view with ``deaths`` was taken."""
        died = self._died[: self.rows]
        keys: npt.NDArray[np.int64] = self._keys[: self.rows][(died >= deaths) & (died != _NEVER)]
        return keys


@dataclass(frozen=True, slots=True)
class MemtableView:
    """The rows of a memtable at one moment.

    Attributes
    ----------
    table : Memtable
    rows, deaths : int
        How many there had been.
    counts : int32 [words]
        Living rows with each word, by the table's ``vocabulary``.
    """

    table: Memtable
    rows: int
    deaths: int
    _ids: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int32]
    _last: npt.NDArray[np.int32]
    _before: npt.NDArray[np.int32]
    _row_of: npt.NDArray[np.int32]

    def now(self) -> MemtableView:
        """Return the memtable as it is now: this view, if nothing has changed."""
        table = self.table
        if table.rows == self.rows and table.deaths == self.deaths:
            return self
        return table.view()

    def record(self) -> list[int]:
        """Return what a prepared search reads of this view; see ``_live_kernels``."""
        table = self.table
        arrays = (
            table._described,
            table._died,
            table._ptr,
            self._ids,
            self.counts,
            self._last,
            self._before,
            self._row_of,
        )
        return [self.rows, self.deaths, *(array.ctypes.data for array in arrays)]

    def live_rows(self) -> npt.NDArray[np.int64]:
        """Return the rows of this view, ascending."""
        return np.flatnonzero(self.table._died[: self.rows] >= self.deaths)

    def keys(self) -> npt.NDArray[np.int64]:
        """Return the keys of this view, in the order of :meth:`live_rows`."""
        return self.table._keys[self.live_rows()]

    @property
    def all_keys(self) -> npt.NDArray[np.int64]:
        """Return the key of each row, the dead ones too (for arrays aligned to rows)."""
        return self.table._keys[: self.rows]

    def find(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the row of each key, -1 for those not in this view."""
        rows = self.live_rows()
        mine = self.table._keys[rows]
        order = np.argsort(mine)
        place = np.searchsorted(mine, keys, sorter=order)
        found = np.full(len(keys), -1, dtype=np.int64)
        inside = place < len(mine)
        candidates = order[place[inside]]
        found[inside] = np.where(mine[candidates] == keys[inside], rows[candidates], -1)
        return found

    def document_frequency(self, words: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return in how many rows each word occurs."""
        counts, known = self.counts, self.table.vocabulary
        numbers = [known.get(word, -1) for word in words]
        # A word that came after this view has a number that it does not count.
        return np.array([counts[i] if 0 <= i < len(counts) else 0 for i in numbers], dtype=np.int64)

    def search(
        self,
        plan: QueryPlan,
        answers: Answers,
        stats: SearchStats | None = None,
        *,
        time_part: npt.NDArray[np.float64] | None = None,
        social_part: npt.NDArray[np.float64] | None = None,
    ) -> None:
        """Offer every row to ``answers``.

        Parameters
        ----------
        plan : QueryPlan
            The query.
        answers : Answers
            Answers so far; added to.
        stats : SearchStats, optional
            Added to.
        time_part, social_part : float64 [rows], optional
            Of each row in the order of :attr:`all_keys`; 0 where not given.
        """
        if not self.rows:
            return
        table = self.table
        answers.count, scored = kernels.search(
            self.rows,
            self.deaths,
            table._died,
            table._signature,
            table._keys,
            self._place(),
            self._query(plan),
            plan.weights,
            _NONE if time_part is None else time_part,
            _NONE if social_part is None else social_part,
            answers.scores,
            answers.kms,
            answers.keys,
            answers.rows,
            answers.count,
            answers.k,
        )
        if stats is not None:
            stats.looked_at += self.rows
            stats.scored += scored

    def parts(
        self, plan: QueryPlan, rows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Return (parts [m, 5], distance km [m], qualifies [m]); time and social are 0."""
        out = np.zeros((len(rows), 5))
        km, qualifies = np.zeros(len(rows)), np.zeros(len(rows), dtype=np.bool_)
        kernels.parts(rows, self._place(), self._query(plan), out, km, qualifies)
        return out, km, qualifies

    def positions(
        self, rows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return (lon, lat) of rows, degrees, float64 each."""
        return self.table._lon[rows], self.table._lat[rows]

    def columns(self) -> PlaceColumns:
        """Return the rows as columns, with the words they use in the order of their bytes."""
        table, rows = self.table, self.live_rows()
        starts, counts = table._ptr[rows], np.diff(table._ptr)[rows]
        ptr = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(counts, out=ptr[1:])
        at = np.repeat(starts - ptr[:-1], counts) + np.arange(ptr[-1])
        local = self._ids[at]
        used = np.unique(local)
        texts = [table._words[i] for i in used.tolist()]
        # Texts order by code points, which is the order of their UTF-8 bytes.
        order = sorted(range(len(texts)), key=texts.__getitem__)
        rank = np.empty(len(used), dtype=np.int32)
        rank[order] = np.arange(len(used), dtype=np.int32)
        ids = rank[np.searchsorted(used, local)]
        in_row = np.lexsort((ids, np.repeat(np.arange(len(rows)), counts)))
        return PlaceColumns(
            keys=table._keys[rows],
            lon=table._lon[rows],
            lat=table._lat[rows],
            words=[texts[i] for i in order],
            word_ptr=ptr,
            word_ids=ids[in_row],
            values=table._values[:, rows],
        )

    def _local(self, words: Sequence[str]) -> npt.NDArray[np.int64]:
        known = self.table.vocabulary
        return np.array([known.get(word, -1) for word in words], dtype=np.int64)

    def _place(self) -> tuple[npt.NDArray[Any], ...]:
        table = self.table
        return (
            table._lon,
            table._lat,
            table._values,
            table._ptr,
            self._ids,
            table._low,
            table._span,
            table._missing,
        )

    def _query(self, plan: QueryPlan) -> _Query:
        reals = (
            plan.lon,
            plan.lat,
            plan.decay_scale,
            plan.max_km,
            plan.bm25_k1,
            plan.bm25_b,
            plan.mean_words,
        )
        codes = (
            int(plan.has_point),
            plan.match,
            int(plan.text_kind == TEXT_BM25),
            plan.decay_kind,
            plan.region.kind if plan.region else 0,
        )
        filters, region = plan.filters, plan.region
        return (
            np.array(reals, dtype=np.float64),
            np.array(codes, dtype=np.int64),
            self._local(plan.words),
            plan.word_weights,
            self._local(plan.without),
            plan.pref_column,
            plan.pref_flip,
            plan.pref_weight,
            filters.column if filters else _NO_IDS,
            filters.ptr if filters else _NO_PTR,
            filters.low if filters else _NONE,
            filters.high if filters else _NONE,
            region.points if region else _NO_POINTS,
            region.ptr if region else _NO_PTR,
        )


def _each_once(
    ptr: npt.NDArray[np.int64], ids: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Return the words of rows without those that a row has already."""
    pairs = np.repeat(np.arange(len(ptr) - 1, dtype=np.int64) << 32, np.diff(ptr)) | ids
    pairs = np.unique(pairs)
    counts = np.bincount(pairs >> 32, minlength=len(ptr) - 1)
    return np.concatenate([[0], np.cumsum(counts)]), (pairs & 0xFFFFFFFF).astype(np.int32)
