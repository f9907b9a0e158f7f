"""The layouts by name: how each is built and read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.core.errors import IntegrityError
from shoal.spatial.columns import AttributeSpec, Layout, PlaceColumns
from shoal.spatial.config import SpatialKeywordIndexConfig
from shoal.spatial.packed import PackedLayout

__all__ = ["LayoutBuilder", "load_layout"]


class LayoutBuilder:
    """Arranges places as a configuration says.

    Parameters
    ----------
    config : SpatialKeywordIndexConfig, optional
    specs : sequence of AttributeSpec
        Both are set later where they are read from a folder.
    """

    def __init__(
        self,
        config: SpatialKeywordIndexConfig | None = None,
        specs: Sequence[AttributeSpec] = (),
    ) -> None:
        self.config = config or SpatialKeywordIndexConfig()
        self.specs = tuple(specs)

    def __call__(self, columns: PlaceColumns) -> Layout:
        """Return the places, arranged."""
        if self.config.layout == "quad_cluster":
            from shoal.spatial.qdrtree import QuadClusterLayout  # noqa: PLC0415 - only where used

            return QuadClusterLayout.build(columns, self.specs, seed=self.config.seed)
        if self.config.layout == "netr":
            from shoal.spatial.netrtree import NetrLayout  # noqa: PLC0415 - only where used

            return NetrLayout.build(columns, self.specs, seed=self.config.seed)
        return PackedLayout.build(columns, self.specs)


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
        packed: Layout = PackedLayout.from_arrays(dict(arrays), dict(meta))
        return packed
    if name == "quad_cluster":
        from shoal.spatial.qdrtree import QuadClusterLayout  # noqa: PLC0415 - only where used

        clustered: Layout = QuadClusterLayout.from_arrays(dict(arrays), dict(meta))
        return clustered
    if name == "netr":
        from shoal.spatial.netrtree import NetrLayout  # noqa: PLC0415 - only where used

        social: Layout = NetrLayout.from_arrays(dict(arrays), dict(meta))
        return social
    raise IntegrityError(f"unknown layout {name!r}")
