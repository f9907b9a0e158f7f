"""The forward pass of GRAT without torch: fused for speed, and plain to hold it against.

Three facts make GRAT3 cheap (exact algebra, no approximation):

* on constant features the first attention is 1 / indegree, so layer 1 is one scalar
  pass x and its output relu(x_u * slope + offset) is a function of that scalar;
* layer 2 therefore moves x instead of 32 numbers along an arc;
* layer 3 has one output: its weights are applied before the arcs, a scalar pass again.

And exp(relu(s + t)) = max(1, e^s e^t) needs no exp an arc. Attention logits of trained
nets pass 2,000 on graphs with hubs, so the powers are shifted by the largest of each
source and kept as mantissa and exponent.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError
from shoal.data.arrayfile import Arrays
from shoal.influence import _grat_kernels as kernels
from shoal.influence.graph import Graph

__all__ = ["forward", "fused_forward", "layer_count", "plain_forward", "vote"]

Singles = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
_Array = npt.NDArray[Any]

#: 2^0 to 2^-64, then 0: beside a term of 1 the rest is nothing, and denormals are slow.
_HALVES = np.append(np.exp2(-np.arange(65.0)), 0.0).astype(np.float32)


def layer_count(weights: Arrays) -> int:
    """Return how many layers the weights of a :class:`~shoal.influence.grat.GRAT` have."""
    return len({name.split(".")[1] for name in weights if name.startswith("layers.")})


def vote(graph: Graph) -> Doubles:
    """Return x float64 [n]: every node splits one unit among those that influence it.

    x_u is the sum of 1 / indegree(v) over the nodes v that u influences: what GRAT
    starts from, and a ranking by itself.
    """
    return np.asarray(kernels.first_messages(graph.in_ptr, graph.out_ptr, graph.out_ids))


def forward(weights: Arrays, graph: Graph) -> Singles:
    """Return the logits of GRAT, float32 [n], by the fastest form that fits.

    Parameters
    ----------
    weights : dict of arrays
        As of ``GRAT.state_dict()``.
    graph : Graph
    """
    fused = fused_forward(weights, graph)
    return plain_forward(weights, graph).astype(np.float32) if fused is None else fused


def fused_forward(weights: Arrays, graph: Graph) -> Singles | None:
    """Return the logits of GRAT3, float32 [n]; None for other depths and for GRATV."""
    if layer_count(weights) != 3 or "layers.0.linear.bias" not in weights:
        return None
    w = {name: np.asarray(array, dtype=np.float32) for name, array in weights.items()}
    x = vote(graph)
    slope = w["layers.0.linear.weight"].sum(axis=1, dtype=np.float64)
    offset = w["layers.0.linear.bias"].astype(np.float64)
    # Layer 2: the attention reads what layer 1 gave; a[0] is the sender's half.
    a = w["layers.1.attention.weight"].reshape(2, -1).astype(np.float64)
    logits = kernels.line_heads(x, slope, offset, a)
    pieces, powers = _attention(graph, logits, w["layers.1.attention.bias"])
    pieces[:, 0] = x
    heads = np.concatenate(
        (w["layers.2.linear.weight"], w["layers.2.attention.weight"].reshape(2, -1))
    )
    asked = kernels.middle_layer(
        graph.out_ptr,
        graph.out_ids,
        pieces,
        powers,
        _HALVES,
        slope.astype(np.float32),
        w["layers.0.linear.bias"],
        np.ascontiguousarray(w["layers.1.linear.weight"].T),
        w["layers.1.linear.bias"],
        heads,
    )
    pieces, powers = _attention(graph, asked[:, 1:], w["layers.2.attention.bias"])
    pieces[:, 0] = asked[:, 0]
    bias = w["layers.2.linear.bias"][0]
    return np.asarray(
        kernels.last_layer(graph.out_ptr, graph.out_ids, pieces, powers, _HALVES, bias)
    )


def _attention(graph: Graph, logits: _Array, bias: Singles) -> tuple[Singles, Singles]:
    """Return (pieces [n, 4], powers [n, 2]) of sender and receiver logits [n, 2]."""
    scaled = logits.astype(np.float64) * math.log2(math.e)
    pieces = np.empty((graph.n, 4), dtype=np.float32)
    powers = np.empty((graph.n, 2), dtype=np.float32)
    sender = np.ascontiguousarray(scaled[:, 0]) + float(bias[0]) * math.log2(math.e)
    receiver = np.ascontiguousarray(scaled[:, 1])
    kernels.attention(graph.in_ptr, graph.in_ids, sender, receiver, _HALVES, pieces, powers)
    return pieces, powers


def plain_forward(weights: Arrays, graph: Graph) -> npt.NDArray[np.float64]:
    """Return the logits of any GRAT or GRATV as its definition has it, float64 [n].

    Raises
    ------
    InputError
        The weights are of no such network.
    """
    source = np.repeat(np.arange(graph.n), graph.out_degrees())
    target = graph.out_ids.astype(np.int64)
    try:
        h = np.ones((graph.n, weights["layers.0.linear.weight"].shape[1]))
        for layer in range(layer_count(weights)):
            if layer:
                h = np.maximum(h, 0.0)
            h = _plain_layer(weights, f"layers.{layer}.", h, source, target)
    except (KeyError, ValueError) as error:
        raise InputError(f"are of no GRAT: {error}", field="weights") from None
    return h[:, 0]


def _plain_layer(weights: Arrays, at: str, h: _Array, source: _Array, target: _Array) -> _Array:
    matrix = weights[at + "linear.weight"].astype(np.float64)
    bias = weights.get(at + "linear.bias")
    if bias is None:
        h = h @ matrix.T
    width = h.shape[1]
    a = weights[at + "attention.weight"].astype(np.float64)[0]
    logits = (h @ a[:width])[target] + (h @ a[width:])[source]
    if bias is None:
        logits = np.where(logits > 0, logits, 0.01 * logits)
    else:
        logits = np.maximum(logits + float(weights[at + "attention.bias"][0]), 0.0)
    n = len(h)
    top = np.full(n, -np.inf)
    np.maximum.at(top, target, logits)
    weight = np.exp(logits - top[target])
    weight /= np.bincount(target, weight, n)[target]
    gathered = np.zeros_like(h)
    np.add.at(gathered, source, weight[:, None] * h[target])
    return gathered if bias is None else gathered @ matrix.T + bias
