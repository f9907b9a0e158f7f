"""Answers: what a solver picked, a bound on what anyone could pick, and the two together."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError
from shoal.influence.graph import Graph, Rows

__all__ = ["Bound", "CoverResult", "Picked"]

Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Picked:
    """What a solver chose, in rows.

    Attributes
    ----------
    rows : int64 [s]
        In the order of choice.
    gains : float64 [s]
        Weight that each seed added when it was chosen.
    finished : bool
        False: the time ran out, or the user did.
    method : str
        What ran.
    work : dict
        Counts of what it took: ``arcs`` touched, ``evaluations``, ``refreshes`` ...
    """

    rows: Rows
    gains: Floats
    finished: bool
    method: str
    work: dict[str, int | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Bound:
    """Most that any choice within the same limits can cover.

    Attributes
    ----------
    value : float
    kind : str
        ``"proven"``, or ``"statistical"`` where it stands on a sample.
    method : str
    iterations : int
    seconds : float
    weights : float64 [n], optional
        The multipliers (lambda) that prove it.
    """

    value: float
    kind: str
    method: str
    iterations: int = 0
    seconds: float = 0.0
    weights: Floats | None = None


@dataclass(frozen=True)
class CoverResult:
    """Seeds, what they cover, and how far from the best possible that can be.

    Attributes
    ----------
    seeds : list
        Names, in the order of choice: the first j of them are the answer for k = j.
    rows : int64 [s]
        The same as rows of the graph.
    gains : float64 [s]
        Weight that each seed added at its turn. After a refinement: of the refined
        set, in its own greedy order.
    covered, total : float
        Weight within ``hops`` of the seeds, and of all nodes.
    upper_bound : float, optional
        No choice within the same limits covers more, if a certificate was asked for.
    bound_kind : str, optional
        ``"proven"`` or ``"statistical"``.
    ratio : float, optional
        ``covered / upper_bound``.
    method, refine : str
        What ran.
    hops, k : int
    timings : dict
        Seconds of wall clock of each step; ``cpu`` is the processor time of all.
    notes : tuple of str
        What a reader should know: fewer seeds than asked for, time ran out ...
    finished : bool
        False: stopped before its end.
    graph : Graph
    weights : float64 [n], optional
        The nodes' weights, if there were any.
    work : dict
        Counts of what it took.
    """

    seeds: list[Any]
    rows: Rows
    gains: Floats
    covered: float
    total: float
    upper_bound: float | None
    bound_kind: str | None
    ratio: float | None
    method: str
    refine: str | None
    hops: int
    k: int
    timings: dict[str, float]
    notes: tuple[str, ...]
    finished: bool
    graph: Graph = field(repr=False, compare=False)
    weights: Floats | None = field(default=None, repr=False, compare=False)
    work: dict[str, int | float] = field(default_factory=dict, repr=False, compare=False)

    def curve(self) -> Floats:
        """Return the weight covered by the first 0, 1, ... s seeds, float64 [s + 1]."""
        return np.concatenate(([0.0], np.cumsum(self.gains)))

    def prefix(self, k: int) -> CoverResult:
        """Return the answer for fewer seeds: the first ``k``. A bound does not carry over.

        Raises
        ------
        InputError
            ``k`` is no number from 0 to the number of seeds.
        """
        if isinstance(k, bool) or not isinstance(k, int | np.integer):
            raise InputError("must be a whole number", field="k", value=k)
        if not 0 <= k <= len(self.rows):
            raise InputError(f"must be 0 to {len(self.rows)}", field="k", value=k)
        notes = self.notes if k == len(self.rows) else (*self.notes, f"the first {k} seeds of more")
        return CoverResult(
            seeds=self.seeds[:k],
            rows=self.rows[:k].copy(),
            gains=self.gains[:k].copy(),
            covered=float(self.gains[:k].sum()),
            total=self.total,
            upper_bound=None,
            bound_kind=None,
            ratio=None,
            method=self.method,
            refine=self.refine,
            hops=self.hops,
            k=int(k),
            timings=dict(self.timings),
            notes=notes,
            finished=self.finished,
            graph=self.graph,
            weights=self.weights,
            work=dict(self.work),
        )

    def explain(self, node: Any) -> Any:
        """Return whom the seed ``node`` covers, and whom it alone covers."""
        # Late, because explaining.py knows results.
        return importlib.import_module("shoal.influence.explaining").explain(self, node)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            "seeds": list(self.seeds),
            "gains": [float(gain) for gain in self.gains],
            "covered": self.covered,
            "total": self.total,
            "share": self.covered / self.total if self.total else 0.0,
            "upper_bound": self.upper_bound,
            "bound_kind": self.bound_kind,
            "ratio": self.ratio,
            "method": self.method,
            "refine": self.refine,
            "hops": self.hops,
            "k": self.k,
            "finished": self.finished,
            "notes": list(self.notes),
            "timings": dict(self.timings),
            "work": dict(self.work),
        }
