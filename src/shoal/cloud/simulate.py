"""A release to a simulated fleet: a million devices, one process, no sockets.

What is simulated is the devices and their time; the release controller, its
database, the plan table and the notices are the real ones. Every simulated
request passes through :meth:`PlanTable.check` (Walle sheet A.7).
"""

from __future__ import annotations

import hashlib
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import mmh3
import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from shoal.cloud import store as tables
from shoal.cloud.cohorts import CohortBook
from shoal.cloud.controller import ReleaseController
from shoal.cloud.fleet_report import FleetReport
from shoal.cloud.guardrails import ArmCount
from shoal.cloud.plans import SEND_PROFILE, PlanTable, desired_tasks
from shoal.cloud.policy import ReleasePolicy
from shoal.cloud.population import FleetConfig, Population, combinations
from shoal.cloud.releases import ReleaseState
from shoal.cloud.store import Store
from shoal.wire.buckets import BUCKETS
from shoal.wire.codes import ErrorCode
from shoal.wire.profile import format_profile_header, profile_digest
from shoal.wire.results import ResultBatch, RunSummary

__all__ = ["FleetConfig", "FleetReport", "FleetSimulation"]

_TASK: Final = "simulated"
_OLD, _NEW = 1, 2
_START_US: Final = 1_000_000_000_000
_WINDOW_S: Final = 64  # requests are generated and sorted this far ahead
_NEVER: Final = np.inf
_POINTS: Final = 400


class _Calendar:
    """Buckets of one second, each holding arrays of device numbers."""

    def __init__(self) -> None:
        self._buckets: dict[int, list[NDArray[np.int64]]] = defaultdict(list)

    def put(self, devices: NDArray[np.int64], seconds: NDArray[np.int64]) -> None:
        if not devices.size:
            return
        order = np.argsort(seconds, kind="stable")
        devices, seconds = devices[order], seconds[order]
        edges = np.flatnonzero(np.diff(seconds)) + 1
        for second, group in zip(
            seconds[np.concatenate([[0], edges])], np.split(devices, edges), strict=True
        ):
            self._buckets[int(second)].append(group)

    def take(self, second: int) -> NDArray[np.int64]:
        found = self._buckets.pop(second, None)
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


class _CloudSide:
    """The real cloud parts that the fleet talks to, on a database in a scratch folder."""

    def __init__(self, config: FleetConfig, population: Population, folder: Path) -> None:
        self.now_us = _START_US
        self.store = Store(f"sqlite:///{folder / 'cloud.db'}")
        self.plans = PlanTable()
        book = CohortBook(self.store)
        cohort = book.define("target", config.predicate)
        kinds = combinations(config)
        sets = [book.cohort_set(attributes) for attributes in kinds]
        inside = [cohort.id in book.matching(attributes) for attributes in kinds]
        self.predicate_errors = sum(book.errors.values())
        self.cohort_of = np.asarray(sets, dtype=np.int64)[population.kind]
        self.eligible = np.asarray(inside)[population.kind]
        with self.store.begin() as connection:
            connection.execute(sa.insert(tables.scenario).values(name="default", created_us=0))
            connection.execute(
                sa.insert(tables.task).values(name=_TASK, scenario="default", created_us=0)
            )
            for version in (_OLD, _NEW):
                connection.execute(
                    sa.insert(tables.task_version).values(
                        task=_TASK,
                        version=version,
                        package_sha256=hashlib.sha256(b"%d" % version).digest(),
                        size=config.package_bytes,
                        manifest={},
                        created_us=0,
                    )
                )
        self.publishes = 0
        self.controller = ReleaseController(
            self.store, self.publish, holder="simulation", clock=lambda: self.now_us
        )
        old = self.controller.create(_TASK, _OLD, "target", {"simulation": "off"}, salt="old")
        self.controller.override(old, "simulation", "the fleet holds this version already")

    def publish(self) -> None:
        self.plans.rebuild(self.controller.cohort_plans(), self.store.epoch())
        self.publishes += 1

    def enrol(self, population: Population, numbers: list[int]) -> None:
        """Give named devices a row of their own; the others are counted in bulk."""
        with self.store.begin() as connection:
            for number in numbers:
                connection.execute(
                    sa.insert(tables.device).values(
                        id=bytes.fromhex(population.names[number]),
                        first_seen_us=0,
                        last_seen_us=0,
                        enrolled_us=0,
                        cohort_set=int(self.cohort_of[number]),
                        public_key=b"\0" * 32,
                    )
                )


