"""One writer and many readers: a reader that a write came upon reads again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["Epoch"]

_T = TypeVar("_T")


class Epoch:
    """The lock of the writer, and a number that tells readers of writes.

    Attributes
    ----------
    number : int
        Grows with every change; odd while one is under way.
    lock : RLock
        Held by the writer.
    """

    def __init__(self) -> None:
        self.number = 0
        self.lock = threading.RLock()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock, and let readers know that what they read may be half-written."""
        with self.lock:
            self.number += 1
            try:
                yield
            finally:
                self.number += 1

    def steady(self, work: Callable[[], _T]) -> _T:
        """Return what ``work`` reads at one moment, without keeping the writer waiting."""
        for _ in range(4):
            before = self.number
            if before % 2 == 0:
                found = work()
                if self.number == before:
                    return found
            else:
                with self.lock:  # wait for the writer
                    pass
        with self.lock:
            return work()
