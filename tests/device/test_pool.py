"""The pool: order, limits, fairness, isolation, sharing, and a soak."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from shoal.device.container import RunReply, RunRequest, TaskCode, VMPool, VMPoolConfig
from shoal.wire.codes import ErrorCode
from shoal.wire.events import Event

FOLD = """
def run(ctx, batch):
    ctx.state["n"] = ctx.state.get("n", 0) + len(batch)
    ctx.emit("out", [ctx.state["n"], sum(batch.floats("x"))])
"""


def write_task(folder: Path, source: str, task: str = "t", version: int = 1, **more) -> TaskCode:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "main.py").write_text(source)
    more = {"deadline_ms": 10_000, **more}
    return TaskCode(task, version, folder, outputs={"out": ("result", "json")}, **more)


def event(x: float) -> Event:
    return Event(b"i" * 16, 64, "page", 1_000, content={"x": x})


def ask(pool: VMPool, code: TaskCode, number: int = 0, **more) -> Future[RunReply]:
    run = number.to_bytes(16, "big")
    return pool.submit(RunRequest(run, code, more.pop("events", [event(number)]), **more))


def value(future: Future[RunReply]):
    reply = future.result(timeout=60)
    assert reply.outcome == 0, (reply.outcome, reply.message)
    return reply.emits[0][1]


@pytest.fixture(scope="module")
def pool():
    with VMPool(VMPoolConfig(backend="process", size=2, queue_depth=100_000)) as made:
        yield made


def test_replies_belong_to_their_requests(pool: VMPool, tmp_path: Path) -> None:
    code = write_task(tmp_path, FOLD)
    futures = [ask(pool, code, number) for number in range(3000)]
    for number, future in enumerate(futures):
        reply = future.result(timeout=60)
        assert reply.run == number.to_bytes(16, "big")
        assert reply.emits == [("out", [1, float(number)], 0)]
        assert reply.backend == "process"
    assert pool.stats()["waiting"] == 0


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    batches=st.lists(st.lists(st.floats(-1e9, 1e9), max_size=20), min_size=1, max_size=12),
)
def test_state_folds_over_runs_like_a_plain_loop(
    pool: VMPool, tmp_path_factory: pytest.TempPathFactory, batches: list[list[float]]
) -> None:
    code = write_task(tmp_path_factory.getbasetemp() / "fold", FOLD)
    state, seen = None, 0
    for batch in batches:
        future = ask(pool, code, events=[event(x) for x in batch], state=state)
        seen += len(batch)
        assert value(future) == [seen, sum(batch)]
        state = future.result().state


def test_large_batches_travel_whole(pool: VMPool, tmp_path: Path) -> None:
    source = (
        "def run(ctx, batch):\n    ctx.emit('out', sum(len(e.content['text']) for e in batch))\n"
    )
    code = write_task(tmp_path, source)
    events = [Event(b"i" * 16, 64, "p", 0, content={"text": "x" * 8000}) for _ in range(1000)]
    futures = [ask(pool, code, events=events) for _ in range(4)]
    assert [value(future) for future in futures] == [8_000_000] * 4


def test_failures_do_not_disturb_the_runs_around_them(pool: VMPool, tmp_path: Path) -> None:
    source = """
import os, time
def run(ctx, batch):
    x = int(batch.floats("x")[0])
    if x % 100 == 17: os._exit(3)
    if x % 100 == 43: raise ValueError("no")
    if x == 71:
        while True: pass
    ctx.emit("out", x)
"""
    code = write_task(tmp_path, source, deadline_ms=300)
    futures = [ask(pool, code, number) for number in range(300)]
    for number, future in enumerate(futures):
        reply = future.result(timeout=60)
        wanted = 0
        if number % 100 == 17:
            wanted = ErrorCode.VM_CRASHED
        elif number % 100 == 43:
            wanted = ErrorCode.EXCEPTION
        elif number == 71:
            wanted = ErrorCode.DEADLINE
        assert reply.outcome == wanted, (number, reply)
        assert [entry[1] for entry in reply.emits] == ([number] if not wanted else [])


def test_nothing_leaks_from_task_to_task(tmp_path: Path) -> None:
    """Modules, builtins, environment and the random module: another task sees none of it."""
    dirty = """
import builtins, json, os, random, sys
MARK = []
def run(ctx, batch):
    MARK.append(1)
    builtins.leak = 1; json.leak = 1; os.environ["LEAK"] = "1"; random.seed(7)
    sys.modules["leak"] = sys
    ctx.emit("out", len(MARK))
