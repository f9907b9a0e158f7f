"""Uplink: what may leave the device, in numbered batches that survive any crash.

Records are put inside the caller's own transaction, so that a task's results
and its place in the event log become durable together. Batches get their number
at the last moment, when a connection has room for them, and keep number and
content until the cloud has acknowledged them (Walle sheet 6.6, B.6).

Numbers and lost memories
-------------------------
The cloud keeps one cursor a device: the highest batch up to which everything is
durable. Both ends may forget, and neither forgetting loses a result:

* *The device forgot* (folder wiped, database damaged, an old image restored, a
  commit lost with the power): WELCOME's ``ack_seq`` is above every number this
  store ever gave out. As numbers are given out only after a WELCOME, nothing of
  this store can have such a number, so it jumps: the next batch is
  ``ack_seq + 1``. Records that the cloud has seen under an older number carry
  the same ids, and are stored once.
* *The cloud forgot* (restored from a backup): HELLO's ``resume_seq`` is above
  the cloud's cursor, which moves up to it; the device resends from its oldest
  unacknowledged batch, and ids remove what was known already.

Two devices that share one id at the same time are outside of this.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Final

import msgspec

from shoal.core.crashpoints import crashpoint
from shoal.core.errors import ConflictError, InputError, LimitError
from shoal.device.batches import (
    emptied,
    event_batch,
    event_group,
    result_batch,
    without_send_time,
)
from shoal.device.declared import Budget, DeclaredOutputs, OutputKind
from shoal.device.outbox import CLASSES, Outbox, OutboxBounds, RecordKind, UplinkClass
from shoal.device.store import DeviceStore
from shoal.wire.compression import FRAME_ROOM, BodyCodec
from shoal.wire.dictionary import built_in_dictionaries
from shoal.wire.events import Event
from shoal.wire.frames import Batch, BatchKind, Codec
from shoal.wire.limits import DEFAULT_LIMITS, WireLimits
from shoal.wire.manifest import OutputSpec, TaskManifest
from shoal.wire.results import FeatureRecord, InstallReport, ResultRecord, RunSummary

__all__ = ["Uplink"]

_LAST: Final = "uplink.last_seq"
_JUMPS: Final = "uplink.jumps"
_BOOT: Final = "log.boot"  # the event log counts the starts
_MAX_ROWS: Final = 4096  # records looked at for one batch


def _wall_us() -> int:
    return time.time_ns() // 1000


def _mono_us() -> int:
    return time.monotonic_ns() // 1000


class Uplink:
    """Declared outputs in, numbered batches out.

    Parameters
    ----------
    store : DeviceStore
        The agent's store; its table ``outbox`` is used.
    device : bytes
        The device's id, 16 bytes.
    limits : WireLimits
        A batch closes at ``limits.frame_target`` bytes.
    bounds : OutboxBounds, optional
        How much may wait while there is no connection.
    close_after_us : int
        A batch of class *soon* closes this long after its first record
        (200 ms); one of class *idle* after 25 times that.
    idle_allowed : callable, optional
        Whether *idle* data may travel now (charging, unmetered network).
    codec : BodyCodec, optional
        With the trained dictionaries that the device has; the shipped one if absent.
    clock, monotonic : callable
        Wall clock and monotonic clock, microseconds.

    Notes
    -----
    Safe for use by several threads: the agent puts, a tunnel's thread sends.
    """

    def __init__(
        self,
        store: DeviceStore,
        device: bytes,
        limits: WireLimits = DEFAULT_LIMITS,
        *,
        bounds: OutboxBounds | None = None,
        close_after_us: int = 200_000,
        idle_allowed: Callable[[], bool] | None = None,
        codec: BodyCodec | None = None,
        clock: Callable[[], int] = _wall_us,
        monotonic: Callable[[], int] = _mono_us,
    ) -> None:
        if len(device) != 16:
            raise InputError("a device id has 16 bytes", field="device", value=device)
        self.store = store
        self.device = device
        self.limits = limits
        self.codec = codec or BodyCodec(built_in_dictionaries(), limits)
        self._outbox = Outbox(store, bounds or OutboxBounds())
        self._close_after_us = close_after_us
        self._idle_allowed = idle_allowed or (lambda: True)
        self._clock = clock
        self._monotonic = monotonic
        self._declared = DeclaredOutputs()
        self._due: dict[UplinkClass, int] = {}
        self._fresh: set[int] = set()  # numbered, never handed out yet
        self._welcomed = False
        self._damage = store.moved_aside
        self._listeners: list[Callable[[], None]] = []

    # -- what may leave ---------------------------------------------------------------------

    def declare(self, manifest: TaskManifest) -> None:
        """Let the declared outputs of a task version leave, and nothing else of it."""
        self.declare_outputs(manifest.task, manifest.version, manifest.outputs)

    def declare_outputs(self, task: str, version: int, outputs: Iterable[OutputSpec]) -> None:
        """Let these outputs of (task, version) leave; replaces an earlier declaration."""
        self._declared.declare(task, version, outputs)

    def retract(self, task: str, version: int) -> None:
        """Forget the declaration of (task, version): it may send nothing any more."""
        self._declared.retract(task, version)

    # -- in ---------------------------------------------------------------------------------

    def put_results(
        self, cursor: sqlite3.Cursor, records: Sequence[ResultRecord], now_us: int | None = None
    ) -> int:
        """Queue results inside the transaction of ``cursor``.

        Returns
        -------
        int
            How many were taken. The others were not declared, exceed their
            budget of bytes a day, or are too large; they are counted, and the
            counts travel in the next batch.
        """
        return self._put(cursor, RecordKind.RESULT, "result", records, now_us)

    def put_features(
        self, cursor: sqlite3.Cursor, records: Sequence[FeatureRecord], now_us: int | None = None
    ) -> int:
        """Queue features; as :meth:`put_results`. A dtype other than the declared is refused."""
        return self._put(cursor, RecordKind.FEATURE, "feature", records, now_us)

    def put_runs(
        self, cursor: sqlite3.Cursor, records: Sequence[RunSummary], now_us: int | None = None
    ) -> int:
        """Queue run summaries (class *soon*; they need no declaration)."""
        longest = self.limits.string
        cut = [
            record
            if len(record.message) <= longest
            else msgspec.structs.replace(record, message=record.message[: longest - 1] + "…")
            for record in records
        ]
        return self._put(cursor, RecordKind.RUN, None, cut, now_us)

    def put_installs(
        self, cursor: sqlite3.Cursor, records: Sequence[InstallReport], now_us: int | None = None
    ) -> int:
        """Queue install reports (class *soon*; they need no declaration)."""
        return self._put(cursor, RecordKind.INSTALL, None, records, now_us)

    def put_events(
        self,
        cursor: sqlite3.Cursor,
        task: str,
        version: int,
        events: Sequence[Event],
        now_us: int | None = None,
    ) -> int:
        """Queue raw events for a task that declares an output of kind ``events``."""
        records = [(task, version, event) for event in events]
        return self._put(cursor, RecordKind.EVENT, "events", records, now_us)

    def count_dropped(self, cursor: sqlite3.Cursor, reason: str, number: int = 1) -> None:
        """Count things that another part of the device dropped, to be reported upwards.

        ``reason`` is a lower-case word of at most 64 characters.
        """
        self._outbox.count(cursor, reason, number)

    def _put(
        self,
        cursor: sqlite3.Cursor,
        kind: RecordKind,
        output_kind: OutputKind | None,
        records: Sequence[Any],
        now_us: int | None,
    ) -> int:
        if not records:
            return 0
        self._follow_store()
        now = self._clock() if now_us is None else now_us
        budget = Budget(cursor, now)
        by_class: dict[UplinkClass, list[bytes]] = {}
        for record in records:
            body = msgspec.msgpack.encode(record)
            uplink: UplinkClass = "soon"
            reason = ""
            if len(body) > self.limits.frame // 2:
                reason = "too_large"
            elif output_kind is not None:
                output = self._declared.find(output_kind, record)
                task = record[0] if kind == RecordKind.EVENT else record.task
                if output is None:
                    reason = "undeclared"
                elif not budget.spend(task, output, len(body)):
                    reason = "over_budget"
                else:
                    uplink = output.uplink
            if reason:
                self._outbox.count(cursor, f"{reason}_{kind.name.lower()}")
            else:
                by_class.setdefault(uplink, []).append(body)
        budget.save()
        for uplink, bodies in by_class.items():
            self._outbox.add(cursor, uplink, kind, bodies, now)
        for listener in self._listeners:
            listener()
        return sum(map(len, by_class.values()))

    # -- out --------------------------------------------------------------------------------

    def seal(self, now_us: int | None = None, *, everything: bool = False) -> None:
        """Close what is due: *now* at once, *soon* at 200 ms or 30 KB, *idle* when allowed.

        Parameters
        ----------
        now_us : int, optional
            The device's wall clock.
        everything : bool
            Close all classes whatever their age (before a shutdown).
        """
        now = self._clock() if now_us is None else now_us
        self._follow_store()
        waits: dict[UplinkClass, int] = {
            "now": 0, "soon": self._close_after_us, "idle": 25 * self._close_after_us,
        }  # fmt: skip
        with self.store.read() as cursor:
            for uplink in CLASSES:
                span = self._outbox.oldest(cursor, uplink)
                if span is None:
                    self._due.pop(uplink, None)
                    continue
                age = now - span[2]
                full = self._outbox.waiting_bytes(cursor, uplink) >= self.limits.frame_target
                # A negative age means that the clock was set back: do not wait for it.
                if everything or (
                    (full or age >= waits[uplink] or age < 0)
                    and (uplink != "idle" or self._idle_allowed())
                ):
                    self._due[uplink] = span[1]

    def welcomed(self, ack_seq: int) -> None:
        """Take the cloud's cursor at the start of a connection, and jump if need be.

        See the head of this module for what happens when either end forgot.
        """
        self._follow_store()
        with self.store.transaction() as cursor:
            if ack_seq > self._number(cursor, _LAST):
                self._set(cursor, _LAST, ack_seq)
                self._set(cursor, _JUMPS, self._number(cursor, _JUMPS) + 1)
            cursor.execute("DELETE FROM outbox WHERE seq BETWEEN 1 AND ?", (ack_seq,))
            crashpoint("uplink.welcomed.before")
        crashpoint("uplink.welcomed.after")
        self._welcomed = True

    def pending(
        self,
        window: int = 8,
        *,
        after: int = 0,
        hold: Collection[str] = (),
        codec: int = Codec.ZSTD,
        dictionary: int = 0,
        max_frame: int | None = None,
    ) -> list[Batch]:
        """Return the batches that may be under way now, oldest first.

        Numbers closed records as far as ``window`` unacknowledged batches
        allow. The same batch comes back, with the same content, until it is
        acknowledged or refused.

        Parameters
        ----------
        window : int
            Most unacknowledged batches at a time.
        after : int
            Leave out batches up to this number (those on their way already).
        hold : collection of str
            Classes that must not start now (the cloud said PAUSE).
        codec, dictionary : int
            As the WELCOME says.
        max_frame : int, optional
            Longest frame that the cloud takes; a batch that cannot fit is
            replaced by an empty one and counted.

        Raises
        ------
        ConflictError
            :meth:`welcomed` was not called since the store was opened or replaced.
        """
        self._follow_store()
        if not self._welcomed:
            raise ConflictError(
                "no batch may be numbered before the cloud's cursor is known",
                hint="call welcomed(ack_seq) with what WELCOME said",
            )
        with self.store.read() as cursor:
            rows = self._numbered(cursor, window)
        if len(rows) < window and self._due:
            with self.store.transaction() as cursor:
                room = window - len(rows)
                while room and self._close_one(cursor, hold):
                    room -= 1
                crashpoint("uplink.numbered.before")
                rows = self._numbered(cursor, window)
            crashpoint("uplink.numbered.after")
        longest = min(max_frame or self.limits.frame, self.limits.frame)
        return [self._frame(row, codec, dictionary, longest) for row in rows if row[0] > after]

    def acked(self, seq: int) -> None:
        """Forget every batch up to ``seq``: they are durable in the cloud."""
        self._follow_store()
        with self.store.transaction() as cursor:
            cursor.execute("DELETE FROM outbox WHERE seq BETWEEN 1 AND ?", (seq,))
            crashpoint("uplink.acked.before")
        crashpoint("uplink.acked.after")

    def refused(self, seq: int, code: int) -> None:
        """Forget batch ``seq``: the cloud will never take it, has kept it aside and counted it."""
        self._follow_store()
        with self.store.transaction() as cursor:
            cursor.execute("DELETE FROM outbox WHERE seq = ? AND seq > 0", (seq,))
            if cursor.rowcount:
                self._outbox.count(cursor, f"refused_{code}")
            crashpoint("uplink.refused.before")
        crashpoint("uplink.refused.after")

    # -- state ------------------------------------------------------------------------------

    @property
    def resume_seq(self) -> int:
        """Everything up to this batch has been acknowledged (HELLO says it)."""
        with self.store.read() as cursor:
            first = cursor.execute("SELECT min(seq) FROM outbox WHERE seq > 0").fetchone()[0]
            return self._number(cursor, _LAST) if first is None else int(first) - 1

    @property
    def unacknowledged(self) -> int:
        """Batches under way plus records that wait for a batch; 0 when all is durable."""
        with self.store.read() as cursor:
            return int(cursor.execute("SELECT count(*) FROM outbox").fetchone()[0])

    @property
    def has_work(self) -> bool:
        """Whether anything waits or is under way (cheaper than counting it)."""
        with self.store.read() as cursor:
            return cursor.execute("SELECT 1 FROM outbox LIMIT 1").fetchone() is not None

    @property
    def needs_hello(self) -> bool:
        """Whether a connection has to begin with HELLO before anything may be sent."""
        self._follow_store()
        return not self._welcomed

    @property
    def jumps(self) -> int:
        """How often this store found the cloud's cursor ahead of its own numbers."""
        with self.store.read() as cursor:
            return self._number(cursor, _JUMPS)

    def dropped(self) -> dict[str, int]:
        """Return what was dropped and has not been reported upwards yet, by reason."""
        with self.store.read() as cursor:
            return self._outbox.dropped(cursor)

    def on_put(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` whenever records are put (before their transaction commits)."""
        self._listeners.append(listener)

    # -- inside -----------------------------------------------------------------------------

    def _follow_store(self) -> None:
        # A damaged file was replaced under us: what memory says is about the old one.
        if self.store.moved_aside != self._damage:
            self._damage = self.store.moved_aside
            self._outbox.forget()
            self._due.clear()
            self._fresh.clear()
            self._welcomed = False

    def _number(self, cursor: sqlite3.Cursor, key: str) -> int:
        row = cursor.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return 0 if row is None else int(row[0])

    def _set(self, cursor: sqlite3.Cursor, key: str, value: int) -> None:
        cursor.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def _numbered(self, cursor: sqlite3.Cursor, window: int) -> list[tuple[int, int, bytes]]:
        return cursor.execute(
            "SELECT seq, kind, body FROM outbox WHERE seq > 0 ORDER BY seq LIMIT ?", (window,)
        ).fetchall()

    def _close_one(self, cursor: sqlite3.Cursor, hold: Collection[str]) -> bool:
        """Number one batch of the most urgent class that has something due."""
        for uplink in CLASSES:
            due = self._due.get(uplink)
            if due is None or uplink in hold:
                continue
            taken: list[tuple[int, RecordKind, bytes]] = []
            group, size = None, 0
            for looked, (row, kind, body) in enumerate(self._outbox.scan(cursor, uplink, due)):
                key = event_group(kind, body)
                if not taken:
                    group = key
                elif looked >= _MAX_ROWS or size + len(body) > self.limits.frame_target:
                    break
                if key == group:
                    taken.append((row, kind, body))
                    size += len(body)
            if not taken:
                del self._due[uplink]
                continue
            seq = self._number(cursor, _LAST) + 1
            if group is None:
                batch_kind = BatchKind.RESULTS
                dropped = self._outbox.take_dropped(cursor)
                records = ((kind, body) for _, kind, body in taken)
                packed = result_batch(self.device, seq, records, dropped)
            else:
                batch_kind = BatchKind.EVENTS
                boot = self._number(cursor, _BOOT)
                bodies = (body for _, _, body in taken)
                packed = event_batch(
                    self.device, seq, group, bodies=bodies, boot=boot, mono_us=self._monotonic()
                )
            cursor.execute(
                "INSERT INTO outbox (seq, class, kind, body, created_us) VALUES (?, ?, ?, ?, ?)",
                (seq, uplink, int(batch_kind), packed, self._clock()),
            )
            self._outbox.remove(cursor, uplink, [(row, len(body)) for row, _, body in taken])
            self._set(cursor, _LAST, seq)
            self._fresh.add(seq)
            return True
        return False

    def _frame(
        self, row: tuple[int, int, bytes], codec: int, dictionary: int, longest: int
    ) -> Batch:
        seq, kind, body = row
        if seq in self._fresh:
            self._fresh.discard(seq)
        else:
            with self.store.transaction() as cursor:
                cursor.execute("UPDATE outbox SET attempts = attempts + 1 WHERE seq = ?", (seq,))
            if kind == BatchKind.EVENTS:
                body = without_send_time(body)
        try:
            batch: Batch | None = Batch(seq, kind, *self.codec.pack(body, codec, dictionary))
        except LimitError:
            batch = None
        if batch is None or len(batch.body) + FRAME_ROOM > longest:
            # The number is given out, so something has to travel under it.
            body = emptied(self.device, seq, kind, body)
            kind = int(BatchKind.RESULTS)
            with self.store.transaction() as cursor:
                cursor.execute(
                    "UPDATE outbox SET kind = ?, body = ? WHERE seq = ?", (kind, body, seq)
                )
            batch = Batch(seq, kind, int(Codec.RAW), 0, body)
        return batch
