"""A worker: one forked process that serves one version of one task until it is replaced.

It gets a :class:`LoadOrder`, shuts itself in, loads models and code, and then
answers :class:`RunOrder` after :class:`RunOrder`. Replies to orders that are
already there are written together, at most a millisecond late; a counter in
memory shared with the pool says how many runs have ended, so that the pool
knows which run a worker died of.
"""

from __future__ import annotations

import _thread
import gc
import os
import shutil
import signal
import time
from types import FrameType
from typing import Any

import msgspec

from shoal.device.container import sandbox
from shoal.device.container._runtime_loader import runtime
from shoal.device.container.execution import TaskInstance
from shoal.device.container.messages import (
    LEAVING,
    LENGTH,
    NO_MEMORY,
    SANDBOX_REFUSED,
    LoadOrder,
    RunOrder,
)

__all__ = ["serve"]

_decode_load = msgspec.msgpack.Decoder(LoadOrder).decode
_decode_run = msgspec.msgpack.Decoder(RunOrder).decode
_READ = 1 << 18
#: Replies are held back at most this long, at most so many (two parts each), and
#: not at all after a long run.
_HOLD_NS, _HOLD, _LONG_NS = 1_000_000, 128, 300_000
#: Largest file in the scratch folder.
_FILE_BYTES = 16 << 20


def serve(descriptor: int, done: memoryview[int], engines: Any) -> int:
    """Serve a pool over a descriptor until it closes its end; return the exit status.

    Parameters
    ----------
    descriptor : int
        A connected stream socket.
    done : memoryview
        One 64-bit counter of ended runs, shared with the pool.
    engines : callable
        Gives the engine of a name, or raises.
    """
    inbox = _Inbox(descriptor)
    body = inbox.next()
    if body is None:
        return 0
    order = _decode_load(body)
    engine: Any = None
    failure: tuple[int, str] | None = None
    if order.models:
        try:
            engine = engines(order.engine)
        except Exception as error:  # told to the pool; no run starts
            failure = (runtime.ENGINE_ERROR, runtime.describe(error))
    try:
        sandbox.enter(
            order.sandbox_level,
            read=[order.folder, *order.models.values()],
            scratch=order.scratch,
            memory_bytes=order.memory_mb << 20,
            file_bytes=_FILE_BYTES,
            threads=order.threads,
        )
    except OSError:
        return SANDBOX_REFUSED
    os.chdir(order.scratch)
    instance = TaskInstance(order, "process")
    try:
        if failure is None:
            outcome, message = instance.load(engine)
            failure = (outcome, message) if outcome else None
        # What is loaded now lives as long as the worker; looking at it again is wasted.
        gc.collect()
        gc.freeze()
        ready = instance.reply(b"", *(failure or (0, "")))
        _write(descriptor, LENGTH.pack(len(ready)) + ready)
        if failure is not None:
            return 0
        return _Service(descriptor, done, instance, order.scratch).run(inbox)
    except MemoryError:
        return NO_MEMORY


class _Service:
    """The loop of a loaded worker."""

    def __init__(
        self, descriptor: int, done: memoryview[int], instance: TaskInstance, scratch: str
    ) -> None:
        self._descriptor = descriptor
        self._done = done
        self._instance = instance
        self._scratch = scratch
        self._untouched = os.stat(scratch).st_mtime_ns  # noqa: PTH116 - asked at every run
        self._threads = _thread._count()
        signal.signal(signal.SIGALRM, self._on_alarm)

    def run(self, inbox: _Inbox) -> int:
        instance, done = self._instance, self._done
        held: list[bytes] = []
        held_since = 0
        while True:
            body = inbox.next() if not held else inbox.waiting()
            if body is None:
                if not held:
                    return 0
                _write(self._descriptor, b"".join(held))
                held.clear()
                continue
            begun = time.perf_counter_ns()
            outcome, reply = instance.run(_decode_run(body))
            held += (LENGTH.pack(len(reply)), reply)
            clean = self._is_clean() and outcome not in (runtime.DEADLINE, runtime.MEMORY)
            done[0] += 1
            if not clean:
                # What a task leaves half done must not meet its next run.
                _write(self._descriptor, b"".join(held))
                return LEAVING
            now = time.perf_counter_ns()
            if len(held) == 2:
                held_since = now
            if now - begun > _LONG_NS or now - held_since > _HOLD_NS or len(held) >= _HOLD:
                _write(self._descriptor, b"".join(held))
                held.clear()

    def _is_clean(self) -> bool:
        """Empty the scratch folder; say whether no thread of the task is left."""
        if os.stat(self._scratch).st_mtime_ns != self._untouched:  # noqa: PTH116
            for entry in os.scandir(self._scratch):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)  # noqa: PTH108
            self._untouched = os.stat(self._scratch).st_mtime_ns  # noqa: PTH116
        return _thread._count() <= self._threads

    def _on_alarm(self, _: int, __: FrameType | None) -> None:
        """The pool says that time is over; it kills if this does not help."""
        if not self._instance.running:
            return
        left = self._instance.deadline - time.monotonic()
        if left <= 0:
            raise runtime.DeadlineExceeded
        signal.setitimer(signal.ITIMER_REAL, left)  # the pool's clock started a little earlier


class _Inbox:
    """Bodies that come over a descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = b""
        self._offset = 0

    def waiting(self) -> memoryview | None:
        """Return the next body if all of it is here already."""
        buffer, offset = self._buffer, self._offset
        start = offset + 4
        if len(buffer) < start:
            return None
        end = start + LENGTH.unpack_from(buffer, offset)[0]
        if len(buffer) < end:
            return None
        self._offset = end
        return memoryview(buffer)[start:end]

    def next(self) -> memoryview | None:
        """Return the next body, or None when the other end has closed."""
        while True:
            body = self.waiting()
            if body is not None:
                return body
            parts = [self._buffer[self._offset :]]
            have = len(parts[0])
            self._offset = 0
            while True:
                chunk = os.read(self._descriptor, _READ)
                if not chunk:
                    return None
                parts.append(chunk)
                have += len(chunk)
                if have >= 4:
                    head = parts[0] if len(parts[0]) >= 4 else b"".join(parts)
                    if have >= 4 + LENGTH.unpack_from(head)[0]:
                        break
            self._buffer = b"".join(parts)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
