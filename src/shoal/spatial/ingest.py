"""From what a caller has to checked columns: positions, attributes, keys."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError
from shoal.spatial.columns import AttributeSpec, PlaceColumns
from shoal.spatial.words import Analyzer, read_words

__all__ = ["check_positions", "make_columns", "make_specs", "read_values"]

Missing = Literal["worst", "neutral", "exclude"]


def check_positions(lon: Any, lat: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return positions as float64 columns.

    Raises
    ------
    InputError
        The columns differ in length, or a position is not finite or out of
        range; the message names the first such row, and says when the two
        columns look swapped.
    """
    x, y = _column(lon, "lon"), _column(lat, "lat")
    if len(x) != len(y):
        raise InputError(f"{len(x)} longitudes for {len(y)} latitudes", field="lat")
    bad = ~(np.isfinite(x) & np.isfinite(y))
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(
            "a position must be finite", field="lon, lat", value=(x[row], y[row]), row=row + 1
        )
    bad = (np.abs(x) > 180.0) | (np.abs(y) > 90.0)
    if bad.any():
        row = int(np.argmax(bad))
        fits_swapped = bool((np.abs(y) <= 180.0).all() and (np.abs(x) <= 90.0).all())
        raise InputError(
            "a position is out of range: longitude in [-180, 180], latitude in [-90, 90]",
            field="lon, lat",
            value=(x[row], y[row]),
            row=row + 1,
            hint="longitude comes first; these columns look swapped" if fits_swapped else None,
        )
    return x, y


def make_specs(
    attributes: Mapping[str, Any],
    specs: Sequence[AttributeSpec] = (),
    *,
    missing: Missing = "worst",
) -> tuple[AttributeSpec, ...]:
    """Return one specification an attribute, in the order of ``attributes``.

    An attribute without a specification gets the range of its finite values
    (a range of 1 where they are all the same) and the policy ``missing``.
    """
    given = {spec.name: spec for spec in specs}
    unknown = set(given) - set(attributes)
    if unknown:
        raise InputError(
            "a specification for an attribute that is not there",
            field="attribute_specs",
            value=sorted(unknown)[0],
        )
    made = []
    for name, values in attributes.items():
        if name in given:
            made.append(given[name])
            continue
        column = _column(values, name)
        finite = column[np.isfinite(column)]
        low = float(finite.min()) if len(finite) else 0.0
        high = float(finite.max()) if len(finite) else 1.0
        if not high > low:
            high = max(low + 1.0, math.nextafter(low, math.inf))
        made.append(AttributeSpec(name=name, low=low, high=high, missing=missing))
    return tuple(made)


def read_values(
    attributes: Mapping[str, Any] | None, specs: Sequence[AttributeSpec], n: int
) -> npt.NDArray[np.float64]:
    """Return the attributes as float64 [d, n] in the order of ``specs``, NaN where missing.

    Raises
    ------
    InputError
        An attribute is unknown, has another length, or holds an infinite value.
    """
    attributes = attributes or {}
    names = [spec.name for spec in specs]
    unknown = set(attributes) - set(names)
    if unknown:
        raise InputError(
            f"no such attribute; the index has {', '.join(names) or 'none'}",
            field="attributes",
            value=sorted(unknown)[0],
        )
    values = np.full((len(specs), n), np.nan)
    for j, name in enumerate(names):
        if name not in attributes:
            continue
        column = _column(attributes[name], name)
        if len(column) != n:
            raise InputError(f"{len(column)} values for {n} places", field=name)
        endless = np.isinf(column)
        if endless.any():
            row = int(np.argmax(endless))
            raise InputError(
                "an attribute must be finite, or NaN where it is missing",
                field=name,
                value=column[row],
                row=row + 1,
            )
        values[j] = column
    return values


def make_columns(
    lon: Any,
    lat: Any,
    *,
    keys: npt.NDArray[np.int64],
    keywords: Any = None,
    attributes: Mapping[str, Any] | None = None,
    specs: Sequence[AttributeSpec] = (),
    analyzer: Analyzer = "words",
) -> PlaceColumns:
    """Return checked columns of the places.

    Raises
    ------
    InputError
        As :func:`check_positions`, :func:`read_values` and ``words.read_words``.
    """
    x, y = check_positions(lon, lat)
    if len(keys) != len(x):
        raise InputError(f"{len(keys)} ids for {len(x)} places", field="ids")
    words, ptr, word_ids = read_words(keywords, len(x), analyzer)
    return PlaceColumns(
        keys=keys,
        lon=x,
        lat=y,
        words=words,
        word_ptr=ptr,
        word_ids=word_ids,
        values=read_values(attributes, specs, len(x)),
    )


def _column(values: Any, name: str) -> npt.NDArray[np.float64]:
    """Return a column as float64, None as NaN, naming the row that is no number."""
    if hasattr(values, "to_numpy") and not isinstance(values, np.ndarray):
        values = values.to_numpy()
    try:
        column = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        for row, value in enumerate(values):
            try:
                float(np.nan if value is None else value)
            except (TypeError, ValueError):
                raise InputError("not a number", field=name, value=value, row=row + 1) from None
        column = np.array([np.nan if v is None else float(v) for v in values], dtype=np.float64)
    if column.ndim != 1:
        raise InputError(f"a column has one dimension, not {column.ndim}", field=name)
    return np.ascontiguousarray(column)
