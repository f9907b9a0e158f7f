"""From the event log to the runs of one task: triggers decide when, the manifest decides on what.

Reading is deterministic: the same log from the same place gives the same jobs
with the same ids, which is what makes a repeated run after a crash the same run.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

from shoal.device.store import DeviceStore
from shoal.device.stream.log import EventLog
from shoal.device.stream.triggers import Firing, TriggerEngine
from shoal.wire.events import Event, EventKind
from shoal.wire.specs import TaskManifest, parse_pattern

__all__ = ["Job", "JobSource", "LogView", "derive_id"]

_READ: Final = 512  # events taken from the log at a time
_AHEAD: Final = 64  # jobs after which reading pauses
_MAX_SINCE: Final = 100_000  # unread events of scope "since" that are kept in memory
_MAX_VISIT: Final = 20_000  # events that are looked through for the beginning of a visit
#: A timer of ``not_followed_by`` waits this long for late events (Walle sheet B.3).
_WATERMARK_US: Final = 30_000_000


def derive_id(*parts: bytes | int) -> bytes:
    """Return a 16-byte id that depends on all parts and their order."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        raw = part if isinstance(part, bytes) else part.to_bytes(8, "big")
        digest.update(len(raw).to_bytes(4, "big") + raw)
    return digest.digest()


class LogView:
    """A window on the newest events of a log, so that many tasks decode each event once.

    Parameters
    ----------
    log : EventLog
    size : int
        Events that are kept.
    """

    def __init__(self, log: EventLog, size: int = 8192) -> None:
        self._log = log
        self._size = size
        self._after = 0
        self._seqs: list[int] = []
        self._rows: list[tuple[int, Event]] = []

    @property
    def last_seq(self) -> int:
        """Number of the newest event."""
        return self._log.last_seq

    def read(self, after_seq: int, limit: int = _READ) -> list[tuple[int, Event]]:
        """Return up to ``limit`` events after a number, as :meth:`EventLog.read` does."""
        end = self._seqs[-1] if self._seqs else self._after
        if not self._after <= after_seq <= end:
            if self._after and after_seq < self._after:
                return self._log.read(after_seq, limit)  # far behind the others: past the window
            self._after, self._seqs, self._rows = after_seq, [], []
        place = bisect_right(self._seqs, after_seq)
        while len(self._seqs) - place < limit:
            newest = self._seqs[-1] if self._seqs else self._after
            fresh = self._log.read(newest, max(limit, _READ)) if newest < self._log.last_seq else []
            if not fresh:
                break
            self._rows += fresh
            self._seqs += [seq for seq, _ in fresh]
        found = self._rows[place : place + limit]
        excess = len(self._seqs) - self._size
        if excess > 0:
            self._after = self._seqs[excess - 1]
            del self._seqs[:excess], self._rows[:excess]
        return found

    def forget(self) -> None:
        """Drop what is kept: the log was trimmed or replaced."""
        self._after, self._seqs, self._rows = 0, [], []


@dataclass
class Job:
    """One run to come.

    Attributes
    ----------
    run : bytes
        Its id, 16 bytes.
    events : list of Event
        What it is given.
    seq : int
        Number of the event at which it fired.
    now_us : int
        Event time of the run.
    last : bool
        Whether it is the last one that fired at ``seq``: only then does the task
        stand after that event.
    triggers : bytes or None
        What the triggers remember after ``seq``; ``None`` if they remember nothing.
    attempts : int
        Tries so far.
    """

    run: bytes
    events: list[Event]
    seq: int
    now_us: int
    last: bool = False
    triggers: bytes | None = None
    attempts: int = field(default=0)


