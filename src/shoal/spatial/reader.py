"""Reading an index: queries, explanations, and the steps of a search for those who compose them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError, NotFoundError
from shoal.spatial.columns import AttributeSpec, PlaceColumns, SearchStats
from shoal.spatial.config import SpatialKeywordIndexConfig
from shoal.spatial.explaining import explain_place
from shoal.spatial.ids import Ids
from shoal.spatial.labels import Labels
from shoal.spatial.livesearch import LiveSearcher, can_follow
from shoal.spatial.packed_searcher import PackedSearcher
from shoal.spatial.people import People
from shoal.spatial.query import MATCH_ALL, MATCH_ANY, Answers
from shoal.spatial.request import Planned, Query, make_plan
from shoal.spatial.results import Explanation, TopK
from shoal.spatial.scoring import PARTS, Decay, Weights
from shoal.spatial.searcher import Batch, Searcher
from shoal.spatial.segments import SegmentStore, Snapshot
from shoal.spatial.skyline import skyline
from shoal.spatial.state import IndexState

__all__ = ["IndexReader"]


class IndexReader:
    """All of an index that only reads; :class:`SpatialKeywordIndex` is the whole."""

    def __init__(self, store: SegmentStore, state: IndexState) -> None:
        self._store = store
        self._state = state

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
            neutral_user=planned.plan.social is not None and not planned.plan.social.known,
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

    def snapshot_source(self) -> Callable[[], Snapshot]:
        """Return what :meth:`snapshot` calls, for those who call it often."""
        return self._store.snapshot

    def plan(self, query: Query, snapshot: Snapshot | None = None) -> Planned:
        """Check a query and turn it into flat arrays for a snapshot."""
        people = self._state.people
        if people is None and (query.at is not None or query.user is not None):
            raise InputError(
                "the index has no check-ins and no users",
                field="at" if query.at is not None else "user",
                hint="build it with checkins=, and social= for relations",
            )
        return make_plan(
            query,
            self.attribute_specs,
            snapshot or self.snapshot(),
            analyzer=self.config.analyzer,
            slot=people.slot(query.at) if people else -1,
            social=people.relations(query.user, query.social) if people else None,
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

    def prepared(self, query: Query, snapshot: Snapshot) -> LiveSearcher | None:
        """Return a search of a snapshot that waits for point and words, where there is one."""
        planned = self.plan(dataclasses.replace(query, keywords=()), snapshot)
        match = MATCH_ALL if query.match == "all" else MATCH_ANY
        plan = dataclasses.replace(
            planned.plan,
            match=match,
            weights=self._searcher_weights(query),
            k=min(query.k, max(1, snapshot.n_live)),
        )
        visited = planned.plan.weights[3] > 0 or planned.plan.weights[4] > 0
        if visited or not can_follow(snapshot, plan):
            return None
        return LiveSearcher(snapshot, plan)

    def fast_path(self, query: Query) -> PackedSearcher | None:
        """Return the layout's own prepared search where it gives the same answers, or None."""
        found = self.prepared(query, self.snapshot())
        return found.packed if found is not None and found.pristine else None

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

    def friends_at(self, user: Any, place: Any) -> list[Any]:
        """Return the user's friends who were at a place.

        This names people: it is never part of an answer, and whether to show it
        is for the caller to decide.

        Raises
        ------
        NotFoundError
            There is no such user or place.
        """
        return self._people().friends_at(user, self.ids.get(place, "place"))

    def _people(self) -> People:
        if self._state.people is None:
            raise InputError("the index has no check-ins", hint="build it with checkins=")
        return self._state.people

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

    @property
    def people(self) -> People | None:
        """Return the users, their check-ins and relations; None of an index without."""
        return self._state.people

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
