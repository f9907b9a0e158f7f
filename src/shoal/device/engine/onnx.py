"""ONNX Runtime, the default engine."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Any

from shoal.core.errors import UnavailableError
from shoal.device.engine.base import Engine, Model, ModelError, TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["OnnxEngine", "OnnxModel"]

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


def _import_library() -> Any:
    try:
        import onnxruntime  # noqa: PLC0415 - 0.2 s to import, only where models run
    except ImportError as error:
        raise UnavailableError(
            f"onnxruntime does not load: {error}", hint="install shoal[device]"
        ) from error
    return onnxruntime


def _info(value: Any) -> TensorInfo:
    if value.type not in _DTYPES:
        raise ModelError(f"tensor {value.name!r} has the unsupported type {value.type}")
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return TensorInfo(value.name, _DTYPES[value.type], shape)


class OnnxModel(Model):
    """A session of ONNX Runtime."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs = [_info(value) for value in session.get_inputs()]
        self.outputs = [_info(value) for value in session.get_outputs()]
        self._names = [info.name for info in self.outputs]

    def compute(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the session."""
        try:
            results = self._session.run(self._names, feeds)
        except Exception as error:  # the library raises types of its own
            raise ModelError(str(error).splitlines()[0]) from None
        return dict(zip(self._names, results, strict=True))

    def close(self) -> None:
        """Drop the session."""
        self._session = None


class OnnxEngine(Engine):
    """Runs ``.onnx`` files on the CPU."""

    name = "onnx"

    def prepare(self) -> None:
        """Import ONNX Runtime."""
        _import_library()

    def version(self) -> str:
        """Return the version of ONNX Runtime."""
        return importlib.metadata.version("onnxruntime")

    def open_model(self, path: str, threads: int = 1) -> Model:
        """Load a model; with one thread nothing but the caller's thread computes."""
        library = _import_library()
        options = library.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # errors are raised; standard error is not ours
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = library.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library raises types of its own
            raise ModelError(f"not a usable ONNX model: {str(error).splitlines()[0]}") from None
        return OnnxModel(session)
