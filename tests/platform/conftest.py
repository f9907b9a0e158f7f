"""A real cloud over loopback and the task that the platform tests release."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shoal.cloud.config import CloudConfig
from shoal.cloud.http import CloudServer
from shoal.cloud.service import Cloud

sys.path.insert(0, str(Path(__file__).parent))

from platform_bench import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    config = CloudConfig(data_dir=tmp_path / "cloud", open_enrolment=True)
    with Cloud.open(config) as cloud, CloudServer(cloud) as server:
        made = Bench(cloud, server, tmp_path)
        yield made
        made.close()


@pytest.fixture
def task(tmp_path: Path) -> Callable[..., Path]:
    from platform_bench import write_task

    return lambda number, **options: write_task(tmp_path / f"task-{number}", **options)
