"""The release controller on a real store, with a small fleet that follows its plans."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal.cloud import store as tables
from shoal.cloud.controller import ReleaseController
from shoal.cloud.plans import PlanTable, desired_tasks
from shoal.cloud.policy import Guardrail, ReleasePolicy
from shoal.cloud.releases import LIVE, ReleaseState
from shoal.cloud.store import Store
from shoal.core.errors import ConflictError, InputError, IntegrityError, NotFoundError
from shoal.core.seeds import philox
from shoal.wire.codes import ErrorCode
from shoal.wire.profile import format_profile_header, profile_digest
from shoal.wire.results import InstallReport, InstallState, ResultBatch, ResultRecord, RunSummary
from shoal.wire.simulation import SimulationReport, sign_simulation

TASK = "delay"
S = ReleaseState


@dataclass
class Device:
    id: bytes
    cohort: int  # the cohort set
    held: dict[str, int] = field(default_factory=dict)
    runs: int = 0
    ever: set[int] = field(default_factory=set)


class World:
    """A store, a controller and devices that pull, run and report; time by hand."""

    def __init__(self, folder: Path, versions: int = 4) -> None:
        self.folder = folder
        self.now = 1_000_000_000
        self.store = Store(f"sqlite:///{folder / 'cloud.db'}")
        self.plans = PlanTable()
        self.cohorts: dict[str, int] = {}
        self.sets: dict[tuple[int, ...], int] = {}
        self.devices: list[Device] = []
        with self.store.begin() as c:
            # A release is durable, but the tests need not wait for the disk.
            c.execute(sa.insert(tables.scenario).values(name="default", created_us=0))
            c.execute(sa.insert(tables.task).values(name=TASK, scenario="default", created_us=0))
            for version in range(1, versions + 1):
                c.execute(
                    sa.insert(tables.task_version).values(
                        task=TASK,
                        version=version,
                        package_sha256=hashlib.sha256(b"%d" % version).digest(),
                        size=100,
                        manifest={
                            "limits": {"deadline_ms": 300, "memory_mb": 256},
                            "resources": [
                                {"path": "models/m.onnx", "sha256": "ab" * 32, "size": 7,
                                 "scope": "shared", "separate": True},
                                {"path": "main.py", "sha256": "cd" * 32, "size": 5},
                            ],
                        },
                        created_us=0,
                    )
                )  # fmt: skip
        self.controller = self.restart("one")

    def restart(self, holder: str) -> ReleaseController:
        self.controller = ReleaseController(
            self.store, self.publish, holder=holder, clock=lambda: self.now
        )
        return self.controller

    def publish(self) -> None:
        self.plans.rebuild(self.controller.cohort_plans(), self.store.epoch())

    def cohort(self, name: str) -> int:
        with self.store.begin() as c:
            done = c.execute(
                sa.insert(tables.cohort).values(
                    name=name, predicate="true", predicate_sha=name, created_us=0
                )
            )
        self.cohorts[name] = int((done.inserted_primary_key or (0,))[0])
        return self.cohorts[name]

    def enrol(self, number: int, *cohorts: str, key: bytes = b"\1" * 32) -> list[Device]:
        members = tuple(sorted(self.cohorts[name] for name in cohorts))
        with self.store.begin() as c:
            if members not in self.sets:
                done = c.execute(
                    sa.insert(tables.cohort_set).values(
                        cohorts=list(members), digest=repr(members), created_us=0
                    )
                )
                self.sets[members] = int((done.inserted_primary_key or (0,))[0])
            fresh = []
            for _ in range(number):
                identity = hashlib.blake2b(
                    b"device %d" % len(self.devices), digest_size=16
                ).digest()
                c.execute(
                    sa.insert(tables.device).values(
                        id=identity,
                        first_seen_us=0,
                        last_seen_us=0,
                        enrolled_us=0,
                        cohort_set=self.sets[members],
                        public_key=key,
                    )
                )
                fresh.append(Device(identity, self.sets[members]))
                self.devices.append(fresh[-1])
        self.publish()
        return fresh

    def pull(self, device: Device) -> bool:
        """One ordinary request of a device; install what it names."""
        digest = profile_digest(device.held.items())
        found = self.plans.check(format_profile_header(0, device.cohort, digest), device.id.hex())
        if found is None:
            return False
        _, cohort, mask = found
        assert cohort == device.cohort
        tasks = desired_tasks(self.plans.plan(cohort), mask)
        device.held = {t.task: t.version for t in tasks if t.version}
        device.ever |= set(device.held.values())
        device.runs = 0
        return True

    def report(
        self,
        device: Device,
        version: int,
        *outcomes: int,
        state: str | None = None,
        code: int = 0,
        wall_us: int = 1_000,
        peak_kb: int = 10,
        results: list[ResultRecord] | None = None,
    ) -> None:
        runs = [
            RunSummary(b"r" * 16, TASK, version, outcome, "inline", 1, wall_us, peak_kb)
            for outcome in outcomes
        ]
        installs = [InstallReport(TASK, version, state, code)] if state else []
        batch = ResultBatch(
            schema=1, device=device.id, seq=1, runs=runs, installs=installs, results=results or []
        )
        self.controller.on_results(device.id, batch, self.now)
        if state in (InstallState.TRIAL, InstallState.GOOD):
            with self.store.begin() as c:  # what the fleet's book does with such a report
                held = tables.holding
                c.execute(sa.delete(held).where(held.c.device == device.id))
                c.execute(
                    sa.insert(held).values(
                        device=device.id, task=TASK, version=version, state=state,
                        reported_us=self.now,
                    )
                )  # fmt: skip

    def live(self, seconds: float, fails: Callable[[Device, int], bool]) -> None:
        """Every device asks and runs once a second; the controller ticks once a second."""
        for _ in range(int(seconds)):
            self.now += 1_000_000
            for device in self.devices:
                if self.pull(device):
                    if TASK in device.held:
                        self.report(device, device.held[TASK], state=InstallState.TRIAL)
                    else:
                        with self.store.begin() as c:
                            held = tables.holding
                            c.execute(sa.delete(held).where(held.c.device == device.id))
                if TASK in device.held and device.runs < 5:
                    device.runs += 1
                    version = device.held[TASK]
                    bad = fails(device, version)
                    self.report(device, version, ErrorCode.EXCEPTION if bad else ErrorCode.OK)
            assert self.controller.tick(self.now)

    def state(self, release: int) -> ReleaseState:
        return self.controller.get(release).release.state

    def states(self, release: int) -> list[str]:
        """States in the order in which they were entered."""
        found = [event["to_state"] for event in self.controller.history(release)]
        return [s for i, s in enumerate(found) if i == 0 or s != found[i - 1]]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.cohort("all")
    yield made
    made.store.close()


def demo_policy(world: World, **changes: Any) -> ReleasePolicy:
    options: dict[str, Any] = {
        "steps": (2_000, 5_000, 10_000),
        "beta_devices": tuple(device.id.hex() for device in world.devices[:2]),
        "min_dwell_s": 2,
        "min_devices": 5,
        "max_dwell_s": 120,
        "alpha": 0.05,
        "beta": 0.05,
        "guardrails": (Guardrail(name="failure", limit=0.3),),
        "runs_per_outcome": 3,
        "outcome_after_s": 8,
        "rollback_target": 1.0,
        "rollback_timeout_s": 60,
    }
    return ReleasePolicy(**{**options, **changes})


def good(_device: Device, _version: int) -> bool:
    return False


# -- the demo's fleet of 60 ----------------------------------------------------------------


def test_a_healthy_release_reaches_a_small_fleet_by_statistics(world: World) -> None:
    world.enrol(60, "all")
    release = world.controller.create(TASK, 1, "all", demo_policy(world))
    assert world.state(release) is S.SIMULATED  # no virtual device is enrolled
    assert not any(w.startswith("cannot") for w in world.controller.feasibility(release))
    world.controller.start(release, "ann")
    assert world.state(release) is S.BETA
    world.live(40, good)
    assert world.state(release) is S.FULL
    assert world.states(release) == ["draft", "simulated", "beta", "gray", "full"]
    assert all(device.held == {TASK: 1} for device in world.devices)
    first_gray = next(e for e in world.controller.history(release) if e["to_state"] == "gray")
    assert first_gray["evidence"]["beta"]["passed"] == [d.id.hex() for d in world.devices[:2]]
    status = world.controller.status(release)
    assert status["eligible"] == 60
    assert json.loads(json.dumps(status)) == status
    # Steps of a small fleet come out near their nominal sizes: 11.6 and 29 of 58.
    assert abs(status["exposed"][0] - 11.6) < 1.5
    assert abs(status["exposed"][1] - 29) < 1.5


@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
def test_a_failing_version_is_rolled_back_from_a_small_fleet(world: World, share: float) -> None:
    """Limit 15 %: versions that fail on 30-100 % of the devices go back in seconds."""
    world.enrol(60, "all")
    policy = demo_policy(
        world,
        steps=(4_000, 8_000, 10_000),
        guardrails=(Guardrail(name="failure", limit=0.15),),
        max_dwell_s=25,
        on_inconclusive="roll_back",
    )
    first = world.controller.create(TASK, 1, "all", demo_policy(world))
    world.controller.override(first, "ann", "fleet is new")
    world.live(5, good)
    draws = philox(11, "bad", int(share * 100)).random(60)
    broken = {d.id: draws[i] < share and i > 1 for i, d in enumerate(world.devices)}
    second = world.controller.create(TASK, 2, "all", policy, salt="fixed")
    world.controller.start(second, "ann")
    world.live(60, lambda device, version: version == 2 and broken[device.id])
    assert world.state(second) is S.ROLLED_BACK
    assert all(device.held == {TASK: 1} for device in world.devices)
    history = world.controller.history(second)
    stop = next(e for e in history if e["to_state"] == "rolling_back")
    assert stop["actor"] == "controller"
    # So small a fleet may not prove every failing version worse in time, but it
    # does not prove it safe either, and this policy keeps nothing unproven.
    proven = stop["evidence"]["guardrails"][0]["verdict"]
    assert proven == "worse" if share == 1.0 else proven != "safe"
    assert "full" not in world.states(second)
    assert world.state(first) is S.FULL


def test_a_failing_beta_device_ends_the_release_before_gray(world: World) -> None:
    devices = world.enrol(60, "all")
    release = world.controller.create(TASK, 1, "all", demo_policy(world))
    world.controller.start(release)
    world.live(6, lambda device, _: device.id == devices[1].id)
    assert world.states(release)[-2:] == ["rolling_back", "rolled_back"]
    assert {d.id for d in world.devices if d.ever} == {d.id for d in devices[:2]}
    assert all(not device.held for device in devices)  # no version before: held by none


def test_on_hold_a_failing_beta_device_waits_for_an_operator(world: World) -> None:
    devices = world.enrol(60, "all")
    policy = demo_policy(world, on_beta_failure="hold")
    release = world.controller.create(TASK, 1, "all", policy)
    world.controller.start(release)
    world.live(6, lambda device, _: device.id == devices[1].id)
    assert world.state(release) is S.BETA
    assert world.controller.status(release)["beta"]["failed"] == [devices[1].id.hex()]
    world.controller.advance(release, "ann", "known sensor fault on that device")
    assert world.state(release) is S.GRAY
    event = world.controller.history(release)[-1]
    assert (event["actor"], event["reason"]) == ("ann", "known sensor fault on that device")


def test_inconclusive_releases_pause_and_can_be_resumed(world: World) -> None:
    world.enrol(20, "all")
    policy = demo_policy(world, max_dwell_s=12, guardrails=(Guardrail(name="f", limit=0.05),))
    release = world.controller.create(TASK, 1, "all", policy)
    assert world.controller.feasibility(release)[0].startswith("cannot leave gray step 1")
    world.controller.start(release)
    world.live(25, good)
    assert world.state(release) is S.PAUSED
    held = [dict(device.held) for device in world.devices]
    world.live(5, good)
    assert [device.held for device in world.devices] == held
    world.controller.resume(release, "ann")
    assert world.state(release) is S.GRAY
    world.controller.pause(release, "ann")
    world.controller.rollback(release, "ann", "not worth it")
    world.live(5, good)
    assert world.state(release) is S.ROLLED_BACK
    assert not any(device.held for device in world.devices)


def test_a_release_that_was_full_can_still_be_rolled_back(world: World) -> None:
    world.enrol(30, "all")
    first = world.controller.create(TASK, 1, "all", demo_policy(world))
    world.controller.override(first, "ann", "first")
    second = world.controller.create(TASK, 2, "all", demo_policy(world))
    world.controller.override(second, "ann", "hurry")
    assert world.state(first) is S.SUPERSEDED
    epoch = world.store.epoch()
    world.live(20, lambda _, version: version == 2)
    assert world.state(second) is S.ROLLED_BACK
    assert world.store.epoch() > epoch
    assert all(device.held == {TASK: 1} for device in world.devices)


# -- two releases of one task ------------------------------------------------------------------


def test_a_newer_release_waits_its_turn(world: World) -> None:
    world.enrol(60, "all")
    first = world.controller.create(TASK, 1, "all", demo_policy(world))
    second = world.controller.create(TASK, 2, "all", demo_policy(world))
    world.controller.start(first)
    world.controller.start(second)
    assert world.state(second) is S.SIMULATED
    assert f"release {first}" in world.controller.status(second)["waiting_for"]
    world.live(90, good)
    assert (world.state(first), world.state(second)) == (S.SUPERSEDED, S.FULL)
    assert world.controller.get(second).release.previous == 1


def test_a_newer_release_may_supersede_one_in_motion(world: World) -> None:
    world.enrol(60, "all")
    first = world.controller.create(TASK, 1, "all", demo_policy(world))
    world.controller.start(first)
    world.live(5, good)
    assert world.state(first) is S.GRAY
    second = world.controller.create(TASK, 2, "all", demo_policy(world))
    world.controller.start(second, "ann", "fixes 1", supersede=True)
    assert (world.state(first), world.state(second)) == (S.SUPERSEDED, S.BETA)
    world.live(2, good)
    assert all(device.held.get(TASK) != 1 for device in world.devices)


def test_a_version_that_the_cohort_holds_already_is_not_begun(world: World) -> None:
    world.enrol(10, "all")
    first = world.controller.create(TASK, 1, "all", demo_policy(world))
    again = world.controller.create(TASK, 1, "all", demo_policy(world))
    world.controller.start(again)  # waits? no: nothing is in motion, so it begins
    assert world.state(again) is S.BETA
    with pytest.raises(ConflictError, match="is beta in this cohort"):
        world.controller.override(first, "ann", "now")
    world.controller.override(again, "ann", "now")
    world.controller.start(first)
    assert world.state(first) is S.ABORTED


def test_the_database_refuses_a_live_pair(world: World) -> None:
    world.enrol(10, "all")
    first = world.controller.create(TASK, 1, "all", demo_policy(world))
    second = world.controller.create(TASK, 2, "all", demo_policy(world))
    world.controller.start(first)
    with pytest.raises(sa.exc.IntegrityError), world.store.begin() as c:
        c.execute(
            sa.update(tables.release).where(tables.release.c.id == second).values(state="gray")
        )


# -- what is counted -----------------------------------------------------------------------------


def begun(world: World, **changes: Any) -> int:
    """A release in its first gray step, with no beta devices."""
    policy = demo_policy(world, beta_devices=(), steps=(9_999, 10_000), **changes)
    release = world.controller.create(TASK, 1, "all", policy)
    world.controller.start(release)
    world.controller.tick(world.now)
    assert world.state(release) is S.GRAY
    return release


def counted(world: World, release: int) -> dict[tuple[str, str], tuple[int, int]]:
    with world.store.read() as c:
        return {
            (row.guardrail, row.arm): (row.devices, row.failures)
            for row in c.execute(
                sa.select(tables.arm_count).where(tables.arm_count.c.release == release)
            )
        }


def test_a_device_counts_once_at_its_third_run(world: World) -> None:
    device = world.enrol(5, "all")[0]
    release = begun(world)
    world.report(device, 1, ErrorCode.EXCEPTION, state=InstallState.TRIAL)
    assert counted(world, release) == {}  # a failure is told no earlier than a success
    world.report(device, 1, 0)
    world.report(device, 1, 0, 0, 0)
    assert counted(world, release) == {("failure", "new"): (1, 1)}
    world.report(device, 1, *[ErrorCode.EXCEPTION] * 9)
    assert counted(world, release) == {("failure", "new"): (1, 1)}


def test_a_failure_after_the_third_run_is_not_counted(world: World) -> None:
    device = world.enrol(5, "all")[0]
    release = begun(world)
    world.report(device, 1, 0, 0, ErrorCode.CANCELLED, ErrorCode.VM_CRASHED)
    assert counted(world, release) == {("failure", "new"): (1, 0)}


def test_time_closes_the_observation_of_a_quiet_device(world: World) -> None:
    one, two, three = world.enrol(3, "all")
    release = begun(world)
    world.report(one, 1, state=InstallState.TRIAL)
    world.report(two, 1, state=InstallState.REFUSED, code=ErrorCode.HASH_MISMATCH)
    world.report(three, 1, state=InstallState.REFUSED, code=ErrorCode.DISK_FULL)
    world.now += 9_000_000
    world.controller.tick(world.now)
    assert counted(world, release) == {("failure", "new"): (2, 1)}


def test_silence_after_a_pull_counts_as_no_report(world: World) -> None:
    one, two, three = world.enrol(3, "all")
    guardrails = (Guardrail(name="failure"), Guardrail(name="silent", kind="no_report"))
    release = begun(world, guardrails=guardrails)
    for device in (one, two, three):
        world.controller.on_pull(device.id, TASK, 1, world.now)
        world.controller.on_pull(device.id, TASK, 1, world.now)
    world.report(one, 1, 0, 0, 0)
    world.report(two, 1, state=InstallState.TRIAL)
    world.now += 9_000_000
    world.controller.tick(world.now)
    assert counted(world, release) == {
        ("failure", "new"): (2, 0),  # nothing is known of the third one's runs
        ("silent", "new"): (3, 1),
    }


def test_latency_memory_and_custom_guardrails(world: World) -> None:
    one, two = world.enrol(2, "all")
    release = begun(
        world,
        guardrails=(
            Guardrail(name="slow", kind="latency", budget=50),
            Guardrail(name="large", kind="memory", budget=1_000),
            Guardrail(name="odd", kind="custom", signal="off_scale"),
        ),
    )
    record = ResultRecord(b"i" * 16, TASK, 1, "off_scale", 0, 1)
    world.report(one, 1, 0, wall_us=60_000, results=[record])
    world.report(one, 1, 0, 0, peak_kb=2_000)
    world.report(two, 1, 0, 0, 0)
    assert counted(world, release) == {
        ("slow", "new"): (2, 1),
        ("large", "new"): (2, 1),
        ("odd", "new"): (2, 1),
    }


def test_control_devices_are_those_of_the_cohort_that_are_not_in(world: World) -> None:
    world.cohort("others")
    devices = world.enrol(40, "all")
    strangers = world.enrol(3, "others")
    first = world.controller.create(TASK, 1, "all", demo_policy(world))
    world.controller.override(first, "ann", "first")
    policy = demo_policy(
        world, beta_devices=(), rule="versus_control", steps=(5_000, 10_000), sticky=True
    )
    second = world.controller.create(TASK, 2, "all", policy)
    world.controller.start(second)
    world.controller.tick(world.now)
    for device in devices:
        world.pull(device)
        world.report(device, device.held[TASK], 0, 0, 0)
    for device in strangers:
        world.report(device, 1, 0, 0, 0)
        world.report(device, 2, 0, 0, 0)
    new = sum(device.held[TASK] == 2 for device in devices)
    assert counted(world, second) == {
        ("failure", "new"): (new, 0),
        ("failure", "control"): (40 - new, 0),
    }
    inside = next(device for device in devices if device.held[TASK] == 2)
    assert second in world.controller.sticky_releases(inside.id.hex())
    with world.store.read() as c:
        dropped = {row.reason: row.total for row in c.execute(sa.select(tables.dropped))}
    assert dropped == {"outside_cohort": 6}


def test_an_outcome_belongs_to_the_transaction_that_stores_its_batch(world: World) -> None:
    device = world.enrol(5, "all")[0]
    release = begun(world)
    with pytest.raises(RuntimeError, match="disk"), world.store.begin():
        world.report(device, 1, 0, 0, 0)
        raise RuntimeError("disk")
    assert counted(world, release) == {}
    with world.store.begin():
        world.report(device, 1, 0, 0, 0)
    assert counted(world, release) == {("failure", "new"): (1, 0)}


# -- simulation test ------------------------------------------------------------------------------


def simulation(world: World, release: int, device: Device, **changes: Any) -> SimulationReport:
    values: dict[str, Any] = {
        "schema": 1, "release": release, "task": TASK, "version": 1, "device": device.id,
        "n_traces": 2, "n_runs": 40, "failures": 0, "max_wall_us": 20_000, "max_peak_kb": 900,
        "outputs_sha256": b"\7" * 32,
    }  # fmt: skip
    return SimulationReport(**{**values, **changes})


def test_virtual_devices_hold_drafts_and_their_signed_report_lets_them_pass(
    world: World,
) -> None:
    world.cohort("virtual")
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    real = world.enrol(10, "all")
    virtual = world.enrol(1, "all", "virtual", key=public)[0]
    release = world.controller.create(TASK, 1, "all", demo_policy(world, beta_devices=()))
    assert world.state(release) is S.DRAFT
    assert world.pull(virtual)
    assert virtual.held == {TASK: 1}
    assert not any(world.pull(device) for device in real)

    world.controller.start(release)  # remembered; it waits for the report
    assert world.state(release) is S.DRAFT
    assert "simulation" in world.controller.status(release)["waiting_for"]
    send = world.controller.record_simulation
    with pytest.raises(IntegrityError, match="not signed"):
        send(release, simulation(world, release, virtual))
    with pytest.raises(IntegrityError, match="not signed"):
        forged = sign_simulation(simulation(world, release, virtual), Ed25519PrivateKey.generate())
        send(release, forged)
    with pytest.raises(IntegrityError, match="not an enrolled virtual device"):
        send(release, sign_simulation(simulation(world, release, real[0]), key))
    with pytest.raises(InputError, match="another release"):
        send(release, sign_simulation(simulation(world, release, virtual, version=2), key))
    for change in (
        {"n_traces": 0},
        {"failures": 1, "message": "EXCEPTION in run 3"},
        {"max_wall_us": 300_001},
        {"max_peak_kb": 256 * 1024 + 1},
    ):
        bad = sign_simulation(simulation(world, release, virtual, **change), key)
        assert not send(release, bad)
        assert world.state(release) is S.DRAFT
    with pytest.raises(NotFoundError, match="no draft"):
        send(0, sign_simulation(simulation(world, 0, virtual, version=3), key))
    # A virtual device knows the version, not the release: 0 finds the draft.
    assert send(0, sign_simulation(simulation(world, 0, virtual), key))
    assert world.state(release) in (S.BETA, S.GRAY)
    reasons = [event["reason"] for event in world.controller.history(release)]
    assert "EXCEPTION in run 3" in reasons
    # The virtual device is never counted, and sees later versions as drafts.
    world.report(virtual, 1, *[ErrorCode.EXCEPTION] * 3)
    assert counted(world, release) == {}
    world.controller.create(TASK, 2, "all", demo_policy(world, beta_devices=()))
    assert world.pull(virtual)
    assert virtual.held == {TASK: 2}
    assert not any(2 in device.ever for device in real)


def test_a_second_draft_of_a_tested_version_needs_no_second_test(world: World) -> None:
    world.cohort("virtual")
    world.cohort("others")
    key = Ed25519PrivateKey.generate()
    virtual = world.enrol(1, "virtual", key=key.public_key().public_bytes_raw())[0]
    world.enrol(4, "all", "others")
    policy = demo_policy(world, beta_devices=(), simulation="required")
    first = world.controller.create(TASK, 1, "all", policy)
    assert world.pull(virtual)
    second = world.controller.create(TASK, 1, "others", policy)
    world.controller.tick(world.now)
    assert world.state(second) is S.DRAFT  # nothing is known of the version yet
    assert world.controller.record_simulation(
        first, sign_simulation(simulation(world, first, virtual), key)
    )
    assert not world.pull(virtual)  # it holds the version: nobody asks it again
    world.controller.tick(world.now)
    assert world.state(second) is S.SIMULATED
    other = world.controller.create(TASK, 2, "others", policy)
    world.controller.tick(world.now)
    assert world.state(other) is S.DRAFT  # another version is another package


def test_an_operator_may_waive_the_simulation(world: World) -> None:
    world.enrol(5, "all")
    policy = demo_policy(world, simulation="required")
    release = world.controller.create(TASK, 1, "all", policy)
    assert world.state(release) is S.DRAFT
    world.controller.advance(release, "ann", "tested by hand")
    assert world.state(release) is S.SIMULATED


def test_drafts_for_virtual_devices_alone_are_refused(world: World) -> None:
    world.cohort("virtual")
    with pytest.raises(InputError, match="virtual"):
        world.controller.create(TASK, 1, "virtual")


# -- operators, leaders, restarts -------------------------------------------------------------


def test_bad_requests_are_refused_with_one_clear_line(world: World) -> None:
    world.enrol(5, "all")
    create = world.controller.create
    with pytest.raises(NotFoundError, match="no version 9 of task 'delay'"):
        create(TASK, 9, "all")
    with pytest.raises(NotFoundError, match="no cohort 'nobody'"):
        create(TASK, 1, "nobody")
    with pytest.raises(InputError, match="steps must rise"):
        create(TASK, 1, "all", {"steps": [5, 5]})
    release = create(TASK, 1, "all", demo_policy(world))
    with pytest.raises(InputError, match="needs a reason"):
        world.controller.override(release, "ann", "  ")
    with pytest.raises(ConflictError, match="cannot pause"):
        world.controller.pause(release)
    with pytest.raises(NotFoundError, match="no release 77"):
        world.controller.start(77)
    with pytest.raises(NotFoundError, match="no release 77"):
        world.controller.history(77)


def test_beta_devices_must_be_enrolled_in_the_cohort(world: World) -> None:
    world.cohort("others")
    world.enrol(2, "others")
    world.enrol(10, "all")
    release = world.controller.create(TASK, 1, "all", demo_policy(world))
    world.controller.start(release)
    assert world.state(release) is S.SIMULATED
    assert "to enrol in the cohort" in world.controller.status(release)["waiting_for"]
    world.live(3, good)
    assert not any(device.ever for device in world.devices)


def test_two_operators_at_once_are_told_apart_by_the_lock_version(world: World) -> None:
    world.enrol(10, "all")
    release = world.controller.create(TASK, 1, "all", demo_policy(world))
    seen = world.controller.get(release).lock_version
    world.controller.start(release, "ann", lock_version=seen)
    with pytest.raises(ConflictError, match="changed by someone else"):
        world.controller.abort(release, "bob", lock_version=seen)
    assert world.state(release) is S.BETA


def test_advancing_past_a_worse_guardrail_is_refused(world: World) -> None:
    devices = world.enrol(20, "all")
    release = begun(world)
    for device in devices:
        world.report(device, 1, *[ErrorCode.EXCEPTION] * 3)
    with pytest.raises(ConflictError):
        world.controller.advance(release, "ann", "looks fine to me")
    world.controller.tick(world.now)
    assert world.state(release) in (S.ROLLING_BACK, S.ROLLED_BACK)


def test_one_controller_is_active_and_another_takes_over_when_it_dies(world: World) -> None:
    world.enrol(60, "all")
    release = world.controller.create(TASK, 1, "all", demo_policy(world))
    world.controller.start(release)
    world.live(8, good)
    first = world.controller
    second = world.restart("two")
    assert not second.tick(world.now)
    assert first.tick(world.now)
    world.now += 20_000_000  # the first one is gone; its lease has run out
    assert second.tick(world.now)
    assert not first.tick(world.now)
    world.live(40, good)
    assert world.state(release) is S.FULL


def test_a_restart_forgets_nothing(world: World) -> None:
    """A new controller after every second reaches the same end as one that lives."""
    world.enrol(60, "all")
    release = world.controller.create(TASK, 1, "all", demo_policy(world))
    world.controller.start(release)
    for _ in range(40):
        world.live(1, good)
        world.restart("one")
    assert world.state(release) is S.FULL
    assert counted(world, release)["failure", "new"][0] >= 11


def test_a_crash_in_the_middle_of_a_transition_leaves_the_state_before(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.enrol(10, "all")
    release = world.controller.create(TASK, 1, "all", demo_policy(world))
    epoch, history = world.store.epoch(), world.controller.history(release)
    rows = world.controller._rows

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rows, "add_event", dies)
        with pytest.raises(KeyboardInterrupt):
            world.controller.start(release)
    assert world.state(release) is S.SIMULATED
    assert world.store.epoch() == epoch
    assert world.controller.history(release) == history
    world.controller.start(release)
    assert world.state(release) is S.BETA


_KILLED = """
import sys
from shoal.cloud.controller import ReleaseController
from shoal.cloud.store import Store

