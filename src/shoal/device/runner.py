"""Runs one task over the event log, each event exactly once.

The runner reads the log from where the task stands, lets the task's triggers
decide when to run, and gives it the events that its manifest asks for. What a
run leaves (state, features, results) becomes durable in one transaction with
the task's new place in the log, many runs at a time. After a crash the same
events give the same runs with the same ids, so nothing is lost or stored twice.

Every task has a trigger engine of its own, because its partial matches belong
to its own place in the log and are kept with it.
"""

from __future__ import annotations

import hashlib
import json
import struct
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import msgspec

from shoal.core.crashpoints import crashpoint
from shoal.device.container.circuit import CircuitBreaker
from shoal.device.container.pool import VMPool
from shoal.device.container.requests import RunReply, RunRequest, TaskCode
from shoal.device.packages import InstalledTask
from shoal.device.store import DeviceStore
from shoal.device.stream.log import EventLog
from shoal.device.stream.triggers import TriggerEngine
from shoal.device.uplink import Uplink
from shoal.wire.codes import ErrorCode
from shoal.wire.events import Event, EventKind
from shoal.wire.results import FeatureRecord, ResultRecord, RunSummary
from shoal.wire.specs import TaskManifest, parse_pattern

__all__ = ["TaskRunner"]

_READ = 512  # events taken from the log at a time
_COMMIT_RUNS = 64  # finished runs that one transaction takes at the most
#: A timer of ``not_followed_by`` waits this long for late events (Walle sheet B.3).
_WATERMARK_US = 30_000_000
_HOUR_S = 3600.0
#: Outcomes that say nothing about the task itself.
_NOT_ITS_FAULT = (ErrorCode.RATE_LIMITED, ErrorCode.CANCELLED)


class _Consumer(msgspec.Struct, array_like=True):
    """What is kept of a task besides its place in the log."""

    state: bytes | None = None
    triggers: bytes | None = None


@dataclass
class _Job:
    """One run to come: its events, and where the log stands after it."""

    run: bytes
    trigger: str
    events: list[Event]
    seq: int
    triggers: bytes | None
    attempts: int = 0


@dataclass
class _Finished:
    job: _Job
    reply: RunReply
    skipped: bool = False


@dataclass
class _Tally:
    good: int = 0
    failed: int = 0
    message: str = ""
    summaries: list[RunSummary] = field(default_factory=list)


