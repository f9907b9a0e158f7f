"""Runs one task over the event log, each event exactly once.

What a run leaves (state, features, results) becomes durable in one transaction
with the task's new place in the log, many runs at a time. After a crash the
same events give the same runs with the same ids, so nothing is lost or stored
twice (Walle sheet B.4, B.7).

Every task has triggers and a place of its own in the log, because a version
that comes back after a failed one goes on from where it was.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from shoal.core.crashpoints import crashpoint
from shoal.core.errors import ConflictError, UnavailableError
from shoal.device.container.circuit import CircuitBreaker
from shoal.device.container.pool import VMPool
from shoal.device.container.requests import RunReply, RunRequest, TaskCode
from shoal.device.jobs import Job, JobSource, LogView, derive_id
from shoal.device.outputs import Finished, RunOutputs, decode_feature
from shoal.device.packages import InstalledTask
from shoal.device.store import DeviceStore
from shoal.device.stream.features import FeatureStore
from shoal.device.uplink import Uplink
from shoal.wire.codes import ErrorCode
from shoal.wire.results import RunSummary
from shoal.wire.specs import TaskManifest

__all__ = ["TaskRunner"]

_COMMIT_RUNS: Final = 64  # finished runs that one transaction takes at the most
_COMMIT_S: Final = 0.2  # or when the oldest has waited for so long
_PLACE_EVERY: Final = 512  # events without a run after which the place is noted
_MAX_FEATURES: Final = 100  # newest keys of a feature that a task may read
_HOUR_S: Final = 3600.0
_SOON_S: Final = 0.05
#: Outcomes that say nothing about the task itself.
_NOT_ITS_FAULT: Final = (ErrorCode.RATE_LIMITED, ErrorCode.CANCELLED)


class _Consumer(msgspec.Struct, array_like=True):
    """What is kept of a task besides its place in the log."""

    state: bytes | None = None
    triggers: bytes | None = None


@dataclass
class _Tally:
    """What the package's trial is told at the next commit."""

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
    store, view, uplink, features : DeviceStore, LogView, Uplink, FeatureStore
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
    clock : callable, optional
        The device's wall clock, microseconds.
    """

    def __init__(
        self,
        installed: InstalledTask,
        code: TaskCode,
        *,
        store: DeviceStore,
        view: LogView,
        uplink: Uplink,
        features: FeatureStore,
        pool: VMPool,
        attempts: int = 3,
        on_runs: Callable[..., bool] = lambda *_: False,
        on_reply: Callable[[RunReply], None] = lambda _: None,
        wake: Callable[[], None] = lambda: None,
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self.manifest: TaskManifest = installed.manifest
        self.key = installed.key
        self._code = code
        self._store, self._view, self._uplink, self._pool = store, view, uplink, pool
        self._attempts = attempts
        self._on_runs, self._on_reply, self._wake = on_runs, on_reply, wake
        self._clock = clock
        self.breaker = CircuitBreaker()
        self._starts: deque[float] = deque()
        self._not_before = 0.0
        #: Runs by outcome, and ``skipped``, ``circuit_open``, ``trimmed_input``.
        self.counts: Counter[str] = Counter()
        self._outputs = RunOutputs(self.manifest, features, uplink, self.counts)
        #: Why the version has failed its trial, once it has.
        self.failed_trial: str | None = None
        self._running: tuple[Job, Future[RunReply], float] | None = None
        self._finished: list[Finished] = []
        self._tally = _Tally()
        self._load()

    def _load(self) -> None:
        """Take up the place and the state that the last commit left."""
        with self._store.read() as cursor:
            row = cursor.execute(
                "SELECT last_seq, state FROM consumer WHERE task=?", (self.key[0],)
            ).fetchone()
            self._readable = {
                name: self._stored(cursor, name) for name in self.manifest.input.features
            }
        self._committed_seq = 0 if row is None else int(row[0])
        kept = _Consumer()
        if row is not None and row[1]:
            kept = msgspec.msgpack.decode(row[1], type=_Consumer)
        self._state = kept.state
        self._source = JobSource(
            self.manifest,
            self._uplink.device,
            self._store,
            self._view,
            place=self._committed_seq,
            triggers=kept.triggers,
            counts=self.counts,
        )

    def _stored(self, cursor: sqlite3.Cursor, name: str) -> dict[str, tuple[int, Any]]:
        rows = cursor.execute(
            "SELECT key, ts_us, dtype, value FROM feature WHERE task=? AND name=?"
            " ORDER BY ts_us DESC, key DESC LIMIT ?",
            (self.key[0], name, _MAX_FEATURES),
        ).fetchall()
        return {key: (ts_us, decode_feature(dtype, value)) for key, ts_us, dtype, value in rows}

    # -- one step ----------------------------------------------------------------------------

    def step(self) -> bool:
        """Do what can be done without waiting; returns whether anything was done.

        Raises
        ------
        DiskFullError, UnavailableError
            What has finished could not be made durable; it is kept and tried again.
        """
        if self.failed_trial is not None:
            return False
        moved = self._take_reply()
        jobs = self._source.jobs
        if self._running is None and self.failed_trial is None:
            if not jobs:
                moved = self._source.read() or moved
            moved = self._start() or moved
        if self.failed_trial is None and self._commit_is_due():
            self.commit()
            moved = True
        return moved

    def _commit_is_due(self) -> bool:
        now = time.monotonic()
        if now < self._not_before:
            return False
        if self._finished:
            return (
                self._running is None  # nothing to run, or not allowed to
                or len(self._finished) >= _COMMIT_RUNS
                or now - self._finished[0].at >= _COMMIT_S
            )
        if self._tally.summaries:
            return True
        # A long stretch without a run: note how far it was read.
        return (
            self._running is None
            and not self._source.jobs
            and not self._source.waits_for_more
            and self._source.position - self._committed_seq >= _PLACE_EVERY
        )

    @property
    def backlog(self) -> int:
        """Events of the log that this task has not read and committed yet, at most."""
        return max(self._view.last_seq - self._committed_seq, 0)

    @property
    def idle(self) -> bool:
        """Whether everything in the log has been read, run and committed."""
        return (
            self._running is None
            and not self._source.jobs
            and not self._finished
            and not self._tally.summaries
            and self._source.position >= self._view.last_seq
        )

    # -- running ---------------------------------------------------------------------------------

    def _start(self) -> bool:
        jobs = self._source.jobs
        now = time.monotonic()
        if (
            not jobs
            or now < self._not_before
            or len(self._finished) >= 4 * _COMMIT_RUNS  # the disk takes nothing at the moment
            or not self.breaker.allows(now)
            or not self._within_rate(now)
        ):
            return False
        job = jobs.popleft()
        future = self._pool.submit(
            RunRequest(
                run=job.run,
                code=self._code,
                events=job.events,
                state=self._state,
                features={
                    (name, key): value
                    for name, held in self._readable.items()
                    for key, (_, value) in held.items()
                },
                now_us=job.now_us,
                device=self._uplink.device,
            )
        )
        self._running = (job, future, now)
        future.add_done_callback(lambda _: self._wake())
        return True

    def _within_rate(self, now: float) -> bool:
        limit = self.manifest.limits.runs_per_hour
        if limit == 0:
            return True
        while self._starts and now - self._starts[0] > _HOUR_S:
            self._starts.popleft()
        if len(self._starts) >= limit:
            return False
        self._starts.append(now)
        return True

    def _take_reply(self) -> bool:
        if self._running is None or not self._running[1].done():
            return False
        job, future, started = self._running
        self._running = None
        self._judge(job, future.result(), started)
        return True

    def _judge(self, job: Job, reply: RunReply, started: float) -> None:
        now = time.monotonic()
        outcome = reply.outcome
        if outcome in _NOT_ITS_FAULT:
            self._source.jobs.appendleft(job)
            self._not_before = now + _SOON_S
            return
        was_open = self.breaker.state(now) == "open"
        self.breaker.record(outcome, now)
        self._on_reply(reply)
        self.counts["ok" if outcome == 0 else ErrorCode(outcome).name.lower()] += 1
        job.attempts += 1
        self._summarize(job, reply, int((now - started) * 1e6))
        if outcome == 0:
            self._tally.good += 1
            self._state = reply.state
            self._keep_readable(reply)
            self._finished.append(Finished(job, reply, self._state, now))
            return
        self._tally.failed += 1
        self._tally.message = reply.message
        if not was_open and self.breaker.state(now) == "open":
            self.counts["circuit_open"] += 1
            self._summarize(job, None, 0)
        if job.attempts < self._attempts:
            self._source.jobs.appendleft(job)
        else:
            self.counts["skipped"] += 1
            self._finished.append(Finished(job, reply, self._state, now, skipped=True))
        # A failure is told at once: a guardrail, or the trial, may be waiting for it.
        self.commit()

    def _summarize(self, job: Job, reply: RunReply | None, latency_us: int) -> None:
        """Note how a run went; without a reply, that the circuit is open now."""
        attempt = job.attempts
        if reply is None:
            run, reply = derive_id(job.run, b"circuit", attempt), RunReply(job.run, 308)
        else:
            run = job.run if attempt == 1 else derive_id(job.run, b"try", attempt)
        self._tally.summaries.append(
            RunSummary(
                run=run,
                task=self.key[0],
                version=self.key[1],
                outcome=int(reply.outcome),
                backend=reply.backend,
                cpu_us=reply.cpu_us,
                wall_us=reply.wall_us,
                peak_kb=reply.peak_kb,
                ts_us=job.now_us,
                latency_us=latency_us,
                message=reply.message,
            )
        )

    def _keep_readable(self, reply: RunReply) -> None:
        """Let the next run read what this one has put, durable or not."""
        for name, key, _, value, ts_us in reply.features:
            held = self._readable.get(name)
            if held is not None:
                held[key] = (ts_us, value)
                if len(held) > _MAX_FEATURES:
                    del held[min(held, key=lambda one: (held[one][0], one))]

    # -- making it durable -------------------------------------------------------------------------

    def commit(self) -> None:
        """Write finished runs, their outputs and the new place in one transaction.

        Raises
        ------
        DiskFullError, UnavailableError
            Nothing was written; all of it is kept for the next time.
        ConflictError
            Another version of the task was put in force meanwhile.
        """
        try:
            self._commit()
        except UnavailableError:
            self._not_before = time.monotonic() + 10 * _SOON_S
            raise

    def _commit(self) -> None:
        # Runs that fired at one event become durable together: the place cannot lie between.
        whole = len(self._finished)
        while whole and not self._finished[whole - 1].job.last:
            whole -= 1
        finished, tally = self._finished[:whole], self._tally
        if finished:
            last = finished[-1]
            place = last.job.seq
            kept = _Consumer(last.state, last.job.triggers)
            if whole == len(self._finished) and self._may_move_on():
                place = self._source.position
                kept.triggers = self._source.remembered()
        elif not self._finished and self._may_move_on():
            place = self._source.position
            kept = _Consumer(self._state, self._source.remembered())
        else:
            place, kept = self._committed_seq, None
        with self._store.transaction() as cursor:
            crashpoint("runner.commit.begin")
            if kept is not None:
                self._write_place(cursor, place, kept)
            self._outputs.write(cursor, finished, self._clock())
            self._outputs.write_runs(cursor, tally.summaries)
            failed = False
            if tally.good or tally.failed:
                failed = self._on_runs(cursor, *self.key, tally.good, tally.failed)
            crashpoint("runner.commit.before")
        crashpoint("runner.commit.after")
        self._committed_seq = place
        self._finished, self._tally = self._finished[whole:], _Tally()
        if failed:
            self.failed_trial = tally.message or "its runs failed"

    def _may_move_on(self) -> bool:
        """Whether nothing that was read is waiting for a run."""
        return self._running is None and not self._source.jobs and not self._source.waits_for_more

    def _write_place(self, cursor: sqlite3.Cursor, place: int, kept: _Consumer) -> None:
        cursor.execute(
            "INSERT INTO consumer (task, version, last_seq, state) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (task) DO UPDATE SET last_seq=excluded.last_seq, state=excluded.state"
            " WHERE version=excluded.version",
            (*self.key, place, msgspec.msgpack.encode(kept)),
        )
        if cursor.rowcount == 0:
            raise ConflictError(f"{self.key[0]} {self.key[1]} is not in force any more")

    def close(self) -> None:
        """Commit what has finished; a run under way is begun again at the next start."""
        if self._running is not None:
            self._running[1].cancel()
            self._source.jobs.appendleft(self._running[0])
            self._running = None
        if self._finished or self._tally.summaries or self._source.position > self._committed_seq:
            self.commit()
