"""The event log of a device: append, group commit, read in order, trim.

Walle sheet B.1. Writes gather in memory and go to SQLite 100 at a time or
after 200 ms; a read, a commit of a consumer or :meth:`EventLog.flush` writes
what is left first, so nobody ever acts on an event that a crash could take
back.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec

from shoal.core.errors import InputError, LimitError, UnavailableError
from shoal.device.store import DeviceStore
from shoal.device.stream.content import check_content
from shoal.wire.events import Event, new_ulid
from shoal.wire.limits import DEFAULT_LIMITS, WireLimits

__all__ = ["EventLog"]

_INSERT = (
    "INSERT OR IGNORE INTO event (seq, id, boot, mono_us, ts_us, kind, page, visit, content)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_COLUMNS = "seq, id, kind, page, ts_us, mono_us, boot, visit, content"
_DAY_US = 86_400_000_000
# SQLite integers have 64 bits; times beyond are nonsense anyway.
_I64 = 1 << 63
_unpack = msgspec.msgpack.Decoder(dict[str, Any]).decode


def _now_us() -> int:
    return time.time_ns() // 1000


def _mono_us() -> int:
    return time.monotonic_ns() // 1000


class EventLog:
    """Everything that happened on the device, numbered in the order it arrived.

    Parameters
    ----------
    store : DeviceStore
        Where events live.
    limits : WireLimits
        Size and depth of an event's content.
    group : int
        Write to disk when this many events wait.
    group_us : int
        Or when the oldest waits this long (microseconds).
    durability : {"group", "each"}
        ``"each"`` writes and flushes the disk at every event: 9 times dearer.
    rate_per_s, burst : float, int
        Events that one page may record, per second of event time and at once;
        more are dropped and counted (an event storm must not fill the disk).
    max_waiting : int
        Events kept in memory while the disk refuses writes.
    clock, monotonic : callable
        Wall clock and monotonic clock in microseconds.

    Attributes
    ----------
    boot : int
        Number of this start; a log opened again has the next one.
    counts : Counter
        ``appended``, ``duplicate``, ``rate_limited``, ``refused``, ``disk_full``,
        ``trimmed``, ``trimmed_unread``.
    """

    def __init__(
        self,
        store: DeviceStore,
        limits: WireLimits = DEFAULT_LIMITS,
        *,
        group: int = 100,
        group_us: int = 200_000,
        durability: str = "group",
        rate_per_s: float = 200.0,
        burst: int = 1000,
        max_waiting: int = 10_000,
        clock: Callable[[], int] = _now_us,
        monotonic: Callable[[], int] = _mono_us,
    ) -> None:
        if durability not in ("group", "each"):
            raise InputError("must be 'group' or 'each'", field="durability", value=durability)
        self._store = store
        self._limits = limits
        self._group = 1 if durability == "each" else group
        self._group_us = group_us
        self._each = durability == "each"
        self._rate = rate_per_s
        self._burst = float(burst)
        self._max_waiting = max_waiting
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.RLock()
        self._waiting: list[tuple[Any, ...]] = []
        self._waiting_ids: set[bytes] = set()
        self._waiting_since = 0
        self._retry_at = 0
        self._buckets: OrderedDict[str, list[float]] = OrderedDict()
        self.counts: Counter[str] = Counter()
        # Maps an event time that the app states to this start's monotonic clock.
        self._offset = clock() - monotonic()
        with store.transaction() as cursor:
            self.boot = int(store.meta_get("log.boot", 0)) + 1
            store.meta_set("log.boot", self.boot)
            newest = cursor.execute("SELECT max(seq) FROM event").fetchone()[0] or 0
            # A trimmed or damaged log must not use a number twice.
            read = cursor.execute("SELECT max(last_seq) FROM consumer").fetchone()[0] or 0
            self._seq = max(int(newest), int(read), int(store.meta_get("log.seq", 0)))

    @property
    def last_seq(self) -> int:
        """Number of the newest event; 0 when there has been none."""
        return self._seq

    def append(
        self,
        kind: int,
        page: str,
        content: dict[str, Any] | None = None,
        *,
        ts_us: int | None = None,
        visit: bytes | None = None,
        event_id: bytes | None = None,
        mono_us: int | None = None,
        boot: int | None = None,
    ) -> Event:
        """Record one event.

        Parameters
        ----------
        kind : int
            :class:`~shoal.wire.EventKind`, or an app's own number from 64.
        page : str
            Where it arose.
        content : dict, optional
            What it says; plain values.
        ts_us : int, optional
            When it arose (microseconds UTC); now if absent.
        visit : bytes, optional
            16-byte id of the page visit, when the app gives one.
        event_id : bytes, optional
            16-byte ULID for an event that may be recorded again (a replay, a
            retry); an id that the log holds already is ignored and counted.
        mono_us, boot : int, optional
            For a replay; otherwise the monotonic clock (carried over to ``ts_us``
            when that is given) and this start.

        Returns
        -------
        Event
            As recorded. A duplicate and an event beyond the page's rate are
            returned too, but not kept; see :attr:`counts`.

        Raises
        ------
        LimitError, InputError
            The event is not acceptable; the message names the field. Counted as
            ``refused``.
        DiskFullError, UnavailableError
            The disk refuses writes and ``max_waiting`` events wait already.
        """
        body = None
        try:
            if content:
                body = check_content(content, self._limits)
            self._check(kind, page, ts_us, visit, event_id)
        except InputError:
            self.counts["refused"] += 1
            raise
        with self._lock:
            now_mono = self._monotonic()
            stamp = self._clock() if ts_us is None else ts_us
            if mono_us is None:
                mono_us = now_mono if ts_us is None else ts_us - self._offset
            event = Event(
                id=new_ulid(stamp) if event_id is None else event_id,
                kind=int(kind),
                page=page,
                ts_us=stamp,
                mono_us=mono_us,
                boot=self.boot if boot is None else boot,
                visit=visit,
                content=content or {},
            )
            if event_id is not None and self._known(event_id):
                self.counts["duplicate"] += 1
                return event
            if not self._admit(page, stamp):
                self.counts["rate_limited"] += 1
                return event
            self._enqueue(event, body, now_mono)
        return event

    def _check(
        self, kind: int, page: str, ts_us: int | None, visit: bytes | None, event_id: bytes | None
    ) -> None:
        if not isinstance(kind, int) or not 0 < kind < 256:
            raise InputError("must be a number from 1 to 255", field="kind", value=kind)
        if not isinstance(page, str) or not page or page == "*":
            raise InputError("must be a name other than '*'", field="page", value=page)
        if len(page) > self._limits.string:
            raise LimitError(f"longer than {self._limits.string}", field="page", value=page)
        if ts_us is not None and (not isinstance(ts_us, int) or not -_I64 <= ts_us < _I64):
            raise InputError("must be microseconds as an integer", field="ts_us", value=ts_us)
        for field, value in (("visit", visit), ("event_id", event_id)):
            if value is not None and (not isinstance(value, bytes) or len(value) != 16):
                raise InputError("must be 16 bytes", field=field, value=value)

    def _known(self, event_id: bytes) -> bool:
        if event_id in self._waiting_ids:
            return True
        with self._store.read() as cursor:
            found = cursor.execute("SELECT 1 FROM event WHERE id=?", (event_id,)).fetchone()
        return found is not None

    def _admit(self, page: str, ts_us: int) -> bool:
        """Token bucket of one page, refilled by event time (so a replay is not a storm)."""
        bucket = self._buckets.get(page)
        if bucket is None:
            self._buckets[page] = [self._burst - 1.0, ts_us]
            if len(self._buckets) > 1024:
                self._buckets.popitem(last=False)
            return True
        elapsed = ts_us - bucket[1]
        # A clock set back by more than an hour starts the bucket's time anew instead of
        # freezing the page for years.
        if elapsed > 0 or elapsed < -3_600_000_000:
            bucket[1] = ts_us
            if elapsed > 0:
                bucket[0] = min(self._burst, bucket[0] + elapsed * self._rate / 1e6)
        if bucket[0] < 1.0:
            return False
        bucket[0] -= 1.0
        return True

    def _enqueue(self, event: Event, body: bytes | None, now_mono: int) -> None:
        if len(self._waiting) >= self._max_waiting:
            try:
                self.flush()
            except UnavailableError:
                self.counts["disk_full"] += 1
                raise
        self._seq += 1
        self._waiting.append(
            (
                self._seq, event.id, event.boot, event.mono_us, event.ts_us, event.kind,
                event.page, event.visit, body,
            )
        )  # fmt: skip
        self._waiting_ids.add(event.id)
        self.counts["appended"] += 1
        if len(self._waiting) == 1:
            self._waiting_since = now_mono
        if len(self._waiting) >= self._group or now_mono - self._waiting_since >= self._group_us:
            if now_mono < self._retry_at:
                return
            try:
                self.flush()
            except UnavailableError:
                # The event is safe in memory; whoever flushes or reads gets the error.
                # Ask the disk again only after a while.
                self._retry_at = now_mono + self._group_us
                if self._each:
                    raise

    def flush(self) -> None:
        """Write every waiting event to disk in one transaction.

        Raises
        ------
        DiskFullError, UnavailableError
            Nothing was written; the events stay in memory and are tried again.
        """
        with self._lock:
            if not self._waiting:
                return
            waiting, ids = self._waiting, self._waiting_ids

            def restore() -> None:
                self._waiting = waiting + self._waiting
                self._waiting_ids |= ids

            with self._store.transaction() as cursor:
                cursor.executemany(_INSERT, waiting)
                written = cursor.rowcount
                self._store.on_rollback(restore)
                self._waiting, self._waiting_ids = [], set()
            self.counts["duplicate"] += len(waiting) - written
            self._retry_at = 0
            if self._each:
                self._store.sync()

    def read(self, after_seq: int, limit: int = 1000) -> list[tuple[int, Event]]:
        """Return up to ``limit`` events with a number above ``after_seq``, in order.

        Waiting events are written first: a consumer never sees an event that
        a crash could take back.
        """
        with self._lock:
            if self._waiting and self._seq > after_seq:
                self.flush()
            with self._store.read() as cursor:
                rows = cursor.execute(
                    f"SELECT {_COLUMNS} FROM event WHERE seq>? ORDER BY seq LIMIT ?",  # noqa: S608
                    (after_seq, limit),
                ).fetchall()
        return [
            (seq, Event(eid, kind, page, ts, mono, boot, visit, _unpack(body) if body else {}))
            for seq, eid, kind, page, ts, mono, boot, visit, body in rows
        ]

    def trim(
        self,
        days: float | None = None,
        megabytes: float | None = None,
        *,
        now_us: int | None = None,
    ) -> int:
        """Delete old events; return how many.

        Parameters
        ----------
        days : float, optional
            Delete events older than this that every consumer has read. Unread
            events stay, however old: a clock that jumped must not empty the log.
        megabytes : float, optional
            Delete the oldest events, read or not, until the rest fits. Unread
            ones are counted as ``trimmed_unread``.
        now_us : int, optional
            The present; the wall clock if absent.
        """
        now = self._clock() if now_us is None else now_us
        with self._lock:
            self.flush()
            with self._store.transaction() as cursor:
                read = cursor.execute("SELECT min(last_seq) FROM consumer").fetchone()[0]
                read = self._seq if read is None else int(read)
                gone = 0
                if days is not None:
                    gone += cursor.execute(
                        "DELETE FROM event WHERE seq<=? AND ts_us<?",
                        (read, now - int(days * _DAY_US)),
                    ).rowcount
                if megabytes is not None:
                    # 80 bytes stand for the fixed columns, the row header and the id's index.
                    row = cursor.execute(
                        "SELECT max(seq) FROM (SELECT seq, sum(80 + length(page)"
                        " + coalesce(length(content), 0)) OVER (ORDER BY seq DESC) AS size"
                        " FROM event) WHERE size>?",
                        (int(megabytes * 1_000_000),),
                    ).fetchone()
                    if row[0] is not None:
                        unread = cursor.execute(
                            "SELECT count(*) FROM event WHERE seq>? AND seq<=?", (read, row[0])
                        ).fetchone()[0]
                        self.counts["trimmed_unread"] += unread
                        gone += cursor.execute("DELETE FROM event WHERE seq<=?", (row[0],)).rowcount
                self._store.meta_set("log.seq", self._seq)
        self.counts["trimmed"] += gone
        if gone:
            self._store.compact()
        return gone

    def __len__(self) -> int:
        with self._lock:
            self.flush()
            with self._store.read() as cursor:
                return int(cursor.execute("SELECT count(*) FROM event").fetchone()[0])
