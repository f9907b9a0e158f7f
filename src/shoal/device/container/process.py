"""The process backend: resident workers fed over socket pairs by one thread.

``submit`` writes straight to an idle worker from the caller's thread; the
pump thread reads replies, feeds what waits and watches deadlines. A worker may
have a few requests ahead in its socket, so it never waits for the pump. If it
dies, the request it was working on is answered with the cause and the others
are given to its successor.
"""

from __future__ import annotations

import array
import contextlib
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future, InvalidStateError
from typing import Any

import msgspec

from shoal.core.errors import UnavailableError
from shoal.device.container._runtime_loader import runtime
from shoal.device.container.pool import VMPoolConfig
from shoal.device.container.requests import RunReply, RunRequest, TaskCode
from shoal.device.container.sandbox import probe_sandbox
from shoal.wire.codes import ErrorCode

__all__ = ["ProcessBackend"]

_LENGTH = struct.Struct("<I")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode
#: Requests that a worker may have ahead, the running one included.
_AHEAD = 8
_READ = 1 << 18
#: Exit statuses that a worker chooses itself (see ``worker.py``).
_NO_MEMORY, _SANDBOX_REFUSED = 97, 98

Job = tuple[RunRequest, bytes, float, "Future[RunReply]"]


class _Slot:
    """One worker as the pool sees it."""

    def __init__(self, number: int, code: TaskCode, connection: socket.socket) -> None:
        self.number = number
        self.code = code
        self.connection = connection
        self.pid: int | None = None
        self.jobs: deque[Job] = deque()
        self.buffer = bytearray()
        self.unsent = bytearray()
        self.runs = 0
        self.first_kb = 0
        self.deadline = 0.0
        self.used = time.monotonic()
        self.warm = False
        self.retiring = False
        self.killed_for: tuple[int, str] | None = None
        self.ended: int | None = None


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
        self.sandbox_level = wanted
        self._config = config
        self._lock = threading.Lock()
        self._slots: dict[int, _Slot] = {}
        self._waiting: dict[Any, deque[Job]] = {}
        self._codes: dict[Any, TaskCode] = {}
        self._numbers = 0
        self._closed = False
        self._counts = dict.fromkeys(("runs", "failures", "started", "ended", "killed"), 0)
        self._refused = 0
        self._done: list[tuple[Job, RunReply]] = []
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        os.set_blocking(self._wake_read, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, "wake")
        self._control_buffer = bytearray()
        self._zygote, self._control = self._start_zygote()
        self._thread = threading.Thread(target=self._pump, name="vm-pool", daemon=True)
        self._thread.start()

    # -- the face ----------------------------------------------------------------------------

    def submit(self, request: RunRequest, deadline_s: float) -> Future[RunReply]:
        """Queue a run, or write it straight to a worker that is free."""
        future: Future[RunReply] = Future()
        code = request.code
        body = _encode(
            [
                request.run,
                [(e.id, e.kind, e.page, e.ts_us, e.visit, e.content) for e in request.events],
                request.state,
                [(name, key, value) for (name, key), value in request.features.items()],
                runtime.run_seed(code.seed, request.device, code.task, request.run),
                request.now_us,
                deadline_s,
            ]
        )
        job: Job = (request, _LENGTH.pack(len(body)) + body, deadline_s, future)
        with self._lock:
            if self._closed:
                self._answer(job, RunReply(request.run, ErrorCode.CANCELLED, message="pool closed"))
                return future
            if code.sandbox_level > self.sandbox_level:
                text = f"the task wants sandbox level {code.sandbox_level}"
                reply = RunReply(request.run, ErrorCode.SANDBOX_VIOLATION, message=text)
                self._answer(job, reply)
                return future
            key = code.key
            self._codes[key] = code
            slot = self._slot_for(key)
            if slot is not None:
                self._give(slot, job)
                return future
            queue = self._waiting.setdefault(key, deque())
            if len(queue) >= self._config.queue_depth:
                self._refused += 1
                text = f"{len(queue)} runs of the task wait already"
                self._answer(job, RunReply(request.run, ErrorCode.RATE_LIMITED, message=text))
                return future
            queue.append(job)
            self._staff()
        return future

    def prewarm(self, code: TaskCode, number: int) -> None:
        """Start workers for a task if there is room."""
        with self._lock:
            if self._closed:
                return
            self._codes[code.key] = code
            have = sum(slot.code.key == code.key for slot in self._slots.values())
            for _ in range(max(number - have, 0)):
                if len(self._slots) < self._config.size:
                    self._start_worker(code)

    def stats(self) -> dict[str, Any]:
        """Return counts."""
        with self._lock:
            return {
                **self._counts,
                "refused": self._refused,
                "workers": len(self._slots),
                "waiting": sum(map(len, self._waiting.values())),
            }

    def close(self) -> None:
        """Answer everything with 309 and end the processes."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            jobs = [job for slot in self._slots.values() for job in slot.jobs]
            jobs += [job for queue in self._waiting.values() for job in queue]
            self._waiting.clear()
            for slot in self._slots.values():
                slot.jobs.clear()
        for job in jobs:
            self._answer(job, RunReply(job[0].run, ErrorCode.CANCELLED, message="pool closed"))
        self._wake()
        self._thread.join(timeout=10)
        self._control.close()
        try:
            self._zygote.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._zygote.kill()
            self._zygote.wait()
        for slot in self._slots.values():
            slot.connection.close()
        self._slots.clear()
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    # -- giving out work (the lock is held) ----------------------------------------------------

    def _slot_for(self, key: Any) -> _Slot | None:
        """Return the least busy worker of a task that can take one more."""
        best = None
        for slot in self._slots.values():
            if (
                slot.code.key == key
                and not slot.retiring
                and len(slot.jobs) < _AHEAD
                and (best is None or len(slot.jobs) < len(best.jobs))
            ):
                best = slot
        if best is not None and best.jobs and len(self._slots) < self._config.size:
            return None  # every worker has something to do, and there is room for one more
        return best

    def _give(self, slot: _Slot, job: Job) -> None:
        if not slot.jobs:
            slot.deadline = self._until(slot, job)
            slot.used = time.monotonic()
        slot.jobs.append(job)
        if slot.unsent:
            slot.unsent += job[1]
            return
        try:
            sent = slot.connection.send(job[1])
        except BlockingIOError:
            sent = 0
        except OSError:  # it just died; the pump finds out and gives the job to another
            return
        if sent < len(job[1]):
            slot.unsent += job[1][sent:]
            self._selector.modify(
                slot.connection, selectors.EVENT_READ | selectors.EVENT_WRITE, slot
            )
            self._wake()
        elif len(slot.jobs) == 1:
            self._wake()  # the pump must look at the new deadline

    def _until(self, slot: _Slot, job: Job) -> float:
        grace = self._config.grace_ms / 1000
        load = 0.0 if slot.warm else self._config.load_ms / 1000
        return time.monotonic() + job[2] + grace + load

    def _staff(self) -> None:
        """See that every task with waiting runs has, or gets, a worker."""
        for key, queue in self._waiting.items():
            while queue:
                slot = self._slot_for(key)
                if slot is None:
                    break
                self._give(slot, queue.popleft())
            if not queue:
                continue
            if len(self._slots) < self._config.size:
                self._start_worker(self._codes[key])
                slot = self._slot_for(key)
                while slot is not None and queue:
                    self._give(slot, queue.popleft())
                    slot = self._slot_for(key)
            elif not any(slot.code.key == key for slot in self._slots.values()):
                self._make_room()

    def _make_room(self) -> None:
        """Retire the worker that has been idle longest, or the next one that gets idle."""
        if any(slot.retiring for slot in self._slots.values()):
            return
        candidates = sorted(self._slots.values(), key=lambda slot: (bool(slot.jobs), slot.used))
        if candidates:
            self._retire(candidates[0])

    def _retire(self, slot: _Slot) -> None:
        slot.retiring = True
        if not slot.jobs:
            with contextlib.suppress(OSError):
                slot.connection.shutdown(socket.SHUT_WR)  # the worker reads the end and leaves

    def _start_worker(self, code: TaskCode) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._numbers += 1
        slot = _Slot(self._numbers, code, ours)
        order = {
            "slot": slot.number,
            "folder": str(code.folder),
            "entry": code.entry,
            "models": {name: str(path) for name, path in code.models.items()},
            "engine": code.engine if code.models else "",
            "threads": code.threads,
            "outputs": {name: list(spec) for name, spec in code.outputs.items()},
            "memory_mb": min(code.memory_mb, self._config.memory_limit_mb),
            "output_bytes": code.output_kb << 10,
            "load_s": self._config.load_ms / 1000,
            "sandbox_level": self.sandbox_level,
        }
        try:
            self._order(["fork", order], theirs)
        except OSError:  # the zygote died; the pump starts a new one and staffs again
            ours.close()
            theirs.close()
            return
        theirs.close()
        self._slots[slot.number] = slot
        self._counts["started"] += 1
        self._selector.register(ours, selectors.EVENT_READ, slot)
        self._wake()

    # -- the zygote --------------------------------------------------------------------------

    def _start_zygote(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = socket.socketpair()
        environment = {
            name: os.environ[name]
            for name in ("PATH", "LD_LIBRARY_PATH", "LANG", "TMPDIR", "VIRTUAL_ENV")
            if name in os.environ
        }
        # One thread a worker: the pool, not the libraries, decides about parallelism.
        environment.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
        zygote = subprocess.Popen(  # noqa: S603 - our own interpreter, our own module
            [
                sys.executable,
                "-I",
                "-m",
                "shoal.device.container.worker",
                str(theirs.fileno()),
            ],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        self._selector.register(ours, selectors.EVENT_READ, "control")
        return zygote, ours

    def _order(self, message: list[Any], descriptor: socket.socket | None = None) -> None:
        body = _encode(message)
        data = _LENGTH.pack(len(body)) + body
        if descriptor is None:
            self._control.sendall(data)
            return
        rights = array.array("i", [descriptor.fileno()])
        sent = self._control.sendmsg(
            [data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights.tobytes())]
        )
        if sent < len(data):
            self._control.sendall(data[sent:])

    def _read_control(self) -> None:
        try:
            chunk = self._control.recv(_READ)
        except OSError:
            chunk = b""
        if not chunk:
            self._replace_zygote()
            return
        buffer = self._control_buffer
        buffer += chunk
        while len(buffer) >= 4:
            end = 4 + _LENGTH.unpack_from(buffer)[0]
            if len(buffer) < end:
                return
            kind, first, second = _decode(memoryview(buffer)[4:end])
            del buffer[:end]
            if kind == "forked":
                slot = self._slots.get(first)
                if slot is not None:
                    slot.pid = second
            elif kind == "exited":
                for slot in list(self._slots.values()):
                    if slot.pid == first:
                        slot.ended = second
                        self._drain(slot)
                        self._bury(slot)

    def _replace_zygote(self) -> None:
        """The zygote is gone, and its workers with it or soon: begin again."""
        self._selector.unregister(self._control)
        self._control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._zygote.wait(timeout=1)
        self._control_buffer.clear()
        self._zygote, self._control = self._start_zygote()
        for slot in list(self._slots.values()):
            if slot.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(slot.pid, signal.SIGKILL)
            slot.ended = -signal.SIGKILL
            self._bury(slot)

    # -- the pump ----------------------------------------------------------------------------

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._wake_write, b"\0")

    def _pump(self) -> None:
        while True:
            with self._lock:
                if self._closed:
                    return
                pause = self._next_deadline()
            ready = self._selector.select(pause)
            with self._lock:
                if self._is_closed():
                    return
                for key, events in ready:
                    if key.data == "wake":
                        with contextlib.suppress(BlockingIOError):
                            os.read(self._wake_read, 4096)
                    elif key.data == "control":
                        self._read_control()
                    else:
                        self._serve(key.data, events)
                self._kill_late()
                self._staff()
                done, self._done = self._done, []
            # Callbacks of the futures run without the lock: they may submit again.
            for job, reply in done:
                self._answer(job, reply)

    def _is_closed(self) -> bool:
        return self._closed

    def _next_deadline(self) -> float | None:
        deadlines = [slot.deadline for slot in self._slots.values() if slot.jobs]
        return max(min(deadlines) - time.monotonic(), 0.0) if deadlines else None

    def _serve(self, slot: _Slot, events: int) -> None:
        if events & selectors.EVENT_WRITE and slot.unsent:
            with contextlib.suppress(BlockingIOError, OSError):
                del slot.unsent[: slot.connection.send(slot.unsent)]
            if not slot.unsent and slot.number in self._slots:
                self._selector.modify(slot.connection, selectors.EVENT_READ, slot)
        if events & selectors.EVENT_READ:
            self._read(slot)

    def _read(self, slot: _Slot) -> None:
        try:
            chunk = slot.connection.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            # It is ending; its exit status comes over the control socket.
            with contextlib.suppress(KeyError):
                self._selector.unregister(slot.connection)
            slot.deadline = min(slot.deadline, time.monotonic() + 1.0)
            return
        buffer = slot.buffer
        buffer += chunk
        offset = 0
        while len(buffer) - offset >= 4:
            end = offset + 4 + _LENGTH.unpack_from(buffer, offset)[0]
            if len(buffer) < end or not slot.jobs:
                break
            reply = _decode(memoryview(buffer)[offset + 4 : end])
            offset = end
            self._finish(slot, reply)
        if offset:
            del buffer[:offset]

    def _finish(self, slot: _Slot, fields: list[Any]) -> None:
        job = slot.jobs.popleft()
        run, outcome, emits, features, state, cpu_us, wall_us, peak_kb, log, message = fields
        reply = RunReply(
            run,
            outcome,
            [tuple(entry) for entry in emits],
            [tuple(entry) for entry in features],
            state,
            cpu_us,
            wall_us,
            peak_kb,
            log,
            message,
            "process",
        )
        self._counts["runs"] += 1
        self._counts["failures"] += outcome != 0
        slot.warm = True
        slot.runs += 1
        slot.first_kb = slot.first_kb or peak_kb
        if slot.jobs:
            slot.deadline = self._until(slot, slot.jobs[0])
        else:
            slot.used = time.monotonic()
        grown = peak_kb - slot.first_kb > self._config.recycle_growth_mb << 10
        if slot.retiring or slot.runs >= self._config.recycle_after or grown:
            self._retire(slot)
        self._done.append((job, reply))

    def _drain(self, slot: _Slot) -> None:
        """Take the replies that a worker wrote before it ended."""
        with contextlib.suppress(OSError, ValueError):
            while slot.jobs:
                before = len(slot.jobs), len(slot.buffer)
                self._read(slot)
                if (len(slot.jobs), len(slot.buffer)) == before:
                    break

    def _kill_late(self) -> None:
        now = time.monotonic()
        for slot in list(self._slots.values()):
            if not slot.jobs or now < slot.deadline:
                continue
            if slot.killed_for is None:
                what = "the run" if slot.warm else "loading the task"
                slot.killed_for = (ErrorCode.DEADLINE, f"{what} took longer than its deadline")
                self._counts["killed"] += 1
                slot.deadline = now + 1.0
                with contextlib.suppress(OSError):
                    if slot.pid is not None:
                        self._order(["kill", slot.pid])
            else:  # no word of its end within a second: do not wait for it any longer
                slot.ended = -signal.SIGKILL
                self._bury(slot)

    def _bury(self, slot: _Slot) -> None:
        """Answer the run that a dead worker was on, and give the rest to a new one."""
        if self._slots.pop(slot.number, None) is None:
            return
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(slot.connection)
        slot.connection.close()
        self._counts["ended"] += 1
        if not slot.jobs:
            return
        if slot.retiring and slot.ended == 0:
            rest = slot.jobs
        else:
            job = slot.jobs.popleft()
            outcome, message = slot.killed_for or _cause(slot.ended)
            self._counts["runs"] += 1
            self._counts["failures"] += 1
            reply = RunReply(job[0].run, int(outcome), message=message, backend="process")
            self._done.append((job, reply))
            rest = slot.jobs
        if rest:
            self._waiting.setdefault(slot.code.key, deque()).extendleft(reversed(rest))

    @staticmethod
    def _answer(job: Job, reply: RunReply) -> None:
        with contextlib.suppress(InvalidStateError):  # the caller cancelled it
            job[3].set_result(reply)


def _cause(status: int | None) -> tuple[int, str]:
    """Return outcome and message for the exit status of a worker that died on a run."""
    if status in {_NO_MEMORY, -signal.SIGKILL}:
        return ErrorCode.MEMORY, "the worker ran out of memory or was killed by the system"
    if status == _SANDBOX_REFUSED:
        return ErrorCode.SANDBOX_VIOLATION, "the sandbox could not be entered or broke"
    if status == -signal.SIGSYS:
        return ErrorCode.SANDBOX_VIOLATION, "the task made a system call that is forbidden"
    if status is not None and status < 0:
        return ErrorCode.VM_CRASHED, f"the worker died of {signal.Signals(-status).name}"
    return ErrorCode.VM_CRASHED, f"the worker ended itself with status {status}"
