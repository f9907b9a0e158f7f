"""A task folder runs on a recording as on a device."""

from __future__ import annotations

import textwrap

import pytest

from shoal.core.errors import InputError
from shoal.device.container import probe_sandbox
from shoal.tasks.playback import play_task
from shoal.tasks.recording import RECORDING_START_US
from shoal.wire.events import Event, new_ulid

TOML = """
task = "sum"
[[triggers]]
name = "click"
sequence = ["click@*"]
[input]
scope = "since"
events = ["64@*", "click@*"]
[[outputs]]
name = "total"
bytes_per_day = 100000
[limits]
deadline_ms = 2000
runs_per_hour = 1
"""


@pytest.fixture
def task(tmp_path):
    def write(code: str, toml: str = TOML):
        (tmp_path / "task.toml").write_text(toml)
        (tmp_path / "main.py").write_text(textwrap.dedent(code))
        return tmp_path

    return write


def events(count: int, every: int = 3) -> list[Event]:
    """Numbers 1 to count (kind 64), with a click after each ``every`` of them."""
    made = []
    for number in range(1, count + 1):
        ts_us = RECORDING_START_US + number * 1000
        entropy = number.to_bytes(10, "big")
        made.append(Event(new_ulid(ts_us, entropy), 64, "a", ts_us, content={"n": number}))
        if number % every == 0:
            made.append(Event(new_ulid(ts_us, b"click" + entropy[5:]), 4, "a", ts_us + 1))
    return made


ADDING = """
def run(ctx, batch):
    ctx.state["sum"] = ctx.state.get("sum", 0) + sum(int(n) for n in batch.floats("n"))
    ctx.emit("total", ctx.state["sum"])
"""


def test_results_equal_a_plain_fold(task):
    played = play_task(task(ADDING), events(30))
    assert [run["total"] for run in played.emitted] == [n * (n + 1) // 2 for n in range(3, 31, 3)]
    assert played.events == 40
    assert not played.failures
    assert not played.dropped


def test_the_same_recording_gives_the_same_results(task):
    code = """
    def run(ctx, batch):
        ctx.emit("total", [ctx.random.random(), ctx.now(), len(batch.events)])
    """
    first, second = (play_task(task(code), events(9)) for _ in range(2))
    assert first.emitted == second.emitted
    assert len({str(run) for run in first.emitted}) == 3


def test_repeated_events_count_once(task):
    twice = [event for event in events(6) for _ in range(2)]
    played = play_task(task(ADDING), twice)
    assert [run["total"] for run in played.emitted] == [6, 21]


@pytest.mark.parametrize(
    ("code", "outcome", "said"),
    [
        ("def run(ctx, batch):\n    1 / 0\n", "exception", "ZeroDivisionError"),
        ("def run(ctx, batch):\n    while True:\n        pass\n", "deadline", ""),
        ("def run(ctx, batch):\n    ctx.emit('secret', 1)\n", None, "secret"),
        ("def run(ctx, batch):\n    ctx.emit('total', float('nan'))\n", "engine_error", "nan"),
        ("import os\ndef run(ctx, batch):\n    os._exit(3)\n", "vm_crashed", ""),
    ],
)
def test_failures_are_named(task, code, outcome, said):
    toml = TOML.replace("deadline_ms = 2000", "deadline_ms = 150")
    played = play_task(task(code, toml), events(3))
    assert played.failures
    assert played.emitted == []
    if outcome is not None:
        assert played.runs[0].outcome == outcome
    assert said in played.runs[0].message


def test_a_task_that_always_fails_is_ended_early(task):
    played = play_task(task("def run(ctx, batch):\n    raise KeyError('x')\n"), events(300))
    assert played.stopped
    assert len(played.runs) < 20


@pytest.mark.skipif(probe_sandbox() < 2, reason="this kernel has no Landlock")
def test_the_sandbox_holds_here_too(task, tmp_path_factory):
    target = tmp_path_factory.mktemp("outside") / "written"
    code = f"""
    def run(ctx, batch):
        open({str(target)!r}, "w").write("x")
    """
    played = play_task(task(code), events(3))
    assert played.failures
    assert not target.exists()


def test_negative_control_inline_isolates_nothing(task, tmp_path_factory):
    target = tmp_path_factory.mktemp("outside") / "written"
    code = f"""
    def run(ctx, batch):
        open({str(target)!r}, "w").write("x")
    """
    assert not play_task(task(code), events(3), backend="inline").failures
    assert target.exists()


def test_a_wrong_event_is_refused(task):
    wrong = Event(new_ulid(), 4, "a", 1, content={"x": float("nan")})
    with pytest.raises(InputError):
        play_task(task(ADDING), [wrong])
