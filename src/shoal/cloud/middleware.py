"""The published idea of push-then-pull: ordinary business requests carry the check.

Any ASGI application (Starlette, FastAPI, Litestar, Django) is wrapped; a request
that carries ``Shoal-Profile`` and ``Shoal-Device`` gets ``Shoal-Notice`` on its
answer when the device should pull something. The business request itself is
never touched, delayed or failed (Walle, OSDI 2022; sheet A.4).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from shoal.core.errors import ShoalError
from shoal.wire.profile import NOTICE_HEADER

__all__ = ["ASGIApp", "GatewayCheck", "ReleaseMiddleware"]

Message = MutableMapping[str, Any]
ASGIApp = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]
#: Takes the two headers' raw values; returns the notice address in text, or ``None``.
GatewayCheck = Callable[[bytes, bytes], str | None]

_NOTICE = NOTICE_HEADER.lower().encode()
_log = logging.getLogger(__name__)


class ReleaseMiddleware:
    """Mixes the release check into an ASGI application.

    Parameters
    ----------
    app : ASGI application
        The service that devices talk to anyway.
    gateway_check : callable
        For example ``cloud.gateway.check_headers``; it must not block.

    Examples
    --------
    >>> from starlette.applications import Starlette
    >>> shop = ReleaseMiddleware(Starlette(), lambda profile, token: None)
    """

    def __init__(self, app: ASGIApp, gateway_check: GatewayCheck) -> None:
        self.app = app
        self._check = gateway_check
        #: Checks that could not be answered, by error class; the requests went on.
        self.failed: Counter[str] = Counter()

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Serve one connection."""
        notice = self._notice(scope) if scope["type"] == "http" else None
        if notice is None:
            await self.app(scope, receive, send)
            return
        header = (_NOTICE, notice.encode())

        async def send_with_notice(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        await self.app(scope, receive, send_with_notice)

    def _notice(self, scope: Message) -> str | None:
        profile = token = None
        for name, value in scope["headers"]:
            if name == b"shoal-profile":
                profile = value
            elif name == b"shoal-device":
                token = value
        if profile is None or token is None:
            return None
        try:
            return self._check(profile, token)
        except ShoalError as error:
            # A bad header is the device's business, not the business request's.
            self.failed[type(error).__name__] += 1
        except Exception as error:
            self.failed[type(error).__name__] += 1
            _log.exception("release check failed; the request goes on without it")
        return None
