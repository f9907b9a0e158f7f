"""The Litestar application of the admin interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import msgspec
from litestar import Litestar, Request, Response
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import SwaggerRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme

import shoal
from shoal.cloud.admin.auth import AdminAuth
from shoal.cloud.admin.conditions import PreconditionError
from shoal.cloud.admin.fleet import fleet_routes
from shoal.cloud.admin.releases import release_routes
from shoal.cloud.admin.results import result_routes
from shoal.cloud.admin.tasks import task_routes
from shoal.cloud.middleware import ASGIApp
from shoal.cloud.problems import PROBLEM_TYPE
from shoal.core.errors import (
    ConflictError,
    InputError,
    LimitError,
    NotFoundError,
    ShoalError,
    UnavailableError,
)

if TYPE_CHECKING:
    from shoal.cloud.service import Cloud

__all__ = ["create_admin"]


class _Document(msgspec.Struct, frozen=True, kw_only=True):
    title: str
    status: int
    detail: str
    hint: str = ""
    type: str = "about:blank"


_STATUS: list[tuple[type[ShoalError], int]] = [
    (PreconditionError, 412),
    (LimitError, 413),
    (InputError, 400),
    (NotFoundError, 404),
    (ConflictError, 409),
    (UnavailableError, 503),
]


def _answer(status: int, title: str, detail: str, hint: str | None) -> Response[bytes]:
    body = _Document(title=title, status=status, detail=detail, hint=hint or "")
    return Response(msgspec.json.encode(body), status_code=status, media_type=PROBLEM_TYPE)


def _on_shoal_error(_: Request[Any, Any, Any], error: ShoalError) -> Response[bytes]:
    status = next((number for kind, number in _STATUS if isinstance(error, kind)), 400)
    title = type(error).__name__.removesuffix("Error").lower()
    return _answer(status, title, error.message, error.hint)


def _on_http_error(_: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    # What the request's own body or parameters did wrong is in `extra`.
    extra = error.extra if isinstance(error.extra, list) else []
    parts = [
        f"{item.get('key', 'body')}: {item.get('message', '')}"
        for item in extra
        if isinstance(item, dict)
    ]
    detail = "; ".join(parts) or error.detail
    answer = _answer(error.status_code, "http", detail, None)
    if error.status_code == 401:
        answer.headers["WWW-Authenticate"] = "Bearer"
    return answer


def create_admin(cloud: Cloud) -> ASGIApp:
    """Return the admin application of a cloud (ASGI), for paths below ``/v1/admin``.

    Without ``admin_token`` in the settings, clients on the loopback interface are
    the administrator; with one, a bearer token is needed, the administrator's or
    an operator's.
    """
    app = Litestar(
        path="/v1/admin",
        route_handlers=[
            *task_routes(cloud),
            *release_routes(cloud),
            *fleet_routes(cloud),
            *result_routes(cloud),
        ],
        exception_handlers={ShoalError: _on_shoal_error, HTTPException: _on_http_error},
        openapi_config=OpenAPIConfig(
            title="shoal cloud",
            version=shoal.__version__,
            description="Tasks, releases, fleet and results of one cloud.",
            path="/schema",
            render_plugins=[SwaggerRenderPlugin()],
            components=Components(
                security_schemes={"bearer": SecurityScheme(type="http", scheme="bearer")}
            ),
        ),
        request_max_body_size=1024 * 1024,
        logging_config=None,  # the process decides how it logs
    )
    app.state.auth = AdminAuth(cloud.store, cloud.config.admin_token)
    return cast("ASGIApp", app)
