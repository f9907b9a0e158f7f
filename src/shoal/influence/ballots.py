"""Overlap-aware FastCover: each uncovered node votes for one influencer, in a few passes.

GRAT lets every node split one unit of attention among the nodes that influence it
directly, and one forward pass ranks all nodes. Two things are lost: influence over
several hops, and the overlap of the chosen. Here

* the strength of a node is a small learned network of how much it reaches that is not
  covered yet (four counts of walks, by one sweep a hop);
* each uncovered node gives its whole unit to the strongest node within d hops: the
  attention of GRAT at temperature zero, over d hops at once, by one sweep a hop;
* the nodes with the most votes are chosen, what they cover is discounted, and the next
  pass counts anew (four passes by default).

What is learned is the strength; votes and discount are arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError
from shoal.data.arrayfile import Arrays
from shoal.influence import _ballot_kernels as kernels
from shoal.influence.counting import distance_labels
from shoal.influence.graph import Graph

__all__ = ["FEATURES", "BallotNet", "batch_sizes", "cast_votes", "features", "select"]

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int8]
Rows = npt.NDArray[np.int64]

#: What the network reads of a node: logarithms of counts, and how near it is to a seed.
FEATURES = (
    "log reach",
    "log reach, shared by the square root of the indegree",
    "log reach, shared by the indegree",
    "log reach, nodes and steps shared by the indegree",
    "log outdegree",
    "log indegree",
    "distance from the seeds",
    "log of how many are chosen in this pass",
)

_ROW_BITS = np.int64(0x7FFFFFFF)


@dataclass(frozen=True)
class BallotNet:
    """The network that gives a node its strength: a line plus one hidden layer of relu.

    Attributes
    ----------
    arrays : dict of float32 arrays
        ``mean`` and ``scale`` [8] of the features in training, ``linear`` [8],
        ``hidden.weight`` [h, 8], ``hidden.bias`` [h], ``output`` [h].
    """

    arrays: Arrays

    def strengths(self, inputs: Singles) -> Singles:
        """Return the strength of each node, float32 [n], from features float32 [n, 8]."""
        a = self.arrays
        x = (inputs - a["mean"]) / a["scale"]
        hidden = np.maximum(x @ a["hidden.weight"].T + a["hidden.bias"], 0)
        return np.asarray(x @ a["linear"] + hidden @ a["output"], dtype=np.float32)


def features(graph: Graph, labels: Labels, hops: int, batch: int) -> Singles:
    """Return the features of every node, float32 [n, 8], given the seeds' distance labels.

    Parameters
    ----------
    graph : Graph
    labels : int8 [n]
        As :func:`~shoal.influence.counting.distance_labels` returns them.
    hops : int
    batch : int
        How many nodes this pass is to choose: with few the gain counts, with many the
        overlap among them.
    """
    table = np.empty((graph.n, len(FEATURES)), dtype=np.float32)
    lanes = kernels.reach_lanes(graph.out_ptr, graph.out_ids, graph.in_ptr, labels, np.int64(hops))
    table[:, :4] = np.log1p(lanes)
    table[:, 4] = np.log1p(graph.out_degrees())
    table[:, 5] = np.log1p(graph.in_degrees())
    table[:, 6] = np.minimum(labels, hops + 1) / np.float32(hops + 1)
    table[:, 7] = np.log1p(batch)
    return table


def cast_votes(
    graph: Graph,
    labels: Labels,
    hops: int,
    strengths: Singles,
    *,
    allowed: npt.NDArray[np.uint8] | None = None,
) -> Rows:
    """Return how many uncovered nodes name each node as the strongest within ``hops``, int64.

    Ties go to the smallest row. Nodes that may not be chosen get no vote.

    Raises
    ------
    InputError
        A strength is not finite; the row is named.
    """
    wrong = np.flatnonzero(~np.isfinite(strengths))
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            "the strength of a node is not finite", row=row + 1, value=float(strengths[row])
        )
    # A float's bits in order: negative numbers have theirs turned round.
    bits = strengths.astype(np.float32).view(np.int32).astype(np.int64)
    bits = np.where(bits < 0, -1 - (bits & _ROW_BITS), bits) + np.int64(2**31)
    keys = (bits << 31) | (_ROW_BITS - np.arange(graph.n, dtype=np.int64))
    barred = labels == 0 if allowed is None else (labels == 0) | (allowed == 0)
    keys[barred] = -1
    votes = np.zeros(graph.n, dtype=np.int64)
    kernels.tally(graph.in_ptr, graph.in_ids, labels, np.int64(hops), keys, votes)
    return votes


def batch_sizes(k: int, passes: int, growth: float = 1.5) -> list[int]:
    """Return how many nodes each pass chooses: growing, because early choices overlap most."""
    shares = growth ** np.arange(passes)
    ends = np.rint(np.cumsum(shares) / shares.sum() * k).astype(int).tolist()
    sizes, done = [], 0
    for end in ends:
        size = min(max(end - done, 1), k - done)
        sizes.append(size)
        done += size
    return [size for size in sizes if size]


def select(
    graph: Graph,
    k: int,
    hops: int,
    net: BallotNet,
    *,
    passes: int = 4,
    allowed: npt.NDArray[np.uint8] | None = None,
) -> Rows:
    """Return up to ``k`` rows in the order in which they were chosen, int64.

    Fewer if everything that can be covered is covered. Each pass costs 2 d sweeps over
    the arcs and one search from the chosen.

    Parameters
    ----------
    graph : Graph
    k, hops : int
    net : BallotNet
    passes : int
        Of equal work; more passes see more overlap. If some node got no vote in time,
        further passes follow.
    allowed : uint8 [n], optional
        1 where a node may be chosen.
    """
    chosen = np.empty(0, dtype=np.int64)
    sizes = batch_sizes(k, passes)
    turn = 0
    while len(chosen) < k:
        labels = distance_labels(graph, chosen, hops)
        room = min(sizes[turn] if turn < len(sizes) else k, k - len(chosen))
        strengths = net.strengths(features(graph, labels, hops, room))
        votes = cast_votes(graph, labels, hops, strengths, allowed=allowed)
        order = np.lexsort((-strengths, -votes))[:room]
        found = order[votes[order] > 0]
        if not len(found):
            break
        chosen = np.concatenate((chosen, found.astype(np.int64)))
        turn += 1
    return chosen
