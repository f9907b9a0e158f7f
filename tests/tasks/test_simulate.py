"""The simulation test: what it says of good, failing and endless tasks, to a cloud too."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from shoal.cloud import store as tables
from shoal.cloud.config import CloudConfig
from shoal.cloud.http import CloudServer
from shoal.cloud.policy import ReleasePolicy
from shoal.cloud.service import EVERYONE, Cloud
from shoal.core.errors import InputError, IntegrityError, UnavailableError
from shoal.device import Agent, AgentConfig, TaskCode, VMPool, VMPoolConfig
from shoal.device.packages import InstalledTask
from shoal.device.taskcode import task_code
from shoal.tasks import VirtualDevice, simulate_task
from shoal.tasks.recording import RECORDING_START_US, read_recording, write_recording
from shoal.wire.events import Event, new_ulid
from shoal.wire.package import TaskPackage, build_package
from shoal.wire.simulation import SimulationReport, sign_simulation

TOML = """
task = "{task}"
[[triggers]]
name = "click"
sequence = ["{wake}@*"]
[input]
scope = "since"
events = ["64@*", "click@*"]
[[outputs]]
name = "total"
[[outputs]]
name = "last"
kind = "feature"
dtype = "f32[1]"
[limits]
deadline_ms = {deadline_ms}
memory_mb = 512
runs_per_hour = 1
{more}
"""
ADDING = """
def run(ctx, batch):
    numbers = [event.content["n"] for event in batch.events if event.kind == 64]
    ctx.state["sum"] = ctx.state.get("sum", 0) + sum(numbers)
    ctx.features.put("last", "n", [float(numbers[-1])])
    ctx.emit("total", ctx.state["sum"])
"""
RANDOM = """
def run(ctx, batch):
    last = batch.events[-1]
    ctx.emit("total", [ctx.random.random(), ctx.now(), last.mono_us, last.boot, ctx.state])
    ctx.state["runs"] = ctx.state.get("runs", 0) + 1
"""
FAILING_AT_SIX = (
    ADDING
    + """
    if ctx.state["sum"] == 21:
        raise ValueError("twenty-one is too much")
"""
)
ENDLESS = "def run(ctx, batch):\n    while True:\n        pass\n"


@pytest.fixture
def source(tmp_path: Path) -> Callable[..., Path]:
    """Write a task's folder."""

    made = itertools.count()

    def write(code: str, **options: Any) -> Path:
        folder = tmp_path / f"source-{next(made)}"
        folder.mkdir()
        values = {"task": "sum", "wake": "click", "deadline_ms": 20_000, "more": ""} | options
        (folder / "task.toml").write_text(TOML.format(**values))
        (folder / "main.py").write_text(code)
        return folder

    return write


@pytest.fixture
def install(tmp_path: Path, source: Any) -> Callable[..., tuple[InstalledTask, TaskCode]]:
    """Build and unpack a task as a device does."""

    def unpack(code: str, **options: Any) -> tuple[InstalledTask, TaskCode]:
        built = build_package(source(code, **options), 1)
        with TaskPackage.open(built.bytes) as package:
            folder = package.unpack(tmp_path / built.sha256.hex())
        installed = InstalledTask(built.manifest, folder, built.sha256, "trial")
        return installed, task_code(installed, "onnx", {})

    return unpack


@pytest.fixture(scope="module")
def process() -> Iterator[VMPool]:
    with VMPool(VMPoolConfig(backend="process", size=1)) as pool:
        yield pool


@pytest.fixture
def inline() -> Iterator[VMPool]:
    with VMPool(VMPoolConfig(backend="inline")) as pool:
        yield pool


def trace(count: int, every: int = 3, first: int = 1) -> list[Event]:
    """Numbers (kind 64) from ``first`` on, with a click after each ``every`` of them."""
    made = []
    for number in range(first, first + count):
        ts_us = RECORDING_START_US + number * 1000
        entropy = number.to_bytes(10, "big")
        made.append(Event(new_ulid(ts_us, entropy), 64, "a", ts_us, content={"n": number}))
        if number % every == 0:
            made.append(Event(new_ulid(ts_us, b"click" + entropy[5:]), 4, "a", ts_us + 1))
    return made


# -- replaying -----------------------------------------------------------------------------


