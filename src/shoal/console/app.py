"""The console as an ASGI app: pages rendered on the server, refreshed as things change.

It is mounted beside the cloud's own routes
(``create_app(cloud, mounts={"/": create_console(cloud)})``). Pages work
without JavaScript; with it, their live parts follow the cloud's bus.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from litestar import Litestar, Request, get, post
from litestar.config.csrf import CSRFConfig
from litestar.datastructures import State
from litestar.enums import RequestEncodingType
from litestar.exceptions import HTTPException
from litestar.params import Body, FromPath, FromQuery
from litestar.plugins.jinja import JinjaTemplateEngine
from litestar.response import Redirect, ServerSentEvent, Template
from litestar.response.sse import ServerSentEventMessage
from litestar.static_files import create_static_files_router
from litestar.template import TemplateConfig
from litestar.types import Message, Scope
from sqlalchemy.exc import OperationalError

from shoal.cloud.admin.auth import AdminAuth, Role, needs
from shoal.cloud.service import Cloud
from shoal.console.filters import FILTERS
from shoal.console.pages import Pages
from shoal.console.places import place_handlers
from shoal.core.errors import ConflictError, InputError, NotFoundError, ShoalError

if TYPE_CHECKING:
    from shoal.tasks.place_search import PlaceSearch

__all__ = ["changes", "create_console", "create_place_console"]

_log = logging.getLogger(__name__)
_FOLDER = Path(__file__).parent
#: Sections of the console: key, address, name.
SECTIONS = (
    ("overview", "/", "Overview"),
    ("releases", "/releases", "Releases"),
    ("fleet", "/fleet", "Fleet"),
    ("tasks", "/tasks", "Tasks"),
    ("events", "/events", "Events"),
)
PLACE_SECTIONS = (("places", "/places", "Places"),)
_ACTIONS = ("start", "advance", "pause", "resume", "rollback", "abort")
#: Those that widen a release: not on the ground of a page that is out of date.
_WIDENING = ("start", "advance", "resume")
#: No third party is ever asked for anything, and no page may be framed.
_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; "
        b"connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
#: Lets a browser ask for an operator's token as a password.
_ASK = {"WWW-Authenticate": 'Basic realm="shoal"'}
#: Seconds from a message to the word "change": a result is published inside the
#: transaction that stores it, which must be over when the page is read again.
_SETTLE_S = 0.3
#: Seconds between two refreshes at the least, so that a burst costs one.
_REFRESH_S = 1.0
#: Seconds of silence after which a comment keeps proxies from closing the line.
_ALIVE_S = 15.0


@dataclass(frozen=True)
class _Asked:
    """The form of an operator's decision."""

    reason: str = ""
    lock_version: int | None = None


def _status(error: ShoalError) -> int:
    if isinstance(error, NotFoundError):
        return 404
    if isinstance(error, ConflictError):
        return 409
    return 400 if isinstance(error, InputError) else 503


def _problem(request: Request[Any, Any, Any], error: ShoalError) -> Template:
    return Template(
        "problem.html",
        context={"message": error.message, "hint": error.hint, "page": ""},
        status_code=_status(error),
    )


def _missing(request: Request[Any, Any, Any], error: HTTPException) -> Template:
    text = "there is no such page" if error.status_code == 404 else error.detail
    return Template(
        "problem.html",
        context={"message": text, "hint": None, "page": ""},
        status_code=error.status_code,
        headers=_ASK if error.status_code == 401 else None,
    )


def _broken(request: Request[Any, Any, Any], error: Exception) -> Template:
    # What went wrong is for the log; a page could be read by anyone who may see the console.
    _log.error("a page of the console failed: %s", request.url.path, exc_info=error)
    lost = isinstance(error, OperationalError)
    return Template(
        "problem.html",
        context={
            "message": "the database cannot be read" if lost else "something went wrong here",
            "hint": "the log of the server says what",
            "page": "",
        },
        status_code=503 if lost else 500,
    )


