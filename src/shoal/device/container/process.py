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
import signal
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import Future, InvalidStateError
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from shoal.core.errors import UnavailableError
from shoal.device.container.forking import ZygoteLink, ZygoteNews
from shoal.device.container.lanes import Lane
from shoal.device.container.messages import (
    LEAVING,
    LENGTH,
    NO_MEMORY,
    SANDBOX_REFUSED,
    STATE_LIMIT,
    LoadOrder,
    encode,
    frame,
)
from shoal.device.container.requests import RunReply, RunRequest, TaskCode
from shoal.device.container.sandbox import probe_sandbox
from shoal.device.container.slots import Job, Slot
from shoal.wire.codes import ErrorCode

if TYPE_CHECKING:
    from shoal.device.container.pool import VMPoolConfig

__all__ = ["ProcessBackend"]

_decode_reply = msgspec.msgpack.Decoder(RunReply).decode
#: Log, message and framing of a reply, above its outputs and state.
_REPLY_OVERHEAD = 1 << 18
#: How often a run is given to another worker before it counts as the cause.
_MOST_ATTEMPTS = 3
#: Seconds: how long the pump stays half awake after work, so that ``submit`` need
#: not wake it, and how long it sleeps meanwhile; how long an end is waited for.
_LINGER, _NAP, _END = 1.0, 0.05, 0.5
#: Zygotes that end without a word before the pool gives up.
_MOST_SILENT_ENDS = 3


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
        self._config = config
        self._resident = max(config.resident, config.size)
        self._lock = threading.Lock()
        self._lanes: dict[Any, Lane] = {}
        self._hungry: dict[int, Lane] = {}  # lanes with a queue, in the order of their turns
        self._slots: dict[int, Slot] = {}
        self._by_descriptor: dict[int, Slot] = {}
        self._busy = 0
        self._numbers = 0
        self._closed = False
        self._counts: Counter[str] = Counter()
        self._outcomes: Counter[int] = Counter()
        self._done: list[tuple[Future[RunReply], RunReply]] = []
        self._scratch = Path(tempfile.mkdtemp(prefix="shoal-vm-"))
        self._silent_ends = 0
        self._broken = ""
        self._poll = select.epoll()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll.register(self._wake_read, select.EPOLLIN)
        self._alarm = 0.0  # when the pump looks again by itself
        self._active = time.monotonic()
        self._zygote = self._start_zygote()
        self._thread = threading.Thread(target=self._pump, name="vm-pool", daemon=True)
        self._thread.start()

    # -- the face ----------------------------------------------------------------------------

    def submit(self, request: RunRequest, deadline_s: float) -> Future[RunReply]:
        """Give a run to a worker that is free, or queue it."""
        future: Future[RunReply] = Future()
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
        code = request.code
        with self._lock:
            lane = self._lanes.get(code.key)
            if lane is None:
                lane = self._lanes[code.key] = Lane(code)
            refused = self._refusal(lane)
            if refused is None:
                job = Job(request.run, LENGTH.pack(len(body)) + body, deadline_s, lane, future)
                lane.queue.append(job)
                if len(lane.queue) == 1:
                    self._hungry[id(lane)] = lane
                self._feed(lane)
                return future
            self._counts["refused"] += 1
        outcome, message = refused
        reply = RunReply(request.run, int(outcome), message=message, backend="process")
        future.set_result(reply)
        return future

    def _refusal(self, lane: Lane) -> tuple[int, str] | None:
        if self._closed:
            return ErrorCode.CANCELLED, "the pool is closed"
        if self._broken:
            return ErrorCode.VM_CRASHED, self._broken
        if lane.code.sandbox_level > self.sandbox_level:
            text = f"the task wants sandbox level {lane.code.sandbox_level}, this is level"
            return ErrorCode.SANDBOX_VIOLATION, f"{text} {self.sandbox_level}"
        if len(lane.queue) >= self._config.queue_depth:
            return ErrorCode.RATE_LIMITED, f"{len(lane.queue)} runs of the task wait already"
        return None

    def prewarm(self, code: TaskCode, number: int) -> None:
        """Start workers for a task if there is room; returns at once."""
        with self._lock:
            if self._closed or self._broken:
                return
            lane = self._lanes.setdefault(code.key, Lane(code))
            while len(lane.slots) < number and len(self._slots) < self._resident:
                if self._launch(lane) is None:
                    return

    def stats(self) -> dict[str, Any]:
        """Return counts, outcomes and what every worker and queue is doing."""
        with self._lock:
            counts = ("runs", "failures", "started", "ended", "killed", "refused", "rerun")
            return {
                **{name: self._counts[name] for name in (*counts, "undeclared")},
                "zygotes": self._counts["zygotes"],
                "outcomes": dict(self._outcomes),
                "workers": len(self._slots),
                "busy": self._busy,
                "waiting": sum(len(lane.queue) for lane in self._lanes.values()),
                "tasks": [lane.describe() for lane in self._lanes.values()],
                "pids": [slot.pid for slot in self._slots.values() if slot.pid],
            }

    def close(self) -> None:
        """Answer everything with 309 and end the processes."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            jobs = [job for slot in self._slots.values() for job in slot.jobs]
            jobs += [job for lane in self._lanes.values() for job in lane.queue]
            self._wake()
        self._thread.join(timeout=10)
        for job in jobs:
            self._answer(job, ErrorCode.CANCELLED, "the pool was closed")
        self._settle(self._done)
        for slot in self._slots.values():
            slot.signal(signal.SIGKILL)
        self._zygote.close(5.0)
        for slot in self._slots.values():
            slot.close()
        self._slots.clear()
        self._poll.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        with contextlib.suppress(OSError):
            self._scratch.rmdir()

    # -- giving out work (the lock is held) ----------------------------------------------------

    def _feed(self, lane: Lane) -> None:
        """Give what waits in a lane to its workers, as far as they should have it."""
        queue = lane.queue
        while queue:
            slot = self._choose(lane)
            if slot is None:
                return
            if not slot.jobs:
                slot.busy = True
                self._busy += 1
                self._start_clock(slot, queue[0])
            room = 1 if len(queue) == 1 else self._room(lane, slot)
            now = False
            while room > 0 and queue:
                job = queue.popleft()
                room -= 1
                now = slot.add(job) or now
            if now and not slot.flush():
                self._block(slot)
        self._hungry.pop(id(lane), None)

    def _room(self, lane: Lane, slot: Slot) -> int:
        """Return how many runs to hand a chosen worker: its share of the queue at most."""
        share = -(-len(lane.queue) // max(1, min(len(lane.slots), self._config.size)))
        limit = min(lane.depth(), self._config.recycle_after - slot.runs) - len(slot.jobs)
        return max(1, min(share, limit))

    def _choose(self, lane: Lane) -> Slot | None:
        """Return the worker for the next run of a lane: an idle one, a new one, or one to fill."""
        if self._busy < self._config.size:
            slot = lane.idle()
            if slot is not None:
                return slot
            if lane.wants_worker():
                return self._launch(lane)
        others = len(self._hungry) - (id(lane) in self._hungry)
        if others:
            return None  # their turn comes when this lane's workers have run dry
        return lane.least_busy(lane.depth())

    def _start_clock(self, slot: Slot, job: Job) -> None:
        """A worker with nothing to do gets ``job``: from now on it is watched."""
        load_s = 0.0 if slot.ready else self._config.load_ms / 1000
        slot.deadline = time.monotonic() + load_s + job.deadline_s
        slot.extended = False
        if slot.deadline < self._alarm:
            self._wake()

    def _launch(self, lane: Lane) -> Slot | None:
        """Start a worker for a lane; make room by ending the one idle longest."""
        if len(self._slots) >= self._resident:
            idle = [slot for slot in self._slots.values() if not slot.jobs and not slot.retiring]
            if idle:
                self._retire(min(idle, key=lambda slot: slot.used))
        self._numbers += 1
        code = lane.code
        scratch = self._scratch / str(self._numbers)
        scratch.mkdir()
        order = LoadOrder(
            task=code.task,
            version=code.version,
            folder=str(code.folder),
            entry=code.entry,
            models={name: str(path) for name, path in code.models.items()},
            engine=code.engine if code.models else "",
            threads=code.threads,
            outputs=dict(code.outputs),
            memory_mb=min(code.memory_mb, self._config.memory_limit_mb),
            output_bytes=code.output_kb << 10,
            seed=code.seed,
            sandbox_level=self.sandbox_level,
            scratch=str(scratch),
        )
        slot = Slot(self._numbers, lane, frame(order), scratch)
        handed = self._zygote.fork(slot.number, order.engine, slot.theirs.fileno(), slot.counter_fd)
        if not handed:  # the zygote has died; the pump starts another and feeds again
            slot.close()
            return None
        slot.handed_over()
        slot.flush()
        self._slots[slot.number] = slot
        self._by_descriptor[slot.connection.fileno()] = slot
        self._poll.register(slot.connection, select.EPOLLIN)
        lane.slots.append(slot)
        self._counts["started"] += 1
        return slot

    def _retire(self, slot: Slot) -> None:
        if slot in slot.lane.slots:
            slot.lane.slots.remove(slot)
        slot.retire()

    def _block(self, slot: Slot) -> None:
        """The worker's socket is full: the pump goes on writing when it has room."""
        if not slot.blocked:
            slot.blocked = True
            self._poll.modify(slot.connection, select.EPOLLIN | select.EPOLLOUT)

    # -- the zygote --------------------------------------------------------------------------

    def _start_zygote(self) -> ZygoteLink:
        self._scratch.mkdir(exist_ok=True)  # the last zygote has taken it away
        self._counts["zygotes"] += 1
        zygote = ZygoteLink(self._scratch)
        self._poll.register(zygote.socket, select.EPOLLIN)
        return zygote

    def _hear(self, news: ZygoteNews) -> None:
        slot = self._slots.get(news.number)
        if news.kind == "forked":
            if slot is None:
                os.close(news.descriptor)
                return
            slot.pid, slot.process_fd = news.value, news.descriptor
            if slot.phase == 2:  # its time was over before we could name it
                slot.signal(signal.SIGKILL)
        elif news.kind == "exited" and slot is not None:
            self._drain(slot)
            self._bury(slot, news.value)

    def _replace_zygote(self) -> None:
        """The zygote has ended and, by the kernel, its workers: start again, lose no run."""
        self._poll.unregister(self._zygote.socket)
        silent = not self._zygote.greeted
        self._zygote.close(1.0)
        self._silent_ends = self._silent_ends + 1 if silent else 0
        if self._silent_ends >= _MOST_SILENT_ENDS:
            status = self._zygote.process.returncode
            self._broken = f"the process that starts workers ends at once (status {status})"
        else:
            self._zygote = self._start_zygote()
        for slot in list(self._slots.values()):
            slot.signal(signal.SIGKILL)
            self._drain(slot)
            self._bury(slot, LEAVING)
        if self._broken:
            for lane in self._lanes.values():
                self._fail_queue(lane, ErrorCode.VM_CRASHED, self._broken)

    # -- the pump ----------------------------------------------------------------------------

    def _pump(self) -> None:
        pause: float | None = _NAP
        while True:
            ready = self._poll.poll(pause)
            with self._lock:
                if self._closed:
                    return
                now = time.monotonic()
                for descriptor, events in ready:
                    self._attend(descriptor, events)
                if now >= self._alarm:
                    self._check_deadlines(now)
                if self._hungry:
                    self._feed_all()
                done, self._done = self._done, []
                pause = self._plan(now, active=bool(ready))
            # Callbacks of the futures run without the lock: they may submit again.
            self._settle(done)

    def _attend(self, descriptor: int, events: int) -> None:
        slot = self._by_descriptor.get(descriptor)
        if slot is not None:
            if events & select.EPOLLOUT and slot.flush():
                slot.blocked = False
                self._poll.modify(descriptor, select.EPOLLIN)
            if events & ~select.EPOLLOUT:
                self._serve(slot)
        elif descriptor == self._wake_read:
            with contextlib.suppress(BlockingIOError):
                os.read(descriptor, 4096)
        elif descriptor == self._zygote.socket.fileno():
            news = self._zygote.receive()
            if news is None:
                self._replace_zygote()
            else:
                self._hear(news)

    def _feed_all(self) -> None:
        for lane in list(self._hungry.values()):
            before = self._busy
            self._feed(lane)
            if lane.queue and self._busy > before:  # it had its turn: behind the others
                self._hungry[id(lane)] = self._hungry.pop(id(lane))

    def _plan(self, now: float, *, active: bool) -> float | None:
        """Say how long the pump may sleep, and note it for ``submit``."""
        if active:
            self._active = now
        if self._busy or self._ending():
            self._alarm = min(slot.deadline for slot in self._slots.values() if self._watched(slot))
        elif now - self._active < _LINGER:
            self._alarm = now + _NAP
        else:
            self._alarm = float("inf")
            return None
        return max(self._alarm - now, 0.0)

    def _ending(self) -> bool:
        return any(slot.phase for slot in self._slots.values())

    @staticmethod
    def _watched(slot: Slot) -> bool:
        return bool(slot.jobs) or slot.phase > 0

    def _settle(self, done: list[tuple[Future[RunReply], RunReply]]) -> None:
        for future, reply in done:
            try:
                future.set_result(reply)
            except InvalidStateError:  # the caller cancelled it
                self._counts["cancelled"] += 1

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"\0")

    # -- replies -----------------------------------------------------------------------------

    def _serve(self, slot: Slot) -> None:
        """Take the replies that have come from a worker."""
        code = slot.lane.code
        try:
            bodies, alive = slot.read((code.output_kb << 10) + STATE_LIMIT + _REPLY_OVERHEAD)
            for body in bodies:
                self._take(slot, _decode_reply(body))
        except OverflowError as error:
            self._distrust(slot, ErrorCode.OUTPUT_TOO_LARGE, str(error))
            return
        except (ValueError, msgspec.MsgspecError):
            text = "the task wrote something that is no reply to its worker's socket"
            self._distrust(slot, ErrorCode.VM_CRASHED, text)
            return
        if bodies:
            self._after_replies(slot)
        if not alive:
            self._lose(slot)

    def _distrust(self, slot: Slot, outcome: int, why: str) -> None:
        """What comes from a worker is not to be used any longer."""
        slot.garbled = True
        slot.kill((outcome, why))
        self._lose(slot)

    def _take(self, slot: Slot, reply: RunReply) -> None:
        """Match one reply with the run that it must belong to."""
        if not slot.ready:
            self._loaded(slot, reply)
            return
        if not slot.jobs or slot.jobs[0].run != reply.run:
            raise ValueError("a reply to no run")
        job = slot.jobs.popleft()
        slot.runs += 1
        slot.lane.note(reply.wall_us)
        if not slot.base_kb:
            slot.base_kb = reply.peak_kb
        elif reply.peak_kb - slot.base_kb > self._config.recycle_growth_mb << 10:
            slot.retiring = True
        outcome = reply.outcome
        if (reply.emits or reply.features) and not _is_declared(reply, slot.lane.code):
            # The runtime in the worker refuses these; who gets here has tampered with it.
            self._counts["undeclared"] += 1
            outcome = int(ErrorCode.SANDBOX_VIOLATION)
            text = "the task sent an output that it did not declare"
            reply = RunReply(job.run, outcome, message=text, backend="process")
        self._counts["runs"] += 1
        if outcome:
            self._counts["failures"] += 1
            self._outcomes[outcome] += 1
        self._done.append((job.future, reply))

    def _loaded(self, slot: Slot, reply: RunReply) -> None:
        """The first word of a worker: it has loaded the task, or why it could not."""
        if reply.outcome == 0:
            slot.ready = True
            slot.base_kb = reply.peak_kb
            return
        slot.retiring = True
        for job in slot.jobs:
            self._answer(job, reply.outcome, reply.message)
        self._empty(slot)
        self._fail_queue(slot.lane, reply.outcome, reply.message)
        self._retire(slot)

    def _after_replies(self, slot: Slot) -> None:
        """Put the clock on the next run, write what was collected, replace who is used up."""
        if slot.phase == 1:
            slot.phase = 0
        if slot.runs >= self._config.recycle_after:
            slot.retiring = True
        if slot.jobs:
            slot.deadline = time.monotonic() + slot.jobs[0].deadline_s
            slot.extended = False
            if slot.unsent and not slot.flush():
                self._block(slot)
        else:
            self._empty(slot)
            slot.used = time.monotonic()
        if slot.retiring:
            self._retire(slot)

    def _empty(self, slot: Slot) -> None:
        """A worker has nothing to do any more."""
        slot.jobs.clear()
        slot.unsent = 0
        if slot.busy:
            slot.busy = False
            self._busy -= 1

    # -- ends ----------------------------------------------------------------------------------

    def _lose(self, slot: Slot) -> None:
        """A worker's socket has closed; how it ended comes from the zygote."""
        descriptor = slot.connection.fileno()
        if self._by_descriptor.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)
        if slot in slot.lane.slots:
            slot.lane.slots.remove(slot)
        slot.phase = 3
        slot.deadline = time.monotonic() + _END

    def _drain(self, slot: Slot) -> None:
        """Read what a worker wrote before it ended."""
        while slot.connection.fileno() in self._by_descriptor:
            before = slot.runs, len(slot.incoming), slot.ready
            self._serve(slot)
            if before == (slot.runs, len(slot.incoming), slot.ready):
                return

    def _check_deadlines(self, now: float) -> None:
        for slot in list(self._slots.values()):
            if not self._watched(slot) or now < slot.deadline:
                continue
            if slot.phase >= 2:  # no word of its end: do not wait for it any longer
                self._bury(slot, None)
            elif not slot.ready:
                self._kill(slot, now, "loading the task took longer than its deadline")
            elif slot.phase == 1:
                self._kill(slot, now, "the run took longer than its deadline, and was killed")
            elif slot.ended_runs() and not slot.extended:
                # Replies are on their way; the run that is on now began later. Once only: a
                # task that tampers with the counter gains one deadline.
                slot.extended = True
                slot.deadline = now + slot.jobs[0].deadline_s
            else:
                slot.phase = 1
                slot.deadline = now + self._config.grace_ms / 1000
                slot.signal(signal.SIGALRM)

    def _kill(self, slot: Slot, now: float, why: str) -> None:
        self._counts["killed"] += 1
        slot.deadline = now + _END
        slot.kill((ErrorCode.DEADLINE, why))

    def _bury(self, slot: Slot, status: int | None) -> None:
        """Answer the run that a dead worker was on, and give the others to a successor."""
        if self._slots.pop(slot.number, None) is None:
            return
        self._lose(slot)
        self._counts["ended"] += 1
        lane, jobs = slot.lane, list(slot.jobs)
        ended = 0 if slot.garbled else slot.ended_runs()
        self._empty(slot)
        slot.close()
        if not jobs:
            return
        if slot.killed_for is None and (status == LEAVING or (slot.retiring and status == 0)):
            again, victim = jobs, None
        elif slot.ready:
            # Replies of ended runs were lost with it: they run again, and do the same.
            again = [*jobs[:ended], *jobs[ended + 1 :]]
            victim = jobs[ended] if ended < len(jobs) else None
        else:
            again, victim = [], jobs[0]
        outcome, message = slot.killed_for or _cause(status)
        if victim is not None:
            self._answer(victim, outcome, message)
        if not slot.ready and victim is not None:
            for job in jobs[1:]:
                self._answer(job, outcome, message)
            self._fail_queue(lane, outcome, message)
        self._give_back(lane, again)

    def _give_back(self, lane: Lane, jobs: list[Job]) -> None:
        for job in reversed(jobs):
            job.attempts += 1
            if job.attempts >= _MOST_ATTEMPTS:
                text = f"{job.attempts} workers ended before they came to this run"
                self._answer(job, ErrorCode.VM_CRASHED, text)
            else:
                self._counts["rerun"] += 1
                lane.queue.appendleft(job)
        if lane.queue:
            self._hungry[id(lane)] = lane

    def _fail_queue(self, lane: Lane, outcome: int, message: str) -> None:
        while lane.queue:
            self._answer(lane.queue.popleft(), outcome, message)
        self._hungry.pop(id(lane), None)

    def _answer(self, job: Job, outcome: int, message: str) -> None:
        self._counts["runs"] += 1
        self._counts["failures"] += 1
        self._outcomes[int(outcome)] += 1
        reply = RunReply(job.run, int(outcome), message=message, backend="process")
        self._done.append((job.future, reply))


def _is_declared(reply: RunReply, code: TaskCode) -> bool:
    declared = code.outputs
    return all(entry[0] in declared for entry in reply.emits) and all(
        entry[0] in declared for entry in reply.features
    )


def _cause(status: int | None) -> tuple[int, str]:
    """Return outcome and message for the exit status of a worker that died on a run."""
    if status in {NO_MEMORY, -signal.SIGKILL}:
        return ErrorCode.MEMORY, "the worker ran out of memory or was killed by the system"
    if status == SANDBOX_REFUSED:
        return ErrorCode.SANDBOX_VIOLATION, "the sandbox could not be entered"
    if status == -signal.SIGSYS:
        return ErrorCode.SANDBOX_VIOLATION, "the task made a system call that is forbidden"
    if status is not None and status < 0:
        return ErrorCode.VM_CRASHED, f"the worker died of {signal.Signals(-status).name}"
    if status is None:
        return ErrorCode.VM_CRASHED, "the worker ended, nobody knows how"
    return ErrorCode.VM_CRASHED, f"the worker ended itself with status {status}"
