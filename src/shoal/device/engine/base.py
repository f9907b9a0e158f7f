"""What a tensor engine must offer, and how one is found."""

from __future__ import annotations

import importlib
import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shoal.core.errors import IntegrityError, NotFoundError, UnavailableError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Engine", "Model", "ModelError", "TensorInfo", "engine_versions", "load_engine"]

_GROUP = "shoal.engines"
#: Used where the package's entry points are not installed (a bare checkout on the path).
_BUILT_IN = {
    "onnx": "shoal.device.engine.onnx:OnnxEngine",
    "mnn": "shoal.device.engine.mnn:MnnEngine",
    "torch": "shoal.device.engine.torch:TorchEngine",
    "reference": "shoal.device.engine.reference:ReferenceEngine",
}


class ModelError(IntegrityError):
    """A model file cannot be used, or a model was given or gave what it must not."""


@dataclass(frozen=True)
class TensorInfo:
    """An input or output: name, NumPy dtype name, shape with -1 for free sizes."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Model(ABC):
    """A loaded model."""

    inputs: list[TensorInfo]
    outputs: list[TensorInfo]

    @abstractmethod
    def compute(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run on arrays that have the inputs' dtypes."""

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run on lists or arrays; lists come back for lists, arrays for arrays.

        Parameters
        ----------
        feeds : mapping
            One value an input, shaped as :attr:`inputs` says.

        Returns
        -------
        dict
            One value an output.

        Raises
        ------
        ModelError
            An input is missing, unknown, ragged or of the wrong shape, or the
            model's output holds NaN or infinity.
        """
        import numpy as np  # noqa: PLC0415 - only where models run

        arrays = {}
        as_lists = True
        known = {info.name for info in self.inputs}
        for name in feeds:
            if name not in known:
                raise ModelError(f"the model has no input {name!r} (it has {sorted(known)})")
        for info in self.inputs:
            if info.name not in feeds:
                raise ModelError(f"input {info.name!r} is missing")
            value = feeds[info.name]
            as_lists = as_lists and not isinstance(value, np.ndarray)
            try:
                array = np.ascontiguousarray(value, dtype=info.dtype)
            except (TypeError, ValueError, OverflowError) as error:
                raise ModelError(f"input {info.name!r}: {error}") from None
            if len(array.shape) != len(info.shape) or any(
                want >= 0 and want != have
                for want, have in zip(info.shape, array.shape, strict=True)
            ):
                raise ModelError(f"input {info.name!r} has shape {array.shape}, not {info.shape}")
            arrays[info.name] = array
        results = self.compute(arrays)
        for name, result in results.items():
            if result.dtype.kind == "f" and not np.isfinite(result).all():
                raise ModelError(f"output {name!r} of the model holds NaN or infinity")
        return {name: result.tolist() for name, result in results.items()} if as_lists else results

    def close(self) -> None:  # noqa: B027 - most models have nothing to free
        """Free what the model holds."""


class Engine(ABC):
    """Loads models of one format."""

    name: str

    @abstractmethod
    def prepare(self) -> None:
        """Import the library; raises :class:`UnavailableError` if it is not there."""

    @abstractmethod
    def version(self) -> str:
        """Return the library's version."""

    @abstractmethod
    def open_model(self, path: str, threads: int = 1) -> Model:
        """Load a model file.

        Raises
        ------
        ModelError
            The file is not a model that this engine can run.
        """

    def load(self, path: str, threads: int = 1) -> Model:
        """Load a model file; the same as :meth:`open_model`."""
        return self.open_model(path, threads)


def load_engine(name: str) -> Engine:
    """Return the engine called ``name``.

    Engines are found by the entry-point group ``shoal.engines``, so a package
    of your own may add one.

    Raises
    ------
    NotFoundError
        There is no such engine.
    UnavailableError
        Its library is not installed or does not load.
    """
    found = importlib.metadata.entry_points(group=_GROUP, name=name)
    try:
        if found:
            engine = next(iter(found)).load()()
        elif name in _BUILT_IN:
            module, _, kind = _BUILT_IN[name].partition(":")
            engine = getattr(importlib.import_module(module), kind)()
        else:
            names = {entry.name for entry in importlib.metadata.entry_points(group=_GROUP)}
            known = ", ".join(sorted(names | set(_BUILT_IN)))
            raise NotFoundError(f"no engine {name!r}", hint=f"known engines: {known}")
    except ImportError as error:
        raise UnavailableError(f"engine {name!r} does not load: {error}") from error
    assert isinstance(engine, Engine)
    return engine


def engine_versions() -> dict[str, str]:
    """Return the versions of the engines whose libraries are installed."""
    names = {entry.name for entry in importlib.metadata.entry_points(group=_GROUP)}
    versions = {}
    for name in sorted(names | set(_BUILT_IN)):
        try:
            versions[name] = load_engine(name).version()
        except (UnavailableError, importlib.metadata.PackageNotFoundError):
            continue
    return versions
