"""A query as flat scalars and arrays, and the buffer its answers are collected in.

``index.py`` checks what a caller asks and makes a :class:`QueryPlan` of it; the
layouts read nothing else. A plan belongs to one index and one moment: the word
weights come from the document frequencies of the snapshot it was made for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = [
    "MATCH_ALL",
    "MATCH_ANY",
    "MATCH_EVERYTHING",
    "TEXT_BM25",
    "TEXT_COVERAGE",
    "Answers",
    "FilterPlan",
    "QueryPlan",
    "RegionPlan",
    "SocialPlan",
]

#: No keyword was given: every place matches.
MATCH_EVERYTHING = 0
#: Every keyword must be among the place's words.
MATCH_ALL = 1
#: At least one keyword must be among the place's words.
MATCH_ANY = 2

#: Text part: the idf share of the query's words that the place has.
TEXT_COVERAGE = 0
#: Text part: the same, damped by the number of the place's words as BM25 does.
TEXT_BM25 = 1


def _empty_f8() -> npt.NDArray[np.float64]:
    return np.empty(0, dtype=np.float64)


def _empty_i4() -> npt.NDArray[np.int32]:
    return np.empty(0, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class FilterPlan:
    """Conditions on raw attribute values: each group is an OR of closed intervals.

    A row passes when, in every group g, its value of ``column[g]`` lies in one
    of the intervals ``low[i], high[i]`` for i in ``ptr[g] .. ptr[g+1]``. NaN
    passes nothing. Strict bounds were turned into closed ones by ``nextafter``.
    """

    column: npt.NDArray[np.int32]
    ptr: npt.NDArray[np.int32]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RegionPlan:
    """An area the answers must lie in.

    kind 1, box: ``points`` is [[west, south], [east, north]] in degrees, edges
    included; west > east crosses the antimeridian. kind 2, polygon: ``points``
    [p, 2] lon/lat vertices of all rings, ring r being ``ptr[r] .. ptr[r+1]``
    (not closed), even-odd rule in the lon/lat plane, boundary by the half-open
    crossing rule; no ring crosses the antimeridian.

    ``cap`` is a point of the unit sphere and ``cap_chord2`` a squared chord:
    the whole area lies within that chord of that point (4.0: no such cap).
    """

    kind: int
    points: npt.NDArray[np.float64]
    ptr: npt.NDArray[np.int32]
    cap: tuple[float, float, float]
    cap_chord2: float


@dataclass(frozen=True, slots=True)
class SocialPlan:
    """Whose relations count.

    ``vector`` is the user's unit vector (float32 [dim]) or all zeros for a
    neutral user. With ``friends`` (sparse form) ``users`` and ``relation`` hold
    the related users (indices, ascending) and their relation in [0, 1], and the
    vector is not used.
    """

    vector: npt.NDArray[np.float32]
    friends: bool = False
    users: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    relation: npt.NDArray[np.float64] = field(default_factory=_empty_f8)
    known: bool = True


@dataclass(frozen=True, slots=True)
class QueryPlan:
    """A checked query.

    ``score = w0 * space + w1 * text + w2 * attributes + w3 * time + w4 * social``
    with the weights of sum 1 in the order of ``scoring.PARTS``; a part of weight
    0 is left out. Answers are ordered by score (high first), then distance
    (near first), then key (small first).

    Parameters
    ----------
    k : int
        Answers wanted, at least 1.
    has_point : bool
        Without a point every distance is 0 and the weight of space is 0.
    lon, lat : float
        The point, degrees.
    match : int
        ``MATCH_EVERYTHING``, ``MATCH_ALL`` or ``MATCH_ANY``.
    words : tuple of str
        The query's words that occur in the index, each once, in the order
        given. With ``MATCH_ALL`` a word that occurs nowhere makes the answer
        empty before any layout is asked.
    word_weights : float64 [len(words)]
        Each word's share of the text part, sum 1; the text part of a row is
        the sum over its words, **in this order**, times the BM25 damping.
    text_kind : int
        ``TEXT_COVERAGE`` or ``TEXT_BM25``; the damping of a row with m words is
        ``(1 + k1 (1 - b)) / (1 + k1 (1 - b + b m / mean_words))``, at most 1.
    weights : float64 [5]
        As above.
    decay_kind, decay_scale : int, float
        As ``scoring.Decay.kind`` and ``.scale``.
    max_km : float
        Rows farther away are no answers (``inf``: no limit).
    pref_column, pref_flip, pref_weight : int32, uint8, float64 [m]
        Preferred attributes: position in the schema, 1 if more is better,
        share of the attribute part (sum 1). The attribute part of a row is
        ``1 - sum_j pref_weight[j] * cost_j``, the sum in this order.
    filters, region : FilterPlan, RegionPlan or None
    without : tuple of str
        Words that no answer may have.
    slot : int
        Time slot asked for, -1 for none.
    social : SocialPlan or None
    """

    k: int
    has_point: bool = False
    lon: float = 0.0
    lat: float = 0.0
    match: int = MATCH_EVERYTHING
    words: tuple[str, ...] = ()
    word_weights: npt.NDArray[np.float64] = field(default_factory=_empty_f8)
    text_kind: int = TEXT_COVERAGE
    bm25_k1: float = 1.2
    bm25_b: float = 0.75
    mean_words: float = 1.0
    weights: npt.NDArray[np.float64] = field(
        default_factory=lambda: np.array([1.0, 0.0, 0.0, 0.0, 0.0])
    )
    decay_kind: int = 0
    decay_scale: float = 20.0
    max_km: float = float("inf")
    pref_column: npt.NDArray[np.int32] = field(default_factory=_empty_i4)
    pref_flip: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, dtype=np.uint8))
    pref_weight: npt.NDArray[np.float64] = field(default_factory=_empty_f8)
    filters: FilterPlan | None = None
    region: RegionPlan | None = None
    without: tuple[str, ...] = ()
    slot: int = -1
    social: SocialPlan | None = None


class Answers:
    """The best ``k`` answers so far, over any number of segments.

    Sorted arrays, the best first. ``rows`` are rows of the segment that offered
    them; ``keys`` name the places across segments.

    Parameters
    ----------
    k : int
        Places in the buffer.
    """

    __slots__ = ("count", "k", "keys", "kms", "rows", "scores")

    def __init__(self, k: int) -> None:
        self.k = k
        self.count = 0
        self.scores = np.empty(k, dtype=np.float64)
        self.kms = np.empty(k, dtype=np.float64)
        self.keys = np.empty(k, dtype=np.int64)
        self.rows = np.empty(k, dtype=np.int64)

    def __len__(self) -> int:
        return self.count

    def results(self) -> list[tuple[float, float, int]]:
        """Return (score, distance km, key) of each answer, the best first."""
        n = self.count
        return list(
            zip(
                self.scores[:n].tolist(),
                self.kms[:n].tolist(),
                self.keys[:n].tolist(),
                strict=True,
            )
        )
