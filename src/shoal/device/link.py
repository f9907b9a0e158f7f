"""A thread that keeps the uplink connected: again and again, ever more slowly, until closed."""

from __future__ import annotations

import logging
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable

from shoal.core.errors import ConflictError, ShoalError
from shoal.device.uplink import Uplink
from shoal.device.window import ByeError
from shoal.wire.codes import ErrorCode

__all__ = ["Link"]

_log = logging.getLogger(__name__)

#: Refusals that a quick second try cannot change.
_LASTING = frozenset(
    {ErrorCode.UNAUTHENTICATED, ErrorCode.DEVICE_REVOKED, ErrorCode.UNSUPPORTED_PROTOCOL}
)


class Link:
    """Base of :class:`Tunnel` and :class:`HttpUplink`: one thread, back-off, flush.

    Parameters
    ----------
    token : callable
        Returns the device's present token; called for every connection.
    device : bytes
        The device's id.
    uplink : Uplink
        What to send.
    on_notice : callable
        ``(epoch, cohort, mask)``, in the link's thread. It must not block.
    agent : str
        Name and version of this agent.
    on_refused : callable, optional
        ``(code, text)`` when the cloud says BYE; 103 means: enrol again.
    backoff_s : tuple of float
        First and longest wait between two tries; doubled each time, with jitter
        so that a fleet does not come back at once.
    """

    def __init__(
        self,
        token: Callable[[], str],
        device: bytes,
        uplink: Uplink,
        on_notice: Callable[[int, int, int], None] = lambda *_: None,
        agent: str = "shoal",
        *,
        on_refused: Callable[[int, str], None] | None = None,
        backoff_s: tuple[float, float] = (0.5, 60.0),
    ) -> None:
        self._token = token
        self._device = device
        self._uplink = uplink
        self._on_notice = on_notice
        self._agent = agent
        self._on_refused = on_refused
        self._backoff_s = backoff_s
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._retry = threading.Event()
        self._flushing = 0
        self._lock = threading.Lock()
        self._connected = False
        self._thread: threading.Thread | None = None
        #: Why connections ended, by error, and ``opened``.
        self.counts: Counter[str] = Counter()
        #: The last reason why there was no connection; empty after a WELCOME.
        self.last_error = ""
        uplink.on_put(self._wake.set)

    @property
    def connected(self) -> bool:
        """Whether the cloud has said WELCOME and the connection stands."""
        return self._connected

    def start(self) -> None:
        """Start the thread.

        Raises
        ------
        ConflictError
            It was started before.
        """
        if self._thread is not None:
            raise ConflictError("the link was started before")
        self._thread = threading.Thread(target=self._run, name="uplink", daemon=True)
        self._thread.start()

    def retry_now(self) -> None:
        """Try at once instead of waiting (the network is back, there is a new token)."""
        self._retry.set()

    def flush(self, timeout: float) -> bool:
        """Send everything now, idle data too, and wait until all is acknowledged.

        Returns
        -------
        bool
            Whether all was acknowledged within ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        with self._lock:
            self._flushing += 1
        self.retry_now()
        try:
            while self._uplink.has_work:
                if time.monotonic() >= deadline or self._closing.is_set():
                    return False
                self._wake.set()
                self._closing.wait(0.01)
            return True
        finally:
            with self._lock:
                self._flushing -= 1

    def close(self) -> None:
        """End the connection and the thread; what is not acknowledged stays in the store."""
        self._closing.set()
        self._wake.set()
        self._retry.set()
        self._interrupt()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def __enter__(self) -> Link:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- for the kinds of link ---------------------------------------------------------------

    def _session(self) -> None:
        """Connect and converse until the connection ends or :attr:`_closing` is set."""
        raise NotImplementedError

    def _interrupt(self) -> None:
        """Make a blocked session return soon."""

    def _opened(self) -> None:
        self._connected = True
        self.last_error = ""
        self.counts["opened"] += 1

    def _seal(self) -> None:
        self._uplink.seal(everything=self._flushing > 0)

    # -- the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        first, longest = self._backoff_s
        wait = first
        while not self._closing.is_set():
            opened = self.counts["opened"]
            lasting = False
            try:
                self._session()
            except ByeError as error:
                self._ended(f"bye_{error.code}", str(error))
                lasting = error.code in _LASTING
                if self._on_refused is not None:
                    self._on_refused(error.code, str(error))
            # sqlite3: the store was closed, or its disk is gone; the agent decides what next.
            except (OSError, ShoalError, sqlite3.Error) as error:
                self._ended(type(error).__name__, str(error) or type(error).__name__)
            except Exception as error:
                # A defect, of ours or of a callback; the uplink must live on all the same.
                _log.exception("the uplink's connection failed")
                self._ended(type(error).__name__, str(error))
            finally:
                self._connected = False
            if self.counts["opened"] > opened:
                wait = first
            if lasting:
                wait = max(wait, min(longest, 8 * first))
            self._pause(wait * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
            wait = min(2 * wait, longest)

    def _ended(self, reason: str, text: str) -> None:
        if not self._closing.is_set():
            self.counts[reason] += 1
            self.last_error = text

    def _pause(self, seconds: float) -> None:
        # New records do not shorten the wait; retry_now(), flush() and close() do.
        if not self._closing.is_set():
            self._retry.wait(seconds)
            self._retry.clear()
