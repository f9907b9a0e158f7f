"""kill -9 of the cloud and of the device, at every durable write: nothing lost, nothing twice."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from shoal.cloud import store as tables
from shoal.cloud.store import Store

pytestmark = pytest.mark.slow

PROGRAMS = Path(__file__).parent / "programs"
RESULTS = 40

DEVICE_POINTS = [
    "uplink.put", "uplink.welcomed.before", "uplink.welcomed.after", "uplink.numbered.before",
    "uplink.numbered.after", "tunnel.sent", "uplink.acked.before", "uplink.acked.after",
]  # fmt: skip
CLOUD_POINTS = ["ingest.commit.before", "ingest.commit.after", "ingest.acked.before"]


class World:
    """One cloud and any number of devices, each a process that may die."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(64)
        # The socket outlives the cloud, so that a restarted one has the same port.
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.cloud: subprocess.Popen[bytes] | None = None
        self.killed = 0

    def _start(
        self, arguments: list[str], armed: str | None, **options: object
    ) -> subprocess.Popen[bytes]:
        environ = {**os.environ, "SHOAL_CRASH_AT": armed or "", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, *arguments], env=environ, **options)  # type: ignore[call-overload,no-any-return]

    def start_cloud(self, armed: str | None = None) -> None:
        descriptor = self.listener.fileno()
        self.cloud = self._start(
            [str(PROGRAMS / "cloud_process.py"), str(self.folder), str(descriptor)],
            armed,
            pass_fds=[descriptor],
        )

    def start_device(
        self, device: bytes, armed: str | None = None, kind: str = "websocket", *more: str
    ) -> subprocess.Popen[bytes]:
        arguments = [
            str(PROGRAMS / "device_process.py"), str(self.folder / device.hex()), self.url,
            device.hex(), str(RESULTS), kind, *more,
        ]  # fmt: skip
        return self._start(arguments, armed)

    def keep_cloud(self) -> None:
        """Start the cloud again if it has been killed."""
        assert self.cloud is not None
        if self.cloud.poll() is not None:
            assert self.cloud.returncode == -signal.SIGKILL
            self.killed += 1
            self.start_cloud()

    def finish(self, device: bytes, process: subprocess.Popen[bytes], kind: str) -> None:
        """Start the device again as often as it is killed, until it has sent everything."""
        deadline = time.monotonic() + 60
        while True:
            self.keep_cloud()
            code = process.poll()
            if code == 0:
                return
            if code is not None:
                assert code == -signal.SIGKILL
                self.killed += 1
                process = self.start_device(device, kind=kind)
            if time.monotonic() > deadline:
                process.kill()
                raise AssertionError("the device does not finish")
            time.sleep(0.02)

    def check(self, device: bytes) -> None:
        """Exactly what was made is stored, once."""
        store = Store(f"sqlite:///{self.folder}/cloud.db")
        with store.read() as connection:

            def column(column: sa.Column[object]) -> list[object]:
                mine = column.table.c.device == device
                return list(connection.execute(sa.select(column).where(mine)).scalars())

            made = list(range(1, RESULTS + 1))
            assert sorted(column(tables.result.c.value)) == made  # type: ignore[type-var]
            keys = {device[:8] + number.to_bytes(8, "big") for number in made}
            assert set(column(tables.run_summary.c.run)) == keys
            assert set(column(tables.event_raw.c.id)) == keys
            assert column(tables.feature.c.value) == [str(RESULTS).encode()]
            assert column(tables.dead_letter.c.code) == []
        # What callbacks derive is exactly once as well: it is in the batch's transaction.
        assert store.get(f"seen.{device.hex()}") == RESULTS
        store.close()

    def close(self) -> None:
        if self.cloud is not None:
            self.cloud.kill()
            self.cloud.wait()
        self.listener.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"))
    made.start_cloud()
    yield made
    made.close()


@pytest.mark.parametrize("kind", ["websocket", "http"])
def test_without_a_kill_everything_arrives(world: World, kind: str) -> None:
    device = os.urandom(16)
    world.finish(device, world.start_device(device, kind=kind), kind)
    world.check(device)


@pytest.mark.parametrize("point", DEVICE_POINTS)
def test_a_device_killed_at_a_write_point(world: World, point: str) -> None:
    before = world.killed
    running = []
    for n in (1, 2) if "welcomed" not in point else (1,):
        device = os.urandom(16)
        running.append((device, world.start_device(device, f"{point}:{n}")))
    for device, process in running:
        assert process.wait(30) == -signal.SIGKILL  # the point was reached
        world.finish(device, process, "websocket")
        world.check(device)
    assert world.killed - before == len(running)


def test_a_device_that_commits_in_two_steps_is_caught(world: World) -> None:
    """Negative control: the check does see a result that a crash lost."""
    device = os.urandom(16)
    process = world.start_device(device, "uplink.put:3", "websocket", "split")
    assert process.wait(30) == -signal.SIGKILL
    world.finish(device, process, "websocket")
    with pytest.raises(AssertionError):
        world.check(device)


@pytest.mark.parametrize("point", CLOUD_POINTS)
def test_a_cloud_killed_at_a_write_point(tmp_path: Path, point: str) -> None:
    world = World(tmp_path)
    try:
        for n, kind in ((2, "websocket"), (2, "http")):
            if world.cloud is not None:
                world.cloud.kill()
                world.cloud.wait()
            world.start_cloud(f"{point}:{n}")
            before = world.killed
            devices = {os.urandom(16) for _ in range(2)}
            running = {device: world.start_device(device, kind=kind) for device in devices}
            for device, process in running.items():
                world.finish(device, process, kind)
                world.check(device)
            assert world.killed - before == 1
    finally:
        world.close()


def test_both_killed_again_and_again_at_random(tmp_path: Path) -> None:
    random_ = random.Random(4)
    world = World(tmp_path)
    world.start_cloud()
    device = os.urandom(16)
    process = world.start_device(device)
    try:
        for _ in range(6):
            time.sleep(random_.uniform(0.2, 1.2))
            victim = process if random_.random() < 0.5 else world.cloud
            assert victim is not None
            victim.kill()
            victim.wait()
            world.keep_cloud()
            if process.poll() is not None:
                process = world.start_device(device)
        world.finish(device, process, "websocket")
        world.check(device)
    finally:
        process.kill()
        process.wait()
        world.close()
