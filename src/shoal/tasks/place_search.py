"""Place search as a service: an index, asked by text options, answered with plain values.

:class:`PlaceSearch` is what the web route and the console's map page share;
:func:`create_app` is the route alone, an ASGI app with a JSON interface:

``GET /search``
    The options of ``shoal.spatial.textform`` as parameters, ``q`` being short
    for ``keywords``. Answers with ``results``, each with its position, score,
    distance and, with ``explain=1``, the parts of its score. With
    ``Accept: application/geo+json`` the answer is a FeatureCollection.
``GET /explain?id=``
    Why a place is, or is not, among the answers of the same parameters.
``GET /about``
    What is indexed: places, attributes with their ranges, bounds.

A refusal is a problem document (RFC 9457) naming the field.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import re
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from litestar import Litestar, MediaType, Request, Response, get
from litestar.exceptions import HTTPException
from litestar.types import ControllerRouterHandler

from shoal.core.errors import InputError, NotFoundError, ShoalError
from shoal.spatial.index import SpatialKeywordIndex
from shoal.spatial.request import Query
from shoal.spatial.results import TopK
from shoal.spatial.textform import parse_query

__all__ = [
    "PlaceSearch",
    "create_app",
    "follow",
    "problem",
    "read_options",
    "refusal",
    "search_handlers",
]

_log = logging.getLogger(__name__)

#: Most answers of one request: a page or a map cannot show more.
MAX_RESULTS = 500
#: Longest text of one option.
_LONGEST = 10_000
_GEOJSON = "application/geo+json"
_PROBLEM = "application/problem+json"
_WHOLE = re.compile(r"-?[0-9]{1,19}", re.ASCII)
#: Options that may be given more than once.
_REPEATABLE = frozenset({"prefer", "where", "weights", "keywords"})


class PlaceSearch:
    """An index behind text options.

    Parameters
    ----------
    index : SpatialKeywordIndex
        What is searched; it may change meanwhile.
    title : str
        What the places are, for people.
    """

    def __init__(self, index: SpatialKeywordIndex, title: str = "places") -> None:
        self.index = index
        self.title = title
        self._sample: tuple[int, np.ndarray[Any, Any]] | None = None
        self._lock = threading.Lock()

    def read(self, options: Mapping[str, Any]) -> Query:
        """Return the query of text options, with the limits of a web request.

        Raises
        ------
        InputError
            An option is unknown, too long, or cannot be read.
        """
        given = dict(options)
        if "q" in given:
            if given.get("keywords"):
                raise InputError("q and keywords are the same option", field="q")
            given["keywords"] = given.pop("q")
        for name, value in given.items():
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and len(text) > _LONGEST:
                    raise InputError(f"at most {_LONGEST:,} characters", field=name)
        if "explain" in given:
            given["explain"] = str(given["explain"]).lower() in {"1", "true", "yes", "on"}
        user = given.get("user")
        query = parse_query(given)
        people = self.index.people
        if user and people is not None and people.users.kind == "text":
            query = dataclasses.replace(query, user=str(user))  # also one of digits alone
        if query.k > MAX_RESULTS:
            raise InputError(f"k is at most {MAX_RESULTS} here", field="k", value=query.k)
        return query

    def search(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answers of a query as plain values."""
        query = self.read(options)
        begin = time.perf_counter()
        top = self.index.ask(query)
        took_ms = (time.perf_counter() - begin) * 1e3
        return {
            "results": self._results(top),
            "unknown_keywords": list(top.unknown_keywords),
            "neutral_user": top.neutral_user,
            "scored": top.stats.scored,
            "took_ms": round(took_ms, 3),
        }

    def explain(self, options: Mapping[str, Any], name: str) -> dict[str, Any]:
        """Return why a place is, or is not, among the answers of a query.

        Raises
        ------
        NotFoundError
            There is no such place.
        """
        known: int | str = name
        if self.index.ids.kind == "int":
            if not _WHOLE.fullmatch(name) or not -(2**63) <= int(name) < 2**63:
                raise NotFoundError(f"no such place: {name[:64]!r}")
            known = int(name)
        elif not name or len(name) > _LONGEST:
            raise NotFoundError(f"no such place: {name[:64]!r}")
        found = self.index.explain(self.read(options), known).as_dict()
        keys = self.index.ids.find([known])
        return {**found, "label": self.index.labels.get(keys)[0]}

    def about(self) -> dict[str, Any]:
        """Return what is indexed."""
        index = self.index
        lon_lat = self.backdrop()
        return {
            "title": self.title,
            "places": index.n_live,
            "layout": index.config.layout,
            "attributes": [
                {"name": spec.name, "low": spec.low, "high": spec.high, "missing": spec.missing}
                for spec in index.attribute_specs
            ],
            "bounds": None
            if not len(lon_lat)
            else [*lon_lat.min(axis=0).tolist(), *lon_lat.max(axis=0).tolist()],
            "time_slots": index.config.time_slots if index.people is not None else None,
            "users": index.people is not None and len(index.people.users) > 0,
            "max_results": MAX_RESULTS,
        }

    def backdrop(self, most: int = 20_000) -> np.ndarray[Any, Any]:
        """Return float64 [m, 2] (lon, lat) of at most ``most`` places spread over all.

        Made anew when the number of places has changed by a tenth.
        """
        n = self.index.n_live
        with self._lock:
            if self._sample is None or abs(self._sample[0] - n) * 10 > max(1, n):
                columns = self.index.columns()
                step = max(1, -(-len(columns) // most))
                lon_lat = np.stack([columns.lon[::step], columns.lat[::step]], axis=1)
                self._sample = (n, lon_lat)
            return self._sample[1]

    def _results(self, top: TopK) -> list[dict[str, Any]]:
        lon, lat = self.index.positions(top.ids)
        return [
            {
                "rank": rank,
                "id": place.id,
                "label": place.label,
                "lon": float(x),
                "lat": float(y),
                "score": place.score,
                "km": place.km,
                **({} if place.parts is None else {"parts": place.parts}),
            }
            for rank, (place, x, y) in enumerate(zip(top, lon, lat, strict=True), start=1)
            if x == x  # noqa: PLR0124 - a place that was deleted meanwhile has no position
        ]


def search_handlers(service: PlaceSearch) -> list[ControllerRouterHandler]:
    """Return the routes of a service, to be mounted by an app of one's own."""

    @get("/search", sync_to_thread=True, media_type=MediaType.JSON)
    def search(request: Request[Any, Any, Any]) -> Response[Any]:
        found = service.search(read_options(request))
        if _GEOJSON in request.headers.get("accept", ""):
            return Response(_feature_collection(found), media_type=_GEOJSON)
        return Response(found, media_type=MediaType.JSON)

    @get("/explain", sync_to_thread=True, media_type=MediaType.JSON)
    def explain(request: Request[Any, Any, Any]) -> dict[str, Any]:
        options = read_options(request)
        if "id" not in options:
            raise InputError("which place?", field="id")
        return service.explain(options, options.pop("id"))

    @get("/about", sync_to_thread=True, media_type=MediaType.JSON)
    def about() -> dict[str, Any]:
        return service.about()

    return [search, explain, about]


async def follow(index: SpatialKeywordIndex, every_s: float = 2.0) -> None:
    """Keep an index that was opened for reading at its writer's newest state, until cancelled.

    A state that cannot be read (a disk that fails) is logged, and tried again.
    """
    while True:
        await asyncio.sleep(every_s)
        try:
            await asyncio.to_thread(index.refresh)
        except ShoalError as error:
            _log.warning("the index could not be refreshed: %s", error)


def create_app(index: SpatialKeywordIndex, *, title: str = "places") -> Litestar:
    """Return an ASGI app that answers searches of an index with JSON.

    Parameters
    ----------
    index : SpatialKeywordIndex
        What is searched.
    title : str
        What the places are.
    """
    return Litestar(
        route_handlers=search_handlers(PlaceSearch(index, title)),
        exception_handlers={ShoalError: problem, HTTPException: refusal},
        logging_config=None,
        openapi_config=None,
    )


def problem(_request: Request[Any, Any, Any], error: ShoalError) -> Response[Any]:
    """Return an error that shoal raised on purpose as a problem document."""
    status = 404 if isinstance(error, NotFoundError) else 503
    field = None
    if isinstance(error, InputError):
        status, field = 400, error.field
    body = {
        "type": "about:blank",
        "title": "not found" if status == 404 else "the query is wrong" if field else "refused",
        "status": status,
        "detail": str(error),
        "hint": error.hint,
        "field": field,
    }
    return Response(body, status_code=status, media_type=_PROBLEM)


def refusal(_request: Request[Any, Any, Any], error: HTTPException) -> Response[Any]:
    """Return what the web framework refuses, such as an unknown address, as a problem document."""
    body = {"type": "about:blank", "title": error.detail, "status": error.status_code}
    return Response(body, status_code=error.status_code, media_type=_PROBLEM)


def read_options(request: Request[Any, Any, Any]) -> dict[str, Any]:
    """Return the parameters of a request; one that is given more than once is a list.

    Raises
    ------
    InputError
        A parameter that is one value is there twice, or half of a point.
    """
    options: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        if name not in options:
            options[name] = value
        elif name in _REPEATABLE:
            before = options[name]
            options[name] = [*before, value] if isinstance(before, list) else [before, value]
        else:
            raise InputError("given more than once", field=name)
    lon, lat = options.pop("lon", ""), options.pop("lat", "")
    if bool(lon) != bool(lat):
        raise InputError("lon and lat belong together", field="lon" if lat else "lat")
    if lon:
        if options.get("point"):
            raise InputError("point and lon, lat are the same option", field="point")
        options["point"] = f"{lon},{lat}"
    return options


def _feature_collection(found: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "id": result["id"],
                "geometry": {"type": "Point", "coordinates": [result["lon"], result["lat"]]},
                "properties": {
                    name: value
                    for name, value in result.items()
                    if name not in {"id", "lon", "lat"}
                },
            }
            for result in found["results"]
        ],
    }
