"""The administrator's interface as the command line calls it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

import click

from shoal.core.errors import (
    ConflictError,
    InputError,
    NotFoundError,
    ShoalError,
    UnavailableError,
)

if TYPE_CHECKING:
    import httpx

__all__ = ["DEFAULT_SERVER", "AdminClient", "server_option"]

P = ParamSpec("P")
R = TypeVar("R")

#: Where ``shoal server run`` listens unless it is told otherwise.
DEFAULT_SERVER = "http://127.0.0.1:8400"

_TIMEOUT_S = 60.0
_KINDS: dict[int, type[ShoalError]] = {
    400: InputError,
    404: NotFoundError,
    409: ConflictError,
    412: ConflictError,
    413: InputError,
    422: InputError,
    429: UnavailableError,
    502: UnavailableError,
    503: UnavailableError,
    504: UnavailableError,
}


class AdminClient:
    """Calls ``/v1/admin`` of a cloud and turns its problem documents into errors.

    Parameters
    ----------
    server : str
        Address of the cloud, for example ``"http://127.0.0.1:8400"``.
    token : str, optional
        The administrator's token; ``SHOAL_ADMIN_TOKEN`` of the environment if
        absent. On the loopback interface a cloud without one needs none.

    Raises
    ------
    InputError
        The address is not an HTTP address.
    """

    def __init__(self, server: str, token: str | None = None) -> None:
        import httpx

        self.server = server.rstrip("/")
        url = httpx.URL(self.server) if self.server else None
        if url is None or url.scheme not in ("http", "https") or not url.host:
            raise InputError(
                "expected an address such as " + DEFAULT_SERVER, field="server", value=server
            )
        bearer = token if token is not None else os.environ.get("SHOAL_ADMIN_TOKEN")
        self._client = httpx.Client(
            base_url=f"{self.server}/v1/admin",
            headers={"Authorization": f"Bearer {bearer}"} if bearer else {},
            timeout=_TIMEOUT_S,
            # A proxy of the environment must not see administration of this machine.
            trust_env=url.host not in ("127.0.0.1", "localhost", "::1"),
        )

    def call(
        self, method: str, path: str, *, if_match: int | str | None = None, **request: Any
    ) -> Any:
        """Send one request and return the JSON of the answer.

        Parameters
        ----------
        method, path : str
            ``"GET"``, ``"/tasks"``.
        if_match : int or str, optional
            Version of the thing that the caller saw; the cloud refuses the
            change if somebody was faster.
        **request
            As ``httpx.Client.request`` takes them.

        Raises
        ------
        UnavailableError
            Nobody answers there, or the cloud is busy.
        ShoalError
            What the cloud says, with its hint.
        """
        import httpx

        if if_match is not None:
            request["headers"] = {**request.get("headers", {}), "If-Match": f'"{if_match}"'}
        try:
            answer = self._client.request(method, path, **request)
        except httpx.TransportError as error:
            raise UnavailableError(
                f"no cloud answers at {self.server} ({error})",
                hint="start one with `shoal server run`, or name another with --server",
            ) from error
        if answer.is_error:
            raise _problem(answer)
        return answer.json() if answer.content else None

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _problem(answer: httpx.Response) -> ShoalError:
    """Make an error of a problem document (RFC 9457), or of what else was answered."""
    try:
        document = answer.json()
    except ValueError:
        document = {}
    if not isinstance(document, dict):
        document = {}
    detail = document.get("detail") or document.get("title") or answer.reason_phrase
    hint = document.get("hint") or None
    if answer.status_code in (401, 403):
        hint = hint or "set SHOAL_ADMIN_TOKEN to the administrator's token"
    kind = _KINDS.get(answer.status_code, ShoalError)
    return kind(str(detail or f"the cloud answered {answer.status_code}"), hint=hint)


def server_option(command: Callable[P, R]) -> Callable[P, R]:
    """Give a command the option ``--server``."""

    @click.option(
        "--server",
        envvar="SHOAL_SERVER",
        default=DEFAULT_SERVER,
        show_default=True,
        help="Address of the cloud (or SHOAL_SERVER).",
    )
    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        return command(*args, **kwargs)

    return wrapper
