"""The layouts by name: how each is built and read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.core.errors import IntegrityError
from shoal.spatial.columns import AttributeSpec, Layout, PlaceColumns
from shoal.spatial.config import SpatialKeywordIndexConfig
from shoal.spatial.packed import PackedLayout

__all__ = ["layout_builder", "layout_name", "load_layout"]


def layout_builder(
    config: SpatialKeywordIndexConfig, specs: Sequence[AttributeSpec]
) -> Callable[[PlaceColumns], Layout]:
    """Return the function that arranges places as the configuration says."""
    if config.layout == "quad_cluster":
        from shoal.spatial.qdrtree import QuadClusterLayout  # noqa: PLC0415 - only where used

        return lambda columns: QuadClusterLayout.build(columns, specs, seed=config.seed)
    return lambda columns: PackedLayout.build(columns, specs)


def layout_name(layout: Layout) -> str:
    """Return the name under which :func:`load_layout` knows a layout."""
    return "packed" if isinstance(layout, PackedLayout) else "quad_cluster"


def load_layout(
    name: str, arrays: Mapping[str, npt.NDArray[np.generic]], meta: Mapping[str, Any]
) -> Layout:
    """Return a layout from its arrays.

    Raises
    ------
    IntegrityError
        The name is unknown to this version.
    """
    if name == "packed":
        return PackedLayout.from_arrays(dict(arrays), dict(meta))
    if name == "quad_cluster":
        from shoal.spatial.qdrtree import QuadClusterLayout  # noqa: PLC0415 - only where used

        return QuadClusterLayout.from_arrays(dict(arrays), dict(meta))
    raise IntegrityError(f"unknown layout {name!r}")
