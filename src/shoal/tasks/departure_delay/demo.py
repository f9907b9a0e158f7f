"""The main job, end to end: a signed task released to a fleet, and its results back.

One cloud in this process, real agents in a few others, one an aircraft. The
year 2013 is replayed week by week; the task is released in gray steps while
weeks pass, predicts on the devices, and sends its results up. Then a version
that fails in the field is released on purpose and the guardrail takes it back.
At the end the predictions that came back are compared with an offline
computation over the same tables.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from shoal.cloud import reports
from shoal.cloud.config import CloudConfig
from shoal.cloud.http import CloudServer
from shoal.cloud.middleware import ASGIApp
from shoal.cloud.policy import Guardrail, ReleasePolicy
from shoal.cloud.service import Cloud
from shoal.cloud.store import device
from shoal.core.errors import ShoalError
from shoal.core.seeds import philox
from shoal.data.flights import FlightTable, busiest_aircraft, load_flights
from shoal.device import Agent, AgentConfig, VMPool, VMPoolConfig
from shoal.tasks.departure_delay.features import (
    offline_features,
)
from shoal.tasks.departure_delay.fleet import AircraftSpec, FleetSpec
from shoal.tasks.departure_delay.folder import (
    rainy_trace,
    write_broken_folder,
    write_task_folder,
)
from shoal.tasks.departure_delay.measures import DemoReport, Measures
from shoal.tasks.departure_delay.training import train
from shoal.tasks.simulate import VirtualDevice

__all__ = ["Demo", "DemoConfig", "DemoReport"]

_TASK = "departure_delay"
_COHORT = "modern-aircraft"
#: Aircraft with an older app do not get the task.
_PREDICATE = "device.kind == 'aircraft' && app.major >= 2"
_WEEK_US = 7 * 86_400_000_000
_NEW_YEAR_US = 1_356_998_400_000_000  # 2013-01-01 00:00 UTC
_STATES_OVER = ("rolled_back", "aborted")


class DemoConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How the demo is played.

    Attributes
    ----------
    folder : str
        Where cloud and agents keep their data; should be empty.
    aircraft, processes : int
        Size of the fleet, and how many processes drive it.
    first_week, last_week : int
        Weeks of 2013 (from 0) that are replayed; models are trained on all weeks
        before ``train_before``.
    train_before : int
        First week that the models must not have seen.
    release_week : int
        The release begins when this week has been replayed.
    seed : int
        Of training and of who has which app, OS and clock.
    port : int
        Of the console; 0 takes any free one.
    timeout_s : float
        The demo fails when a step takes longer.
    """

    folder: str
    aircraft: int = 60
    processes: int = 3
    first_week: int = 0
    last_week: int = 52
    train_before: int = 26
    release_week: int = 26
    seed: int = 0
    port: int = 0
    timeout_s: float = 150.0


