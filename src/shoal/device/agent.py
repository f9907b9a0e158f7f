"""The agent: one device's events, tasks and conversation with the cloud.

Nothing happens behind the caller's back except the uplink's thread and the
pool's workers: the agent moves when :meth:`Agent.tick` is called, by
:meth:`Agent.run`, by an :class:`~shoal.device.group.AgentGroup`, or by the app
itself from its own loop.
"""

from __future__ import annotations

import logging
import os
import platform
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

import shoal
from shoal.core.errors import NotFoundError, ShoalError, UnavailableError
from shoal.core.files import FolderLock
from shoal.device.clock import ServerClock
from shoal.device.cloudlink import CloudLink, RefusedError
from shoal.device.config import AgentConfig
from shoal.device.container.pool import VMPool, VMPoolConfig
from shoal.device.container.requests import RunReply, TaskCode
from shoal.device.engine import engine_versions
from shoal.device.identity import Identity
from shoal.device.link import Link
from shoal.device.packages import InstalledTask, PackageStore
from shoal.device.runner import TaskRunner
from shoal.device.store import DeviceStore
from shoal.device.stream.log import EventLog
from shoal.device.sync import DeviceFacts, Sync
from shoal.device.trust import TrustError, TrustStore
from shoal.device.tunnel import HttpUplink, Tunnel
from shoal.device.uplink import Uplink
from shoal.wire.codes import ErrorCode
from shoal.wire.events import Event
from shoal.wire.notices import format_notice_address, parse_notice_address
from shoal.wire.profile import DEVICE_HEADER, PROFILE_HEADER, TaskProfile
from shoal.wire.simulation import SimulationReport, sign_simulation

__all__ = ["Agent"]

_log = logging.getLogger(__name__)
_SEND_PROFILE = (0, 0, 0)
_TRIM_EVERY_S = 60.0
_LONGEST_WAIT_S = 300.0


