"""A moment between two writes, of which segments are built and kept."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.spatial.memtable import MemtableView
from shoal.spatial.segment import SegmentView

__all__ = ["Cut"]


@dataclass(frozen=True, slots=True)
class Cut:
    """All rows at one moment between two writes, of which segments are built and kept.

    ``journal`` is the first journal file with writes after that moment.
    """

    views: tuple[SegmentView, ...]
    memory: tuple[MemtableView, ...] = ()
    journal: int = 0
