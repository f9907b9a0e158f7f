"""The server's clock, as a device can know it.

A device's own clock may be years off, so nothing that expires is judged by it.
Each answer of the cloud carries the server's time; this class keeps the best
estimate and counts on from it with the monotonic clock (Walle sheet A.9).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Final

import msgspec

__all__ = ["MAX_SKEW_US", "ServerClock", "parse_http_date"]

#: A device clock that is further off than this is reported (error code 105).
MAX_SKEW_US: Final = 86_400_000_000

#: Quartz clocks drift by less than this; an old sample loses against a new one.
_DRIFT: Final = 200e-6
#: Samples of a far-off server time that must agree before installs go on.
_CONFIRMATIONS: Final = 3
_AGREE_US: Final = 60_000_000


def _wall_us() -> int:
    return time.time_ns() // 1000


def _mono_us() -> int:
    return time.monotonic_ns() // 1000


def parse_http_date(text: str) -> int | None:
    """Return the time of an HTTP ``Date`` header in microseconds, or ``None`` if it is not one."""
    try:
        return int(parsedate_to_datetime(text).timestamp()) * 1_000_000
    except (TypeError, ValueError, OverflowError):
        return None


class ServerClock:
    """Estimates the server's time from what its answers say.

    Parameters
    ----------
    wall : callable
        The device's wall clock, microseconds since 1970 (UTC); may be wrong.
    monotonic : callable
        A clock that never jumps, microseconds.
    saved : bytes
        What :meth:`save` returned before a restart.

    Notes
    -----
    Between two answers the estimate goes on with the monotonic clock, so that a
    wall clock set by hand changes nothing. Across a restart only the wall clock
    goes on; the difference that was last seen is kept.
    """

    def __init__(
        self,
        wall: Callable[[], int] = _wall_us,
        monotonic: Callable[[], int] = _mono_us,
        *,
        saved: bytes = b"",
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        #: Server time minus monotonic clock, its uncertainty, and when it was measured.
        self._offset: int | None = None
        self._error_us = 0.0
        self._measured = 0
        self._agreeing = 0
        self._skew_us = 0
        if saved:
            self._skew_us, self._agreeing = msgspec.msgpack.decode(saved, type=tuple[int, int])

    # -- what answers say ------------------------------------------------------------------

    def sample(self, server_us: int, sent_us: int, received_us: int, error_us: int = 0) -> None:
        """Take the server's time from one answer.

        Parameters
        ----------
        server_us : int
            What the answer says, microseconds since 1970 (UTC).
        sent_us, received_us : int
            The monotonic clock before the request and after the answer.
        error_us : int
            What ``server_us`` itself may be off by (0.5 s for a ``Date`` header).
        """
        offset = server_us - (sent_us + received_us) // 2
        error = (received_us - sent_us) / 2 + error_us
        agrees = self._offset is not None and abs(offset - self._offset) <= _AGREE_US + error
        self._agreeing = self._agreeing + 1 if agrees or self._agreeing == 0 else 1
        aged = self._error_us + (received_us - self._measured) * _DRIFT
        if self._offset is None or not agrees or error <= aged:
            self._offset, self._error_us, self._measured = offset, error, received_us
        self._skew_us = self._wall() - (self._monotonic() + self._offset)

    def observe(self, server_us: int, error_us: int = 500_000) -> None:
        """Take the server's time from an answer that has just come."""
        now = self._monotonic()
        self.sample(server_us, now, now, error_us)

    def sample_date(self, date: str, sent_us: int, received_us: int) -> None:
        """Take the server's time from a ``Date`` header, which is cut to whole seconds."""
        server_us = parse_http_date(date)
        if server_us is not None:
            self.sample(server_us + 500_000, sent_us, received_us, 500_000)

    # -- what the device may believe -------------------------------------------------------

    def now_us(self) -> int:
        """Return the estimated server time, microseconds since 1970 (UTC)."""
        if self._offset is None:
            return self._wall() - self._skew_us
        return self._monotonic() + self._offset

    @property
    def known(self) -> bool:
        """Whether the server has said its time since this process started."""
        return self._offset is not None

    def skew_us(self) -> int:
        """The device's wall clock minus the server's, as last seen."""
        return self._skew_us

    def is_skewed(self) -> bool:
        """Whether the device's clock is more than a day off."""
        return abs(self._skew_us) > MAX_SKEW_US

    @property
    def trusted(self) -> bool:
        """Whether installs may go on by this clock.

        A wall clock that agrees within a day is enough. Else the server's time
        must have been confirmed by three answers that agree: a single one could
        come from a cache that was filled long ago.
        """
        return not self.is_skewed() or self._agreeing >= _CONFIRMATIONS

    def save(self) -> bytes:
        """Return what a restart needs."""
        return msgspec.msgpack.encode((self._skew_us, self._agreeing))