class Agent:
    """One device.

    Parameters
    ----------
    config : AgentConfig
        Its settings.
    pool : VMPool, optional
        Where tasks run; agents of one process may share one. An own pool of one
        worker if absent.
    clock : callable, optional
        The device's wall clock in microseconds.

    Attributes
    ----------
    online : bool
        Set it to false to keep the agent off the network (tests, demonstrations,
        a metered connection): it goes on recording and predicting.

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
        self.online = True
        #: Errors that were survived, by kind.
        self.counts: Counter[str] = Counter()
        #: The last of them, in words; empty once things work again.
        self.last_error = ""
        self._opened = False
        self._wake: Callable[[], None] = lambda: None

    # -- opening and closing -------------------------------------------------------------------

    def open(self) -> Agent:
        """Take the folder, open its database and check what is installed."""
        config = self.config
        self._folder = Path(config.data_dir)
        self._lock = FolderLock(self._folder, "shoal agent")
        try:
            self._open_parts(config)
        except BaseException:
            self._lock.close()
            raise
        self._opened = True
        return self

    def _open_parts(self, config: AgentConfig) -> None:
        self.identity = Identity(self._folder / "identity")
        self.store = DeviceStore(self._folder, max_megabytes=config.disk_megabytes)
        self.clock = ServerClock(self._wall, saved=self.store.meta_get("clock", b""))
        self.log = EventLog(self.store, clock=self._wall)
        self.uplink = Uplink(self.store, self.identity.device, clock=self._wall)
        if self._pool is None:
            self._pool = VMPool(
                VMPoolConfig(
                    backend=config.backend,
                    size=config.workers,
                    sandbox_level=config.sandbox_level,
                )
            )
        self._load_session()
        self.link = CloudLink(
            config.server_url,
            lambda: self._token,
            clock=self.clock,
            timeout_s=config.timeout_s,
        )
        self.engines = engine_versions()
        self.packages = PackageStore(self._folder, self.store)
        self.sync = Sync(
            self.store,
            self.packages,
            self.link,
            self.uplink,
            DeviceFacts(
                engines=self.engines,
                capabilities=self._capabilities(),
                sandbox_level=self._pool.sandbox_level,
                memory_mb=_memory_mb(),
            ),
            clock=self.clock.now_us,
            trial_runs=config.trial_runs,
            trial_crashes=config.trial_crashes,
        )
        self._open_trust()
        self.runners: dict[tuple[str, int], TaskRunner] = {}
        self._generation = -1
        self._on_reply: Callable[[RunReply], None] = lambda _: None
        self._tunnel: Link | None = None
        self._needs_enrolment = not self._token
        self._needs_profile = False
        self._notice: tuple[int, int, int] | None = None
        self._notice_at = 0.0
        self._notice_lock = threading.Lock()
        self._next_check = 0.0
        self._retry_s = 1.0
        self._next_trim = time.monotonic() + _TRIM_EVERY_S

    def _open_trust(self) -> None:
        root = self.store.meta_get("root", b"")
        if root and self.sync.trust is None:
            self.sync.trust = TrustStore(
                self._folder / "trust", root=root, fetch=self.link.metadata, clock=self.clock.now_us
            )

    def _capabilities(self) -> frozenset[str]:
        return frozenset({"virtual"} if self.config.virtual else ())

    def close(self) -> None:
        """Commit what has finished and let go of the folder; open runs begin again later."""
        if not self._opened:
            return
        self._opened = False
        for runner in self.runners.values():
            try:
                runner.close()
            except ShoalError as error:
                self._survive("close", error)
        if self._tunnel is not None:
            self._tunnel.close()
        try:
            self.log.flush()
        except ShoalError as error:
            self._survive("close", error)
        if self._own_pool and self._pool is not None:
            self._pool.close()
            self._pool = None
        self.link.close()
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
        if not self._token:
            return {}
        return {PROFILE_HEADER: self.sync.header(self._cohort), DEVICE_HEADER: self._token}

    def on_notice(self, address: str | tuple[int, int, int]) -> None:
        """Take note that a notice may concern this device; any thread may call it."""
        place = parse_notice_address(address) if isinstance(address, str) else address
        with self._notice_lock:
            self._notice = place
            self._notice_at = time.monotonic()
        self._wake()

    def on_wake(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` whenever there may be something to do (a run ended, a notice came)."""
        self._wake = wake

    # -- one step --------------------------------------------------------------------------------

    def tick(self) -> bool:
        """Do what there is to do now; returns whether anything was done.

        Never raises for what a device must live with (no network, full disk,
        bad packages): see :attr:`counts` and :attr:`last_error`.
        """
        busy = False
        try:
            busy = self._run_tasks()
            if self.online:
                busy = self._talk() or busy
            self._keep_house()
        except (ShoalError, OSError, sqlite3.Error) as error:
            self._survive(type(error).__name__, error)
        return busy

    def run(self, stop: threading.Event, *, pause_s: float = 0.05) -> None:
        """Work until ``stop`` is set."""
        wake = threading.Event()
        self.on_wake(wake.set)
        while not stop.is_set():
            if not self.tick():
                wake.wait(pause_s)
                wake.clear()

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
                if self.settled and self._tunnel is not None and self.online:
                    self._tunnel.flush(min(0.2, max(deadline - time.monotonic(), 0.0)))
                else:
                    time.sleep(0.002)
        return False

    @property
    def settled(self) -> bool:
        """Whether the tasks have dealt with every event in the log."""
        return all(runner.idle for runner in self.runners.values())

    def _survive(self, kind: str, error: Exception) -> None:
        self.counts[kind] += 1
        text = str(error) or type(error).__name__
        if text != self.last_error:
            _log.warning("%s: %s", self.config.data_dir, text)
        self.last_error = text

    def _keep_house(self) -> None:
        now = time.monotonic()
        if now >= self._next_trim:
            self._next_trim = now + _TRIM_EVERY_S
            self.log.trim(self.config.log_days, self.config.log_megabytes)

    # -- tasks -----------------------------------------------------------------------------------

    def _run_tasks(self) -> bool:
        if self._generation != self.sync.generation:
            self._staff()
        busy = False
        for runner in list(self.runners.values()):
            busy = runner.step() or busy
            if runner.failed_trial is not None:
                task, version = runner.key
                message = runner.failed_trial
                del self.runners[runner.key]
                self.sync.revert(task, version, message)
                busy = True
        return busy

    def _staff(self) -> None:
        """Give every version in force a runner, and end those of the others."""
        generation = self.sync.generation
        installed = {task.key: task for task in self.sync.installed()}
        if self.sync.generation != generation:  # something damaged was dropped meanwhile
            generation = self.sync.generation
            installed = {task.key: task for task in self.sync.installed()}
        for key in [key for key in self.runners if key not in installed]:
            # Its place was saved when the other version was put in force: what it has
            # finished since must not move the other's place.
            del self.runners[key]
        for key, task in installed.items():
            if key not in self.runners:
                self.runners[key] = self._new_runner(task)
        self._generation = generation

    def _new_runner(self, task: InstalledTask) -> TaskRunner:
        assert self._pool is not None
        self.uplink.declare(task.manifest)
        code = task_code(task, self.packages, self.engines)
        self._pool.prewarm(code)
        return TaskRunner(
            task,
            code,
            store=self.store,
            log=self.log,
            uplink=self.uplink,
            pool=self._pool,
            on_runs=self.sync.record_runs,
            on_reply=self._replied,
            wake=self._woken,
        )

    def _replied(self, reply: RunReply) -> None:
        self._on_reply(reply)

    def _woken(self) -> None:
        self._wake()

    # -- the cloud -------------------------------------------------------------------------------

    def _talk(self) -> bool:
        now = time.monotonic()
        if now < self._next_check and not self._notice_is_due(now):
            return False
        try:
            if self._needs_enrolment:
                self._enrol()
            if self._needs_profile:
                self._send_profile()
            address = self._take_notice(now)
            if address is None:
                text = self.link.check(self.sync.header(self._cohort))
                address = None if text is None else parse_notice_address(text)
            self._follow(address)
        except RefusedError as error:
            self._refused(error)
            return True
        except TrustError as error:
            self._survive(f"trust_{int(error.code)}", error)
            self._wait_longer()
            return True
        except (UnavailableError, NotFoundError) as error:
            self._survive("unavailable", error)
            self._wait_longer()
            return True
        if not self.sync.last_error:
            self.last_error = ""
        return True

    def _follow(self, address: tuple[int, int, int] | None) -> None:
        """Pull and follow a notice; ``None``: nothing to do."""
        if address == _SEND_PROFILE:
            self._send_profile()
            address = self._take_notice(float("inf"))
            if address == _SEND_PROFILE:
                address = None
        if address is not None and not self.clock.trusted:
            # One answer could come from a cache that was filled long ago; ask again.
            self.last_error = "the clock is off; installs wait until the server's time is sure"
            self._next_check = time.monotonic() + 0.2
            return
        if address is not None:
            data = self.link.notice(format_notice_address(*address))
            if not self.sync.follow(data, cohort=self._cohort):
                self.last_error = self.sync.last_error
                self._wait_longer()
                return
        self._start_tunnel()
        self._retry_s = 1.0
        every = self.config.check_every_s
        self._next_check = time.monotonic() + every * random.uniform(0.9, 1.0)  # noqa: S311 - jitter

    def _refused(self, error: RefusedError) -> None:
        self._survive(f"refused_{error.code}", error)
        if error.code == ErrorCode.UNAUTHENTICATED:
            self._needs_enrolment = True
        elif error.code in (ErrorCode.NOT_ENTITLED, ErrorCode.SCHEMA_MISMATCH):
            self._needs_profile = True
        self._wait_longer(error.retry_after_s)

    def _wait_longer(self, at_least: float = 0.0) -> None:
        wait = max(min(self._retry_s, self.config.check_every_s, _LONGEST_WAIT_S), at_least)
        self._next_check = time.monotonic() + wait * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        self._retry_s = min(self._retry_s * 2, _LONGEST_WAIT_S)

    def _notice_is_due(self, now: float) -> bool:
        return self._notice is not None and now >= self._notice_at

    def _take_notice(self, now: float) -> tuple[int, int, int] | None:
        with self._notice_lock:
            if self._notice is None or now < self._notice_at:
                return None
            address, self._notice = self._notice, None
        # A tunnel's NOTICE names the epoch only: which notice is ours, the check tells.
        return address if address[1] == self._cohort and address != _SEND_PROFILE else None

    def profile(self) -> TaskProfile:
        """Return the full profile as it is now."""
        assert self._pool is not None
        return TaskProfile(
            device=self.identity.device,
            agent=f"shoal/{shoal.__version__}",
            python=platform.python_version(),
            platform=f"{platform.system().lower()}-{platform.machine()}",
            engines=self.engines,
            capabilities=sorted(self._capabilities()),
            attributes=self.config.attributes,
            held=self.sync.held(),
            disk_free_mb=self.packages.free_bytes() >> 20,
            sandbox_level=self._pool.sandbox_level,
        )

    def _enrol(self) -> None:
        # It must rise from one enrolment to the next, whatever the clocks do.
        ts_us = max(self.clock.now_us(), int(self.store.meta_get("enrol.ts_us", 0)) + 1)
        token = self.config.enrol_token if not self._token else ""
        request = self.identity.enrol_request(token, self.profile(), ts_us)
        reply = self.link.enrol(request)
        with self.store.transaction() as cursor:
            rows = [("enrol.ts_us", min(ts_us, reply.server_time_us)), ("root", reply.root)]
            if self.store.meta_get("root"):
                rows.pop()  # the pinned root changes by TUF's own chain only
            cursor.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)
        self._save_session(reply.token, reply.cohort)
        self._open_trust()
        self._needs_enrolment = False
        self.store.meta_set("clock", self.clock.save())
        if self.clock.is_skewed():
            self.counts["clock_skew"] += 1
            with self.store.transaction() as cursor:
                self.uplink.count_dropped(cursor, "clock_skew")

    def _send_profile(self) -> None:
        reply = self.link.profile(self.profile())
        self._save_session(reply.token, reply.cohort)
        self._needs_profile = False
        if reply.notice:
            self.on_notice(reply.notice)

    def _load_session(self) -> None:
        self._token = str(self.store.meta_get("token", ""))
        self._cohort = int(self.store.meta_get("cohort", 0))

    def _save_session(self, token: str, cohort: int) -> None:
        with self.store.transaction() as cursor:
            cursor.executemany(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)", [("token", token), ("cohort", cohort)]
            )
        self._token, self._cohort = token, cohort

    def _start_tunnel(self) -> None:
        if self._tunnel is not None or self.config.tunnel == "off":
            return
        kind = Tunnel if self.config.tunnel == "websocket" else HttpUplink
        self._tunnel = kind(
            self.config.server_url,
            lambda: self._token,
            self.identity.device,
            self.uplink,
            lambda *_: self._check_soon(),
            f"shoal/{shoal.__version__}",
            on_refused=self._tunnel_refused,
        )
        self._tunnel.start()

    def _check_soon(self) -> None:
        """Check at the next tick: the tunnel said that something has changed."""
        self._next_check = 0.0
        self._wake()

    def _tunnel_refused(self, code: int, _: str) -> None:
        self.counts[f"tunnel_{code}"] += 1
        if code == ErrorCode.UNAUTHENTICATED:
            self._needs_enrolment = True
            self._check_soon()

    # -- what it is doing ------------------------------------------------------------------------

    def on_reply(self, listener: Callable[[RunReply], None]) -> None:
        """Let ``listener`` see every reply of a run."""
        self._on_reply = listener

    def report_simulation(self, report: SimulationReport) -> None:
        """Sign a simulation report and send it."""
        signed = sign_simulation(report, self.identity.key)
        self.link.simulation(msgspec.msgpack.encode(signed))

    def status(self) -> dict[str, Any]:
        """Return what a person would ask: identity, packages, backlog, what was dropped."""
        return {
            "device": self.identity.device.hex(),
            "enrolled": bool(self._token),
            "online": self.online,
            "connected": self._tunnel is not None and self._tunnel.connected,
            "cohort": self._cohort,
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
            "log": dict(self.log.counts),
            "sync": dict(self.sync.counts),
            "errors": dict(self.counts),
            "clock_skew_s": self.clock.skew_us() / 1e6,
            "last_error": self.last_error,
        }


def task_code(task: InstalledTask, packages: PackageStore, engines: dict[str, str]) -> TaskCode:
    """Return an installed task in the form that the pool runs."""
    manifest = task.manifest
    wanted = [name for name in manifest.requires.engines if name in engines]
    return TaskCode(
        task=manifest.task,
        version=manifest.version,
        folder=task.folder,
        entry=manifest.entry.get("device", "main:run"),
        digest=task.digest,
        models=packages.model_paths(manifest, task.folder),
        engine=wanted[0] if wanted else "onnx",
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


def _memory_mb() -> int:
    return (os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) >> 20
