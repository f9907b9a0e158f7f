"""The workers of the process backend: who runs what, and what becomes of it.

Everything here happens under the lock of the backend, which hands in runs
(:meth:`Workforce.queue`), events of descriptors (:meth:`Workforce.attend`) and
the passing of time (:meth:`Workforce.check_deadlines`), and takes finished runs
out of the ledger.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from shoal.device.container.forking import ZygoteLink, ZygoteNews
from shoal.device.container.lanes import Lane, Lanes
from shoal.device.container.ledger import Ledger, cause_of
from shoal.device.container.messages import (
    LEAVING,
    STATE_LIMIT,
    frame,
    load_order,
)
from shoal.device.container.requests import RunReply, TaskCode
from shoal.device.container.slots import Job, Slot
from shoal.wire.codes import ErrorCode

if TYPE_CHECKING:
    from shoal.device.container.pool import VMPoolConfig

__all__ = ["Workforce"]

_decode_reply = msgspec.msgpack.Decoder(RunReply).decode
#: Log, message and framing of a reply, above its outputs and state.
_REPLY_OVERHEAD = 1 << 18
#: How often a run is given to another worker before it counts as the cause.
_MOST_ATTEMPTS = 3
#: Seconds to wait for word of a worker's end.
_END = 0.5
#: Runs before its last at which a worker's successor is started.
_SUCCESSOR_BEFORE = 200
#: Zygotes that end without a word before the pool gives up.
_MOST_SILENT_ENDS = 3


class Workforce:
    """Lanes of waiting runs, worker slots, and the zygote that makes them.

    Parameters
    ----------
    config : VMPoolConfig
        Sizes and times.
    sandbox_level : int
        How workers shut themselves in.
    scratch : Path
        Folder for the workers' scratch folders.
    poll : select.epoll
        Where descriptors are watched.
    wake : callable
        Makes the pump look at deadlines again.

    Attributes
    ----------
    alarm : float
        Steady time at which the pump looks at deadlines by itself.
    lanes : Lanes
        What waits.
    ledger : Ledger
        What has finished, and counts.
    broken : str
        Why no worker can be started; empty while all is well.
    """

    def __init__(
        self,
        config: VMPoolConfig,
        sandbox_level: int,
        scratch: Path,
        poll: select.epoll,
        wake: Callable[[], None],
    ) -> None:
        self._config = config
        self._level = sandbox_level
        self._resident = max(config.resident, config.size)
        self._successor_before = min(_SUCCESSOR_BEFORE, config.recycle_after // 4)
        self._scratch = scratch
        self._poll = poll
        self._wake = wake
        self.lanes = Lanes()
        self._slots: dict[int, Slot] = {}
        self._by_descriptor: dict[int, Slot] = {}
        self._busy = 0
        self._numbers = 0
        self._silent_ends = 0
        self.alarm = 0.0
        self.broken = ""
        self.ledger = Ledger()
        self._zygote = self._start_zygote()

    def queue(self, job: Job) -> None:
        """Take a run in, and give it to a worker if one should have it now."""
        self.lanes.push(job)
        self._feed(job.lane)

    def prewarm(self, code: TaskCode, number: int) -> None:
        """Start workers for a task if there is room."""
        lane = self.lanes.of(code)
        while len(lane.slots) < number and len(self._slots) < self._resident:
            if self._launch(lane) is None:
                return

    # -- giving out work -----------------------------------------------------------------------

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
            if slot.quota <= 0:
                self._retire(slot)
        self.lanes.fed(lane)

    def _room(self, lane: Lane, slot: Slot) -> int:
        """Return how many runs to hand a chosen worker: its share of the queue at most."""
        share = -(-len(lane.queue) // max(1, min(len(lane.slots), self._config.size)))
        return max(1, min(share, slot.quota, lane.depth() - len(slot.jobs)))

    def _choose(self, lane: Lane) -> Slot | None:
        """Return the worker for the next run of a lane: an idle one, a new one, or one to fill."""
        if self._busy < self._config.size:
            slot = lane.idle()
            if slot is not None:
                return slot
            if lane.wants_worker():
                return self._launch(lane)
        if self.lanes.others_wait(lane):
            return None  # their turn comes when this lane's workers have run dry
        return lane.least_busy(lane.depth())

    def _start_clock(self, slot: Slot, job: Job) -> None:
        """A worker with nothing to do gets ``job``: from now on it is watched."""
        load_s = 0.0 if slot.ready else self._config.load_ms / 1000
        slot.deadline = time.monotonic() + load_s + job.deadline_s
        slot.extended = False
        if slot.deadline < self.alarm:
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
        order = load_order(
            code,
            memory_mb=min(code.memory_mb, self._config.memory_limit_mb),
            sandbox_level=self._level,
            scratch=str(scratch),
        )
        quota = self._config.recycle_after
        slot = Slot(self._numbers, lane, frame(order), scratch, quota)
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
        self.ledger.counts["started"] += 1
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

    def feed_all(self) -> None:
        """Give every lane its turn."""
        for lane in list(self.lanes.hungry.values()):
            before = self._busy
            self._feed(lane)
            if lane.queue and self._busy > before:
                self.lanes.had_its_turn(lane)

    # -- the zygote --------------------------------------------------------------------------

    def _start_zygote(self) -> ZygoteLink:
        self._scratch.mkdir(exist_ok=True)  # the last zygote has taken it away
        self.ledger.counts["zygotes"] += 1
        zygote = ZygoteLink(self._scratch)
        self._poll.register(zygote.socket, select.EPOLLIN)
        return zygote

    def _hear(self, news: ZygoteNews) -> None:
        slot = self._slots.get(news.number)
        if news.kind == "forked":
            if slot is None:  # given up before it was born
                signal.pidfd_send_signal(news.descriptor, signal.SIGKILL)
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
            self.broken = f"the process that starts workers ends at once (status {status})"
        else:
            self._zygote = self._start_zygote()
        for slot in list(self._slots.values()):
            slot.signal(signal.SIGKILL)
            self._drain(slot)
            self._bury(slot, LEAVING)
        if self.broken:
            for lane in self.lanes:
                self._fail_queue(lane, ErrorCode.VM_CRASHED, self.broken)

    def attend(self, descriptor: int, events: int) -> None:
        """Deal with what epoll says of a descriptor."""
        slot = self._by_descriptor.get(descriptor)
        if slot is not None:
            if events & select.EPOLLOUT and slot.flush():
                slot.blocked = False
                self._poll.modify(descriptor, select.EPOLLIN)
            if events & ~select.EPOLLOUT:
                self._serve(slot)
        elif descriptor == self._zygote.socket.fileno():
            news = self._zygote.receive()
            if news is None:
                self._replace_zygote()
            else:
                self._hear(news)

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
        self.ledger.finish(job, reply)

    def _loaded(self, slot: Slot, reply: RunReply) -> None:
        """The first word of a worker: it has loaded the task, or why it could not."""
        if reply.outcome == 0:
            slot.ready = True
            slot.base_kb = reply.peak_kb
            return
        slot.retiring = True
        for job in slot.jobs:
            self.ledger.answer(job, reply.outcome, reply.message)
        self._empty(slot)
        self._fail_queue(slot.lane, reply.outcome, reply.message)
        self._retire(slot)

    def _after_replies(self, slot: Slot) -> None:
        """Put the clock on the next run, write what was collected, replace who is used up."""
        if slot.phase == 1:
            slot.phase = 0
        if slot.quota <= self._successor_before and not (slot.succeeded or slot.retiring):
            slot.succeeded = True
            self._launch(slot.lane)
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

    def check_deadlines(self, now: float) -> None:
        """Stop what is late: ask first, kill then."""
        for slot in list(self._slots.values()):
            if not (slot.jobs or slot.phase) or now < slot.deadline:
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
        self.ledger.counts["killed"] += 1
        slot.deadline = now + _END
        slot.kill((ErrorCode.DEADLINE, why))

    def _bury(self, slot: Slot, status: int | None) -> None:
        """Answer the run that a dead worker was on, and give the others to a successor."""
        if self._slots.pop(slot.number, None) is None:
            return
        self._lose(slot)
        self.ledger.counts["ended"] += 1
        lane, jobs = slot.lane, list(slot.jobs)
        ended = 0 if slot.garbled else slot.ended_runs()
        if slot.killed_for is not None:  # somebody was late, whatever the counter says
            ended = min(ended, max(len(jobs) - 1, 0))
        self._empty(slot)
        if status is None:  # it closed its socket, or hangs; nobody waits for it any longer
            slot.signal(signal.SIGKILL)
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
        outcome, message = slot.killed_for or cause_of(status)
        if victim is not None:
            self.ledger.answer(victim, outcome, message)
        if not slot.ready and victim is not None:
            for job in jobs[1:]:
                self.ledger.answer(job, outcome, message)
            self._fail_queue(lane, outcome, message)
        self._give_back(lane, again, fruitless=victim is None and slot.runs == 0)

    def _give_back(self, lane: Lane, jobs: list[Job], *, fruitless: bool) -> None:
        """Put runs first in the queue again; those that only ever end workers are given up."""
        again = []
        for job in jobs:
            job.attempts += fruitless
            if job.attempts >= _MOST_ATTEMPTS:
                text = f"{job.attempts} workers ended before they came to this run"
                self.ledger.answer(job, ErrorCode.VM_CRASHED, text)
            else:
                again.append(job)
        self.ledger.counts["rerun"] += len(again)
        self.lanes.push_front(lane, again)

    def _fail_queue(self, lane: Lane, outcome: int, message: str) -> None:
        for job in self.lanes.take_all(lane):
            self.ledger.answer(job, outcome, message)

    def next_look(self) -> float:
        """Return the steady time of the next deadline; infinity if nobody is at work."""
        times = [slot.deadline for slot in self._slots.values() if slot.jobs or slot.phase]
        return min(times, default=float("inf"))

    def take_all(self) -> list[Job]:
        """Return every run that has no reply yet (the pool closes)."""
        jobs = [job for slot in self._slots.values() for job in slot.jobs]
        return jobs + [job for lane in self.lanes for job in lane.queue]

    def end(self) -> None:
        """Kill every worker and the zygote."""
        for slot in self._slots.values():
            slot.signal(signal.SIGKILL)
        self._zygote.close(5.0)
        for slot in self._slots.values():
            slot.close()
        self._slots.clear()

    def stats(self) -> dict[str, Any]:
        """Return counts, outcomes and what every worker and queue is doing."""
        counts = ("runs", "failures", "started", "ended", "killed", "refused", "rerun")
        return {
            **{name: self.ledger.counts[name] for name in (*counts, "undeclared", "zygotes")},
            "outcomes": dict(self.ledger.outcomes),
            "workers": len(self._slots),
            "busy": self._busy,
            "waiting": self.lanes.waiting(),
            "tasks": [lane.describe() for lane in self.lanes],
            "pids": [slot.pid for slot in self._slots.values() if slot.pid],
        }
