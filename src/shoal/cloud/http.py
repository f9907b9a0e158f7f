"""The cloud over HTTP: one ASGI application, and uvicorn to serve it.

``/v1/d/*`` goes straight to the gateway, ``/v1/d/tunnel`` to the tunnel,
``/v1/admin/*`` to Litestar; whatever else there is (a console, the operator's
own service) is mounted beside them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import uvicorn

from shoal.cloud.files import send_response
from shoal.cloud.lifespan import Lifespans
from shoal.cloud.metrics import METRICS_TYPE, cloud_metrics, prometheus_text
from shoal.cloud.middleware import ASGIApp, Message
from shoal.core.errors import InputError, UnavailableError

if TYPE_CHECKING:
    from shoal.cloud.service import Cloud

__all__ = ["CloudServer", "create_app", "serve"]

_log = logging.getLogger(__name__)
_TUNNEL: Final = "/v1/d/tunnel"


def create_app(cloud: Cloud, mounts: Mapping[str, ASGIApp] | None = None) -> ASGIApp:
    """Return the ASGI application of a cloud.

    The periodic work of the cloud runs in a thread of its own for as long as
    the application lives.

    Parameters
    ----------
    cloud : Cloud
        An open cloud.
    mounts : mapping of str to ASGI application
        By path prefix, for example ``{"/": console}``; the longest prefix that
        fits gets the request, with its path unchanged.

    Raises
    ------
    InputError
        A mount would hide the cloud's own paths.
    """
    from shoal.cloud.admin import create_admin  # noqa: PLC0415 - Litestar is slow to import

    admin = create_admin(cloud)
    ordered = sorted((mounts or {}).items(), key=lambda item: -len(item[0]))
    for prefix, _ in ordered:
        if not prefix.startswith("/") or prefix.startswith("/v1"):
            raise InputError("a mount begins with / and not with /v1", field="mount", value=prefix)
    lifespans = Lifespans([admin, *(app for _, app in ordered)])
    gateway, tunnel = cloud.gateway, cloud.tunnel

    async def app(
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(cloud, lifespans, receive, send)
            return
        path: str = scope["path"]
        if path.startswith("/v1/d/"):
            if path == _TUNNEL and tunnel is not None:
                await tunnel(scope, receive, send)
            elif scope["type"] == "http":
                await gateway(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})
            return
        if path.startswith("/v1/admin"):
            await admin(scope, receive, send)
        elif path == "/healthz" and scope["type"] == "http":
            status, text = await asyncio.to_thread(cloud.health)
            headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
            await send_response(send, status, headers, text.encode())
        elif path == "/metrics" and scope["type"] == "http":
            text = await asyncio.to_thread(lambda: prometheus_text(cloud_metrics(cloud)))
            await send_response(
                send, 200, [(b"content-type", METRICS_TYPE.encode())], text.encode()
            )
        else:
            await _mounted(ordered, scope, receive, send)

    return app


async def _mounted(
    ordered: list[tuple[str, ASGIApp]],
    scope: Message,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    path = scope["path"]
    for prefix, app in ordered:
        if prefix in ("/", path) or path.startswith(prefix.rstrip("/") + "/"):
            await app(scope, receive, send)
            return
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    await send_response(send, 404, [(b"content-type", b"text/plain")], b"nothing here\n")


async def _lifespan(
    cloud: Cloud,
    lifespans: Lifespans,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            try:
                await lifespans.startup()
            except RuntimeError as error:
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                return
            cloud.start()
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await asyncio.to_thread(cloud.stop)
            await lifespans.shutdown()
            await send({"type": "lifespan.shutdown.complete"})
            return


class _Server(uvicorn.Server):
    """uvicorn that returns after a signal instead of raising it once more."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        wanted = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in wanted}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
        listener.set_inheritable(True)
    except OSError as error:
        listener.close()
        raise UnavailableError(
            f"cannot listen on {host} port {port}: {error.strerror or error}",
            hint="choose another port, or 0 for any free one",
        ) from error
    return listener


def _make_server(cloud: Cloud, mounts: Mapping[str, ASGIApp] | None) -> _Server:
    config = uvicorn.Config(
        create_app(cloud, mounts),
        http="httptools",
        ws="websockets-sansio",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # who is loopback decides who may administer
        ws_max_size=cloud.config.limits.frame + 1024,
        ws_per_message_deflate=False,  # batches are compressed already
        timeout_graceful_shutdown=5,
        timeout_keep_alive=30,
        backlog=1024,
    )
    return _Server(config)


def serve(
    cloud: Cloud,
    host: str | None = None,
    port: int | None = None,
    *,
    mounts: Mapping[str, ASGIApp] | None = None,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve a cloud in the calling thread until SIGTERM or SIGINT.

    Parameters
    ----------
    cloud : Cloud
        An open cloud; it is left open.
    host, port : str, int, optional
        Where to listen; the cloud's settings if absent.
    mounts : mapping, optional
        See :func:`create_app`.
    ready : callable, optional
        Called with the address (``http://host:port``) when requests are answered.

    Raises
    ------
    UnavailableError
        The port is in use or may not be bound.
    """
    listener = _bind(host or cloud.config.host, cloud.config.port if port is None else port)
    try:
        server = _make_server(cloud, mounts)
        if ready is not None:
            tell = threading.Thread(
                target=_tell_ready, args=(server, ready, _address(listener)), daemon=True
            )
            tell.start()
        server.run(sockets=[listener])
    finally:
        listener.close()
    if not server.started:
        raise UnavailableError("the server did not start", hint="its log says why")


def _tell_ready(server: uvicorn.Server, ready: Callable[[str], None], address: str) -> None:
    pause = threading.Event()
    while not server.started and not server.should_exit:
        pause.wait(0.01)
    if server.started:
        ready(address)


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 - the address to show, not one to bind
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class CloudServer:
    """A cloud served from a thread of this process; for tests, the demo and ``shoal up``.

    Parameters
    ----------
    cloud : Cloud
        An open cloud; it is left open.
    host, port : str, int
        Where to listen; port 0 takes any free one.
    mounts : mapping, optional
        See :func:`create_app`.

    Raises
    ------
    UnavailableError
        The port is in use, or the server did not start.
    """

    def __init__(
        self,
        cloud: Cloud,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        mounts: Mapping[str, ASGIApp] | None = None,
    ) -> None:
        self._listener = _bind(host, port)
        #: Address to reach it by, ``http://host:port``.
        self.url = _address(self._listener)
        self._server = _make_server(cloud, mounts)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._listener],), name="cloud-http", daemon=True
        )
        self._thread.start()
        pause = threading.Event()
        while not self._server.started:
            if not self._thread.is_alive():
                self._listener.close()
                raise UnavailableError("the server did not start", hint="its log says why")
            pause.wait(0.005)

    def close(self) -> None:
        """Stop listening, let requests under way finish, and return."""
        self._server.should_exit = True
        self._thread.join(timeout=15)
        self._listener.close()

    def __enter__(self) -> CloudServer:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
