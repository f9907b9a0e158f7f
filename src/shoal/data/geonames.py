"""Places from GeoNames dumps, and the sample of its largest cities that ships with shoal.

GeoNames (https://www.geonames.org) is licensed under CC BY 4.0; the sample's
attribution stands beside it in ``geonames_cities/ORIGIN.md``.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from shoal.core.errors import InputError
from shoal.core.files import atomic_writer
from shoal.data.placecolumns import numbers
from shoal.data.placetable import BadRows, PlaceTable, Problem, build_table, keyword_array
from shoal.data.sourcefile import read_text
from shoal.data.words import tokenize

__all__ = ["load_sample", "make_sample", "read_geonames", "sample_frame"]

_SAMPLE = Path(__file__).parent / "geonames_cities" / "places.parquet"
# fmt: off
_COLUMNS = [
    "id", "name", "ascii", "alternates", "lat", "lon", "class", "code", "country", "countries",
    "admin1", "admin2", "admin3", "admin4", "population", "elevation", "dem", "timezone", "changed",
]
# fmt: on
#: Attributes that a dump can give, and the columns they come from.
_ATTRIBUTES = {"population": "population", "elevation": "dem"}
_NO_ELEVATION = -9999.0


def read_geonames(
    path: str | Path,
    *,
    attributes: Sequence[str] | Mapping[str, str] | None = None,
    on_bad_row: BadRows = "error",
) -> PlaceTable:
    """Read a GeoNames dump: 19 columns between tabs, plain or packed.

    The keywords of a place are the words of all its names; its category is the
    feature code (``PPLC``).

    Parameters
    ----------
    path : path-like
        ``cities500.zip``, ``FI.txt``, ``allCountries.txt.xz``, ...
    attributes : sequence of str or mapping, optional
        Of ``population`` and ``elevation`` (metres); both by default. A mapping
        gives them other names.
    on_bad_row : {"error", "drop"}
        What happens to a row that cannot be used.

    Raises
    ------
    InputError
        The rows do not have 19 columns, or as :func:`shoal.data.placetable.build_table`.
    """
    name = Path(path).name
    text = read_text(path)
    if text.partition("\n")[0].count("\t") != len(_COLUMNS) - 1:
        raise InputError(
            f"a GeoNames dump has {len(_COLUMNS)} columns between tabs",
            value=text[:60],
            row=1,
            source=name,
        )
    try:
        frame = pl.read_csv(
            io.BytesIO(text.encode()),
            separator="\t",
            has_header=False,
            new_columns=_COLUMNS,
            quote_char=None,
            infer_schema=False,
        )
    except pl.exceptions.PolarsError as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"not a GeoNames dump: {reason}", source=name) from error
    return _places(frame, name, attributes, on_bad_row)


def load_sample() -> PlaceTable:
    """Return the shipped sample: the 4,000 most populous places, by id.

    Attributes are ``population`` and ``elevation`` (metres); keywords are the
    words of the name and of up to six other names.
    """
    return _places(sample_frame(), "GeoNames sample", None, "error")


@functools.cache
def sample_frame() -> pl.DataFrame:
    """Return the shipped sample as a table with the columns of a dump that it keeps."""
    return pl.read_parquet(_SAMPLE)


def make_sample(
    source: str | Path, target: str | Path = _SAMPLE, *, places: int = 4000, names: int = 6
) -> None:
    """Cut the shipped sample from a dump.

    Parameters
    ----------
    source : path-like
        A dump, as for :func:`read_geonames`.
    target : path-like
        The Parquet file to write.
    places : int
        How many of the most populous places to keep.
    names : int
        How many other names of each.
    """
    text = read_text(source).encode()
    frame = pl.read_csv(
        text, separator="\t", has_header=False, new_columns=_COLUMNS, quote_char=None,
        infer_schema=False,
    )  # fmt: skip
    kept = (
        frame.select(
            pl.col("id").cast(pl.Int64),
            "name",
            "ascii",
            pl.col("alternates").str.split(",").list.head(names).list.join(","),
            pl.col("lat", "lon").cast(pl.Float64),
            "code",
            "country",
            pl.col("population", "dem").cast(pl.Int64),
            "timezone",
        )
        .sort(["population", "id"], descending=[True, False])
        .head(places)
        .sort("id")
    )
    path = Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_writer(path) as stream:
        kept.write_parquet(stream, compression="zstd", compression_level=19)


def _places(
    frame: pl.DataFrame,
    source: str,
    attributes: Sequence[str] | Mapping[str, str] | None,
    on_bad_row: BadRows,
) -> PlaceTable:
    (lon, bad_lon), (lat, bad_lat) = numbers(frame["lon"]), numbers(frame["lat"])
    missing = (np.isnan(lon) | np.isnan(lat)) & ~bad_lon & ~bad_lat
    ids = frame["id"].cast(pl.Int64, strict=False).alias("id")
    names = frame["name"].to_list()
    return build_table(
        lon,
        lat,
        ids,
        source=source,
        keywords=keyword_array(_words(frame), frame.height),
        attributes=_attributes(frame, attributes),
        names=[name or None for name in names],
        timezone=[zone or None for zone in frame["timezone"].to_list()],
        category=[code or None for code in frame["code"].to_list()],
        problems=[
            Problem("position is no number", bad_lon, "lon", lambda row: frame["lon"][row]),
            Problem("position is no number", bad_lat, "lat", lambda row: frame["lat"][row]),
            Problem("position missing", missing, "lon, lat", lambda _: None),
        ],
        on_bad_row=on_bad_row,
        check_swap=False,  # the columns of a dump have their places
    )


def _words(frame: pl.DataFrame) -> list[list[str]]:
    texts = frame.select(
        pl.concat_str(["name", "ascii", "alternates"], separator=" ", ignore_nulls=True)
    ).to_series()
    return [list(dict.fromkeys(tokenize(text))) for text in texts.to_list()]


def _attributes(
    frame: pl.DataFrame, wanted: Sequence[str] | Mapping[str, str] | None
) -> dict[str, npt.NDArray[np.float64]]:
    if isinstance(wanted, Mapping):
        chosen = dict(wanted)
    else:
        chosen = {name: name for name in (_ATTRIBUTES if wanted is None else wanted)}
    made = {}
    for label, name in chosen.items():
        if name not in _ATTRIBUTES:
            raise InputError(
                f"a GeoNames dump has the attributes {', '.join(_ATTRIBUTES)}",
                field="attributes",
                value=name,
            )
        values = numbers(frame[_ATTRIBUTES[name]])[0]
        made[label] = np.where(values <= _NO_ELEVATION, np.nan, values)
    return made