folder, release = sys.argv[1], int(sys.argv[2])
store = Store(f"sqlite:///{folder}/cloud.db")
controller = ReleaseController(store, holder="victim", clock=lambda: 1_000_000_000)
print("ready", flush=True)
sys.stdin.readline()
while True:
    action = "resume" if controller.get(release).release.state == "paused" else "pause"
    getattr(controller, action)(release, "ann", "back and forth")
"""


def test_kill_dash_nine_leaves_rows_and_history_in_step(world: World) -> None:
    """A controller that is killed at any point: each state has its row of history."""
    world.enrol(10, "all")
    release = begun(world)
    for attempt in range(6):
        victim = subprocess.Popen(
            [sys.executable, "-c", _KILLED, str(world.folder), str(release)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert victim.stdin is not None
        assert victim.stdout is not None
        assert victim.stdout.readline() == "ready\n"
        victim.stdin.write("go\n")
        victim.stdin.flush()
        time.sleep(0.03 + 0.017 * attempt)
        victim.kill()
        victim.communicate()
        m = world.controller.get(release)
        history = world.controller.history(release)
        assert history[-1]["to_state"] == m.release.state
        for before, after in itertools.pairwise(history):
            assert before["to_state"] == after["from_state"]
    assert len(history) > 8  # it was killed at work, not before
    if world.state(release) is S.PAUSED:
        world.controller.resume(release, "ann")
    world.controller.pause(release, "ann")
    assert world.state(release) is S.PAUSED


def test_desired_tasks_name_the_package_and_separate_resources(world: World) -> None:
    world.enrol(3, "all")
    release = world.controller.create(TASK, 1, "all", demo_policy(world))
    world.controller.override(release, "ann", "first")
    plan = world.controller.cohort_plans()[0]
    (task,) = plan.base
    assert task.package.sha256 == hashlib.sha256(b"1").digest()
    assert task.package.path == "delay-1.shoal"
    assert [resource.path for resource in task.resources] == ["models/m.onnx"]


# -- any order of everything -----------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """Operators, devices and time in any order: the invariants hold in the real store."""

    folder: Path  # set by the test
    number = 0

    def __init__(self) -> None:
        super().__init__()
        AnyOrder.number += 1
        folder = self.folder / str(AnyOrder.number)
        folder.mkdir()
        self.world = World(folder)
        for name in ("east", "west"):
            self.world.cohort(name)
        self.world.enrol(4, "east")
        self.world.enrol(4, "west")
        self.world.enrol(4, "east", "west")
        self.world.enrol(2)
        self.releases: dict[int, tuple[int, str]] = {}
        self.epochs: dict[int, int] = {}
        self.bad: set[int] = set()

    def teardown(self) -> None:
        self.world.store.close()

    @rule(
        version=st.integers(1, 4),
        cohort=st.sampled_from(["east", "west"]),
        beta=st.booleans(),
    )
    def create(self, version: int, cohort: str, beta: bool) -> None:
        named = self.world.devices[0 if cohort == "east" else 4]
        policy = demo_policy(
            self.world, beta_devices=(named.id.hex(),) if beta else (), min_devices=0,
            min_dwell_s=0, guardrails=(Guardrail(name="f", limit=0.6),), alpha=0.2, beta=0.5,
        )  # fmt: skip
        release = self.world.controller.create(TASK, version, cohort, policy)
        self.releases[release] = (version, cohort)

    @precondition(lambda self: self.releases)
    @rule(
        data=st.data(),
        action=st.sampled_from(
            ["start", "start", "advance", "override", "pause", "resume", "rollback", "abort"]
        ),
    )
    def act(self, data: st.DataObject, action: str) -> None:
        release = data.draw(st.sampled_from(sorted(self.releases)))
        options = {}
        if action in ("start", "override"):
            options["supersede"] = data.draw(st.booleans())
        before = self.world.store.epoch()
        try:
            getattr(self.world.controller, action)(release, "ann", "because", **options)
        except ConflictError:
            assert self.world.store.epoch() == before
        else:
            if action == "rollback":
                assert self.world.store.epoch() > before

    @rule(version=st.integers(1, 4))
    def break_version(self, version: int) -> None:
        self.bad.add(version)

    @rule(seconds=st.integers(1, 4))
    def time_passes(self, seconds: int) -> None:
        self.world.live(seconds, lambda _, version: version in self.bad)

    @invariant()
    def no_pair_in_motion_and_no_two_full(self) -> None:
        live: set[tuple[str, int]] = set()
        full: set[tuple[str, int]] = set()
        for m in self.world.controller.list():
            key = (m.release.task, m.release.cohort)
            if m.release.state in LIVE:
                assert key not in live
                live.add(key)
            if m.release.state is S.FULL:
                assert key not in full
                full.add(key)

    @invariant()
    def no_device_outside_a_cohort_ever_receives(self) -> None:
        offered: dict[str, set[int]] = {"east": set(), "west": set()}
        for version, cohort in self.releases.values():
            offered[cohort].add(version)
        groups = (("east",),) * 4 + (("west",),) * 4 + (("east", "west"),) * 4 + ((),) * 2
        for device, cohorts in zip(self.world.devices, groups, strict=True):
            allowed = set().union(*(offered[c] for c in cohorts)) if cohorts else set()
            assert device.ever <= allowed

    @invariant()
    def epochs_only_rise(self) -> None:
        for plan in self.world.controller.cohort_plans():
            assert plan.epoch >= self.epochs.get(plan.cohort, 0)
            self.epochs[plan.cohort] = plan.epoch


def test_any_order_of_operators_devices_and_time(tmp_path: Path) -> None:
    AnyOrder.folder = tmp_path
    case = AnyOrder.TestCase
    case.settings = settings(
        max_examples=12,
        stateful_step_count=18,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    case().runTest()
