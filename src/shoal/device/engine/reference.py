"""A slow, obvious evaluator of small ONNX graphs in NumPy: the oracle of the other engines."""

from __future__ import annotations

import functools
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


def _reduce(name: str) -> Callable[..., Any]:
    def reduce(attributes: dict[str, Any], x: Any, axes: Any = None) -> Any:
        chosen = attributes.get("axes") if axes is None else axes
        axis = None if chosen is None else tuple(int(one) for one in chosen)
        keep = bool(attributes.get("keepdims", 1))
        return getattr(x, name)(axis=axis, keepdims=keep).astype(x.dtype)

    return reduce


def _axes(attributes: dict[str, Any], axes: Any) -> tuple[int, ...] | None:
    chosen = attributes.get("axes") if axes is None else axes
    return None if chosen is None else tuple(int(one) for one in chosen)


def _squeeze(attributes: dict[str, Any], x: Any, axes: Any = None) -> Any:
    return x.squeeze(_axes(attributes, axes))


def _unsqueeze(attributes: dict[str, Any], x: Any, axes: Any = None) -> Any:
    import numpy as np  # noqa: PLC0415

    return np.expand_dims(x, _axes(attributes, axes) or ())


def _reshape(attributes: dict[str, Any], x: Any, shape: Any) -> Any:
    sizes = [int(size) for size in shape]
    if not attributes.get("allowzero", 0):
        sizes = [x.shape[place] if size == 0 else size for place, size in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(attributes: dict[str, Any], x: Any) -> Any:
    import numpy as np  # noqa: PLC0415

    axis = attributes.get("axis", 1)
    return x.reshape(int(np.prod(x.shape[:axis])), -1)


def _clip(_: dict[str, Any], x: Any, low: Any = None, high: Any = None) -> Any:
    return x.clip(low, high)


def _batch_normalization(attributes: dict[str, Any], x: Any, *statistics: Any) -> Any:
    import numpy as np  # noqa: PLC0415

    sizes = (1, -1) + (1,) * (x.ndim - 2)
    scale, bias, mean, variance = (one.reshape(sizes) for one in statistics)
    deviation = np.sqrt(variance + attributes.get("epsilon", 1e-5))
    return ((x - mean) / deviation * scale + bias).astype(x.dtype)


def _windows(attributes: dict[str, Any], x: Any, kernel: tuple[int, ...], fill: float) -> Any:
    """Return the padded input's windows: batch, channel, height, width, kernel."""
    import numpy as np  # noqa: PLC0415

    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise ModelError("the reference engine knows explicit padding only")
    if any(one != 1 for one in attributes.get("dilations", [])) or attributes.get("ceil_mode", 0):
        raise ModelError("the reference engine knows neither dilations nor ceil_mode")
    count = len(kernel)
    pads = attributes.get("pads") or [0] * (2 * count)
    padding = [(0, 0), (0, 0), *zip(pads[:count], pads[count:], strict=True)]
    padded = np.pad(x, padding, constant_values=fill)
    axes = tuple(range(2, 2 + count))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=axes)
    strides = attributes.get("strides") or [1] * count
    return windows[(slice(None), slice(None), *(slice(None, None, step) for step in strides))]


def _convolution(attributes: dict[str, Any], x: Any, weights: Any, bias: Any = None) -> Any:
    import numpy as np  # noqa: PLC0415

    groups = attributes.get("group", 1)
    windows = _windows(attributes, x, weights.shape[2:], 0.0)
    count = weights.ndim - 2
    made = []
    for taken, kernel in zip(
        np.split(windows, groups, axis=1), np.split(weights, groups, axis=0), strict=True
    ):
        # Sum over the channel and the kernel's axes of both.
        mine = [1, *range(2 + count, 2 + 2 * count)]
        product = np.tensordot(taken, kernel, axes=(mine, [1, *range(2, 2 + count)]))
        made.append(np.moveaxis(product, -1, 1))
    result = np.concatenate(made, axis=1)
    if bias is not None:
        result = result + bias.reshape((1, -1) + (1,) * count)
    return result.astype(x.dtype)


def _max_pool(attributes: dict[str, Any], x: Any) -> Any:
    kernel = tuple(attributes["kernel_shape"])
    windows = _windows(attributes, x, kernel, -float("inf"))
    return windows.max(axis=tuple(range(windows.ndim - len(kernel), windows.ndim)))


def _average_pool(attributes: dict[str, Any], x: Any) -> Any:
    kernel = tuple(attributes["kernel_shape"])
    if any(attributes.get("pads", [])) and not attributes.get("count_include_pad", 0):
        raise ModelError("the reference engine averages over padding or not at all")
    windows = _windows(attributes, x, kernel, 0.0)
    mean = windows.mean(axis=tuple(range(windows.ndim - len(kernel), windows.ndim)))
    return mean.astype(x.dtype)


def _operators() -> dict[str, Callable[..., Any]]:
    import numpy as np  # noqa: PLC0415

    return {
        "Abs": lambda _, x: np.abs(x),
        "Add": lambda _, a, b: a + b,
        "AveragePool": _average_pool,
        "BatchNormalization": _batch_normalization,
        "Clip": _clip,
        "Concat": lambda at, *xs: np.concatenate(xs, axis=at["axis"]),
        "Conv": _convolution,
        "Div": lambda _, a, b: a / b,
        "Exp": lambda _, x: np.exp(x),
        "Flatten": _flatten,
        "Gather": lambda at, x, index: np.take(x, index, axis=at.get("axis", 0)),
        "Gemm": _gemm,
        "GlobalAveragePool": lambda _, x: x.mean(
            axis=tuple(range(2, x.ndim)), keepdims=True
        ).astype(x.dtype),
        "Identity": lambda _, x: x,
        "LeakyRelu": lambda at, x: np.where(x < 0, at.get("alpha", 0.01) * x, x).astype(x.dtype),
        "Log": lambda _, x: np.log(x),
        "MatMul": lambda _, a, b: a @ b,
        "Max": lambda _, *xs: functools.reduce(np.maximum, xs),
        "MaxPool": _max_pool,
        "Min": lambda _, *xs: functools.reduce(np.minimum, xs),
        "Mul": lambda _, a, b: a * b,
        "Neg": lambda _, x: -x,
        "Pow": lambda _, a, b: np.power(a, b).astype(a.dtype),
        "ReduceMax": _reduce("max"),
        "ReduceMean": _reduce("mean"),
        "ReduceSum": _reduce("sum"),
        "Relu": lambda _, x: np.maximum(x, 0),
        "Reshape": _reshape,
        "Sigmoid": lambda _, x: (1 / (1 + np.exp(-x))).astype(x.dtype),
        "Softmax": _softmax,
        "Sqrt": lambda _, x: np.sqrt(x),
        "Squeeze": _squeeze,
        "Sub": lambda _, a, b: a - b,
        "Tanh": lambda _, x: np.tanh(x),
        "Transpose": lambda at, x: np.transpose(x, at.get("perm")),
        "Unsqueeze": _unsqueeze,
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
