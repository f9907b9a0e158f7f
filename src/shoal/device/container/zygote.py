"""The zygote: a small process with one thread that forks workers when asked.

``python -s -P -m shoal.device.container.zygote <fd> <scratch>`` loads what
workers share (message codec, engines) once, so that a worker costs a fork of a
few milliseconds instead of a new interpreter. It passes back a process
descriptor for each worker, by which the pool kills without a race over process
numbers, and tells how each worker ended. When the pool's end of the control
socket closes, it kills its workers and leaves; when it dies itself, the kernel
kills them.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import mmap
import os
import select
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import msgspec

from shoal.device.container import worker
from shoal.device.container.messages import encode

__all__ = ["main"]

_decode = msgspec.msgpack.Decoder().decode
_ORDER_BYTES = 1 << 16
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class Zygote:
    """Serves one pool."""

    def __init__(self, control: socket.socket, scratch: str) -> None:
        self._control = control
        self._scratch = scratch
        self._children: dict[int, int] = {}
        self._engines: dict[str, Any] = {}
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)

    def run(self) -> None:
        """Serve until the pool closes its end."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the agent's business
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write)
        gc.collect()
        gc.freeze()  # so that collections in workers do not touch, and copy, shared pages
        self._tell(["hello", os.getpid(), 0])
        try:
            while self._serve_once():
                pass
        finally:
            self._end()

    def _serve_once(self) -> bool:
        watched = [self._control.fileno(), self._wake_read]
        ready = select.select(watched, [], [])[0]
        if self._wake_read in ready:
            os.read(self._wake_read, 4096)
            self._reap()
        if watched[0] in ready:
            body, descriptors = _receive(self._control)
            if not body:
                return False
            slot, engine = _decode(body)
            self._fork(slot, engine, descriptors)
        return True

    def _engine(self, name: str) -> Any:
        """Return an engine with its library loaded."""
        if name not in self._engines:
            from shoal.device.engine import load_engine  # noqa: PLC0415 - only with models

            engine = load_engine(name)
            engine.prepare()
            self._engines[name] = engine
        return self._engines[name]

    def _fork(self, slot: int, engine: str, descriptors: list[int]) -> None:
        if engine:
            with contextlib.suppress(Exception):  # the worker meets it again, and reports it
                self._engine(engine)
        mine = os.getpid()
        child = os.fork()
        if child == 0:
            self._become_worker(mine, *descriptors)
        self._children[child] = slot
        for descriptor in descriptors:
            os.close(descriptor)
        process = os.pidfd_open(child)
        self._tell(["forked", slot, child], process)
        os.close(process)

    def _become_worker(self, zygote: int, connection: int, counter: int) -> None:
        """Turn the forked child into a worker; never returns."""
        status = 1
        try:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != zygote:  # it died before the line above
                os._exit(status)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()  # what a task forks, where it may, is killed with it
            null = os.open(os.devnull, os.O_RDWR)
            for standard in (0, 1, 2):
                os.dup2(null, standard)
            done = memoryview(mmap.mmap(counter, 8)).cast("Q")
            _close_all_but({0, 1, 2, connection})
            status = worker.serve(connection, done, self._engine)
        except BrokenPipeError:  # the pool is gone
            status = 0
        finally:
            os._exit(status)

    def _reap(self) -> None:
        for child in list(self._children):
            ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                continue
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child, signal.SIGKILL)  # before the number can be another's
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            self._tell(["exited", self._children.pop(child), status])

    def _tell(self, message: list[Any], descriptor: int | None = None) -> None:
        rights = array.array("i", [] if descriptor is None else [descriptor])
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights.tobytes())] if rights else []
        with contextlib.suppress(OSError):  # the agent is gone; the loop ends next
            self._control.sendmsg([encode(message)], ancillary)

    def _end(self) -> None:
        for child in self._children:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        for child in self._children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, 0)
        shutil.rmtree(self._scratch, ignore_errors=True)


def _receive(control: socket.socket) -> tuple[bytes, list[int]]:
    """Read one order and the descriptors that come with it."""
    try:
        body, ancillary, _, _ = control.recvmsg(_ORDER_BYTES, socket.CMSG_SPACE(16))
    except ConnectionResetError:  # closed with news of ours unread
        return b"", []
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    return body, list(descriptors)


def _close_all_but(keep: set[int]) -> None:
    for descriptor in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if descriptor not in keep:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def main() -> None:
    """Run the zygote on the control descriptor and scratch folder of the command line."""
    Zygote(socket.socket(fileno=int(sys.argv[1])), sys.argv[2]).run()


if __name__ == "__main__":
    main()
