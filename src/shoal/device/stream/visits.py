"""Page visits: which events belong to one stay on one page.

Walle sheet B.3 (the page-level view of the log is Walle's, OSDI 2022). Events
wait until the watermark has passed them and are then taken in the order of
their boot and monotonic time, so a stream that is out of order by less than the
hold gives the same visits as a sorted one. What comes later than that changes
visits already closed, as a new revision, for ten minutes; after that it is
dropped and counted.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, OrderedDict
from collections.abc import Iterable
from sqlite3 import Cursor
from typing import Any

import msgspec

from shoal.core.errors import InputError
from shoal.wire.events import Event, EventKind

__all__ = ["CLOSED_BY", "Visit", "VisitTracker", "visit_order"]

#: How a visit can end. "implied": the page beneath it was left, so it was over too.
CLOSED_BY = ("exit", "timeout", "restart", "background", "implied")

_NO_PAGE = {EventKind.APP_FOREGROUND, EventKind.APP_BACKGROUND, EventKind.TIMER}
_MINUTE_US = 60_000_000
_MAX_IDS = 20_000


def visit_order(event: Event) -> tuple[int, int]:
    """Return (boot, monotonic time): the order of events, whatever the wall clock did."""
    return event.boot, event.mono_us or event.ts_us


class Visit(msgspec.Struct, frozen=True):
    """A stay on one page.

    Attributes
    ----------
    id : bytes
        The app's 16-byte id, or one derived from the first event.
    page : str
        Which page.
    entered_us, exited_us : int
        Wall-clock time of the first and the last moment, microseconds UTC.
    dwell_us : int
        Time between them by the monotonic clock; never negative.
    closed_by : str
        One of :data:`CLOSED_BY`.
    complete : bool
        Both its enter and its exit event are there.
    revision : int
        Rises when a late event changed a visit that was given out before.
    events : tuple of Event
        In order; beyond the tracker's limit they are counted, not kept.
    n_events : int
        How many there were.
    """

    id: bytes
    page: str
    entered_us: int
    exited_us: int
    dwell_us: int
    closed_by: str
    complete: bool
    revision: int
    events: tuple[Event, ...]
    n_events: int


class _Open(msgspec.Struct):
    """A visit that goes on, or one closed lately that a late event may still change."""

    id: bytes
    page: str
    named: bool
    events: list[Event]
    n_events: int = 0
    last: int = 0
    revision: int = 0
    closed_by: str = ""
    ended_us: int = 0
    ended: int = 0

    @property
    def first(self) -> Event:
        return self.events[0]


class VisitTracker:
    """Cuts one device's event stream into page visits.

    Parameters
    ----------
    hold_us : int
        How far events may be out of order; the watermark runs this much behind
        the latest event. 0 gives visits out at once and corrects them by
        revisions.
    idle_us, longest_us, background_us : int
        A visit without events for ``idle_us`` is over, as is one of
        ``longest_us``, and all of them when the app was in the background for
        more than ``background_us``.
    late_us : int
        How long after the watermark an event may still change a visit.
    max_events : int
        Events kept of one visit.

    Attributes
    ----------
    counts : Counter
        ``late`` (changed a closed visit), ``late_dropped``, ``duplicate``,
        ``events_dropped`` (beyond ``max_events``), ``restarts``.
    """

    def __init__(
        self,
        *,
        hold_us: int = 30_000_000,
        idle_us: int = 30 * _MINUTE_US,
        longest_us: int = 240 * _MINUTE_US,
        background_us: int = 5 * _MINUTE_US,
        late_us: int = 10 * _MINUTE_US,
        max_events: int = 4096,
    ) -> None:
        for field, value in (("hold_us", hold_us), ("late_us", late_us)):
            if value < 0:
                raise InputError("must not be negative", field=field, value=value)
        self._hold_us = hold_us
        self._idle_us = idle_us
        self._longest_us = longest_us
        self._background_us = background_us
        self._late_us = late_us
        self._max_events = max_events
        self.counts: Counter[str] = Counter()
        self._held: list[tuple[tuple[int, int], int, Event]] = []
        self._arrived = 0  # events of one moment keep the order in which they came
        self._ids: OrderedDict[bytes, None] = OrderedDict()
        self._boot: int | None = None
        self._newest = 0  # monotonic time of the latest event of this boot
        self._taken: tuple[int, int] = (-(1 << 62), 0)  # how far visits have been worked out
        self._stack: list[_Open] = []
        self._closed: list[_Open] = []
        self._background: Event | None = None

    # -- in --------------------------------------------------------------------------------

    def on(self, event: Event) -> list[Visit]:
        """Take the next event of the log; return visits that ended or changed."""
        if event.id in self._ids:
            self.counts["duplicate"] += 1
            return []
        self._ids[event.id] = None
        if len(self._ids) > _MAX_IDS:
            self._ids.popitem(last=False)
        order = visit_order(event)
        if self._boot is None or event.boot > self._boot:
            out = self._new_boot(event.boot) if self._boot is not None else []
            self._boot, self._newest = event.boot, order[1]
        else:
            out = []
        if order < self._taken:
            return out + self._late(event, order)
        self._arrived += 1
        heapq.heappush(self._held, (order, self._arrived, event))
        self._newest = max(self._newest, order[1])
        return out + self._take((self._boot, self._newest - self._hold_us))

    def advance(self, mono_us: int) -> list[Visit]:
        """Say that the monotonic clock of this boot has reached ``mono_us`` without an event."""
        if self._boot is None:
            return []
        self._newest = max(self._newest, mono_us)
        out = self._take((self._boot, self._newest - self._hold_us))
        return out + self._expire(self._newest - self._hold_us)

    def close(self) -> list[Visit]:
        """End everything, as a restart does; return the visits that were open."""
        return self._new_boot(None)

    def _new_boot(self, boot: int | None) -> list[Visit]:
        out: list[Visit] = []
        while self._held:
            order, _, event = heapq.heappop(self._held)
            self._taken = max(self._taken, order)
            out += self._step(event, order[1])
        if boot is not None:
            self.counts["restarts"] += 1
        for visit in self._stack:
            out.append(self._end(visit, "restart", visit.events[-1].ts_us, visit.last))
        # Whatever arrives for the old boot from now on is late.
        self._taken = ((self._boot or 0), 1 << 62)
        self._stack.clear()
        self._background = None
        return out

    # -- in order --------------------------------------------------------------------------

    def _take(self, watermark: tuple[int, int]) -> list[Visit]:
        out: list[Visit] = []
        while self._held and self._held[0][0] <= watermark:
            order, _, event = heapq.heappop(self._held)
            out += self._step(event, order[1])
        self._taken = max(self._taken, watermark)
        return out

    def _step(self, event: Event, now: int) -> list[Visit]:
        out: list[Visit] = []
        if self._background is not None and event.kind != EventKind.TIMER:
            began = self._background.mono_us or self._background.ts_us
            if now - began > self._background_us:
                for visit in self._stack:
                    ended = max(began, visit.last)
                    out.append(self._end(visit, "background", self._background.ts_us, ended))
                self._stack.clear()
            self._background = None
        out += self._expire(now)
        if event.kind == EventKind.APP_BACKGROUND:
            self._background = event
        if event.kind in _NO_PAGE:
            return out
        place = self._find(event)
        if place is None and event.visit is not None and self._is_closed(event.visit):
            # The app goes on with a visit that is over by our rules.
            return out + self._late(event, (event.boot, now))
        if place is None:
            self._open(event, now)
            place = len(self._stack) - 1
        visit = self._stack[place]
        if visit.n_events:
            self._keep(visit, event)
            visit.last = max(visit.last, now)
        else:
            visit.n_events = 1
        if event.kind == EventKind.PAGE_EXIT:
            if event.visit is None:
                # What was entered on top of this page is over as well.
                while len(self._stack) > place + 1:
                    above = self._stack.pop()
                    out.append(self._end(above, "implied", event.ts_us, max(now, above.last)))
            self._stack.remove(visit)
            out.append(self._end(visit, "exit", event.ts_us, now))
        return out

    def _find(self, event: Event) -> int | None:
        """Return the place on the stack of the visit that the event belongs to."""
        if event.kind == EventKind.PAGE_ENTER and event.visit is None:
            return None
        for place in range(len(self._stack) - 1, -1, -1):
            visit = self._stack[place]
            if event.visit is not None:
                if visit.id == event.visit:
                    return place
            elif visit.page == event.page and not visit.named:
                return place
        return None

    def _open(self, event: Event, now: int) -> None:
        named = event.visit is not None
        name = event.visit or hashlib.blake2b(event.id, digest_size=16).digest()
        self._stack.append(_Open(name, event.page, named, [event], last=now))

    def _keep(self, visit: _Open, event: Event) -> None:
        visit.n_events += 1
        if len(visit.events) < self._max_events:
            visit.events.append(event)
        else:
            self.counts["events_dropped"] += 1

    def _expire(self, now: int) -> list[Visit]:
        out: list[Visit] = []
        for visit in list(self._stack):
            began = visit.first.mono_us or visit.first.ts_us
            if now - visit.last > self._idle_us or now - began > self._longest_us:
                self._stack.remove(visit)
                out.append(self._end(visit, "timeout", visit.events[-1].ts_us, visit.last))
        return out

    # -- out -------------------------------------------------------------------------------

    def _end(self, visit: _Open, closed_by: str, ended_us: int, ended: int) -> Visit:
        visit.closed_by, visit.ended_us, visit.ended = closed_by, ended_us, ended
        self._closed.append(visit)
        horizon = self._taken[1] - self._late_us
        boot = self._boot
        self._closed = [
            one for one in self._closed if one.first.boot == boot and one.ended >= horizon
        ] or [visit]
        return _give_out(visit)

    def _is_closed(self, name: bytes) -> bool:
        return any(one.id == name for one in self._closed)

    def _late(self, event: Event, order: tuple[int, int]) -> list[Visit]:
        """Put an event into a visit that is open or was closed lately; else drop it."""
        now = order[1]
        best: _Open | None = None
        if event.kind not in _NO_PAGE and (
            order[0] != self._boot or self._taken[1] - now <= self._late_us
        ):
            for visit in (*self._closed, *self._stack):
                if visit.first.boot != event.boot:
                    continue
                if event.visit is not None or visit.named:
                    fits = visit.id == event.visit
                else:
                    began = visit_order(visit.first)[1]
                    end = visit.ended if visit.closed_by else now
                    fits = visit.page == event.page and began <= now <= end
                if fits:
                    best = visit
        if best is None:
            self.counts["late_dropped"] += 1
            return []
        self.counts["late"] += 1
        self._keep(best, event)
        best.events.sort(key=visit_order)
        best.last = max(best.last, now)
        if not best.closed_by:
            return []
        if event.kind == EventKind.PAGE_EXIT and best.closed_by != "exit":
            best.closed_by, best.ended, best.ended_us = "exit", now, event.ts_us
        best.ended = max(best.ended, best.last)
        best.revision += 1
        return [_give_out(best)]

    # -- surviving a restart ---------------------------------------------------------------

    def save(self, cursor: Cursor, visits: Iterable[Visit]) -> None:
        """Write visits to the table ``visit`` in the caller's transaction."""
        cursor.executemany(
            "INSERT INTO visit (visit, page, entered_us, exited_us, closed_by, n_events,"
            " revision) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (visit) DO UPDATE SET"
            " entered_us=excluded.entered_us, exited_us=excluded.exited_us,"
            " closed_by=excluded.closed_by, n_events=excluded.n_events,"
            " revision=excluded.revision WHERE excluded.revision >= visit.revision",
            [
                (v.id, v.page, v.entered_us, v.exited_us, v.closed_by, v.n_events, v.revision)
                for v in visits
            ],
        )

    def snapshot(self) -> bytes:
        """Return everything remembered (msgpack), to be stored with the consumer's position."""
        return msgspec.msgpack.encode(
            _Snapshot(
                held=[one[2] for one in sorted(self._held)],
                ids=list(self._ids),
                boot=self._boot,
                newest=self._newest,
                taken=self._taken,
                stack=self._stack,
                closed=self._closed,
                background=self._background,
            )
        )

    def restore(self, snapshot: bytes) -> None:
        """Take over a snapshot; raises :class:`InputError` if it is not one."""
        try:
            held = msgspec.msgpack.decode(snapshot, type=_Snapshot)
        except msgspec.DecodeError as error:
            raise InputError(f"not a snapshot: {error}", field="snapshot") from error
        self._held = [(visit_order(one), place, one) for place, one in enumerate(held.held)]
        self._arrived = len(self._held)
        self._ids = OrderedDict.fromkeys(held.ids)
        self._boot, self._newest, self._taken = held.boot, held.newest, held.taken
        self._stack, self._closed = held.stack, held.closed
        self._background = held.background


class _Snapshot(msgspec.Struct):
    held: list[Event]
    ids: list[bytes]
    boot: int | None
    newest: int
    taken: tuple[int, int]
    stack: list[_Open]
    closed: list[_Open]
    background: Event | None


def _give_out(visit: _Open) -> Visit:
    kinds: Any = {event.kind for event in visit.events}
    began = visit_order(visit.first)[1]
    return Visit(
        id=visit.id,
        page=visit.page,
        entered_us=visit.first.ts_us,
        exited_us=visit.ended_us,
        dwell_us=max(0, visit.ended - began),
        closed_by=visit.closed_by,
        complete={EventKind.PAGE_ENTER, EventKind.PAGE_EXIT} <= kinds,
        revision=visit.revision,
        events=tuple(visit.events),
        n_events=visit.n_events,
    )
