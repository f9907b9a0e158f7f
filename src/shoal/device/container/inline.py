"""Runs tasks in this very process: no isolation, for tests and debugging.

A run takes place in the caller's thread, inside ``submit``. A task that loops
for ever blocks its caller; one that exits takes nothing down (``SystemExit`` is
caught), but what it leaves in modules stays.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import msgspec

from shoal.device.container._runtime_loader import runtime
from shoal.device.container.execution import TaskInstance
from shoal.device.container.messages import RunOrder, encode, load_order
from shoal.device.container.requests import RunReply, RunRequest, TaskCode
from shoal.device.engine import load_engine
from shoal.wire.codes import ErrorCode

if TYPE_CHECKING:
    from shoal.device.container.pool import VMPoolConfig

__all__ = ["InlineBackend"]

_decode_order = msgspec.msgpack.Decoder(RunOrder).decode
_decode_reply = msgspec.msgpack.Decoder(RunReply).decode


class InlineBackend:
    """One call after the other."""

    sandbox_level = 0

    def __init__(self, config: VMPoolConfig) -> None:
        self._lock = threading.Lock()
        self._loaded: dict[Any, TaskInstance] = {}
        self._counts: Counter[str] = Counter()
        self._outcomes: Counter[int] = Counter()
        self._closed = False

    def prewarm(self, code: TaskCode, number: int) -> None:
        """Do nothing: loading happens in the caller's thread at the first run."""

    def submit(self, request: RunRequest, deadline_s: float) -> Future[RunReply]:
        """Run now and return a finished future."""
        future: Future[RunReply] = Future()
        with self._lock:
            reply = self._run(request, deadline_s)
            self._counts["runs"] += 1
            if reply.outcome:
                self._counts["failures"] += 1
                self._outcomes[reply.outcome] += 1
        future.set_result(reply)
        return future

    def _run(self, request: RunRequest, deadline_s: float) -> RunReply:
        code = request.code
        if self._closed:
            return self._failed(request, ErrorCode.CANCELLED, "the pool is closed")
        if code.sandbox_level > self.sandbox_level:
            text = f"the task wants sandbox level {code.sandbox_level}, inline is level 0"
            return self._failed(request, ErrorCode.SANDBOX_VIOLATION, text)
        instance = self._loaded.get(code.key)
        if instance is None:
            order = load_order(code, memory_mb=code.memory_mb, sandbox_level=0, scratch="")
            instance = TaskInstance(order, "inline", time.thread_time_ns)
            outcome, message = self._load(instance, code)
            if outcome:
                return self._failed(request, outcome, message)
            self._loaded[code.key] = instance
        # Through the codec, as if it travelled: what the caller holds cannot be changed by
        # the task, and the task sees the very same values as in a worker.
        run = _decode_order(
            encode(
                (
                    request.run,
                    request.events,
                    request.state,
                    [(name, key, value) for (name, key), value in request.features.items()],
                    request.now_us,
                    request.device,
                    deadline_s,
                )
            )
        )
        reply = _decode_reply(instance.run(run)[1])
        if reply.outcome == 0 and reply.wall_us > deadline_s * 1e6:
            return self._failed(request, runtime.DEADLINE, runtime.LATE)
        return reply

    @staticmethod
    def _load(instance: TaskInstance, code: TaskCode) -> tuple[int, str]:
        engine: Any = None
        if code.models:
            try:
                engine = load_engine(code.engine)
            except Exception as error:  # told in the reply
                return runtime.ENGINE_ERROR, runtime.describe(error)
        return instance.load(engine)

    @staticmethod
    def _failed(request: RunRequest, outcome: int, message: str) -> RunReply:
        return RunReply(request.run, int(outcome), message=message, backend="inline")

    def stats(self) -> dict[str, Any]:
        """Return counts."""
        return {
            "runs": self._counts["runs"],
            "failures": self._counts["failures"],
            "outcomes": dict(self._outcomes),
            "workers": 0,
            "waiting": 0,
        }

    def close(self) -> None:
        """Refuse further runs."""
        with self._lock:
            self._closed = True
