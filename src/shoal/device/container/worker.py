"""The zygote and its workers: the processes in which task code runs.

``python -I -m shoal.device.container.worker <fd>`` starts the zygote. It has
one thread, loads what workers share (message codec, engines) and forks a
worker when asked: a few milliseconds, against hundreds for a new interpreter.
A worker serves one version of one task until it is recycled, so nothing that a
task leaves behind in its modules meets another task.
"""

from __future__ import annotations

import array
import contextlib
import gc
import os
import resource
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from shoal.device.container import sandbox
from shoal.device.container._runtime_loader import runtime, streams

__all__ = ["main"]

_LENGTH = struct.Struct("<I")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class Worker:
    """One forked process that runs one version of one task."""

    def __init__(self, connection: socket.socket, code: dict[str, Any]) -> None:
        self._connection = connection
        self._code = code
        self._declared = {name: tuple(spec) for name, spec in code["outputs"].items()}
        self._buffer = bytearray()
        self._function: Any = None
        self._models: dict[str, Any] = {}
        self._error: tuple[int, str] | None = None

    def serve(self) -> None:
        """Load the task inside the sandbox, then answer requests until told to end."""
        self._load()
        while True:
            request = self._receive()
            if request is None:
                return
            self._send(self._run(request))

    def _load(self) -> None:
        code = self._code
        scratch = tempfile.mkdtemp(prefix="shoal-task-", dir=code["scratch"])
        read = [code["folder"], *code["models"].values()]
        load_engine = _engine_loader(code["engine"])
        sandbox.enter(
            code["sandbox_level"],
            read=read,
            scratch=scratch,
            memory_bytes=code["memory_mb"] << 20,
            output_bytes=64 << 20,
        )
        signal.signal(signal.SIGALRM, _on_alarm)
        try:
            if code["models"]:
                engine = load_engine()
                for name, path in code["models"].items():
                    self._models[name] = engine.open_model(path, code["threads"])
            _alarm(code["load_s"])
            try:
                self._function = runtime.load_entry(code["folder"], code["entry"])
            finally:
                _alarm(0)
        except runtime.DeadlineExceeded:
            self._error = (runtime.DEADLINE, "loading the task took longer than allowed")
        except MemoryError:
            self._error = (runtime.MEMORY, "loading the task needed more memory than its limit")
        except ImportError as error:
            self._error = (runtime.IMPORT_REFUSED, runtime.describe(error))
        except PermissionError as error:
            self._error = (runtime.SANDBOX, runtime.describe(error))
        except BaseException as error:
            engine_failed = type(error).__name__ == "ModelError"
            outcome = runtime.ENGINE_ERROR if engine_failed else runtime.EXCEPTION
            self._error = (outcome, runtime.describe(error))
        # What is loaded now lives as long as the worker; collecting it again is wasted.
        gc.freeze()

    def _run(self, request: list[Any]) -> bytes:
        run, events, state, features, seed, now_us, deadline_s = request
        if self._error is not None:
            return self._reply(run, self._error[0], self._error[1])
        batch = runtime.Batch([runtime.TaskEvent(*event) for event in events])
        stored = {(name, key): value for name, key, value in features}
        context = runtime.Context(
            declared=self._declared,
            models=self._models,
            state={} if state is None else _decode(state),
            features=stored,
            seed=seed,
            now_us=now_us,
            deadline=time.monotonic() + deadline_s,
            streams=streams,
        )
        cpu, wall = time.process_time(), time.perf_counter()
        _alarm(deadline_s)
        try:
            outcome, message = runtime.call(self._function, context, batch)
        except runtime.DeadlineExceeded:  # the alarm came between the task and its caller
            outcome, message = runtime.DEADLINE, "the run took longer than its deadline"
        finally:
            _alarm(0)
        times = (time.process_time() - cpu, time.perf_counter() - wall)
        return self._reply(run, outcome, message, context, times)

    def _reply(
        self,
        run: bytes,
        outcome: int,
        message: str,
        context: Any = None,
        times: tuple[float, float] = (0.0, 0.0),
    ) -> bytes:
        peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        cpu_us, wall_us = int(times[0] * 1e6), int(times[1] * 1e6)
        log = [] if context is None else context._log
        if outcome == runtime.OK:
            try:
                state = _encode(context.state) if context.state else None
                made = (context._emits, context._features, state)
                body = _encode([run, 0, *made, cpu_us, wall_us, peak_kb, log, ""])
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                outcome = runtime.EXCEPTION
                message = f"outputs and state must be plain values: {error}"[:500]
            else:
                limit = self._code["output_bytes"]
                if len(body) <= limit:
                    return body
                outcome = runtime.OUTPUT_TOO_LARGE
                message = f"outputs and state take {len(body)} bytes, the limit is {limit}"
        return _encode([run, outcome, [], [], None, cpu_us, wall_us, peak_kb, log, message])

    def _receive(self) -> list[Any] | None:
        buffer = self._buffer
        while True:
            if len(buffer) >= 4:
                end = 4 + _LENGTH.unpack_from(buffer)[0]
                if len(buffer) >= end:
                    request: list[Any] | None = _decode(memoryview(buffer)[4:end])
                    del buffer[:end]
                    return request
            chunk = os.read(self._connection.fileno(), 1 << 18)
            if not chunk:
                return None
            buffer += chunk

    def _send(self, body: bytes) -> None:
        data = memoryview(_LENGTH.pack(len(body)) + body)
        while data:
            data = data[os.write(self._connection.fileno(), data) :]