class JobSource:
    """Turns the log after one task's place into jobs.

    Parameters
    ----------
    manifest : TaskManifest
    device : bytes
        Goes into the ids of runs.
    store, view : DeviceStore, LogView
        Where events come from.
    place : int
        Number of the last event that the task has dealt with.
    triggers : bytes or None
        What its triggers remembered there.
    counts : Counter
        ``trimmed_input``: events of scope ``since`` that waited beyond memory.
    """

    def __init__(
        self,
        manifest: TaskManifest,
        device: bytes,
        store: DeviceStore,
        view: LogView,
        *,
        place: int,
        triggers: bytes | None,
        counts: Counter[str],
    ) -> None:
        self._task = manifest.task
        self._version = manifest.version
        self._device = device
        self._store, self._view = store, view
        self._scope = manifest.input.scope
        self._max_events = manifest.input.max_events
        self._readable = [parse_pattern(text) for text in manifest.input.events]
        self._counts = counts
        self._engine = TriggerEngine()
        for trigger in manifest.triggers:
            self._engine.add(manifest.task, trigger)
        if triggers is not None:
            self._engine.restore(triggers)
        self._remembers = any(
            len(t.sequence) > 1 or t.not_followed_by or t.count > 1 or t.cooldown_ms or t.without
            for t in manifest.triggers
        )
        self._timers = any(t.not_followed_by for t in manifest.triggers)
        self._since: deque[Event] = deque()
        self._newest_us = 0
        #: Number of the last event that was read.
        self.position = place
        #: Jobs in the order in which they have to run.
        self.jobs: deque[Job] = deque()

    @property
    def waits_for_more(self) -> bool:
        """Whether events were read that a later run is still to be given."""
        return bool(self._since)

    def remembered(self) -> bytes | None:
        """Return what the triggers remember at :attr:`position`."""
        return self._engine.snapshot() if self._remembers else None

    def read(self) -> bool:
        """Read on, until there are some jobs or the log ends; return whether anything was read."""
        rows = self._view.read(self.position, _READ)
        for seq, event in rows:
            self.position = seq
            if self._scope == "since" and self._may_read(event):
                self._since.append(event)
                if len(self._since) > _MAX_SINCE:
                    self._since.popleft()
                    self._counts["trimmed_input"] += 1
            firings = self._engine.on(event, seq)
            if self._timers:
                self._newest_us = max(self._newest_us, event.ts_us)
                watermark = self._newest_us - _WATERMARK_US
                firings = [*self._engine.on_watermark(watermark), *firings]
            if firings:
                made = [job for firing in firings for job in self._jobs(firing, seq)]
                if made:
                    made[-1].last = True
                    made[-1].triggers = self.remembered()
                    self.jobs.extend(made)
                    if len(self.jobs) >= _AHEAD:
                        break
        return bool(rows)

    def _may_read(self, event: Event) -> bool:
        return any(
            (kind is None or kind == event.kind) and (page is None or page == event.page)
            for kind, page in self._readable
        )

    def _jobs(self, firing: Firing, at: int) -> list[Job]:
        """Return the jobs of one firing: one, or several where the input is larger than a run."""
        if self._scope == "since":
            waiting, self._since = list(self._since), deque()
            size = self._max_events
            # The first trigger of an event takes what there is; another one gets the rest: none.
            parts = [waiting[start : start + size] for start in range(0, len(waiting), size)]
        elif self._scope == "visit":
            parts = [self._readable_of(self._visit(firing.seq, firing.event))]
        else:
            rows = self._view.read(firing.start_seq - 1, firing.seq - firing.start_seq + 1)
            parts = [self._readable_of([event for seq, event in rows if seq <= firing.seq])]
        jobs = []
        for number, events in enumerate(parts):
            final = number == len(parts) - 1
            last = firing.event if final else events[-1]
            name = firing.trigger.encode()
            run = derive_id(self._device, self._task.encode(), self._version, name, last.id)
            jobs.append(Job(run=run, events=events, seq=at, now_us=last.ts_us))
        return jobs

    def _readable_of(self, events: list[Event]) -> list[Event]:
        return [event for event in events if self._may_read(event)][-self._max_events :]

    def _visit(self, seq: int, event: Event) -> list[Event]:
        """Return the events of the page visit that an event belongs to, up to it."""
        low = seq - _MAX_VISIT
        with self._store.read() as cursor:
            if event.visit is not None:
                first = cursor.execute(
                    "SELECT min(seq) FROM event WHERE seq BETWEEN ? AND ? AND visit=?",
                    (low, seq, event.visit),
                ).fetchone()[0]
            else:
                first = cursor.execute(
                    "SELECT max(seq) FROM event WHERE seq BETWEEN ? AND ? AND kind=? AND page=?"
                    " AND boot=?",
                    (low, seq, int(EventKind.PAGE_ENTER), event.page, event.boot),
                ).fetchone()[0]
        if first is None:
            return [event]
        rows = self._view.read(int(first) - 1, seq - int(first) + 1)
        return [
            entry
            for at, entry in rows
            if at <= seq
            and (entry.visit == event.visit if event.visit else entry.page == event.page)
        ]
