"""The index: exact search over space, words, attributes, time and friends."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError, NotFoundError
from shoal.spatial.columns import AttributeSpec, PlaceColumns, SearchStats
from shoal.spatial.config import SpatialKeywordIndexConfig
from shoal.spatial.explaining import explain_place
from shoal.spatial.ids import Ids
from shoal.spatial.ingest import make_columns, make_specs
from shoal.spatial.labels import Labels
from shoal.spatial.layouts import LayoutBuilder, load_layout
from shoal.spatial.packed import PackedLayout
from shoal.spatial.query import MATCH_ALL, MATCH_ANY, Answers
from shoal.spatial.request import Planned, Query, make_plan
from shoal.spatial.results import Explanation, TopK
from shoal.spatial.scoring import PARTS, Decay, Weights
from shoal.spatial.searcher import Batch, Searcher
from shoal.spatial.segments import SegmentStore, Snapshot
from shoal.spatial.state import IndexState

__all__ = ["SpatialKeywordIndex"]


class SpatialKeywordIndex:
    """Exact top-k search over places.

    Make one with :meth:`build`, :meth:`load` or :meth:`open`. Any number of
    threads may search while one writes: a search sees the index as it was when
    it began.

    The score of a place is a blend of parts in [0, 1], weighted by
    :class:`~shoal.spatial.Weights`; answers are ordered by score, then by
    nearness, then by the smaller id (text ids: the one that came first).

    Notes
    -----
    ASKQ, the query of QDR-Tree (Zang et al., DEXA 2018), is ``prefer`` with
    weights on space and attributes; STSKQ, the query of NETR-Tree (Huang et
    al., arXiv 1908.09520), is ``user`` and ``at``. The papers' exact scoring
    forms are not public: both are answered as defined here.
    """

    def __init__(self, store: SegmentStore, state: IndexState) -> None:
        self._store = store
        self._state = state
        self._writing = threading.RLock()

    @classmethod
    def build(
        cls,
        lon: Any,
        lat: Any,
        *,
        keywords: Any = None,
        attributes: Mapping[str, Any] | None = None,
        ids: Any = None,
        labels: Sequence[str | None] | None = None,
        attribute_specs: Sequence[AttributeSpec] = (),
        missing: Literal["worst", "neutral", "exclude"] = "worst",
        layout: Literal["packed", "quad_cluster", "netr"] | None = None,
        analyzer: Literal["words", "exact"] | None = None,
        config: SpatialKeywordIndexConfig | None = None,
    ) -> SpatialKeywordIndex:
        """Build an index of ``n`` places in memory.

        Parameters
        ----------
        lon, lat : array of float [n]
            Positions, degrees.
        keywords : sequence of str or of sequences of str, or Arrow list array, optional
            Words of each place: a text, which the analyzer splits, or keywords.
        attributes : mapping of str to array of float [n], optional
            Numeric attributes, NaN where missing.
        ids : array of int or sequence of str, optional
            External ids, each once; by default 0 to n - 1.
        labels : sequence of str, optional
            One text a place, handed back with the answers.
        attribute_specs : sequence of AttributeSpec
            Ranges and policies of attributes; by default the range of the data.
        missing : {"worst", "neutral", "exclude"}
            Policy of attributes without a specification.
        layout, analyzer : str, optional
            As in :class:`SpatialKeywordIndexConfig`, which they override.
        config : SpatialKeywordIndexConfig, optional
            All other options.

        Raises
        ------
        InputError
            A position, word, attribute or id is wrong; the row is named.
        """
        chosen = {
            name: value
            for name, value in (("layout", layout), ("analyzer", analyzer))
            if value is not None
        }
        config = SpatialKeywordIndexConfig.model_validate(
            (config.model_dump() if config else {}) | chosen
        )
        specs = make_specs(attributes or {}, attribute_specs, missing=missing)
        mapped, keys = Ids.of(ids, len(lon))
        _refuse_duplicates(keys, ids)
        columns = make_columns(
            lon,
            lat,
            keys=keys,
            keywords=keywords,
            attributes=attributes,
            specs=specs,
            analyzer=config.analyzer,
        )
        store = SegmentStore(
            specs,
            LayoutBuilder(config, specs),
            load_layout,
            memtable_rows=config.memtable_rows,
            fan_in=config.fan_in,
        )
        if len(columns):
            store.upsert(columns)
            store.flush()
        made = None if labels is None else Labels.of(keys, labels)
        return cls(store, IndexState(config, mapped, made))

    # --- asking -----------------------------------------------------------------------------

    def query(
        self,
        point: Sequence[float] | None = None,
        keywords: str | Sequence[str] = (),
        k: int = 10,
        *,
        match: Literal["all", "any", "ranked"] = "all",
        weights: Weights | Mapping[str, float] | None = None,
        prefer: Mapping[str, Any] | None = None,
        where: Mapping[str, Any] | None = None,
        decay: Decay | None = None,
        within: Any = None,
        max_km: float | None = None,
        without: str | Sequence[str] = (),
        text: Literal["coverage", "bm25"] = "coverage",
        user: Any = None,
        at: Any = None,
        social: Literal["embedding", "friends"] = "embedding",
        explain: bool = False,
    ) -> TopK:
        """Return the best ``k`` places; the arguments are those of :class:`~.request.Query`.

        Raises
        ------
        InputError
            Anything about the query is wrong; the field is named.
        """
        return self.ask(
            Query(
                point=point,
                keywords=keywords,
                k=k,
                match=match,
                weights=weights,
                prefer=prefer,
                where=where,
                decay=decay,
                within=within,
                max_km=max_km,
                without=without,
                text=text,
                user=user,
                at=at,
                social=social,
                explain=explain,
            )
        )

    def ask(self, query: Query) -> TopK:
        """Return the best places of a query."""
        snapshot = self.snapshot()
        stats = SearchStats()
        answers, planned = self.search(query, snapshot=snapshot, stats=stats)
        keys = answers.keys[: len(answers)]
        components = None
        if query.explain:
            parts, _, _ = snapshot.parts(planned.plan, keys)
            components = {
                part: parts[:, j] for j, part in enumerate(PARTS) if planned.plan.weights[j] > 0
            }
        return TopK(
            ids=self.ids.names(keys),
            scores=answers.scores[: len(answers)],
            kms=answers.kms[: len(answers)],
            components=components,
            stats=stats,
            unknown_keywords=planned.unknown,
            labels=self.labels.get(keys) if self.labels else None,
        )

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

        Parameters
        ----------
        points : array of float [q, 2]
            (lon, lat) of each query, degrees.
        keywords : sequence of q sequences of str
            Keywords of each query.
        k : int
            Answers wanted of each.
        threads : int, optional
            By default one for each core that this process may use.
        **options
            As :meth:`query`, the same for all.
        """
        corners = np.asarray(points, dtype=np.float64)
        if corners.ndim != 2 or corners.shape[1] != 2:
            raise InputError("points are (lon, lat) rows", field="points", value=corners.shape)
        searcher = self.searcher(k=k, **options)
        return searcher.many(corners[:, 0], corners[:, 1], keywords, threads=threads)

    def searcher(self, *, k: int = 10, **options: Any) -> Searcher:
        """Return a prepared query, for asking the same form again and again.

        Parameters
        ----------
        k : int
            Answers wanted.
        **options
            As :meth:`query`, without ``point`` and ``keywords``.
        """
        query = self.replace(Query(k=k, point=(0.0, 0.0)), **options)
        self.plan(query)  # so that a wrong option is refused here, not at the first call
        return Searcher(self, query)

    def iter_query(
        self,
        point: Sequence[float] | None = None,
        keywords: str | Sequence[str] = (),
        **options: Any,
    ) -> Iterator[Any]:
        """Yield the places of a query one after the other, the best first, until none is left.

        The index may change meanwhile: what is yielded is the ranking of the
        moment of the first. The search is resumed with four times as many
        answers whenever they run out, so taking m places costs at most a small
        multiple of one query for m.
        """
        snapshot = self.snapshot()
        query = self.replace(Query(point=point, keywords=keywords), **options)
        seen, k = 0, 16
        while True:
            query = dataclasses.replace(query, k=k)
            answers, _ = self.search(query, snapshot=snapshot)
            found = TopK(
                ids=self.ids.names(answers.keys[: len(answers)]),
                scores=answers.scores[: len(answers)],
                kms=answers.kms[: len(answers)],
            )
            for i in range(seen, len(found)):
                yield found[i]
            if len(found) < k:
                return
            seen, k = k, 4 * k

    def explain(self, query: Query, id: int | str) -> Explanation:
        """Say why a place is, or is not, among the best ``query.k``.

        Raises
        ------
        NotFoundError
            There is no such place.
        """
        snapshot = self.snapshot()
        key = self.ids.get(id, "place")
        answers, planned = self.search(query, snapshot=snapshot)
        try:
            return explain_place(snapshot, planned, answers, key=key, name=id, k=query.k)
        except NotFoundError:
            raise NotFoundError(f"no such place: {id!r}") from None

    def skyline(
        self,
        prefer: Mapping[str, Literal["min", "max"]],
        *,
        point: Sequence[float] | None = None,
        keywords: str | Sequence[str] = (),
        limit: int = 100_000,
        **options: Any,
    ) -> TopK:
        """Return the places that no other beats in every preference (and in distance).

        Parameters
        ----------
        prefer : mapping
            Attribute to ``"min"`` or ``"max"``.
        point : (lon, lat), optional
            With it, distance is one more preference.
        keywords, **options
            As :meth:`query`: which places take part.
        limit : int
            Most places that are compared.

        Raises
        ------
        InputError
            More than ``limit`` places qualify.
        """
        from shoal.spatial.skyline import skyline  # noqa: PLC0415 - only where used

        query = self.replace(
            Query(point=point, keywords=keywords, k=limit, prefer=dict(prefer)), **options
        )
        snapshot = self.snapshot()
        answers, planned = self.search(query, snapshot=snapshot)
        if len(answers) == limit and limit < snapshot.n_live:
            raise InputError(
                f"{limit:,} places qualify, or more",
                field="limit",
                hint="narrow the query, or raise limit",
            )
        keys = answers.keys[: len(answers)].copy()
        costs = []
        for name, wish in prefer.items():
            single = self.replace(query, prefer={name: wish}, weights=Weights(attributes=1.0))
            parts, _, _ = snapshot.parts(self.plan(single, snapshot).plan, keys)
            costs.append(1.0 - parts[:, 2])
        if point is not None:
            costs.append(answers.kms[: len(answers)])
        kept = np.sort(skyline(np.stack(costs, axis=1))) if len(keys) else np.empty(0, np.int64)
        return TopK(
            ids=self.ids.names(keys[kept]),
            scores=answers.scores[kept],
            kms=answers.kms[kept],
            unknown_keywords=planned.unknown,
            labels=self.labels.get(keys[kept]) if self.labels else None,
        )

    # --- the steps of a search, for those who compose them -------------------------------------

    def snapshot(self) -> Snapshot:
        """Return the index as it is now; searching it is not changed by later writes."""
        return self._store.snapshot()

    def plan(self, query: Query, snapshot: Snapshot | None = None) -> Planned:
        """Check a query and turn it into flat arrays for a snapshot."""
        return make_plan(
            query,
            self.attribute_specs,
            snapshot or self.snapshot(),
            analyzer=self.config.analyzer,
        )

    def search(
        self,
        query: Query,
        *,
        snapshot: Snapshot | None = None,
        stats: SearchStats | None = None,
    ) -> tuple[Answers, Planned]:
        """Return a query's answers by key, and its plan."""
        snapshot = snapshot or self.snapshot()
        planned = self.plan(query, snapshot)
        plan = planned.plan
        # No more places than there are: the buffer of a huge k would be empty memory.
        plan = dataclasses.replace(plan, k=max(1, min(plan.k, snapshot.n_live)))
        answers = Answers(plan.k)
        if not planned.empty:
            snapshot.search(plan, answers, stats)
        return answers, planned

    def fast_path(self, query: Query) -> Any:
        """Return the layout's own prepared search where it gives the same answers, or None."""
        snapshot = self.snapshot()
        planned = self.plan(dataclasses.replace(query, keywords=()), snapshot)
        single = snapshot.single()
        weights = planned.plan.weights
        if not isinstance(single, PackedLayout) or weights[3] > 0 or weights[4] > 0:
            return None
        match = MATCH_ALL if query.match == "all" else MATCH_ANY
        weights = self._searcher_weights(query)
        plan = dataclasses.replace(
            planned.plan, match=match, weights=weights, k=min(query.k, max(1, snapshot.n_live))
        )
        return single.searcher(plan)

    def _searcher_weights(self, query: Query) -> npt.NDArray[np.float64]:
        # Planned without keywords, a ranked form would lose its text part.
        if query.weights is not None:
            return Weights.of(query.weights).shares()
        return Weights(
            space=1.0,
            text=1.0 if query.match == "ranked" else 0.0,
            attributes=1.0 if query.prefer else 0.0,
        ).shares()

    @staticmethod
    def replace(query: Query, **changes: Any) -> Query:
        """Return a query with some fields changed, naming one that does not exist."""
        names = {item.name for item in dataclasses.fields(Query)}
        unknown = set(changes) - names
        if unknown:
            raise InputError(
                f"a query has no such option; it has {', '.join(sorted(names))}",
                field=sorted(unknown)[0],
            )
        return dataclasses.replace(query, **changes)

    # --- changing -----------------------------------------------------------------------------

    def upsert(
        self,
        lon: Any,
        lat: Any,
        *,
        ids: Any,
        keywords: Any = None,
        attributes: Mapping[str, Any] | None = None,
        labels: Sequence[str | None] | None = None,
    ) -> None:
        """Add places, or replace those whose id is already there, all at once.

        Parameters
        ----------
        lon, lat, keywords, attributes, ids, labels
            As :meth:`build`. An attribute that is not given is missing.

        Raises
        ------
        InputError
            A row is wrong, or an id is there twice; nothing is changed then.
        """
        probe = make_columns(
            lon,
            lat,
            keys=np.arange(len(lon), dtype=np.int64),
            keywords=keywords,
            attributes=attributes,
            specs=self.attribute_specs,
            analyzer=self.config.analyzer,
        )
        if len(ids) != len(probe):
            raise InputError(f"{len(ids)} ids for {len(probe)} places", field="ids")
        if labels is not None and len(labels) != len(probe):
            raise InputError(f"{len(labels)} labels for {len(probe)} places", field="labels")
        with self._writing:
            _refuse_duplicates(Ids.of(ids)[1], ids)
            keys = self.ids.add(ids)
            note = self._state.note(keys, labels)
            if note:
                self._state.apply("upsert", note)
            self._store.upsert(dataclasses.replace(probe, keys=keys), note=note)

    def delete(self, ids: Any) -> int:
        """Delete places; return how many there were (an unknown id is no error)."""
        keys = self.ids.find(ids)
        return self._store.delete(keys if self.ids.kind == "int" else keys[keys >= 0])

    def flush(self) -> None:
        """Turn the recent places into a segment."""
        self._store.flush()

    def compact(self) -> None:
        """Merge everything into one segment without deleted places."""
        self._store.compact()

    def close(self) -> None:
        """Finish background work and release files."""
        self._store.close()

    def __enter__(self) -> SpatialKeywordIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- keeping ------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the index to a folder, whole or not at all; an index there is replaced.

        Raises
        ------
        InputError
            The folder holds something else.
        ConflictError
            Another process writes there.
        """
        config, arrays = self._state.state()
        self._store.save(folder, config, arrays)

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], *, mmap: bool = True, verify: bool = False
    ) -> SpatialKeywordIndex:
        """Read an index from a folder; later changes stay in memory.

        Parameters
        ----------
        folder : path-like
            What :meth:`save` wrote.
        mmap : bool
            Map the arrays instead of reading them: opening takes no time, and
            processes on one machine share the memory.
        verify : bool
            Check every byte against its checksum; sizes and headers always are.

        Raises
        ------
        NotFoundError, InputError
            There is no such folder, or it is no index.
        IntegrityError
            A file is cut short or altered; it is named.
        """
        state, builder = IndexState(), LayoutBuilder()
        store = SegmentStore.load(
            folder, builder, load_layout, mmap=mmap, verify=verify, companion=state
        )
        return cls._made(store, state, builder)

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        read_only: bool = False,
        durability: Literal["fsync", "os"] = "fsync",
        mmap: bool = True,
        verify: bool = False,
    ) -> SpatialKeywordIndex:
        """Open an index in its folder: every acknowledged change survives the process.

        Parameters
        ----------
        folder : path-like
            What :meth:`save` wrote.
        read_only : bool
            Read beside the one process that writes; :meth:`refresh` goes to its
            newest state.
        durability : {"fsync", "os"}
            A change is acknowledged when the disk has it, or when the operating
            system has it (it then survives the process, but not a power cut).
        mmap, verify : bool
            As :meth:`load`.

        Raises
        ------
        ConflictError
            Another process writes there.
        NotFoundError, InputError, IntegrityError
            As :meth:`load`.
        """
        state, builder = IndexState(), LayoutBuilder()
        store = SegmentStore.open(
            folder,
            builder,
            load_layout,
            companion=state,
            durability=durability,
            read_only=read_only,
            mmap=mmap,
            verify=verify,
        )
        return cls._made(store, state, builder)

    @classmethod
    def _made(
        cls, store: SegmentStore, state: IndexState, builder: LayoutBuilder
    ) -> SpatialKeywordIndex:
        builder.config, builder.specs = state.config, tuple(store.specs)
        store.memtable_rows, store.fan_in = state.config.memtable_rows, state.config.fan_in
        return cls(store, state)

    def refresh(self) -> bool:
        """Go to the newest state that the folder's writer has written; say if there was any."""
        if self._store.durable is None:
            raise InputError("only an index that was opened on a folder is refreshed")
        return self._store.durable.refresh()

    # --- telling ------------------------------------------------------------------------------

    @property
    def config(self) -> SpatialKeywordIndexConfig:
        """Return the options of the index."""
        return self._state.config

    @property
    def ids(self) -> Ids:
        """Return the external ids."""
        return self._state.ids

    @property
    def labels(self) -> Labels:
        """Return the labels."""
        return self._state.labels

    def __len__(self) -> int:
        return self.snapshot().n_live

    @property
    def n_live(self) -> int:
        """Return the number of places."""
        return self.snapshot().n_live

    @property
    def attribute_specs(self) -> tuple[AttributeSpec, ...]:
        """Return the attributes, in their order in every array."""
        return tuple(self._store.specs)

    def positions(self, ids: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return (lon, lat) of places by id, degrees; NaN where there is no such place."""
        return self.snapshot().positions(self.ids.find(ids))

    def columns(self) -> PlaceColumns:
        """Return all places as columns."""
        return self.snapshot().columns()


def _refuse_duplicates(keys: npt.NDArray[np.int64], ids: Any) -> None:
    unique, first = np.unique(keys, return_index=True)
    if len(unique) == len(keys):
        return
    again = np.ones(len(keys), dtype=bool)
    again[first] = False
    row = int(np.argmax(again))
    raise InputError(
        "an id is there twice", field="ids", value=None if ids is None else ids[row], row=row + 1
    )
