"""What a shard publishes about its places, and the best that any of them can be for a query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.spatial import _score
from shoal.spatial.columns import AttributeSpec, PlaceColumns
from shoal.spatial.query import MATCH_ALL, MATCH_ANY, QueryPlan

__all__ = ["Outline", "ShardBounds"]

#: Widening of a box, in units of the sphere's radius: rounding of the unit vectors.
_WIDEN = 1e-12
_NO_BOX = (np.inf, np.inf, np.inf, -np.inf, -np.inf, -np.inf)


@dataclass(frozen=True, slots=True)
class Outline:
    """Counts and extremes of the places of one shard.

    Parameters
    ----------
    n_live, n_words : int
        Places, and the sum of their numbers of words.
    box : float64 [6]
        Minima, then maxima, of the places' points on the unit sphere.
    low, high : float64 [d]
        Extremes of each attribute (``inf`` and ``-inf`` where no place has it).
    missing : bool [d]
        Some place lacks the attribute.
    """

    n_live: int
    n_words: int
    box: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    missing: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, columns: PlaceColumns) -> Outline:
        """Return the outline of places."""
        d, box = len(columns.values), np.array(_NO_BOX)
        low, high = np.full(d, np.inf), np.full(d, -np.inf)
        missing: npt.NDArray[np.bool_] = np.zeros(d, dtype=np.bool_)
        if len(columns):
            points = unit_vectors(columns.lon, columns.lat)
            box = np.concatenate([points.min(axis=1) - _WIDEN, points.max(axis=1) + _WIDEN])
            gone = np.isnan(columns.values)
            missing = np.asarray(gone.any(axis=1))
            low = np.where(gone, np.inf, columns.values).min(axis=1)
            high = np.where(gone, -np.inf, columns.values).max(axis=1)
        return cls(len(columns), int(columns.word_ptr[-1]), box, low, high, missing)

    def with_counts(self, n_live: int, n_words: int) -> Outline:
        """Return the outline with other counts (places were deleted: extremes stay valid)."""
        return Outline(n_live, n_words, self.box, self.low, self.high, self.missing)

    def joined(self, other: Outline) -> Outline:
        """Return an outline of the places of both."""
        return Outline(
            self.n_live + other.n_live,
            self.n_words + other.n_words,
            np.concatenate(
                [np.minimum(self.box[:3], other.box[:3]), np.maximum(self.box[3:], other.box[3:])]
            ),
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            self.missing | other.missing,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the outline as plain values; floats as hexadecimal texts, which are exact."""
        return {
            "places": self.n_live,
            "words": self.n_words,
            "box": [value.hex() for value in self.box.tolist()],
            "low": [value.hex() for value in self.low.tolist()],
            "high": [value.hex() for value in self.high.tolist()],
            "missing": self.missing.tolist(),
        }

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Outline:
        """Return the outline that :meth:`to_json` came from."""
        box, low, high = (
            np.array([float.fromhex(value) for value in plain[name]], dtype=np.float64)
            for name in ("box", "low", "high")
        )
        missing = np.array(plain["missing"], dtype=np.bool_)
        return cls(int(plain["places"]), int(plain["words"]), box, low, high, missing)


