"""A prepared query of a live index: all segments in one kernel call, recent places after it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.spatial import _call_kernels as calling
from shoal.spatial import _live_kernels as kernels
from shoal.spatial._kernels import MAX_WORDS
from shoal.spatial.packed import PackedLayout
from shoal.spatial.packed_searcher import PackedSearcher, is_plain
from shoal.spatial.query import MATCH_ALL, MATCH_EVERYTHING, QueryPlan
from shoal.spatial.snapshot import Snapshot

__all__ = ["LiveSearcher", "can_follow"]


def can_follow(snapshot: object, plan: QueryPlan) -> bool:
    """Say whether a :class:`LiveSearcher` gives the answers of a snapshot.

    It needs segments in the packed layout, and for recent places a query in which
    but words, distance and preferences nothing counts.
    """
    if not isinstance(snapshot, Snapshot):  # shards elsewhere
        return False
    if plan.weights[3] > 0.0 or plan.weights[4] > 0.0 or not snapshot.segments:
        return False
    if not all(isinstance(view.segment.layout, PackedLayout) for view in snapshot.segments):
        return False
    return is_plain(plan) or snapshot.single() is not None


class LiveSearcher:
    """A prepared query of a snapshot; with :meth:`follow` of the ones that come after it.

    Calls reuse their memory: one thread at a time.

    Parameters
    ----------
    snapshot : Snapshot
        One for which :func:`can_follow` says so.
    plan : QueryPlan
        As for :class:`PackedSearcher`.

    Attributes
    ----------
    answers : Answers
        The answers of the latest call.
    packed : PackedSearcher
        What searches the segments.
    """

    __slots__ = (
        "_dead",
        "_deaths",
        "_extra",
        "_kept",
        "_layouts",
        "_masks",
        "_places",
        "_recent",
        "_records",
        "_weighted",
        "answers",
        "packed",
        "plan",
        "snapshot",
    )

    def __init__(self, snapshot: Snapshot, plan: QueryPlan) -> None:
        self.plan = plan
        self._layouts: list[Any] = [view.segment.layout for view in snapshot.segments]
        self._places = [layout.addresses().ctypes.data for layout in self._layouts]
        self._masks = [view.segment.live for view in snapshot.segments]
        self.packed = PackedSearcher(
            self._layouts, plan, live=self._masks, n_live=max(1, snapshot.n_live)
        )
        self.answers = self.packed.answers
        self._weighted = plan.weights[1] > 0.0
        self._extra = np.zeros(MAX_WORDS, dtype=np.int64)
        self._take(snapshot)

    def follow(self, snapshot: Snapshot) -> bool:
        """Go on with another snapshot; say whether that can be done without preparing again."""
        layouts = [view.segment.layout for view in snapshot.segments]
        if len(layouts) != len(self._layouts):
            return False
        if any(a is not b for a, b in zip(layouts, self._layouts, strict=True)):
            return False
        if not is_plain(self.plan) and snapshot.single() is None:
            return False
        masks = [view.segment.live for view in snapshot.segments]
        if all(a is b for a, b in zip(masks, self._masks, strict=True)):
            # They are changed in place.
            self.packed._state[calling.N_LIVE] = max(1, snapshot.n_live)
        else:
            self._masks = masks
            self.packed.follow(masks, max(1, snapshot.n_live))
        self._take(snapshot)
        return True

    def _take(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        # A segment whose mask came after this is searched as if nothing had died: as it was.
        masks = zip(snapshot.segments, self._masks, strict=True)
        self._deaths = [(view.segment, view) for view, mask in masks if mask is not None]
        views = [view for view in snapshot.memory if view.rows]
        self._recent = [(view.table.vocabulary, len(view.counts), view.counts) for view in views]
        self._records = np.zeros((len(views), kernels.RECENT_SIZE), dtype=np.int64)
        for record, view in zip(self._records, views, strict=True):
            record[: kernels.RECENT_WORDS] = view.record()
        # Whatever the records point to lives as long as the snapshot, but for these.
        self._kept = []
        dead = []
        if self._weighted:
            for place, part in zip(self._places, snapshot.segments, strict=True):
                if part.deaths:
                    words = part.dead_words()
                    self._kept.append(words)
                    dead.append((place, *words.places, words.stop))
        self._dead = np.array(dead, dtype=np.int64).reshape(-1, kernels.DEAD_SIZE)

    def __call__(self, lon: float, lat: float, words: Sequence[str] = ()) -> int:
        """Search at (lon, lat), degrees, for words; return the number of answers.

        Raises
        ------
        InputError
            There are more than 64 words.
        """
        if len(words) > MAX_WORDS:
            return self.packed(lon, lat, words)  # which refuses them
        extra = None
        scan = bool(self._recent)
        if scan:
            scan = self._number(words) or self.plan.match != MATCH_ALL
        if self._weighted and words:
            extra = self._outside(words)
        count = self.packed(lon, lat, words, extra)
        if scan:
            count = int(kernels.search_recent(self.packed._state, self._records, len(words), count))
            self.answers.count = count
        return count

    @property
    def pristine(self) -> bool:
        """Say whether :attr:`packed` alone gives the answers: nothing is recent or dead."""
        return not self._recent and not self._deaths

    def torn(self) -> bool:
        """Say whether rows of the snapshot have died since it was taken.

        If so before a call was made, or meanwhile, the call may have missed them.
        """
        for segment, view in self._deaths:  # noqa: SIM110 - this is timed
            if segment.deaths != view.deaths:
                return True
        return False

    def mend(self, lon: float, lat: float, words: Sequence[str]) -> int:
        """Offer what the call just made may have missed; return the number of answers."""
        plan = dataclasses.replace(
            self.plan,
            lon=lon,
            lat=lat,
            words=tuple(words),
            word_weights=self.packed.word_weights[: len(words)].copy(),
            match=self.plan.match if words else MATCH_EVERYTHING,
        )
        for segment, view in self._deaths:
            if segment.deaths != view.deaths:
                view.revive(plan, self.answers)
        return len(self.answers)

    def _number(self, words: Sequence[str]) -> bool:
        """Put the words' numbers into the memtables' records; say if one knows them all."""
        whole = False
        for record, (known, count, _) in zip(self._records, self._recent, strict=True):
            all_known = True
            for g, word in enumerate(words, kernels.RECENT_WORDS):
                number = known.get(word, -1)
                if number >= count:
                    number = -1  # it came after the view
                if number < 0:
                    all_known = False
                record[g] = number
            whole = whole or all_known
        return whole

    def _outside(self, words: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return for each word the recent places that have it, less the segments' dead ones."""
        given = len(words)
        extra = self._extra
        for g, word in enumerate(words):
            total = 0
            for known, count, counts in self._recent:
                number = known.get(word, -1)
                if 0 <= number < count:
                    total += int(counts[number])
            extra[g] = total
        if len(self._dead):
            text = b"\xff".join([word.encode() for word in words])
            kernels.dead_frequencies(self._dead, given, text, extra)
        return extra[:given]
