"""A small publish/subscribe channel inside one cloud process.

Threads publish, threads and event loops listen; nothing here needs asyncio. A
subscriber that does not keep up loses its oldest messages, and the loss is
counted: a live view may skip, the store never does.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["Bus", "BusMessage", "Subscription"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BusMessage:
    """One published event.

    Attributes
    ----------
    seq : int
        Position on the bus, from 1; gaps in a subscription are lost messages
        or topics that it did not ask for.
    topic : str
        For example ``"epoch"``, ``"release"``, ``"result"``, ``"fleet"``.
    at_us : int
        When it was published, microseconds since 1970 (UTC).
    payload : dict
        Small and JSON-able.
    """

    seq: int
    topic: str
    at_us: int
    payload: dict[str, Any]


class Subscription:
    """One listener's queue; made by :meth:`Bus.subscribe`."""

    def __init__(
        self,
        bus: Bus,
        topics: frozenset[str] | None,
        maxsize: int,
        notify: Callable[[], object] | None,
    ) -> None:
        self._bus = bus
        self._topics = topics
        self._queue: deque[BusMessage] = deque()
        self._maxsize = maxsize
        self._notify = notify
        self._ready = threading.Condition()
        self._closed = False
        #: Messages that this listener lost because it was slow.
        self.dropped = 0

    def _offer(self, message: BusMessage) -> None:
        if self._topics is not None and message.topic not in self._topics:
            return
        with self._ready:
            if self._closed:
                return
            if len(self._queue) >= self._maxsize:
                self._queue.popleft()
                self.dropped += 1
            self._queue.append(message)
            self._ready.notify()
        if self._notify is not None:
            try:
                self._notify()
            except Exception:
                # Its event loop is gone: that must not hurt whoever publishes.
                _log.warning("a listener of the bus cannot be woken; it is dropped")
                self._closed = True

    def get(self, timeout: float | None = None) -> BusMessage | None:
        """Return the next message; ``None`` after ``timeout`` seconds or once closed.

        ``timeout=0`` never waits.
        """
        with self._ready:
            self._ready.wait_for(lambda: bool(self._queue) or self._closed, timeout)
            return self._queue.popleft() if self._queue else None

    def drain(self) -> list[BusMessage]:
        """Return everything that waits, without waiting."""
        with self._ready:
            messages = list(self._queue)
            self._queue.clear()
            return messages

    def close(self) -> None:
        """Stop listening and wake whoever waits in :meth:`get`."""
        self._bus._remove(self)
        with self._ready:
            self._closed = True
            self._ready.notify_all()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Bus:
    """Thread-safe fan-out of small dict events.

    Examples
    --------
    >>> bus = Bus()
    >>> with bus.subscribe(["epoch"]) as listener:
    ...     bus.publish("epoch", {"epoch": 7})
    ...     listener.get(timeout=1).payload
    {'epoch': 7}
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._subscriptions: tuple[Subscription, ...] = ()
        self._seq = 0

    def publish(self, topic: str, payload: dict[str, Any]) -> None:
        """Hand ``payload`` to every listener of ``topic``; never blocks on a slow one."""
        with self._lock:
            self._seq += 1
            message = BusMessage(self._seq, topic, time.time_ns() // 1000, payload)
            # Offered under the lock, so that every listener sees one order.
            for subscription in self._subscriptions:
                subscription._offer(message)
            if any(subscription._closed for subscription in self._subscriptions):
                self._subscriptions = tuple(s for s in self._subscriptions if not s._closed)

    def subscribe(
        self,
        topics: Iterable[str] | None = None,
        *,
        maxsize: int = 1024,
        notify: Callable[[], object] | None = None,
    ) -> Subscription:
        """Listen to ``topics`` (all if absent).

        Parameters
        ----------
        topics : iterable of str, optional
            Topics to receive.
        maxsize : int
            Messages kept for a slow listener before the oldest is dropped.
        notify : callable, optional
            Called, from the publisher's thread, after each message that was
            queued; an event loop passes ``lambda:
            loop.call_soon_threadsafe(event.set)`` and then calls
            :meth:`Subscription.drain`. It must not block or publish; one
            that raises is dropped.
        """
        subscription = Subscription(
            self, None if topics is None else frozenset(topics), maxsize, notify
        )
        with self._lock:
            self._subscriptions = (*self._subscriptions, subscription)
        return subscription

    def _remove(self, subscription: Subscription) -> None:
        with self._lock:
            self._subscriptions = tuple(s for s in self._subscriptions if s is not subscription)
