"""Stream functions for task scripts: filter, key_by, window, map.

Walle sheet B.4 (the four words are Walle's, OSDI 2022). Standard library only:
this file is loaded by its path inside a task's VM. Event time throughout; an
event costs O(1), whatever the window holds.

Examples
--------
>>> from collections import namedtuple
>>> E = namedtuple("E", "ts_us page")
>>> stream = Stream([E(0, "a"), E(1, "b"), E(12, "a")], lateness_us=0)
>>> [(w.key, w.start_us, w.value) for w in
...  stream.key_by(lambda e: e.page).window(Tumbling(10)).map(lambda w: len(w.events))]
[('a', 0, 1), ('b', 0, 1), ('a', 10, 1)]
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

__all__ = ["Sliding", "Stream", "Tumbling", "Visit", "Window"]


class Tumbling:
    """Windows of ``size_us`` one after the other, aligned to time 0."""

    def __init__(self, size_us: int) -> None:
        if size_us <= 0:
            raise ValueError(f"size_us must be positive (got {size_us})")
        self.size_us = size_us
        self.step_us = size_us


class Sliding:
    """Windows of ``size_us`` that begin every ``step_us``; the size is a multiple of the step."""

    def __init__(self, size_us: int, step_us: int) -> None:
        if step_us <= 0 or size_us <= 0 or size_us % step_us:
            raise ValueError(f"size_us must be a multiple of step_us (got {size_us}, {step_us})")
        self.size_us = size_us
        self.step_us = step_us


class Visit:
    """One window a page visit: by the events' visit id, or else ended by a gap of ``gap_us``."""

    def __init__(self, gap_us: int = 1_800_000_000) -> None:
        if gap_us <= 0:
            raise ValueError(f"gap_us must be positive (got {gap_us})")
        self.gap_us = gap_us


class Window:
    """A closed window.

    Attributes
    ----------
    key : object
        What ``key_by`` gave; ``None`` without it.
    start_us, end_us : int
        Its bounds in event time; the end is outside. Of a visit: times of the
        first and the last event.
    events : list
        Its events by time; empty when ``fold`` replaced them.
    value : object
        What ``fold`` made of the events, then what ``map`` made of the window.
    """

    __slots__ = ("end_us", "events", "key", "start_us", "value")

    def __init__(
        self, key: Any, start_us: int, end_us: int, events: list[Any], value: Any = None
    ) -> None:
        self.key = key
        self.start_us = start_us
        self.end_us = end_us
        self.events = events
        self.value = value

    def __repr__(self) -> str:
        return f"Window({self.key!r}, {self.start_us}, {self.end_us}, value={self.value!r})"


class _Pane:
    """Events of one key in one step of time, or what the fold made of them."""

    __slots__ = ("count", "events", "first_us", "last_us", "value")

    def __init__(self, value: Any) -> None:
        self.events: list[Any] = []
        self.value = value
        self.count = 0
        self.first_us = 0
        self.last_us = 0


def _time(event: Any) -> int:
    return int(event.ts_us)


