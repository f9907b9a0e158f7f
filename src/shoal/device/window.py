"""One connection of the uplink, without the wires: what to send next, what an answer means.

A pure state machine over :class:`~shoal.device.uplink.Uplink`. The websocket
and the HTTP fallback drive it, and so can a test that drops, doubles and
reorders frames (Walle sheet 6.6: window, ACK, NACK, PAUSE, resume).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from shoal.core.errors import InputError, ShoalError
from shoal.device.outbox import CLASSES
from shoal.device.uplink import Uplink
from shoal.wire.codes import ErrorCode
from shoal.wire.frames import (
    Ack,
    Batch,
    Bye,
    Codec,
    Frame,
    Hello,
    Nack,
    Notice,
    Pause,
    Ping,
    Pong,
    Welcome,
)
from shoal.wire.profile import PROTOCOL

__all__ = ["ByeError", "SendWindow"]

_MAX_WINDOW: Final = 256
_MAX_PAUSE_S: Final = 300.0
_MAX_GAPS: Final = 3


class ByeError(ShoalError):
    """The connection is over: the cloud said BYE, or what it says makes no sense."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class SendWindow:
    """State of one connection; make a new one for every connection.

    Parameters
    ----------
    uplink : Uplink
    device : bytes
    token, agent : str
        For HELLO.
    monotonic : callable
        Seconds.
    on_notice : callable
        ``(epoch, cohort, mask)``.
    """

    def __init__(
        self,
        uplink: Uplink,
        device: bytes,
        token: str,
        agent: str,
        *,
        on_notice: Callable[[int, int, int], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._uplink = uplink
        self._device = device
        self._token = token
        self._agent = agent
        self._on_notice = on_notice
        self._monotonic = monotonic
        self._welcome: Welcome | None = None
        self._codec, self._dictionary = int(Codec.RAW), 0
        self._sent = 0  # what went out and does not have to go again
        self._highest = 0  # what went out at all
        self._not_before = 0.0
        self._held: dict[str, float] = {}
        self._gaps = 0

    @property
    def welcomed(self) -> bool:
        """Whether WELCOME has come."""
        return self._welcome is not None

    @property
    def server_time_us(self) -> int | None:
        """The cloud's clock at WELCOME, microseconds since 1970 (UTC)."""
        return None if self._welcome is None else self._welcome.server_time_us

    @property
    def waits_for_answer(self) -> bool:
        """Whether the cloud owes a WELCOME, or an answer to a batch."""
        return self._welcome is None or self._sent > self._uplink.resume_seq

    def hello(self) -> Hello:
        """Return the frame that begins the connection."""
        codec = self._uplink.codec
        codecs = [int(Codec.RAW), int(Codec.ZSTD)]
        if codec.dictionaries:
            codecs.append(int(Codec.ZSTD_DICTIONARY))
        return Hello(
            protocol=PROTOCOL,
            token=self._token,
            device=self._device,
            agent=self._agent,
            resume_seq=self._uplink.resume_seq,
            codecs=codecs,
            dictionaries=codec.dictionaries,
        )

    def frames(self) -> list[Batch]:
        """Return the batches to send now; each is returned once, unless it must go again.

        Raises
        ------
        ByeError
            The device's store was replaced: the conversation has to begin again.
        """
        welcome = self._welcome
        if welcome is None:
            return []
        if self._uplink.needs_hello:
            raise ByeError(ErrorCode.OK, "the device's store was replaced; begin again")
        now = self._monotonic()
        if now < self._not_before:
            return []
        self._held = {scope: until for scope, until in self._held.items() if now < until}
        if "all" in self._held:
            return []
        batches = self._uplink.pending(
            welcome.window,
            after=self._sent,
            hold=self._hold(),
            codec=self._codec,
            dictionary=self._dictionary,
            max_frame=welcome.max_frame,
        )
        if batches:
            self._sent = batches[-1].seq
            self._highest = max(self._highest, self._sent)
        return batches

    def _hold(self) -> set[str]:
        # "soon" holds back what is less urgent as well.
        if "soon" in self._held:
            return {"soon", "idle"}
        return {"idle"} if "idle" in self._held else set()

    def wait_s(self, longest: float) -> float:
        """Return for how long nothing can be sent for sure, at most ``longest`` seconds."""
        until = max(self._not_before, self._held.get("all", 0.0))
        return min(max(until - self._monotonic(), 0.0), longest)

    def take(self, frame: Frame) -> Pong | None:
        """Act on a frame of the cloud; return the answer that it calls for, if any.

        Raises
        ------
        ByeError
            The connection is over.
        InputError
            A frame that a cloud does not send, or WELCOME out of place.
        """
        if isinstance(frame, Ping):
            return Pong(frame.mono_us)
        if isinstance(frame, Pong):
            return None
        if isinstance(frame, Bye):
            raise ByeError(frame.code, frame.text or "the cloud closed the tunnel")
        if isinstance(frame, Notice):
            self._on_notice(frame.epoch, frame.cohort, frame.mask)
        elif isinstance(frame, Welcome):
            self._take_welcome(frame)
        elif self._welcome is None:
            raise InputError("the cloud spoke before WELCOME", field=type(frame).__name__)
        elif isinstance(frame, Ack):
            self._take_ack(frame.seq)
        elif isinstance(frame, Nack):
            self._take_nack(frame)
        elif isinstance(frame, Pause):
            self._take_pause(frame)
        else:
            raise InputError("a cloud does not say this", field=type(frame).__name__)
        return None

    def again(self, frame: Welcome) -> None:
        """Act on the WELCOME of a further exchange over HTTP: it is an ACK of the cursor.

        Raises
        ------
        ByeError
            The cursor is past everything this connection sent: begin again.
        """
        if frame.ack_seq > self._highest:
            raise ByeError(ErrorCode.OK, "the cloud's cursor has moved without us; begin again")
        self._take_ack(frame.ack_seq)

    def _take_ack(self, seq: int) -> None:
        if seq > self._highest:
            raise InputError("ACK of a batch that was never sent", field="seq", value=seq)
        self._gaps = 0
        self._sent = max(self._sent, seq)
        self._uplink.acked(seq)

    def _take_welcome(self, frame: Welcome) -> None:
        if self._welcome is not None:
            raise InputError("a second WELCOME", field="connection")
        if not (1 <= frame.window <= _MAX_WINDOW and 0 <= frame.ack_seq < 1 << 53):
            raise InputError("out of range", field="welcome", value=(frame.window, frame.ack_seq))
        self._uplink.welcomed(frame.ack_seq)
        self._sent = self._highest = frame.ack_seq
        known = self._uplink.codec.dictionaries
        if frame.codec == Codec.ZSTD_DICTIONARY and frame.dictionary in known:
            self._codec, self._dictionary = int(frame.codec), frame.dictionary
        elif frame.codec in (Codec.ZSTD, Codec.ZSTD_DICTIONARY):
            self._codec = int(Codec.ZSTD)
        self._welcome = frame

    def _take_nack(self, frame: Nack) -> None:
        if frame.retry_ms < 0 and frame.seq <= self._highest:
            self._gaps = 0
            self._uplink.refused(frame.seq, frame.code)
            return
        if frame.seq > self._sent:
            return  # an answer to a sending that is being repeated already
        if frame.code == ErrorCode.UNKNOWN_DICTIONARY:
            self._codec, self._dictionary = int(Codec.ZSTD), 0
        elif frame.code == ErrorCode.WINDOW_EXCEEDED:
            self._gaps += frame.seq == self._uplink.resume_seq + 1
            if self._gaps >= _MAX_GAPS:
                # The oldest batch we have is not the one the cloud waits for: only
                # a HELLO can put that right.
                raise ByeError(frame.code, "the cloud waits for another batch; begin again")
        wait_s = min(frame.retry_ms / 1000, _MAX_PAUSE_S)
        self._not_before = max(self._not_before, self._monotonic() + wait_s)
        # Whatever came after it will be refused as well: go back to it.
        self._sent = min(self._sent, frame.seq - 1)

    def _take_pause(self, frame: Pause) -> None:
        if frame.scope not in ("all", *CLASSES):
            raise InputError("unknown scope", field="scope", value=frame.scope)
        until = self._monotonic() + min(max(frame.ms, 0) / 1000, _MAX_PAUSE_S)
        self._held[frame.scope] = max(self._held.get(frame.scope, 0.0), until)
