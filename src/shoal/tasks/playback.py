"""Play a recording to a task folder, as a device would, for its author to look at.

The real event log, trigger engine, runner and worker processes are used, in a
scratch folder; only the network is missing. What a task makes of a recording
here is what it makes of those events on a device. (The cloud's test of a draft
is :mod:`shoal.tasks.simulate`.)
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from shoal.core.errors import UnavailableError
from shoal.device.container import TaskCode, VMPool, VMPoolConfig
from shoal.device.container.requests import RunReply
from shoal.device.jobs import LogView
from shoal.device.packages import InstalledTask
from shoal.device.runner import TaskRunner
from shoal.device.store import DeviceStore
from shoal.device.stream.features import FeatureStore
from shoal.device.stream.log import EventLog
from shoal.device.uplink import Uplink
from shoal.wire.codes import ErrorCode
from shoal.wire.events import Event
from shoal.wire.package import BuiltPackage, TaskPackage, build_package
from shoal.wire.results import InstallState

__all__ = ["Playback", "PlayedRun", "play_task"]

_DEVICE = bytes(16)


@dataclass(frozen=True)
class PlayedRun:
    """One run: its outcome and what it made.

    Attributes
    ----------
    outcome : str
        ``"ok"`` or the lower-case name of an :class:`~shoal.wire.ErrorCode`.
    emits : list of (name, value)
        Results, in order.
    features : list of (name, key, value)
        Features that were put, in order.
    wall_us : int
        Time inside the task, microseconds.
    log : list of str
        What the task logged.
    message : str
        One line about a failure.
    """

    outcome: str
    emits: list[tuple[str, Any]]
    features: list[tuple[str, str, Any]]
    wall_us: int
    log: list[str]
    message: str


@dataclass(frozen=True)
class Playback:
    """What became of a recording.

    Attributes
    ----------
    task : str
    events : int
        Events recorded (repeated ids count once).
    runs : list of PlayedRun
        Every try, in order.
    stopped : bool
        Whether it failed so often that the circuit breaker ended it.
    dropped : dict
        Outputs that the device would not let out, by reason.
    warnings : list of str
        What the builder's linter said.
    """

    task: str
    events: int
    runs: list[PlayedRun] = field(default_factory=list)
    stopped: bool = False
    dropped: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def failures(self) -> list[PlayedRun]:
        """The runs that did not end well."""
        return [run for run in self.runs if run.outcome != "ok"]

    @property
    def emitted(self) -> list[dict[str, Any]]:
        """All results in order, each as ``{name: value}``."""
        return [{name: value} for run in self.runs for name, value in run.emits]


def play_task(
    folder: str | Path,
    events: Iterable[Event],
    *,
    backend: str = "auto",
    sandbox_level: int | None = None,
    timeout_s: float = 300.0,
) -> Playback:
    """Build a task folder and run it on recorded events.

    The limit of runs per hour is not applied: a recording has its own time.

    Parameters
    ----------
    folder : path-like
        The task's source folder.
    events : iterable of Event
        The recording, as :func:`~shoal.tasks.recording.read_recording` yields it.
    backend : str
        ``"auto"``, ``"process"`` or ``"inline"``, as in ``VMPoolConfig``.
    sandbox_level : int, optional
        0 to 3; the highest that this machine can keep if absent.
    timeout_s : float
        Give up after this long.

    Returns
    -------
    Playback

    Raises
    ------
    InputError
        The folder is no task, or an event is not one.
    UnavailableError
        The runs did not end in time.
    """
    built = build_package(folder, 1)
    config = VMPoolConfig.model_validate({"backend": backend, "sandbox_level": sandbox_level})
    with tempfile.TemporaryDirectory(prefix="shoal-task-") as scratch:
        root = Path(scratch)
        code = _unpack(built, root / "package")
        store = DeviceStore(root / "device")
        try:
            with VMPool(config) as pool:
                return _play(built, code, events, store=store, pool=pool, timeout_s=timeout_s)
        finally:
            store.close()


def _unpack(built: BuiltPackage, target: Path) -> TaskCode:
    manifest = built.manifest
    separate = {resource.name: path for resource, path in built.separate}
    with TaskPackage.open(built.bytes) as package:
        package.unpack(target, separate)
    return TaskCode(
        task=manifest.task,
        version=manifest.version,
        folder=target,
        entry=manifest.entry["device"],
        digest=built.sha256,
        models={r.name: target / r.path for r in manifest.resources if r.kind == "model"},
        engine=next(iter(manifest.requires.engines), "onnx"),
        outputs={
            output.name: (output.kind, output.dtype)
            for output in manifest.outputs
            if output.kind != "events"
        },
        deadline_ms=manifest.limits.deadline_ms,
        memory_mb=manifest.limits.memory_mb,
        output_kb=manifest.limits.output_kb,
        sandbox_level=manifest.isolation.sandbox_level,
        seed=manifest.determinism.seed,
    )


def _play(
    built: BuiltPackage,
    code: TaskCode,
    events: Iterable[Event],
    *,
    store: DeviceStore,
    pool: VMPool,
    timeout_s: float,
) -> Playback:
    # A recording may hold hours of events; none may be dropped as a storm.
    log = EventLog(store, rate_per_s=1e12, burst=1 << 40)
    uplink = Uplink(store, _DEVICE)
    uplink.declare(built.manifest)
    limits = msgspec.structs.replace(built.manifest.limits, runs_per_hour=0)
    manifest = msgspec.structs.replace(built.manifest, limits=limits)
    replies: list[RunReply] = []
    wake = threading.Event()
    runner = TaskRunner(
        InstalledTask(manifest, code.folder, code.digest, InstallState.GOOD),
        code,
        store=store,
        view=LogView(log),
        uplink=uplink,
        features=FeatureStore(store),
        pool=pool,
        on_reply=replies.append,
        wake=wake.set,
    )
    until = time.monotonic() + timeout_s
    stopped = False
    try:
        for event in events:
            log.append(
                event.kind,
                event.page,
                event.content,
                ts_us=event.ts_us,
                visit=event.visit,
                event_id=event.id,
                # Clocks of the recording's own: what comes out must not depend on today.
                mono_us=event.mono_us or event.ts_us,
                boot=event.boot,
            )
        log.flush()
        while not runner.idle:
            wake.clear()
            if not runner.step():
                stopped = runner.breaker.state(time.monotonic()) == "open"
                if stopped:
                    break
                wake.wait(0.05)
            if time.monotonic() > until:
                raise UnavailableError(f"the runs of {code.task} did not end in {timeout_s:g} s")
    finally:
        runner.close()
    return Playback(
        task=code.task,
        events=log.last_seq,
        runs=[_played(reply) for reply in replies],
        stopped=stopped,
        dropped=uplink.dropped(),
        warnings=list(built.warnings),
    )


def _played(reply: RunReply) -> PlayedRun:
    return PlayedRun(
        outcome="ok" if reply.outcome == 0 else ErrorCode(reply.outcome).name.lower(),
        emits=[(name, value) for name, value, _ in reply.emits],
        features=[(name, key, value) for name, key, _, value, _ in reply.features],
        wall_us=reply.wall_us,
        log=list(reply.log),
        message=reply.message,
    )
