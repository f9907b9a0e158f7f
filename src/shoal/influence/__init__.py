"""Who to pick so that the most are reached within d hops, with a proof of how good the pick is.

The names below load when they are first used: the engine brings a compiler.

Examples
--------
>>> from shoal.influence import Graph, max_cover
>>> graph = Graph.from_edges(["a", "a", "b", "d"], ["b", "c", "e", "e"], directed=True)
>>> result = max_cover(graph, 2, certificate="lagrangian")
>>> result.seeds, result.covered, result.upper_bound
(['a', 'd'], 5.0, 5.0)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.influence.cascades import IndependentCascade, LinearThreshold, Spread, spread
    from shoal.influence.counting import ball_sizes, coverage, marginal_gains
    from shoal.influence.cover import max_cover
    from shoal.influence.cover_index import CoverIndex
    from shoal.influence.explaining import explain, who_covers
    from shoal.influence.fastcover import FastCover
    from shoal.influence.graph import Graph, GraphReport
    from shoal.influence.grat import GRAT, GRATConv
    from shoal.influence.groups import CoverGroup
    from shoal.influence.opim import InfluenceResult, influence_max
    from shoal.influence.ray_cover import ray_max_cover
    from shoal.influence.results import CoverResult

_HOMES = {
    "CoverGroup": "groups",
    "CoverIndex": "cover_index",
    "CoverResult": "results",
    "FastCover": "fastcover",
    "GRAT": "grat",
    "GRATConv": "grat",
    "Graph": "graph",
    "GraphReport": "graph",
    "IndependentCascade": "cascades",
    "InfluenceResult": "opim",
    "LinearThreshold": "cascades",
    "Spread": "cascades",
    "ball_sizes": "counting",
    "coverage": "counting",
    "explain": "explaining",
    "influence_max": "opim",
    "marginal_gains": "counting",
    "max_cover": "cover",
    "ray_max_cover": "ray_cover",
    "spread": "cascades",
    "who_covers": "explaining",
}

__all__ = [
    "GRAT",
    "CoverGroup",
    "CoverIndex",
    "CoverResult",
    "FastCover",
    "GRATConv",
    "Graph",
    "GraphReport",
    "IndependentCascade",
    "InfluenceResult",
    "LinearThreshold",
    "Spread",
    "ball_sizes",
    "coverage",
    "explain",
    "influence_max",
    "marginal_gains",
    "max_cover",
    "ray_max_cover",
    "spread",
    "who_covers",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"shoal.influence.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
