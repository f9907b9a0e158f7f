"""A query written as text: what the command line and the web route take.

=============== ============================================== ===========================
option          form                                           example
=============== ============================================== ===========================
point           ``LON,LAT``                                    ``24.94,60.17``
prefer          ``NAME:min`` or ``NAME:max``, ``*SHARE``        ``price:min*2,rating:max``
where           ``NAME OP NUMBER``; ``A..B``; ``A|B|C``        ``price<=2``, ``price=1..2``
weights         ``PART=NUMBER``                                ``space=.5,text=.2``
decay           ``FORM:KM``                                    ``linear:20``, ``gauss:3``
within          ``WEST,SOUTH,EAST,NORTH``, GeoJSON or WKT       ``24.8,60.1,25.1,60.3``
at              a slot, or a time of ISO 8601                  ``2026-05-01T19:30+03:00``
=============== ============================================== ===========================
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from shoal.core.errors import InputError
from shoal.spatial.request import Query
from shoal.spatial.scoring import PARTS, Decay, Weights, make_decay

__all__ = [
    "parse_decay",
    "parse_number",
    "parse_point",
    "parse_prefer",
    "parse_query",
    "parse_time",
    "parse_weights",
    "parse_where",
    "parse_within",
]

_CONDITION = re.compile(r"([^<>=!]+)(<=|>=|!=|==|=|<|>)(.+)", re.DOTALL)
_SLOT = re.compile(r"\s*[0-9]{1,9}\s*", re.ASCII)
_USER = re.compile(r"-?[0-9]{1,18}", re.ASCII)


def parse_number(text: str, field: str) -> float:
    """Return a number.

    Raises
    ------
    InputError
        It is none, or it is NaN.
    """
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if number != number:  # noqa: PLR0124 - NaN
        raise InputError("not a number", field=field, value=text)
    return number


def parse_point(text: str) -> tuple[float, float]:
    """Return (lon, lat) from ``LON,LAT``."""
    parts = text.split(",")
    if len(parts) != 2:
        raise InputError("a point is LON,LAT in degrees", field="point", value=text)
    return parse_number(parts[0], "point"), parse_number(parts[1], "point")


def parse_prefer(texts: Iterable[str]) -> dict[str, tuple[str, float]]:
    """Return preferences from ``NAME:min``, ``NAME:max*SHARE``, also with commas between."""
    found: dict[str, tuple[str, float]] = {}
    for item in _items(texts):
        name, colon, wish = item.rpartition(":")
        direction, star, share = wish.partition("*")
        if not colon or not name:
            raise InputError("a preference is NAME:min or NAME:max", field="prefer", value=item)
        found[name.strip()] = (
            direction.strip(),
            parse_number(share, f"prefer.{name}") if star else 1.0,
        )
    return found


def parse_where(texts: Iterable[str]) -> dict[str, list[Any]]:
    """Return conditions from ``NAME<=2``, ``NAME=1..2`` (between) and ``NAME=1|3`` (in)."""
    found: dict[str, list[Any]] = {}
    for item in _items(texts):
        match = _CONDITION.fullmatch(item)
        if not match:
            raise InputError("a condition is NAME<=NUMBER or alike", field="where", value=item)
        name, op, value = (group.strip() for group in match.groups())
        field = f"where.{name}"
        condition: tuple[Any, ...]
        if op in {"=", "=="} and ".." in value:
            low, _, high = value.partition("..")
            condition = ("between", parse_number(low, field), parse_number(high, field))
        elif op in {"=", "=="} and "|" in value:
            condition = ("in", [parse_number(one, field) for one in value.split("|")])
        else:
            condition = ("==" if op == "=" else op, parse_number(value, field))
        found.setdefault(name, []).append(condition)
    return found


def parse_weights(texts: Iterable[str]) -> Weights | None:
    """Return weights from ``PART=NUMBER``, also with commas between; None of nothing."""
    found: dict[str, float] = {}
    for item in _items(texts):
        part, equals, number = item.partition("=")
        if not equals or part.strip() not in PARTS:
            raise InputError(
                f"a weight is PART=NUMBER; the parts are {', '.join(PARTS)}",
                field="weights",
                value=item,
            )
        field = f"weights.{part.strip()}"
        share = parse_number(number, field)
        if not 0.0 <= share < math.inf:
            raise InputError("a weight must be finite and not negative", field=field, value=number)
        found[part.strip()] = share
    return Weights(**found) if found else None


def parse_decay(text: str) -> Decay:
    """Return a decay from ``FORM:KM``."""
    form, colon, km = text.partition(":")
    if not colon:
        raise InputError("a decay is FORM:KM, such as linear:20", field="decay", value=text)
    scale = parse_number(km, "decay")
    if not 0.0 < scale < math.inf:
        raise InputError("the kilometres must be finite and positive", field="decay", value=text)
    return make_decay(form.strip().lower(), scale)


def parse_within(text: str) -> object:
    """Return an area from ``WEST,SOUTH,EAST,NORTH``; GeoJSON and WKT are left as they are."""
    parts = text.split(",")
    if len(parts) == 4 and "(" not in text and "{" not in text:
        return tuple(parse_number(part, "within") for part in parts)
    return text


def parse_time(text: str) -> int | datetime.datetime:
    """Return a slot number, or a time of ISO 8601."""
    if _SLOT.fullmatch(text):
        return int(text)
    try:
        return datetime.datetime.fromisoformat(text.strip())
    except ValueError:
        raise InputError(
            "a time is a slot number or ISO 8601 with an offset",
            field="at",
            value=text,
            hint="2026-05-01T19:30+03:00",
        ) from None


def parse_query(options: Mapping[str, Any]) -> Query:
    """Return the query that text options ask for.

    Parameters
    ----------
    options : mapping
        Any of the fields of :class:`~shoal.spatial.request.Query` as text (or
        None, or empty, for what is not asked). ``prefer``, ``where``,
        ``weights`` and ``keywords`` may be lists of texts. ``user`` is taken
        as a whole number where it is one.

    Raises
    ------
    InputError
        An option is unknown or cannot be read.
    """
    readers: dict[str, Any] = {
        "point": parse_point,
        "keywords": lambda value: value,
        "k": lambda value: value if isinstance(value, int) else _whole(value, "k"),
        "match": str,
        "weights": lambda value: parse_weights(_list(value)),
        "prefer": lambda value: parse_prefer(_list(value)),
        "where": lambda value: parse_where(_list(value)),
        "decay": parse_decay,
        "within": parse_within,
        "max_km": lambda value: parse_number(str(value), "max_km"),
        "without": lambda value: value,
        "text": str,
        "user": lambda value: int(value) if _USER.fullmatch(str(value)) else value,
        "at": parse_time,
        "social": _social,
        "explain": bool,
    }
    unknown = set(options) - set(readers)
    if unknown:
        raise InputError(
            f"a query has no such option; it has {', '.join(readers)}", field=sorted(unknown)[0]
        )
    given = {
        name: readers[name](value)
        for name, value in options.items()
        if value is not None and value not in ("", (), [])
    }
    return Query(**given)


def _social(text: str) -> str:
    if text not in {"embedding", "friends"}:
        raise InputError('social is "embedding" or "friends"', field="social", value=text)
    return text


def _whole(text: str, field: str) -> int:
    number = parse_number(text, field)
    if number != int(number) if abs(number) < 1e15 else True:
        raise InputError("must be a whole number", field=field, value=text)
    return int(number)


def _list(value: str | Iterable[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _items(texts: Iterable[str]) -> list[str]:
    """Return the parts between commas of all texts."""
    return [item.strip() for text in texts for item in text.split(",") if item.strip()]
