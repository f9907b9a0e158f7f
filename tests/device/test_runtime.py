"""What a task sees: batch, context, outputs, features, randomness."""

from __future__ import annotations

import ast
import math
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.device.container import _runtime_loader
from shoal.device.container._runtime_loader import runtime, streams

DECLARED = {"out": ("result", "json"), "vector": ("feature", "f32[3]")}


def context(**more: Any) -> Any:
    fields = {
        "declared": DECLARED,
        "models": {},
        "state": {},
        "features": {},
        "seed": (0, b"d", "t", b"r"),
        "now_us": 42,
        "deadline": time.monotonic() + 1.0,
        "streams": streams,
    }
    return runtime.Context(**{**fields, **more})


def event(ts_us: int, page: str = "p", visit: bytes | None = None, **content: Any) -> Any:
    return SimpleNamespace(kind=64, page=page, ts_us=ts_us, visit=visit, content=content)


def test_the_runtime_needs_nothing_but_the_standard_library() -> None:
    """It must load where no third-party package does."""
    folder = Path(_runtime_loader.__file__).parent
    for path in (folder / "_runtime.py", folder.parent / "stream" / "operators.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert all(name.split(".")[0] in sys.stdlib_module_names for name in names), names


def test_outcome_codes_are_those_of_the_wire() -> None:
    from shoal.wire.codes import ErrorCode

    for name, code in (
        ("OK", ErrorCode.OK),
        ("DEADLINE", ErrorCode.DEADLINE),
        ("MEMORY", ErrorCode.MEMORY),
        ("EXCEPTION", ErrorCode.EXCEPTION),
        ("IMPORT_REFUSED", ErrorCode.IMPORT_REFUSED),
        ("SANDBOX", ErrorCode.SANDBOX_VIOLATION),
        ("OUTPUT_TOO_LARGE", ErrorCode.OUTPUT_TOO_LARGE),
        ("ENGINE_ERROR", ErrorCode.ENGINE_ERROR),
    ):
        assert getattr(runtime, name) == code


def test_a_batch_is_its_events() -> None:
    batch = runtime.Batch([event(1, x=1), event(2, x="2.5"), event(3, visit=b"\x01" * 16)])
    assert len(batch) == 3
    assert [one.ts_us for one in batch] == [1, 2, 3]
    assert batch.floats("x") == [1.0, 2.5, 0.0]
    assert math.isnan(batch.floats("x", math.nan)[2])
    assert batch.visit == "01" * 16
    assert runtime.Batch([]).visit is None


def test_outputs_are_copies_with_a_time() -> None:
    ctx = context()
    value = [1, {"a": (2.0, None)}]
    ctx.emit("out", value)
    value[1]["a"] = "changed"
    ctx.emit("out", True, ts_us=7)
    assert ctx.emitted == [("out", [1, {"a": [2.0, None]}], 42), ("out", True, 7)]


def test_numpy_values_become_plain() -> None:
    np = pytest.importorskip("numpy")
    ctx = context()
    ctx.emit("out", {"array": np.ones((2, 2), np.float32), "number": np.int64(3)})
    assert ctx.emitted[0][1] == {"array": [[1.0, 1.0], [1.0, 1.0]], "number": 3}
    with pytest.raises(runtime.TaskOutputError, match="nan"):
        ctx.emit("out", np.array([1.0, np.nan]))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(json_values)
def test_plain_values_pass_unchanged(value: Any) -> None:
    ctx = context()
    ctx.emit("out", value)
    assert ctx.emitted[0][1] == value


@given(json_values, st.sampled_from([math.nan, math.inf, -math.inf]))
def test_a_number_that_is_none_is_found_at_any_depth(value: Any, bad: float) -> None:
    with pytest.raises(runtime.TaskOutputError) as caught:
        context().emit("out", [value, {"deep": [value, bad]}])
    assert caught.value.code == runtime.ENGINE_ERROR


def test_features_are_checked_and_read_back() -> None:
    ctx = context(features={("vector", "old"): [9.0, 9.0, 9.0]})
    assert ctx.features.get("vector", "old") == [9.0, 9.0, 9.0]
    ctx.features.put("vector", b"\x02" * 16, [1, 2, 3])
    assert ctx.features.get("vector", "02" * 16) == [1, 2, 3]
    assert ctx.features.get("vector", "none", default=5) == 5
    assert ctx.put == [("vector", "02" * 16, "f32[3]", [1, 2, 3], 42)]
    for wrong in ([1, 2], 3.0, "abc"):
        with pytest.raises(runtime.TaskOutputError, match="wants 3 numbers"):
            ctx.features.put("vector", "k", wrong)
    with pytest.raises(runtime.TaskOutputError, match="not declared"):
        ctx.features.put("secret", "k", [1, 2, 3])


def test_randomness_belongs_to_the_run() -> None:
    def draws(*seed: Any) -> list[float]:
        return [context(seed=seed).random.random() for _ in range(2)]

    base = draws(0, b"d", "t", b"r")
    assert base[0] == base[1]
    others = [
        (1, b"d", "t", b"r"),
        (0, b"e", "t", b"r"),
        (0, b"d", "u", b"r"),
        (0, b"d", "t", b"s"),
    ]
    assert len({base[0], *(draws(*seed)[0] for seed in others)}) == 5


def test_logs_are_capped() -> None:
    ctx = context()
    for number in range(200):
        ctx.log("x" * 1000 if number == 0 else number)
    assert len(ctx.lines) == runtime.LOG_LINES
    assert len(ctx.lines[0]) == runtime.LOG_CHARACTERS


def test_time_left_falls() -> None:
    ctx = context(deadline=time.monotonic() + 0.5)
    assert 0 < ctx.deadline_left() <= 500
    assert context(deadline=time.monotonic() - 1).deadline_left() == 0


def test_an_unknown_model_names_those_there_are() -> None:
    with pytest.raises(KeyError, match="it has: ranker"):
        context(models={"ranker": object()}).model("other")


def test_stream_functions_are_at_hand() -> None:
    from shoal_streams import Tumbling  # the name that tasks import

    events = [event(0), event(1), event(12)]
    windows = context().stream(events).window(Tumbling(10)).map(lambda w: len(w.events))
    assert [window.value for window in windows] == [2, 1]


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (runtime.DeadlineExceeded(), runtime.DEADLINE, "deadline"),
        (MemoryError(), runtime.MEMORY, "memory"),
        (PermissionError(13, "Permission denied"), runtime.SANDBOX, "Permission"),
        (BlockingIOError(11, "no more processes"), runtime.SANDBOX, "processes"),
        (RuntimeError("can't start new thread"), runtime.SANDBOX, "thread"),
        (RuntimeError("other"), runtime.EXCEPTION, "RuntimeError: other"),
        (ModuleNotFoundError("No module named 'x'"), runtime.IMPORT_REFUSED, "'x'"),
        (ValueError("first line\nsecond line"), runtime.EXCEPTION, "ValueError: first line"),
        (ValueError(), runtime.EXCEPTION, "ValueError"),
        (ValueError("x" * 10_000), runtime.EXCEPTION, "xxx"),
        (Unprintable(), runtime.EXCEPTION, "Unprintable"),
        (GeneratorExit(), runtime.EXCEPTION, "GeneratorExit"),
    ],
)
def test_every_error_becomes_a_code_and_one_line(
    error: BaseException, code: int, words: str
) -> None:
    def fail() -> None:
        raise error

    outcome, message = runtime.guarded(fail)
    assert outcome == code
    assert words in message
    assert "\n" not in message
    assert len(message) <= runtime.LOG_CHARACTERS + 100
