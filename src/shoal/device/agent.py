"""The agent: one device's events, tasks and conversation with the cloud.

Nothing happens behind the caller's back except the uplink's thread and the
pool's workers: the agent moves when :meth:`Agent.tick` is called, by
:meth:`Agent.run`, by an :class:`~shoal.device.group.AgentGroup`, or by the app
itself from its own loop.
"""

from __future__ import annotations

import functools
import logging
import platform
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from shoal.core.errors import ShoalError
from shoal.core.files import FolderLock
from shoal.device.clock import ServerClock
from shoal.device.compatibility import DeviceFacts
from shoal.device.config import AgentConfig
from shoal.device.container.pool import VMPool, VMPoolConfig
from shoal.device.container.requests import RunReply
from shoal.device.conversation import AGENT_NAME, Conversation
from shoal.device.engine import engine_versions
from shoal.device.identity import Identity
from shoal.device.jobs import LogView
from shoal.device.packages import InstalledTask, PackageStore
from shoal.device.runner import TaskRunner
from shoal.device.store import DeviceStore
from shoal.device.stream.features import FeatureStore
from shoal.device.stream.log import EventLog
from shoal.device.sync import Sync
from shoal.device.taskcode import task_code
from shoal.device.uplink import Uplink
from shoal.wire.events import Event
from shoal.wire.notices import parse_notice_address
from shoal.wire.profile import TaskProfile
from shoal.wire.simulation import SimulationReport, sign_simulation

__all__ = ["Agent"]

_log = logging.getLogger(__name__)
_TRIM_EVERY_S: Final = 60.0


