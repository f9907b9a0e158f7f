"""One shard: an index of its own, what it tells a coordinator, and how it is reached.

A coordinator speaks to shards through a :class:`Transport` alone. The methods
of :class:`ShardHost` are all that it ever calls, in this process or in another.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from shoal.core.errors import ConflictError, IntegrityError, UnavailableError
from shoal.spatial.columns import AttributeSpec, PlaceColumns, SearchStats
from shoal.spatial.config import SpatialKeywordIndexConfig
from shoal.spatial.ids import Ids
from shoal.spatial.index import SpatialKeywordIndex
from shoal.spatial.labels import Labels
from shoal.spatial.layouts import LayoutBuilder, load_layout
from shoal.spatial.outline import Outline
from shoal.spatial.query import Answers, QueryPlan
from shoal.spatial.segments import SegmentStore
from shoal.spatial.state import IndexState

__all__ = [
    "Ask",
    "Call",
    "Found",
    "LocalTransport",
    "ShardHost",
    "Transport",
    "apply_columns",
    "index_of_columns",
]

#: Earlier states of a shard that running queries may still read.
_KEPT_VIEWS = 8


class Ask(NamedTuple):
    """A plan, and the answer to beat: (score, km, key) of the k-th so far, if there is one."""

    plan: QueryPlan
    worst: tuple[float, float, int] | None


class Found(NamedTuple):
    """What a shard adds to the answers: arrays of one length, the best first; and its counts."""

    scores: npt.NDArray[np.float64]
    kms: npt.NDArray[np.float64]
    keys: npt.NDArray[np.int64]
    stats: tuple[int, int, int]


class Call(NamedTuple):
    """A method of one shard's host with its arguments."""

    shard: int
    method: str
    args: tuple[Any, ...] = ()


class Transport(Protocol):
    """How a coordinator reaches its shards."""

    #: Shards that one query asks at a time after the first.
    width: int

    def __len__(self) -> int:
        """Return the number of shards."""
        ...

    def call(self, calls: Sequence[Call]) -> list[Any]:
        """Return the result of each call, in order; at once where that is possible.

        A shard that cannot be reached gives an :class:`UnavailableError` as its
        result, which names it. Any other error is raised.
        """
        ...

    def saved(self, folders: Sequence[Path], outlines: Sequence[Outline], epoch: int) -> None:
        """Take note that the shards' states of ``epoch`` are in ``folders``."""
        ...

    def rebuilt(
        self,
        parts: Sequence[PlaceColumns],
        specs: Sequence[AttributeSpec],
        config: SpatialKeywordIndexConfig,
        epoch: int,
    ) -> tuple[Transport, list[Outline]]:
        """Return new shards of these places, reached in the same way, and their outlines."""
        ...

    def close(self) -> None:
        """Let go of the shards."""
        ...


def index_of_columns(
    columns: PlaceColumns,
    specs: Sequence[AttributeSpec],
    config: SpatialKeywordIndexConfig | None = None,
    *,
    ids: Ids | None = None,
    labels: Labels | None = None,
) -> SpatialKeywordIndex:
    """Return an index of places that are columns already; by default its ids are the keys."""
    config = config or SpatialKeywordIndexConfig()
    store = SegmentStore(
        tuple(specs),
        LayoutBuilder(config, specs),
        load_layout,
        memtable_rows=config.memtable_rows,
        fan_in=config.fan_in,
    )
    if len(columns):
        store.upsert(columns)
        store.flush()
    return SpatialKeywordIndex(store, IndexState(config, ids or Ids("int"), labels))


def apply_columns(
    index: SpatialKeywordIndex,
    columns: PlaceColumns | None,
    deleted: npt.NDArray[np.int64] | None = None,
    labels: Sequence[str | None] | None = None,
) -> None:
    """Change an index by columns and keys that have been through all checks.

    Parameters
    ----------
    index : SpatialKeywordIndex
        The index; text ids of new places are in its map already.
    columns : PlaceColumns or None
        Places to add or replace.
    deleted : int64 [m], optional
        Keys to delete first, where they are there.
    labels : sequence of str, optional
        Labels of the places.
    """
    store, state = index._store, index._state
    if deleted is not None and len(deleted):
        store.delete(deleted)
    if columns is not None and len(columns):
        note = state.note(columns.keys, labels)
        if note:
            state.apply("upsert", note)
        store.upsert(columns, note=note)


