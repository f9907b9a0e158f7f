"""GRAT, graph reversed attention: the network of FastCover, in plain torch.

An arc (u, v) of the graph says that u influences v. Messages run against it: u gathers
from the nodes that it can reach, and every node v splits one unit of attention among
the nodes that could influence it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from shoal.core.errors import InputError, UnavailableError
from shoal.influence.graph import Graph

try:
    import torch
    from torch import nn
    from torch.nn import functional
except ImportError as error:  # pragma: no cover - tested in a process without torch
    raise UnavailableError(
        f"training FastCover needs torch: {error}", hint="install shoal[influence,torch]"
    ) from error

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = torch.Tensor

__all__ = ["GRAT", "Arcs", "GRATConv", "arcs_of", "reversed_softmax"]

#: The layers compute this form of attention.
VARIANTS = ("GRAT", "GRATV")


@dataclass(frozen=True)
class Arcs:
    """The arcs of a graph as tensors on one device.

    Attributes
    ----------
    n : int
        Nodes.
    influencer, influenced : int64 [m]
        u and v of each arc (u, v).
    """

    n: int
    influencer: Tensor
    influenced: Tensor


def arcs_of(graph: Graph, *, device: str | torch.device = "cpu") -> Arcs:
    """Return the arcs of a graph on a device."""
    counts = torch.from_numpy(graph.out_degrees())
    source = torch.repeat_interleave(torch.arange(graph.n, dtype=torch.int64), counts)
    target = torch.from_numpy(graph.out_ids.astype("int64"))
    return Arcs(graph.n, source.to(device), target.to(device))


def reversed_softmax(logits: Tensor, arcs: Arcs) -> Tensor:
    """Return the arcs' attention: a softmax over all arcs (u, v) of the same v.

    Shifted by the largest logit of each v: on graphs with hubs logits pass 300, where
    exp overflows float32 and the softmax would be no number.

    Parameters
    ----------
    logits : float [m]
    arcs : Arcs

    Returns
    -------
    float [m]
        Sums to 1 at every node v that anybody influences.
    """
    top = logits.new_zeros(arcs.n).scatter_reduce(
        0, arcs.influenced, logits.detach(), "amax", include_self=False
    )
    weight = torch.exp(logits - top[arcs.influenced])
    total = weight.new_zeros(arcs.n).index_add(0, arcs.influenced, weight)
    return weight / total[arcs.influenced]


class GRATConv(nn.Module):  # type: ignore[misc]
    r"""One layer of graph reversed attention (Ni et al., arXiv 2111.00463; official code).

    .. math::
        e_{uv} = \mathrm{relu}(a^T [h_v \| h_u] + b_a), \quad
        \alpha_{uv} = \mathrm{softmax}_{u \in N^-(v)}(e_{uv}), \quad
        h'_u = W \sum_{v \in N^+(u)} \alpha_{uv} h_v + b

    The attention reads h before W. There is no self-loop, no residual and one head;
    weights start as PyTorch's linear layers do. A node that influences nobody gets b.

    The variant ``"GRATV"`` multiplies by W first, has no bias, uses leaky relu (slope
    0.01) and starts from Xavier's normal distribution.

    Parameters
    ----------
    inputs, outputs : int
        Width of h and of h'.
    variant : "GRAT" or "GRATV"
    """

    def __init__(self, inputs: int, outputs: int, *, variant: str = "GRAT") -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise InputError(f"must be one of {VARIANTS}", field="variant", value=variant)
        self.variant = variant
        plain = variant == "GRAT"
        self.linear = nn.Linear(inputs, outputs, bias=plain)
        self.attention = nn.Linear(2 * (inputs if plain else outputs), 1, bias=plain)
        if not plain:
            nn.init.xavier_normal_(self.linear.weight)
            nn.init.xavier_normal_(self.attention.weight)

    def forward(self, h: Tensor, arcs: Arcs) -> Tensor:
        """Return h', float [n, outputs], of h float [n, inputs]."""
        if self.variant == "GRATV":
            z = self.linear(h)
            return _gather(z, self.weigh(z, arcs), arcs)
        gathered: Tensor = self.linear(_gather(h, self.weigh(h, arcs), arcs))
        return gathered

    def weigh(self, h: Tensor, arcs: Arcs) -> Tensor:
        """Return the attention of each arc, float [m]; the sender's half of a comes first."""
        width = h.shape[1]
        a = self.attention.weight[0]
        sender, receiver = h @ a[:width], h @ a[width:]
        logits = sender[arcs.influenced] + receiver[arcs.influencer]
        if self.attention.bias is not None:
            logits = logits + self.attention.bias
        active = functional.leaky_relu if self.variant == "GRATV" else functional.relu
        return reversed_softmax(active(logits), arcs)


def _gather(h: Tensor, weight: Tensor, arcs: Arcs) -> Tensor:
    messages = weight[:, None] * h[arcs.influenced]
    return h.new_zeros(arcs.n, h.shape[1]).index_add(0, arcs.influencer, messages)


class GRAT(nn.Module):  # type: ignore[misc]
    """A stack of GRAT layers from constant features to one logit a node.

    Every node starts from ``hidden`` ones; relu stands between layers. The paper's
    launcher uses three layers of 32. Rank nodes by the logit; its sigmoid is the
    probability of the loss.

    Parameters
    ----------
    layers : int
        2, 3 or 4 in the paper's code.
    hidden : int
    variant : "GRAT" or "GRATV"
    """

    def __init__(self, layers: int = 3, hidden: int = 32, *, variant: str = "GRAT") -> None:
        super().__init__()
        if layers < 1 or hidden < 1:
            raise InputError("must be at least 1", field="layers" if layers < 1 else "hidden")
        self.hidden = hidden
        widths = [hidden] * layers + [1]
        self.layers = nn.ModuleList(GRATConv(a, b, variant=variant) for a, b in pairwise(widths))

    def forward(self, arcs: Arcs) -> Tensor:
        """Return the logits, float [n]."""
        first: Any = self.layers[0].linear.weight
        h = first.new_ones(arcs.n, self.hidden)
        for place, layer in enumerate(self.layers):
            h = layer(h if place == 0 else functional.relu(h), arcs)
        return h[:, 0]
