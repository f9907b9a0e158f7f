"""One worker as the pool sees it: its socket, its process and the runs it has been given."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import signal
import socket
import time
from collections import deque
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.device.container.messages import LENGTH
from shoal.device.container.requests import RunReply

if TYPE_CHECKING:
    from shoal.device.container.lanes import Lane

__all__ = ["Job", "Slot"]

_READ = 1 << 18
#: Orders that may be collected before they are written, while the worker has enough to do.
_COLLECT = 16


class Job:
    """One run on its way: the order as it travels, and who waits for the reply."""

    __slots__ = ("attempts", "deadline_s", "frame", "future", "lane", "run")

    def __init__(
        self, run: bytes, frame: bytes, deadline_s: float, lane: Lane, future: Future[RunReply]
    ) -> None:
        self.run = run
        self.frame = frame
        self.deadline_s = deadline_s
        self.lane = lane
        self.future = future
        self.attempts = 0


class Slot:
    """A worker process; made with the order to load already under way to it.

    Attributes
    ----------
    jobs : deque of Job
        Given to the worker and not answered, in order.
    unsent : int
        How many of them are still in ``outgoing``.
    quota : int
        Runs that it may still be given before it is replaced.
    deadline : float
        Steady time at which something must have happened while ``jobs`` is not empty.
    phase : int
        0 in time, 1 asked to stop, 2 killed, 3 gone (its socket has closed).
    """

    def __init__(self, number: int, lane: Lane, load: bytes, scratch: Path, quota: int) -> None:
        self.number = number
        self.lane = lane
        self.scratch = scratch
        self.quota = quota
        self.connection, self.theirs = socket.socketpair()
        self.connection.setblocking(False)
        self.counter_fd = os.memfd_create("shoal-runs", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.counter_fd, 8)
        _seal(self.counter_fd)  # else a task could cut it, and our reading would be fatal
        self._counter = memoryview(mmap.mmap(self.counter_fd, 8)).cast("Q")
        self.jobs: deque[Job] = deque()
        self.outgoing = bytearray(load)
        self.unsent = 0
        self.blocked = False
        self.incoming = b""
        self.pid = 0
        self.process_fd = -1
        self.ready = False
        self.busy = False
        self.retiring = False
        self.succeeded = False
        self.garbled = False
        self.extended = False
        self.phase = 0
        self.deadline = 0.0
        self.killed_for: tuple[int, str] | None = None
        self.runs = 0
        self.base_kb = 0
        self.used = time.monotonic()

    def add(self, job: Job) -> bool:
        """Give a run to the worker; say whether the orders should be written now."""
        self.jobs.append(job)
        self.quota -= 1
        self.outgoing += job.frame
        self.unsent += 1
        return self.unsent >= _COLLECT or len(self.jobs) - self.unsent <= 1

    def flush(self) -> bool:
        """Write what waits; return False if the socket is full."""
        if not self.outgoing:
            return True
        try:
            sent = self.connection.send(self.outgoing)
        except BlockingIOError:
            return False
        except OSError:  # it has ended; reading tells, and the jobs go to another
            return True
        if sent < len(self.outgoing):
            del self.outgoing[:sent]
            return False
        self.outgoing.clear()
        self.unsent = 0
        return True

    def read(self, longest: int) -> tuple[list[memoryview], bool]:
        """Return the bodies that have come, and whether the other end is still open.

        Raises
        ------
        OverflowError
            A body longer than ``longest`` is announced.
        """
        try:
            chunk = self.connection.recv(_READ)
        except BlockingIOError:
            return [], True
        except OSError:
            chunk = b""
        if not chunk:
            return [], False
        data = self.incoming + chunk if self.incoming else chunk
        view, bodies, offset, total = memoryview(data), [], 0, len(data)
        while total - offset >= 4:
            length = LENGTH.unpack_from(data, offset)[0]
            if length > longest:
                raise OverflowError(f"the worker announced {length} bytes")
            end = offset + 4 + length
            if end > total:
                break
            bodies.append(view[offset + 4 : end])
            offset = end
        self.incoming = data[offset:]
        return bodies, True

    def ended_runs(self) -> int:
        """Return how many runs have ended whose replies have not come, as the worker says."""
        return max(0, min(self._counter[0] - self.runs, len(self.jobs)))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it is known already and lives."""
        if self.process_fd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.process_fd, number)

    def kill(self, cause: tuple[int, str] | None) -> None:
        """Kill the process; ``cause`` is the outcome of the run that it is on."""
        self.phase = 2
        if self.killed_for is None:
            self.killed_for = cause
        self.signal(signal.SIGKILL)

    def retire(self) -> None:
        """Take no more orders; the worker leaves when it has answered those it has."""
        self.retiring = True
        if not self.jobs:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_WR)

    def handed_over(self) -> None:
        """Close what now belongs to the worker alone."""
        self.theirs.close()
        if self.counter_fd >= 0:
            os.close(self.counter_fd)
            self.counter_fd = -1

    def close(self) -> None:
        """Free everything; the process must be dead or about to die."""
        self.handed_over()
        self.connection.close()
        if self.process_fd >= 0:
            os.close(self.process_fd)
            self.process_fd = -1
        try:
            self.scratch.rmdir()
        except OSError:  # the task left something in it
            shutil.rmtree(self.scratch, ignore_errors=True)


def _seal(descriptor: int) -> None:
    import fcntl  # noqa: PLC0415 - not on every platform

    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
