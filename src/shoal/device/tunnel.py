"""The device's end of the tunnel: a websocket, or HTTP where none can stay open.

Both have one interface (:class:`~shoal.device.link.Link`): ``start``, ``close``,
``connected``, ``flush``. Delivery is at least once; the cloud stores once.
"""

from __future__ import annotations

import ipaddress
import queue
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Literal
from urllib.parse import urlsplit, urlunsplit

import urllib3
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import ClientConnection, connect

from shoal.core.crashpoints import crashpoint
from shoal.core.errors import InputError, UnavailableError
from shoal.device.link import Link
from shoal.device.uplink import Uplink
from shoal.device.window import ByeError, SendWindow
from shoal.wire.codes import ErrorCode
from shoal.wire.compression import INFLATION
from shoal.wire.enrolment import MEDIA_TYPE
from shoal.wire.exchange import join_frames, split_frames
from shoal.wire.frames import Bye, Frame, Welcome, decode_frame, encode_frame
from shoal.wire.profile import DEVICE_HEADER

__all__ = ["HttpUplink", "Tunnel"]

_TUNNEL_PATH: Final = "/v1/d/tunnel"
_UPLINK_PATH: Final = "/v1/d/uplink"
_BUSY_S: Final = 0.05  # how often a link with something waiting looks whether it is due
_QUIET_S: Final = 5.0
_CONNECT_S: Final = 10.0
_READ_S: Final = 30.0
_ANSWER_S: Final = 60.0  # a batch that is not answered for so long: begin again


def _address(url: str, kind: Literal["ws", "http"], path: str) -> str:
    """Return the endpoint's address from a server's; a path of its own is left alone."""
    parts = urlsplit(url)
    secure = {"http": False, "ws": False, "https": True, "wss": True}.get(parts.scheme)
    if secure is None or not parts.hostname:
        raise InputError("expected http(s)://host or ws(s)://host", field="url", value=url)
    own = parts.path if parts.path not in ("", "/") else path
    return urlunsplit((kind + "s" * secure, parts.netloc, own, "", ""))


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Tunnel(Link):
    """A websocket to the cloud, kept open by a thread of its own.

    Parameters
    ----------
    url : str
        The cloud's address (``http://host:port``, ``wss://host/own/path``).
    token, device, uplink, on_notice, agent, on_refused, backoff_s
        See :class:`~shoal.device.link.Link`.
    ssl_context : ssl.SSLContext, optional
        For ``https``/``wss``; the system's trust if absent.

    Raises
    ------
    InputError
        ``url`` is not an address.
    """

    def __init__(  # noqa: PLR0917 - the conversation's six facts, in their usual order
        self,
        url: str,
        token: Callable[[], str],
        device: bytes,
        uplink: Uplink,
        on_notice: Callable[[int, int, int], None] = lambda *_: None,
        agent: str = "shoal",
        *,
        ssl_context: ssl.SSLContext | None = None,
        **options: Any,
    ) -> None:
        super().__init__(token, device, uplink, on_notice, agent, **options)
        self._url = _address(url, "ws", _TUNNEL_PATH)
        self._ssl = ssl_context
        self._socket: ClientConnection | None = None

    def _session(self) -> None:
        limits = self._uplink.limits
        try:
            with connect(
                self._url,
                ssl=self._ssl,
                compression=None,  # batches are compressed already
                max_size=limits.frame + 1024,
                open_timeout=_CONNECT_S,
                close_timeout=1,
                proxy=None if _is_loopback(self._url) else True,
                user_agent_header=None,
            ) as socket:
                self._socket = socket
                if not self._closing.is_set():
                    self._converse(socket)
        except WebSocketException as error:
            raise UnavailableError(f"tunnel: {error}") from error
        finally:
            self._socket = None

    def _converse(self, socket: ClientConnection) -> None:
        window = SendWindow(
            self._uplink, self._device, self._token(), self._agent, on_notice=self._on_notice
        )
        socket.send(encode_frame(window.hello()))
        inbox: queue.SimpleQueue[bytes | str | None] = queue.SimpleQueue()
        receiver = threading.Thread(
            target=self._receive, args=(socket, inbox), name="uplink-in", daemon=True
        )
        receiver.start()
        heard = time.monotonic()
        while not self._closing.is_set():
            self._wake.clear()
            if self._take_all(socket, window, inbox):
                heard = time.monotonic()
            patience = _ANSWER_S if window.welcomed else _CONNECT_S
            if time.monotonic() - heard > patience and window.waits_for_answer:
                raise UnavailableError("the cloud does not answer")
            self._seal()
            for batch in window.frames():
                socket.send(encode_frame(batch))
                crashpoint("tunnel.sent")
            self._wake.wait(self._rest_s(window))
        socket.send(encode_frame(Bye(ErrorCode.OK, "the agent stops")))

    def _rest_s(self, window: SendWindow) -> float:
        if not (window.welcomed and self._uplink.has_work):
            return _QUIET_S
        return max(window.wait_s(_QUIET_S), _BUSY_S)

    def _receive(
        self, socket: ClientConnection, inbox: queue.SimpleQueue[bytes | str | None]
    ) -> None:
        try:
            for message in socket:
                inbox.put(message)
                self._wake.set()
        except (ConnectionClosed, OSError):
            pass  # the sender finds out by itself and knows more about the reason
        finally:
            inbox.put(None)
            self._wake.set()

    def _take_all(
        self,
        socket: ClientConnection,
        window: SendWindow,
        inbox: queue.SimpleQueue[bytes | str | None],
    ) -> bool:
        """Act on every frame that came; say whether there was one."""
        heard = False
        while True:
            try:
                data = inbox.get_nowait()
            except queue.Empty:
                return heard
            heard = True
            if data is None:
                raise UnavailableError("the tunnel was closed by the other side")
            if isinstance(data, str):
                raise InputError("frames are binary messages", field="frame")
            was_welcomed = window.welcomed
            answer = window.take(decode_frame(data, self._uplink.limits))
            if window.welcomed and not was_welcomed:
                self._opened()
            if answer is not None:
                socket.send(encode_frame(answer))

    def _interrupt(self) -> None:
        # A conversation ends by itself; a socket that does not take what we send does not.
        thread, socket = self._thread, self._socket
        if thread is not None and socket is not None:
            thread.join(timeout=2)
            if thread.is_alive():
                socket.socket.close()


