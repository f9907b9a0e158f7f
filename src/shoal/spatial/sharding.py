"""One index over many shards: the same questions, the same answers, fewer shards asked.

Places are parted by ranges of the Hilbert curve, so a shard is a patch of the
map, and a whole index of its own. Scores, order and ties are those of one index.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shoal.core.errors import ConflictError, InputError
from shoal.spatial.columns import AttributeSpec, PlaceColumns, SearchStats
from shoal.spatial.config import SpatialKeywordIndexConfig
from shoal.spatial.index import SpatialKeywordIndex
from shoal.spatial.ingest import check_positions
from shoal.spatial.query import QueryPlan
from shoal.spatial.request import Planned, Query
from shoal.spatial.results import TopK
from shoal.spatial.scoring import PARTS
from shoal.spatial.searcher import Batch
from shoal.spatial.shardfolder import read_folder, write_folder
from shoal.spatial.shards import LocalTransport, ShardHost, Transport
from shoal.spatial.shardstore import ShardedSnapshot, ShardStore, hilbert_cuts, part_columns
from shoal.spatial.state import IndexState
from shoal.spatial.words import analyze_query

if TYPE_CHECKING:
    from shoal.spatial.postgres import PlaceSource

__all__ = ["ShardedIndex", "ShardedTopK"]

_RETRIES = 3


@dataclass(frozen=True, slots=True)
class ShardedTopK(TopK):
    """Answers of a sharded index.

    ``missing_shards`` names the shards that could not be asked, for a query with
    ``partial=True``; places of theirs are not among the answers.
    ``stats.more["shards_asked"]`` counts those that were asked.
    """

    missing_shards: tuple[int, ...] = ()


class ShardedIndex(SpatialKeywordIndex):
    """A :class:`SpatialKeywordIndex` whose places lie in shards.

    Make one with :meth:`build` or :meth:`of_columns` (shards in this process),
    :meth:`load`, :meth:`on_ray` (shards in Ray actors) or :meth:`from_postgres`.
    Everything that can be asked of one index can be asked of it, with equal
    answers to the last bit; external ids and labels stay here, shards know keys.

    Notes
    -----
    Threshold sharing over shards follows section 7 of the method's sheet; the
    bound of a shard is its box on the sphere, the extremes of its attributes
    and the words it has.
    """

    def __init__(self, store: ShardStore, state: IndexState) -> None:
        super().__init__(store, state)  # type: ignore[arg-type]
        self._shards = store

    # --- making -------------------------------------------------------------------------------

    @classmethod
    def build(cls, lon: Any, lat: Any, *, shards: int = 4, **options: Any) -> ShardedIndex:
        """Build an index of ``shards`` shards in this process.

        Parameters
        ----------
        lon, lat, **options
            As :meth:`SpatialKeywordIndex.build`.
        shards : int
            Number of shards, of about equal size; more than places leaves some empty.
        """
        check_positions(lon, lat)
        whole = SpatialKeywordIndex.build(lon, lat, **options)
        try:
            return cls.of_index(whole, shards)
        finally:
            whole.close()

    @classmethod
    def of_index(cls, index: SpatialKeywordIndex, shards: int) -> ShardedIndex:
        """Part the places of an index into shards; the index stays as it is."""
        return cls.of_columns(
            index.columns(),
            index.attribute_specs,
            shards,
            state=index._state,
        )

    @classmethod
    def of_columns(
        cls,
        columns: PlaceColumns,
        specs: Sequence[AttributeSpec],
        shards: int,
        *,
        state: IndexState | None = None,
    ) -> ShardedIndex:
        """Build shards in this process from columns; by default ids are keys."""
        state = state or IndexState()
        cuts = hilbert_cuts(columns.lon, columns.lat, shards)
        hosts = [
            ShardHost.of_columns(part, specs, state.config) for part in part_columns(columns, cuts)
        ]
        store = ShardStore(LocalTransport(hosts), cuts, specs, [host.outline() for host in hosts])
        return cls(store, state)

    @classmethod
    def on_ray(
        cls,
        source: str | os.PathLike[str] | SpatialKeywordIndex,
        *,
        shards: int | None = None,
        timeout_s: float = 60.0,
        actor_options: Mapping[str, Any] | None = None,
    ) -> ShardedIndex:
        """Put one Ray actor behind each shard; see :mod:`shoal.spatial.ray_shards`."""
        from shoal.spatial.ray_shards import start_on_ray  # noqa: PLC0415 - Ray is optional

        return start_on_ray(
            cls, source, shards=shards, timeout_s=timeout_s, actor_options=actor_options or {}
        )

    @classmethod
    def from_postgres(
        cls, source: PlaceSource, shards: int, *, config: SpatialKeywordIndexConfig | None = None
    ) -> tuple[ShardedIndex, int]:
        """Build every shard from its range of the source; return the number it is caught up to.

        One range is read at a time; changes that come between two of them are
        taken in at the end.
        """
        from shoal.spatial.postgres_shards import sharded_from_source  # noqa: PLC0415 - optional

        return sharded_from_source(cls, source, shards, config)

    # --- asking -------------------------------------------------------------------------------

    def query(
        self,
        point: Sequence[float] | None = None,
        keywords: str | Sequence[str] = (),
        k: int = 10,
        *,
        partial: bool = False,
        **options: Any,
    ) -> ShardedTopK:
        """Return the best ``k`` places, as :meth:`SpatialKeywordIndex.query`.

        Parameters
        ----------
        partial : bool
            Answer without the shards that cannot be reached, and say which in
            ``missing_shards``. Word weights then come from the others.

        Raises
        ------
        UnavailableError
            A shard that may hold an answer cannot be reached.
        """
        query = self.replace(Query(point=point, keywords=keywords, k=k), **options)
        return self.ask(query, partial=partial)

    def ask(self, query: Query, *, partial: bool = False) -> ShardedTopK:
        """Return the best places of a query."""
        for _ in range(_RETRIES - 1):
            try:
                return self._answer(query, self._view(partial))
            except ConflictError:
                pass  # so many changes came meanwhile that the shards no longer have that state
        return self._answer(query, self._view(partial))

    def query_many(
        self,
        points: Any,
        keywords: Sequence[Sequence[str]],
        k: int = 10,
        *,
        threads: int | None = None,
        **options: Any,
    ) -> Batch:
        """Answer many queries that differ in point and keywords alone.

        The arguments are those of :meth:`SpatialKeywordIndex.query_many`. In
        every round a shard gets all questions for it in one message and the
        shards work side by side, so ``threads`` is not used.
        """
        corners = np.asarray(points, dtype=np.float64)
        if corners.ndim != 2 or corners.shape[1] != 2:
            raise InputError("points are (lon, lat) rows", field="points", value=corners.shape)
        lon, lat = check_positions(corners[:, 0], corners[:, 1])
        if len(keywords) != len(lon):
            raise InputError(f"{len(keywords)} entries of keywords for {len(lon)} points")
        form = self.replace(Query(k=k), **options)
        words = [analyze_query(entry, self.config.analyzer) for entry in keywords]
        snapshot = self.snapshot()
        snapshot.document_frequency(sorted({word for entry in words for word in entry}))
        k = min(k, max(1, snapshot.n_live))
        planned = [
            self.plan(replace(form, point=(x, y), keywords=entry), snapshot)
            for x, y, entry in zip(lon.tolist(), lat.tolist(), words, strict=True)
        ]
        wanted = [i for i, one in enumerate(planned) if not one.empty]
        plans: list[QueryPlan] = [replace(planned[i].plan, k=k) for i in wanted]
        scores, kms = np.full((len(lon), k), np.nan), np.full((len(lon), k), np.nan)
        counts = np.zeros(len(lon), dtype=np.int64)
        ids: list[list[Any]] = [[] for _ in range(len(lon))]
        for i, found in zip(wanted, snapshot.search_many(plans), strict=True):
            count = counts[i] = len(found.keys)
            scores[i, :count], kms[i, :count] = found.scores, found.kms
            ids[i] = self.ids.names(found.keys)
        return Batch(ids, scores, kms, counts)

    def plan(self, query: Query, snapshot: Any = None) -> Planned:
        """Check a query and turn it into flat arrays."""
        if query.user is not None or query.at is not None:
            raise InputError(
                "a sharded index has no time and social parts",
                field="user" if query.user is not None else "at",
                hint="ask one index for them",
            )
        return super().plan(query, snapshot or self.snapshot())

    def snapshot(self) -> Any:
        """Return all shards as they are after the last whole change."""
        return self._shards.snapshot()

    def _view(self, partial: bool) -> ShardedSnapshot:
        now = self._shards.snapshot()
        if not partial:
            return now
        return ShardedSnapshot(now.transport, now.epoch, now.outlines, now.specs, partial=True)

    def _answer(self, query: Query, snapshot: ShardedSnapshot) -> ShardedTopK:
        stats = SearchStats()
        stats.more.update(shards=len(snapshot.outlines), shards_asked=0)
        answers, planned = self.search(query, snapshot=snapshot, stats=stats)  # type: ignore[arg-type]
        keys = answers.keys[: len(answers)].copy()
        components = None
        if query.explain:
            parts, _, _ = snapshot.parts(planned.plan, keys)
            components = {
                part: parts[:, j] for j, part in enumerate(PARTS) if planned.plan.weights[j] > 0
            }
        return ShardedTopK(
            ids=self.ids.names(keys),
            scores=answers.scores[: len(answers)],
            kms=answers.kms[: len(answers)],
            components=components,
            stats=stats,
            unknown_keywords=planned.unknown,
            labels=self.labels.get(keys) if self.labels else None,
            missing_shards=tuple(sorted(snapshot.missing)),
        )

    # --- changing and keeping -----------------------------------------------------------------

    @property
    def n_shards(self) -> int:
        """Return the number of shards."""
        return len(self._shards.snapshot().outlines)

    @property
    def cuts(self) -> npt.NDArray[np.uint64]:
        """Return where on the Hilbert curve one shard ends and the next begins."""
        return self._shards.cuts

    @property
    def shard_sizes(self) -> list[int]:
        """Return the number of places of each shard."""
        return [outline.n_live for outline in self._shards.snapshot().outlines]

    @property
    def transport(self) -> Transport:
        """Return how the shards are reached."""
        return self._shards.snapshot().transport

    def rebalance(self, shards: int) -> None:
        """Part the places anew into ``shards`` even ranges; queries go on meanwhile, writes wait.

        All places pass through this process.
        """
        with self._shards.lock:
            now = self._shards.snapshot()
            columns = now.columns()
            cuts = hilbert_cuts(columns.lon, columns.lat, shards)
            parts = part_columns(columns, cuts)
            transport, outlines = now.transport.rebuilt(
                parts, self._shards.specs, self.config, now.epoch + 1
            )
            self._shards.replace(transport, cuts, outlines, epoch=now.epoch + 1)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write all shards and the names of the places to a folder, whole or not at all.

        Shards behind actors write their own files, so the folder must be one
        that all of them reach by this path.
        """
        with self._shards.lock:
            write_folder(Path(folder), self._shards, self._state)

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], *, mmap: bool = True, verify: bool = False
    ) -> ShardedIndex:
        """Read a saved index with its shards in this process, as one index is read.

        Raises
        ------
        NotFoundError
            There is no sharded index.
        IntegrityError
            A file is cut short or altered.
        """
        kept = read_folder(Path(folder))
        hosts = [
            ShardHost.of_folder(path, outline, mmap=mmap, verify=verify)
            for path, outline in zip(kept.shards, kept.outlines, strict=True)
        ]
        store = ShardStore(LocalTransport(hosts), kept.cuts, kept.specs, kept.outlines)
        return cls(store, kept.state)
