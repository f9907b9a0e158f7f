"""The inline backend and what both backends share."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from shoal.device.container import RunReply, RunRequest, TaskCode, VMPool, VMPoolConfig
from shoal.device.container.messages import RunEvent
from shoal.wire.codes import ErrorCode
from shoal.wire.events import Event


def run(
    folder: Path, source: str, task: str = "t", deadline_ms: int = 5000, level: int = 0, **files
) -> RunReply:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "main.py").write_text(source)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    code = TaskCode(
        task, 1, folder, outputs={"out": ("result", "json")}, sandbox_level=level, output_kb=16
    )
    events = [Event(b"i" * 16, 64, "p", 5, content={"x": 1.5})]
    return pool_run(RunRequest(b"r", code, events, now_us=5), deadline_ms)


def pool_run(request: RunRequest, deadline_ms: int) -> RunReply:
    with VMPool(VMPoolConfig(backend="inline")) as pool:
        future = pool.submit(request, deadline_ms=deadline_ms)
        assert future.done()
        return future.result()


def test_a_task_sees_events_as_the_wire_has_them() -> None:
    assert RunEvent.__struct_fields__ == Event.__struct_fields__


def test_it_runs_and_counts(tmp_path: Path) -> None:
    code = TaskCode("t", 1, tmp_path, outputs={"out": ("result", "json")})
    (tmp_path / "main.py").write_text(
        "def run(ctx, batch):\n    ctx.emit('out', batch.floats('x'))\n"
    )
    with VMPool(VMPoolConfig(backend="inline")) as pool:
        pool.prewarm(code)
        for x in (1.0, 2.0):
            events = [Event(b"i" * 16, 64, "p", 5, content={"x": x})]
            reply = pool.submit(RunRequest(b"r", code, events)).result()
            assert reply.emits == [("out", [x], 0)]
        stats = pool.stats()
        assert (stats["backend"], stats["sandbox_level"], stats["runs"]) == ("inline", 0, 2)
    closed = pool.submit(RunRequest(b"r", code, [])).result()
    assert closed.outcome == ErrorCode.CANCELLED


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ("raise SystemExit(0)", ErrorCode.EXCEPTION),
        ("1 / 0", ErrorCode.EXCEPTION),
        ("import no_such_module", ErrorCode.IMPORT_REFUSED),
        ("raise MemoryError", ErrorCode.MEMORY),
        ("ctx.emit('out', 'x' * 20_000)", ErrorCode.OUTPUT_TOO_LARGE),
        ("ctx.state['x'] = 'x' * (2 << 20)", ErrorCode.OUTPUT_TOO_LARGE),
        ("ctx.emit('other', 1)", ErrorCode.EXCEPTION),
        ("ctx.emit('out', float('inf'))", ErrorCode.ENGINE_ERROR),
        ("ctx.emit('out', {1: object()})", ErrorCode.EXCEPTION),
        ("ctx.state = [1]", ErrorCode.EXCEPTION),
        ("import time; time.sleep(0.2)", ErrorCode.DEADLINE),
    ],
)
def test_failures_have_the_codes_of_the_sandbox(
    body: str, outcome: ErrorCode, tmp_path: Path
) -> None:
    reply = run(tmp_path, f"def run(ctx, batch):\n    {body}\n", deadline_ms=100)
    assert ErrorCode(reply.outcome) is outcome, reply.message
    assert reply.message
    assert "\n" not in reply.message
    assert (reply.emits, reply.state) == ([], None)


def test_a_task_that_wants_a_sandbox_is_refused(tmp_path: Path) -> None:
    reply = run(tmp_path, "def run(ctx, batch): pass\n", level=1)
    assert reply.outcome == ErrorCode.SANDBOX_VIOLATION


def test_a_task_cannot_change_what_its_caller_holds(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(
        "def run(ctx, batch):\n    batch.events[0].content['x'] = 9\n"
    )
    event = Event(b"i" * 16, 64, "p", 5, content={"x": 1.5})
    reply = pool_run(RunRequest(b"r", TaskCode("t", 1, tmp_path), [event]), 1000)
    assert reply.outcome == 0
    assert event.content == {"x": 1.5}


def test_packages_may_have_modules_of_the_same_name(tmp_path: Path) -> None:
    source = "import helper\ndef run(ctx, batch):\n    ctx.emit('out', helper.NAME)\n"
    first = run(tmp_path / "a", source, "a", helper="NAME = 'a'\n")
    second = run(tmp_path / "b", source, "b", helper="NAME = 'b'\n")
    assert [reply.emits[0][1] for reply in (first, second)] == ["a", "b"]


def test_a_saved_state_that_is_damaged_is_told(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("def run(ctx, batch): pass\n")
    request = RunRequest(b"r", TaskCode("t", 1, tmp_path), [], state=b"\xc1 damaged")
    reply = pool_run(request, 1000)
    assert reply.outcome == ErrorCode.EXCEPTION
    assert "state" in reply.message


def test_the_clock_of_a_run_is_its_thread(tmp_path: Path) -> None:
    reply = run(tmp_path, "import time\ndef run(ctx, batch):\n    time.sleep(0.05)\n")
    assert reply.wall_us >= 50_000
    assert reply.cpu_us < reply.wall_us
    assert time.thread_time() >= 0
