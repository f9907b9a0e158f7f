"""``kill -9`` of the agent at every durable write: no half package, nothing lost, nothing twice."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from platform_bench import BROKEN, Bench, open_bench, totals, write_task

from shoal.cloud import store as tables
from shoal.device import DeviceStore
from shoal.device.packages import PackageStore
from shoal.wire.package import TaskPackage

pytestmark = pytest.mark.slow  # two starts of a process for each point

_PROGRAM = Path(__file__).with_name("agent_process.py")
_VISITS = 150  # more than two commits of runs

#: Points on the way from nothing to a good version, and passages after which to kill.
FIRST = [
    ("sync.wanted.before", 1), ("sync.wanted.after", 1), ("sync.download", 1),
    ("sync.downloaded", 1), ("sync.stored", 1), ("sync.unpacked", 1), ("sync.verified", 1),
    ("sync.flip.before", 1), ("sync.flip.after", 1),
    ("runner.commit.begin", 1), ("runner.commit.before", 1), ("runner.commit.before", 3),
    ("runner.commit.after", 1), ("runner.commit.after", 2),
    ("uplink.put", 2), ("uplink.numbered.before", 1), ("uplink.numbered.after", 2),
    ("tunnel.sent", 1), ("tunnel.sent", 2), ("uplink.acked.before", 1), ("uplink.acked.after", 1),
    ("uplink.welcomed.before", 1), ("uplink.welcomed.after", 1),
]  # fmt: skip
#: Points on the way from a good version to one that fails and back.
REVERT = [
    ("sync.flip.before", 1), ("sync.flip.after", 1),
    ("sync.revert.before", 1), ("sync.revert.after", 1),
    ("runner.commit.before", 1), ("runner.commit.before", 3),
    ("runner.commit.after", 2), ("runner.commit.after", 3),
]  # fmt: skip


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A cloud that has released a good version; every test is a device of its own."""
    with open_bench(tmp_path_factory.mktemp("first")) as bench:
        bench.release(bench.publish(write_task(bench.folder / "task-1")))
        yield bench


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A cloud that has released a broken version to devices that had a good one."""
    with open_bench(tmp_path_factory.mktemp("broken")) as bench:
        bench.release(bench.publish(write_task(bench.folder / "task-1")))
        starts = [
            start(bench, f"{name}-{number}", "count-1:good", visits=20) for name, number in REVERT
        ]
        assert [process.wait() for process in starts] == [0] * len(starts)
        # Unwatched: else the guardrail takes it back after the first few devices.
        version = bench.publish(write_task(bench.folder / "task-2", code=BROKEN))
        bench.release(version, watch_full_s=0)
        yield bench


def start(
    bench: Bench, device: str, wanted: str, crash: str = "", visits: int = _VISITS
) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment.pop("SHOAL_CRASH_AT", None)
    if crash:
        environment["SHOAL_CRASH_AT"] = crash
    return subprocess.Popen(
        [sys.executable, _PROGRAM, bench.server.url, bench.folder / device, str(visits), wanted],
        env=environment,
    )


def run(bench: Bench, device: str, wanted: str, crash: str = "", visits: int = _VISITS) -> int:
    status = start(bench, device, wanted, crash, visits).wait(timeout=120)
    assert status in (0, -signal.SIGKILL)
    return status


def check_packages(folder: Path) -> None:
    """Whatever is named by the database is whole on the disk."""
    with DeviceStore(folder) as store:
        packages = PackageStore(folder, store)
        rows = {(row.task, row.version): row for row in packages.rows()}
        for task, version in packages.active().items():
            packages.load(rows[task, version], thorough=True)
    for path in (folder / "content").iterdir():
        if path.suffix != ".part":
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
            TaskPackage.open(path).close()


def check_results(bench: Bench, device: str, visits: int = _VISITS, runs: int = 0) -> None:
    identity = bytes.fromhex((bench.folder / device / "identity" / "device").read_text().strip())
    mine = [row for row in bench.rows(tables.result) if row.device == identity]
    assert [row.value for row in sorted(mine, key=lambda row: row.ts_us)] == totals(visits)
    assert {row.version for row in mine} == {1}
    good = [
        row.run
        for row in bench.rows(tables.run_summary)
        if row.device == identity and not row.outcome
    ]
    assert len(good) == visits  # each run was stored once
    assert not bench.rows(tables.dead_letter)


def test_without_a_kill_it_ends_well(first: Bench) -> None:
    assert run(first, "calm", "count-1:good") == 0
    check_packages(first.folder / "calm")
    check_results(first, "calm")


@pytest.mark.parametrize(("point", "number"), FIRST)
def test_killed_on_the_way_to_a_good_version(first: Bench, point: str, number: int) -> None:
    device = f"{point}-{number}"
    # The kill must have happened: a point that is never passed would prove nothing.
    assert run(first, device, "count-1:good", f"{point}:{number}") == -signal.SIGKILL
    if (first.folder / device / "content").exists():
        check_packages(first.folder / device)
    assert run(first, device, "count-1:good") == 0
    check_packages(first.folder / device)
    check_results(first, device)


@pytest.mark.parametrize(("point", "number"), REVERT)
def test_killed_while_a_version_fails_its_trial(broken: Bench, point: str, number: int) -> None:
    device = f"{point}-{number}"
    status = run(broken, device, "count-2:bad", f"{point}:{number}", visits=40)
    assert status == -signal.SIGKILL
    check_packages(broken.folder / device)
    assert run(broken, device, "count-2:bad", visits=40) == 0
    check_packages(broken.folder / device)
    check_results(broken, device, 40)


def test_killed_again_and_again(first: Bench) -> None:
    """One device, killed at a later point at every start."""
    points = [f"{name}:{number}" for name, number in FIRST[:9]]
    kills = sum(run(first, "unlucky", "count-1:good", crash) == -signal.SIGKILL for crash in points)
    assert kills >= 8
    assert run(first, "unlucky", "count-1:good") == 0
    check_results(first, "unlucky")


def test_killed_from_outside_at_any_moment(first: Bench) -> None:
    for part in range(6):
        process = start(first, "outside", "count-1:good")
        try:
            process.wait(timeout=0.6 + 0.1 * part)
        except subprocess.TimeoutExpired:
            process.kill()
        process.wait()
    assert run(first, "outside", "count-1:good") == 0
    check_packages(first.folder / "outside")
    check_results(first, "outside")
