"""The simulation test: recorded events through a task in the ordinary container.

:func:`simulate_task` replays recordings through one installed version of a task,
each on a store of its own, and says how its runs went. A :class:`VirtualDevice`
does so for every draft that the cloud offers to its agent, and reports back; a
release leaves the draft only when such a report is clean (Walle sheet A.6).
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from shoal.core.errors import InputError, NotFoundError, ShoalError, UnavailableError
from shoal.device.agent import Agent
from shoal.device.cloudlink import RefusedError
from shoal.device.container.pool import VMPool
from shoal.device.container.requests import RunReply, TaskCode
from shoal.device.jobs import LogView
from shoal.device.packages import InstalledTask
from shoal.device.runner import TaskRunner
from shoal.device.store import DeviceStore
from shoal.device.stream.features import FeatureStore
from shoal.device.stream.log import EventLog
from shoal.device.taskcode import task_code
from shoal.device.uplink import Uplink
from shoal.tasks.recording import read_recording
from shoal.wire.codes import ErrorCode
from shoal.wire.events import Event
from shoal.wire.results import InstallState
from shoal.wire.simulation import SimulationReport

__all__ = ["SimulationOutcome", "VirtualDevice", "simulate_task"]

_log = logging.getLogger(__name__)

_DEVICE: Final = b"virtual-device-0"  # the same everywhere, as it goes into ctx.random
_WAIT_S: Final = 0.05
_TIMEOUT_S: Final = 120.0
_REPORT_AGAIN_S: Final = 1.0
#: The cloud does not take a report for now, or from this session.
_TRY_AGAIN: Final = (ErrorCode.RATE_LIMITED, ErrorCode.UNAUTHENTICATED, ErrorCode.CLOCK_SKEW)


@dataclass
class SimulationOutcome:
    """How a replay went.

    Attributes
    ----------
    traces, runs, failures : int
        Recordings replayed to their end, runs that they caused, runs that failed;
        a recording that could not be replayed to its end is a failure too.
    max_wall_us, max_peak_kb : int
        Slowest run and largest memory peak.
    outputs_sha256 : bytes
        SHA-256 over all that was emitted, in order: equal for equal code and events.
    message : str
        The first failure in one line.
    outputs : list
        ``(name, value, ts_us)`` of every result, in order.
    """

    traces: int = 0
    runs: int = 0
    failures: int = 0
    max_wall_us: int = 0
    max_peak_kb: int = 0
    outputs_sha256: bytes = field(default_factory=lambda: hashlib.sha256().digest())
    message: str = ""
    outputs: list[tuple[str, Any, int]] = field(default_factory=list)


def simulate_task(
    installed: InstalledTask,
    code: TaskCode,
    traces: Iterable[Iterable[Event]],
    pool: VMPool,
    *,
    timeout_s: float = _TIMEOUT_S,
) -> SimulationOutcome:
    """Replay traces through an installed task; each trace is a fresh device.

    Parameters
    ----------
    installed, code : InstalledTask, TaskCode
        The version to test.
    traces : iterable of iterables of Event
        What happened, device by device.
    pool : VMPool
        Where it runs; the same container as on devices. An inline pool cannot
        end an endless run.
    timeout_s : float
        For each trace. A run that is under way then goes on to its own deadline and
        keeps its worker until then, so this should be the longer of the two.

    Returns
    -------
    SimulationOutcome
    """
    outcome = SimulationOutcome()
    digest = hashlib.sha256()

    def note(reply: RunReply) -> None:
        outcome.runs += 1
        outcome.max_wall_us = max(outcome.max_wall_us, reply.wall_us)
        outcome.max_peak_kb = max(outcome.max_peak_kb, reply.peak_kb)
        if reply.outcome:
            outcome.failures += 1
            name = ErrorCode(reply.outcome).name.lower()
            outcome.message = outcome.message or reply.message or name
        digest.update(msgspec.msgpack.encode((reply.emits, reply.features)))
        outcome.outputs.extend(reply.emits)

    for trace in traces:
        problem, late = _replay(installed, code, trace, pool=pool, timeout_s=timeout_s, note=note)
        outcome.traces += not problem
        outcome.failures += late  # what a breaker stopped has failed already
        outcome.message = outcome.message or problem
    outcome.outputs_sha256 = digest.digest()
    return outcome


def _replay(
    installed: InstalledTask,
    code: TaskCode,
    trace: Iterable[Event],
    *,
    pool: VMPool,
    timeout_s: float,
    note: Callable[[RunReply], None],
) -> tuple[str, bool]:
    """Play one trace on a store of its own; ``note`` sees every reply.

    Returns
    -------
    tuple of (problem, late)
        Why it did not come to the trace's end, else ""; whether the time was over.
    """
    manifest = installed.manifest
    # A bound on runs an hour means an hour of the clock on the wall, which a replay has not.
    limits = msgspec.structs.replace(manifest.limits, runs_per_hour=0)
    unbounded = InstalledTask(
        msgspec.structs.replace(manifest, limits=limits),
        installed.folder,
        installed.digest,
        installed.state,
    )
    woken = threading.Event()
    with (
        tempfile.TemporaryDirectory(prefix="shoal-simulation-") as folder,
        DeviceStore(folder) as store,
    ):
        deadline = time.monotonic() + timeout_s
        log = _record(store, trace)
        uplink = Uplink(store, _DEVICE)
        uplink.declare(manifest)
        runner = TaskRunner(
            unbounded,
            code,
            store=store,
            view=LogView(log),
            uplink=uplink,
            features=FeatureStore(store),
            pool=pool,
            attempts=1,
            on_reply=note,
            wake=woken.set,
        )
        problem, late = "", False
        while not runner.idle and not problem:
            now = time.monotonic()
            if late := now > deadline:
                problem = f"the replay did not end within {timeout_s:g} s"
            elif not runner.breaker.allows(now):
                problem = "it failed too often"
            elif not runner.step():
                woken.wait(min(_WAIT_S, max(deadline - now, 0.0)))
                woken.clear()
        runner.close()
        return problem, late


def _record(store: DeviceStore, trace: Iterable[Event]) -> EventLog:
    """Write a trace into a log, with clocks of its own: a replay must not depend on today."""
    log = EventLog(store, rate_per_s=1e9, burst=1_000_000)
    for event in trace:
        log.append(
            event.kind,
            event.page,
            event.content,
            ts_us=event.ts_us,
            visit=event.visit,
            event_id=event.id,
            mono_us=event.mono_us or event.ts_us,
            boot=event.boot,
        )
    return log


class VirtualDevice:
    """Tests every version that the cloud offers to a virtual agent.

    Parameters
    ----------
    agent : Agent
        An open agent with ``virtual = true`` in its settings.
    recordings : sequence of path-like
        Recorded events (:mod:`shoal.tasks.recording`), one device each.
    pool : VMPool
        Where tasks run.
    timeout_s : float
        For each recording.

    Attributes
    ----------
    counts : Counter
        ``tested``, ``reported``; ``no_draft``: the version was no draft any more;
        ``refused``: the cloud refused a report; ``waited``: it could not be
        reached and was asked again.

    Raises
    ------
    InputError
        The agent is not virtual, or there is nothing to replay.
    """

    def __init__(
        self,
        agent: Agent,
        recordings: Sequence[str | Path],
        pool: VMPool,
        *,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        if not agent.config.virtual:
            raise InputError("the agent must be virtual", field="virtual", value=False)
        if not recordings:
            raise InputError("a simulation test needs recordings", field="recordings")
        self.agent = agent
        self._traces = [list(read_recording(path)) for path in recordings]
        self._pool = pool
        self._timeout_s = timeout_s
        self._tested: set[tuple[str, int]] = set()
        self._waiting: list[SimulationReport] = []
        self._not_before = 0.0
        self.counts: Counter[str] = Counter()

    def tick(self) -> bool:
        """Move the agent one step and test what it has just got; returns whether it did.

        Never raises for what a device must live with; see :attr:`counts`.
        """
        busy = self.agent.tick()
        refused = {
            (row.task, row.version): row
            for row in self.agent.packages.rows()
            if row.state == InstallState.REFUSED
        }
        offered = {*self.agent.runners, *refused}
        self._tested &= offered  # what was withdrawn and is offered again is another draft
        for key in sorted(offered - self._tested):
            if key in refused:
                reason = ErrorCode(refused[key].code).name.lower().replace("_", " ")
                text = f"a device refuses the package: {reason}"
                self._note(*key, SimulationOutcome(failures=1, message=text))
            else:
                self._test(*key)
            self._tested.add(key)
            busy = True
        return self._send() or busy

    def _test(self, task: str, version: int) -> None:
        agent = self.agent
        row = agent.packages.row(task, version)
        assert row is not None
        try:
            installed = agent.packages.load(row)
        except ShoalError as error:  # damaged since: the agent will bring it again
            outcome = SimulationOutcome(failures=1, message=error.message)
        else:
            code = task_code(installed, agent.config.engine, agent.engines)
            outcome = simulate_task(
                installed, code, self._traces, self._pool, timeout_s=self._timeout_s
            )
        self.counts["tested"] += 1
        self._note(task, version, outcome)

    def _note(self, task: str, version: int, outcome: SimulationOutcome) -> None:
        agent = self.agent
        self._waiting.append(
            SimulationReport(
                schema=1,
                release=0,  # the cloud knows which draft this version belongs to
                task=task,
                version=version,
                device=agent.device,
                n_traces=outcome.traces,
                n_runs=outcome.runs,
                failures=outcome.failures,
                max_wall_us=outcome.max_wall_us,
                max_peak_kb=outcome.max_peak_kb,
                outputs_sha256=outcome.outputs_sha256,
                ts_us=agent.clock.now_us(),
                message=outcome.message[:300],
            )
        )

    def _send(self) -> bool:
        """Send the oldest report that waits; returns whether one is dealt with."""
        if not self._waiting or time.monotonic() < self._not_before or not self.agent.online:
            return False
        report = self._waiting[0]
        try:
            self.agent.report_simulation(report)
        except NotFoundError:
            self.counts["no_draft"] += 1
        except (UnavailableError, RefusedError) as error:
            if isinstance(error, UnavailableError) or error.code in _TRY_AGAIN:
                self.counts["waited"] += 1
                self._not_before = time.monotonic() + _REPORT_AGAIN_S
                return False
            self.counts["refused"] += 1
            _log.warning("report about %s %d: %s", report.task, report.version, error)
        else:
            self.counts["reported"] += 1
        del self._waiting[0]
        return True