def create_console(cloud: Cloud, *, places: PlaceSearch | None = None) -> Litestar:
    """Make the console of a cloud.

    Who may see it, and who may act, is as with the admin interface: without an
    administrator's token, this machine only; with one, any operator, whose
    token the browser asks for as a password.

    Parameters
    ----------
    cloud : Cloud
        The cloud to show and to act on.
    places : PlaceSearch, optional
        With it the console has a map page that searches these places.

    Returns
    -------
    Litestar
        An ASGI app.
    """
    pages = Pages(cloud)
    auth = AdminAuth(cloud.store, cloud.config.admin_token)

    def page(name: str, active: str, context: dict[str, Any]) -> Template:
        return Template(f"{name}.html", context={**context, "page": active})

    @get("/", sync_to_thread=True)
    def overview() -> Template:
        return page("overview", "overview", pages.overview())

    @get("/releases", sync_to_thread=True)
    def releases() -> Template:
        return page("releases", "releases", pages.releases())

    @get("/releases/{release_id:int}", sync_to_thread=True)
    def release(release_id: FromPath[int]) -> Template:
        return page("release", "releases", pages.release(release_id))

    @get("/fleet", sync_to_thread=True)
    def fleet(q: FromQuery[str] = "", offset: FromQuery[int] = 0) -> Template:
        return page("fleet", "fleet", pages.fleet(query=q, offset=offset))

    @get("/fleet/{device:str}", sync_to_thread=True)
    def device(device: FromPath[str]) -> Template:
        return page("device", "fleet", pages.device(device))

    @get("/tasks", sync_to_thread=True)
    def tasks() -> Template:
        return page("tasks", "tasks", pages.tasks())

    @get("/events", sync_to_thread=True)
    def events() -> Template:
        return page("events", "events", pages.events())

    @get("/console/part/{name:str}", sync_to_thread=True)
    def part(
        name: FromPath[str],
        id: FromQuery[str] = "",
        q: FromQuery[str] = "",
        offset: FromQuery[int] = 0,
    ) -> Template:
        views: dict[str, Callable[[], dict[str, Any]]] = {
            "overview": pages.overview,
            "releases": pages.releases,
            "release": lambda: pages.release(_number(id)),
            "release_actions": lambda: pages.release(_number(id)),
            "fleet": lambda: pages.fleet(query=q, offset=offset),
            "device": lambda: pages.device(id),
            "tasks": pages.tasks,
            "events": pages.events,
        }
        if name not in views:
            raise NotFoundError(f"no part {name!r}")
        return Template(f"parts/{name}.html", context={**views[name](), "page": name})

    @post(
        "/releases/{release_id:int}/{action:str}",
        sync_to_thread=True,
        status_code=303,
        guards=[needs(Role.RELEASER)],
    )
    def act(
        request: Request[Any, Any, Any],
        release_id: FromPath[int],
        action: FromPath[str],
        data: Annotated[_Asked, Body(media_type=RequestEncodingType.URL_ENCODED)],
    ) -> Redirect:
        if action not in _ACTIONS:
            raise InputError("no such action", field="action", value=action[:64])
        pages.check_release(release_id)
        actor = request.scope["state"]["actor"]
        getattr(cloud.releases, action)(
            release_id,
            actor=actor,
            reason=data.reason.strip() or "asked in the console",
            lock_version=data.lock_version if action in _WIDENING else None,
        )
        cloud.bus.publish("release", {"release": release_id, "action": action})
        return Redirect(f"/releases/{release_id}", status_code=303)

    @get("/console/stream", media_type="text/event-stream")
    async def stream() -> ServerSentEvent:
        return ServerSentEvent(changes(cloud))

    return Litestar(
        route_handlers=[
            overview,
            releases,
            release,
            fleet,
            device,
            tasks,
            events,
            part,
            act,
            stream,
            *(place_handlers(places) if places else []),
            create_static_files_router(path="/console/static", directories=[_FOLDER / "static"]),
        ],
        guards=[needs(Role.VIEWER)],
        state=State({"auth": auth}),
        csrf_config=CSRFConfig(
            secret=secrets.token_hex(),
            cookie_name="shoal-csrf",
            cookie_httponly=True,
            cookie_samesite="strict",
        ),
        exception_handlers={ShoalError: _problem, HTTPException: _missing, Exception: _broken},
        before_send=[_secure],
        logging_config=None,
        openapi_config=None,
        template_config=templates(SECTIONS + (PLACE_SECTIONS if places else ())),
    )


def create_place_console(places: PlaceSearch) -> Litestar:
    """Make the map page alone, with its JSON interface under ``/places/api``.

    Anyone who can reach it may search; it shows nothing else.

    Parameters
    ----------
    places : PlaceSearch
        The places.
    """

    @get("/", status_code=307)
    async def start() -> Redirect:
        return Redirect("/places", status_code=307)

    return Litestar(
        route_handlers=[
            start,
            *place_handlers(places),
            create_static_files_router(path="/console/static", directories=[_FOLDER / "static"]),
        ],
        exception_handlers={ShoalError: _problem, HTTPException: _missing, Exception: _broken},
        before_send=[_secure],
        logging_config=None,
        openapi_config=None,
        template_config=templates(PLACE_SECTIONS),
    )


def templates(sections: tuple[tuple[str, str, str], ...]) -> TemplateConfig[JinjaTemplateEngine]:
    """Return the configuration of pages with these sections: (key, address, name) each."""

    def prepare(engine: JinjaTemplateEngine) -> None:
        engine.engine.filters.update(FILTERS)
        engine.engine.globals["sections"] = sections
        engine.engine.autoescape = True

    return TemplateConfig(
        directory=_FOLDER / "templates", engine=JinjaTemplateEngine, engine_callback=prepare
    )


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise InputError("must be a number", field="id", value=text[:64])
    return int(text)


async def _secure(message: Message, _scope: Scope) -> None:
    """Add the headers of :data:`_HEADERS` to every answer, files and errors included."""
    if message["type"] == "http.response.start":
        ours = {name for name, _ in _HEADERS}
        kept = [pair for pair in message.get("headers", []) if pair[0].lower() not in ours]
        message["headers"] = [*kept, *_HEADERS]


async def changes(
    cloud: Cloud, *, alive_s: float = _ALIVE_S
) -> AsyncGenerator[ServerSentEventMessage, None]:
    """Say "change" when something was published on the bus, at most once in a while.

    Parameters
    ----------
    cloud : Cloud
        Whose bus.
    alive_s : float
        Seconds of silence after which a comment is sent.
    """
    loop = asyncio.get_running_loop()
    wake = asyncio.Event()
    subscription = cloud.bus.subscribe(notify=lambda: loop.call_soon_threadsafe(wake.set))
    number = 0
    try:
        while True:
            try:
                await asyncio.wait_for(wake.wait(), timeout=alive_s)
            except TimeoutError:
                # Without data it is no event: nothing in the page is refreshed for it.
                yield ServerSentEventMessage(comment="alive", data=None)
                continue
            await asyncio.sleep(_SETTLE_S)
            wake.clear()
            subscription.drain()
            number += 1
            yield ServerSentEventMessage(event="change", data=str(number), id=str(number))
            await asyncio.sleep(_REFRESH_S - _SETTLE_S)
    finally:
        subscription.close()
