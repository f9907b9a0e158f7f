"""Places as columns, and what is known about their attributes: what layouts are built from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError
from shoal.core.settings import Settings
from shoal.spatial.query import Answers, QueryPlan

__all__ = ["MISSING", "AttributeSpec", "Layout", "PlaceColumns", "SearchStats"]

#: What a missing attribute (NaN) counts as, in the order of the kernels' codes.
MISSING = ("worst", "neutral", "exclude")


class AttributeSpec(Settings):
    """One numeric attribute of the places.

    Its range is fixed when the index is made, so that a value means the same
    cost in every segment and after every update; values outside are clipped.

    Parameters
    ----------
    name : str
        Name used by ``prefer`` and ``where``.
    low, high : float
        Values of cost 0 and 1 when less is better (``low < high``).
    missing : {"worst", "neutral", "exclude"}
        What a place without a value gets when the attribute is preferred:
        cost 1, cost 1/2, or no place in the answer.
    """

    name: str
    low: float
    high: float
    missing: Literal["worst", "neutral", "exclude"] = "worst"

    def model_post_init(self, _context: object, /) -> None:
        """Check the range."""
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise InputError(
                "an attribute's range must be finite with low < high",
                field=self.name,
                value=(self.low, self.high),
            )

    @property
    def span(self) -> float:
        """Return ``high - low``."""
        return self.high - self.low

    @property
    def missing_code(self) -> int:
        """Return the kernels' code of ``missing``."""
        return MISSING.index(self.missing)


@dataclass(frozen=True, slots=True)
class PlaceColumns:
    """Checked places in columns: the one input of every layout.

    Parameters
    ----------
    keys : int64 [n]
        Unique key of each place; ties are broken by the smaller one.
    lon, lat : float64 [n]
        Degrees, finite, in [-180, 180] and [-90, 90].
    words : list of str
        The vocabulary, each word once, sorted by its UTF-8 bytes.
    word_ptr : int64 [n + 1], word_ids : int32 [word_ptr[n]]
        CSR of each place's words as positions in ``words``, ascending, each once.
    values : float64 [d, n]
        Attributes as given, NaN where missing; row j belongs to the j-th
        :class:`AttributeSpec` of the index.
    """

    keys: npt.NDArray[np.int64]
    lon: npt.NDArray[np.float64]
    lat: npt.NDArray[np.float64]
    words: Sequence[str]
    word_ptr: npt.NDArray[np.int64]
    word_ids: npt.NDArray[np.int32]
    values: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(slots=True)
class SearchStats:
    """What a search touched; summed over segments and terms."""

    #: Nodes taken from a queue (trees of every kind).
    nodes: int = 0
    #: Places whose score was computed in full.
    scored: int = 0
    #: Places or postings that were looked at.
    looked_at: int = 0
    #: Further counts of a layout, by name (bitmap prunes, skyline tests, scans).
    more: dict[str, int] = field(default_factory=dict)


class Layout(Protocol):
    """An immutable, exact arrangement of places: what ``packed`` and ``quad_cluster`` are.

    Rows are the layout's own order. Scores are computed by ``_score`` alone, so
    every layout gives the same float64 to the last bit.
    """

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    @property
    def keys(self) -> npt.NDArray[np.int64]:
        """Return the key of each row, int64 [n]."""
        ...

    def document_frequency(self, words: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return in how many rows each word occurs; 0 for an unknown one."""
        ...

    def search(
        self,
        plan: QueryPlan,
        answers: Answers,
        live: npt.NDArray[np.uint8] | None = None,
        stats: SearchStats | None = None,
    ) -> None:
        """Offer every row that can be among the best ``plan.k`` to ``answers``.

        ``answers`` may already hold answers of other segments: their worst is
        the threshold from the start. ``live`` (uint8 [n], 1 = alive) hides
        deleted rows. Releases the GIL; any number of threads may search.
        """
        ...

    def parts(
        self, plan: QueryPlan, rows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Return (parts [m, 5] in the order of PARTS, distance km [m], qualifies [m]) of rows."""
        ...

    def positions(
        self, rows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return (lon, lat) of rows, degrees, float64 each."""
        ...

    def columns(self) -> PlaceColumns:
        """Return the places as columns, in row order (for merging and export)."""
        ...

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the flat arrays that a file holds, by name."""
        ...

    def meta(self) -> dict[str, object]:
        """Return what ``from_arrays`` needs beside the arrays; JSON only."""
        ...
