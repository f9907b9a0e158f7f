"""Push-then-pull on the app's ordinary requests, for apps that use httpx.

Each request to the app's own service carries two short headers; if something
changed, the answer names a notice and the agent pulls it in its own time. The
request itself is never delayed, changed or failed by this (Walle, OSDI 2022,
deployment platform).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import httpx

from shoal.core.errors import InputError
from shoal.wire.limits import DEFAULT_LIMITS
from shoal.wire.notices import parse_notice_address
from shoal.wire.profile import NOTICE_HEADER

if TYPE_CHECKING:
    from shoal.device.agent import Agent

__all__ = ["AsyncShoalTransport", "ShoalTransport"]


class _Carrier:
    """What both transports share: which requests carry headers, and reading the answer."""

    def __init__(self, agent: Agent, origins: Iterable[str] | None) -> None:
        self._agent = agent
        chosen = [agent.config.server_url] if origins is None else origins
        self._origins = {_origin(httpx.URL(text)) for text in chosen}
        self.counts: Counter[str] = Counter()

    def prepare(self, request: httpx.Request) -> httpx.Request | None:
        """Return the request with the headers if it goes to one of our origins.

        It is another object: httpx copies the headers of the app's own one to
        wherever a redirect leads, and the device's token must not go there.
        """
        if _origin(request.url) not in self._origins:
            return None
        try:
            headers = self._agent.headers()
        except Exception as error:
            # The app's own request must not fail because of us, whatever it is.
            self.counts[type(error).__name__] += 1
            return None
        if not headers:
            return None
        self.counts["carried"] += 1
        carrying = httpx.Request(
            request.method,
            request.url,
            headers=request.headers,
            stream=request.stream,
            extensions=request.extensions,
        )
        carrying.headers.update(headers)
        return carrying

    def read(self, response: httpx.Response) -> None:
        text = response.headers.get(NOTICE_HEADER)
        if text is None:
            return
        try:
            self._agent.on_notice(_address(text))
        except Exception as error:
            self.counts[type(error).__name__] += 1
        else:
            self.counts["notices"] += 1


def _address(text: str) -> tuple[int, int, int]:
    if len(text) > DEFAULT_LIMITS.header:
        raise InputError("too long", field=NOTICE_HEADER, value=len(text))
    return parse_notice_address(text)


def _origin(url: httpx.URL) -> tuple[str, str, int]:
    port = url.port or {"http": 80, "https": 443}.get(url.scheme)
    if port is None or not url.host:
        raise InputError("expected http(s)://host[:port]", field="origins", value=str(url))
    return url.scheme, url.host, port


class ShoalTransport(httpx.BaseTransport):
    """Wraps a transport of ``httpx.Client``.

    Parameters
    ----------
    agent : Agent
        Whose headers are carried.
    transport : httpx.BaseTransport, optional
        What really sends; httpx's own if absent.
    origins : iterable of str, optional
        ``scheme://host[:port]`` of the services that mount ``ReleaseMiddleware``;
        the agent's cloud if absent. Nobody else ever sees the device's token,
        nor does the target of a redirect.

    Raises
    ------
    InputError
        An origin is not an address.

    Examples
    --------
    >>> client = httpx.Client(transport=ShoalTransport(agent))  # doctest: +SKIP
    """

    def __init__(
        self,
        agent: Agent,
        transport: httpx.BaseTransport | None = None,
        *,
        origins: Iterable[str] | None = None,
    ) -> None:
        self._carrier = _Carrier(agent, origins)
        self._transport = transport or httpx.HTTPTransport()

    @property
    def counts(self) -> Counter[str]:
        """Requests ``carried``, ``notices`` heard, and errors kept from the app by class."""
        return self._carrier.counts

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request of the app."""
        carrying = self._carrier.prepare(request)
        response = self._transport.handle_request(carrying or request)
        if carrying is not None:
            self._carrier.read(response)
        return response

    def close(self) -> None:
        """Close the wrapped transport."""
        self._transport.close()


class AsyncShoalTransport(httpx.AsyncBaseTransport):
    """The same for ``httpx.AsyncClient``."""

    def __init__(
        self,
        agent: Agent,
        transport: httpx.AsyncBaseTransport | None = None,
        *,
        origins: Iterable[str] | None = None,
    ) -> None:
        self._carrier = _Carrier(agent, origins)
        self._transport = transport or httpx.AsyncHTTPTransport()

    @property
    def counts(self) -> Counter[str]:
        """Requests ``carried``, ``notices`` heard, and errors kept from the app by class."""
        return self._carrier.counts

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request of the app."""
        carrying = self._carrier.prepare(request)
        response = await self._transport.handle_async_request(carrying or request)
        if carrying is not None:
            self._carrier.read(response)
        return response

    async def aclose(self) -> None:
        """Close the wrapped transport."""
        await self._transport.aclose()
