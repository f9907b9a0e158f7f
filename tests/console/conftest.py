"""A served cloud with the console on it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.cloud.config import CloudConfig
from shoal.cloud.http import CloudServer
from shoal.cloud.service import Cloud
from shoal.console import create_console

sys.path.insert(0, str(Path(__file__).parent))

from console_bench import ConsoleBench


@pytest.fixture(scope="session")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ConsoleBench, str]]:
    """A filled cloud that tests only look at, and its address."""
    yield from _served(tmp_path_factory.mktemp("lively"), fill=True)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[tuple[ConsoleBench, str]]:
    """An empty cloud that a test may do with as it likes, and its address."""
    yield from _served(tmp_path, fill=False)


def _served(folder: Path, *, fill: bool) -> Iterator[tuple[ConsoleBench, str]]:
    with Cloud.open(CloudConfig(data_dir=folder / "cloud", open_enrolment=True)) as cloud:
        made = ConsoleBench(cloud, folder)
        if fill:
            made.fill()
        with CloudServer(cloud, mounts={"/": create_console(cloud)}) as server:
            yield made, server.url