"""
    clean = """
import builtins, json, os, sys
def run(ctx, batch):
    ctx.emit("out", [hasattr(builtins, "leak"), hasattr(json, "leak"), "LEAK" in os.environ,
                     "leak" in sys.modules])
"""
    with VMPool(VMPoolConfig(backend="process", size=1, resident=1)) as pool:
        first = write_task(tmp_path / "a", dirty, "a")
        assert [value(ask(pool, first)) for _ in range(3)] == [1, 2, 3]  # warm for its own runs
        second = write_task(tmp_path / "b", clean, "b")
        assert value(ask(pool, second)) == [False, False, False, False]
        newer = write_task(tmp_path / "a2", dirty, "a", version=2)
        assert value(ask(pool, newer)) == 1


def test_negative_control_inline_leaks(tmp_path: Path) -> None:
    source = "import json\ndef run(ctx, batch):\n    ctx.emit('out', hasattr(json, 'leak9'))\n"
    writes = "import json\ndef run(ctx, batch):\n    json.leak9 = 1; ctx.emit('out', 0)\n"
    import json

    try:
        with VMPool(VMPoolConfig(backend="inline")) as pool:
            value(ask(pool, write_task(tmp_path / "a", writes, "a")))
            assert value(ask(pool, write_task(tmp_path / "b", source, "b"))) is True
    finally:
        del json.leak9


def test_idle_workers_keep_their_task_until_the_place_is_needed(tmp_path: Path) -> None:
    count = "N = []\ndef run(ctx, batch):\n    N.append(1); ctx.emit('out', len(N))\n"
    codes = [write_task(tmp_path / name, count, name) for name in ("a", "b", "c")]
    with VMPool(VMPoolConfig(backend="process", size=1, resident=2)) as pool:
        a, b, c = codes
        assert [value(ask(pool, code)) for code in (a, b, a, b)] == [1, 1, 2, 2]
        assert value(ask(pool, c)) == 1  # takes the place of a, idle longest
        assert [value(ask(pool, code)) for code in (b, a)] == [3, 1]


def test_workers_are_recycled_and_no_run_is_lost(tmp_path: Path) -> None:
    count = "N = []\ndef run(ctx, batch):\n    N.append(1); ctx.emit('out', len(N))\n"
    code = write_task(tmp_path, count)
    config = VMPoolConfig(backend="process", size=1, recycle_after=50, queue_depth=10_000)
    with VMPool(config) as pool:
        seen = [value(future) for future in [ask(pool, code, n) for n in range(500)]]
        started = pool.stats()["started"]
    assert max(seen) <= 50
    assert seen.count(1) >= 10
    assert started >= 10


def test_a_worker_that_grows_is_recycled(tmp_path: Path) -> None:
    source = """
KEEP = []
def run(ctx, batch):
    KEEP.append(bytearray(5 << 20))
    ctx.emit('out', len(KEEP))