def test_a_clean_task_is_clean_and_repeats(install: Any, process: VMPool, inline: VMPool) -> None:
    task = install(ADDING)
    traces = [trace(9), trace(6)]
    outcomes = [simulate_task(*task, traces, pool) for pool in (process, process, inline)]
    for outcome in outcomes:
        assert (outcome.traces, outcome.runs, outcome.failures) == (2, 5, 0)
        assert outcome.message == ""
        # Each trace is a fresh device, and runs_per_hour = 1 does not hold a replay up.
        assert [value for _, value, _ in outcome.outputs] == [6, 21, 45, 6, 21]
        assert outcome.max_peak_kb > 0
    assert len({outcome.outputs_sha256 for outcome in outcomes}) == 1


def test_nothing_depends_on_the_day_of_the_replay(
    install: Any, process: VMPool, inline: VMPool
) -> None:
    task = install(RANDOM)
    first = simulate_task(*task, [trace(9)], process)
    time.sleep(0.01)  # other clocks
    again = simulate_task(*task, [trace(9)], inline)
    assert first.outputs == again.outputs
    assert first.outputs_sha256 == again.outputs_sha256
    assert len({value[0] for _, value, _ in first.outputs}) == 3


def test_the_digest_tells_outputs_apart(install: Any, inline: VMPool) -> None:
    """Negative control: other events, other code and other features give other digests."""
    digests = [
        simulate_task(*install(code), [events], inline).outputs_sha256
        for code, events in (
            (ADDING, trace(9)),
            (ADDING, trace(9, first=4)),
            (ADDING.replace("sum(numbers)", "len(numbers)"), trace(9)),
            (ADDING.replace("float(numbers[-1])", "1.0"), trace(9)),
        )
    ]
    assert len(set(digests)) == 4


def test_repeated_events_count_once(install: Any, inline: VMPool) -> None:
    twice = [event for event in trace(6) for _ in range(2)]
    outcome = simulate_task(*install(ADDING), [twice], inline)
    assert [value for _, value, _ in outcome.outputs] == [6, 21]


def test_a_failing_run_is_reported_with_its_message(install: Any, process: VMPool) -> None:
    outcome = simulate_task(*install(FAILING_AT_SIX), [trace(9)], process)
    assert (outcome.traces, outcome.runs, outcome.failures) == (1, 3, 1)
    assert outcome.message.startswith("ValueError: twenty-one is too much (main.py line")
    # What the failed run did is gone: the next one goes on from the state before it.
    assert [value for _, value, _ in outcome.outputs] == [6, 30]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def run(ctx, batch):\n    ctx.emit('secret', 1)\n", "secret"),
        ("def run(ctx, batch):\n    ctx.emit('total', float('nan'))\n", "nan"),
        ("import nothing_like_it\ndef run(ctx, batch):\n    pass\n", "nothing_like_it"),
        ("import os\ndef run(ctx, batch):\n    os._exit(3)\n", "worker"),
    ],
)
def test_every_kind_of_failure_has_words(
    install: Any, process: VMPool, code: str, said: str
) -> None:
    outcome = simulate_task(*install(code), [trace(3)], process)
    assert (outcome.runs, outcome.failures, outcome.outputs) == (1, 1, [])
    assert said in outcome.message


def test_a_task_that_always_fails_is_ended_early(install: Any, process: VMPool) -> None:
    task = install("def run(ctx, batch):\n    raise KeyError('x')\n")
    outcome = simulate_task(*task, [trace(300), trace(3)], process)
    assert outcome.traces == 1  # the long one was not played to its end
    assert outcome.failures == outcome.runs < 20
    assert "KeyError" in outcome.message


def test_an_endless_run_ends_at_its_deadline(install: Any, process: VMPool) -> None:
    outcome = simulate_task(*install(ENDLESS, deadline_ms=100), [trace(3)], process)
    assert (outcome.traces, outcome.runs, outcome.failures) == (1, 1, 1)
    assert "deadline" in outcome.message


def test_an_endless_replay_ends_at_the_timeout(install: Any) -> None:
    with VMPool(VMPoolConfig(backend="process", size=1)) as pool:
        task = install(ENDLESS, deadline_ms=60_000)
        outcome = simulate_task(*task, [trace(3)], pool, timeout_s=0.5)
    assert (outcome.traces, outcome.runs, outcome.failures) == (0, 0, 1)
    assert outcome.message == "the replay did not end within 0.5 s"


def test_events_that_cause_no_run(install: Any, inline: VMPool) -> None:
    outcome = simulate_task(*install(ADDING), [trace(2)], inline)
    assert (outcome.traces, outcome.runs, outcome.failures) == (1, 0, 0)
    assert simulate_task(*install(ADDING), [], inline).traces == 0


