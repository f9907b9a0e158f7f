"""Ingest: a batch is durable, its records stored once, before it is acknowledged.

One writer thread takes every batch that waits, of all connections, into one
transaction (group commit): a hundred devices share one disk flush. The
transaction holds the records, the devices' cursors, the dead letters and what
the callbacks derive, so a crash leaves all of a batch or nothing of it; only
then the ACKs go out (Walle sheet 6.6, B.6).

Repeats are removed twice: by the cursor (a batch that was stored is answered
with an ACK and not looked at) and by the records' own ids (a record that comes
again under another batch number, after either end lost its memory).
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from shoal.cloud import store as tables
from shoal.cloud.admission import Admitted, RefusedBatchError, RefusedRecord, admit
from shoal.cloud.deadletters import DeadLetters
from shoal.cloud.modelversions import ModelVersions
from shoal.cloud.rows import RowWriter
from shoal.cloud.store import Store
from shoal.core.crashpoints import crashpoint
from shoal.core.errors import UnavailableError
from shoal.wire.codes import ErrorCode
from shoal.wire.compression import BodyCodec, UnknownDictionaryError
from shoal.wire.dictionary import built_in_dictionaries
from shoal.wire.frames import Ack, Batch, Nack
from shoal.wire.limits import DEFAULT_LIMITS, WireLimits
from shoal.wire.profile import TaskProfile
from shoal.wire.results import ResultBatch

__all__ = ["MAX_SEQ", "Ingest"]

_log = logging.getLogger(__name__)

#: Batch numbers stay below this, so that any database and JSON reader holds them.
MAX_SEQ: Final = 1 << 53

_NEVER: Final = -1  # retry_ms of a batch that must not come again
_BUSY_MS: Final = 500
_AWAY_MS: Final = 2000
_PART: Final = "ingest"


@dataclass(slots=True)
class _Job:
    device: bytes
    now_us: int
    future: Future[Any]
    frame: Batch | None = None
    resume_seq: int = 0
    size: int = 64


@dataclass(slots=True)
class _Group:
    """What one transaction collects before it writes."""

    cursors: dict[bytes, int]
    moved: dict[bytes, int] = field(default_factory=dict)
    rows: RowWriter = field(default_factory=RowWriter)
    dead: DeadLetters = field(default_factory=DeadLetters)
    counts: Counter[str] = field(default_factory=Counter)
    batches: list[tuple[_Job, int]] = field(default_factory=list)
    profiles: list[tuple[_Job, TaskProfile]] = field(default_factory=list)


class Ingest:
    """Takes the batches of all devices.

    Parameters
    ----------
    store : Store
        The cloud's database.
    on_results : callable, optional
        ``(device, batch, now_us)``, called inside the transaction that stores
        the batch, with the records that were new. What it writes through the
        store belongs to the same transaction; if it raises, only its own writes
        are undone, and the failure is counted and logged.
    on_profile : callable, optional
        ``(device, profile, now_us)``, for a task profile that came as a batch.
    codec : BodyCodec, optional
        With the dictionaries that devices may use; the shipped one if absent.
    limits : WireLimits, optional
        Checked before anything is decoded.
    max_waiting_bytes : int
        Above this the answer is NACK with a time to come back; nothing is dropped.
    max_group : int
        Most batches in one transaction.

    Notes
    -----
    Safe for any number of threads and event loops.
    """

    def __init__(
        self,
        store: Store,
        on_results: Callable[[bytes, ResultBatch, int], None] | None = None,
        *,
        on_profile: Callable[[bytes, TaskProfile, int], None] | None = None,
        codec: BodyCodec | None = None,
        limits: WireLimits = DEFAULT_LIMITS,
        max_waiting_bytes: int = 32 * 1024 * 1024,
        max_group: int = 512,
    ) -> None:
        self._store = store
        self._on_results = on_results
        self._on_profile = on_profile
        self.limits = limits
        self.codec = codec or BodyCodec(built_in_dictionaries(), limits)
        self._max_waiting = max_waiting_bytes
        self._max_group = max_group
        self._models = ModelVersions()
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting_bytes = 0
        self._closed = False
        #: Batches by what became of them, and ``groups`` (transactions), since the start.
        self.counts: Counter[str] = Counter()
        self._writer = threading.Thread(target=self._write, name="ingest", daemon=True)
        self._writer.start()

    # -- asking ---------------------------------------------------------------------------

    def accept(self, device: bytes, frame: Batch, now_us: int) -> Ack | Nack:
        """Store a batch and return the answer; blocks until it is durable.

        Returns
        -------
        Ack
            Everything up to its ``seq`` is durable.
        Nack
            ``retry_ms < 0``: the batch, or the part of it that broke a rule, was
            put aside as a dead letter and must not come again. Otherwise it may
            come again after that time, starting from the oldest one that is
            not acknowledged.
        """
        return self.submit(device, frame, now_us).result()

    def submit(self, device: bytes, frame: Batch, now_us: int) -> Future[Ack | Nack]:
        """Queue a batch; the future's result is that of :meth:`accept`.

        Batches of one device must be submitted in the order of their arrival.
        """
        job: _Job = _Job(device, now_us, Future(), frame, size=64 + len(frame.body))
        with self._lock:
            if not self._closed and self._waiting_bytes + job.size <= self._max_waiting:
                self._waiting_bytes += job.size
                self._queue.put(job)
                return job.future
            self.counts["busy"] += 1
        job.future.set_result(
            Nack(frame.seq, ErrorCode.RATE_LIMITED, _BUSY_MS, "more is waiting than can be taken")
        )
        return job.future

    def resume(self, device: bytes, resume_seq: int, now_us: int) -> Future[int]:
        """Begin a connection: return the cursor, moved up to ``resume_seq`` if it was behind.

        A cursor behind what the device knows to be acknowledged means that this
        database forgot (it was restored from a copy); the missing batches are
        counted as ``cursor_lost``. The future raises :class:`UnavailableError`
        when the store is away.
        """
        future: Future[int] = Future()
        with self._lock:
            if self._closed:
                future.set_exception(UnavailableError("the ingest is closed"))
                return future
            self._queue.put(_Job(device, now_us, future, resume_seq=resume_seq))
        return future

    @property
    def pressure(self) -> float:
        """How full the queue is: 0 empty, 1 full."""
        return self._waiting_bytes / self._max_waiting

    def close(self) -> None:
        """Store what waits, then stop."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._writer.join()

    def __enter__(self) -> Ingest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- writing --------------------------------------------------------------------------

    def _write(self) -> None:
        while True:
            jobs = []
            job = self._queue.get()
            while job is not None:
                jobs.append(job)
                if len(jobs) >= self._max_group:
                    break
                try:
                    job = self._queue.get_nowait()
                except queue.Empty:
                    break
            if jobs:
                self._settle(jobs)
            if job is None:
                return

    def _settle(self, jobs: list[_Job]) -> None:
        """Commit the jobs together; if one of them is poison, find it and go on."""
        try:
            answers = self._commit(jobs)
        except Exception as error:
            self._models.abort()
            away = _is_away(error)
            if len(jobs) > 1 and not away:
                for job in jobs:
                    self._settle([job])
                return
            answers = [self._failed(job, error, away) for job in jobs]
        self.counts["groups"] += 1
        with self._lock:
            self._waiting_bytes -= sum(job.size for job in jobs if job.frame is not None)
        crashpoint("ingest.acked.before")
        for job, answer in zip(jobs, answers, strict=True):
            # A connection that is gone has cancelled; what it sent is durable all the same.
            if job.future.set_running_or_notify_cancel():
                if isinstance(answer, Exception):
                    job.future.set_exception(answer)
                else:
                    job.future.set_result(answer)

    def _failed(self, job: _Job, error: Exception, away: bool) -> Any:
        self.counts["failed"] += 1
        _log.error("a batch could not be stored: %s", error, exc_info=None if away else error)
        if job.frame is None:
            return UnavailableError(f"the store is away: {type(error).__name__}")
        seq = job.frame.seq
        if away:
            return Nack(seq, ErrorCode.RATE_LIMITED, _AWAY_MS, "the store is away")
        try:
            with self._store.begin() as connection:
                group = _Group(self._cursors(connection, [job]))
                if seq != group.cursors.get(job.device, 0) + 1:  # nothing of it was to be stored
                    return Nack(
                        seq, ErrorCode.WINDOW_EXCEEDED, _AWAY_MS, "failed; go on from HELLO"
                    )
                group.moved[job.device] = seq
                group.dead.add_batch(job.device, job.frame, ErrorCode.SCHEMA_MISMATCH, job.now_us)
                self._flush(connection, group, job.now_us)
        except sa.exc.SQLAlchemyError:
            _log.exception("nor could its dead letter")
            return Nack(seq, ErrorCode.RATE_LIMITED, _AWAY_MS, "the store is away")
        return Nack(seq, ErrorCode.SCHEMA_MISMATCH, _NEVER, "cannot be stored")

    def _commit(self, jobs: list[_Job]) -> list[Any]:
        with self._store.begin() as connection:
            self._models.begin()
            group = _Group(self._cursors(connection, jobs))
            answers = [self._take(connection, group, job) for job in jobs]
            self._flush(connection, group, max(job.now_us for job in jobs))
            crashpoint("ingest.commit.before")
        crashpoint("ingest.commit.after")
        return answers

    def _cursors(self, connection: sa.Connection, jobs: Iterable[_Job]) -> dict[bytes, int]:
        devices = list({job.device for job in jobs})
        query = sa.select(tables.cursor.c.device, tables.cursor.c.seq).where(
            tables.cursor.c.device.in_(devices)
        )
        return {row.device: row.seq for row in connection.execute(query)}

    def _take(self, connection: sa.Connection, group: _Group, job: _Job) -> Any:
        known = group.cursors.get(job.device, 0)
        frame = job.frame
        if frame is None:
            if not known < job.resume_seq < MAX_SEQ:
                return known
            group.counts["cursor_lost"] += job.resume_seq - known
            group.cursors[job.device] = group.moved[job.device] = job.resume_seq
            return job.resume_seq
        seq = frame.seq
        if not 1 <= seq < MAX_SEQ:
            group.counts["bad_number"] += 1
            return Nack(seq, ErrorCode.BAD_FRAME, _NEVER, "a batch's number is out of range")
        if seq <= known:
            self.counts["repeated"] += 1
            return Ack(known)
        if seq > known + 1:
            self.counts["gap"] += 1
            text = f"batch {known + 1} is the next"
            return Nack(seq, ErrorCode.WINDOW_EXCEEDED, 0, text)
        answer: Ack | Nack = Ack(seq)
        try:
            admitted = admit(job.device, frame, self.codec, self.limits)
        except UnknownDictionaryError as error:
            self.counts["unknown_dictionary"] += 1
            return Nack(seq, ErrorCode.UNKNOWN_DICTIONARY, 0, str(error))
        except RefusedBatchError as error:
            group.dead.add_batch(job.device, frame, error.code, job.now_us)
            answer = Nack(seq, error.code, _NEVER, str(error))
        else:
            refused = self._store_admitted(connection, group, job, admitted)
            if refused:
                group.dead.add_records(job.device, seq, refused, job.now_us)
                text = f"{len(refused)} records refused, the first: {refused[0].reason}"
                answer = Nack(seq, refused[0].code, _NEVER, text)
        self.counts["taken" if isinstance(answer, Ack) else "refused"] += 1
        group.cursors[job.device] = group.moved[job.device] = seq
        return answer

    def _store_admitted(
        self, connection: sa.Connection, group: _Group, job: _Job, admitted: Admitted
    ) -> list[RefusedRecord]:
        refused = list(admitted.refused)
        if admitted.events is not None:
            group.rows.add_events(job.device, admitted.events, job.now_us)
        elif admitted.profile is not None:
            if self._on_profile is None:
                body = msgspec.msgpack.encode(admitted.profile)
                text = "profiles are not taken here"
                return [RefusedRecord(ErrorCode.SCHEMA_MISMATCH, text, body)]
            group.profiles.append((job, admitted.profile))
        elif admitted.results is not None:
            batch, skewed = self._models.split(connection, job.device, admitted.results)
            refused += skewed
            group.batches.append((job, group.rows.add_results(job.device, batch, job.now_us)))
        return refused

    def _flush(self, connection: sa.Connection, group: _Group, now_us: int) -> None:
        fresh = group.rows.write(self._store, connection)
        if self._on_results is not None:
            for job, place in group.batches:
                self._call(group, self._on_results, job, fresh[place])
        if self._on_profile is not None:
            for job, profile in group.profiles:
                self._call(group, self._on_profile, job, profile)
        group.counts.update(group.dead.write(connection))
        if group.moved:
            connection.execute(
                self._store.upsert(tables.cursor, ["device"], ["seq", "updated_us"]),
                [
                    {"device": device, "seq": seq, "updated_us": now_us}
                    for device, seq in group.moved.items()
                ],
            )
        for reason, number in group.counts.items():
            self._store.count_dropped(_PART, reason, number)

    def _call(
        self, group: _Group, handler: Callable[[bytes, Any, int], None], job: _Job, what: Any
    ) -> None:
        try:
            with self._store.begin():  # a savepoint: only its own writes are undone
                handler(job.device, what, job.now_us)
        except Exception as error:
            if _is_away(error):
                raise  # the whole group comes again
            _log.exception("a callback of the ingest failed")
            group.counts["callback_failed"] += 1


def _is_away(error: Exception) -> bool:
    """Whether the database cannot be used now, rather than dislikes what it was given."""
    gone = isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated
    return gone or isinstance(error, (sa.exc.OperationalError, sa.exc.TimeoutError, OSError))
