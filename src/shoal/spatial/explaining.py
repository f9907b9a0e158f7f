"""Why a place is, or is not, among the best: its parts, its words, and what keeps it out."""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

import numpy as np
import numpy.typing as npt

from shoal.spatial.query import MATCH_ALL, MATCH_ANY, MATCH_EVERYTHING, Answers, QueryPlan
from shoal.spatial.request import Planned
from shoal.spatial.results import Explanation
from shoal.spatial.scoring import PARTS

__all__ = ["Scores", "explain_place"]


class Scores(Protocol):
    """Whatever can say the parts of a place's score (a snapshot)."""

    def parts(
        self, plan: QueryPlan, keys: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Return (parts [m, 5], distance km [m], qualifies [m]) of keys."""
        ...


def explain_place(
    snapshot: Scores, planned: Planned, answers: Answers, *, key: int, name: int | str, k: int
) -> Explanation:
    """Explain one place of a snapshot against the answers of a query.

    Parameters
    ----------
    snapshot : Scores
        What was searched.
    planned : Planned
        The query's plan.
    answers : Answers
        The best of the query.
    key, name : int, int or str
        The place's key and its external id.
    k : int
        Answers that were asked for.

    Raises
    ------
    NotFoundError
        The snapshot has no such place.
    """
    plan, keys = planned.plan, np.array([key], dtype=np.int64)
    parts, km, _ = snapshot.parts(plan, keys)
    used = plan.weights > 0
    place = np.flatnonzero(answers.keys[: len(answers)] == key)
    rank = int(place[0]) + 1 if len(place) else None
    words = _words(snapshot, plan, keys)
    return Explanation(
        id=name,
        parts=dict(zip(PARTS, parts[0].tolist(), strict=True)),
        weights=planned.weights,
        score=float(parts[0, used] @ plan.weights[used]),
        km=float(km[0]),
        rank=rank,
        reasons=[] if rank else _reasons(snapshot, planned, keys, words),
        worst_score=float(answers.scores[len(answers) - 1]) if len(answers) == k else None,
        words=words,
    )


def _bare(plan: QueryPlan) -> QueryPlan:
    """Return the plan without anything that keeps places out, except missing attributes."""
    return dataclasses.replace(
        plan, match=MATCH_EVERYTHING, filters=None, region=None, without=(), max_km=math.inf
    )


def _words(snapshot: Scores, plan: QueryPlan, keys: npt.NDArray[np.int64]) -> dict[str, float]:
    """Return the text share of each of the query's words that the place has."""
    bare = dataclasses.replace(
        _bare(plan),
        pref_column=plan.pref_column[:0],
        pref_flip=plan.pref_flip[:0],
        pref_weight=plan.pref_weight[:0],
    )
    found = {}
    for word, share in zip(plan.words, plan.word_weights.tolist(), strict=True):
        one = dataclasses.replace(bare, match=MATCH_ALL, words=(word,), word_weights=np.ones(1))
        if snapshot.parts(one, keys)[2][0]:
            found[word] = share
    return found


def _reasons(
    snapshot: Scores, planned: Planned, keys: npt.NDArray[np.int64], words: dict[str, float]
) -> list[str]:
    plan, bare = planned.plan, _bare(planned.plan)

    def qualifies(with_these: QueryPlan) -> bool:
        return bool(snapshot.parts(with_these, keys)[2][0])

    reasons = []
    lacking = [word for word in (*plan.words, *planned.unknown) if word not in words]
    if plan.match == MATCH_ALL and lacking:
        reasons.append(f"it lacks the keyword {', '.join(map(repr, lacking))}")
    if plan.match == MATCH_ANY and not words:
        reasons.append("it has none of the keywords")
    if not qualifies(bare):
        reasons.append("a preferred attribute is missing, and such places are excluded")
        return reasons
    if not qualifies(dataclasses.replace(bare, max_km=plan.max_km)):
        reasons.append(f"it is farther away than {plan.max_km:g} km")
    if not qualifies(dataclasses.replace(bare, region=plan.region)):
        reasons.append("it lies outside the area")
    if not qualifies(dataclasses.replace(bare, filters=plan.filters)):
        reasons.append("it does not pass the conditions of where")
    if not qualifies(dataclasses.replace(bare, without=plan.without)):
        reasons.append("it has a word that was excluded")
    return reasons or ["others score higher, or as high and lie nearer"]
