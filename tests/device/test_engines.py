"""Every engine against the reference on small graphs, in this process and in a sandbox."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
onnx = pytest.importorskip("onnx")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from shoal.core.errors import NotFoundError, UnavailableError  # noqa: E402
from shoal.device.container import RunRequest, TaskCode, VMPool, VMPoolConfig  # noqa: E402
from shoal.device.engine import ModelError, engine_versions, load_engine  # noqa: E402
from shoal.wire.codes import ErrorCode  # noqa: E402

RNG = np.random.default_rng(5)


def draw(*shape: int):
    return RNG.normal(size=shape).astype(np.float32)


def save(path: Path, nodes, inputs, outputs, constants) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, str(path))
    return path


def mlp(folder: Path, rows: int | str = "n") -> Path:
    return save(
        folder / "mlp.onnx",
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Gemm", ["r", "w2", "b2"], ["s"], transB=1, alpha=0.5, beta=2.0),
            helper.make_node("Sigmoid", ["s"], ["p"]),
        ],
        [("x", [rows, 6])],
        [("p", [rows, 3])],
        {"w1": draw(6, 8), "b1": draw(8), "w2": draw(3, 8), "b2": draw(3)},
    )


def image_net(folder: Path) -> Path:
    return save(
        folder / "conv.onnx",
        [
            helper.make_node("Conv", ["x", "k1", "c1"], ["a"], pads=[1, 1, 1, 1], strides=[2, 1]),
            helper.make_node("BatchNormalization", ["a", "g", "b", "m", "v"], ["n"]),
            helper.make_node("LeakyRelu", ["n"], ["l"], alpha=0.1),
            helper.make_node("MaxPool", ["l"], ["q"], kernel_shape=[2, 2], pads=[1, 0, 0, 1]),
            helper.make_node("Conv", ["q", "k2"], ["d"], group=2, kernel_shape=[3, 3]),
            helper.make_node("AveragePool", ["d"], ["e"], kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("GlobalAveragePool", ["e"], ["f"]),
            helper.make_node("Flatten", ["f"], ["o"]),
            helper.make_node("Softmax", ["o"], ["p"], axis=-1),
        ],
        [("x", [2, 3, 12, 9])],
        [("p", [2, 6])],
        {
            "k1": draw(4, 3, 3, 3),
            "c1": draw(4),
            "g": draw(4),
            "b": draw(4),
            "m": draw(4),
            "v": np.abs(draw(4)) + 0.5,
            "k2": draw(6, 2, 3, 3),
        },
    )


def attention(folder: Path) -> Path:
    return save(
        folder / "attention.onnx",
        [
            helper.make_node("MatMul", ["x", "wq"], ["q"]),
            helper.make_node("MatMul", ["x", "wk"], ["k"]),
            helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["q", "kt"], ["s"]),
            helper.make_node("Div", ["s", "scale"], ["t"]),
            helper.make_node("Softmax", ["t"], ["w"], axis=-1),
            helper.make_node("MatMul", ["w", "x"], ["c"]),
            helper.make_node("Concat", ["c", "x"], ["cc"], axis=2),
            helper.make_node("ReduceMean", ["cc"], ["m"], axes=[1], keepdims=0),
            helper.make_node("Unsqueeze", ["m", "one"], ["u"]),
            helper.make_node("Reshape", ["u", "shape"], ["r"]),
            helper.make_node("Tanh", ["r"], ["th"]),
            helper.make_node("Clip", ["th", "low", "high"], ["p"]),
        ],
        [("x", [3, 5, 4])],
        [("p", [3, 8])],
        {
            "wq": draw(4, 4),
            "wk": draw(4, 4),
            "scale": np.float32(2.0),
            "one": np.array([1], np.int64),
            "shape": np.array([0, -1], np.int64),
            "low": np.float32(-0.5),
            "high": np.float32(0.9),
        },
    )


def arithmetic(folder: Path) -> Path:
    return save(
        folder / "arithmetic.onnx",
        [
            helper.make_node("Abs", ["x"], ["a"]),
            helper.make_node("Add", ["a", "one"], ["b"]),
            helper.make_node("Log", ["b"], ["c"]),
            helper.make_node("Pow", ["b", "c"], ["d"]),
            helper.make_node("Sqrt", ["d"], ["e"]),
            helper.make_node("Neg", ["e"], ["f"]),
            helper.make_node("Exp", ["f"], ["g"]),
            helper.make_node("Max", ["g", "x", "c"], ["h"]),
            helper.make_node("Min", ["h", "one"], ["i"]),
            helper.make_node("Sub", ["i", "x"], ["j"]),
            helper.make_node("Mul", ["j", "b"], ["k"]),
            helper.make_node("Gather", ["k", "index"], ["l"], axis=1),
            helper.make_node("ReduceSum", ["l", "axis"], ["m"], keepdims=1),
            helper.make_node("Squeeze", ["m", "axis"], ["n"]),
            helper.make_node("Identity", ["n"], ["p"]),
        ],
        [("x", [4, 3])],
        [("p", [4])],
        {
            "one": np.float32(1.0),
            "index": np.array([2, 0, 2], np.int64),
            "axis": np.array([1], np.int64),
        },
    )


GRAPHS = {
    "mlp": (mlp, (7, 6)),
    "conv": (image_net, (2, 3, 12, 9)),
    "attention": (attention, (3, 5, 4)),
    "arithmetic": (arithmetic, (4, 3)),
}


@pytest.mark.parametrize("graph", GRAPHS)
def test_onnx_runtime_equals_the_reference(graph: str, tmp_path: Path) -> None:
    make, shape = GRAPHS[graph]
    path = str(make(tmp_path))
    ours = load_engine("onnx").load(path)
    slow = load_engine("reference").load(path)
    assert [(info.name, info.dtype) for info in ours.inputs] == [
        (info.name, info.dtype) for info in slow.inputs
    ]
    for _ in range(5):
        x = draw(*shape)
        np.testing.assert_allclose(ours.run({"x": x})["p"], slow.run({"x": x})["p"], atol=1e-5)


def convert_to_mnn(source: Path) -> Path:
    target = source.with_suffix(".mnn")
    # The compiled converter itself; MNN's command line would also report to its maker.
    program = "import sys, _tools; _tools.mnnconvert(sys.argv)"
    arguments = ["-f", "ONNX", "--modelFile", source, "--MNNModel", target, "--bizCode", "test"]
    subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], check=True, capture_output=True
    )
    return target


# Not "conv": MNN's converter 3.6.1 dies of an illegal instruction on it.
@pytest.mark.peer
@pytest.mark.parametrize("graph", ["mlp", "attention", "arithmetic"])
def test_mnn_equals_the_reference(graph: str, tmp_path: Path) -> None:
    pytest.importorskip("MNN", exc_type=ImportError)
    make, shape = GRAPHS[graph]
    path = mlp(tmp_path, shape[0]) if graph == "mlp" else make(tmp_path)
    slow = load_engine("reference").load(str(path))
    ours = load_engine("mnn").load(str(convert_to_mnn(path)))
    for _ in range(5):
        x = draw(*shape)
        wanted = slow.run({"x": x})["p"]
        np.testing.assert_allclose(ours.run({"x": x})["p"], wanted, atol=1e-4)


@pytest.mark.peer
def test_torch_equals_the_reference(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    slow_path = mlp(tmp_path)
    weights = {
        tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy())
        for tensor in onnx.load(str(slow_path)).graph.initializer
    }

    class Network(torch.nn.Module):
        def forward(self, x):
            hidden = torch.relu(x @ weights["w1"] + weights["b1"])
            return torch.sigmoid(0.5 * (hidden @ weights["w2"].T) + 2.0 * weights["b2"])

    path = tmp_path / "mlp.pt2"
    torch.export.save(torch.export.export(Network(), (torch.zeros(7, 6),)), str(path))
    ours = load_engine("torch").load(str(path))
    x = draw(7, 6)
    made = ours.run({ours.inputs[0].name: x})
    wanted = load_engine("reference").load(str(slow_path)).run({"x": x})["p"]
    np.testing.assert_allclose(made["output_0"], wanted, atol=1e-5)


@pytest.mark.parametrize("engine", ["onnx", "reference"])
def test_lists_for_lists_and_arrays_for_arrays(engine: str, tmp_path: Path) -> None:
    model = load_engine(engine).load(str(mlp(tmp_path)))
    x = draw(2, 6)
    listed, array = model.run({"x": x.tolist()})["p"], model.run({"x": x})["p"]
    assert type(listed) is list
    np.testing.assert_array_equal(np.array(listed, np.float32), array)


@pytest.mark.parametrize("engine", ["onnx", "reference"])
@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({}, "'x' is missing"),
        ({"x": [[1.0] * 6], "z": 1}, "no input 'z'"),
        ({"x": [[1.0] * 5]}, "shape"),
        ({"x": [[1.0] * 6, [1.0] * 5]}, "'x'"),
        ({"x": "text"}, "'x'"),
        ({"x": [[float("nan")] * 6]}, "NaN"),
    ],
)
def test_wrong_inputs_are_named(engine: str, feeds, words: str, tmp_path: Path) -> None:
    model = load_engine(engine).load(str(mlp(tmp_path)))
    with pytest.raises(ModelError, match=words):
        model.run(feeds)


@settings(max_examples=40, deadline=None)
@given(data=st.binary(max_size=400))
def test_no_bytes_that_are_no_model_break_the_loader(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.onnx"
    path.write_bytes(data)
    for engine in ("onnx", "reference"):
        with pytest.raises(ModelError):
            load_engine(engine).load(str(path))


def test_engines_are_found_by_name() -> None:
    assert {"onnx", "reference"} <= set(engine_versions())
    with pytest.raises(NotFoundError, match="turbo"):
        load_engine("turbo")


def test_an_engine_whose_library_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UnavailableError, match="onnxruntime"):
        load_engine("onnx").prepare()


TASK = """
def run(ctx, batch):
    ctx.emit("out", ctx.model("m").run({"x": batch.events[0].content["x"]})["p"])