class HttpUplink(Link):
    """The tunnel's fallback: ``POST /v1/d/uplink`` with the same frames.

    It opens a connection only when something waits, and hears no notices.

    Parameters
    ----------
    url : str
        The cloud's address.
    token, device, uplink, on_notice, agent, on_refused, backoff_s
        See :class:`~shoal.device.link.Link`.
    ssl_context : ssl.SSLContext, optional
        For ``https``; the system's trust if absent.
    """

    def __init__(  # noqa: PLR0917 - the conversation's six facts, in their usual order
        self,
        url: str,
        token: Callable[[], str],
        device: bytes,
        uplink: Uplink,
        on_notice: Callable[[int, int, int], None] = lambda *_: None,
        agent: str = "shoal",
        *,
        ssl_context: ssl.SSLContext | None = None,
        **options: Any,
    ) -> None:
        super().__init__(token, device, uplink, on_notice, agent, **options)
        self._url = _address(url, "http", _UPLINK_PATH)
        self._pool = urllib3.PoolManager(
            ssl_context=ssl_context,
            retries=False,
            timeout=urllib3.Timeout(connect=_CONNECT_S, read=_READ_S),
        )

    def close(self) -> None:
        """End the thread and its connections."""
        super().close()
        self._pool.clear()

    def _session(self) -> None:
        while not (self._uplink.has_work or self._closing.is_set()):
            self._wake.wait(_QUIET_S)
            self._wake.clear()
        if self._closing.is_set():
            return
        token = self._token()
        window = SendWindow(
            self._uplink, self._device, token, self._agent, on_notice=self._on_notice
        )
        self._exchange(window, token, [window.hello()])
        if not window.welcomed:
            raise InputError("the cloud did not say WELCOME", field="frame")
        self._opened()
        while not self._closing.is_set():
            self._wake.clear()
            self._seal()
            batches = window.frames()
            if batches:
                self._exchange(window, token, [window.hello(), *batches])
            if not batches or window.wait_s(1.0) > 0:
                busy = self._uplink.has_work
                self._wake.wait(max(window.wait_s(_QUIET_S), _BUSY_S) if busy else _QUIET_S)

    def _exchange(self, window: SendWindow, token: str, frames: list[Frame]) -> None:
        try:
            answer = self._pool.request(
                "POST",
                self._url,
                body=join_frames(frames),
                headers={"Content-Type": MEDIA_TYPE, DEVICE_HEADER: token},
                redirect=False,
                preload_content=False,
            )
            limit = INFLATION * self._uplink.limits.frame
            body = answer.read(limit + 1)
            answer.release_conn()
        except urllib3.exceptions.HTTPError as error:
            raise UnavailableError(f"uplink: {error}") from error
        crashpoint("tunnel.sent")
        if answer.status in (401, 403, 426):
            code = {
                401: ErrorCode.UNAUTHENTICATED,
                403: ErrorCode.DEVICE_REVOKED,
                426: ErrorCode.UNSUPPORTED_PROTOCOL,
            }[answer.status]
            raise ByeError(code, f"the cloud answered {answer.status}")
        if answer.status != 200 or len(body) > limit:
            raise UnavailableError(f"the cloud answered {answer.status}")
        for frame in split_frames(body, self._uplink.limits):
            if isinstance(frame, Welcome) and window.welcomed:
                window.again(frame)
            else:
                window.take(frame)
