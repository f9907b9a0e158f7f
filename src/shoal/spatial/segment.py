"""One immutable segment, the deaths of its rows, and what a reader of one moment sees of it.

A layout never changes; its rows die when their place is changed or deleted. The
deaths are written one after the other into a log, so a moment is a length of that
log, and taking a view costs nothing. For the search there is one mask of the living
that all readers share and the writer changes in place: copying a mask of n bytes
at every change would not sustain thousands of changes a second. A reader of an
older moment would miss what has died since, so after its search it offers those few
rows again (they are the tail of the log), and each is scored exactly. The order of
writes makes this safe: log, length of the log, mask, and then the new snapshot;
whoever finds a 0 in the mask finds the death in the log. A view much older than the
mask makes a mask of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from shoal.spatial import _memtable_kernels as kernels
from shoal.spatial.columns import Layout, PlaceColumns, SearchStats
from shoal.spatial.deadwords import DeadWords, DeadWordsView
from shoal.spatial.merging import keep_rows
from shoal.spatial.query import Answers, QueryPlan
from shoal.spatial.storage import Bundle

__all__ = ["Segment", "SegmentView", "VisitParts", "find_living"]

#: Rows that died since a view was taken, above which it gets a mask of its own.
_REVIVED = 256
#: Rows that are found, or die, in one go: who waits for the lock of Python gets it in between.
_TOGETHER = 4096


class VisitParts(Protocol):
    """What knows the time and social parts, if anything does.

    It is asked only for plans in which one of the two has a weight.
    """

    def search(
        self,
        layout: Layout,
        plan: QueryPlan,
        answers: Answers,
        live: npt.NDArray[np.uint8] | None,
        stats: SearchStats | None,
    ) -> None:
        """Search one segment, as ``layout.search`` does, with all five parts."""
        ...

    def parts(
        self, plan: QueryPlan, keys: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return the time part and the social part (float64 [m] each) of keys."""
        ...


