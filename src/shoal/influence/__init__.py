"""Who to pick so that the most are reached within d hops, with a proof of how good the pick is.

The names below load when they are first used: the engine brings a compiler.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.influence.graph import Graph, GraphReport

_HOMES = {
    "Graph": "graph",
    "GraphReport": "graph",
}

__all__ = ["Graph", "GraphReport"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"shoal.influence.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
