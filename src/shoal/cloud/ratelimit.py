"""Token buckets: how much may be asked of the cloud per second."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

from shoal.core.errors import InputError

__all__ = ["KeyedBuckets", "TokenBucket"]


class TokenBucket:
    """Allows ``rate`` things per second on average and ``burst`` at once.

    Parameters
    ----------
    rate : float
        Per second; 0 allows everything.
    burst : float, optional
        Size of the bucket; one second's worth, at least 1, if absent.
    clock : callable, optional
        Monotonic seconds.
    """

    def __init__(
        self,
        rate: float,
        burst: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if rate < 0:
            raise InputError("must not be negative", field="rate", value=rate)
        self.rate = rate
        self.burst = max(1.0, rate) if burst is None else burst
        self._clock = clock
        self._level = self.burst
        self._at = clock()
        self._lock = threading.Lock()

    def take(self) -> float:
        """Take one; return 0 if it was there, else the seconds until it will be."""
        if self.rate == 0:
            return 0.0
        with self._lock:
            now = self._clock()
            self._level = min(self.burst, self._level + (now - self._at) * self.rate)
            self._at = now
            if self._level >= 1:
                self._level -= 1
                return 0.0
            return (1 - self._level) / self.rate


class KeyedBuckets:
    """One small bucket a key (a device), the least recently used forgotten first.

    A forgotten key starts with a full bucket again, which only ever errs towards
    the caller.
    """

    def __init__(
        self,
        rate: float,
        burst: float | None = None,
        *,
        capacity: int = 100_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rate = rate
        self._burst = burst
        self._capacity = capacity
        self._clock = clock
        self._buckets: OrderedDict[Hashable, TokenBucket] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: Hashable) -> float:
        """Take one of ``key``'s bucket; see :meth:`TokenBucket.take`."""
        if self.rate == 0:
            return 0.0
        with self._lock:
            bucket = self._buckets.pop(key, None)
            if bucket is None:
                bucket = TokenBucket(self.rate, self._burst, clock=self._clock)
                if len(self._buckets) >= self._capacity:
                    self._buckets.popitem(last=False)
            self._buckets[key] = bucket
        return bucket.take()
