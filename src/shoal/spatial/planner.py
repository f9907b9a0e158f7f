"""When a search with a social part gives its tree up and scans.

Best-first search pays while bounds turn most leaves away. Where the social part
dominates and friends do not live close together, nearly every leaf must be
opened, and a queue of nodes is then work for nothing. So a search that has opened
``probe`` families of sibling leaves (256 places each) and is not done takes
families from all over the rows, and counts how many of their leaves may still
hold an answer at the threshold it has found by then. Above ``share`` it goes
through the leaves in the order of their rows, under the same bounds: answers are
the same to the last bit, and the cost is at most that of one pass over all vectors.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shoal.core.settings import Settings

__all__ = ["Planner"]


class Planner(Settings):
    """When a search scans.

    Parameters
    ----------
    mode : {"auto", "tree", "scan"}
        Look, never scan, or always scan.
    probe : int
        Families of 16 leaves, of 16 places each, that are opened before it looks.
    sample : int
        Leaves that it looks at; a multiple of 16, the siblings of a family.
    share : float
        Share of these that may still hold an answer, above which it scans.
    """

    mode: Literal["auto", "tree", "scan"] = "auto"
    probe: int = Field(default=16, ge=1, le=4096)
    sample: int = Field(default=64, ge=16, le=4096, multiple_of=16)
    share: float = Field(default=0.25, ge=0.0, le=1.0)

    @property
    def mode_code(self) -> int:
        """Return the kernel's code of ``mode``."""
        return ("auto", "tree", "scan").index(self.mode)