class TaskRunner:
    """One installed version of a task on one device.

    Parameters
    ----------
    installed : InstalledTask
        What runs.
    code : TaskCode
        The same, as the pool wants it.
    store, log, uplink : DeviceStore, EventLog, Uplink
        Where events come from and results go.
    pool : VMPool
        Where it runs.
    attempts : int
        Tries of one run before its events are set aside.
    on_runs : callable
        ``(cursor, task, version, good, failed) -> bool`` inside the transaction;
        true means that the version has failed its trial.
    on_reply : callable, optional
        Told every reply (the simulation test looks on).
    wake : callable, optional
        Called, from the pool's thread, when a run has finished.
    """

    def __init__(
        self,
        installed: InstalledTask,
        code: TaskCode,
        *,
        store: DeviceStore,
        log: EventLog,
        uplink: Uplink,
        pool: VMPool,
        attempts: int = 3,
        on_runs: Callable[..., bool] = lambda *_: False,
        on_reply: Callable[[RunReply], None] = lambda _: None,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.manifest: TaskManifest = installed.manifest
        self.key = installed.key
        self._code = code
        self._store, self._log, self._uplink, self._pool = store, log, uplink, pool
        self._attempts = attempts
        self._on_runs, self._on_reply, self._wake = on_runs, on_reply, wake
        self._readable = [parse_pattern(text) for text in self.manifest.input.events]
        self._scope = self.manifest.input.scope
        self._raw_outputs = any(output.kind == "events" for output in self.manifest.outputs)
        self.breaker = CircuitBreaker()
        self._starts: deque[float] = deque()
        #: Runs by outcome, and ``skipped``, ``trimmed_input``.
        self.counts: Counter[str] = Counter()
        #: Set when the version has failed its trial: (message,).
        self.failed_trial: str | None = None
        self._running: tuple[_Job, Future[RunReply]] | None = None
        self._jobs: deque[_Job] = deque()
        self._finished: list[_Finished] = []
        self._tally = _Tally()
        self._load()

    def _load(self) -> None:
        task = self.key[0]
        with self._store.read() as cursor:
            row = cursor.execute(
                "SELECT last_seq, state FROM consumer WHERE task=?", (task,)
            ).fetchone()
        self._committed_seq = self._read_seq = 0 if row is None else int(row[0])
        kept = _Consumer() if row is None or not row[1] else _decode_consumer(row[1])
        self._state = kept.state
        self._triggers = TriggerEngine()
        for trigger in self.manifest.triggers:
            self._triggers.add(task, trigger)
        if kept.triggers:
            self._triggers.restore(kept.triggers)
        self._multi_step = any(
            len(t.sequence) > 1 or t.not_followed_by or t.count > 1 or t.cooldown_ms
            for t in self.manifest.triggers
        )
        self._timers = any(t.not_followed_by for t in self.manifest.triggers)
        self._since: list[Event] = []
        self._newest_us = 0

    # -- one step ----------------------------------------------------------------------------

    def step(self) -> bool:
        """Do what can be done without waiting; returns whether anything was done."""
        if self.failed_trial is not None:
            return False
        moved = self._take_reply()
        if self._running is None and self.failed_trial is None:
            if not self._jobs:
                moved = self._read() or moved
            moved = self._start() or moved
        idle = self._running is None and not self._jobs
        if self._finished and (idle or len(self._finished) >= _COMMIT_RUNS):
            self.commit()
            moved = True
        elif idle and not moved and not self._since and self.lag >= _READ:
            self._write_place()  # a long stretch without a firing: remember how far it was read
        return moved

    @property
    def lag(self) -> int:
        """Events that were read since the last commit."""
        return self._read_seq - self._committed_seq

    @property
    def backlog(self) -> int:
        """Events of the log that this task has not read and committed yet, at most."""
        return max(self._log.last_seq - self._committed_seq, 0)

    @property
    def idle(self) -> bool:
        """Whether everything in the log has been read, run and committed."""
        return (
            self._running is None
            and not self._jobs
            and not self._finished
            and self._read_seq >= self._log.last_seq
        )

    def _take_reply(self) -> bool:
        if self._running is None or not self._running[1].done():
            return False
        job, future = self._running
        self._running = None
        self._judge(job, future.result())
        return True

    def _judge(self, job: _Job, reply: RunReply) -> None:
        now = time.monotonic()
        outcome = reply.outcome
        if outcome in _NOT_ITS_FAULT:
            self._jobs.appendleft(job)
            self._starts.append(now)  # not at once again
            return
        self.breaker.record(outcome, now)
        self._on_reply(reply)
        self.counts["ok" if outcome == 0 else ErrorCode(outcome).name.lower()] += 1
        job.attempts += 1
        summary = RunSummary(
            run=job.run if job.attempts == 1 else _derive(job.run, b"try", job.attempts),
            task=self.key[0],
            version=self.key[1],
            outcome=outcome,
            backend=reply.backend,
            cpu_us=reply.cpu_us,
            wall_us=reply.wall_us,
            peak_kb=reply.peak_kb,
            ts_us=job.events[-1].ts_us if job.events else 0,
            message=reply.message,
        )
        self._tally.summaries.append(summary)
        if outcome == 0:
            self._tally.good += 1
            self._state = reply.state
            self._finished.append(_Finished(job, reply))
            return
        self._tally.failed += 1
        self._tally.message = reply.message
        if job.attempts < self._attempts:
            self._jobs.appendleft(job)
        else:
            self.counts["skipped"] += 1
            self._finished.append(_Finished(job, reply, skipped=True))
        # A failure is told at once: a guardrail may be waiting for it.
        self.commit()

    # -- reading the log -----------------------------------------------------------------------

    def _read(self) -> bool:
        rows = self._log.read(self._read_seq, _READ)
        task = self.key[0]
        for seq, event in rows:
            self._read_seq = seq
            self._newest_us = max(self._newest_us, event.ts_us)
            firings = self._triggers.on(event, seq)
            if self._timers:
                firings = [
                    *self._triggers.on_watermark(self._newest_us - _WATERMARK_US),
                    *firings,
                ]
            if self._scope == "since" and self._may_read(event):
                self._since.append(event)
                if len(self._since) > self.manifest.input.max_events:
                    del self._since[0]
                    self.counts["trimmed_input"] += 1
            for firing in firings:
                events = self._input(firing.start_seq, firing.seq, firing.event)
                if events is None:
                    continue
                self._jobs.append(
                    _Job(
                        run=_derive(
                            self._uplink.device,
                            task.encode(),
                            self.key[1],
                            firing.trigger.encode(),
                            firing.event.id,
                        ),
                        trigger=firing.trigger,
                        events=events,
                        seq=seq,
                        triggers=self._triggers.snapshot() if self._multi_step else None,
                    )
                )
            if self._jobs and len(self._jobs) >= _COMMIT_RUNS:
                break
        return bool(rows)

    def _may_read(self, event: Event) -> bool:
        return any(
            (kind is None or kind == event.kind) and (page is None or page == event.page)
            for kind, page in self._readable
        )

    def _input(self, start_seq: int, seq: int, event: Event) -> list[Event] | None:
        """Return the events of a run; None if an earlier trigger of the same event took them."""
        if self._scope == "since":
            events, self._since = self._since, []
            return events or None
        limit = self.manifest.input.max_events
        if self._scope == "visit":
            found = self._visit(seq, event)
        else:
            found = [entry for at, entry in self._log.read(start_seq - 1, limit) if at <= seq]
        return [entry for entry in found if self._may_read(entry)][-limit:]

    def _visit(self, seq: int, event: Event) -> list[Event]:
        """Return the events of the page visit that an event belongs to, up to it."""
        with self._store.read() as cursor:
            if event.visit is not None:
                first = cursor.execute(
                    "SELECT min(seq) FROM event WHERE visit=? AND seq<=?", (event.visit, seq)
                ).fetchone()[0]
            else:
                first = cursor.execute(
                    "SELECT max(seq) FROM event WHERE kind=? AND page=? AND boot=? AND seq<=?",
                    (int(EventKind.PAGE_ENTER), event.page, event.boot, seq),
                ).fetchone()[0]
        if first is None:
            return [event]
        found: list[Event] = []
        after = int(first) - 1
        while after < seq:
            rows = self._log.read(after, _READ)
            if not rows:
                break
            for at, entry in rows:
                same = entry.visit == event.visit if event.visit else entry.page == event.page
                if at <= seq and same:
                    found.append(entry)
            after = rows[-1][0]
        return found

    # -- running ---------------------------------------------------------------------------------

    def _start(self) -> bool:
        if not self._jobs:
            return False
        now = time.monotonic()
        if not self.breaker.allows(now) or not self._within_rate(now):
            return False
        job = self._jobs.popleft()
        self._starts.append(now)
        request = RunRequest(
            run=job.run,
            code=self._code,
            events=job.events,
            state=self._state,
            features=self._stored_features(),
            now_us=job.events[-1].ts_us if job.events else 0,
            device=self._uplink.device,
        )
        future = self._pool.submit(request)
        self._running = (job, future)
        future.add_done_callback(lambda _: self._wake())
        return True

    def _within_rate(self, now: float) -> bool:
        while self._starts and now - self._starts[0] > _HOUR_S:
            self._starts.popleft()
        limit = self.manifest.limits.runs_per_hour
        if limit == 0:
            self._starts.clear()
            return True
        return len(self._starts) < limit

    def _stored_features(self) -> dict[tuple[str, str], Any]:
        """Return the features that the manifest lets the task read, the newest of each name."""
        names = self.manifest.input.features
        if not names:
            return {}
        found: dict[tuple[str, str], Any] = {}
        with self._store.read() as cursor:
            for name in names:
                rows = cursor.execute(
                    "SELECT key, dtype, value FROM feature WHERE task=? AND name=?"
                    " ORDER BY ts_us DESC LIMIT 100",
                    (self.key[0], name),
                ).fetchall()
                found.update({(name, key): decode_feature(dtype, v) for key, dtype, v in rows})
        return found

    # -- making it durable -------------------------------------------------------------------------

    def commit(self) -> None:
        """Write finished runs, their outputs and the new place in one transaction."""
        finished, tally = self._finished, self._tally
        if not finished and not tally.summaries:
            return
        task, version = self.key
        place, state, triggers = self._committed_seq, None, None
        results: list[ResultRecord] = []
        features: list[FeatureRecord] = []
        for entry in finished:
            place, triggers = max(place, entry.job.seq), entry.job.triggers
            if not entry.skipped:
                self._collect(entry, results, features)
        with self._store.transaction() as cursor:
            crashpoint("runner.commit.begin")
            if finished:
                state = msgspec.msgpack.encode(_Consumer(self._state, triggers))
                cursor.execute(
                    "INSERT OR REPLACE INTO consumer (task, version, last_seq, state)"
                    " VALUES (?, ?, ?, ?)",
                    (task, version, place, state),
                )
            self._write_features(cursor, features)
            self._uplink.put_results(cursor, results)
            self._uplink.put_features(cursor, features)
            self._uplink.put_runs(cursor, tally.summaries)
            if self._raw_outputs:
                for entry in finished:
                    self._uplink.put_events(cursor, task, version, entry.job.events)
            self._write_runs(cursor, tally.summaries)
            for entry in finished:
                if entry.skipped:
                    self._set_aside(cursor, entry)
            failed = self._on_runs(cursor, task, version, tally.good, tally.failed)
            crashpoint("runner.commit.before")
        crashpoint("runner.commit.after")
        self._committed_seq = place
        self._finished, self._tally = [], _Tally()
        if failed:
            self.failed_trial = tally.message or "its runs failed"

    def _collect(
        self, entry: _Finished, results: list[ResultRecord], features: list[FeatureRecord]
    ) -> None:
        task, version = self.key
        model = self.manifest.model_version
        for place, (name, value, ts_us) in enumerate(entry.reply.emits):
            record_id = _derive(entry.job.run, b"result", place)
            results.append(ResultRecord(record_id, task, version, name, ts_us, value, model))
        for name, key, dtype, value, ts_us in entry.reply.features:
            body = encode_feature(dtype, value)
            features.append(FeatureRecord(task, version, name, key, ts_us, 0, dtype, body, model))

    def _write_features(self, cursor: Any, features: list[FeatureRecord]) -> None:
        cursor.executemany(
            "INSERT OR REPLACE INTO feature (task, name, key, version, ts_us, revision, dtype,"
            " model_version, value) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    f.task,
                    f.name,
                    f.key,
                    f.version,
                    f.ts_us,
                    f.revision,
                    f.dtype,
                    f.model_version,
                    f.value,
                )
                for f in features
            ],
        )

    def _write_runs(self, cursor: Any, summaries: list[RunSummary]) -> None:
        cursor.executemany(
            "INSERT INTO run (id, task, version, started_us, cpu_us, wall_us, peak_kb, backend,"
            " outcome) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    s.run,
                    s.task,
                    s.version,
                    s.ts_us,
                    s.cpu_us,
                    s.wall_us,
                    s.peak_kb,
                    s.backend,
                    s.outcome,
                )
                for s in summaries
            ],
        )

    def _set_aside(self, cursor: Any, entry: _Finished) -> None:
        """Keep the events of a run that failed every time in the quarantine table."""
        last = entry.job.events[-1].id if entry.job.events else entry.job.run
        cursor.execute(
            "INSERT OR REPLACE INTO quarantine (task, event, version, seq, attempts, code, at_us,"
            " message) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self.key[0],
                last,
                self.key[1],
                entry.job.seq,
                entry.job.attempts,
                entry.reply.outcome,
                time.time_ns() // 1000,
                entry.reply.message,
            ),
        )

    def _write_place(self) -> None:
        triggers = self._triggers.snapshot() if self._multi_step else None
        body = msgspec.msgpack.encode(_Consumer(self._state, triggers))
        with self._store.transaction() as cursor:
            cursor.execute(
                "INSERT OR REPLACE INTO consumer (task, version, last_seq, state)"
                " VALUES (?, ?, ?, ?)",
                (*self.key, self._read_seq, body),
            )
        self._committed_seq = self._read_seq

    def close(self) -> None:
        """Commit what has finished; a run under way is begun again at the next start."""
        if self._running is not None:
            self._running[1].cancel()
            self._running = None
        self.commit()


def _decode_consumer(blob: bytes) -> _Consumer:
    return msgspec.msgpack.decode(blob, type=_Consumer)


def _derive(*parts: bytes | int) -> bytes:
    """Return a 16-byte id that depends on all parts and their order."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        raw = part if isinstance(part, bytes) else part.to_bytes(8, "big")
        digest.update(len(raw).to_bytes(4, "big") + raw)
    return digest.digest()


def encode_feature(dtype: str, value: Any) -> bytes:
    """Write a feature's value in its dtype: little-endian float32, JSON or msgpack."""
    if dtype.startswith("f32["):
        return struct.pack(f"<{len(value)}f", *value)
    if dtype == "json":
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return msgspec.msgpack.encode(value)


def decode_feature(dtype: str, value: bytes) -> Any:
    """Read a feature's value."""
    if dtype.startswith("f32["):
        return list(struct.unpack(f"<{len(value) // 4}f", value))
    if dtype == "json":
        return json.loads(value)
    return msgspec.msgpack.decode(value)
