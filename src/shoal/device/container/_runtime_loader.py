"""Loads the code that tasks see by its path, under the names that tasks know it by."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["runtime", "streams"]

_CONTAINER = Path(__file__).parent


def _load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path.name}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


#: ``shoal_task``: context, batch and the one call into a task.
runtime: Any = _load(_CONTAINER / "_runtime.py", "shoal_task")


#: ``shoal_streams``: the stream functions and their windows, which tasks may import too.
_streams: Any = _load(_CONTAINER.parent / "stream" / "operators.py", "shoal_streams")


def streams(events: Any) -> Any:
    """Return a stream over events."""
    return _streams.Stream(events)
