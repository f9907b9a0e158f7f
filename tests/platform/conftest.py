"""A real cloud over loopback and the task that the platform tests release."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from platform_bench import Bench, open_bench, write_task


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with open_bench(tmp_path) as opened:
        yield opened


@pytest.fixture
def task(tmp_path: Path) -> Callable[..., Path]:
    return lambda number, **options: write_task(tmp_path / f"task-{number}", **options)
