"""A circuit breaker for each task: what keeps failing rests, and is tried again later.

Walle sheet C.5: open after 5 failures in the last 20 runs or 3 crashes in a
row; half-open after a minute, doubling to an hour; closed after 3 good runs.
"""

from __future__ import annotations

from collections import deque
from typing import Literal

from shoal.wire.codes import ErrorCode

__all__ = ["CircuitBreaker"]

_CRASHES = (ErrorCode.VM_CRASHED, ErrorCode.MEMORY)


class CircuitBreaker:
    """The breaker of one version of one task; times in seconds of a steady clock.

    Parameters
    ----------
    window : int
        Runs that are looked back on.
    failures : int
        Failures among them that open it.
    crashes : int
        Crashes in a row that open it.
    rest_s, longest_rest_s : float
        First and longest rest.
    good_runs : int
        Good runs in a row that close it.
    """

    def __init__(
        self,
        *,
        window: int = 20,
        failures: int = 5,
        crashes: int = 3,
        rest_s: float = 60.0,
        longest_rest_s: float = 3600.0,
        good_runs: int = 3,
    ) -> None:
        self._recent: deque[bool] = deque(maxlen=window)
        self._failures, self._crashes, self._good_runs = failures, crashes, good_runs
        self._first_rest, self._longest_rest = rest_s, longest_rest_s
        self._rest = rest_s
        self._crashes_in_row = 0
        self._good_in_row = 0
        self._open_until = 0.0
        self._state: Literal["closed", "open", "half-open"] = "closed"

    def state(self, now: float) -> Literal["closed", "open", "half-open"]:
        """Return the state at time ``now``."""
        if self._state == "open" and now >= self._open_until:
            self._state, self._good_in_row = "half-open", 0
        return self._state

    def allows(self, now: float) -> bool:
        """Say whether a run may start."""
        return self.state(now) != "open"

    def record(self, outcome: int, now: float) -> None:
        """Take note of a finished run."""
        if outcome in (ErrorCode.CANCELLED, ErrorCode.CIRCUIT_OPEN, ErrorCode.RATE_LIMITED):
            return
        state = self.state(now)
        good = outcome == 0
        self._recent.append(good)
        self._crashes_in_row = self._crashes_in_row + 1 if outcome in _CRASHES else 0
        self._good_in_row = self._good_in_row + 1 if good else 0
        if state == "half-open":
            if not good:
                self._trip(now)
            elif self._good_in_row >= self._good_runs:
                self._state, self._rest = "closed", self._first_rest
                self._recent.clear()
        elif state == "closed":
            failed = len(self._recent) - sum(self._recent)
            if failed >= self._failures or self._crashes_in_row >= self._crashes:
                self._trip(now)

    def _trip(self, now: float) -> None:
        self._state = "open"
        self._open_until = now + self._rest
        self._rest = min(self._rest * 2, self._longest_rest)
        self._crashes_in_row = 0