class FleetSimulation:
    """Releases a version to a generated fleet and measures how it spreads.

    Parameters
    ----------
    config : FleetConfig
    seed : int
        The same seed gives the same report, up to the measured CPU times.

    Examples
    --------
    >>> report = FleetSimulation(FleetConfig(devices=2_000, horizon_s=600), seed=1).run()
    >>> report.outside_received
    0
    """

    def __init__(self, config: FleetConfig, seed: int = 0) -> None:
        self.config = config
        self.seed = seed

    def run(
        self,
        policy: ReleasePolicy | None = None,
        *,
        beta: int = 0,
        progress: Callable[[float], None] | None = None,
    ) -> FleetReport:
        """Run one release.

        Parameters
        ----------
        policy : ReleasePolicy, optional
            Its gray steps and guardrails, driven by the real controller; made
            full at once if absent.
        beta : int
            Number of eligible devices to name as beta devices (with a policy).
        progress : callable, optional
            Called with the share of simulated time that is over.

        Returns
        -------
        FleetReport
        """
        with tempfile.TemporaryDirectory(prefix="shoal-fleet-") as folder:
            return _Run(self.config, self.seed, Path(folder)).run(policy, beta, progress)


class _Run:
    """State of one simulation; arrays over devices, one calendar per kind of event."""

    def __init__(self, config: FleetConfig, seed: int, folder: Path) -> None:
        self.began = time.perf_counter(), time.process_time()
        self.config, self.seed = config, seed
        self.population = Population(config, seed)
        self.cloud = _CloudSide(config, self.population, folder)
        size = config.devices
        self.next_s = self.population.first()
        self.events = np.ones(size, dtype=np.int64)
        # A header depends on (cohort set, versions, epoch): few different ones.
        self.headers: list[str] = []
        self.header_version: list[int] = []
        self._header_ids: dict[tuple[int, int, int], int] = {}
        self.header = np.empty(size, dtype=np.int32)
        for number in np.unique(self.cloud.cohort_of):
            members = self.cloud.cohort_of == number
            held = {t.version for t in self.cloud.plans.plan(int(number)).base}
            self.header[members] = self._header_id(int(number), max(held, default=0), 0)
        self.wanted = np.full(size, -1, dtype=np.int32)
        self.due = np.full(size, -1, dtype=np.int64)
        self.reached_s = np.full(size, _NEVER)
        self.installed_s = np.full(size, _NEVER)
        self.reverted_s = np.full(size, _NEVER)
        self.installs, self.outcomes = _Calendar(), _Calendar()
        self.addresses: dict[tuple[int, int, int], int] = {}
        self.jitter_s = 0.0
        self.requests = self.notices = self.pulls = self.bytes = 0
        self.outside = self.unknown = self.waiting_clock = 0
        self.check_cpu_s = 0.0
        self.pulls_per_s: dict[int, int] = defaultdict(int)
        self.release = 0
        self.observed: dict[str, ArmCount] = {}
        self.beta: frozenset[int] = frozenset()

    # -- headers and plans -----------------------------------------------------------

    def _header_id(self, cohort: int, version: int, epoch: int) -> int:
        key = (cohort, version, epoch)
        if key not in self._header_ids:
            digest = profile_digest([(_TASK, version)] if version else [])
            self._header_ids[key] = len(self.headers)
            self.headers.append(format_profile_header(epoch, cohort, digest))
            self.header_version.append(version)
        return self._header_ids[key]

    def _target(self, address: tuple[int, int, int]) -> int:
        """Return the header of a device that has followed a notice."""
        if address not in self.addresses:
            epoch, cohort, mask = address
            tasks = desired_tasks(self.cloud.plans.plan(cohort), mask)
            version = max((t.version for t in tasks if t.task == _TASK), default=0)
            self.addresses[address] = self._header_id(cohort, version, epoch)
        return self.addresses[address]

    # -- the run ------------------------------------------------------------------------

    def run(
        self, policy: ReleasePolicy | None, beta: int, progress: Callable[[float], None] | None
    ) -> FleetReport:
        cloud, config = self.cloud, self.config
        self.policy = self._begin(policy, beta)
        horizon = int(np.ceil(config.horizon_s))
        tick = max(1, int(config.tick_s))
        for start in range(0, horizon, _WINDOW_S):
            end = min(start + _WINDOW_S, horizon)
            devices, times = self._requests_until(float(end))
            edges = np.searchsorted(times, np.arange(start, end + 1))
            for second in range(start, end):
                cloud.now_us = _START_US + second * 1_000_000
                self._settle_installs(second)
                if policy is not None:
                    self._settle_outcomes(second)
                    if second % tick == 0:
                        self._tick()
                low, high = edges[second - start], edges[second - start + 1]
                if high > low:
                    self._ask(devices[low:high], times[low:high], second)
            if progress is not None:
                progress(end / horizon)
        report = self._report(horizon)
        cloud.store.close()
        return report

    def _begin(self, policy: ReleasePolicy | None, beta: int) -> ReleasePolicy:
        eligible = np.flatnonzero(self.cloud.eligible)
        if policy is None:
            chosen = ReleasePolicy(simulation="off")
        else:
            numbers = [int(number) for number in eligible[:beta]]
            self.beta = frozenset(numbers)
            self.cloud.enrol(self.population, numbers)
            names = tuple(self.population.names[number] for number in numbers)
            chosen = policy.model_copy(update={"beta_devices": names, "simulation": "off"})
        controller = self.cloud.controller
        self.release = controller.create(
            _TASK, _NEW, "target", chosen, "simulation", salt=f"fleet{self.seed}"
        )
        if policy is None:
            controller.override(self.release, "simulation", "made full at once")
            share = 1.0
        else:
            controller.start(self.release, "simulation")
            share = chosen.steps[0] / BUCKETS
        self.jitter_s = eligible.size * share / self.config.pull_limit_per_s
        return chosen

    def _requests_until(self, end: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Generate all requests before ``end``, in order of time."""
        found_devices, found_times = [], []
        active = np.flatnonzero(self.next_s < end)
        while active.size:
            found_devices.append(active)
            found_times.append(self.next_s[active])
            self.next_s[active] += self.population.gap(active, self.events[active])
            self.events[active] += 1
            active = active[self.next_s[active] < end]
        if not found_devices:
            return np.empty(0, dtype=np.int64), np.empty(0)
        devices, times = np.concatenate(found_devices), np.concatenate(found_times)
        order = np.argsort(times, kind="stable")
        return devices[order], times[order]

    def _ask(self, devices: NDArray[np.int64], times: NDArray[np.float64], second: int) -> None:
        """Let devices make their requests: the real check, then the pull."""
        check, headers, names = self.cloud.plans.check, self.headers, self.population.names
        numbers = devices.tolist()
        used = self.header[devices].tolist()
        began = time.process_time()
        answers = [
            check(headers[header], names[number])
            for number, header in zip(numbers, used, strict=True)
        ]
        self.check_cpu_s += time.process_time() - began
        self.requests += len(answers)
        hit = [place for place, answer in enumerate(answers) if answer is not None]
        if not hit:
            return
        told = []
        for place in hit:
            answer = answers[place]
            if answer is None or answer == SEND_PROFILE:  # a set without a plan: a defect
                self.unknown += 1
                told.append(-1)
            else:
                told.append(self._target(answer))
        target = np.asarray(told, dtype=np.int32)
        known = target >= 0
        places = np.asarray(hit)[known]
        target, who, when = target[known], devices[places], times[places]
        self.notices += len(who)
        new = np.asarray(self.header_version)[target] == _NEW
        self.outside += int((new & ~self.cloud.eligible[who]).sum())
        self.reached_s[who[new]] = np.minimum(self.reached_s[who[new]], when[new])
        stuck = self.population.stuck[who]
        self.waiting_clock += int(stuck.sum())
        fresh = (self.wanted[who] != target) & ~stuck
        who, target, when, new = who[fresh], target[fresh], when[fresh], new[fresh]
        # The same device may have asked twice within this second: once is enough.
        who, first = np.unique(who, return_index=True)
        self._pull(who, target[first], when[first], new[first], second)

    def _pull(
        self,
        who: NDArray[np.int64],
        target: NDArray[np.int32],
        when: NDArray[np.float64],
        new: NDArray[np.bool_],
        second: int,
    ) -> None:
        if not who.size:
            return
        wait = self.population.jitter(who, second) * self.jitter_s
        # The version before is still in the device's store: no download.
        size = np.where(new, float(self.config.package_bytes), 0.0)
        start = when + np.where(new, wait, 0.0)
        due = np.floor(start + size / self.population.bandwidth[who]).astype(np.int64)
        due = np.maximum(due, second) + 1
        self.wanted[who], self.due[who] = target, due
        self.installs.put(who, due)
        self.pulls += int(new.sum())
        self.bytes += int(size.sum())
        seconds, counts = np.unique(start[new].astype(np.int64), return_counts=True)
        for at, count in zip(seconds.tolist(), counts.tolist(), strict=True):
            self.pulls_per_s[at] += count

    def _settle_installs(self, second: int) -> None:
        """Flip the pointers of devices whose download is complete."""
        who = self.installs.take(second)
        who = who[self.due[who] == second]  # others were told something newer meanwhile
        if not who.size:
            return
        versions = np.asarray(self.header_version)
        before, after = versions[self.header[who]], versions[self.wanted[who]]
        self.header[who] = self.wanted[who]
        self.wanted[who], self.due[who] = -1, -1
        fresh = who[(after == _NEW) & (before != _NEW)]
        self.installed_s[fresh] = np.minimum(self.installed_s[fresh], second)
        self.reverted_s[fresh] = _NEVER
        self.reverted_s[who[(after != _NEW) & (before == _NEW)]] = second
        runs = self.population.time_of_run(fresh, self.policy.runs_per_outcome)
        told = second + np.minimum(runs, self.policy.outcome_after_s)
        told[self.population.silent[fresh]] = second + self.policy.outcome_after_s
        self.outcomes.put(fresh, np.maximum(np.ceil(told).astype(np.int64), second + 1))

    def _settle_outcomes(self, second: int) -> None:
        who = self.outcomes.take(second)
        if not who.size:
            return
        named = [number for number in who.tolist() if number in self.beta]
        for number in named:
            self._report_runs(number)
        who = who[~np.isin(who, list(self.beta))] if named else who
        silent = self.population.silent[who]
        fails = self.population.fails[who] & ~silent
        for guardrail in self.policy.guardrails:
            if guardrail.kind == "no_report":
                count = ArmCount(len(who), int(silent.sum()))
            else:
                bad = int(fails.sum()) if guardrail.kind == "failure" else 0
                count = ArmCount(int((~silent).sum()), bad)
            self.observed[guardrail.name] = self.observed.get(guardrail.name, ArmCount()) + count

    def _report_runs(self, number: int) -> None:
        """Let a named device report for itself, as a real one would."""
        if self.population.silent[number]:
            return
        outcome = ErrorCode.EXCEPTION if self.population.fails[number] else ErrorCode.OK
        device = bytes.fromhex(self.population.names[number])
        run = RunSummary(b"\0" * 16, _TASK, _NEW, int(outcome), "simulated", 0, 0, 0)
        batch = ResultBatch(
            schema=1, device=device, seq=0, runs=[run] * self.policy.runs_per_outcome
        )
        self.cloud.controller.on_results(device, batch, self.cloud.now_us)

    def _tick(self) -> None:
        controller = self.cloud.controller
        if self.observed:
            controller.record_outcomes(self.release, self.observed, now_us=self.cloud.now_us)
            self.observed = {}
        before = controller.get(self.release).release
        controller.tick(self.cloud.now_us)
        after = controller.get(self.release).release
        if after.epoch != before.epoch:
            gained = max(0, after.threshold - before.threshold) / BUCKETS
            self.jitter_s = gained * self.cloud.eligible.sum() / self.config.pull_limit_per_s
            self.addresses.clear()

    # -- what came of it --------------------------------------------------------------------

    def _entries(self) -> tuple[NDArray[np.float64], float]:
        """Return when each device was let in, and when letting in ended (a rollback)."""
        entry = np.full(self.config.devices, _NEVER)
        until = _NEVER
        m = self.cloud.controller.get(self.release)
        salt = m.salt + ":"
        bucket = np.fromiter(
            (mmh3.hash(salt + name, 0, signed=False) % BUCKETS for name in self.population.names),
            dtype=np.int64,
            count=self.config.devices,
        )
        for event in self.cloud.controller.history(self.release):
            at = (event["at_us"] - _START_US) / 1e6
            if event["to_state"] == ReleaseState.BETA:
                entry[list(self.beta)] = at
            elif event["to_state"] in (ReleaseState.GRAY, ReleaseState.FULL):
                inside = bucket < event["evidence"]["threshold"]
                entry[inside] = np.minimum(entry[inside], at)
            elif event["to_state"] == ReleaseState.ROLLING_BACK:
                until = min(until, at)
        entry[~self.cloud.eligible] = _NEVER
        return entry, until

    def _report(self, horizon: int) -> FleetReport:
        config, cloud, population = self.config, self.cloud, self.population
        entry, until = self._entries()
        times = np.linspace(0, horizon, min(_POINTS, horizon) + 1)
        eligible = cloud.eligible
        total = int(eligible.sum())

        def curve(at: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.searchsorted(np.sort(at[eligible]), times, side="right") / max(total, 1)

        reached, installed = curve(self.reached_s), curve(self.installed_s)
        limit = population.limit(eligible, entry, times)
        judged = times <= until
        finite = np.sort(self.reached_s[eligible])
        times_to: dict[str, float | None] = {}
        for share in (0.5, 0.95, 0.99):
            place = int(np.ceil(share * total)) - 1
            at = float(finite[place]) if 0 <= place < total else _NEVER
            times_to[f"{share:.0%}"] = at if np.isfinite(at) else None
        bad = population.fails & np.isfinite(self.installed_s)
        to_reverted = None
        if bad.any() and np.isfinite(until):
            held = np.isfinite(self.installed_s)
            at = float(np.quantile(self.reverted_s[held], 0.99, method="higher"))
            if np.isfinite(at):
                to_reverted = at - float(self.installed_s[bad].min())
        wall, cpu = self.began
        scale = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
        final = cloud.controller.get(self.release).release
        history: list[dict[str, Any]] = [
            {
                "at_s": (event["at_us"] - _START_US) / 1e6,
                "from": event["from_state"],
                "to": event["to_state"],
                "reason": event["reason"],
                "step": event["evidence"].get("step", 0),
                "threshold": event["evidence"].get("threshold", 0),
                "guardrails": event["evidence"].get("guardrails", []),
            }
            for event in cloud.controller.history(self.release)
        ]
        return FleetReport(
            config=config.model_dump(mode="json"),
            seed=self.seed,
            devices=config.devices,
            eligible=total,
            state=str(final.state),
            history=history,
            times_s=times.tolist(),
            reached=reached.tolist(),
            installed=installed.tolist(),
            limit=limit.tolist(),
            coverage_gap=float(np.abs(reached - limit)[judged].max()),
            dkw_band=float(np.sqrt(np.log(2 / 0.01) / (2 * max(total, 1)))),
            time_to_s=times_to,
            reached_devices=int(np.isfinite(self.reached_s).sum()),
            installed_devices=int(np.isfinite(self.installed_s).sum()),
            harmed_devices=int(bad.sum()),
            first_bad_to_reverted_s=to_reverted,
            outside_received=self.outside,
            unknown_cohort=self.unknown,
            waiting_for_clock=self.waiting_clock,
            predicate_errors=cloud.predicate_errors,
            requests=self.requests,
            notices=self.notices,
            pulls=self.pulls,
            peak_pulls_per_s=max(self.pulls_per_s.values(), default=0),
            bytes_pulled=self.bytes,
            plan_rebuilds=cloud.publishes,
            check_us=1e6 * self.check_cpu_s / max(self.requests, 1),
            wall_s=time.perf_counter() - wall,
            cpu_s=time.process_time() - cpu,
            peak_mib=peak / 2**20,
        )
