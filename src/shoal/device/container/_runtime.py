"""What a task sees: ``ctx`` and ``batch``. Standard library only.

This file is loaded by its path under the module name ``shoal_task``, inside
workers and inline alike, and never through the package: a virtual machine for
tasks must not need more than the standard library (Walle sheet C.2).
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

OK, DEADLINE, MEMORY, EXCEPTION = 0, 300, 301, 302
IMPORT_REFUSED, SANDBOX, OUTPUT_TOO_LARGE, ENGINE_ERROR = 304, 305, 306, 307
#: Log lines and characters that one run may write.
LOG_LINES, LOG_CHARACTERS = 50, 500
LATE = "the run took longer than its deadline"
NO_MEMORY = "the run needed more memory than its limit"
#: Package folders that code was loaded from.
_FOLDERS: set[str] = set()


class DeadlineExceeded(BaseException):
    """Raised inside a task whose time is over; not an Exception, so ``except`` passes it on."""


class TaskOutputError(Exception):
    """The task emitted something that it may not emit; carries the outcome code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Batch:
    """The events of one run, oldest first; each has kind, page, ts_us, visit, content."""

    __slots__ = ("events",)

    def __init__(self, events: list[Any]) -> None:
        self.events = events

    @property
    def visit(self) -> str | None:
        """Id of the page visit of the last event in hex, or None."""
        visit = self.events[-1].visit if self.events else None
        return None if visit is None else str(visit.hex())

    def floats(self, field: str, default: float = 0.0) -> list[float]:
        """Return one float an event: ``content[field]``, or ``default`` where it is missing."""
        return [float(event.content.get(field, default)) for event in self.events]

    def __len__(self) -> int:
        return len(self.events)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.events)


class FeatureView:
    """Features of this task: what was stored before, and what this run puts."""

    __slots__ = ("_context", "_stored")

    def __init__(self, context: Context, stored: dict[tuple[str, str], Any]) -> None:
        self._context = context
        self._stored = stored

    def put(self, name: str, key: object, value: Any, *, ts_us: int | None = None) -> None:
        """Store a feature; numbers in a list travel as float32, anything else as JSON."""
        context = self._context
        dtype = context.dtype(name)
        value = context.checked(name, value, dtype)
        text = _key(key)
        stamp = context.now() if ts_us is None else int(ts_us)
        context.put.append((name, text, dtype, value, stamp))
        self._stored[(name, text)] = value

    def get(self, name: str, key: object, default: Any = None) -> Any:
        """Return a feature of this task that is on the device."""
        return self._stored.get((name, _key(key)), default)


class Context:
    """The task's only door to the device."""

    __slots__ = (
        "_deadline",
        "_declared",
        "_features",
        "_models",
        "_now_us",
        "_random",
        "_seed",
        "_streams",
        "emitted",
        "lines",
        "put",
        "state",
    )

    def __init__(
        self,
        *,
        declared: Mapping[str, tuple[str, str]],
        models: Mapping[str, Any],
        state: dict[str, Any],
        features: dict[tuple[str, str], Any],
        seed: tuple[int, bytes, str, bytes],
        now_us: int,
        deadline: float,
        streams: Callable[[Any], Any],
    ) -> None:
        self.state = state
        self.emitted: list[tuple[str, Any, int]] = []
        self.put: list[tuple[str, str, str, Any, int]] = []
        self.lines: list[str] = []
        self._features = FeatureView(self, features)
        self._declared = declared
        self._models = models
        self._now_us = now_us
        self._deadline = deadline
        self._streams = streams
        self._seed = seed
        self._random: random.Random | None = None

    @property
    def features(self) -> FeatureView:
        """The task's features: ``put(name, key, value)`` and ``get(name, key)``."""
        return self._features

    def model(self, name: str) -> Any:
        """Return a model of the package; its ``run({name: values})`` gives ``{name: lists}``."""
        try:
            return self._models[name]
        except KeyError:
            known = ", ".join(sorted(self._models)) or "none"
            raise KeyError(f"no model {name!r} in this package (it has: {known})") from None

    def emit(self, name: str, value: Any, *, ts_us: int | None = None) -> None:
        """Hand out a result; ``name`` must be declared under outputs."""
        value = self.checked(name, value, self.dtype(name))
        self.emitted.append((name, value, self._now_us if ts_us is None else int(ts_us)))

    def now(self) -> int:
        """Return the time of the last event, microseconds since 1970 (UTC)."""
        return self._now_us

    @property
    def random(self) -> random.Random:
        """A ``random.Random`` that gives the same numbers whenever this run is repeated."""
        if self._random is None:
            self._random = random.Random(run_seed(*self._seed))  # noqa: S311 - not for secrets
        return self._random

    def log(self, text: object) -> None:
        """Write one line to the run's log (capped)."""
        if len(self.lines) < LOG_LINES:
            self.lines.append(str(text)[:LOG_CHARACTERS])

    def deadline_left(self) -> float:
        """Return the milliseconds until the run is stopped."""
        return max(self._deadline - time.monotonic(), 0.0) * 1000.0

    def stream(self, events: Sequence[Any]) -> Any:
        """Return the events as a stream with filter, key_by, window and map."""
        return self._streams(events)

    def dtype(self, name: str) -> str:
        """Return the declared form of an output, or raise."""
        try:
            return self._declared[name][1]
        except KeyError:
            known = ", ".join(sorted(self._declared)) or "none"
            text = f"output {name!r} is not declared (declared: {known})"
            raise TaskOutputError(EXCEPTION, text) from None

    def checked(self, name: str, value: Any, dtype: str) -> Any:
        """Return an output as plain data, a copy; raise if it is not what was declared."""
        value = _plain(name, value)
        if dtype.startswith("f32[") and (type(value) is not list or len(value) != int(dtype[4:-1])):
            raise TaskOutputError(EXCEPTION, f"output {name!r} wants {dtype[4:-1]} numbers")
        return value


