"""An index at one moment: searched by any number of threads, changed by none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from shoal.core.errors import NotFoundError
from shoal.spatial.columns import Layout, PlaceColumns, SearchStats
from shoal.spatial.memtable import MemtableView
from shoal.spatial.merging import merge_columns
from shoal.spatial.query import Answers, QueryPlan
from shoal.spatial.segment import SegmentView, VisitParts

__all__ = ["Snapshot", "WordTotals"]

_CACHED_WORDS = 1_000_000


class WordTotals:
    """In how many rows of some layouts each word occurs; the dead ones count too.

    It belongs to a list of segments and is thrown away with it, so it never has
    to be corrected.
    """

    def __init__(self, layouts: Sequence[Layout]) -> None:
        self._layouts = tuple(layouts)
        self._known: dict[str, int] = {}

    def get(self, words: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the number of rows of each word."""
        known = self._known
        missing = [word for word in words if word not in known]
        if missing:
            total = np.zeros(len(missing), dtype=np.int64)
            for layout in self._layouts:
                total += layout.document_frequency(missing)
            if len(known) >= _CACHED_WORDS:
                known = self._known = {word: known[word] for word in words if word in known}
            known.update(zip(missing, total.tolist(), strict=True))
        return np.array([known[word] for word in words], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Segments and recent rows at one moment.

    Attributes
    ----------
    segments : tuple of SegmentView
        The large ones first.
    memory : tuple of MemtableView
        Recent rows; the last is the memtable that is being written.
    n_live : int
        Places.
    n_words : int
        Sum of their numbers of words.
    """

    segments: tuple[SegmentView, ...]
    memory: tuple[MemtableView, ...]
    n_live: int
    n_words: int
    attributes: int
    totals: WordTotals = field(repr=False)
    visits: VisitParts | None = field(default=None, repr=False)

    @property
    def mean_words(self) -> float:
        """Return the mean number of words of a place, 0 without places."""
        return self.n_words / self.n_live if self.n_live else 0.0

    def single(self) -> Layout | None:
        """Return the layout that is all there is, if it is: one segment, nothing dead or recent."""
        if len(self.segments) != 1 or self.segments[0].deaths:
            return None
        if any(view.rows for view in self.memory):
            return None
        return self.segments[0].segment.layout

    def document_frequency(self, words: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return in how many live places each word occurs, exactly."""
        counts = self.totals.get(words)
        for segment in self.segments:
            if segment.deaths:
                counts -= segment.dead_frequency(words)
        for recent in self.memory:
            if recent.rows:
                counts += recent.document_frequency(words)
        return counts

    def search(self, plan: QueryPlan, answers: Answers, stats: SearchStats | None = None) -> None:
        """Offer every live place that can be among the best ``plan.k`` to ``answers``.

        The worst answer so far is the threshold in each further segment.

        Parameters
        ----------
        plan : QueryPlan
            Made for this snapshot.
        answers : Answers
            Added to; its ``k`` is the plan's.
        stats : SearchStats, optional
            Added to.
        """
        visits = self._visits(plan)
        for segment in self.segments:
            segment.search(plan, answers, stats, visits)
        for recent in self.memory:
            if not recent.rows:
                continue
            if visits is None:
                recent.search(plan, answers, stats)
                continue
            time_part, social_part = visits.parts(plan, recent.all_keys)
            recent.search(plan, answers, stats, time_part=time_part, social_part=social_part)

    def parts(
        self, plan: QueryPlan, keys: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Return (parts [m, 5] in the order of PARTS, distance km [m], qualifies [m]) of keys.

        Raises
        ------
        NotFoundError
            A key is not alive in this snapshot.
        """
        keys = np.ascontiguousarray(keys, dtype=np.int64)
        parts, km = np.zeros((len(keys), 5)), np.zeros(len(keys))
        qualifies = np.zeros(len(keys), dtype=np.bool_)
        open_keys = np.arange(len(keys))
        # A layout knows the first three parts; which of them count is nothing to it here.
        bare = replace(plan, weights=np.array([1.0, 0.0, 0.0, 0.0, 0.0]))
        for view in self._views():
            if not len(open_keys):
                break
            rows = view.find(keys[open_keys])
            at = open_keys[rows >= 0]
            if not len(at):
                continue
            layout = view if isinstance(view, MemtableView) else view.segment.layout
            parts[at], km[at], qualifies[at] = layout.parts(bare, rows[rows >= 0])
            open_keys = open_keys[rows < 0]
        if len(open_keys):
            raise NotFoundError(f"there is no place with key {keys[open_keys[0]]}")
        visits = self._visits(plan)
        if visits is not None and len(keys):
            parts[:, 3], parts[:, 4] = visits.parts(plan, keys)
        return parts, km, qualifies

    def positions(
        self, keys: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return (lon, lat) of keys, degrees, NaN where a key is not alive."""
        keys = np.ascontiguousarray(keys, dtype=np.int64)
        lon, lat = np.full(len(keys), np.nan), np.full(len(keys), np.nan)
        for view in self._views():
            rows = view.find(keys)
            at = np.flatnonzero(rows >= 0)
            if len(at):
                layout = view if isinstance(view, MemtableView) else view.segment.layout
                lon[at], lat[at] = layout.positions(rows[at])
        return lon, lat

    def contains(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Say of each key whether it is alive in this snapshot."""
        keys = np.ascontiguousarray(keys, dtype=np.int64)
        found = np.zeros(len(keys), dtype=np.bool_)
        for view in self._views():
            found |= view.find(keys) >= 0
        return found

    def columns(self) -> PlaceColumns:
        """Return all live places as columns, in no special order."""
        return merge_columns([view.columns() for view in self._views()], self.attributes)

    def _views(self) -> list[MemtableView | SegmentView]:
        return [*self.memory, *self.segments]

    def _visits(self, plan: QueryPlan) -> VisitParts | None:
        return self.visits if plan.weights[3] > 0 or plan.weights[4] > 0 else None
