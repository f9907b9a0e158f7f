"""A future that costs little when nobody waits on it.

A :class:`concurrent.futures.Future` makes a condition, a lock and three lists at
birth. Most runs of a task are finished before anybody asks, so these are made
here when somebody waits, adds a callback or cancels. All else is the library's.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, InvalidStateError
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, PENDING
from typing import Any, TypeVar

__all__ = ["RunFuture"]

Result = TypeVar("Result")

#: Held for moments only; one for all, since a lock each is what this saves.
_GUARD = threading.Lock()
_LAZY = frozenset(("_condition", "_waiters", "_done_callbacks"))
_OVER = (FINISHED, CANCELLED, CANCELLED_AND_NOTIFIED)


class RunFuture(Future[Result]):
    """The result of a run; use it like any other future."""

    _state = PENDING
    _result = None
    _exception = None
    _watched = False

    def __init__(self) -> None:
        # Not the library's: what it makes is made by __getattr__ when it is needed.
        pass

    def __getattr__(self, name: str) -> Any:
        if name not in _LAZY:
            raise AttributeError(name)
        with _GUARD:
            if not self._watched:
                self._waiters = []
                self._done_callbacks: list[Any] = []
                self._condition = threading.Condition()
                self._watched = True
        return object.__getattribute__(self, name)

    def set_result(self, result: Result) -> None:
        """Finish; raises ``InvalidStateError`` if it is over already."""
        with _GUARD:
            if not self._watched:
                if self._state != PENDING:
                    raise InvalidStateError(self._state)  # its repr would want the guard
                # Whoever comes to wait from now on must take the guard first, and then
                # finds it finished.
                self._result = result
                self._state = FINISHED
                return
        super().set_result(result)

    def done(self) -> bool:
        """Say whether it is over."""
        return self._state in _OVER

    def result(self, timeout: float | None = None) -> Result:
        """Return the result; waits for it at most ``timeout`` seconds."""
        if self._state == FINISHED and self._exception is None:
            return self._result  # type: ignore[return-value]
        return super().result(timeout)