def _key(key: object) -> str:
    """Return the key of a feature as text; the id of a visit becomes hex."""
    return key.hex() if isinstance(key, bytes) else str(key)


def _plain(name: str, value: Any) -> Any:
    """Return a copy of an output made of lists, dicts and numbers; refuse NaN and infinity."""
    kind = type(value)
    if kind is float:
        if math.isfinite(value):
            return value
        raise TaskOutputError(ENGINE_ERROR, f"output {name!r} holds {value}")
    if kind is str or kind is int or kind is bool or value is None:
        return value
    if kind is list or kind is tuple:
        return [_plain(name, part) for part in value]
    if kind is dict:
        return {key: _plain(name, part) for key, part in value.items()}
    if hasattr(value, "tolist"):  # an array or a number of NumPy
        return _plain(name, value.tolist())
    return value


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
    _forget_other_packages(folder)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    path = f"{folder}/{module_name.replace('.', '/')}.py"
    try:
        module = load_module(path, module_name)
    except FileNotFoundError:
        raise ImportError(f"the package has no {module_name}.py") from None
    try:
        return getattr(module, function)
    except AttributeError:
        raise ImportError(f"{module_name}.py has no function {function!r}") from None


def _forget_other_packages(folder: str) -> None:
    """Inline, packages share this process: one's ``helper.py`` is not another's."""
    others = tuple(f"{path}/" for path in _FOLDERS if path != folder)
    for name, module in list(sys.modules.items()):
        if others and str(getattr(module, "__file__", None) or "").startswith(others):
            del sys.modules[name]
    for path in _FOLDERS - {folder}:
        if path in sys.path:
            sys.path.remove(path)
    _FOLDERS.add(folder)


def run_seed(seed: int, device: bytes, task: str, run: bytes) -> int:
    """Return the seed of one run, the same whenever it is repeated."""
    text = b"|".join((str(seed).encode(), device, task.encode(), run))
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def call(function: Callable[..., Any], context: Context, batch: Batch) -> tuple[int, str]:
    """Run the task's function; return (outcome code, message)."""
    outcome, message = guarded(function, context, batch)
    if outcome == OK and type(context.state) is not dict:
        kind = type(context.state).__name__
        return EXCEPTION, f"ctx.state must stay a dict, it became a {kind}"
    return outcome, message


def guarded(function: Callable[..., Any], *arguments: Any) -> tuple[int, str]:
    """Call a function of a task; return (outcome code, one line), whatever it raises."""
    try:
        function(*arguments)
    except DeadlineExceeded as error:
        return DEADLINE, LATE + _place(error)
    except MemoryError:
        return MEMORY, NO_MEMORY
    except TaskOutputError as error:
        return error.code, str(error)[:LOG_CHARACTERS]
    except ImportError as error:
        return IMPORT_REFUSED, describe(error)
    except (PermissionError, BlockingIOError) as error:  # the latter: no process may be added
        return SANDBOX, describe(error)
    except BaseException as error:  # SystemExit, KeyboardInterrupt and what a task makes up
        return _judge(error), describe(error)
    return OK, ""


def _judge(error: BaseException) -> int:
    name = type(error).__name__
    if name in ("ModelError", "UnavailableError"):
        # A library that finds no memory says so in its own words.
        scarce = any(words in str(error) for words in ("bad alloc", "bad_alloc", "allocate memory"))
        return MEMORY if scarce else ENGINE_ERROR
    if name == "RuntimeError" and "can't start new thread" in str(error):
        return SANDBOX
    return EXCEPTION


def describe(error: BaseException) -> str:
    """Return one line about an exception and the task's line that raised it."""
    name = type(error).__name__
    try:
        lines = str(error).splitlines()
    except BaseException:  # a __str__ of the task's own making
        lines = []
    text = f"{name}: {lines[0]}" if lines else name
    return (text[: LOG_CHARACTERS - 80] + _place(error))[:LOG_CHARACTERS]


def _place(error: BaseException) -> str:
    """Return the task's own line that an exception came from, as `` (main.py line 3)``."""
    place = ""
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.endswith(("/container/_runtime.py", "/container/worker.py")):
            place = f" ({file.rsplit('/', 1)[-1]} line {trace.tb_lineno})"
        trace = trace.tb_next
    return place
