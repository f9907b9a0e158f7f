"""Seeds of a graph that changes: exact after every update, without starting again.

What an update cannot have touched is kept (sheet of method FastCover, 6.6, in the
sharper form of ``standing_order``); here are the names, the updates and the files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError, IntegrityError, LimitError, NotFoundError
from shoal.data.arrayfile import Arrays
from shoal.influence import _graph_kernels, swap
from shoal.influence import cover_index_files as files
from shoal.influence.adjacency import Adjacency
from shoal.influence.graph import Graph, Rows
from shoal.influence.greedy import units_of
from shoal.influence.node_names import NodeNames
from shoal.influence.problem import CoverProblem, Mask, fixed_point, make_problem
from shoal.influence.results import Picked
from shoal.influence.standing_order import Checkpoint, StandingOrder

__all__ = ["CoverIndex", "UpdateStats"]


@dataclass(frozen=True)
class UpdateStats:
    """How much work updates took, and how much a build took.

    Attributes
    ----------
    updates : int
        Arcs that were added or removed.
    unchanged : int
        Those after which the whole order still stood.
    rounds_kept, rounds_redone : int
        Picks that stood, and that were made again, summed over all repairs.
    build_arcs, update_arcs : int
        Arcs that searches touched in the first build, and in all repairs since.
    repairs : int
        Times that the order was continued.
    """

    updates: int = 0
    unchanged: int = 0
    rounds_kept: int = 0
    rounds_redone: int = 0
    build_arcs: int = 0
    update_arcs: int = 0
    repairs: int = 0


class CoverIndex:
    """The greedy seeds of a graph under insertion and removal of arcs and nodes.

    ``seeds()`` always equals what greedy chooses on the present graph from nothing,
    ties to the smallest row included. Updates are collected; the order is continued
    when somebody asks.

    Parameters
    ----------
    graph : Graph
        It is copied.
    k : int
        Most seeds.
    hops : int
        1 to 126.
    weights : array-like [n] or mapping, optional
        What each node counts.
    candidates, exclude : iterable of names, optional
        Who may be chosen. With ``candidates``, new nodes are none.
    repair : str
        ``"greedy"``: the seeds are the greedy ones. ``"swap"``: those, refined by
        exchanges after each update that changed something (``refine``), at the price
        of one packing of the graph and one search.

    Examples
    --------
    >>> from shoal.influence import CoverIndex, Graph
    >>> index = CoverIndex(Graph.from_edges([0, 0, 3], [1, 2, 4], directed=True), k=1)
    >>> index.seeds()
    [0]
    >>> index.add_edges([3, 3], [1, 2])
    2
    >>> index.seeds()
    [3]
    """

    def __init__(
        self,
        graph: Graph,
        k: int,
        hops: int = 1,
        *,
        weights: Any = None,
        candidates: Iterable[Any] | None = None,
        exclude: Iterable[Any] | None = None,
        repair: str = "greedy",
    ) -> None:
        problem = make_problem(
            graph, k, hops, weights=weights, candidates=candidates, exclude=exclude
        )
        if repair not in ("greedy", "swap"):
            raise InputError("must be greedy or swap", field="repair", value=repair)
        point = units_of(problem)
        allowed = np.ones(graph.n, dtype=np.uint8) if problem.allowed is None else problem.allowed
        names = None if graph.names is None else graph.labels(np.arange(graph.n))
        self.k, self.hops, self.repair = problem.k, problem.hops, repair
        self.directed = graph.directed
        self._unit = point.unit
        self._weighted = problem.weights is not None
        self._new_allowed = candidates is None
        self._open(graph, names, point.units.copy(), allowed.astype(np.uint8))
        self._order.restart()
        self._order.finish()
        self._order.repairs = self._order.rounds_kept = self._order.rounds_redone = 0
        self._build_arcs = int(self._order.work[0])

    def _open(self, graph: Graph, names: list[Any] | None, units: Rows, allowed: Mask) -> None:
        self._names = NodeNames(graph.n, names)
        self._order = StandingOrder(
            Adjacency(graph.out_ptr, graph.out_ids),
            Adjacency(graph.in_ptr, graph.in_ids),
            self.k,
            self.hops,
            units=units,
            allowed=allowed,
        )
        self._refined: Picked | None = None
        self._updates = self._unchanged = self._build_arcs = 0

    @property
    def stats(self) -> UpdateStats:
        """Return what the build and the updates took so far."""
        order = self._order
        return UpdateStats(
            updates=self._updates,
            unchanged=self._unchanged,
            rounds_kept=order.rounds_kept,
            rounds_redone=order.rounds_redone,
            build_arcs=self._build_arcs,
            update_arcs=int(order.work[0]) - self._build_arcs,
            repairs=order.repairs,
        )

    # --- what is asked ------------------------------------------------------------------------

    @property
    def n(self) -> int:
        """Number of nodes."""
        return self._order.n

    @property
    def m(self) -> int:
        """Number of arcs (an undirected edge counts twice)."""
        return self._order.out.m

    def seeds(self) -> list[Any]:
        """Return the names of the seeds for the present graph, in the order of choice."""
        return self._names.labels(self.picked().rows)

    def picked(self) -> Picked:
        """Return rows and marginal gains of the seeds for the present graph."""
        self._order.finish()
        if self.repair == "swap":
            if self._refined is None:
                self._refined = swap.refine(self.problem(), self._greedy().rows)
            return self._refined
        return self._greedy()

    def covered(self) -> float:
        """Return the weight that the seeds cover."""
        return float(self.picked().gains.sum())

    def graph(self) -> Graph:
        """Return the present graph, packed."""
        return Graph(
            *self._order.out.pack(),
            *self._order.back.pack(),
            directed=self.directed,
            names=None if self._names.names is None else list(self._names.names),
        )

    def problem(self) -> CoverProblem:
        """Return the present question, as solvers take it."""
        graph = self.graph()
        return CoverProblem(
            graph=graph,
            k=min(self.k, max(graph.n, 1)),
            hops=self.hops,
            weights=self._worth(self._order.units) if self._weighted else None,
            allowed=None if self._order.allowed.all() else self._order.allowed.copy(),
        )

    # --- updates ------------------------------------------------------------------------------

    def add_nodes(self, names: Iterable[Any], *, weights: npt.ArrayLike | None = None) -> int:
        """Add isolated nodes; return how many. Known names are left as they are.

        Parameters
        ----------
        names : iterable
        weights : array-like, optional
            One of each name; 1 without it.

        Raises
        ------
        InputError
            A weight is negative or not finite, or the numbers differ.
        """
        given = list(names)
        worth = np.ones(len(given)) if weights is None else np.asarray(weights, dtype=np.float64)
        if worth.shape != (len(given),):
            raise InputError(f"{worth.shape} weights for {len(given)} nodes", field="weights")
        wrong = np.flatnonzero(~(np.isfinite(worth) & (worth >= 0)))
        if len(wrong):
            row = int(wrong[0])
            raise InputError(
                "must be finite and not below 0",
                field="weights",
                value=float(worth[row]),
                row=row + 1,
            )
        if not self._weighted and weights is not None and np.any(worth != 1):
            raise InputError("are not used by this index", field="weights")
        new = self._names.unknown(given)
        fresh = {name: float(worth[place]) for place, name in reversed(list(enumerate(given)))}
        if self.n + len(new) >= 2**31:
            raise LimitError("more nodes than fit int32", field="names")
        if new:
            added = np.array([fresh[name] for name in new])
            units = np.rint(added / self._unit)
            self._names.add(new)
            self._refined = None
            if float(self._order.units.sum()) + units.sum() < 2.0**61:
                self._order.add_nodes(units.astype(np.int64), int(self._new_allowed))
            else:
                # The integers are full: a coarser unit, and the order from nothing.
                point = fixed_point(np.concatenate((self._worth(self._order.units), added)))
                self._order.add_nodes(np.zeros(len(new), dtype=np.int64), int(self._new_allowed))
                self._order.units, self._unit = point.units, point.unit
                self._order.restart()
        return len(new)

    def add_edges(
        self, source: Iterable[Any], target: Iterable[Any], *, new_nodes: bool = False
    ) -> int:
        """Add arcs from ``source`` to ``target`` (both ways if undirected); return how many.

        Arcs that are there and loops are left out. Nothing changes if a name is wrong.

        Parameters
        ----------
        source, target : iterable of names
        new_nodes : bool
            Add nodes whose names are unknown, with weight 1.

        Raises
        ------
        NotFoundError
            A node is unknown and ``new_nodes`` is False.
        InputError
            The numbers of sources and targets differ.
        """
        sources, targets = list(source), list(target)
        if len(sources) != len(targets):
            raise InputError(f"{len(sources)} sources for {len(targets)} targets", field="target")
        if new_nodes:
            self.add_nodes([name for pair in zip(sources, targets, strict=True) for name in pair])
        rows = self._names.rows(sources, "source"), self._names.rows(targets, "target")
        pairs = zip(*rows, strict=True)
        count = 0
        for u, v in pairs:
            if u != v and not self._order.out.has(u, v):
                self._order.insert(u, v)
                if not self.directed:
                    self._order.insert(v, u)
                count += 1
        self._count(count)
        return count

    def remove_edges(self, source: Iterable[Any], target: Iterable[Any]) -> int:
        """Take arcs away (both ways if undirected); return how many.

        Raises
        ------
        NotFoundError
            A node is unknown, or an arc is not there; nothing was changed then.
        InputError
            The numbers of sources and targets differ.
        """
        sources, targets = list(source), list(target)
        if len(sources) != len(targets):
            raise InputError(f"{len(sources)} sources for {len(targets)} targets", field="target")
        rows = self._names.rows(sources, "source"), self._names.rows(targets, "target")
        pairs = list(zip(*rows, strict=True))
        for place, (u, v) in enumerate(pairs):
            if not self._order.out.has(u, v):
                raise NotFoundError(
                    f"row {place + 1}: no arc {sources[place]!r} {targets[place]!r}"
                )
        count = 0
        for u, v in pairs:
            if self._order.out.has(u, v):
                self._order.remove(u, v)
                if not self.directed:
                    self._order.remove(v, u)
                count += 1
        self._count(count)
        return count

    # --- the order and its checkpoints --------------------------------------------------------

    def _greedy(self) -> Picked:
        rows = self._order.rows.astype(np.int64)
        return Picked(rows, self._worth(self._order.gains), True, "greedy", {})

    def _worth(self, units: Rows) -> npt.NDArray[np.float64]:
        return np.asarray(units * self._unit, dtype=np.float64)

    def _count(self, count: int) -> None:
        if count:
            self._refined = None
        self._updates += count
        self._unchanged += count if self._order.over else 0

    # --- files --------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the index into a folder, with everything that updates need."""
        self._order.finish()
        out_ptr, out_ids = self._order.out.pack()
        arrays: Arrays = {
            "out_ptr": out_ptr,
            "out_ids": out_ids,
            "units": self._order.units,
            "allowed": self._order.allowed,
            "rows": self._order.rows,
            "gains": self._order.gains,
            "turns": np.array([point.turn for point in self._order.points], dtype=np.int64),
            "bounds": np.stack([point.bound for point in self._order.points]),
            "labels": np.stack([point.label for point in self._order.points]),
            **files.join_names(self._names.names),
        }
        facts = {
            "k": self.k,
            "hops": self.hops,
            "directed": self.directed,
            "repair": self.repair,
            "unit": self._unit.hex(),
            "weighted": self._weighted,
            "new_nodes_allowed": self._new_allowed,
            "nodes": self.n,
            "arcs": self.m,
            "graph_sha256": files.graph_hash(arrays, directed=self.directed),
        }
        files.write_index(folder, arrays, facts)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> CoverIndex:
        """Return an index that was saved; it is checked against its checksums.

        Raises
        ------
        NotFoundError
            There is none.
        IntegrityError
            A file is damaged, or does not fit the others.
        """
        arrays, facts = files.read_index(folder)
        index = cls.__new__(cls)
        try:
            if facts["graph_sha256"] != files.graph_hash(arrays, directed=facts["directed"]):
                raise IntegrityError(f"{folder}: the graph is not the one of the manifest")
            index.k, index.hops = int(facts["k"]), int(facts["hops"])
            index.repair, index.directed = str(facts["repair"]), bool(facts["directed"])
            index._unit = float.fromhex(facts["unit"])
            index._weighted = bool(facts["weighted"])
            index._new_allowed = bool(facts["new_nodes_allowed"])
            n = len(arrays["out_ptr"]) - 1
            in_ptr, in_ids, _ = _graph_kernels.transpose(n, arrays["out_ptr"], arrays["out_ids"])
            graph = Graph(
                arrays["out_ptr"], arrays["out_ids"], in_ptr, in_ids, directed=index.directed
            )
            index._open(
                graph, files.split_names(arrays), arrays["units"].copy(), arrays["allowed"].copy()
            )
            index._order.rows, index._order.gains = arrays["rows"].copy(), arrays["gains"].copy()
            index._order.points = [
                Checkpoint(turn, arrays["bounds"][place].copy(), arrays["labels"][place].copy())
                for place, turn in enumerate(arrays["turns"].tolist())
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(f"{folder}: the manifest or the arrays lack {error}") from error
        index._order.over = True
        return index