def test_a_wrong_event_is_refused(install: Any, inline: VMPool) -> None:
    wrong = Event(new_ulid(), 4, "a", 1, content={"x": float("nan")})
    with pytest.raises(InputError):
        simulate_task(*install(ADDING), [[wrong]], inline)


# -- with a cloud --------------------------------------------------------------------------


class Stage:
    """A cloud, its server, and a virtual device that plays one recording."""

    def __init__(self, folder: Path, pool: VMPool, events: list[Event]) -> None:
        config = CloudConfig(data_dir=folder / "cloud", open_enrolment=True)
        self.cloud = Cloud.open(config)
        self.server = CloudServer(self.cloud)
        self.server.__enter__()
        self.folder, self.pool = folder, pool
        self.recording = folder / "events.jsonl"
        write_recording(self.recording, events)
        self.agents: list[Agent] = []

    def agent(self, name: str, **options: Any) -> Agent:
        settings = {"check_every_s": 0.05, "timeout_s": 5.0, "tunnel": "off"} | options
        config = AgentConfig(data_dir=self.folder / name, server_url=self.server.url, **settings)
        self.agents.append(Agent(config, pool=self.pool).open())
        return self.agents[-1]

    def tester(self, name: str = "virtual", **options: Any) -> VirtualDevice:
        agent = self.agent(name, virtual=True)
        return VirtualDevice(agent, [self.recording], self.pool, **options)

    def draft(self, folder: Path) -> int:
        made = self.cloud.registry.publish(folder)
        policy = ReleasePolicy(simulation="required", min_devices=0)
        return self.cloud.releases.create(made.task, made.version, EVERYONE, policy, actor="test")

    def state(self, number: int) -> str:
        return str(self.cloud.releases.get(number).release.state)

    def reports(self, number: int) -> list[Any]:
        """The events of a release's history that tell of simulation tests."""
        table = tables.release_event
        with self.cloud.store.read() as connection:
            rows = connection.execute(sa.select(table).where(table.c.release == number)).all()
        return [row for row in rows if "simulation" in (row.evidence or {})]

    def until(self, condition: Callable[[], object], *movers: Any, timeout: float = 30.0) -> None:
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end, [agent.status() for agent in self.agents]
            busy = [mover.tick() for mover in movers]
            self.cloud.tick()
            if not any(busy):
                time.sleep(0.005)

    def close(self) -> None:
        for agent in self.agents:
            agent.close()
        self.server.__exit__(None, None, None)
        self.cloud.close()


@pytest.fixture
def stage(tmp_path: Path, process: VMPool) -> Iterator[Stage]:
    made = Stage(tmp_path / "stage", process, trace(9))
    yield made
    made.close()


def test_only_a_clean_report_takes_a_draft_on(stage: Stage, source: Any, process: VMPool) -> None:
    tester, plain = stage.tester(), stage.agent("plain")
    stage.until(lambda: tester.agent.status()["enrolled"], tester, plain)
    number = stage.draft(source(ADDING))
    stage.cloud.releases.start(number, actor="test")
    for _ in range(5):
        stage.cloud.tick()
        plain.tick()
    assert stage.state(number) == "draft"  # negative control: nobody has tested it
    stage.until(lambda: stage.state(number) != "draft", tester, plain)
    (row,) = stage.reports(number)
    assert row.actor == f"device {tester.agent.device.hex()}"
    assert row.reason == "simulation test passed"
    evidence = row.evidence
    assert evidence["simulation"] is True
    assert (evidence["traces"], evidence["runs"], evidence["failures"]) == (1, 3, 0)
    # What the report says is what a replay elsewhere gives: on these very bytes.
    (agent_row,) = tester.agent.packages.rows()
    installed = tester.agent.packages.load(agent_row)
    code = task_code(installed, "onnx", {})
    again = simulate_task(installed, code, [list(read_recording(stage.recording))], process)
    assert evidence["outputs_sha256"] == again.outputs_sha256.hex()
    assert tester.counts == {"tested": 1, "reported": 1}