class _FleetProcess:
    """One process of the fleet, spoken to in lines of JSON."""

    def __init__(self, spec: FleetSpec, log: Path) -> None:
        self._log = log.open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "shoal.tasks.departure_delay.fleet"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self._log_path = log
        self._say(msgspec.to_builtins(spec))

    def _say(self, order: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the next answer tells why

    def order(self, **order: Any) -> None:
        self._say(order)

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            tail = self._log_path.read_text(errors="replace").strip().splitlines()[-1:]
            raise ShoalError(
                "a process of the fleet ended" + (f": {tail[0]}" if tail else ""),
                hint=f"its log is {self._log_path}",
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self.order(stop=True)
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._log.close()


def fleet_specs(table: FlightTable, config: DemoConfig) -> list[AircraftSpec]:
    """Choose the aircraft and give each an app, an OS, a class and a clock.

    About one in twelve has an app too old for the task, one in fifteen a clock
    that is off by minutes, one by five years, and three come online late.
    """
    numbers = philox(config.seed, "demo", "fleet")
    specs = []
    tails = busiest_aircraft(table, config.aircraft, per_carrier=max(config.aircraft // 4, 1))
    for place, tailnum in enumerate(tails):
        old = place % 12 == 11
        skew = float(numbers.integers(-300, 300)) if place % 15 == 7 else 0.0
        late = place % 20 == 13
        specs.append(
            AircraftSpec(
                tailnum=tailnum,
                attributes={
                    "app": {
                        "version": "1.9" if old else ("2.0", "2.1", "3.0")[place % 3],
                        "major": 1 if old else (2, 2, 3)[place % 3],
                    },
                    "device": {
                        "kind": "aircraft",
                        "name": tailnum,
                        "os": ("linux", "qnx", "vxworks")[int(numbers.integers(3))],
                        "class": ("small", "medium", "large")[int(numbers.integers(3))],
                    },
                },
                clock_skew_s=5 * 365.25 * 86_400 if place == 21 else skew,
                online_from_us=_week_start(config.release_week + 3) if late else 0,
            )
        )
    return specs


def _week_start(week: int) -> int:
    return _NEW_YEAR_US + week * _WEEK_US


class Demo:
    """Plays the main job; used by ``shoal demo`` and by the tests.

    Parameters
    ----------
    config : DemoConfig
        How.
    say : callable
        Told in words what happens.
    mount : callable, optional
        Makes the console for the cloud.
    """

    def __init__(
        self,
        config: DemoConfig,
        *,
        say: Callable[[str], None] = lambda _: None,
        mount: Callable[[Cloud], ASGIApp] | None = None,
    ) -> None:
        self.config = config
        self._say = say
        self._mount = mount
        self._folder = Path(config.folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._fleet: list[_FleetProcess] = []
        self._stop = threading.Event()
        self._week = config.first_week
        self.report = DemoReport(aircraft=config.aircraft)
        self.cloud: Cloud | None = None
        self.url = ""

    # -- the story -----------------------------------------------------------------------------

    def run(self) -> DemoReport:
        """Play everything and return the report; the cloud stays open until :meth:`close`."""
        start = time.monotonic()
        table = load_flights()
        features = offline_features(table)
        self._say(f"training two small networks on the weeks before {self.config.train_before}")
        models = train(features, before_week=self.config.train_before, seed=self.config.seed)
        specs = fleet_specs(table, self.config)
        trace = rainy_trace(table, self._folder / "rain.jsonl")
        self._open_cloud()
        self._start_fleet(specs, trace)
        self._feed_until(self.config.release_week)
        good = self._release(write_task_folder(self._folder / "v1", models), "stream features")
        self._follow(good, until=("full",))
        self._say(f"version 1 is in full release after {self._elapsed(good):.1f} s")
        self._let_settle()
        self._measures.coverage(good)
        broken = self._release(
            write_broken_folder(self._folder / "v2", models), "logarithm of the rain"
        )
        self._follow(broken, until=_STATES_OVER)
        self._measures.rollback(broken)
        self._say("version 2 was rolled back by its guardrail")
        self._feed_until(self.config.last_week)
        self._drain()
        self._measures.runs()
        self._measures.predictions(features, models, specs)
        self._measures.check(good, broken, specs)
        self.report.seconds = time.monotonic() - start
        return self.report

    def close(self) -> None:
        """End the fleet and the cloud."""
        self._stop.set()
        for process in self._fleet:
            process.close()
        self._fleet = []
        if getattr(self, "_tester", None) is not None:
            self._tester.join(timeout=30)
        if self.cloud is not None:
            self._server.close()
            self.cloud.close()
            self.cloud = None

    # -- setting up ------------------------------------------------------------------------------

    def _open_cloud(self) -> None:
        self.cloud = Cloud.open(CloudConfig(data_dir=self._folder / "cloud", tick_s=0.2))
        mounts = {"/": self._mount(self.cloud)} if self._mount else {}
        self._server = CloudServer(self.cloud, port=self.config.port, mounts=mounts)
        self.url = self._server.url
        self.cloud.define_cohort(_COHORT, _PREDICATE)
        self._measures = Measures(
            self.cloud,
            self.report,
            train_before=self.config.train_before,
            until_us=_week_start(self.config.last_week),
        )
        self._say(f"the cloud is at {self.url}")

    def _start_fleet(self, specs: list[AircraftSpec], trace: Path) -> None:
        cloud = self._cloud()
        token = cloud.enrolment.new_token(uses=len(specs) + 1, note="demo")
        for number in range(self.config.processes):
            spec = FleetSpec(
                server_url=self.url,
                folder=str(self._folder / "fleet"),
                enrol_token=token,
                aircraft=specs[number :: self.config.processes],
            )
            log = self._folder / f"fleet-{number}.log"
            self._fleet.append(_FleetProcess(spec, log))
        self._tester = threading.Thread(
            target=self._test_drafts, args=(token, trace), name="virtual-device", daemon=True
        )
        self._tester.start()
        ready = sum(process.answer()["ready"] for process in self._fleet)
        self._say(f"{ready} agents are running in {len(self._fleet)} processes")

    def _test_drafts(self, token: str, trace: Path) -> None:
        """Run a virtual device that replays the trace through every draft."""
        config = AgentConfig(
            data_dir=self._folder / "virtual",
            server_url=self.url,
            enrol_token=token,
            virtual=True,
            check_every_s=0.5,
            tunnel="off",
        )
        with VMPool(VMPoolConfig(size=1)) as pool, Agent(config, pool=pool) as agent:
            tester = VirtualDevice(agent, [trace], pool)
            while not self._stop.is_set():
                if not tester.tick():
                    self._stop.wait(0.1)

    def _cloud(self) -> Cloud:
        assert self.cloud is not None
        return self.cloud

    # -- weeks -----------------------------------------------------------------------------------

    def _feed_until(self, week: int) -> None:
        if week <= self._week:
            return
        for process in self._fleet:
            process.order(feed_until_us=_week_start(week))
        for process in self._fleet:
            self.report.events += int(process.answer()["fed"])
        self._week = week

    def _pass_time(self) -> None:
        """Let a week pass if there are weeks left for what is still to come."""
        reserve = 4
        if self._week < self.config.last_week - reserve:
            self._feed_until(self._week + 1)

    def _let_settle(self) -> None:
        """Wait until the devices that can be reached hold the version in force."""
        cloud, deadline = self._cloud(), time.monotonic() + 30
        while time.monotonic() < deadline:
            found = reports.coverage(cloud.store, self._latest())
            if found.holding >= found.eligible:
                return
            self._pass_time()
            time.sleep(0.5)

    def _drain(self) -> None:
        self._say("the year is over; waiting until everything is predicted and acknowledged")
        for process in self._fleet:
            process.order(drain=self.config.timeout_s)
        drained = True
        for process in self._fleet:
            answer = process.answer()
            drained = drained and bool(answer["drained"])
            self.report.raw_bytes += int(answer["raw_bytes"])
        self.report.checks["everything acknowledged"] = drained

    # -- releases --------------------------------------------------------------------------------

    def _release(self, folder: Path, label: str) -> int:
        cloud = self._cloud()
        version = cloud.registry.publish(folder, label=label)
        with cloud.store.read() as connection:
            ids = [
                row.id.hex()
                for row in connection.execute(
                    sa.select(device.c.id, device.c.attributes).order_by(device.c.id)
                )
                if row.attributes.get("app", {}).get("major", 0) >= 2
            ]
        policy = ReleasePolicy(
            steps=(5000, 8000, 10_000),
            beta_devices=tuple(ids[:2]),
            min_dwell_s=1.0,
            max_dwell_s=self.config.timeout_s,
            alpha=0.05,
            beta=0.05,
            guardrails=(Guardrail(name="failure", limit=0.25, kind="failure"),),
            runs_per_outcome=3,
            outcome_after_s=8.0,
            on_beta_failure="hold",
            rollback_target=1.0,
            rollback_timeout_s=60.0,
            watch_full_s=3600.0,
            simulation="required",
        )
        release = cloud.releases.create(_TASK, version.version, _COHORT, policy, actor="demo")
        for warning in cloud.releases.feasibility(release):
            self._say(f"planner: {warning}")
        self._say(f"version {version.version} ({label}) is a draft; its simulation test runs")
        self._wait_for(release, ("simulated",))
        cloud.releases.start(release, actor="demo")
        return release

    def _latest(self) -> int:
        return int(max(entry.release.id for entry in self._cloud().releases.list()))

    def _state(self, release: int) -> str:
        return str(self._cloud().releases.status(release)["state"])

    def _wait_for(self, release: int, states: tuple[str, ...]) -> None:
        deadline = time.monotonic() + self.config.timeout_s
        while self._state(release) not in states:
            if time.monotonic() > deadline:
                raise ShoalError(f"release {release} is still {self._state(release)}")
            time.sleep(0.1)

    def _follow(self, release: int, *, until: tuple[str, ...]) -> None:
        """Let weeks pass until a release has reached one of some states."""
        deadline = time.monotonic() + self.config.timeout_s
        said = ""
        while True:
            status = self._cloud().releases.status(release)
            line = f"{status['state']} {status['threshold'] / 100:.0f} %"
            if line != said:
                held = reports.coverage(self._cloud().store, release).holding
                self._say(
                    f"week {self._week}: version {status['version']} {line}, {held} devices hold it"
                )
                said = line
            if status["state"] in until:
                return
            if status["state"] == "beta" and "full" not in until:
                self._nudge(release)
            if status["state"] in (*_STATES_OVER, "full") or time.monotonic() > deadline:
                raise ShoalError(
                    f"version {status['version']} ended as {status['state']}, not {until[0]}",
                    hint=f"the logs are in {self._folder}",
                )
            self._pass_time()
            time.sleep(0.35)

    def _nudge(self, release: int) -> None:
        """Overrule a beta that holds the broken version back, to show the guardrail."""
        history = reports.release_history(self._cloud().store, release)
        if time.time() * 1e6 - history[-1]["at_us"] > 2e6:
            self._say("the beta devices fail; an operator overrules them on purpose")
            self._cloud().releases.advance(
                release, actor="demo", reason="the demo lets the broken version pass its beta"
            )

    def _elapsed(self, release: int) -> float:
        return reports.coverage(self._cloud().store, release).elapsed_s
