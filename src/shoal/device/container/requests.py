"""What goes into a task container and what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from shoal.wire.events import Event

__all__ = ["RunReply", "RunRequest", "TaskCode"]


@dataclass(frozen=True)
class TaskCode:
    """One installed version of a task, ready to run.

    Attributes
    ----------
    task, version : str, int
        Which task.
    folder : Path
        The unpacked package; only read.
    entry : str
        ``module:function``.
    digest : bytes
        SHA-256 of the package. Workers are shared by what has the same digest,
        so agents of one process may share a pool.
    models : mapping of str to Path
        Model files by the name that the task calls them.
    engine : str
        Name of the tensor engine; only used if there are models.
    threads : int
        Threads of the engine.
    outputs : mapping of str to (kind, dtype)
        What the task may emit.
    deadline_ms, memory_mb, output_kb : int
        Limits of one run.
    sandbox_level : int
        The least level that the task accepts (0 to 3).
    seed : int
        Start of ``ctx.random``.
    """

    task: str
    version: int
    folder: Path
    entry: str = "main:run"
    digest: bytes = b""
    models: Mapping[str, Path] = field(default_factory=dict)
    engine: str = "onnx"
    threads: int = 1
    outputs: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    deadline_ms: int = 300
    memory_mb: int = 256
    output_kb: int = 64
    sandbox_level: int = 0
    seed: int = 0

    @cached_property
    def key(self) -> tuple[str, int, bytes]:
        """What tells workers of different code apart."""
        return self.task, self.version, self.digest or str(self.folder).encode()


class RunRequest(msgspec.Struct, frozen=True):
    """One run of a task.

    Attributes
    ----------
    run : bytes
        Id of the run, the same when it is repeated.
    code : TaskCode
        What to run.
    events : list of Event
        The batch, oldest first.
    state : bytes or None
        What the last run left in ``ctx.state``, as its reply gave it.
    features : mapping of (name, key) to value
        Features that the task may read.
    now_us : int
        Event time of the run, microseconds since 1970 (UTC).
    device : bytes
        The device id.
    """

    run: bytes
    code: TaskCode
    events: list[Event]
    state: bytes | None = None
    features: Mapping[tuple[str, str], Any] = {}
    now_us: int = 0
    device: bytes = b""


class RunReply(msgspec.Struct, frozen=True, array_like=True):
    """How a run went and what it made.

    Attributes
    ----------
    run : bytes
        The request's id.
    outcome : int
        0, or an :class:`~shoal.wire.ErrorCode`.
    emits : list of (name, value, ts_us)
        Results, in the order in which they were emitted; empty unless fine.
    features : list of (name, key, dtype, value, ts_us)
        Features put; empty unless fine.
    state : bytes or None
        The new ``ctx.state`` in msgpack; None means: empty.
    cpu_us, wall_us : int
        Time inside the task.
    peak_kb : int
        Largest resident memory of the process so far.
    log : list of str
        What the task logged.
    message : str
        One line about a failure.
    backend : str
        Where it ran.
    """

    run: bytes
    outcome: int
    emits: list[tuple[str, Any, int]] = []
    features: list[tuple[str, str, str, Any, int]] = []
    state: bytes | None = None
    cpu_us: int = 0
    wall_us: int = 0
    peak_kb: int = 0
    log: list[str] = []
    message: str = ""
    backend: str = ""
