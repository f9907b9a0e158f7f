"""The nets that the official code of FastCover holds GRAT against: GCN, GAT and APPNP.

Plain torch, called like :class:`shoal.influence.GRAT` with the arcs of a graph, hidden
width 32; messages run from the influenced to the influencer in all of them, so that
only the way of weighing them differs. They train in the same loop::

    weights, report = train_grat(graphs, validation, hops, config=GRATConfig(), seed=42,
                                 network=GCN)
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from shoal.influence.grat import Arcs

__all__ = ["APPNP", "GAT", "GCN", "NETS"]


def _degrees(arcs: Arcs, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return (outdegree, indegree), at least 1, of every node."""
    one = like.new_ones(len(arcs.influencer))
    zero = like.new_zeros(arcs.n)
    return (
        zero.index_add(0, arcs.influencer, one).clamp_min(1),
        zero.index_add(0, arcs.influenced, one).clamp_min(1),
    )


def _gather(h: Tensor, weight: Tensor, arcs: Arcs) -> Tensor:
    messages = weight[:, None] * h[arcs.influenced]
    return h.new_zeros(arcs.n, h.shape[1]).index_add(0, arcs.influencer, messages)


def _symmetric(arcs: Arcs, like: Tensor) -> Tensor:
    out, into = _degrees(arcs, like)
    return (out[arcs.influencer] * into[arcs.influenced]).rsqrt()


class GCN(nn.Module):
    """Graph convolution (Kipf and Welling 2017) on the outdegree, three layers.

    Constant features would tell it nothing but the degree by way of the normalisation,
    so the logarithm of the outdegree is given to it.
    """

    def __init__(self, layers: int = 3, hidden: int = 32) -> None:
        super().__init__()
        widths = [hidden] * layers + [1]
        self.hidden = hidden
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, arcs: Arcs) -> Tensor:
        like = self.layers[0].weight
        out, _ = _degrees(arcs, like)
        h = torch.log1p(out)[:, None].expand(arcs.n, self.hidden)
        weight = _symmetric(arcs, like)
        for place, layer in enumerate(self.layers):
            h = torch.relu(h) if place else h
            h = layer(_gather(h, weight, arcs) + h)
        return h[:, 0]


class GAT(nn.Module):
    """Graph attention (Velickovic et al. 2018), three layers: the softmax is the receiver's."""

    def __init__(self, layers: int = 3, hidden: int = 32) -> None:
        super().__init__()
        widths = [hidden] * layers + [1]
        self.hidden = hidden
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.attention = nn.ModuleList(nn.Linear(2 * width, 1) for width in widths[1:])

    def forward(self, arcs: Arcs) -> Tensor:
        like = self.layers[0].weight
        out, _ = _degrees(arcs, like)
        h = torch.log1p(out)[:, None].expand(arcs.n, self.hidden)
        for place, (layer, attention) in enumerate(zip(self.layers, self.attention, strict=True)):
            h = torch.relu(h) if place else h
            z = layer(h)
            width = z.shape[1]
            a = attention.weight[0]
            logits = (z @ a[:width])[arcs.influenced] + (z @ a[width:])[arcs.influencer]
            logits = nn.functional.leaky_relu(logits + attention.bias, 0.2)
            top = z.new_zeros(arcs.n).scatter_reduce(
                0, arcs.influencer, logits.detach(), "amax", include_self=False
            )
            weight = torch.exp(logits - top[arcs.influencer])
            total = z.new_zeros(arcs.n).index_add(0, arcs.influencer, weight)
            h = _gather(z, weight / total[arcs.influencer], arcs) + z
        return h[:, 0]


class APPNP(nn.Module):
    """Personalised propagation of a small net's predictions (Klicpera et al. 2019)."""

    def __init__(self, steps: int = 3, hidden: int = 32, restart: float = 0.1) -> None:
        super().__init__()
        self.steps, self.restart = steps, restart
        self.net = nn.Sequential(nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, arcs: Arcs) -> Tensor:
        like = self.net[0].weight
        out, _ = _degrees(arcs, like)
        first = self.net(torch.log1p(out)[:, None])
        weight = _symmetric(arcs, like)
        h = first
        for _ in range(self.steps):
            h = (1 - self.restart) * _gather(h, weight, arcs) + self.restart * first
        return h[:, 0]


NETS = {"GCN": GCN, "GAT": GAT, "APPNP": APPNP}
