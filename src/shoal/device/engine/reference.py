"""A slow, obvious evaluator of small ONNX graphs in NumPy: the oracle of the other engines."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shoal.core.errors import UnavailableError
from shoal.device.engine.base import Engine, Model, ModelError, TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ReferenceEngine", "ReferenceModel"]


def _import_library() -> Any:
    try:
        import onnx  # noqa: PLC0415 - optional
        import onnx.numpy_helper  # noqa: PLC0415
    except ImportError as error:
        raise UnavailableError(
            f"onnx does not load: {error}", hint="install shoal[tasks]"
        ) from error
    return onnx


def _gemm(attributes: dict[str, Any], a: Any, b: Any, c: Any = 0.0) -> Any:
    left = a.T if attributes.get("transA", 0) else a
    right = b.T if attributes.get("transB", 0) else b
    product = attributes.get("alpha", 1.0) * (left @ right)
    return (product + attributes.get("beta", 1.0) * c).astype(a.dtype)


def _softmax(attributes: dict[str, Any], x: Any) -> Any:
    import numpy as np  # noqa: PLC0415

    axis = attributes.get("axis", -1)
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def _operators() -> dict[str, Callable[..., Any]]:
    import numpy as np  # noqa: PLC0415

    return {
        "Add": lambda _, a, b: a + b,
        "Sub": lambda _, a, b: a - b,
        "Mul": lambda _, a, b: a * b,
        "Div": lambda _, a, b: a / b,
        "MatMul": lambda _, a, b: a @ b,
        "Gemm": _gemm,
        "Relu": lambda _, x: np.maximum(x, 0),
        "Sigmoid": lambda _, x: (1 / (1 + np.exp(-x))).astype(x.dtype),
        "Tanh": lambda _, x: np.tanh(x),
        "Exp": lambda _, x: np.exp(x),
        "Sqrt": lambda _, x: np.sqrt(x),
        "Softmax": _softmax,
        "Concat": lambda at, *xs: np.concatenate(xs, axis=at["axis"]),
        "Reshape": lambda _, x, shape: x.reshape([int(size) for size in shape]),
        "Transpose": lambda at, x: np.transpose(x, at.get("perm")),
        "Gather": lambda at, x, index: np.take(x, index, axis=at.get("axis", 0)),
        "Identity": lambda _, x: x,
    }


class ReferenceModel(Model):
    """A graph that is walked node by node."""

    def __init__(self, library: Any, model: Any) -> None:
        self._operators = _operators()
        helper = library.numpy_helper
        self._constants = {
            tensor.name: helper.to_array(tensor) for tensor in model.graph.initializer
        }
        self._nodes = []
        for node in model.graph.node:
            attributes = {a.name: library.helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type not in self._operators:
                raise ModelError(f"the reference engine has no operator {node.op_type}")
            self._nodes.append((node.op_type, list(node.input), node.output[0], attributes))
        self.inputs = [
            _info(library, value)
            for value in model.graph.input
            if value.name not in self._constants
        ]
        self.outputs = [_info(library, value) for value in model.graph.output]

    def compute(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Walk the nodes in the order of the file, which ONNX requires to be topological."""
        values: dict[str, Any] = {**self._constants, **feeds}
        for operator, sources, target, attributes in self._nodes:
            arguments = [values[name] for name in sources if name]
            try:
                values[target] = self._operators[operator](attributes, *arguments)
            except (ValueError, IndexError) as error:
                raise ModelError(f"{operator}: {error}") from None
        return {info.name: values[info.name] for info in self.outputs}


def _info(library: Any, value: Any) -> TensorInfo:
    tensor = value.type.tensor_type
    dtype = library.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    shape = tuple(size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim)
    return TensorInfo(value.name, dtype, shape)


class ReferenceEngine(Engine):
    """Runs small ``.onnx`` files of common operators."""

    name = "reference"

    def prepare(self) -> None:
        """Import the ONNX reader."""
        _import_library()

    def version(self) -> str:
        """Return the version of the ONNX reader."""
        return importlib.metadata.version("onnx")

    def open_model(self, path: str, threads: int = 1) -> Model:
        """Load a graph; ``threads`` has no effect."""
        library = _import_library()
        try:
            model = library.load(path)
            library.checker.check_model(model)
        except Exception as error:  # the library raises types of its own
            raise ModelError(f"not a usable ONNX model: {str(error)[:200]}") from None
        return ReferenceModel(library, model)
