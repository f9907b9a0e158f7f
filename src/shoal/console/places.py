"""The map page: a form, a map, and answers with the parts of their scores.

The list is rendered here, on the server; the script only draws the map from
what the list says of each answer. So the page works without the script, and
nothing is rendered twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litestar import Request, Response, Router, get
from litestar.exceptions import HTTPException
from litestar.response import Template
from litestar.types import ControllerRouterHandler

from shoal.core.errors import InputError, ShoalError

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
#: What the page asks for when nothing is said.
_DEFAULT_K = 20


def place_handlers(places: PlaceSearch) -> list[ControllerRouterHandler]:
    """Return the routes of the map page and of its JSON interface."""
    # Imported here: it brings the engine, which a console without places does not need.
    from shoal.tasks.place_search import (  # noqa: PLC0415
        problem,
        read_options,
        search_handlers,
    )

    def context(request: Request[Any, Any, Any]) -> dict[str, Any]:
        asked: dict[str, Any] = {}
        found: dict[str, Any] = {
            "page": "places",
            "parts": PARTS,
            "matches": _MATCHES,
            "error": None,
            "answer": None,
            "why": None,
        }
        try:
            asked = _without_blanks(read_options(request))
            options, why = _options(asked)
            if asked:
                found["answer"] = places.search(options)
                if why:
                    found["why"] = places.explain(options, why)
        except InputError as error:
            found["error"] = {"field": error.field, "message": str(error), "hint": error.hint}
        except ShoalError as error:
            found["error"] = {"field": None, "message": str(error), "hint": error.hint}
        return {**found, "about": places.about(), "asked": asked, "default_k": _DEFAULT_K}

    @get("/places", sync_to_thread=True)
    def page(request: Request[Any, Any, Any]) -> Template:
        return Template("places.html", context=context(request))

    @get("/places/part", sync_to_thread=True)
    def part(request: Request[Any, Any, Any]) -> Template:
        return Template("parts/places.html", context=context(request))

    @get("/places/backdrop", sync_to_thread=True, media_type="application/octet-stream")
    def backdrop() -> Response[bytes]:
        raw = places.backdrop().astype("<f4").tobytes()
        return Response(raw, media_type="application/octet-stream")

    api = Router(
        path="/places/api",
        route_handlers=search_handlers(places),
        exception_handlers={ShoalError: problem, HTTPException: _plain},
    )
    return [page, part, backdrop, api]


def _plain(_request: Request[Any, Any, Any], error: HTTPException) -> Response[Any]:
    body = {"type": "about:blank", "title": error.detail, "status": error.status_code}
    return Response(body, status_code=error.status_code, media_type="application/problem+json")


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
