"""Exact search over space, words, attributes, time and friends.

The names below load when they are first used: the engine brings a compiler.

Examples
--------
>>> from shoal.spatial import SpatialKeywordIndex
>>> index = SpatialKeywordIndex.build([24.9, 24.95], [60.2, 60.17], keywords=["pizza", "pizza bar"])
>>> index.query((24.94, 60.17), "pizza").ids
[1, 0]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.spatial.columns import AttributeSpec, SearchStats
    from shoal.spatial.config import SpatialKeywordIndexConfig
    from shoal.spatial.index import SpatialKeywordIndex
    from shoal.spatial.request import Query
    from shoal.spatial.results import Explanation, Place, TopK
    from shoal.spatial.scoring import Exp, Gauss, Linear, Saturation, Weights
    from shoal.spatial.searcher import Batch, Hits, Searcher
    from shoal.spatial.social import SocialEmbedding

_HOMES = {
    "AttributeSpec": "columns",
    "Batch": "searcher",
    "Exp": "scoring",
    "Explanation": "results",
    "Gauss": "scoring",
    "Hits": "searcher",
    "Linear": "scoring",
    "Place": "results",
    "Query": "request",
    "Saturation": "scoring",
    "SearchStats": "columns",
    "Searcher": "searcher",
    "SocialEmbedding": "social",
    "SpatialKeywordIndex": "index",
    "SpatialKeywordIndexConfig": "config",
    "TopK": "results",
    "Weights": "scoring",
}

__all__ = [
    "AttributeSpec",
    "Batch",
    "Exp",
    "Explanation",
    "Gauss",
    "Hits",
    "Linear",
    "Place",
    "Query",
    "Saturation",
    "SearchStats",
    "Searcher",
    "SocialEmbedding",
    "SpatialKeywordIndex",
    "SpatialKeywordIndexConfig",
    "TopK",
    "Weights",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"shoal.spatial.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
