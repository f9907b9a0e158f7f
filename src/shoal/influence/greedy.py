"""Greedy for one hop (first plain form)."""

from __future__ import annotations

from shoal.influence import lazy
from shoal.influence.problem import CoverProblem
from shoal.influence.results import Picked

__all__ = ["solve"]


def solve(problem: CoverProblem) -> Picked:
    """Return the exact greedy sequence at one hop, ties to the smallest row."""
    return lazy.solve(problem)