def _on_alarm(_: int, __: FrameType | None) -> None:
    raise runtime.DeadlineExceeded


def _alarm(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _engine_loader(name: str) -> Any:
    """Import an engine's library before the sandbox closes; return what makes the engine."""
    from shoal.device.engine import load_engine  # noqa: PLC0415 - only workers with models

    def load() -> Any:
        return load_engine(name)

    if name:
        with contextlib.suppress(Exception):  # a missing library is reported where it is used
            load().prepare()
    return load


class Zygote:
    """Forks workers on request and tells how they ended."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: set[int] = set()
        self._scratch = tempfile.mkdtemp(prefix="shoal-vm-")
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)

    def run(self) -> None:
        """Serve until the pool closes its end."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the agent's business
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write)
        try:
            while self._serve_once():
                pass
        finally:
            self._end()

    def _serve_once(self) -> bool:
        sources: list[Any] = [self._control, self._wake_read]
        ready = select.select(sources, [], [])[0]
        if self._wake_read in ready:
            os.read(self._wake_read, 4096)
            self._reap()
        if self._control not in ready:
            return True
        message, descriptors = _receive_with_descriptor(self._control)
        if message is None:
            return False
        order, argument = message
        if order == "fork":
            self._fork(argument, descriptors)
        elif order == "kill" and argument in self._children:
            os.kill(argument, signal.SIGKILL)
        elif order == "preload":
            _engine_loader(argument)
        return True

    def _fork(self, code: dict[str, Any], descriptors: list[int]) -> None:
        code["scratch"] = self._scratch
        child = os.fork()
        if child == 0:
            _become_worker(code, descriptors[0], self._control, self._wake_read, self._wake_write)
        self._children.add(child)
        os.close(descriptors[0])
        self._tell(["forked", code["slot"], child])

    def _reap(self) -> None:
        for child in list(self._children):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                self._children.discard(pid)
                self._tell(["exited", pid, os.waitstatus_to_exitcode(status)])

    def _tell(self, message: list[Any]) -> None:
        with contextlib.suppress(OSError):  # the agent is gone; the loop ends next
            body = _encode(message)
            self._control.sendall(_LENGTH.pack(len(body)) + body)

    def _end(self) -> None:
        for child in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        for child in self._children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, 0)
        shutil.rmtree(self._scratch, ignore_errors=True)


def _receive_with_descriptor(control: socket.socket) -> tuple[Any, list[int]]:
    """Read one order (a length, a body) and the descriptor that may come with it."""
    descriptors = array.array("i")
    head, ancillary, _, _ = control.recvmsg(4, socket.CMSG_SPACE(4))
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    while head and len(head) < 4:
        head += control.recv(4 - len(head))
    if not head:
        return None, []
    length = _LENGTH.unpack(head)[0]
    body = b""
    while len(body) < length:
        chunk = control.recv(length - len(body))
        if not chunk:
            return None, []
        body += chunk
    return _decode(body), list(descriptors)


def _become_worker(
    code: dict[str, Any], descriptor: int, control: socket.socket, *pipes: int
) -> None:
    """Turn the forked child into a worker; never returns."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        control.close()
        for pipe in pipes:
            os.close(pipe)
        # What a task prints goes nowhere; ctx.log is the way out.
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        connection = socket.socket(fileno=descriptor)
        _close_others({0, 1, 2, descriptor})
        Worker(connection, code).serve()
        status = 0
    except MemoryError:
        status = 97
    except OSError:
        status = 98
    finally:
        os._exit(status)


def _close_others(keep: set[int]) -> None:
    folder = Path("/proc/self/fd")
    names = [entry.name for entry in folder.iterdir()] if folder.exists() else map(str, range(256))
    for name in names:
        descriptor = int(name)
        if descriptor not in keep:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def main() -> None:
    """Run the zygote on the control descriptor named on the command line."""
    control = socket.socket(fileno=int(sys.argv[1]))
    Zygote(control).run()


if __name__ == "__main__":
    main()
