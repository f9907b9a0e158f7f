"""What a task sees: ``ctx`` and ``batch``. Standard library only.

This file is loaded by its path under the module name ``shoal_task``, inside
workers and inline alike, and never through the package: a virtual machine for
tasks must not need more than the standard library.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import sys
import time
from collections.abc import Iterator
from random import Random
from types import ModuleType
from typing import Any

OK, DEADLINE, MEMORY, EXCEPTION = 0, 300, 301, 302
IMPORT_REFUSED, SANDBOX, OUTPUT_TOO_LARGE, ENGINE_ERROR = 304, 305, 306, 307
#: Log lines and characters that one run may write.
LOG_LINES, LOG_CHARACTERS = 50, 500


class DeadlineExceeded(BaseException):
    """Raised inside a task whose time is over; not an Exception, so ``except`` passes it on."""


class TaskOutputError(Exception):
    """The task emitted something that it may not emit; carries the outcome code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class TaskEvent:
    """One event as the task sees it."""

    __slots__ = ("content", "id", "kind", "page", "ts_us", "visit")

    def __init__(
        self,
        id: bytes,
        kind: int,
        page: str,
        ts_us: int,
        visit: bytes | None,
        content: dict[str, Any],
    ) -> None:
        self.id = id
        self.kind = kind
        self.page = page
        self.ts_us = ts_us
        self.visit = visit
        self.content = content

    def __repr__(self) -> str:
        return f"TaskEvent(kind={self.kind}, page={self.page!r}, ts_us={self.ts_us})"


class Batch:
    """The events of one run, oldest first."""

    def __init__(self, events: list[TaskEvent]) -> None:
        self.events = events

    @property
    def visit(self) -> bytes | None:
        """Id of the page visit of the last event, or None."""
        return self.events[-1].visit if self.events else None

    def floats(self, field: str, default: float = 0.0) -> list[float]:
        """Return one float an event: ``content[field]``, or ``default`` where it is missing."""
        return [float(event.content.get(field, default)) for event in self.events]

    def __len__(self) -> int:
        return len(self.events)

    def __iter__(self) -> Iterator[TaskEvent]:
        return iter(self.events)


class FeatureView:
    """Features of this task: what was stored before, and what this run puts."""

    def __init__(self, context: Context, stored: dict[tuple[str, str], Any]) -> None:
        self._context = context
        self._stored = stored

    def put(self, name: str, key: str, value: Any, *, ts_us: int | None = None) -> None:
        """Store a feature; numbers in a list travel as float32, anything else as JSON."""
        context = self._context
        context._check_name(name)
        dtype = context._declared[name][1]
        context._check_value(name, value, dtype)
        stamp = context.now() if ts_us is None else int(ts_us)
        context._features.append([name, str(key), dtype, value, stamp])
        self._stored[(name, str(key))] = value

    def get(self, name: str, key: str, default: Any = None) -> Any:
        """Return a feature of this task that is on the device."""
        return self._stored.get((name, str(key)), default)


