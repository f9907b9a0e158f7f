"""One device's websocket, from HELLO to BYE.

A reader takes frames as they come, a writer sends what there is to say; neither
waits for the other, and what a slow reader on the far side leaves unread is
bounded.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final

from shoal.cloud.reception import Reception, RefusedConnectionError
from shoal.core.errors import InputError, LimitError, ShoalError
from shoal.wire.codes import ErrorCode
from shoal.wire.frames import (
    Ack,
    Batch,
    Bye,
    Frame,
    Nack,
    Notice,
    Ping,
    Pong,
    decode_frame,
    encode_frame,
)

__all__ = ["TunnelConnection"]

Message = MutableMapping[str, Any]

_NORMAL: Final = 1000  # websocket close codes
_GOING_AWAY: Final = 1001
_POLICY: Final = 1008
_UNREAD: Final = 64  # frames that may wait beside one a batch under way


class TunnelConnection:
    """A websocket that was accepted.

    Parameters
    ----------
    reception : Reception
    receive, send : ASGI callables
    opened, closed : callable
        Called with the connection after WELCOME and at its end.
    """

    def __init__(
        self,
        reception: Reception,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
        *,
        opened: Callable[[TunnelConnection], None],
        closed: Callable[[TunnelConnection], None],
    ) -> None:
        self._reception = reception
        self._receive = receive
        self._send = send
        self._opened = opened
        self._closed = closed
        self._loop = asyncio.get_running_loop()
        self._out: deque[Frame] = deque()
        self._wake = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._bye: Bye | None = None
        self._broken = False
        self._in_flight = 0
        self._paused_until = 0.0
        self._expires_us = 0
        self.device = b""
        self.cohort = 0

    async def serve(self) -> None:
        """Serve until either end leaves."""
        counts = self._reception.counts
        close, bye = _NORMAL, None
        try:
            await self._greet()
            try:
                self._opened(self)
                await self._converse()
            finally:
                self._closed(self)
            bye = self._bye
        except RefusedConnectionError as error:
            counts[f"refused_{int(error.code)}"] += 1
            close, bye = _POLICY, Bye(error.code, str(error))
        except InputError as error:
            counts["bad_frame"] += 1
            code = ErrorCode.TOO_LARGE if isinstance(error, LimitError) else ErrorCode.BAD_FRAME
            close, bye = _POLICY, Bye(code, str(error))
        except ShoalError as error:  # the store is away: come back later
            counts["away"] += 1
            close, bye = _GOING_AWAY, Bye(ErrorCode.RATE_LIMITED, str(error))
        except TimeoutError:
            counts["silent"] += 1
            bye = Bye(ErrorCode.BAD_FRAME, "nothing was heard for too long")
        except EOFError:
            return  # the device has gone
        if bye is not None:
            await self._write(bye)
        await self._close(close)

    def say(self, frame: Frame) -> None:
        """Send a frame when its turn comes; a notice replaces one that is still unsent."""
        if isinstance(frame, Notice):
            self._out = deque(said for said in self._out if not isinstance(said, Notice))
        self._out.append(frame)
        self._wake.set()

    def leave(self, bye: Bye) -> None:
        """End the connection from this side."""
        self._bye = self._bye or bye
        if self._reader is not None:
            self._reader.cancel()

    # -- conversation ---------------------------------------------------------------------

    async def _greet(self) -> None:
        parts = self._reception.parts
        async with asyncio.timeout(parts.hello_timeout_s):
            first = await self._next()
        hello, claims = self._reception.admit(first)
        self.device, self.cohort = hello.device, claims.cohort
        self._expires_us = claims.expires_us
        await self._write(await self._reception.welcome(hello))

    async def _converse(self) -> None:
        self._reader = asyncio.create_task(self._read())
        writer = asyncio.create_task(self._write_out())
        if self._bye is not None:
            self._reader.cancel()
        try:
            await asyncio.wait({self._reader, writer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (self._reader, writer):
                task.cancel()
            done = await asyncio.gather(self._reader, writer, return_exceptions=True)
        for outcome in done:
            if isinstance(outcome, Exception):
                raise outcome

    async def _read(self) -> None:
        silence_s = self._reception.parts.silence_s
        asked = False
        while True:
            try:
                async with asyncio.timeout(silence_s / 2):
                    frame = await self._next()
            except TimeoutError:
                if asked:
                    raise
                asked = True
                self.say(Ping(int(self._loop.time() * 1e6)))
                continue
            asked = False
            if isinstance(frame, Batch):
                self._take(frame)
            elif isinstance(frame, Ping):
                self.say(Pong(frame.mono_us))
            elif isinstance(frame, Bye):
                return
            elif not isinstance(frame, Pong):
                raise InputError("a device does not say this", field=type(frame).__name__)
            if len(self._out) > _UNREAD + self._reception.parts.window:
                raise RefusedConnectionError(
                    ErrorCode.RATE_LIMITED, "too many answers are waiting to be read"
                )

    def _take(self, frame: Batch) -> None:
        parts = self._reception.parts
        now_us = parts.clock()
        if parts.revoked(self.device):
            raise RefusedConnectionError(ErrorCode.DEVICE_REVOKED, "this device is locked out")
        if now_us >= self._expires_us:
            raise RefusedConnectionError(ErrorCode.UNAUTHENTICATED, "device token has expired")
        if self._in_flight >= parts.window:
            self._reception.counts["over_window"] += 1
            text = f"at most {parts.window} batches may be under way"
            self.say(Nack(frame.seq, ErrorCode.WINDOW_EXCEEDED, 0, text))
            return
        self._in_flight += 1
        self._reception.counts["batch"] += 1
        parts.ingest.submit(self.device, frame, now_us).add_done_callback(self._settled)
        pause = self._reception.pause()
        if pause is not None and self._loop.time() >= self._paused_until:
            self._paused_until = self._loop.time() + pause.ms / 1000
            self._reception.counts[f"pause_{pause.scope}"] += 1
            self.say(pause)

    def _settled(self, future: Future[Ack | Nack]) -> None:
        # Called by the writer thread of the ingest; the loop may have ended meanwhile.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._answer, future.result())

    def _answer(self, answer: Ack | Nack) -> None:
        self._in_flight -= 1
        if isinstance(answer, Ack) and self._out and isinstance(self._out[-1], Ack):
            self._out.pop()  # an ACK speaks for everything before it
        self.say(answer)

    # -- bytes ----------------------------------------------------------------------------

    async def _write_out(self) -> None:
        while not self._broken:
            await self._wake.wait()
            self._wake.clear()
            while self._out and not self._broken:
                await self._write(self._out.popleft())

    async def _next(self) -> Frame:
        message = await self._receive()
        if message["type"] != "websocket.receive":
            raise EOFError
        data = message.get("bytes")
        if data is None:
            raise InputError("frames are binary messages", field="frame")
        return decode_frame(data, self._reception.parts.limits)

    async def _write(self, frame: Frame) -> None:
        try:
            await self._send({"type": "websocket.send", "bytes": encode_frame(frame)})
        except (OSError, RuntimeError):
            self._broken = True  # gone; the reader hears of it too

    async def _close(self, code: int) -> None:
        if not self._broken:
            with suppress(OSError, RuntimeError):
                await self._send({"type": "websocket.close", "code": code})