class Agent:
    """One device.

    Parameters
    ----------
    config : AgentConfig
        Its settings.
    pool : VMPool, optional
        Where tasks run; agents of one process may share one. An own pool as the
        settings say if absent.
    clock : callable, optional
        The device's wall clock in microseconds.

    Attributes
    ----------
    counts : Counter
        Errors that were survived, by kind.
    last_error : str
        The last of them, in words; empty once all is well again.

    Raises
    ------
    ConflictError
        Another agent uses the folder.
    IntegrityError
        The identity file is damaged.

    Examples
    --------
    >>> with Agent(config) as agent:  # doctest: +SKIP
    ...     agent.record(EventKind.CLICK, "detail", {"item": 7})
    ...     agent.tick()
    """

    def __init__(
        self,
        config: AgentConfig,
        *,
        pool: VMPool | None = None,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self.config = config
        skew = int(config.clock_skew_s * 1e6)
        wall = clock or (lambda: time.time_ns() // 1000)
        self._wall = (lambda: wall() + skew) if skew else wall
        self._pool = pool
        self._own_pool = pool is None
        self.counts: Counter[str] = Counter()
        self.last_error = ""
        self._online = True
        self._opened = False
        self._wake: Callable[[], None] = lambda: None
        self._on_reply: Callable[[RunReply], None] = lambda _: None

    # -- opening and closing -------------------------------------------------------------------

    def open(self) -> Agent:
        """Take the folder, open its database and check what is installed."""
        self._lock = FolderLock(Path(self.config.data_dir), "shoal agent")
        try:
            self._open_parts(self.config)
        except BaseException:
            self._lock.close()
            raise
        self._opened = True
        return self

    def _open_parts(self, config: AgentConfig) -> None:
        folder = Path(config.data_dir)
        self.identity = Identity(folder / "identity")
        self.store = DeviceStore(folder, max_megabytes=config.disk_megabytes)
        self.clock = ServerClock(self._wall, saved=self.store.meta_get("clock", b""))
        self.log = EventLog(self.store, clock=self._wall)
        self._view = LogView(self.log)
        self.features = FeatureStore(self.store)
        self.uplink = Uplink(self.store, self.identity.device, clock=self._wall)
        if self._pool is None:
            self._pool = VMPool(
                VMPoolConfig(
                    backend=config.backend,
                    size=config.workers,
                    sandbox_level=config.sandbox_level,
                )
            )
        self.engines = _engines()
        self.packages = PackageStore(folder, self.store)
        self._conversation = Conversation(
            config,
            identity=self.identity,
            store=self.store,
            clock=self.clock,
            uplink=self.uplink,
            profile=self.profile,
            survive=self._survive,
            wake=self._woken,
        )
        self.sync = Sync(
            self.store,
            self.packages,
            self._conversation.link,
            self.uplink,
            DeviceFacts.of_machine(
                self.engines, self._capabilities(), self._pool.sandbox_level, self._pool.backend
            ),
            clock=self.clock.now_us,
            trial_runs=config.trial_runs,
            trial_crashes=config.trial_crashes,
            reserve_bytes=int(config.reserve_megabytes * 1e6),
            chunk=config.download_chunk,
        )
        self._conversation.attach(self.sync)
        self.runners: dict[tuple[str, int], TaskRunner] = {}
        self._generation = -1
        self._damaged = self.store.moved_aside
        self._next_trim = time.monotonic() + _TRIM_EVERY_S

    def _capabilities(self) -> frozenset[str]:
        return frozenset({"virtual"} if self.config.virtual else ())

    def close(self) -> None:
        """Commit what has finished and let go of the folder; open runs begin again later."""
        if not self._opened:
            return
        self._opened = False
        for runner in self.runners.values():
            self._try("close", runner.close)
        self._conversation.close()
        self._try("close", self.log.flush)
        if self._own_pool and self._pool is not None:
            self._pool.close()
            self._pool = None
        self.store.close()
        self._lock.close()

    def __enter__(self) -> Agent:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the app's side --------------------------------------------------------------------------

    @property
    def device(self) -> bytes:
        """The device id, 16 bytes."""
        return self.identity.device

    @property
    def online(self) -> bool:
        """Whether the agent may use the network.

        Set it to false to keep it off (a metered connection, a test): it goes on
        recording and predicting, and sends what waits when it is true again.
        """
        return self._online

    @online.setter
    def online(self, value: bool) -> None:
        if value == self._online:
            return
        self._online = value
        if self._opened:
            if value:
                self._conversation.come_back()
            else:
                self._conversation.leave()

    def record(
        self,
        kind: int,
        page: str,
        content: dict[str, Any] | None = None,
        *,
        ts_us: int | None = None,
        visit: bytes | None = None,
        event_id: bytes | None = None,
    ) -> Event:
        """Record an event; see :meth:`shoal.device.stream.log.EventLog.append`."""
        return self.log.append(kind, page, content, ts_us=ts_us, visit=visit, event_id=event_id)

    def headers(self) -> dict[str, str]:
        """Return the two headers that an ordinary request of the app carries."""
        return self._conversation.headers()

    def on_notice(self, address: str | tuple[int, int, int]) -> None:
        """Take note that a notice may concern this device; any thread may call it."""
        place = parse_notice_address(address) if isinstance(address, str) else address
        self._conversation.heard(place)

    def on_wake(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` whenever there may be something to do (a run ended, a notice came)."""
        self._wake = wake

    def _replied(self, reply: RunReply) -> None:
        self._on_reply(reply)

    def _woken(self) -> None:
        self._wake()

    # -- one step --------------------------------------------------------------------------------

    def tick(self, *, network: bool = True) -> bool:
        """Do what there is to do now; returns whether anything was done.

        Never raises for what a device must live with (no network, full disk,
        bad packages): see :attr:`counts` and :attr:`last_error`.

        Parameters
        ----------
        network : bool
            Whether to talk to the cloud too, which may wait for an answer; a
            group calls :meth:`talk` from another thread instead.
        """
        busy = self._run_tasks()
        if network:
            busy = self.talk() or busy
        if time.monotonic() >= self._next_trim:
            self._next_trim = time.monotonic() + _TRIM_EVERY_S
            self._try("trim", self._trim)
        return busy

    def talk(self) -> bool:
        """Make one request to the cloud if one is due; returns whether anything was done."""
        return self._online and self._opened and self._conversation.step()

    @property
    def talk_is_due(self) -> bool:
        """Whether :meth:`talk` has something to do."""
        return self._online and self._conversation.is_due(time.monotonic())

    def run(self, stop: threading.Event, *, pause_s: float = 0.05) -> None:
        """Work until ``stop`` is set; a server that does not answer holds up no prediction."""
        from shoal.device.group import AgentGroup  # noqa: PLC0415 - it is made of agents

        AgentGroup([self]).run(stop, pause_s=pause_s)

    def drain(self, timeout: float) -> bool:
        """Work until every event is processed and everything is acknowledged.

        Returns
        -------
        bool
            Whether that was reached within ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            busy = self.tick()
            if self.settled and not self.uplink.has_work:
                return True
            if not busy:
                if self.settled and self._online:
                    self.flush(min(0.2, max(deadline - time.monotonic(), 0.0)))
                time.sleep(0.002)
        return False

    def flush(self, timeout: float) -> bool:
        """Send what waits and wait for its acknowledgement; says whether it came."""
        return self._conversation.flush(timeout)

    @property
    def settled(self) -> bool:
        """Whether the tasks have dealt with every event in the log."""
        return self._generation == self.sync.generation and all(
            runner.idle for runner in self.runners.values()
        )

    def _trim(self) -> None:
        if self.log.trim(self.config.log_days, self.config.log_megabytes):
            self._view.forget()

    def _try(self, kind: str, work: Callable[[], Any]) -> Any:
        """Call ``work``; what a device must live with is noted and survived."""
        try:
            return work()
        except (ShoalError, OSError, sqlite3.Error) as error:
            self._survive(f"{kind}_{type(error).__name__}", error)
        return None

    def _survive(self, kind: str, error: Exception) -> None:
        """Take note of an error; an empty ``kind`` says that all is well again."""
        text = str(error) or (type(error).__name__ if kind else "")
        if kind:
            self.counts[kind] += 1
            if text != self.last_error:
                _log.warning("%s: %s", self.config.data_dir, text)
        self.last_error = text

    # -- tasks -----------------------------------------------------------------------------------

    def _run_tasks(self) -> bool:
        if self.store.moved_aside != self._damaged:
            # The database was damaged and replaced: what memory says is about the old one.
            self._damaged = self.store.moved_aside
            self._view.forget()
            self.runners.clear()
            self._generation = -1
        if self._generation != self.sync.generation:
            self._try("install", self._staff)
        busy = False
        for runner in list(self.runners.values()):
            # One task that cannot be made durable must not hold up the others.
            busy = bool(self._try("run", runner.step)) or busy
            if runner.failed_trial is not None:
                self._try("revert", functools.partial(self._revert, runner))
                busy = True
        return busy

    def _revert(self, runner: TaskRunner) -> None:
        self.sync.revert(*runner.key, runner.failed_trial or "")
        del self.runners[runner.key]

    def _staff(self) -> None:
        """Give every version in force a runner, and end those of the others."""
        generation = -1
        while generation != self.sync.generation:  # it rises when something damaged is dropped
            generation = self.sync.generation
            installed = {task.key: task for task in self.sync.installed()}
        for key in [key for key in self.runners if key not in installed]:
            # What it has finished since its place was handed on is done again by its
            # successor, which has begun there.
            del self.runners[key]
            self.uplink.retract(*key)
        for key, task in installed.items():
            if key not in self.runners:
                self.runners[key] = self._new_runner(task)
        self._generation = generation

    def _new_runner(self, task: InstalledTask) -> TaskRunner:
        assert self._pool is not None
        self.uplink.declare(task.manifest)
        code = task_code(task, self.config.engine, self.engines)
        self._pool.prewarm(code)
        return TaskRunner(
            task,
            code,
            store=self.store,
            view=self._view,
            uplink=self.uplink,
            features=self.features,
            pool=self._pool,
            attempts=self.config.attempts,
            on_runs=self.sync.versions.record_runs,
            on_reply=self._replied,
            wake=self._woken,
            clock=self._wall,
        )

    # -- what it is and does ---------------------------------------------------------------------

    def profile(self) -> TaskProfile:
        """Return the full profile as it is now."""
        assert self._pool is not None
        return TaskProfile(
            device=self.identity.device,
            agent=AGENT_NAME,
            python=platform.python_version(),
            platform=f"{platform.system().lower()}-{platform.machine()}",
            engines=self.engines,
            capabilities=sorted(self._capabilities()),
            attributes=self.config.attributes,
            held=self.sync.held(),
            disk_free_mb=self.packages.free_bytes() >> 20,
            sandbox_level=self._pool.sandbox_level,
        )

    def on_reply(self, listener: Callable[[RunReply], None]) -> None:
        """Let ``listener`` see every reply of a run."""
        self._on_reply = listener

    def report_simulation(self, report: SimulationReport) -> None:
        """Sign a simulation report with the device's key and send it."""
        signed = sign_simulation(report, self.identity.key)
        self._conversation.link.simulation(msgspec.msgpack.encode(signed))

    def status(self) -> dict[str, Any]:
        """Return what a person would ask: identity, packages, backlog, what was dropped."""
        talk = self._conversation
        return {
            "device": self.identity.name,
            "enrolled": talk.enrolled,
            "online": self._online,
            "connected": talk.connected,
            "cohort": talk.cohort,
            "epoch": self.sync.epoch,
            "packages": [
                {"task": r.task, "version": r.version, "state": r.state, "code": r.code}
                for r in self.packages.rows()
            ],
            "active": self.packages.active(),
            "events": self.log.last_seq,
            "backlog": {runner.key[0]: runner.backlog for runner in self.runners.values()},
            "runs": {runner.key[0]: dict(runner.counts) for runner in self.runners.values()},
            "unacknowledged": self.uplink.unacknowledged,
            "dropped": self.uplink.dropped(),
            "log": dict(self.log.counts),
            "sync": dict(self.sync.counts),
            "errors": dict(self.counts),
            "damaged_databases": self.store.moved_aside,
            "clock_skew_s": self.clock.skew_us() / 1e6,
            "last_error": self.last_error,
        }


@functools.cache
def _engines() -> dict[str, str]:
    """Return the engines of this process; looking them up costs more than opening an agent."""
    return engine_versions()
