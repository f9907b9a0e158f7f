"""Runs tasks in this very process: no isolation, for tests and debugging.

A task that loops for ever blocks its caller; one that exits takes nothing down
(``SystemExit`` is caught), but what it leaves in modules stays.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import Any

import msgspec

from shoal.device.container._runtime_loader import runtime, streams
from shoal.device.container.pool import VMPoolConfig
from shoal.device.container.requests import RunReply, RunRequest, TaskCode
from shoal.device.engine import load_engine
from shoal.wire.codes import ErrorCode

__all__ = ["InlineBackend"]


class InlineBackend:
    """One call after the other, in the caller's thread."""

    sandbox_level = 0

    def __init__(self, config: VMPoolConfig) -> None:
        self._lock = threading.Lock()
        self._loaded: dict[Any, tuple[Any, dict[str, Any]]] = {}
        self._runs = self._failures = 0
        self._closed = False

    def prewarm(self, code: TaskCode, number: int) -> None:
        """Do nothing: loading happens in the caller's thread at the first run."""

    def submit(self, request: RunRequest, deadline_s: float) -> Future[RunReply]:
        """Run now and return a finished future."""
        future: Future[RunReply] = Future()
        with self._lock:
            if self._closed:
                reply = RunReply(request.run, ErrorCode.CANCELLED, message="the pool is closed")
            else:
                reply = self._run(request, deadline_s)
                self._runs += 1
                self._failures += reply.outcome != 0
        future.set_result(reply)
        return future

    def _run(self, request: RunRequest, deadline_s: float) -> RunReply:
        code = request.code
        try:
            function, models = self._load(code)
        except ImportError as error:
            return self._failed(request, ErrorCode.IMPORT_REFUSED, runtime.describe(error))
        except BaseException as error:
            engine_failed = type(error).__name__ == "ModelError"
            outcome = ErrorCode.ENGINE_ERROR if engine_failed else ErrorCode.EXCEPTION
            return self._failed(request, outcome, runtime.describe(error))
        events = [
            runtime.TaskEvent(e.id, e.kind, e.page, e.ts_us, e.visit, e.content)
            for e in request.events
        ]
        start = time.monotonic()
        context = runtime.Context(
            declared={name: tuple(spec) for name, spec in code.outputs.items()},
            models=models,
            state={} if request.state is None else msgspec.msgpack.decode(request.state),
            features=dict(request.features),
            seed=runtime.run_seed(code.seed, request.device, code.task, request.run),
            now_us=request.now_us,
            deadline=start + deadline_s,
            streams=streams,
        )
        cpu, wall = time.thread_time(), time.perf_counter()
        outcome, message = runtime.call(function, context, runtime.Batch(events))
        cpu_us = int((time.thread_time() - cpu) * 1e6)
        wall_us = int((time.perf_counter() - wall) * 1e6)
        if outcome == 0 and wall_us > deadline_s * 1e6:
            outcome, message = runtime.DEADLINE, "the run took longer than its deadline"
        if outcome == 0:
            try:
                state = msgspec.msgpack.encode(context.state) if context.state else None
                made = msgspec.msgpack.decode(
                    msgspec.msgpack.encode([context._emits, context._features])
                )
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                outcome = ErrorCode.EXCEPTION
                message = f"outputs and state must be plain values: {error}"[:500]
            else:
                return RunReply(
                    request.run,
                    0,
                    [tuple(entry) for entry in made[0]],
                    [tuple(entry) for entry in made[1]],
                    state,
                    cpu_us,
                    wall_us,
                    log=context._log,
                    backend="inline",
                )
        return RunReply(
            request.run,
            int(outcome),
            cpu_us=cpu_us,
            wall_us=wall_us,
            log=context._log,
            message=message,
            backend="inline",
        )

    def _failed(self, request: RunRequest, outcome: int, message: str) -> RunReply:
        return RunReply(request.run, int(outcome), message=message, backend="inline")

    def _load(self, code: TaskCode) -> tuple[Any, dict[str, Any]]:
        loaded = self._loaded.get(code.key)
        if loaded is None:
            engine = load_engine(code.engine) if code.models else None
            models = {
                name: engine.open_model(str(path), code.threads)
                for name, path in code.models.items()
                if engine is not None
            }
            loaded = runtime.load_entry(str(code.folder), code.entry), models
            self._loaded[code.key] = loaded
        return loaded

    def stats(self) -> dict[str, Any]:
        """Return counts."""
        return {"runs": self._runs, "failures": self._failures, "workers": 0, "waiting": 0}

    def close(self) -> None:
        """Refuse further runs."""
        with self._lock:
            self._closed = True
