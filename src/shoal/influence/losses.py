"""The loss of FastCover: expected number of uncovered nodes plus the size of the set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from shoal.core.errors import InputError, LimitError
from shoal.influence import _grat_kernels as kernels
from shoal.influence.graph import Graph

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Closure", "closure_of", "cover_loss", "log_missed"]

#: Pairs of a closure that training takes on: 20 bytes each with gradients.
MAX_PAIRS = 400_000_000


@dataclass(frozen=True)
class Closure:
    """All pairs (i, j) with j within d hops of i, j = i included, on one device.

    Attributes
    ----------
    n : int
        Nodes.
    hops : int
        d.
    influencer, influenced : int [pairs]
        i and j; pairs of one j stand together.
    """

    n: int
    hops: int
    influencer: Tensor
    influenced: Tensor


def closure_of(graph: Graph, hops: int, *, device: str | torch.device = "cpu") -> Closure:
    """Return the closure of a graph over ``hops`` steps.

    Raises
    ------
    InputError
        ``hops`` is below 1.
    LimitError
        The closure has more than 400 million pairs: train on smaller graphs.
    """
    if hops < 1:
        raise InputError("must be at least 1", field="hops", value=hops)
    ptr = np.zeros(graph.n + 1, dtype=np.int64)
    none = np.empty(0, dtype=np.int32)
    kernels.closed_balls(graph.in_ptr, graph.in_ids, np.int64(hops), ptr, none)
    if ptr[-1] > MAX_PAIRS:
        raise LimitError(
            f"{ptr[-1]:,} pairs within {hops} hops; training takes up to {MAX_PAIRS:,}",
            hint="train on smaller graphs: the weights carry over to large ones",
        )
    ids = np.empty(ptr[-1], dtype=np.int32)
    if len(ids):
        kernels.closed_balls(graph.in_ptr, graph.in_ids, np.int64(hops), ptr, ids)
    influenced = np.repeat(np.arange(graph.n, dtype=np.int32), np.diff(ptr))
    return Closure(
        graph.n,
        hops,
        torch.from_numpy(ids).to(device),
        torch.from_numpy(influenced).to(device),
    )


def log_missed(logits: Tensor, closure: Closure) -> Tensor:
    """Return the logarithm of the probability that each node stays uncovered, float [n].

    log prod (1 - p_i) over the nodes i within d hops, with 1 - sigmoid(x) = sigmoid(-x).
    """
    stays = functional.logsigmoid(-logits)
    return stays.new_zeros(closure.n).index_add(
        0, closure.influenced, stays.index_select(0, closure.influencer)
    )


def cover_loss(logits: Tensor, closure: Closure, *, size_weight: float = 1.0) -> Tensor:
    r"""Return :math:`\sum_j \prod_{i \in N_d^-[j]} (1 - p_i) + C \sum_i p_i`.

    As in the official code of FastCover (Ni et al., arXiv 2111.00463), which builds a
    dense n x n tensor for it; this is the same value in the size of the closure.

    Parameters
    ----------
    logits : float [n]
        p is their sigmoid.
    closure : Closure
    size_weight : float
        C.
    """
    uncovered = torch.exp(log_missed(logits, closure)).sum()
    return uncovered + size_weight * torch.sigmoid(logits).sum()
