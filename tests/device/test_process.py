"""The process backend when things die or lie: workers, the zygote, the agent itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from shoal.device.container import (
    RunReply,
    RunRequest,
    TaskCode,
    VMPool,
    VMPoolConfig,
    forking,
    probe_sandbox,
)
from shoal.wire.codes import ErrorCode
from shoal.wire.events import Event

ECHO = "def run(ctx, batch):\n    ctx.emit('out', batch.floats('x'))\n"
SLOW = "import time\ndef run(ctx, batch):\n    time.sleep(0.05); ctx.emit('out', 1)\n"


def write_task(folder: Path, source: str, task: str = "t", **more) -> TaskCode:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "main.py").write_text(textwrap.dedent(source))
    more = {"deadline_ms": 10_000, **more}
    return TaskCode(task, 1, folder, outputs={"out": ("result", "json")}, **more)


def ask(pool: VMPool, code: TaskCode, x: float = 0.0) -> Future[RunReply]:
    events = [Event(b"i" * 16, 64, "p", 0, content={"x": x})]
    return pool.submit(RunRequest(b"run" + str(x).encode(), code, events))


def pool_of(size: int = 1, **more) -> VMPool:
    return VMPool(VMPoolConfig(backend="process", size=size, queue_depth=1000, **more))


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def wait_until(condition, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_runs_survive_the_kill_of_any_worker(tmp_path: Path) -> None:
    """The run that a killed worker was on fails; each other run is answered, once."""
    code = write_task(tmp_path, SLOW)
    with pool_of(2) as pool:
        ask(pool, code).result(timeout=30)
        futures = [ask(pool, code, n) for n in range(30)]
        for _ in range(3):
            time.sleep(0.1)
            os.kill(pool.stats()["pids"][0], signal.SIGKILL)
        outcomes = [future.result(timeout=30).outcome for future in futures]
        assert ask(pool, code).result(timeout=30).outcome == 0
    assert outcomes.count(0) >= 27
    assert set(outcomes) <= {0, ErrorCode.MEMORY}


def test_no_run_is_lost_when_the_zygote_dies(tmp_path: Path) -> None:
    code = write_task(tmp_path, SLOW)
    with pool_of(2) as pool:
        ask(pool, code).result(timeout=30)
        workers = pool.stats()["pids"]
        zygote = int(Path(f"/proc/{workers[0]}/stat").read_text().rsplit(")", 1)[1].split()[1])
        futures = [ask(pool, code, n) for n in range(20)]
        time.sleep(0.1)
        os.kill(zygote, signal.SIGKILL)
        assert [future.result(timeout=30).outcome for future in futures] == [0] * 20
        assert pool.stats()["zygotes"] == 2
        assert wait_until(lambda: not any(map(is_alive, workers)))


def test_nothing_survives_the_kill_of_the_agent(tmp_path: Path) -> None:
    write_task(tmp_path, "def run(ctx, batch):\n    while True: pass\n")
    program = f"""
        import sys, time
        from pathlib import Path
        from shoal.device.container import RunRequest, TaskCode, VMPool, VMPoolConfig
        pool = VMPool(VMPoolConfig(backend="process", size=1))
        code = TaskCode("t", 1, Path({str(tmp_path)!r}), deadline_ms=60_000)
        pool.submit(RunRequest(b"r", code, []))
        while not pool.stats()["pids"]: time.sleep(0.01)
        print(pool.stats()["pids"][0], flush=True)
        time.sleep(60)
    """
    agent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
    )
    assert agent.stdout is not None
    worker = int(agent.stdout.readline())
    assert is_alive(worker)
    agent.kill()
    agent.wait()
    agent.stdout.close()
    assert wait_until(lambda: not is_alive(worker))


def test_close_leaves_no_process_and_no_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    code = write_task(tmp_path / "task", "def run(ctx, batch):\n    open('mine', 'w').write('x')\n")
    with pool_of(2) as pool:
        assert ask(pool, code).result(timeout=30).outcome == 0
        pids = pool.stats()["pids"]
        assert pids
    assert wait_until(lambda: not any(map(is_alive, pids)))
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        # What it finds open is the socket to the pool: garbage, a giant, a forged end.
        ("os.write(fd, b'garbage garbage')", ErrorCode.OUTPUT_TOO_LARGE),
        ("os.write(fd, (20).to_bytes(4, 'little') + b'x' * 20)", ErrorCode.VM_CRASHED),
        ("os.write(fd, (1 << 30).to_bytes(4, 'little'))", ErrorCode.OUTPUT_TOO_LARGE),
        ("os.close(fd)", ErrorCode.VM_CRASHED),
        ("os._exit(0)", ErrorCode.VM_CRASHED),
        ("os._exit(75)", ErrorCode.VM_CRASHED),  # says "replace me" and never runs
        ("signal.signal(signal.SIGALRM, signal.SIG_IGN)\n    while True: pass", ErrorCode.DEADLINE),
    ],
)
def test_a_task_that_tampers_with_its_worker(body: str, outcome: ErrorCode, tmp_path: Path) -> None:
    source = f"""import os, signal