def test_a_broken_draft_stays_one_and_says_why(stage: Stage, source: Any) -> None:
    tester, plain = stage.tester(), stage.agent("plain")
    number = stage.draft(source(FAILING_AT_SIX))
    stage.cloud.releases.start(number, actor="test")
    stage.until(lambda: tester.counts["reported"], tester, plain)
    for _ in range(20):
        stage.cloud.tick()
        plain.tick()
    assert stage.state(number) == "draft"
    (row,) = stage.reports(number)
    assert row.evidence["simulation"] is False
    assert "twenty-one is too much" in row.reason
    assert plain.status()["packages"] == []  # no real device ever got it
    # The next version is tested by itself, and goes on.
    better = stage.draft(source(ADDING))
    stage.cloud.releases.start(better, actor="test")
    stage.until(lambda: stage.state(better) != "draft", tester, plain)
    assert stage.state(number) in ("draft", "aborted")


def test_drafts_that_prove_nothing_stay_drafts(stage: Stage, source: Any) -> None:
    tester = stage.tester(timeout_s=2.0)
    radar = '[requires]\ncapabilities = ["radar"]\n'
    drafts = {
        stage.draft(source(ENDLESS, task="endless", deadline_ms=2500)): "did not end within 2 s",
        stage.draft(source(ADDING, task="radar", more=radar)): "incompatible",
        stage.draft(source(ADDING, task="quiet", wake="timer")): "none caused a run",
    }
    for number in drafts:
        stage.cloud.releases.start(number, actor="test")
    stage.until(lambda: tester.counts["reported"] == 3, tester)
    for number, said in drafts.items():
        assert stage.state(number) == "draft"
        (row,) = stage.reports(number)
        assert row.evidence["simulation"] is False
        assert said in row.reason


def test_reports_of_others_are_refused(stage: Stage, source: Any) -> None:
    """An ordinary device, and a forged signature, take no draft on."""
    tester, plain = stage.tester(), stage.agent("plain")
    stage.until(
        lambda: plain.status()["enrolled"] and tester.agent.status()["enrolled"], tester, plain
    )
    number = stage.draft(source(ADDING))
    clean = SimulationReport(1, number, "sum", 1, plain.device, 1, 3, 0, 10, 10, bytes(32))
    with pytest.raises(Exception, match="not an enrolled virtual device"):
        plain.report_simulation(clean)
    forged = sign_simulation(
        msgspec.structs.replace(clean, device=tester.agent.device), plain.identity.key
    )
    with pytest.raises(IntegrityError, match="not signed by that device"):
        stage.cloud.releases.record_simulation(number, forged)
    assert stage.state(number) == "draft"
    assert stage.reports(number) == []


def test_a_report_waits_while_the_cloud_is_away(
    stage: Stage, source: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tester = stage.tester()
    number = stage.draft(source(ADDING))
    send = tester.agent.report_simulation

    def away(_: SimulationReport) -> None:
        raise UnavailableError("the cloud cannot be reached: on purpose")

    monkeypatch.setattr(tester.agent, "report_simulation", away)
    stage.until(lambda: tester.counts["waited"], tester)
    assert stage.state(number) == "draft"
    monkeypatch.setattr(tester.agent, "report_simulation", send)
    stage.until(lambda: stage.reports(number), tester)
    assert (tester.counts["tested"], tester.counts["reported"]) == (1, 1)


def test_a_second_tester_finds_no_draft_and_goes_on(stage: Stage, source: Any) -> None:
    first = stage.tester()
    number = stage.draft(source(ADDING))
    stage.cloud.releases.start(number, actor="test")
    stage.until(lambda: stage.state(number) != "draft", first)
    second = stage.tester("virtual-2")
    stage.until(lambda: second.counts["tested"], second)
    stage.until(lambda: second.counts["no_draft"] or second.counts["reported"], second)
    assert second.counts == {"tested": 1, "no_draft": 1}


def test_a_version_that_is_offered_again_stands_by_its_report(stage: Stage, source: Any) -> None:
    """A report speaks of the package, so a second draft of it does not wait for another."""
    tester = stage.tester()
    folder = source(ADDING)
    first = stage.draft(folder)
    stage.until(lambda: tester.counts["reported"] == 1, tester)
    stage.cloud.releases.abort(first, actor="test")
    stage.until(lambda: not tester.agent.runners, tester)
    second = stage.draft(folder)
    stage.until(lambda: stage.state(second) == "simulated", tester)
    assert stage.reports(second) == []
    assert tester.counts["reported"] == 1


def test_it_wants_a_virtual_agent_and_recordings(stage: Stage, process: VMPool) -> None:
    plain = stage.agent("plain")
    with pytest.raises(InputError, match="virtual"):
        VirtualDevice(plain, [stage.recording], process)
    virtual = stage.agent("v", virtual=True)
    with pytest.raises(InputError, match="recordings"):
        VirtualDevice(virtual, [], process)
