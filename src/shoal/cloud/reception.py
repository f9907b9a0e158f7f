"""How a device is received: its HELLO judged, its cursor told, its pace set.

The websocket and its HTTP fallback share these steps (Walle sheet 6.6).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from shoal.cloud.bus import Bus
from shoal.cloud.ingest import MAX_SEQ, Ingest
from shoal.cloud.problems import Problem
from shoal.cloud.tokens import TokenClaims
from shoal.core.errors import ShoalError
from shoal.wire.codes import ErrorCode
from shoal.wire.frames import Frame, Hello, Pause, Welcome
from shoal.wire.limits import DEFAULT_LIMITS, WireLimits
from shoal.wire.profile import PROTOCOL

__all__ = ["Reception", "RefusedConnectionError", "TunnelParts"]

_PAUSE_MS: Final = 1000
# Overload order: idle first, then soon, results last (Walle sheet, section 8).
_PRESSURES: Final = ((0.9, "all"), (0.75, "soon"), (0.5, "idle"))


def _wall_us() -> int:
    return time.time_ns() // 1000


@dataclass(frozen=True, kw_only=True)
class TunnelParts:
    """What the tunnel speaks to.

    Attributes
    ----------
    ingest : Ingest
        Stores batches.
    verify : callable
        ``(token, now_us) -> TokenClaims``; raises :class:`Problem`.
    revoked : callable
        Whether a device is locked out.
    bus : Bus or None
        Topic ``"epoch"`` (payload ``{"epoch", "cohorts"}``) makes NOTICE frames.
    address : callable or None
        ``(cohort, device hex) -> (epoch, cohort, mask)``, or ``None`` if there
        is nothing to tell; may raise :class:`ShoalError` for the same.
    seen : callable or None
        ``(device, now_us)`` when a device connects.
    limits : WireLimits
    window : int
        Unacknowledged batches that a device may have under way.
    hello_timeout_s, silence_s : float
        A connection that says no HELLO, or nothing at all, for so long is closed;
        after half of ``silence_s`` it is asked with a PING.
    clock : callable
        Microseconds since 1970 (UTC).
    """

    ingest: Ingest
    verify: Callable[[str, int], TokenClaims]
    revoked: Callable[[bytes], bool] = lambda _device: False
    bus: Bus | None = None
    address: Callable[[int, str], tuple[int, int, int] | None] | None = None
    seen: Callable[[bytes, int], None] | None = None
    limits: WireLimits = DEFAULT_LIMITS
    window: int = 8
    hello_timeout_s: float = 10.0
    silence_s: float = 120.0
    clock: Callable[[], int] = field(default=_wall_us)


class RefusedConnectionError(ShoalError):
    """The connection ends with a BYE of this code."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Reception:
    """Receives devices, on whatever way they come."""

    def __init__(self, parts: TunnelParts) -> None:
        self.parts = parts
        #: Connections and frames by kind, for the metrics.
        self.counts: Counter[str] = Counter()

    def admit(self, hello: Frame) -> tuple[Hello, TokenClaims]:
        """Check a HELLO.

        Raises
        ------
        RefusedConnectionError
            It is none, of another protocol, not authentic, or of a device that
            is locked out.
        """
        parts = self.parts
        if not isinstance(hello, Hello):
            raise RefusedConnectionError(ErrorCode.BAD_FRAME, "a connection begins with HELLO")
        if not max(1, PROTOCOL - 1) <= hello.protocol <= PROTOCOL:
            raise RefusedConnectionError(
                ErrorCode.UNSUPPORTED_PROTOCOL,
                f"protocol {hello.protocol} is not spoken here (this is {PROTOCOL})",
            )
        now = parts.clock()
        try:
            claims = parts.verify(hello.token, now)
        except Problem as problem:
            raise RefusedConnectionError(problem.code, str(problem)) from problem
        if claims.device != hello.device:
            raise RefusedConnectionError(
                ErrorCode.UNAUTHENTICATED, "the token belongs to another device"
            )
        if parts.revoked(hello.device):
            raise RefusedConnectionError(ErrorCode.DEVICE_REVOKED, "this device is locked out")
        if not 0 <= hello.resume_seq < MAX_SEQ:
            raise RefusedConnectionError(ErrorCode.BAD_FRAME, "resume_seq is out of range")
        if len(hello.agent) > parts.limits.string:
            raise RefusedConnectionError(ErrorCode.TOO_LARGE, "the agent's name is too long")
        if parts.seen is not None:
            parts.seen(hello.device, now)
        return hello, claims

    async def welcome(self, hello: Hello) -> Welcome:
        """Agree on the cursor and the codec.

        Raises
        ------
        UnavailableError
            The store is away.
        """
        parts = self.parts
        future = parts.ingest.resume(hello.device, hello.resume_seq, parts.clock())
        ack_seq = await asyncio.wrap_future(future)
        codec, dictionary = parts.ingest.codec.choose(hello.codecs, hello.dictionaries)
        return Welcome(
            connection=os.urandom(16),
            ack_seq=ack_seq,
            window=parts.window,
            max_frame=parts.limits.frame,
            codec=codec,
            dictionary=dictionary,
            server_time_us=parts.clock(),
        )

    def pause(self) -> Pause | None:
        """Return the PAUSE that the queue's fill calls for, if any."""
        pressure = self.parts.ingest.pressure
        for level, scope in _PRESSURES:
            if pressure >= level:
                return Pause(_PAUSE_MS, scope)
        return None
