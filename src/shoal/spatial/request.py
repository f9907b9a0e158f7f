"""A query in the caller's words, and the checks that turn it into a plan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError
from shoal.spatial.columns import AttributeSpec
from shoal.spatial.query import (
    MATCH_ALL,
    MATCH_ANY,
    MATCH_EVERYTHING,
    TEXT_BM25,
    TEXT_COVERAGE,
    FilterPlan,
    QueryPlan,
    SocialPlan,
)
from shoal.spatial.regions import make_region
from shoal.spatial.scoring import Decay, Linear, Weights
from shoal.spatial.words import Analyzer, analyze_query

__all__ = ["MAX_K", "Planned", "Query", "WordStatistics", "make_plan"]

#: Most answers of one query.
MAX_K = 1_000_000

_EVERYWHERE_KM = 20.0


class WordStatistics(Protocol):
    """Counts over all live places, from which the weights of words come."""

    @property
    def n_live(self) -> int:
        """Return the number of live places."""
        ...

    @property
    def mean_words(self) -> float:
        """Return the mean number of words of a place."""
        ...

    def document_frequency(self, words: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return in how many live places each word occurs."""
        ...


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked, in the caller's words.

    Parameters
    ----------
    point : (lon, lat), optional
        Degrees, longitude first. Without it distance plays no part.
    keywords : str or sequence of str
        A text, which the index's analyzer splits, or keywords.
    k : int
        Answers wanted; more than there are gives all.
    match : {"all", "any", "ranked"}
        Every keyword; at least one; at least one, and the text part counts.
    weights : Weights or mapping, optional
        What each part counts for. By default the parts the query names count
        the same: space with a point, text with ``match="ranked"``, attributes
        with ``prefer``, time with ``at``, social with ``user``.
    prefer : mapping, optional
        Attribute to ``"min"`` or ``"max"``, or to (that, share).
    where : mapping, optional
        Attribute to a condition: (op, value) with op of ``< <= > >= == !=``,
        ("between", low, high), ("in", values), a plain number, or a list of
        conditions that must all hold.
    decay : Linear, Saturation, Exp or Gauss, optional
        How the space part falls; by default ``Linear(max_km)``, 20 km without
        ``max_km``.
    within : optional
        An area, as :func:`shoal.spatial.regions.make_region` takes it.
    max_km : float, optional
        Farther places are no answers.
    without : str or sequence of str
        Words that no answer may have.
    text : {"coverage", "bm25"}
        The form of the text part.
    user : optional
        Whose relations count: an id of the index's users, or a vector.
    at : optional
        The time asked for: an aware ``datetime``, or a slot number.
    social : {"embedding", "friends"}
        The form of the social part.
    explain : bool
        Return the parts of each score.
    """

    point: Sequence[float] | None = None
    keywords: str | Sequence[str] = ()
    k: int = 10
    match: Literal["all", "any", "ranked"] = "all"
    weights: Weights | Mapping[str, float] | None = None
    prefer: Mapping[str, Any] | None = None
    where: Mapping[str, Any] | None = None
    decay: Decay | None = None
    within: Any = None
    max_km: float | None = None
    without: str | Sequence[str] = ()
    text: Literal["coverage", "bm25"] = "coverage"
    user: Any = None
    at: Any = None
    social: Literal["embedding", "friends"] = "embedding"
    explain: bool = False


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan and what its making found out.

    ``empty`` says that no place can be an answer (a keyword nobody has, under
    ``match="all"``), so that nothing need be searched.
    """

    plan: QueryPlan
    unknown: tuple[str, ...] = ()
    empty: bool = False
    weights: dict[str, float] = field(default_factory=dict)


