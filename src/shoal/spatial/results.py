"""What a search returns: the best places, the parts of their scores, and why not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.spatial.columns import SearchStats

__all__ = ["Explanation", "Place", "TopK"]


@dataclass(frozen=True, slots=True)
class Place:
    """One answer.

    ``parts`` holds the parts of the score that were asked for, by name, each in
    [0, 1]; None unless the query asked to explain.
    """

    id: int | str
    score: float
    km: float
    label: str | None = None
    parts: dict[str, float] | None = None


@dataclass(frozen=True, slots=True)
class TopK:
    """The best places of a query, the best first.

    Parameters
    ----------
    ids : list of int or str
        External ids.
    scores : float64 [m]
        Scores in [0, 1], falling.
    kms : float64 [m]
        Distances, kilometres; 0 where the query had no point.
    components : dict of str to float64 [m], or None
        The parts of the scores, when asked to explain.
    stats : SearchStats
        What the search touched.
    unknown_keywords : tuple of str
        Keywords that no place has.
    neutral_user : bool
        The query's user is unknown or has no relations: the social part is the
        same for every place.
    labels : list of str or None
        Labels of the places, where the index has any.
    """

    ids: list[int] | list[str]
    scores: npt.NDArray[np.float64]
    kms: npt.NDArray[np.float64]
    components: dict[str, npt.NDArray[np.float64]] | None = None
    stats: SearchStats = field(default_factory=SearchStats)
    unknown_keywords: tuple[str, ...] = ()
    neutral_user: bool = False
    labels: Sequence[str | None] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Place]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> Place:
        components = self.components
        return Place(
            id=self.ids[i],
            score=float(self.scores[i]),
            km=float(self.kms[i]),
            label=self.labels[i] if self.labels is not None else None,
            parts=None
            if components is None
            else {part: float(values[i]) for part, values in components.items()},
        )


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a place is, or is not, among the best ``k`` of a query.

    Parameters
    ----------
    id : int or str
        The place.
    parts, weights : dict of str to float
        Every part of the score and what it counts for (sum 1).
    score, km : float
        The blended score, and the distance in kilometres.
    rank : int or None
        Place in the ranking, from 1; None when it is not among the best ``k``.
    reasons : list of str
        In words, what keeps it out: a keyword it lacks, a filter, an area, or
        the score it would need.
    worst_score : float or None
        Score of the last of the best ``k``; None when fewer were found.
    words : dict of str to float
        The share of the text part of each of the query's words that it has.
    """

    id: int | str
    parts: dict[str, float]
    weights: dict[str, float]
    score: float
    km: float
    rank: int | None
    reasons: list[str]
    worst_score: float | None = None
    words: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the explanation as plain values."""
        return {name: getattr(self, name) for name in self.__slots__}
