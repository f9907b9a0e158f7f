"""Places from OpenStreetMap extracts (.osm.pbf, .osm): nodes, and ways and areas by centroid.

OpenStreetMap data is licensed under the ODbL: name its contributors, and share
what you derive from it alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import shapely

from shoal.core.errors import InputError, NotFoundError, UnavailableError
from shoal.data.placecolumns import numbers
from shoal.data.placetable import BadRows, PlaceTable, Problem, build_table, keyword_array
from shoal.data.words import tokenize

__all__ = ["KEYWORD_TAGS", "PLACE_TAGS", "read_osm"]

#: An object with one of these tags is a place; the first it has is its category.
PLACE_TAGS = ("amenity", "shop", "tourism", "leisure", "craft", "office", "healthcare", "historic")
#: The words of these tags are a place's keywords.
KEYWORD_TAGS = (*PLACE_TAGS, "cuisine", "sport", "brand", "name")


def read_osm(
    path: str | Path,
    *,
    tags: Sequence[str] = PLACE_TAGS,
    keywords: str | Sequence[str] | None = None,
    attributes: Sequence[str] | Mapping[str, str] | None = None,
    on_bad_row: BadRows = "error",
) -> PlaceTable:
    """Read the places of an extract.

    Ids are texts, as OpenStreetMap numbers nodes, ways and relations apart:
    ``n1234``, ``w1234``, ``r1234``.

    Parameters
    ----------
    path : path-like
        .osm.pbf, .osm, .osm.gz or .osm.bz2.
    tags : sequence of str
        An object with one of these tags is a place.
    keywords : str or sequence of str, optional
        Tags whose words are the keywords, :data:`KEYWORD_TAGS` by default.
    attributes : sequence of str or mapping, optional
        Tags with numbers (``stars``, ``capacity``), or new name -> tag; a value
        that is no number counts as missing.
    on_bad_row : {"error", "drop"}
        What happens to an object without a usable position. Objects whose
        nodes the extract leaves out are always dropped and counted.

    Raises
    ------
    InputError
        The file is damaged or cut short, or has no such object.
    """
    try:
        import osmium  # noqa: PLC0415 - part of an extra
    except ModuleNotFoundError:
        raise UnavailableError(
            "OpenStreetMap files need the package 'osmium'", hint="pip install 'shoal[spatial]'"
        ) from None
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"{path} is not there", hint="give the path of a file")
    if path.stat().st_size == 0:
        raise InputError("the file is empty", source=path.name)
    found = _Found()
    try:
        processor = osmium.FileProcessor(str(path)).with_areas(osmium.filter.KeyFilter(*tags))
        found.read(processor.with_filter(osmium.filter.KeyFilter(*tags)))
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(
            f"not a readable OpenStreetMap file: {error}",
            source=path.name,
            hint="it may be cut short; download or copy it again",
        ) from error
    places = found.places()
    if not places:
        raise InputError(
            f"no object with one of the tags {', '.join(tags)}",
            source=path.name,
            hint="choose the tags with tags=",
        )
    made = _table(places, path.name, tags, keywords, attributes, on_bad_row=on_bad_row)
    if found.outside:
        made.dropped["nodes outside of the extract"] = found.outside
    return made


class _Found:
    """Positions and tags of the objects of one file."""

    def __init__(self) -> None:
        self.nodes: list[tuple[str, float, float, dict[str, str]]] = []
        self.areas: dict[str, tuple[str, float, float, dict[str, str]]] = {}
        self.ways: dict[str, tuple[str, float, float, dict[str, str]]] = {}
        self.outside = 0

    def read(self, objects: Any) -> None:
        import osmium  # noqa: PLC0415

        factory = osmium.geom.WKBFactory()
        self._invalid = osmium.InvalidLocationError  # a node that the extract leaves out
        for item in objects:
            tags = {tag.k: tag.v for tag in item.tags}
            if item.is_node():
                self.nodes.append((f"n{item.id}", item.location.lon, item.location.lat, tags))
            elif item.is_area():
                key = f"{'w' if item.from_way() else 'r'}{item.orig_id()}"
                self._put(self.areas, key, tags, lambda: factory.create_multipolygon(item))  # noqa: B023
            elif item.is_way():
                key = f"w{item.id}"
                self._put(self.ways, key, tags, lambda: factory.create_linestring(item))  # noqa: B023

    def _put(self, room: dict[str, Any], key: str, tags: dict[str, str], make: Any) -> None:
        try:
            middle = shapely.centroid(shapely.from_wkb(bytes.fromhex(make())))
        except (RuntimeError, self._invalid, shapely.errors.ShapelyError):
            self.outside += 1
            return
        room[key] = (key, float(middle.x), float(middle.y), tags)

    def places(self) -> list[tuple[str, float, float, dict[str, str]]]:
        """Return nodes, areas, and the ways that became no area."""
        lines = [place for key, place in self.ways.items() if key not in self.areas]
        return [*self.nodes, *self.areas.values(), *lines]


def _table(
    places: list[tuple[str, float, float, dict[str, str]]],
    source: str,
    tags: Sequence[str],
    keywords: str | Sequence[str] | None,
    attributes: Sequence[str] | Mapping[str, str] | None,
    *,
    on_bad_row: BadRows,
) -> PlaceTable:
    ids, lon, lat, tagged = zip(*places, strict=True)
    asked = [keywords] if isinstance(keywords, str) else list(keywords or KEYWORD_TAGS)
    rows = [
        list(dict.fromkeys(word for tag in asked if tag in own for word in tokenize(own[tag])))
        for own in tagged
    ]
    if isinstance(attributes, Mapping):
        columns = dict(attributes)
    else:
        columns = {name: name for name in attributes or ()}
    values = {}
    for label, tag in columns.items():
        column = pl.Series(tag, [own.get(tag) for own in tagged], dtype=pl.String)
        given, _ = numbers(column)
        values[label] = np.where(np.isfinite(given), given, np.nan)
    where = np.array(lon, dtype=np.float64), np.array(lat, dtype=np.float64)
    return build_table(
        *where,
        pl.Series("id", ids),
        source=source,
        keywords=keyword_array(rows, len(rows)),
        attributes=values,
        names=[own.get("name") for own in tagged],
        category=[next((own[tag] for tag in tags if tag in own), None) for own in tagged],
        problems=[Problem("position missing", np.isnan(where[0]), "location", lambda _: None)],
        on_bad_row=on_bad_row,
        check_swap=False,
    )