def run(ctx, batch):
    fd = next(n for n in range(3, 20) if os.path.exists(f"/proc/self/fd/{{n}}"))
    {body}
"""
    bad = write_task(tmp_path / "bad", source, "bad", deadline_ms=700)
    good = write_task(tmp_path / "good", ECHO, "good")
    # Level 1: at level 2 it could not even look for the descriptor.
    with pool_of(sandbox_level=1) as pool:
        reply = ask(pool, bad).result(timeout=30)
        assert ErrorCode(reply.outcome) is outcome, reply.message
        assert "\n" not in reply.message
        assert ask(pool, good, 2.0).result(timeout=30).emits == [("out", [2.0], 0)]


def test_a_worker_that_goes_deaf_is_killed(tmp_path: Path) -> None:
    source = """
        import os
        def run(ctx, batch):
            for fd in range(3, 20):
                try:
                    os.close(fd)
                except OSError:
                    pass
            while True:
                pass
    """
    with pool_of() as pool:
        future = ask(pool, write_task(tmp_path, source))
        assert wait_until(lambda: pool.stats()["pids"])
        worker = pool.stats()["pids"][0]
        assert future.result(timeout=30).outcome == ErrorCode.VM_CRASHED
        assert wait_until(lambda: not is_alive(worker))


def test_an_undeclared_output_is_refused_by_the_pool_too(tmp_path: Path) -> None:
    source = """
        def run(ctx, batch):
            ctx.emitted.append(("secret", 1, 0))
    """
    with pool_of() as pool:
        reply = ask(pool, write_task(tmp_path, source)).result(timeout=30)
        assert reply.outcome == ErrorCode.SANDBOX_VIOLATION
        assert reply.emits == []
        assert pool.stats()["undeclared"] == 1


def test_a_tampered_counter_gains_one_deadline_at_most(tmp_path: Path) -> None:
    """The counter of ended runs lies in shared memory; the task finds and changes it."""
    source = """
        import gc
        def run(ctx, batch):
            gc.unfreeze()
            for thing in gc.get_objects():
                counter = thing if type(thing) is memoryview else None
                if counter is not None and counter.format == "Q" and not counter.readonly:
                    while True:
                        counter[0] += 1
            raise LookupError("found no counter")
    """
    code = write_task(tmp_path, source, deadline_ms=200)
    with pool_of() as pool:
        start = time.monotonic()
        reply = ask(pool, code).result(timeout=30)
        assert time.monotonic() - start < 10
    assert reply.outcome == ErrorCode.DEADLINE, reply.message


@pytest.mark.parametrize(
    ("source", "outcome", "words"),
    [
        ("def run(ctx, batch:\n", ErrorCode.EXCEPTION, "SyntaxError"),
        ("import numpy_of_mars\n", ErrorCode.IMPORT_REFUSED, "numpy_of_mars"),
        ("x = 1\n", ErrorCode.IMPORT_REFUSED, "no function 'run'"),
        ("raise SystemExit(4)\n", ErrorCode.EXCEPTION, "SystemExit"),
        ("import os\nos._exit(4)\n", ErrorCode.VM_CRASHED, "status 4"),
        ("while True: pass\n", ErrorCode.DEADLINE, "loading"),
        ("x = bytearray(1 << 30)\n", ErrorCode.MEMORY, "memory"),
    ],
)
def test_a_task_that_does_not_load(
    source: str, outcome: ErrorCode, words: str, tmp_path: Path
) -> None:
    bad = write_task(tmp_path / "bad", source, "bad", deadline_ms=200, memory_mb=64)
    good = write_task(tmp_path / "good", ECHO, "good")
    with pool_of(load_ms=700) as pool:
        replies = [future.result(timeout=30) for future in [ask(pool, bad, n) for n in range(4)]]
        assert {ErrorCode(reply.outcome) for reply in replies} == {outcome}, replies[0]
        assert words in replies[0].message
        assert ask(pool, good, 2.0).result(timeout=30).outcome == 0


def test_a_missing_package_is_told(tmp_path: Path) -> None:
    with pool_of() as pool:
        reply = ask(pool, TaskCode("t", 1, tmp_path / "gone")).result(timeout=30)
    assert reply.outcome == ErrorCode.IMPORT_REFUSED
    assert "main.py" in reply.message


def test_threads_left_behind_end_with_their_worker(tmp_path: Path) -> None:
    source = """
        import threading, time
        N = []
        def run(ctx, batch):
            N.append(1)
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
            ctx.emit("out", len(N))
    """
    with pool_of(sandbox_level=min(probe_sandbox(), 3)) as pool:
        code = write_task(tmp_path, source, threads=2)
        seen = [ask(pool, code, n).result(timeout=30).emits[0][1] for n in range(3)]
    assert seen == [1, 1, 1]


def test_scratch_is_empty_at_every_run(tmp_path: Path) -> None:
    source = """
        import os
        def run(ctx, batch):
            ctx.emit("out", sorted(os.listdir(".")))
            open("file", "w").write("x")
            os.makedirs("folder/deep")
            open("folder/deep/file", "w").write("x")
    """
    with pool_of() as pool:
        code = write_task(tmp_path, source)
        replies = [ask(pool, code, n).result(timeout=30) for n in range(3)]
        assert [reply.emits[0][1] for reply in replies] == [[], [], []]
        assert pool.stats()["started"] == 1


def test_children_of_a_task_do_not_outlive_its_worker(tmp_path: Path) -> None:
    """Level 0 lets a task fork; what it forks is in its worker's session."""
    source = """
        import os, time
        def run(ctx, batch):
            child = os.fork()
            if child == 0:
                time.sleep(600)
            ctx.emit("out", child)
    """
    pool = pool_of(sandbox_level=0)
    reply = ask(pool, write_task(tmp_path, source)).result(timeout=30)
    child = reply.emits[0][1]
    assert is_alive(child)
    pool.close()
    assert wait_until(lambda: not is_alive(child))


