"""One loaded version of a task, and how a run of it becomes a reply.

Used by workers and by the inline backend alike, so that the same events give
the same bytes wherever a task runs.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import Any

import msgspec

from shoal.device.container._runtime_loader import runtime, streams
from shoal.device.container.messages import STATE_LIMIT, LoadOrder, RunOrder, encode

__all__ = ["TaskInstance"]

_decode_state = msgspec.msgpack.Decoder(dict).decode
_NOTHING: list[Any] = []


class TaskInstance:
    """The code, models and bounds of one version of one task.

    Parameters
    ----------
    order : LoadOrder
        What to load.
    backend : str
        Written into every reply.
    cpu_clock : callable
        Nanoseconds of processor time spent so far.
    """

    def __init__(
        self, order: LoadOrder, backend: str, cpu_clock: Callable[[], int] = time.process_time_ns
    ) -> None:
        self._order = order
        self._backend = backend
        self._cpu_clock = cpu_clock
        self._function: Any = None
        self._models: dict[str, Any] = {}
        #: Whether a run is going on, and when it must end (steady seconds).
        self.running = False
        self.deadline = 0.0

    def load(self, engine: Any) -> tuple[int, str]:
        """Load models with ``engine``, then the task's module; return outcome and message."""
        order = self._order

        def load() -> None:
            for name, path in order.models.items():
                self._models[name] = engine.open_model(path, order.threads)
            self._function = runtime.load_entry(order.folder, order.entry)

        outcome, message = runtime.guarded(load)
        return int(outcome), str(message)

    def run(self, order: RunOrder) -> tuple[int, bytes]:
        """Run once; return the outcome and the reply, encoded."""
        load = self._order
        self.deadline = time.monotonic() + order.deadline_s
        try:
            state = {} if order.state is None else _decode_state(order.state)
        except msgspec.MsgspecError as error:
            message = f"the saved state is damaged: {error}"
            return runtime.EXCEPTION, self.reply(order.run, runtime.EXCEPTION, message)
        context = runtime.Context(
            declared=load.outputs,
            models=self._models,
            state=state,
            features={(name, key): value for name, key, value in order.features},
            seed=(load.seed, order.device, load.task, order.run),
            now_us=order.now_us,
            deadline=self.deadline,
            streams=streams,
        )
        batch = runtime.Batch(order.events)
        wall, cpu = time.perf_counter_ns(), self._cpu_clock()
        try:
            self.running = True
            outcome, message = runtime.call(self._function, context, batch)
            self.running = False
        except runtime.DeadlineExceeded:  # the alarm came between the task and its caller
            self.running = False
            outcome, message = runtime.DEADLINE, runtime.LATE
        spent = (self._cpu_clock() - cpu) // 1000, (time.perf_counter_ns() - wall) // 1000
        if outcome:
            return outcome, self.reply(order.run, outcome, message, context.lines, spent)
        return self._outputs(order.run, context, spent)

    def _outputs(self, run: bytes, context: Any, spent: tuple[int, int]) -> tuple[int, bytes]:
        """Encode what a good run made, unless it is too much or not plain data."""
        limit = self._order.output_bytes
        try:
            state = encode(context.state) if context.state else None
            made = context.emitted, context.put
            tail = _peak_kb(), context.lines, "", self._backend
            body = encode((run, 0, *made, state, *spent, *tail))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            outcome, message = runtime.EXCEPTION, f"outputs and state must be plain data: {error}"
        except MemoryError:
            outcome, message = runtime.MEMORY, runtime.NO_MEMORY
        else:
            if len(body) <= limit:
                return 0, body
            kept = len(state or b"")
            size = len(encode(made))
            if size <= limit and kept <= STATE_LIMIT:
                return 0, body
            outcome = runtime.OUTPUT_TOO_LARGE
            message = f"outputs take {size} bytes, the limit is {limit}"
            if size <= limit:
                message = f"the state takes {kept} bytes, the limit is {STATE_LIMIT}"
        return outcome, self.reply(run, outcome, message[:500], context.lines, spent)

    def reply(
        self,
        run: bytes,
        outcome: int,
        message: str,
        log: list[str] = _NOTHING,
        spent: tuple[int, int] = (0, 0),
    ) -> bytes:
        """Return the encoded reply of a run that made nothing."""
        tail = _peak_kb(), log, message, self._backend
        return encode((run, outcome, _NOTHING, _NOTHING, None, *spent, *tail))


def _peak_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
