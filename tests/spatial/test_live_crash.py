"""``kill -9`` at every point of a durable index: nothing acknowledged is lost, nothing is twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from live_bench import SPECS, Model, build_plain, check, load_plain, make_places, rows_of
from live_process import STEPS, Counter

from shoal.spatial import journal as journal_module
from shoal.spatial.segments import SegmentStore

#: Every crash point, and passages at which to die there; the second of each runs always.
POINTS = [
    pytest.param(point, n, marks=[] if i == 1 else pytest.mark.slow, id=f"{point}-{n}")
    for point, passages in {
        "spatial.journal.before": (1, 2, 5, 9, 14),
        "spatial.journal.after": (1, 2, 5, 9, 14),
        "spatial.journal.synced": (1, 4, 11),
        "spatial.journal.rotated": (1, 2, 3, 5),
        "spatial.journal.removed": (1, 2, 4),
        "spatial.bundle.arrays": (1, 2, 3, 4, 6, 9, 12),
        "spatial.bundle.before": (1, 2, 3, 4, 6, 9, 12),
        "spatial.bundle.after": (1, 2, 3, 4, 6, 9, 12),
        "spatial.bundle.removed": (1, 2, 4, 7),
        "spatial.manifest.before": (1, 2, 3, 4, 6, 9),
        "spatial.manifest.after": (1, 2, 3, 4, 6, 9),
    }.items()
    for i, n in enumerate(passages)
]


@pytest.fixture(scope="module")
def process() -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment.pop("SHOAL_CRASH_AT", None)
    program = Path(__file__).with_name("live_process.py")
    with subprocess.Popen(
        [sys.executable, program],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as started:
        yield started
        assert started.stdin is not None
        started.stdin.close()


def run(process: subprocess.Popen[str], folder: Path, point: str, n: int, durability: str) -> int:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{folder} {point} {n} {durability}\n")
    process.stdin.flush()
    return int(process.stdout.readline())


def expected(steps: int) -> tuple[Model, list[str]]:
    """What the first so many steps of the process leave."""
    model, told = Model(), []
    for number in range(steps):
        if number % 13 == 12 or number % 7 == 6:
            continue
        if number % 5 == 4:
            model.delete(range(number % 4, 40, 4))
            told.append(f"delete:{number}")
        elif number % 6 == 5:
            told.append(f"checkin:{number}")
        elif number % 8 == 7:
            model.upsert(make_places(range(5, 25), seed=number))
        else:
            model.upsert(make_places(range(number % 9, 30, 5), seed=number))
            told.append(f"upsert:{number}")
    return model, told


def begun_and_done(folder: Path) -> tuple[int, int]:
    lines = Path(f"{folder}.log").read_text().splitlines()
    return (sum(x.startswith("begin") for x in lines), sum(x.startswith("done") for x in lines))


def survivor(folder: Path) -> tuple[SegmentStore, Counter]:
    counter = Counter()
    store = SegmentStore.open(
        folder, build_plain, load_plain, specs=SPECS, companion=counter, memtable_rows=12, fan_in=2
    )
    return store, counter


def judge(folder: Path, store: SegmentStore, counter: Counter) -> int:
    """Return how many steps the folder holds: those acknowledged, or the one begun as well."""
    begun, done = begun_and_done(folder)
    rows = rows_of(store.snapshot().columns())
    for steps in (done, begun):
        model, told = expected(steps)
        if (rows, counter.told) == (model.places, told):
            check(store.snapshot(), model, seeds=(steps,))
            return steps
    pytest.fail(f"{done} acknowledged, {begun} begun, and the folder holds neither")


@pytest.mark.parametrize(("point", "n"), POINTS)
def test_a_kill_loses_nothing_acknowledged(
    process: subprocess.Popen[str], tmp_path: Path, point: str, n: int
) -> None:
    folder = tmp_path / "index"
    status = run(process, folder, point, n, "fsync" if n % 2 or "synced" in point else "os")
    assert status == -signal.SIGKILL
    store, counter = survivor(folder)
    judge(folder, store, counter)
    # And it goes on from there: a write, a merge, and once more from the disk.
    model = Model()
    model.places = rows_of(store.snapshot().columns())
    columns = make_places(range(100, 120), seed=7)
    store.upsert(columns)
    model.upsert(columns)
    store.record("late", b"1")
    told = list(counter.told)
    store.compact()
    store.close()
    store, counter = survivor(folder)
    check(store.snapshot(), model, seeds=(1,))
    assert counter.told == told
    store.close()


def test_without_a_kill_all_steps_are_there(process: subprocess.Popen[str], tmp_path: Path) -> None:
    folder = tmp_path / "index"
    assert run(process, folder, "never", 1, "fsync") == 0
    store, counter = survivor(folder)
    assert judge(folder, store, counter) == STEPS
    store.close()


def test_an_index_that_skips_its_journal_is_caught(
    process: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "index"
    assert run(process, folder, "spatial.journal.after", 14, "os") == -signal.SIGKILL
    monkeypatch.setattr("shoal.spatial.durable.read_journal", lambda *_, **__: iter(()))
    store, counter = survivor(folder)
    with pytest.raises(pytest.fail.Exception):
        judge(folder, store, counter)
    store.close()


def test_a_torn_end_is_dropped_and_reported(tmp_path: Path) -> None:
    """Cut at every byte of the last frame: the write before it is there, it is not."""
    folder = tmp_path / "index"
    store = SegmentStore.open(folder, build_plain, load_plain, specs=SPECS)
    first, second = make_places([1, 2], seed=1), make_places([2, 3], seed=2)
    store.upsert(first)
    path = journal_module.journal_path(folder, 1)
    whole = path.stat().st_size
    store.upsert(second)
    store.close()
    data = path.read_bytes()
    model = Model()
    model.upsert(first)
    for size in (*range(whole, whole + 14), *range(whole + 14, len(data), 23), len(data) - 1):
        path.write_bytes(data[:size])
        with SegmentStore.open(folder, build_plain, load_plain) as store:
            check(store.snapshot(), model, seeds=(1,))
            assert store.durable is not None
            torn = store.durable.torn
            assert (torn.dropped if torn else 0) == size - whole
        assert path.stat().st_size == whole
    path.write_bytes(data)
    model.upsert(second)
    with SegmentStore.open(folder, build_plain, load_plain) as store:
        check(store.snapshot(), model)
        assert store.delete(np.array([3])) == 1