def test_a_worker_has_only_its_own_descriptors(tmp_path: Path) -> None:
    source = """
        import os
        def run(ctx, batch):
            links = {n: os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")
                     if os.path.exists(f"/proc/self/fd/{n}")}
            ctx.emit("out", sorted(t.split(":")[0] for t in links.values()))
    """
    with pool_of(sandbox_level=1) as pool:
        code = write_task(tmp_path, source)
        seen = ask(pool, code).result(timeout=30).emits[0][1]
    assert [name for name in seen if not name.startswith("/proc")] == ["/dev/null"] * 3 + ["socket"]


def test_a_broken_interpreter_is_told_and_not_tried_for_ever(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(forking, "_START", "raise SystemExit(9)")
    code = write_task(tmp_path, ECHO)
    with pool_of() as pool:
        reply = ask(pool, code).result(timeout=60)
        assert reply.outcome == ErrorCode.VM_CRASHED
        assert wait_until(lambda: "status 9" in ask(pool, code).result(timeout=60).message)
        assert pool.stats()["zygotes"] == 3


def test_a_slow_reader_gets_everything(tmp_path: Path) -> None:
    """More orders than the socket holds: the rest is written when there is room."""
    source = "def run(ctx, batch):\n    ctx.emit('out', len(batch.events[0].content['x']))\n"
    code = write_task(tmp_path, source)
    with pool_of() as pool:
        events = [Event(b"i" * 16, 64, "p", 0, content={"x": "y" * 100_000})]
        futures = [pool.submit(RunRequest(b"r", code, events)) for _ in range(200)]
        assert [f.result(timeout=60).emits[0][1] for f in futures] == [100_000] * 200


def test_the_same_events_give_the_same_bytes_everywhere(tmp_path: Path) -> None:
    source = """
        def run(ctx, batch):
            ctx.state["seen"] = sorted({e.page for e in batch})
            ctx.state[7] = ctx.random.random()
            ctx.emit("out", [ctx.random.random(), ctx.now(), batch.visit, batch.floats("x")])
            ctx.emit("out", {"nested": [1, None, True, "text", (1, 2)]}, ts_us=5)
            ctx.log("a line")
    """
    code = write_task(tmp_path, source, seed=11)
    events = [
        Event(bytes([n]) * 16, 64, f"page{n % 3}", n, n, 1, b"v" * 16, {"x": n / 7})
        for n in range(20)
    ]
    request = RunRequest(b"run", code, events, now_us=77, device=b"d" * 16)
    replies = []
    for config in (
        VMPoolConfig(backend="process", size=1),
        VMPoolConfig(backend="process", size=1, sandbox_level=0),
        VMPoolConfig(backend="inline"),
    ):
        with VMPool(config) as pool:
            replies += [pool.submit(request).result(timeout=30) for _ in range(2)]
    made = {(str(r.emits), str(r.features), r.state, tuple(r.log), r.outcome) for r in replies}
    assert len(made) == 1
    assert replies[0].outcome == 0
    # Another run of the same device draws other numbers.
    with VMPool(VMPoolConfig(backend="inline")) as pool:
        other = RunRequest(b"other", code, events, now_us=77, device=b"d" * 16)
        assert pool.submit(other).result().emits != replies[0].emits