def make_plan(
    query: Query,
    specs: Sequence[AttributeSpec],
    statistics: WordStatistics,
    *,
    analyzer: Analyzer = "words",
    slot: int = -1,
    social: SocialPlan | None = None,
) -> Planned:
    """Check a query and turn it into flat arrays.

    Parameters
    ----------
    query : Query
        The query.
    specs : sequence of AttributeSpec
        The index's attributes.
    statistics : WordStatistics
        Counts of the snapshot that will be searched.
    analyzer : {"words", "exact"}
        The index's analyzer.
    slot : int
        The slot of ``query.at``, -1 for none.
    social : SocialPlan, optional
        What ``query.user`` means to the index.

    Raises
    ------
    InputError
        Anything about the query is wrong; the field is named.
    """
    k = _count(query.k)
    lon, lat = _point(query.point)
    max_km = _limit(query.max_km)
    if query.match not in {"all", "any", "ranked"}:
        raise InputError('match is "all", "any" or "ranked"', field="match", value=query.match)
    if query.text not in {"coverage", "bm25"}:
        raise InputError('text is "coverage" or "bm25"', field="text", value=query.text)
    if max_km is not None and query.point is None:
        raise InputError("max_km needs a point", field="max_km")

    asked = analyze_query(query.keywords, analyzer)
    counts = statistics.document_frequency(asked) if asked else np.empty(0, dtype=np.int64)
    words = tuple(word for word, df in zip(asked, counts, strict=True) if df > 0)
    unknown = tuple(word for word, df in zip(asked, counts, strict=True) if df <= 0)
    match = _match_code(query.match, asked)
    without = analyze_query(query.without, analyzer)

    columns, flips, shares = _preferences(query.prefer, specs)
    weights = _weights(query, has_words=bool(asked))
    if weights[2] > 0 and not len(columns):
        raise InputError(
            "the attribute part has a weight, but no attribute is preferred",
            field="weights",
            hint='prefer={"price": "min"}',
        )
    if weights[3] > 0 and slot < 0:
        raise InputError("the time part has a weight, but no time is asked for", field="at")
    if weights[4] > 0 and social is None:
        raise InputError("the social part has a weight, but no user is given", field="user")
    decay = query.decay or Linear(max_km if max_km is not None else _EVERYWHERE_KM)
    plan = QueryPlan(
        k=k,
        has_point=query.point is not None,
        lon=lon,
        lat=lat,
        match=match,
        words=words,
        word_weights=_word_weights(counts[counts > 0], statistics.n_live),
        text_kind=TEXT_BM25 if query.text == "bm25" else TEXT_COVERAGE,
        mean_words=max(statistics.mean_words, 1e-9),
        weights=weights,
        decay_kind=decay.kind,
        decay_scale=float(decay.scale),
        max_km=math.inf if max_km is None else max_km,
        pref_column=columns,
        pref_flip=flips,
        pref_weight=shares,
        filters=_filters(query.where, specs),
        region=None if query.within is None else make_region(query.within),
        without=without,
        slot=slot,
        social=social,
    )
    empty = (match == MATCH_ALL and bool(unknown)) or (match == MATCH_ANY and not words)
    names = ("space", "text", "attributes", "time", "social")
    return Planned(plan, unknown, empty, dict(zip(names, weights.tolist(), strict=True)))


def _count(k: object) -> int:
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k <= 0:
        raise InputError("k must be a positive whole number", field="k", value=k)
    if k > MAX_K:
        raise InputError(f"k is at most {MAX_K:,}", field="k", value=k)
    return int(k)


def _point(point: Sequence[float] | None) -> tuple[float, float]:
    if point is None:
        return 0.0, 0.0
    try:
        lon, lat = (float(value) for value in point)
    except (TypeError, ValueError):
        raise InputError("a point is (lon, lat) in degrees", field="point", value=point) from None
    if not (math.isfinite(lon) and math.isfinite(lat)):
        raise InputError("a point must be finite", field="point", value=point)
    if abs(lon) > 180.0 or abs(lat) > 90.0:
        swapped = abs(lon) <= 90.0 and abs(lat) <= 180.0
        raise InputError(
            "the point is out of range: longitude in [-180, 180], latitude in [-90, 90]",
            field="point",
            value=(lon, lat),
            hint="longitude comes first; these look swapped" if swapped else None,
        )
    return lon, lat


def _limit(max_km: float | None) -> float | None:
    if max_km is None:
        return None
    if not isinstance(max_km, (int, float, np.number)) or not max_km > 0:
        raise InputError("max_km must be positive", field="max_km", value=max_km)
    return float(max_km) if math.isfinite(max_km) else None


def _match_code(match: str, asked: tuple[str, ...]) -> int:
    if not asked:
        return MATCH_EVERYTHING
    return MATCH_ALL if match == "all" else MATCH_ANY