class Segment:
    """A layout, its rows by key, and the log of their deaths.

    Parameters
    ----------
    layout : Layout
        The rows.
    lengths : uint16 or uint32 [n]
        Number of words of each row.
    order : uint32 [n], optional
        Rows in the order of their keys; found if it is not given.
    n_words : int, optional
        Sum of ``lengths``; found if it is not given.

    Attributes
    ----------
    deaths : int
        Length of the log.
    n_words : int
        Words of all rows, dead ones too.
    names : dict
        The segment's bundle in each index folder it is kept in; see ``storage``.
    """

    def __init__(
        self,
        layout: Layout,
        lengths: npt.NDArray[Any],
        order: npt.NDArray[np.uint32] | None = None,
        *,
        n_words: int | None = None,
    ) -> None:
        self.layout = layout
        self.lengths = lengths
        # One kind of array for the kernels, mapped or made here.
        self.keys = _fixed(layout.keys)
        if order is None:
            order = np.argsort(self.keys, kind="stable").astype(np.uint32)
        self.order = _fixed(order)
        self.n_words = int(lengths.sum(dtype=np.int64)) if n_words is None else n_words
        self.deaths = 0
        self.live: npt.NDArray[np.uint8] | None = None
        self.names: dict[str, Bundle] = {}
        #: Rows, and addresses of keys, order and mask, for ``find_living``.
        self.places = [len(self.keys), self.keys.ctypes.data, self.order.ctypes.data, 0]
        self._log = np.empty(0, dtype=np.uint32)
        self._dead_words: DeadWords | None = None

    @classmethod
    def of(cls, layout: Layout, columns: PlaceColumns) -> Segment:
        """Return the segment of a layout that was built from ``columns``."""
        counts = np.diff(columns.word_ptr)
        own = getattr(layout, "lengths", None)
        if own is not None:
            return cls(layout, own, n_words=int(columns.word_ptr[-1]))
        wide = len(counts) > 0 and int(counts.max()) > np.iinfo(np.uint16).max
        order = np.argsort(layout.keys, kind="stable").astype(np.uint32)
        lengths = np.empty(len(counts), dtype=np.uint32 if wide else np.uint16)
        lengths[order] = counts[np.argsort(columns.keys, kind="stable")]
        return cls(layout, lengths, order)

    def __len__(self) -> int:
        """Return the number of rows, dead ones too."""
        return len(self.keys)

    def find_live(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the living row of each key, -1 where there is none."""
        where, rows = find_living([self], keys)
        rows[where < 0] = -1
        return rows

    def kill(self, rows: npt.NDArray[np.int64], *, count: bool = True) -> int:
        """Let living rows die; return how many words they have. For the one writer.

        Without ``count`` their words are counted when somebody first asks: so that
        opening a large index does not have to.
        """
        if not len(rows):
            return 0
        if self.live is None:
            self.live = np.ones(len(self), dtype=np.uint8)
            self.places[-1] = self.live.ctypes.data
        stop = self.deaths + len(rows)
        if stop > len(self._log):
            # Readers keep the old array: what they read of it is the same.
            grown = np.empty(min(len(self), max(64, 2 * stop)), dtype=np.uint32)
            grown[: self.deaths] = self._log[: self.deaths]
            self._log = grown
        words = self._dead_words
        if words is None and count:
            words = DeadWords(self.layout, self.lengths, self._log[: self.deaths])
            self._dead_words = words
        elif words is not None and words.deaths < self.deaths:
            # A reader made them, of a moment that was over when they were ready.
            words = self._dead_words = DeadWords(
                self.layout, self.lengths, self._log[: self.deaths]
            )
        return sum(
            self._kill_some(rows[first : first + _TOGETHER], words)
            for first in range(0, len(rows), _TOGETHER)
        )

    def _kill_some(self, rows: npt.NDArray[np.int64], words: DeadWords | None) -> int:
        stop = self.deaths + len(rows)
        self._log[self.deaths : stop] = rows
        self.deaths = stop
        assert self.live is not None
        if words is not None:
            return words.bury(rows, self.live)
        self.live[rows] = 0
        return int(self.lengths[rows].sum(dtype=np.int64))

    def log(self, first: int, stop: int | None = None) -> npt.NDArray[np.uint32]:
        """Return the rows that died, from the ``first`` death to before ``stop`` (now)."""
        stop = self.deaths if stop is None else stop  # read before the array: it may grow
        return self._log[first:stop]

    def view(self) -> SegmentView:
        """Return the segment as it is now."""
        words = self._dead_words
        current = words is not None and words.deaths == self.deaths
        return SegmentView(self, self.deaths, words.view() if words and current else None)

    def count_dead_words(self, deaths: int) -> DeadWordsView:
        """Return the words of the first ``deaths`` dead rows, counted from nothing.

        The first to ask, who may be a reader, has the writer go on counting from there.
        """
        words = DeadWords(self.layout, self.lengths, self.log(0, deaths))
        view = words.view()
        if self._dead_words is None:
            self._dead_words = words
        return view


def find_living(
    segments: Sequence[Segment], keys: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return (which of the segments, which row of it) for each key; (-1, any) if none has it."""
    where, rows = np.full(len(keys), -1, dtype=np.int64), np.empty(len(keys), dtype=np.int64)
    if segments and len(keys):
        places = np.array([segment.places for segment in segments], dtype=np.int64)
        low, still = np.empty((2, min(len(keys), _TOGETHER)), dtype=np.int64)
        for first in range(0, len(keys), _TOGETHER):
            part = slice(first, first + _TOGETHER)
            wanted = keys[part]
            kernels.find_live(places, wanted, low, still, where[part], rows[part])
    return where, rows


@dataclasses.dataclass(slots=True)
class SegmentView:
    """A segment as it was after a number of deaths."""

    segment: Segment
    deaths: int
    _words: DeadWordsView | None = None
    _mask: npt.NDArray[np.uint8] | None = None

    @property
    def n_live(self) -> int:
        """Return the number of rows alive in this view."""
        return len(self.segment) - self.deaths

    def find(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the row of each key, -1 for those not alive in this view."""
        segment = self.segment
        rows = np.empty(len(keys), dtype=np.int64)
        kernels.find_rows(segment.keys, segment.order, keys, rows)
        if self.deaths:
            rows[np.isin(rows, segment.log(0, self.deaths))] = -1
        return rows

    def document_frequency(self, words: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return in how many rows of the view each word occurs."""
        return self.segment.layout.document_frequency(words) - self.dead_frequency(words)

    def dead_frequency(self, words: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return in how many rows that are dead in this view each word occurs."""
        counted = self.dead_words()
        known = self.segment._dead_words
        assert known is not None
        return known.frequency(words, counted)

    def dead_words(self) -> DeadWordsView:
        """Return the words of the rows that are dead in this view."""
        if self._words is None:
            self._words = self.segment.count_dead_words(self.deaths)
        return self._words

    def search(
        self,
        plan: QueryPlan,
        answers: Answers,
        stats: SearchStats | None = None,
        visits: VisitParts | None = None,
    ) -> None:
        """Offer the rows of this view that can be among the best to ``answers``."""
        segment = self.segment
        mask = None
        if self.deaths:
            if self._mask is None and segment.deaths - self.deaths > _REVIVED:
                self._mask = self._own_mask()
            mask = self._mask if self._mask is not None else segment.live
        if visits is None:
            segment.layout.search(plan, answers, mask, stats)
        else:
            visits.search(segment.layout, plan, answers, mask, stats)
        if mask is not None and mask is segment.live and segment.deaths > self.deaths:
            self.revive(plan, answers, visits)

    def _own_mask(self) -> npt.NDArray[np.uint8]:
        assert self.segment.live is not None
        mask = self.segment.live.copy()
        mask[self.segment.log(self.deaths)] = 1  # after the copy: it has every death in it
        return mask

    def revive(self, plan: QueryPlan, answers: Answers, visits: VisitParts | None = None) -> None:
        """Offer the rows that died after this view was taken, and may have been missed."""
        rows = self.segment.log(self.deaths).astype(np.int64)
        keys = self.segment.keys[rows]
        parts, km, qualifies = self.segment.layout.parts(plan, rows)
        if visits is not None:
            parts[:, 3], parts[:, 4] = visits.parts(plan, keys)
        answers.count = kernels.offer_rows(
            plan.weights,
            parts,
            km,
            qualifies,
            keys,
            rows,
            answers.scores,
            answers.kms,
            answers.keys,
            answers.rows,
            answers.count,
            answers.k,
        )

    def columns(self) -> PlaceColumns:
        """Return the rows of this view as columns."""
        columns = self.segment.layout.columns()
        if not self.deaths:
            return columns
        alive = np.ones(len(self.segment), dtype=np.bool_)
        alive[self.segment.log(0, self.deaths)] = False
        return keep_rows(columns, alive)


def _fixed(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    view = np.ascontiguousarray(values).view()
    view.flags.writeable = False
    return view