class Context:
    """The task's only door to the device."""

    def __init__(
        self,
        *,
        declared: dict[str, tuple[str, str]],
        models: dict[str, Any],
        state: dict[str, Any],
        features: dict[tuple[str, str], Any],
        seed: int,
        now_us: int,
        deadline: float,
        streams: Any,
    ) -> None:
        self.state = state
        self.features = FeatureView(self, features)
        self._declared = declared
        self._models = models
        self._now_us = now_us
        self._deadline = deadline
        self._streams = streams
        self._seed = seed
        self._random: Random | None = None
        self._emits: list[list[Any]] = []
        self._features: list[list[Any]] = []
        self._log: list[str] = []

    def model(self, name: str) -> Any:
        """Return a model of the package; its ``run({name: values})`` gives ``{name: lists}``."""
        try:
            return self._models[name]
        except KeyError:
            known = ", ".join(sorted(self._models)) or "none"
            raise KeyError(f"no model {name!r} in this package (it has: {known})") from None

    def emit(self, name: str, value: Any, *, ts_us: int | None = None) -> None:
        """Hand out a result; ``name`` must be declared under outputs."""
        self._check_name(name)
        self._check_value(name, value, self._declared[name][1])
        self._emits.append([name, value, self.now() if ts_us is None else int(ts_us)])

    def now(self) -> int:
        """Return the time of the last event, microseconds since 1970 (UTC)."""
        return self._now_us

    @property
    def random(self) -> Random:
        """A ``random.Random`` that gives the same numbers whenever this run is repeated."""
        if self._random is None:
            self._random = Random(self._seed)  # noqa: S311 - replays, no secrets
        return self._random

    def log(self, text: object) -> None:
        """Write one line to the run's log (capped)."""
        if len(self._log) < LOG_LINES:
            self._log.append(str(text)[:LOG_CHARACTERS])

    def deadline_left(self) -> float:
        """Return the seconds until the run is stopped."""
        return max(self._deadline - time.monotonic(), 0.0)

    def stream(self, events: Any) -> Any:
        """Return the events as a stream with filter, key_by, window and map."""
        return self._streams(events)

    def _check_name(self, name: str) -> None:
        if name not in self._declared:
            known = ", ".join(sorted(self._declared)) or "none"
            raise TaskOutputError(EXCEPTION, f"output {name!r} is not declared (declared: {known})")

    def _check_value(self, name: str, value: Any, dtype: str) -> None:
        if dtype.startswith("f32["):
            length = int(dtype[4:-1])
            if not isinstance(value, (list, tuple)) or len(value) != length:
                raise TaskOutputError(EXCEPTION, f"output {name!r} wants {length} numbers")
        bad = _not_finite(value)
        if bad is not None:
            raise TaskOutputError(ENGINE_ERROR, f"output {name!r} holds {bad}")


def _not_finite(value: Any) -> float | None:
    """Return the first NaN or infinity inside ``value``, or None."""
    if isinstance(value, float):
        return None if math.isfinite(value) else value
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return None
    for part in value:
        found = _not_finite(part)
        if found is not None:
            return found
    return None


def load_module(path: str, name: str) -> ModuleType:
    """Load a Python file by its path."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def load_entry(folder: str, entry: str) -> Any:
    """Return the function that ``module:function`` names inside a package folder."""
    module_name, _, function = entry.partition(":")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = load_module(f"{folder}/{module_name.replace('.', '/')}.py", module_name)
    try:
        return getattr(module, function)
    except AttributeError:
        raise ImportError(f"{module_name}.py has no function {function!r}") from None


def run_seed(seed: int, device: bytes, task: str, run: bytes) -> int:
    """Return the seed of one run, the same whenever it is repeated."""
    text = b"|".join((str(seed).encode(), device, task.encode(), run))
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def describe(error: BaseException) -> str:
    """Return one line about an exception and the task's line that raised it."""
    place = ""
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.endswith("_runtime.py"):
            place = f" ({file.rsplit('/', 1)[-1]} line {trace.tb_lineno})"
        trace = trace.tb_next
    text = str(error).splitlines()[0] if str(error) else ""
    return f"{type(error).__name__}: {text}{place}"[:LOG_CHARACTERS]


def call(function: Any, context: Context, batch: Batch) -> tuple[int, str]:
    """Run the task's function and return (outcome code, message)."""
    try:
        function(context, batch)
    except DeadlineExceeded:
        return DEADLINE, "the run took longer than its deadline"
    except MemoryError:
        return MEMORY, "the run needed more memory than its limit"
    except TaskOutputError as error:
        return error.code, str(error)
    except ImportError as error:
        return IMPORT_REFUSED, describe(error)
    except PermissionError as error:
        return SANDBOX, describe(error)
    except RecursionError as error:
        return EXCEPTION, describe(error)
    except Exception as error:
        code = ENGINE_ERROR if type(error).__name__ == "ModelError" else EXCEPTION
        return code, describe(error)
    except BaseException as error:  # SystemExit, KeyboardInterrupt and what a task makes up
        return EXCEPTION, describe(error)
    return OK, ""