class _View(NamedTuple):
    epoch: int
    snapshot: Any
    outline: Outline


class ShardHost:
    """One shard and its last few states, each known by the number of the change that made it.

    A coordinator counts its changes. A query carries the count it was planned
    for, and every shard answers it from its state of that moment, so that a
    query never sees half of a change.

    Parameters
    ----------
    index : SpatialKeywordIndex
        The shard; its ids are the keys.
    outline : Outline, optional
        Of its places; found by reading them if it is not given.
    epoch : int
        Number of the change that made the present state.
    """

    def __init__(
        self, index: SpatialKeywordIndex, outline: Outline | None = None, epoch: int = 0
    ) -> None:
        self.index = index
        self._changing = False
        snapshot = index.snapshot()
        self._views: tuple[_View, ...] = (
            _View(epoch, snapshot, outline or Outline.of(snapshot.columns())),
        )

    @classmethod
    def of_columns(
        cls,
        columns: PlaceColumns,
        specs: Sequence[AttributeSpec],
        config: SpatialKeywordIndexConfig,
        epoch: int = 0,
    ) -> ShardHost:
        """Build a shard."""
        return cls(index_of_columns(columns, specs, config), Outline.of(columns), epoch)

    @classmethod
    def of_folder(
        cls,
        folder: str | os.PathLike[str],
        outline: Outline,
        *,
        mmap: bool = True,
        verify: bool = False,
        epoch: int = 0,
    ) -> ShardHost:
        """Read a saved shard.

        Raises
        ------
        IntegrityError
            A file is cut short or altered, or is not the one of the outline.
        """
        index = SpatialKeywordIndex.load(folder, mmap=mmap, verify=verify)
        if index.n_live != outline.n_live:
            raise IntegrityError(
                f"{folder}: {index.n_live} places, but its manifest says {outline.n_live}"
            )
        return cls(index, outline, epoch)

    def outline(self) -> Outline:
        """Return what the shard publishes."""
        return self._views[-1].outline

    def document_frequency(self, epoch: int, words: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return in how many places each word occurs."""
        counts: npt.NDArray[np.int64] = self._snapshot(epoch).document_frequency(words)
        return counts

    def search(self, epoch: int, asks: Sequence[Ask]) -> list[Found]:
        """Return, for each plan, the places that can be among the best."""
        snapshot = self._snapshot(epoch)
        return [_search(snapshot, *ask) for ask in asks]

    def parts(
        self, epoch: int, plan: QueryPlan, keys: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], tuple[Any, Any, Any]]:
        """Return which of ``keys`` are here (positions), and their parts as ``Layout.parts``."""
        snapshot = self._snapshot(epoch)
        here = np.flatnonzero(snapshot.contains(keys))
        return here, snapshot.parts(plan, keys[here])

    def columns(self, epoch: int) -> PlaceColumns:
        """Return the places."""
        columns: PlaceColumns = self._snapshot(epoch).columns()
        return columns

    def apply(
        self, epoch: int, columns: PlaceColumns | None, deleted: npt.NDArray[np.int64]
    ) -> tuple[Outline, int]:
        """Make the state of ``epoch``; return its outline and how many places were deleted.

        Parameters
        ----------
        epoch : int
            Number of the change.
        columns : PlaceColumns or None
            Places to add or replace.
        deleted : int64 [m]
            Keys to delete first, where they are here.
        """
        outline, before = self.outline(), self.index.n_live
        self._changing = True
        try:
            apply_columns(self.index, None, deleted)
            gone = before - self.index.n_live
            apply_columns(self.index, columns)
            if columns is not None:
                outline = outline.joined(Outline.of(columns))
            self._publish(epoch, outline)
        finally:
            self._changing = False
        return self.outline(), gone

    def tidy(self, epoch: int, compact: bool) -> Outline:
        """Flush, or compact and measure the outline anew; the places stay the same."""
        if not compact:
            self.index.flush()
            return self.outline()
        self.index.compact()
        self._publish(epoch, Outline.of(self.index.columns()))
        return self.outline()

    def save(self, folder: str) -> Outline:
        """Write the shard to a folder."""
        self.index.save(folder)
        return self.outline()

    def close(self) -> None:
        """Release the shard's files."""
        self.index.close()

    def _publish(self, epoch: int, outline: Outline) -> None:
        snapshot = self.index.snapshot()
        view = _View(epoch, snapshot, outline.with_counts(snapshot.n_live, snapshot.n_words))
        self._views = (*self._views[-_KEPT_VIEWS + 1 :], view)

    def _snapshot(self, epoch: int) -> Any:
        views = self._views
        if epoch >= views[-1].epoch:
            # The same places, but merged by now, unless a change is under way.
            if not self._changing:
                fresh = self.index.snapshot()
                if not self._changing and self._views is views:
                    return fresh
            return views[-1].snapshot
        for view in reversed(views):
            if view.epoch <= epoch:
                return view.snapshot
        raise ConflictError(f"the state of change {epoch} is gone; ask again")


def _search(snapshot: Any, plan: QueryPlan, worst: tuple[float, float, int] | None) -> Found:
    if not snapshot.n_live:
        return Found(np.empty(0), np.empty(0), np.empty(0, dtype=np.int64), (0, 0, 0))
    # A small shard cannot give more than it has.
    plan = dataclasses.replace(plan, k=min(plan.k, snapshot.n_live))
    answers, stats = Answers(plan.k), SearchStats()
    if worst is not None:
        # As if k places of other shards were known, all as good as the k-th of them: only
        # what beats that gets in.
        answers.count = plan.k
        answers.scores[:], answers.kms[:], answers.keys[:] = worst
        answers.rows[:] = -1
    snapshot.search(plan, answers, stats)
    new = np.flatnonzero(answers.rows[: answers.count] >= 0)
    return Found(
        answers.scores[new],
        answers.kms[new],
        answers.keys[new],
        (stats.nodes, stats.scored, stats.looked_at),
    )


class LocalTransport:
    """Shards in this process, one thread for each that is asked at the same time.

    Parameters
    ----------
    hosts : sequence of ShardHost
        The shards.
    threads : int, optional
        By default one for each core that this process may use.
    """

    width = 1

    def __init__(self, hosts: Sequence[ShardHost], threads: int | None = None) -> None:
        self.hosts = list(hosts)
        workers = max(1, min(len(self.hosts), threads or len(os.sched_getaffinity(0))))
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="shoal-shard")

    def __len__(self) -> int:
        return len(self.hosts)

    def call(self, calls: Sequence[Call]) -> list[Any]:
        """Return the results; kernels release the GIL, so threads run side by side."""
        if len(calls) == 1:
            return [self._one(calls[0])]
        return list(self._pool.map(self._one, calls))

    def saved(self, folders: Sequence[Path], outlines: Sequence[Outline], epoch: int) -> None:
        """Do nothing: shards in this process do not die before it."""

    def rebuilt(
        self,
        parts: Sequence[PlaceColumns],
        specs: Sequence[AttributeSpec],
        config: SpatialKeywordIndexConfig,
        epoch: int,
    ) -> tuple[LocalTransport, list[Outline]]:
        """Return new shards of these places."""
        hosts = [ShardHost.of_columns(part, specs, config, epoch) for part in parts]
        return LocalTransport(hosts), [host.outline() for host in hosts]

    def close(self) -> None:
        """Close the shards."""
        self._pool.shutdown()
        for host in self.hosts:
            host.close()

    def _one(self, call: Call) -> Any:
        try:
            return getattr(self.hosts[call.shard], call.method)(*call.args)
        except UnavailableError as error:
            return UnavailableError(f"shard {call.shard}: {error}", hint=error.hint)
