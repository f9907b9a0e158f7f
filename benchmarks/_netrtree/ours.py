"""Our engine: the packed layout with check-ins, and the faithful NETR-Tree where it is there."""

from __future__ import annotations

import importlib
import time
from typing import Any

import numpy as np

from _netrtree.data import MAX_KM, Ask, VisitedPlaces
from shoal.spatial.columns import SearchStats
from shoal.spatial.packed import PackedLayout
from shoal.spatial.query import MATCH_ANY, MATCH_EVERYTHING, Answers, QueryPlan, SocialPlan
from shoal.spatial.visitconfig import VisitConfig
from shoal.spatial.visits import VisitStore


class Ours:
    """A layout and its check-ins; ``plan`` prepares a query, ``search`` is what is timed."""

    def __init__(
        self, name: str, places: VisitedPlaces, vectors: np.ndarray, store: VisitStore | None
    ) -> None:
        self.name = name
        start = time.process_time()
        if name == "packed":
            self.layout: Any = PackedLayout.build(places.columns, ())
        if store is None:
            store = VisitStore.build(
                places.columns.keys,
                user=places.user,
                place=places.columns.keys[places.place],
                slot=places.slot,
                user_vectors=vectors,
                category=places.category,
                config=VisitConfig(time_slots=places.slots),
            )
        self.store = store
        if name == "netr":
            self.layout = _netr(places)
        store.columns_of(self.layout)  # values and bounds of this layout, made at the first search
        self.build_s = time.process_time() - start

    def plan(self, ask: Ask, mix: tuple[float, ...]) -> QueryPlan:
        """Return the plan of a query."""
        space, text, at, social = mix
        return QueryPlan(
            k=ask.k,
            has_point=True,
            lon=ask.lon,
            lat=ask.lat,
            match=MATCH_ANY if ask.words else MATCH_EVERYTHING,
            words=ask.words,
            word_weights=np.array(ask.shares),
            weights=np.array([space, text, 0.0, at, social]),
            decay_scale=MAX_KM,
            slot=ask.slot,
            social=SocialPlan(vector=self.store.user_vector(ask.user)),
        )

    def search(self, plan: QueryPlan, stats: SearchStats | None = None) -> Answers:
        """Return the answers of a plan."""
        answers = Answers(plan.k)
        self.store.search(self.layout, plan, answers, None, stats)
        return answers


def netr_missing() -> str | None:
    """Return why the faithful layout cannot be measured, or None."""
    try:
        importlib.import_module("shoal.spatial.netrtree")
    except ModuleNotFoundError as error:
        if error.name != "shoal.spatial.netrtree":
            raise
        return "the layout netr is not part of this build"
    return None


def _netr(places: VisitedPlaces) -> Any:
    module = importlib.import_module("shoal.spatial.netrtree")
    return module.NetrLayout.build(places.columns, ())
