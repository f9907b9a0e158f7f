"""The cloud's end of the tunnel: a websocket for each device, and its HTTP fallback.

Raw ASGI, no framework. A connection begins with HELLO and WELCOME; then batches
come in and acknowledgements go out as they become durable, and notices go out
when plans change. A device has one connection: a newer one closes the older,
so that a half-open socket cannot hold a device's place (Walle sheet 6.6, B.6).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from shoal.cloud.bus import Subscription
from shoal.cloud.connection import TunnelConnection
from shoal.cloud.problems import Problem
from shoal.cloud.reception import Reception, RefusedConnectionError, TunnelParts
from shoal.core.errors import InputError, LimitError, ShoalError
from shoal.wire.codes import ErrorCode
from shoal.wire.enrolment import MEDIA_TYPE
from shoal.wire.exchange import join_frames, split_frames
from shoal.wire.frames import Batch, Bye, Frame, Notice

__all__ = ["TunnelParts", "TunnelServer", "tunnel_app"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def tunnel_app(parts: TunnelParts) -> TunnelServer:
    """Return the ASGI application of the tunnel; its ``uplink`` is that of the fallback."""
    return TunnelServer(parts)


class TunnelServer:
    """ASGI websocket application; :meth:`uplink` takes ``POST /v1/d/uplink``.

    One instance serves one event loop at a time.
    """

    def __init__(self, parts: TunnelParts) -> None:
        self._parts = parts
        self._reception = Reception(parts)
        self._connections: dict[bytes, TunnelConnection] = {}
        self._subscription: Subscription | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lost_messages = 0

    @property
    def connected(self) -> int:
        """Number of devices with an open tunnel."""
        return len(self._connections)

    @property
    def counts(self) -> Counter[str]:
        """Connections and frames by kind, for the metrics."""
        return self._reception.counts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one websocket."""
        if scope["type"] != "websocket":
            raise Problem(ErrorCode.BAD_FRAME, "the tunnel is a websocket", status=426)
        if (await receive())["type"] != "websocket.connect":
            return
        await send({"type": "websocket.accept"})
        self.counts["opened"] += 1
        connection = TunnelConnection(
            self._reception, receive, send, opened=self._opened, closed=self._closed
        )
        await connection.serve()

    # -- who is there ----------------------------------------------------------------------

    def _opened(self, connection: TunnelConnection) -> None:
        loop = asyncio.get_running_loop()
        if self._parts.bus is not None and (self._subscription is None or self._loop is not loop):
            self._unsubscribe()
            self._loop = loop
            self._subscription = self._parts.bus.subscribe(["epoch"], notify=self._heard)
        older = self._connections.get(connection.device)
        self._connections[connection.device] = connection
        if older is not None:
            self.counts["replaced"] += 1
            older.leave(Bye(ErrorCode.OK, "a newer connection took over"))

    def _closed(self, connection: TunnelConnection) -> None:
        if self._connections.get(connection.device) is connection:
            del self._connections[connection.device]
        if not self._connections:
            self._unsubscribe()

    def _unsubscribe(self) -> None:
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None
            self._lost_messages = 0

    # -- notices ---------------------------------------------------------------------------

    def _heard(self) -> None:  # in the publisher's thread
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended: nobody is connected any more
                self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        """Send NOTICE to the devices of the cohort sets that changed."""
        subscription = self._subscription
        if subscription is None:
            return
        messages = subscription.drain()
        everyone = subscription.dropped > self._lost_messages
        self._lost_messages = subscription.dropped
        cohorts: set[int] = set()
        for message in messages:
            listed = message.payload.get("cohorts")
            everyone = everyone or listed is None
            cohorts.update(listed or ())
        for connection in list(self._connections.values()):
            if everyone or connection.cohort in cohorts:
                self._notify(connection)

    def _notify(self, connection: TunnelConnection) -> None:
        if self._parts.address is None:
            return
        try:
            address = self._parts.address(connection.cohort, connection.device.hex())
        except ShoalError:
            self.counts["no_address"] += 1  # its cohort set has no plan: nothing to tell
            return
        if address is not None:
            self.counts["notice"] += 1
            connection.say(Notice(*address))

    # -- the fallback ----------------------------------------------------------------------

    async def uplink(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one ``POST /v1/d/uplink``: frames in, frames out.

        Raises
        ------
        Problem, InputError
            The body is not frames, or its HELLO is refused; the gateway answers
            with a problem document.
        """
        body = await _body(receive, 8 * self._parts.limits.frame)
        answer = await self.exchange(body)
        headers = [
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", str(len(answer)).encode()),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def exchange(self, body: bytes) -> bytes:
        """Answer the frames of one body: HELLO first, then batches.

        A body with HELLO alone is answered with WELCOME alone; a device may
        number batches only after that.
        """
        frames = split_frames(body, self._parts.limits)
        if not frames:
            raise InputError("no frames", field="body")
        try:
            hello, _ = self._reception.admit(frames[0])
        except RefusedConnectionError as error:
            raise Problem(error.code, str(error)) from error
        self.counts["exchange"] += 1
        answers: list[Frame] = [await self._reception.welcome(hello)]
        pending = []
        for frame in frames[1:]:
            if not isinstance(frame, Batch):
                raise InputError("only batches follow HELLO", field="frame")
            pending.append(self._parts.ingest.submit(hello.device, frame, self._parts.clock()))
        answers += await asyncio.gather(*map(asyncio.wrap_future, pending))
        pause = self._reception.pause()
        if pause is not None:
            answers.append(pause)
        return join_frames(answers)


async def _body(receive: Receive, limit: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise InputError("the connection closed before the body was whole", field="body")
        body += message.get("body", b"")
        if len(body) > limit:
            raise LimitError(f"a body has at most {limit} bytes", field="body", value=len(body))
        if not message.get("more_body", False):
            return bytes(body)
