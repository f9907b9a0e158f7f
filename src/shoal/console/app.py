"""The console as an ASGI app: pages rendered on the server, refreshed as things change.

It is mounted beside the cloud's own routes
(``create_app(cloud, mounts={"/": create_console(cloud)})``). Pages work
without JavaScript; with it, their live parts follow the cloud's bus.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import msgspec
from litestar import Litestar, Request, get, post
from litestar.config.csrf import CSRFConfig
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.plugins.jinja import JinjaTemplateEngine
from litestar.response import Redirect, ServerSentEvent, Template
from litestar.response.sse import ServerSentEventMessage
from litestar.static_files import create_static_files_router
from litestar.template import TemplateConfig
from litestar.types import ASGIApp, Receive, Scope, Send

from shoal.cloud.admin.auth import AdminAuth, Role, needs
from shoal.cloud.service import Cloud
from shoal.console.charts import duration
from shoal.console.pages import Pages
from shoal.core.errors import ConflictError, InputError, NotFoundError, ShoalError

__all__ = ["create_console"]

_FOLDER = Path(__file__).parent
_ACTIONS = ("start", "advance", "pause", "resume", "rollback", "abort")
#: No third party is ever asked for anything, and no page may be framed.
_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; "
        b"connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
)
#: Lets a browser ask for an operator's token as a password.
_ASK = {"WWW-Authenticate": 'Basic realm="shoal"'}
#: Seconds between two refreshes at the least, so that a burst costs one.
_REFRESH_S = 1.0


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


def _since(at_us: int | None) -> str:
    if not at_us:
        return "never"
    return f"{duration(max(time.time() - at_us / 1e6, 0))} ago"


def _clock(at_us: int | None) -> str:
    if not at_us:
        return "–"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at_us / 1e6))


def create_console(cloud: Cloud) -> Litestar:
    """Make the console of a cloud.

    Who may see it, and who may act, is as with the admin interface: without an
    administrator's token, this machine only; with one, any operator, whose
    token the browser asks for as a password.

    Parameters
    ----------
    cloud : Cloud
        The cloud to show and to act on.

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
    def release(release_id: int) -> Template:
        return page("release", "releases", pages.release(release_id))

    @get("/fleet", sync_to_thread=True)
    def fleet(q: str = "", offset: int = 0) -> Template:
        return page("fleet", "fleet", pages.fleet(query=q, offset=offset))

    @get("/fleet/{device:str}", sync_to_thread=True)
    def device(device: str) -> Template:
        return page("device", "fleet", pages.device(device))

    @get("/tasks", sync_to_thread=True)
    def tasks() -> Template:
        return page("tasks", "tasks", pages.tasks())

    @get("/events", sync_to_thread=True)
    def events() -> Template:
        return page("events", "events", pages.events())

    @get("/console/part/{name:str}", sync_to_thread=True)
    def part(name: str, id: str = "", q: str = "", offset: int = 0) -> Template:
        views: dict[str, Callable[[], dict[str, Any]]] = {
            "overview": pages.overview,
            "releases": pages.releases,
            "release": lambda: pages.release(_number(id)),
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
    def act(request: Request[Any, Any, Any], release_id: int, action: str) -> Redirect:
        if action not in _ACTIONS:
            raise InputError("no such action", field="action", value=action)
        actor = request.scope["state"]["actor"]
        getattr(cloud.releases, action)(release_id, actor=actor, reason="asked in the console")
        return Redirect(f"/releases/{release_id}", status_code=303)

    @get("/console/stream", media_type="text/event-stream")
    async def stream() -> ServerSentEvent:
        return ServerSentEvent(_changes(cloud))

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
            create_static_files_router(path="/console/static", directories=[_FOLDER / "static"]),
        ],
        guards=[needs(Role.VIEWER)],
        state=State({"auth": auth}),
        csrf_config=CSRFConfig(secret=secrets.token_hex(), cookie_name="shoal-csrf"),
        exception_handlers={ShoalError: _problem, HTTPException: _missing},
        middleware=[_secured],
        logging_config=None,
        openapi_config=None,
        template_config=TemplateConfig(
            directory=_FOLDER / "templates",
            engine=JinjaTemplateEngine,
            engine_callback=_add_filters,
        ),
    )


def _add_filters(engine: JinjaTemplateEngine) -> None:
    engine.engine.filters.update(
        since=_since,
        clock=_clock,
        duration=duration,
        json=lambda v: msgspec.json.encode(v).decode(),
    )
    engine.engine.autoescape = True


def _number(text: str) -> int:
    if not text.isdigit():
        raise InputError("must be a number", field="id", value=text)
    return int(text)


def _secured(app: ASGIApp) -> ASGIApp:
    """Add the headers of :data:`_HEADERS` to every answer, files and errors included."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_secured(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", []), *_HEADERS]
                if any(name == b"content-type" and b"html" in value for name, value in headers):
                    headers.append((b"cache-control", b"no-store"))
                message = {**message, "headers": headers}
            await send(message)

        await app(scope, receive, send_secured)

    return wrapped


async def _changes(cloud: Cloud) -> AsyncGenerator[ServerSentEventMessage, None]:
    """Say "change" when something was published, at most once in a while."""
    loop = asyncio.get_running_loop()
    wake = asyncio.Event()
    subscription = cloud.bus.subscribe(notify=lambda: loop.call_soon_threadsafe(wake.set))
    number = 0
    try:
        while True:
            try:
                await asyncio.wait_for(wake.wait(), timeout=15.0)
            except TimeoutError:
                # Nothing happened: a comment keeps proxies from closing the line.
                yield ServerSentEventMessage(comment="alive")
                continue
            await asyncio.sleep(_REFRESH_S)
            wake.clear()
            subscription.drain()
            number += 1
            yield ServerSentEventMessage(event="change", data=str(number), id=str(number))
    finally:
        subscription.close()
