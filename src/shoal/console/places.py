"""The map page: a form, a map, and answers with the parts of their scores.

The list is rendered here, on the server; the script only draws the map from
what the list says of each answer. So the page works without the script, and
nothing is rendered twice.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from litestar import Request, Response, Router, get
from litestar.exceptions import HTTPException
from litestar.response import Template
from litestar.types import ControllerRouterHandler

from shoal.core.errors import InputError, NotFoundError, ShoalError

if TYPE_CHECKING:
    from shoal.tasks.place_search import PlaceSearch

__all__ = ["place_handlers"]

#: Parts of a score, with their names on the page.
PARTS = (
    ("space", "near"),
    ("text", "words"),
    ("attributes", "preferences"),
    ("time", "busy then"),
    ("social", "friends"),
)
_MATCHES = (("ranked", "any word, ranked"), ("all", "every word"), ("any", "at least one word"))
#: Fields of errors, and the fields of the form that they are about.
_FIELDS = {"keywords": "q", "point": "lon"}
#: What is always sent: with other values, the form shows all its fields.
_USUAL = frozenset({"q", "lon", "lat", "match", "k", *(f"w.{part}" for part, _ in PARTS)})
#: Where a slider stands, of 100.
_MIDDLE = 50
#: What the page asks for when nothing is said.
_DEFAULT_K = 20


def place_handlers(places: PlaceSearch) -> list[ControllerRouterHandler]:
    """Return the routes of the map page and of its JSON interface."""
    # Imported here: it brings the engine, which a console without places does not need.
    from shoal.tasks.place_search import (  # noqa: PLC0415
        problem,
        read_options,
        refusal,
        search_handlers,
    )

    def context(request: Request[Any, Any, Any]) -> tuple[dict[str, Any], int]:
        """Return what a page shows, and its status."""
        about = places.about()
        decay = _decay(about["bounds"])
        found: dict[str, Any] = {
            "page": "places",
            "parts": PARTS,
            "matches": _MATCHES,
            "error": None,
            "answer": None,
            "why": None,
            "form": _form(request),
            "default_k": _DEFAULT_K,
            "has_point": False,
            "about": about,
            "decay": decay,
            "address": "",
            "unfolded": any(
                value for name, value in request.query_params.items() if name not in _USUAL
            ),
        }
        status = 200
        try:
            asked = _without_blanks(read_options(request))
            options, why = _options(asked)
            if "max_km" not in options:
                options.setdefault("decay", decay)
            found["address"] = "/places/api/search?" + urlencode(options, doseq=True)
            found["has_point"] = "point" in options
            if asked:
                found["answer"] = places.search(options)
                if why:
                    found["why"] = places.explain(options, why)
        except ShoalError as error:
            field = error.field if isinstance(error, InputError) else None
            found["error"] = {
                "field": None if field is None else _FIELDS.get(field, field.partition(".")[0]),
                # The field is marked in the form.
                "message": error.message.removeprefix(f"field {field!r}: "),
                "hint": error.hint,
            }
            status = _status(error)
        return found, status

    @get("/places", sync_to_thread=True)
    def page(request: Request[Any, Any, Any]) -> Template:
        found, status = context(request)
        return Template("places.html", context=found, status_code=status)

    @get("/places/part", sync_to_thread=True)
    def part(request: Request[Any, Any, Any]) -> Template:
        # What the script puts into the page, be it answers or a refusal: 200.
        return Template("parts/places.html", context=context(request)[0])

    @get("/places/backdrop", sync_to_thread=True, media_type="application/octet-stream")
    def backdrop() -> Response[bytes]:
        raw = places.backdrop().astype("<f4").tobytes()
        return Response(raw, media_type="application/octet-stream")

    api = Router(
        path="/places/api",
        route_handlers=search_handlers(places),
        exception_handlers={ShoalError: problem, HTTPException: refusal},
    )
    return [page, part, backdrop, api]


def _form(request: Request[Any, Any, Any]) -> dict[str, str]:
    """Return what the form shows: what was sent, right or wrong."""
    form = dict(request.query_params)
    if "keywords" in form:
        form.setdefault("q", form["keywords"])
    if form.get("point") and not form.get("lon"):
        form["lon"], _, form["lat"] = form["point"].partition(",")
    return form


def _decay(bounds: list[float] | None) -> str:
    """Return a decay in proportion to the area: to 0 in a tenth of its height or width.

    The engine's own, 20 km, is right for a town; on a map of the world it
    would call every place far.
    """
    if bounds is None:
        return "linear:20"
    west, south, east, north = bounds
    degrees = max(north - south, (east - west) * math.cos(math.radians((south + north) / 2)))
    km = max(0.1, 111.195 * degrees / 10)
    power = 10.0 ** math.floor(math.log10(km))
    return f"linear:{max(step * power for step in (1, 2, 5) if step * power <= km):g}"


def _status(error: ShoalError) -> int:
    if isinstance(error, NotFoundError):
        return 404
    return 400 if isinstance(error, InputError) else 503


def _without_blanks(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were filled in: a form sends every field."""
    return {name: value for name, value in options.items() if value != ""}


def _options(asked: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Turn the form's own fields into the options of a query; return what to explain, too.

    ``w.PART`` is the weight of a part (0 to 100), ``p.NAME`` the preference of
    an attribute.
    """
    options: dict[str, Any] = {"k": str(_DEFAULT_K), "match": "ranked", "explain": "1"}
    weights, wishes = [], []
    why = ""
    for name, value in asked.items():
        if name == "why":
            why = str(value)
        elif name.startswith("w."):
            weights.append(f"{name[2:]}={value}")
        elif name.startswith("p."):
            wishes.append(f"{name[2:]}:{value}")
        else:
            options[name] = value
    if weights:  # a slider that was not sent stands in the middle
        sent = {weight.partition("=")[0] for weight in weights}
        weights += [f"{part}={_MIDDLE}" for part, _ in PARTS if part not in sent]
    if wishes:
        options["prefer"] = wishes
    options["weights"] = _possible(weights, options)
    return options, why


def _possible(weights: list[str], options: dict[str, Any]) -> list[str]:
    """Leave out the weights of parts that the query says nothing about.

    A form has all its sliders; the sliders of what was not asked mean nothing.
    With none left, the query weighs its parts itself.
    """
    named = {
        "space": "point" in options,
        "text": bool(options.get("q") or options.get("keywords")),
        "attributes": bool(options.get("prefer")),
        "time": bool(options.get("at")),
        "social": bool(options.get("user")),
    }
    kept = [weight for weight in weights if named.get(weight.partition("=")[0], True)]
    positive = [weight for weight in kept if weight.partition("=")[2].strip() not in {"0", "0.0"}]
    return kept if positive else []