class ShardBounds:
    """The outlines of all shards as arrays, so that one query bounds them all at once.

    Parameters
    ----------
    outlines : sequence of Outline
        One a shard.
    specs : sequence of AttributeSpec
        The attributes.
    """

    def __init__(self, outlines: Sequence[Outline], specs: Sequence[AttributeSpec]) -> None:
        self.specs = specs
        self.n_live = np.array([outline.n_live for outline in outlines], dtype=np.int64)
        self.box = np.stack([outline.box for outline in outlines], axis=1)
        self.low = np.stack([outline.low for outline in outlines], axis=1)
        self.high = np.stack([outline.high for outline in outlines], axis=1)
        self.missing = np.stack([outline.missing for outline in outlines], axis=1)

    def upper(
        self, plan: QueryPlan, frequency: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Bound what each shard can hold for a query.

        Parameters
        ----------
        plan : QueryPlan
            The query.
        frequency : int64 [len(plan.words), shards]
            In how many places of each shard each of its words occurs.

        Returns
        -------
        score, km : float64 [shards]
            No place of the shard scores higher, none is nearer.
        possible : bool [shards]
            False: the shard has no answer at all.

        Notes
        -----
        The parts are blended in the order in which places are scored, and
        rounding is monotone, so the bound holds in float64 as it is. A slack of
        a part in 10^12 covers the decay (an exponential may be off by a bit),
        but not where the decay is 0 or 1: beyond a clipped decay places tie,
        and only with an exact bound can nearness decide between shards.
        """
        shards = len(self.n_live)
        possible = self.n_live > 0
        has = frequency > 0
        if plan.match == MATCH_ALL:
            possible &= has.all(axis=0)
        elif plan.match == MATCH_ANY:
            possible &= has.any(axis=0)
        parts = np.ones((5, shards))
        km = np.zeros(shards)
        if plan.has_point:
            chord2 = self._chord2(unit_vectors(plan.lon, plan.lat))
            km = np.array([_score.km_of_chord2.py_func(value) for value in chord2.tolist()])
            parts[0] = [
                _score.decay_of.py_func(plan.decay_kind, plan.decay_scale, value)
                for value in km.tolist()
            ]
            possible &= km <= plan.max_km
        if plan.region is not None and plan.region.cap_chord2 < 4.0:
            possible &= self._chord2(np.array(plan.region.cap)) <= plan.region.cap_chord2
        if len(plan.words):
            parts[1] = 0.0
            for j, weight in enumerate(plan.word_weights.tolist()):
                parts[1] += np.where(has[j], weight, 0.0)
        self._attributes(plan, parts, possible)
        self._filters(plan, possible)
        score = np.zeros(shards)
        for weight, part in zip(plan.weights.tolist(), parts, strict=True):
            if weight > 0:
                score += weight * part
        if plan.weights[0] > 0:
            falling = (parts[0] > 0.0) & (parts[0] < 1.0)
            score = np.where(falling, score * (1.0 + 1e-12) + 1e-15, score)
        return score, km, possible

    def _chord2(self, point: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the squared chord from a point of the unit sphere to each box."""
        at = point[:, None]
        step = np.maximum(0.0, np.maximum(self.box[:3] - at, at - self.box[3:]))
        step[:, self.n_live == 0] = 0.0
        chord2: npt.NDArray[np.float64] = np.minimum(4.0, (step * step).sum(axis=0))
        return chord2

    def _attributes(
        self, plan: QueryPlan, parts: npt.NDArray[np.float64], possible: npt.NDArray[np.bool_]
    ) -> None:
        if not len(plan.pref_column):
            return
        total = np.zeros(len(possible))
        for column, flip, weight in zip(
            plan.pref_column.tolist(), plan.pref_flip, plan.pref_weight.tolist(), strict=True
        ):
            spec = self.specs[column]
            best = self.high[column] if flip else self.low[column]
            cost = np.clip((best - spec.low) / spec.span, 0.0, 1.0)
            if flip:
                cost = 1.0 - cost  # without a value: high is -inf, so the cost is 1
            if spec.missing == "neutral":
                cost = np.where(self.missing[column], np.minimum(cost, 0.5), cost)
            elif spec.missing == "exclude":
                possible &= self.low[column] <= self.high[column]
            total += weight * cost
        parts[2] = 1.0 - total

    def _filters(self, plan: QueryPlan, possible: npt.NDArray[np.bool_]) -> None:
        filters = plan.filters
        if filters is None:
            return
        for group, column in enumerate(filters.column.tolist()):
            meets = np.zeros(len(possible), dtype=np.bool_)
            for i in range(filters.ptr[group], filters.ptr[group + 1]):
                meets |= (self.low[column] <= filters.high[i]) & (
                    self.high[column] >= filters.low[i]
                )
            possible &= meets


def unit_vectors(
    lon: float | npt.NDArray[np.float64], lat: float | npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return points of the unit sphere, float64 [3] or [3, n]."""
    phi, lam = np.radians(lat), np.radians(lon)
    return np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)])