"""
    code = write_task(tmp_path, source, memory_mb=512)
    with VMPool(VMPoolConfig(backend="process", size=1, recycle_growth_mb=16)) as pool:
        seen = [value(ask(pool, code, n)) for n in range(20)]
    assert max(seen) < 8


def test_a_full_queue_refuses_the_newest(tmp_path: Path) -> None:
    source = "import time\ndef run(ctx, batch):\n    time.sleep(0.2); ctx.emit('out', 1)\n"
    code = write_task(tmp_path, source)
    other = write_task(tmp_path / "other", FOLD, "other")
    with VMPool(VMPoolConfig(backend="process", size=1, queue_depth=3)) as pool:
        futures = [ask(pool, code, n) for n in range(10)]
        unaffected = ask(pool, other, 1)
        outcomes = [future.result(timeout=60).outcome for future in futures]
        assert value(unaffected) == [1, 1.0]
        assert pool.stats()["refused"] == outcomes.count(ErrorCode.RATE_LIMITED)
    accepted = outcomes.index(ErrorCode.RATE_LIMITED)
    assert accepted >= 3
    assert outcomes == [0] * accepted + [ErrorCode.RATE_LIMITED] * (10 - accepted)


def test_a_flood_of_one_task_does_not_starve_another(tmp_path: Path) -> None:
    source = "import time\ndef run(ctx, batch):\n    time.sleep(0.002); ctx.emit('out', 1)\n"
    flood = write_task(tmp_path / "a", source, "a")
    quiet = write_task(tmp_path / "b", FOLD, "b")
    with VMPool(VMPoolConfig(backend="process", size=1, queue_depth=10_000)) as pool:
        value(ask(pool, flood))
        futures = [ask(pool, flood, n) for n in range(1500)]
        value(ask(pool, quiet))
        waiting = sum(not future.done() for future in futures)
        assert waiting > 1000  # it did not have to wait for the flood to end
        assert [value(future) for future in futures] == [1] * 1500


def test_many_threads_share_a_pool(pool: VMPool, tmp_path: Path) -> None:
    code = write_task(tmp_path, FOLD)
    problems: list[str] = []

    def work(base: int) -> None:
        for number in range(base, base + 200):
            got = value(ask(pool, code, number))
            if got != [1, float(number)]:
                problems.append(f"{number}: {got}")

    threads = [threading.Thread(target=work, args=(base * 1000,)) for base in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert problems == []


def test_callbacks_may_submit_again(pool: VMPool, tmp_path: Path) -> None:
    code = write_task(tmp_path, FOLD)
    finished = threading.Event()
    left = [50]

    def again(future: Future[RunReply]) -> None:
        left[0] -= 1
        if left[0]:
            ask(pool, code, left[0]).add_done_callback(again)
        else:
            finished.set()

    ask(pool, code).add_done_callback(again)
    assert finished.wait(30)


def test_close_answers_everything(tmp_path: Path) -> None:
    source = "import time\ndef run(ctx, batch):\n    time.sleep(30)\n"
    code = write_task(tmp_path, source, deadline_ms=60_000)
    pool = VMPool(VMPoolConfig(backend="process", size=1))
    futures = [ask(pool, code, n) for n in range(5)]
    time.sleep(0.2)
    start = time.monotonic()
    pool.close()
    pool.close()  # a second time is fine
    assert time.monotonic() - start < 10
    assert [future.result(timeout=1).outcome for future in futures] == [ErrorCode.CANCELLED] * 5
    assert ask(pool, code).result(timeout=1).outcome == ErrorCode.CANCELLED


def test_a_cancelled_future_is_harmless(pool: VMPool, tmp_path: Path) -> None:
    code = write_task(tmp_path, FOLD)
    futures = [ask(pool, code, n) for n in range(20)]
    for future in futures[::2]:
        future.cancel()
    assert value(ask(pool, code, 5)) == [1, 5.0]
    assert all(future.cancelled() or value(future) for future in futures)


def test_prewarmed_task_runs(tmp_path: Path) -> None:
    code = write_task(tmp_path, FOLD)
    with VMPool(VMPoolConfig(backend="process", size=2, prewarm=2)) as pool:
        pool.prewarm(code)
        assert pool.stats()["started"] == 2
        assert value(ask(pool, code, 3)) == [1, 3.0]
        pool.prewarm(code)
        assert pool.stats()["started"] == 2


def test_a_shorter_deadline_may_be_asked_for(tmp_path: Path) -> None:
    source = "import time\ndef run(ctx, batch):\n    time.sleep(20)\n"
    code = write_task(tmp_path, source, deadline_ms=60_000)
    with VMPool(VMPoolConfig(backend="process", size=1)) as pool:
        request = RunRequest(b"r", code, [])
        reply = pool.submit(request, deadline_ms=100).result(timeout=15)
    assert reply.outcome == ErrorCode.DEADLINE
    assert "main.py line 3" in reply.message


@pytest.mark.parametrize(
    "wrong",
    [{"size": 0}, {"backend": "thread"}, {"queue_depth": 0}, {"sandbox_level": 4}, {"threads": 2}],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        VMPoolConfig(**wrong)


@pytest.mark.slow
def test_soak_of_a_hundred_thousand_runs(tmp_path: Path) -> None:
    """No reply is lost, and the memory of the pool's process stays flat."""

    def resident_kb() -> int:
        fields = Path("/proc/self/statm").read_text().split()
        return int(fields[1]) * 4

    code = write_task(tmp_path, FOLD)
    config = VMPoolConfig(backend="process", size=2, queue_depth=5000, recycle_after=10_000)
    with VMPool(config) as pool:
        good = 0
        after_first = 0
        for block in range(20):
            futures = [ask(pool, code, n) for n in range(5000)]
            good += sum(future.result(timeout=60).outcome == 0 for future in futures)
            if block == 1:
                after_first = resident_kb()
        del futures
        grown = resident_kb() - after_first
        stats = pool.stats()
    assert good == 100_000
    assert stats["runs"] == 100_000
    assert stats["waiting"] == stats["busy"] == 0
    assert grown < 16_000
