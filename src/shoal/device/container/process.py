"""The process backend: resident workers fed over socket pairs, with few hand-offs.

``submit`` writes straight to a worker from the caller's thread; one thread, the
pump, reads replies, feeds what waits and watches deadlines. A busy worker is
given runs ahead, as many as a few milliseconds of work, and answers several at
once. If it dies, the run that it was on is answered with the cause and the
others are given to its successor. Walle sheet C.1 and C.5.
"""

from __future__ import annotations

import contextlib
import os
import select
import tempfile
import threading
import time
from concurrent.futures import Future, InvalidStateError
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.core.errors import UnavailableError
from shoal.device.container.futures import RunFuture
from shoal.device.container.lanes import Lane
from shoal.device.container.messages import LENGTH, encode
from shoal.device.container.requests import RunReply, RunRequest, TaskCode
from shoal.device.container.sandbox import probe_sandbox
from shoal.device.container.slots import Job
from shoal.device.container.workforce import Workforce
from shoal.wire.codes import ErrorCode

if TYPE_CHECKING:
    from shoal.device.container.pool import VMPoolConfig

__all__ = ["ProcessBackend"]

#: Seconds that the pump stays half awake after work, so that ``submit`` need not
#: wake it, and how long it sleeps meanwhile.
_LINGER, _NAP = 1.0, 0.05


class ProcessBackend:
    """See the module; made by :class:`~shoal.device.container.pool.VMPool`."""

    def __init__(self, config: VMPoolConfig) -> None:
        best = probe_sandbox()
        wanted = best if config.sandbox_level is None else config.sandbox_level
        if wanted > best:
            raise UnavailableError(
                f"sandbox level {wanted} is not to be had here; this machine keeps level {best}",
                hint="lower sandbox_level, or run on a kernel with Landlock and seccomp",
            )
        if not hasattr(os, "pidfd_open") or not hasattr(os, "memfd_create"):
            raise UnavailableError("worker processes need Linux", hint='use backend="inline"')
        self.sandbox_level = wanted
        self._depth = config.queue_depth
        self._lock = threading.Lock()
        self._closed = False
        self._scratch = Path(tempfile.mkdtemp(prefix="shoal-vm-"))
        self._poll = select.epoll()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll.register(self._wake_read, select.EPOLLIN)
        self._active = time.monotonic()
        self._work = Workforce(config, wanted, self._scratch, self._poll, self._wake)
        self._thread = threading.Thread(target=self._pump, name="vm-pool", daemon=True)
        self._thread.start()

    def submit(self, request: RunRequest, deadline_s: float) -> Future[RunReply]:
        """Give a run to a worker that is free, or queue it."""
        future: RunFuture[RunReply] = RunFuture()
        features = request.features
        body = encode(
            (
                request.run,
                request.events,
                request.state,
                [(name, key, value) for (name, key), value in features.items()] if features else [],
                request.now_us,
                request.device,
                deadline_s,
            )
        )
        data = LENGTH.pack(len(body)) + body
        with self._lock:
            lane = self._work.lanes.of(request.code)
            refused = self._refusal(lane)
            if refused is None:
                self._work.queue(Job(request.run, data, deadline_s, lane, future))
                return future
            self._work.ledger.counts["refused"] += 1
        outcome, message = refused
        future.set_result(RunReply(request.run, int(outcome), message=message, backend="process"))
        return future

    def _refusal(self, lane: Lane) -> tuple[int, str] | None:
        if self._closed:
            return ErrorCode.CANCELLED, "the pool is closed"
        if self._work.broken:
            return ErrorCode.VM_CRASHED, self._work.broken
        if lane.code.sandbox_level > self.sandbox_level:
            text = f"the task wants sandbox level {lane.code.sandbox_level}, this is level"
            return ErrorCode.SANDBOX_VIOLATION, f"{text} {self.sandbox_level}"
        if len(lane.queue) >= self._depth:
            return ErrorCode.RATE_LIMITED, f"{len(lane.queue)} runs of the task wait already"
        return None

    def prewarm(self, code: TaskCode, number: int) -> None:
        """Start workers for a task if there is room; returns at once."""
        with self._lock:
            if not self._closed and not self._work.broken:
                self._work.prewarm(code, number)

    def stats(self) -> dict[str, Any]:
        """Return counts, outcomes and what every worker and queue is doing."""
        with self._lock:
            return self._work.stats()

    def close(self) -> None:
        """Answer everything with 309 and end the processes."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=10)
        for job in self._work.take_all():
            self._work.ledger.answer(job, ErrorCode.CANCELLED, "the pool was closed")
        self._settle(self._work.ledger.done)
        self._work.end()
        self._poll.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        with contextlib.suppress(OSError):  # the zygote took it away
            self._scratch.rmdir()

    # -- the pump ----------------------------------------------------------------------------

    def _pump(self) -> None:
        work = self._work
        pause: float | None = _NAP
        while True:
            ready = self._poll.poll(pause)
            with self._lock:
                if self._closed:
                    return
                now = time.monotonic()
                for descriptor, events in ready:
                    if descriptor == self._wake_read:
                        self._sleep_off()
                    else:
                        work.attend(descriptor, events)
                if now >= work.alarm:
                    work.check_deadlines(now)
                if work.lanes.hungry:
                    work.feed_all()
                done, work.ledger.done = work.ledger.done, []
                pause = self._plan(now, active=bool(ready))
            # Callbacks of the futures run without the lock: they may submit again.
            self._settle(done)

    def _plan(self, now: float, *, active: bool) -> float | None:
        """Say how long the pump may sleep, and note it for ``submit``."""
        if active:
            self._active = now
        alarm = self._work.next_look()
        if alarm == float("inf") and now - self._active < _LINGER:
            alarm = now + _NAP
        self._work.alarm = alarm
        return None if alarm == float("inf") else max(alarm - now, 0.0)

    def _settle(self, done: list[tuple[Future[RunReply], RunReply]]) -> None:
        for future, reply in done:
            try:
                future.set_result(reply)
            except InvalidStateError:  # the caller cancelled it
                self._work.ledger.counts["cancelled"] += 1

    def _sleep_off(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"\0")