"""


@pytest.fixture(scope="module")
def pool():
    with VMPool(VMPoolConfig(backend="process", size=1)) as made:
        yield made


def ask(pool: VMPool, code: TaskCode, x):
    from shoal.wire.events import Event

    events = [Event(b"i" * 16, 64, "p", 0, content={"x": x})]
    return pool.submit(RunRequest(b"r", code, events)).result(timeout=60)


def task_of(folder: Path, model: Path, engine: str, task: str = "t") -> TaskCode:
    (folder / "main.py").write_text(TASK)
    return TaskCode(
        task,
        1,
        folder,
        models={"m": model},
        engine=engine,
        outputs={"out": ("result", "json")},
        deadline_ms=10_000,
    )


@pytest.mark.parametrize("engine", ["onnx", "reference"])
def test_models_run_inside_the_sandbox(pool: VMPool, engine: str, tmp_path: Path) -> None:
    """The model lies outside the package, as shared resources do."""
    (tmp_path / "store").mkdir()
    (tmp_path / "task").mkdir()
    path = mlp(tmp_path / "store")
    x = draw(3, 6)
    reply = ask(pool, task_of(tmp_path / "task", path, engine, engine), x.tolist())
    assert reply.outcome == 0, reply.message
    wanted = load_engine(engine).load(str(path)).run({"x": x.tolist()})["p"]
    assert reply.emits == [("out", wanted, 0)]


@pytest.mark.peer
def test_mnn_runs_inside_the_sandbox(pool: VMPool, tmp_path: Path) -> None:
    pytest.importorskip("MNN", exc_type=ImportError)
    path = convert_to_mnn(mlp(tmp_path, 3))
    reply = ask(pool, task_of(tmp_path, path, "mnn", "mnn"), draw(3, 6).tolist())
    assert reply.outcome == 0, reply.message


def test_trouble_with_a_model_is_an_engine_error(pool: VMPool, tmp_path: Path) -> None:
    good = mlp(tmp_path)
    (tmp_path / "damaged.onnx").write_bytes(good.read_bytes()[:-40])
    cases = {
        "damaged": (tmp_path / "damaged.onnx", "onnx", [[1.0] * 6]),
        "missing": (tmp_path / "nothing.onnx", "onnx", [[1.0] * 6]),
        "engine": (good, "turbo", [[1.0] * 6]),
        "ragged": (good, "onnx", [[1.0] * 6, [1.0]]),
        "nan": (good, "onnx", [[float("nan")] * 6]),
    }
    for name, (path, engine, x) in cases.items():
        reply = ask(pool, task_of(tmp_path, path, engine, name), x)
        assert reply.outcome == ErrorCode.ENGINE_ERROR, (name, reply)
        assert reply.message, name
        assert "\n" not in reply.message, name
    assert ask(pool, task_of(tmp_path, good, "onnx", "good"), [[1.0] * 6]).outcome == 0