def _weights(query: Query, *, has_words: bool) -> npt.NDArray[np.float64]:
    if query.weights is None:
        named = {
            "space": query.point is not None,
            "text": query.match == "ranked" and has_words,
            "attributes": bool(query.prefer),
            "time": query.at is not None,
            "social": query.user is not None,
        }
        if not any(named.values()):
            return Weights(space=1.0).shares()  # nothing to rank by: the order of the ids
        return Weights(**{part: 1.0 for part, is_named in named.items() if is_named}).shares()
    weights = Weights.of(query.weights)
    if weights.space > 0 and query.point is None:
        raise InputError("the space part has a weight, but there is no point", field="point")
    return weights.shares()


def _word_weights(df: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.float64]:
    if not len(df):
        return np.empty(0)
    idf = np.log1p((n - df + 0.5) / (df + 0.5))
    shares: npt.NDArray[np.float64] = idf / idf.sum()
    return shares


def _attribute(name: str, specs: Sequence[AttributeSpec], field_name: str) -> int:
    for j, spec in enumerate(specs):
        if spec.name == name:
            return j
    known = ", ".join(spec.name for spec in specs) or "none"
    raise InputError(f"no such attribute; the index has {known}", field=field_name, value=name)


def _preferences(
    prefer: Mapping[str, Any] | None, specs: Sequence[AttributeSpec]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
    columns, flips, shares = [], [], []
    for name, wish in (prefer or {}).items():
        direction, share = wish if isinstance(wish, (tuple, list)) else (wish, 1.0)
        if direction not in {"min", "max"}:
            raise InputError(
                'a preference is "min" or "max"', field=f"prefer.{name}", value=direction
            )
        if not isinstance(share, (int, float, np.number)) or not math.isfinite(share) or share < 0:
            raise InputError(
                "a share must be finite and not negative", field=f"prefer.{name}", value=share
            )
        columns.append(_attribute(name, specs, "prefer"))
        flips.append(direction == "max")
        shares.append(float(share))
    total = sum(shares)
    if shares and total <= 0:
        raise InputError("at least one preference needs a positive share", field="prefer")
    return (
        np.array(columns, dtype=np.int32),
        np.array(flips, dtype=np.uint8),
        np.array(shares, dtype=np.float64) / (total or 1.0),
    )


def _filters(where: Mapping[str, Any] | None, specs: Sequence[AttributeSpec]) -> FilterPlan | None:
    columns: list[int] = []
    ptr, low, high = [0], [], []
    for name, wish in (where or {}).items():
        column = _attribute(name, specs, "where")
        conditions = wish if isinstance(wish, list) else [wish]
        for condition in conditions:
            for a, b in _intervals(name, condition):
                low.append(a)
                high.append(b)
            columns.append(column)
            ptr.append(len(low))
    if not columns:
        return None
    return FilterPlan(
        column=np.array(columns, dtype=np.int32),
        ptr=np.array(ptr, dtype=np.int32),
        low=np.array(low, dtype=np.float64),
        high=np.array(high, dtype=np.float64),
    )


def _intervals(name: str, condition: Any) -> list[tuple[float, float]]:
    """Return the closed intervals of one condition."""
    if isinstance(condition, (int, float, np.number)):
        condition = ("==", condition)
    try:
        op, *operands = condition
        if op == "in":
            (values,) = operands
            return [(_finite(name, v), _finite(name, v)) for v in values]
        if op == "between":
            a, b = (_finite(name, v) for v in operands)
            return [(a, b)]
        (value,) = (_finite(name, v) for v in operands)
    except (TypeError, ValueError):
        op, value = None, 0.0
    endless = math.inf
    forms = {
        "<": [(-endless, math.nextafter(value, -endless))],
        "<=": [(-endless, value)],
        ">": [(math.nextafter(value, endless), endless)],
        ">=": [(value, endless)],
        "==": [(value, value)],
        "!=": [
            (-endless, math.nextafter(value, -endless)),
            (math.nextafter(value, endless), endless),
        ],
    }
    if op not in forms:
        raise InputError(
            'a condition is (op, number) with op of < <= > >= == !=, ("between", low, high) '
            'or ("in", numbers)',
            field=f"where.{name}",
            value=condition,
        )
    return forms[op]


def _finite(name: str, value: Any) -> float:
    number = float(value)
    if math.isnan(number):
        raise InputError("a condition needs a number, not NaN", field=f"where.{name}", value=value)
    return number
