"""The state of many shards at one moment, how a query goes through them, and how they change.

A query is planned with the counts of all shards together, which makes the
weight of a word the same everywhere; the shard that can hold the best answer is
asked first, and then only those whose bound can still beat the k-th answer so
far, which goes with the question.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError, NotFoundError, UnavailableError
from shoal.spatial.columns import AttributeSpec, PlaceColumns, SearchStats
from shoal.spatial.curve import hilbert_key
from shoal.spatial.merging import keep_rows, merge_columns
from shoal.spatial.outline import Outline, ShardBounds
from shoal.spatial.query import Answers, QueryPlan
from shoal.spatial.shards import Ask, Call, Found, Transport

__all__ = ["ShardStore", "ShardedSnapshot", "hilbert_cuts", "part_columns"]

_CACHED_WORDS = 100_000


def hilbert_cuts(
    lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64], shards: int
) -> npt.NDArray[np.uint64]:
    """Return ``shards - 1`` places on the Hilbert curve that part positions evenly.

    Shard i holds the positions whose key is at least ``cuts[i - 1]`` and below
    ``cuts[i]``; positions of one key stay together, so some shards may be empty.
    """
    if isinstance(shards, bool) or not isinstance(shards, (int, np.integer)) or shards < 1:
        raise InputError("there is at least one shard", field="shards", value=shards)
    if not len(lon):
        return np.zeros(shards - 1, dtype=np.uint64)
    ordered = np.sort(hilbert_key(lon, lat))
    at = np.arange(1, shards, dtype=np.int64) * len(ordered) // shards
    return ordered[at]


def part_columns(columns: PlaceColumns, cuts: npt.NDArray[np.uint64]) -> list[PlaceColumns]:
    """Return the places of each shard."""
    owner = np.searchsorted(cuts, hilbert_key(columns.lon, columns.lat), side="right")
    return [keep_rows(columns, owner == shard) for shard in range(len(cuts) + 1)]


class ShardedSnapshot:
    """All shards as they were after one change; what a query is planned for and asked of.

    Parameters
    ----------
    transport : Transport
        The shards.
    epoch : int
        Number of the change.
    outlines : sequence of Outline
        One a shard.
    specs : sequence of AttributeSpec
        The attributes.
    partial : bool
        Go on without shards that cannot be reached; ``missing`` says which.
    """

    def __init__(
        self,
        transport: Transport,
        epoch: int,
        outlines: Sequence[Outline],
        specs: Sequence[AttributeSpec],
        *,
        partial: bool = False,
    ) -> None:
        self.transport = transport
        self.epoch = epoch
        self.outlines = tuple(outlines)
        self.specs = tuple(specs)
        self.partial = partial
        self.missing: set[int] = set()
        self.bounds = ShardBounds(self.outlines, self.specs)
        self.n_live = sum(outline.n_live for outline in self.outlines)
        self.n_words = sum(outline.n_words for outline in self.outlines)
        self._frequency: dict[str, npt.NDArray[np.int64]] = {}

    @property
    def mean_words(self) -> float:
        """Return the mean number of words of a place."""
        return self.n_words / self.n_live if self.n_live else 0.0

    def document_frequency(self, words: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return in how many places of all shards each word occurs."""
        counts: npt.NDArray[np.int64] = self.shard_frequency(words).sum(axis=1)
        return counts

    def shard_frequency(self, words: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return in how many places of each shard each word occurs, int64 [words, shards]."""
        known = self._frequency
        new = [word for word in dict.fromkeys(words) if word not in known]
        if new:
            table = np.zeros((len(new), len(self.outlines)), dtype=np.int64)
            calls = [
                Call(shard, "document_frequency", (self.epoch, new)) for shard in self._peopled()
            ]
            for call, counts in self._call(calls):
                table[:, call.shard] = counts
            if len(known) + len(new) > _CACHED_WORDS:
                known = self._frequency = {}
            known.update(zip(new, table, strict=True))
        if not len(words):
            return np.zeros((0, len(self.outlines)), dtype=np.int64)
        return np.stack([known.get(word, _none(self)) for word in words])

    def search(self, plan: QueryPlan, answers: Answers, stats: SearchStats | None = None) -> None:
        """Fill ``answers`` with the best places of all shards."""
        found = self.search_many([plan], stats)[0]
        answers.count = len(found.keys)
        answers.scores[: answers.count] = found.scores
        answers.kms[: answers.count] = found.kms
        answers.keys[: answers.count] = found.keys
        answers.rows[: answers.count] = -1

    def search_many(
        self, plans: Sequence[QueryPlan], stats: SearchStats | None = None
    ) -> list[Found]:
        """Return the best places of each plan; shards get what is asked of them in one message."""
        hunts = [self._hunt(plan) for plan in plans]
        active = list(range(len(hunts)))
        while active:
            asks: dict[int, list[int]] = {}
            for i in active:
                for shard in hunts[i].next_shards(self.transport.width):
                    asks.setdefault(shard, []).append(i)
            calls = [
                Call(
                    shard,
                    "search",
                    (self.epoch, [Ask(plans[i], hunts[i].worst()) for i in queries]),
                )
                for shard, queries in sorted(asks.items())
            ]
            for call, results in self._call(calls):
                for i, found in zip(asks[call.shard], results, strict=True):
                    hunts[i].add(found)
                    _count(stats, found)
            active = sorted({i for queries in asks.values() for i in queries})
        return [hunt.found for hunt in hunts]

    def parts(
        self, plan: QueryPlan, keys: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Return (parts [m, 5], distance km [m], qualifies [m]) of keys.

        Raises
        ------
        NotFoundError
            A key is in no shard.
        """
        parts, km = np.zeros((len(keys), 5)), np.zeros(len(keys))
        qualifies, seen = np.zeros(len(keys), dtype=bool), np.zeros(len(keys), dtype=bool)
        calls = [Call(shard, "parts", (self.epoch, plan, keys)) for shard in self._peopled()]
        for _, (here, (their_parts, their_km, their_qualifies)) in self._call(calls):
            parts[here], km[here], qualifies[here] = their_parts, their_km, their_qualifies
            seen[here] = True
        if not seen.all():
            raise NotFoundError(f"no such place: {int(keys[np.argmin(seen)])}")
        return parts, km, qualifies

    def columns(self) -> PlaceColumns:
        """Return all places."""
        calls = [Call(shard, "columns", (self.epoch,)) for shard in self._peopled()]
        return merge_columns([columns for _, columns in self._call(calls)], len(self.specs))

    def single(self) -> None:
        """Return None: there is no one layout that holds everything."""

    def _hunt(self, plan: QueryPlan) -> _Hunt:
        if plan.weights[3] > 0 or plan.weights[4] > 0:
            raise InputError(
                "a sharded index has no time and social parts",
                field="weights",
                hint="ask one index for them",
            )
        score, km, possible = self.bounds.upper(plan, self.shard_frequency(plan.words))
        order = [
            int(shard)
            for shard in np.lexsort((np.arange(len(score)), km, -score))
            if possible[shard] and int(shard) not in self.missing
        ]
        return _Hunt(plan.k, order, score, km)

    def _peopled(self) -> list[int]:
        return [i for i, outline in enumerate(self.outlines) if outline.n_live]

    def _call(self, calls: Sequence[Call]) -> list[tuple[Call, Any]]:
        calls = [call for call in calls if call.shard not in self.missing]
        answered = []
        for call, result in zip(calls, self.transport.call(calls), strict=True):
            if not isinstance(result, UnavailableError):
                answered.append((call, result))
            elif self.partial:
                self.missing.add(call.shard)
            else:
                raise result
        return answered


def _none(snapshot: ShardedSnapshot) -> npt.NDArray[np.int64]:
    return np.zeros(len(snapshot.outlines), dtype=np.int64)


class _Hunt:
    """One query on its way through the shards."""

    __slots__ = ("_asked", "_k", "_km", "_order", "_score", "found")

    def __init__(
        self,
        k: int,
        order: list[int],
        score: npt.NDArray[np.float64],
        km: npt.NDArray[np.float64],
    ) -> None:
        self._k, self._order, self._score, self._km = k, order, score, km
        self._asked = 0
        empty = np.empty(0)
        self.found = Found(empty, empty, np.empty(0, dtype=np.int64), (0, 0, 0))

    def worst(self) -> tuple[float, float, int] | None:
        """Return the k-th answer so far, None while there are fewer."""
        if len(self.found.keys) < self._k:
            return None
        found = self.found
        return float(found.scores[-1]), float(found.kms[-1]), int(found.keys[-1])

    def next_shards(self, width: int) -> list[int]:
        """Return the shards to ask now: the best alone first, then those that may matter."""
        worst = self.worst()
        chosen: list[int] = []
        limit = width if self._asked else 1
        while self._order and len(chosen) < limit:
            shard = self._order.pop(0)
            if worst is not None and not self._may_beat(shard, worst):
                continue
            chosen.append(shard)
        self._asked += len(chosen)
        return chosen

    def _may_beat(self, shard: int, worst: tuple[float, float, int]) -> bool:
        score, km = self._score[shard], self._km[shard]
        return bool(score > worst[0] or (score == worst[0] and km <= worst[1]))

    def add(self, found: Found) -> None:
        """Take in what a shard has."""
        if not len(found.keys):
            return
        scores, kms, keys = (
            np.concatenate([mine, theirs])
            for mine, theirs in zip(self.found[:3], found[:3], strict=True)
        )
        best = np.lexsort((keys, kms, -scores))[: self._k]
        self.found = Found(scores[best], kms[best], keys[best], (0, 0, 0))


def _count(stats: SearchStats | None, found: Found) -> None:
    if stats is None:
        return
    nodes, scored, looked_at = found.stats
    stats.nodes += nodes
    stats.scored += scored
    stats.looked_at += looked_at
    stats.more["shards_asked"] = stats.more.get("shards_asked", 0) + 1


class ShardStore:
    """Changes of a sharded index, routed to the shards that they concern; one writer at a time.

    It stands where one index has its ``SegmentStore``.

    Parameters
    ----------
    transport : Transport
        The shards.
    cuts : uint64 [shards - 1]
        As :func:`hilbert_cuts` gives them.
    specs : sequence of AttributeSpec
        The attributes.
    outlines : sequence of Outline
        One a shard.
    epoch : int
        Number of the last change.
    """

    #: Rows go on to the shards as columns, however few they are.
    memtable_rows = 0

    def __init__(
        self,
        transport: Transport,
        cuts: npt.NDArray[np.uint64],
        specs: Sequence[AttributeSpec],
        outlines: Sequence[Outline],
        *,
        epoch: int = 0,
    ) -> None:
        self.specs = tuple(specs)
        self.cuts = cuts
        self.lock = threading.RLock()
        self._snapshot = ShardedSnapshot(transport, epoch, outlines, self.specs)

    def snapshot(self) -> ShardedSnapshot:
        """Return all shards as they are after the last whole change."""
        return self._snapshot

    def owner(
        self, lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.int64]:
        """Return the shard of each position."""
        return np.searchsorted(self.cuts, hilbert_key(lon, lat), side="right")

    def upsert(self, columns: PlaceColumns, *, note: bytes = b"") -> None:
        """Add or replace places; one that moved to another shard leaves its old one.

        ``note`` is for a journal, which there is none of here: its like is the
        source that shards are rebuilt from.
        """
        with self.lock:
            owner = self.owner(columns.lon, columns.lat)
            changes = []
            for shard in range(len(self._snapshot.outlines)):
                mine = owner == shard
                # Where a place was is not on record here: the others delete it if they have it.
                changes.append(
                    (keep_rows(columns, mine) if mine.any() else None, columns.keys[~mine])
                )
            self._change(changes)

    def delete(self, keys: npt.NDArray[np.int64]) -> int:
        """Delete places; return how many there were."""
        with self.lock:
            return self._change([(None, keys)] * len(self._snapshot.outlines))

    def flush(self) -> None:
        """Let every shard turn its recent places into a segment."""
        self._tidy(compact=False)

    def compact(self) -> None:
        """Let every shard merge all it has, and measure its outline anew."""
        self._tidy(compact=True)

    def close(self) -> None:
        """Let go of the shards."""
        self._snapshot.transport.close()

    def replace(
        self,
        transport: Transport,
        cuts: npt.NDArray[np.uint64],
        outlines: Sequence[Outline],
        *,
        epoch: int,
    ) -> None:
        """Go over to other shards of the same places.

        The old ones are let go of when the last query that still asks them ends.
        """
        self.cuts = cuts
        self._snapshot = ShardedSnapshot(transport, epoch, outlines, self.specs)

    def _tidy(self, *, compact: bool) -> None:
        with self.lock:
            now = self._snapshot
            calls = [Call(i, "tidy", (now.epoch, compact)) for i in range(len(now.outlines))]
            outlines = [outline for _, outline in now._call(calls)]
            self._snapshot = ShardedSnapshot(now.transport, now.epoch, outlines, self.specs)

    def _change(self, changes: Sequence[tuple[PlaceColumns | None, npt.NDArray[np.int64]]]) -> int:
        now = self._snapshot
        calls = [
            Call(shard, "apply", (now.epoch + 1, columns, deleted))
            for shard, (columns, deleted) in enumerate(changes)
            if columns is not None or (len(deleted) and now.outlines[shard].n_live)
        ]
        outlines, gone, failed = list(now.outlines), 0, None
        for call, result in zip(calls, now.transport.call(calls), strict=True):
            if isinstance(result, UnavailableError):
                failed = result
                continue
            outlines[call.shard], count = result
            gone += count
        # After a failure too: what the other shards did is done, and doing it again is harmless.
        self._snapshot = ShardedSnapshot(now.transport, now.epoch + 1, outlines, self.specs)
        if failed is not None:
            raise failed
        return gone
