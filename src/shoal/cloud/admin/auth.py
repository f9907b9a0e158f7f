"""Who may administer, and what.

Without any token configured only this machine may, and only when the request was
meant for this machine: a web page that a browser here has open must not be able
to roll back a release, neither by a form nor by a name that it points at us.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import secrets
import time
from collections.abc import Callable
from enum import IntEnum
from hmac import compare_digest
from typing import Any, Final
from urllib.parse import urlsplit

import sqlalchemy as sa
from litestar.connection import ASGIConnection
from litestar.exceptions import NotAuthorizedException, PermissionDeniedException
from litestar.handlers import BaseRouteHandler

from shoal.cloud import store as tables
from shoal.cloud.store import Store
from shoal.core.errors import InputError

__all__ = ["AdminAuth", "Role", "needs"]

_LOCAL_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1", "testclient", "testserver.local"})


class Role(IntEnum):
    """What an operator may do; each may also do what the ones before it may."""

    VIEWER = 0
    AUTHOR = 1
    RELEASER = 2
    ADMIN = 3


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in _LOCAL_NAMES


class AdminAuth:
    """Names the operator behind a request, or refuses it.

    Parameters
    ----------
    store : Store
        Holds the operators.
    admin_token : str, optional
        The administrator's own token, from the settings.
    """

    def __init__(self, store: Store, admin_token: str | None) -> None:
        self._store = store
        self._admin_token = admin_token

    def add_operator(self, name: str, role: Role) -> str:
        """Make an operator, or give an existing one a new token; return the token."""
        if not 0 < len(name) <= 64 or not name.isprintable():
            raise InputError("a name has 1 to 64 printable characters", field="name", value=name)
        token = secrets.token_urlsafe(24)
        with self._store.begin() as connection:
            connection.execute(
                self._store.upsert(tables.operator, ["name"], ["role", "token_hash"]),
                {
                    "name": name,
                    "role": role.name.lower(),
                    "token_hash": hashlib.sha256(token.encode()).digest(),
                    "created_us": time.time_ns() // 1000,
                },
            )
        return token

    def identify(self, connection: ASGIConnection[Any, Any, Any, Any]) -> tuple[str, Role]:
        """Return name and role of whoever sent a request.

        Raises
        ------
        NotAuthorizedException
            A token is needed, or the one given is unknown.
        PermissionDeniedException
            A page of another origin sent it.
        """
        _refuse_foreign_pages(connection)
        scheme, _, token = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and token:
            return self._by_token(token.strip())
        if scheme.lower() == "basic" and token:  # a browser asked for a password
            return self._by_token(_password(token))
        client = connection.client
        if (
            self._admin_token is None
            and client is not None
            and _is_loopback(client.host)
            and _is_loopback(_host_name(connection.headers.get("host", "")))
        ):
            return "local", Role.ADMIN
        raise NotAuthorizedException("a bearer token is needed")

    def _by_token(self, token: str) -> tuple[str, Role]:
        if self._admin_token is not None and compare_digest(
            token.encode(), self._admin_token.encode()
        ):
            return "admin", Role.ADMIN
        digest = hashlib.sha256(token.encode()).digest()
        with self._store.read() as connection:
            row = connection.execute(
                sa.select(tables.operator).where(tables.operator.c.token_hash == digest)
            ).one_or_none()
        if row is None:
            raise NotAuthorizedException("unknown token")
        return row.name, Role[row.role.upper()]


def _password(encoded: str) -> str:
    try:
        return base64.b64decode(encoded, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _host_name(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def _refuse_foreign_pages(connection: ASGIConnection[Any, Any, Any, Any]) -> None:
    origin = connection.headers.get("origin")
    if origin is None:
        return
    if urlsplit(origin).netloc != connection.headers.get("host", ""):
        raise PermissionDeniedException("requests from pages of another origin are refused")


def needs(role: Role) -> Callable[[ASGIConnection[Any, Any, Any, Any], BaseRouteHandler], None]:
    """Return a guard that lets only operators of ``role`` or more through."""

    def guard(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        auth: AdminAuth = connection.app.state.auth
        name, has = auth.identify(connection)
        if has < role:
            raise PermissionDeniedException(f"{name} is a {has.name.lower()}, this needs more")
        connection.scope["state"]["actor"] = name

    return guard