class Stream:
    """A pipeline over events that have ``ts_us`` (and ``visit`` for visit windows).

    Parameters
    ----------
    source : iterable or log, optional
        Events; or anything with ``read(after_seq, limit) -> [(seq, event)]``.
        Leave it out to :meth:`push` events one by one.
    lateness_us : int
        How far behind the latest event time an event may come. A window closes
        when no such event can reach it any more; later ones are dropped and
        counted in :attr:`late`.
    """

    def __init__(
        self, source: Iterable[Any] | Any | None = None, *, lateness_us: int = 30_000_000
    ) -> None:
        self._source = source
        self._lateness_us = lateness_us
        self._stages: list[tuple[str, Callable[..., Any]]] = []
        self._windows: Tumbling | Sliding | Visit | None = None
        self._key: Callable[[Any], Any] | None = None
        self._fold: tuple[Callable[[], Any], Callable[..., Any], Callable[..., Any] | None] | None
        self._fold = None
        self._after: list[tuple[str, Callable[..., Any]]] = []
        self._latest_us: int | None = None
        # Panes by their start; open keys within in the order of their first event.
        self._panes: dict[int, OrderedDict[Any, _Pane]] = {}
        self._closed_to: int | None = None
        self._sessions: OrderedDict[Any, _Pane] = OrderedDict()
        self._over: OrderedDict[Any, None] = OrderedDict()
        #: Events dropped because their window had closed.
        self.late = 0

    # -- building --------------------------------------------------------------------------

    def filter(self, keep: Callable[[Any], Any]) -> Stream:
        """Keep the events (or, after a window, the windows) for which ``keep`` is true."""
        (self._stages if self._windows is None else self._after).append(("filter", keep))
        return self

    def map(self, change: Callable[[Any], Any]) -> Stream:
        """Change events; after a window: set each window's ``value`` to ``change(window)``."""
        (self._stages if self._windows is None else self._after).append(("map", change))
        return self

    def key_by(self, key: Callable[[Any], Any]) -> Stream:
        """Window the events of each key apart."""
        if self._windows is not None:
            raise ValueError("key_by comes before window")
        self._key = key
        return self

    def window(self, windows: Tumbling | Sliding | Visit) -> Stream:
        """Gather events into windows."""
        if self._windows is not None:
            raise ValueError("a stream has one window")
        self._windows = windows
        return self

    def fold(
        self,
        initial: Callable[[], Any],
        step: Callable[[Any, Any], Any],
        merge: Callable[[Any, Any], Any] | None = None,
    ) -> Stream:
        """Fold a window's events into ``value`` as they come instead of keeping them.

        ``step(value, event) -> value``; sliding windows also need ``merge(value,
        value) -> value``. Events arrive in any order within the lateness.
        """
        if self._windows is None:
            raise ValueError("fold comes after window")
        if isinstance(self._windows, Sliding) and merge is None:
            raise ValueError("fold of sliding windows needs merge")
        self._fold = (initial, step, merge)
        return self

    # -- running ---------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        source = self._source
        if source is None:
            raise ValueError("this stream has no source; push events instead")
        if hasattr(source, "read"):
            after = 0
            while rows := source.read(after, 1000):
                for _, event in rows:
                    yield from self.push(event)
                after = rows[-1][0]
        else:
            for event in source:
                yield from self.push(event)
        yield from self.close()

    def push(self, event: Any) -> list[Any]:
        """Take one event; return what comes out (events, or windows that closed)."""
        ts_us = _time(event)
        for what, function in self._stages:
            if what == "filter":
                if not function(event):
                    return self._advance(ts_us)
            else:
                event = function(event)
        if self._windows is None:
            return [event]
        key = None if self._key is None else self._key(event)
        if isinstance(self._windows, Visit):
            return self._push_visit(key, event, ts_us)
        step = self._windows.step_us
        start = ts_us - ts_us % step
        if self._closed_to is not None and start < self._closed_to:
            self.late += 1
            return []
        pane = self._panes.setdefault(start, OrderedDict()).get(key)
        if pane is None:
            pane = self._panes[start][key] = self._new_pane()
        self._add(pane, event, ts_us)
        return self._advance(ts_us)

    def _new_pane(self) -> _Pane:
        return _Pane(None if self._fold is None else self._fold[0]())

    def _add(self, pane: _Pane, event: Any, ts_us: int) -> None:
        if pane.count == 0:
            pane.first_us = pane.last_us = ts_us
        else:
            pane.first_us = min(pane.first_us, ts_us)
            pane.last_us = max(pane.last_us, ts_us)
        pane.count += 1
        if self._fold is None:
            pane.events.append(event)
        else:
            pane.value = self._fold[1](pane.value, event)

    def _advance(self, ts_us: int) -> list[Any]:
        """Move the watermark; return the windows that it closes."""
        if self._latest_us is not None and ts_us <= self._latest_us:
            return []
        self._latest_us = ts_us
        if self._windows is None:
            return []
        if isinstance(self._windows, Visit):
            return self._close_visits(ts_us - self._lateness_us)
        return self._close_panes(ts_us - self._lateness_us)

    def close(self) -> list[Any]:
        """End the stream; return every window that is still open."""
        if isinstance(self._windows, Visit):
            return self._close_visits(None)
        return self._close_panes(None) if self._windows is not None else []

    def _close_panes(self, watermark: int | None) -> list[Any]:
        windows = self._windows
        assert isinstance(windows, Tumbling | Sliding)
        size, step = windows.size_us, windows.step_us
        out: list[Any] = []
        while self._panes:
            oldest = min(self._panes)
            # The first window that still lacks closing and holds the oldest pane.
            start = oldest - size + step
            if self._closed_to is not None:
                start = max(start, self._closed_to)
            while start <= oldest:
                if watermark is not None and start + size > watermark:
                    return out
                out += self._window_at(start, size, step)
                start += step
                self._closed_to = start
            del self._panes[oldest]
        return out

    def _window_at(self, start: int, size: int, step: int) -> list[Any]:
        keys: OrderedDict[Any, list[_Pane]] = OrderedDict()
        for at in range(start, start + size, step):
            for key, pane in self._panes.get(at, {}).items():
                keys.setdefault(key, []).append(pane)
        out = []
        for key, panes in keys.items():
            window = Window(key, start, start + size, [])
            if self._fold is None:
                window.events = sorted((e for pane in panes for e in pane.events), key=_time)
            else:
                merge = self._fold[2]
                window.value = panes[0].value
                for pane in panes[1:]:
                    window.value = merge(window.value, pane.value)  # type: ignore[misc]
            out += self._give_out(window)
        return out

    def _push_visit(self, key: Any, event: Any, ts_us: int) -> list[Any]:
        windows = self._windows
        assert isinstance(windows, Visit)
        visit = getattr(event, "visit", None)
        place = (key, visit)
        if visit is not None and place in self._over:
            self.late += 1
            return []
        out: list[Any] = []
        pane = self._sessions.get(place)
        if pane is not None and visit is None and ts_us - pane.last_us > windows.gap_us:
            out += self._end_visit(place)
            pane = None
        if pane is None:
            pane = self._sessions[place] = self._new_pane()
        self._add(pane, event, ts_us)
        self._sessions.move_to_end(place)
        return out + self._advance(ts_us)

    def _close_visits(self, watermark: int | None) -> list[Any]:
        windows = self._windows
        assert isinstance(windows, Visit)
        out: list[Any] = []
        while self._sessions:
            # The one without events for longest; nobody behind it can be over before it,
            # but for the lateness.
            place, pane = next(iter(self._sessions.items()))
            if watermark is not None and pane.last_us + windows.gap_us >= watermark:
                break
            out += self._end_visit(place)
        return out

    def _end_visit(self, place: Any) -> list[Any]:
        pane = self._sessions.pop(place)
        if place[1] is not None:
            self._over[place] = None
            if len(self._over) > 10_000:
                self._over.popitem(last=False)
        events = sorted(pane.events, key=_time)
        return self._give_out(Window(place[0], pane.first_us, pane.last_us, events, pane.value))

    def _give_out(self, window: Window) -> list[Any]:
        for what, function in self._after:
            if what == "map":
                window.value = function(window)
            elif not function(window):
                return []
        return [window]
