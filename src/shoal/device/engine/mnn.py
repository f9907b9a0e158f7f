"""MNN, an optional engine (``pip install shoal[mnn]``).

Traps of its Python wheel (Walle sheet C.4): its library asks for an executable
stack, which newer C libraries refuse; damaged files can crash the process, so
hashes are checked before and models are loaded inside a worker only.
"""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Any

from shoal.core.errors import UnavailableError
from shoal.device.engine.base import Engine, Model, ModelError, TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MnnEngine", "MnnModel"]


def _import_library() -> Any:
    try:
        import MNN  # noqa: PLC0415 - optional
    except ImportError as error:
        hint = "install shoal[mnn]"
        if "executable stack" in str(error):
            hint = "MNN's wheel needs an executable stack, which this C library refuses; use onnx"
        raise UnavailableError(f"MNN does not load: {error}", hint=hint) from error
    return MNN


class MnnModel(Model):
    """A session of MNN; sizes are those of the last call."""

    def __init__(self, library: Any, interpreter: Any, session: Any) -> None:
        self._library, self._interpreter, self._session = library, interpreter, session
        self.inputs = [
            TensorInfo(name, "float32", tuple(-1 for _ in tensor.getShape()))
            for name, tensor in sorted(interpreter.getSessionInputAll(session).items())
        ]
        self.outputs = [
            TensorInfo(name, "float32", tuple(-1 for _ in tensor.getShape()))
            for name, tensor in sorted(interpreter.getSessionOutputAll(session).items())
        ]

    def compute(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Resize the session if sizes changed, then run it."""
        import numpy as np  # noqa: PLC0415 - only where models run

        library, interpreter, session = self._library, self._interpreter, self._session
        resized = False
        for name, array in feeds.items():
            tensor = interpreter.getSessionInput(session, name)
            if tuple(tensor.getShape()) != array.shape:
                interpreter.resizeTensor(tensor, array.shape)
                resized = True
        if resized:
            interpreter.resizeSession(session)
        kind = library.Tensor_DimensionType_Caffe
        for name, array in feeds.items():
            tensor = interpreter.getSessionInput(session, name)
            host = library.Tensor(array.shape, library.Halide_Type_Float, array, kind)
            tensor.copyFrom(host)
        if interpreter.runSession(session) != 0:
            raise ModelError("MNN could not run the model")
        results = {}
        for info in self.outputs:
            tensor = interpreter.getSessionOutput(session, info.name)
            shape = tuple(tensor.getShape())
            host = library.Tensor(
                shape, library.Halide_Type_Float, np.zeros(shape, np.float32), kind
            )
            tensor.copyToHostTensor(host)
            results[info.name] = np.array(host.getNumpyData(), np.float32).reshape(shape)
        return results


class MnnEngine(Engine):
    """Runs ``.mnn`` files with float32 inputs and outputs."""

    name = "mnn"

    def prepare(self) -> None:
        """Import MNN."""
        _import_library()

    def version(self) -> str:
        """Return the version of MNN."""
        return importlib.metadata.version("MNN")

    def open_model(self, path: str, threads: int = 1) -> Model:
        """Load a model in session mode, which lets other threads run meanwhile."""
        library = _import_library()
        interpreter = library.Interpreter(path)
        if interpreter is None:
            raise ModelError("not a usable MNN model")
        try:
            session = interpreter.createSession({"numThread": threads, "backend": "CPU"})
        except Exception as error:  # the library raises types of its own
            raise ModelError(f"not a usable MNN model: {error}") from None
        return MnnModel(library, interpreter, session)
