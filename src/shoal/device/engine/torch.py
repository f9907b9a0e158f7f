"""PyTorch, an optional engine for server-class edges (``pip install shoal[torch]``).

Runs models saved by ``torch.export.save``; they hold no pickled code to run.
"""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Any

from shoal.core.errors import UnavailableError
from shoal.device.engine.base import Engine, Model, ModelError, TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TorchEngine", "TorchModel"]


def _import_library() -> Any:
    try:
        import torch  # noqa: PLC0415 - optional and slow to import
        import torch.export  # noqa: PLC0415
    except ImportError as error:
        raise UnavailableError(
            f"torch does not load: {error}", hint="install shoal[torch]"
        ) from error
    return torch


class TorchModel(Model):
    """An exported program; outputs are called ``output_0``, ``output_1`` and so on."""

    def __init__(self, library: Any, program: Any) -> None:
        self._library = library
        self._module = program.module()
        signature = program.graph_signature
        values = {node.name: node.meta.get("val") for node in program.graph.nodes}
        self.inputs = [_info(name, values[name]) for name in signature.user_inputs]
        self.outputs = [
            _info(f"output_{place}", values[name])
            for place, name in enumerate(signature.user_outputs)
        ]

    def compute(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run without gradients."""
        torch = self._library
        try:
            with torch.inference_mode():
                results = self._module(
                    *(torch.from_numpy(feeds[info.name]) for info in self.inputs)
                )
        except (RuntimeError, ValueError, AssertionError) as error:
            raise ModelError(str(error).splitlines()[0]) from None
        if not isinstance(results, tuple | list):
            results = (results,)
        return {
            info.name: result.numpy() for info, result in zip(self.outputs, results, strict=True)
        }


def _info(name: str, value: Any) -> TensorInfo:
    dtype = str(value.dtype).removeprefix("torch.")
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return TensorInfo(name, dtype, shape)


class TorchEngine(Engine):
    """Runs ``.pt2`` files on the CPU."""

    name = "torch"

    def prepare(self) -> None:
        """Import PyTorch."""
        _import_library()

    def version(self) -> str:
        """Return the version of PyTorch."""
        return importlib.metadata.version("torch")

    def open_model(self, path: str, threads: int = 1) -> Model:
        """Load an exported program."""
        library = _import_library()
        library.set_num_threads(threads)
        try:
            program = library.export.load(path)
        except Exception as error:  # a damaged archive raises almost anything
            raise ModelError(f"not a usable exported program: {str(error)[:200]}") from None
        return TorchModel(library, program)
