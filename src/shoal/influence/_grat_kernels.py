"""Loops of FastCover over flat arrays: the closure of the loss, and the fused forward pass."""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = [
    "attention",
    "closed_balls",
    "first_messages",
    "last_layer",
    "line_heads",
    "middle_layer",
]


@njit(cache=True, nogil=True)
def closed_balls(ptr, ids, hops, ball_ptr, ball_ids):
    """Walk the ball of ``hops`` steps round each node, itself included, nearest first.

    With an empty ``ball_ids`` only ``ball_ptr`` int64 [n + 1] is filled; then call
    again with ``ball_ids`` int32 [ball_ptr[n]].
    """
    n = len(ptr) - 1
    seen = np.full(n, -1, dtype=np.int32)
    queue = np.empty(n, dtype=np.int32)
    keep = len(ball_ids) > 0
    for v in range(n):
        queue[0] = v
        seen[v] = v
        first, size = 0, 1
        for _ in range(hops):
            stop = size
            while first < stop:
                w = queue[first]
                first += 1
                for e in range(ptr[w], ptr[w + 1]):
                    x = ids[e]
                    if seen[x] != v:
                        seen[x] = v
                        queue[size] = x
                        size += 1
        if keep:
            ball_ids[ball_ptr[v] : ball_ptr[v] + size] = queue[:size]
        else:
            ball_ptr[v + 1] = ball_ptr[v] + size


@njit(cache=True, nogil=True)
def first_messages(in_ptr, out_ptr, out_ids):
    """Return x float64 [n]: x_u = sum of 1 / indegree(v) over the nodes v that u influences."""
    n = len(out_ptr) - 1
    share = np.empty(n, dtype=np.float32)
    for v in range(n):
        share[v] = np.float32(1.0) / np.float32(max(in_ptr[v + 1] - in_ptr[v], 1))
    x = np.empty(n, dtype=np.float64)
    for u in range(n):
        total = np.float64(0.0)
        for e in range(out_ptr[u], out_ptr[u + 1]):
            total += share[out_ids[e]]
        x[u] = total
    return x


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def line_heads(x, slope, offset, heads):
    """Return float64 [n, r]: heads float64 [r, h] times relu(x_v * slope + offset)."""
    zero = np.float64(0.0)
    width = len(slope)
    result = np.empty((len(x), len(heads)), dtype=np.float64)
    for v in range(len(x)):
        for r in range(len(heads)):
            total = zero
            for i in range(width):
                total += max(x[v] * slope[i] + offset[i], zero) * heads[r, i]
            result[v, r] = total
    return result


@njit(cache=True, nogil=True)
def attention(in_ptr, in_ids, sender, receiver, halves, pieces, powers):
    """Fill ``powers`` and three columns of ``pieces`` so that an arc's attention needs no exp.

    With s, t the logarithms to base 2 of the factors, T_v the largest t among the
    influencers of v, and M_v = max(0, s_v + T_v):

        alpha_uv = max(2^-M_v, 2^(s_v - M_v) 2^t_u) / Z_v

    No term exceeds 1 and the largest is 1. Both powers are kept as mantissa and whole
    exponent, because logits pass 2,000 on graphs with hubs; ``halves`` multiplies them.

    Parameters
    ----------
    in_ptr, in_ids : CSR
    sender, receiver : float64 [n]
        s and t.
    halves : float32 [h]
        2^0, 2^-1 and so on, then 0.
    pieces : float32 [n, 4]
        Columns 1 to 3: mantissa of 2^(s - M) / Z, its exponent, and 2^-M / Z. Column 0
        is left to the layer.
    powers : float32 [n, 2]
        Mantissa and exponent of 2^t.
    """
    n = len(in_ptr) - 1
    last = np.int64(len(halves) - 1)
    for u in range(n):
        whole = np.floor(receiver[u])
        powers[u, 0] = np.exp2(receiver[u] - whole)
        powers[u, 1] = whole
    for v in range(n):
        first, stop = in_ptr[v], in_ptr[v + 1]
        if first == stop:
            pieces[v, 1] = pieces[v, 2] = pieces[v, 3] = np.float32(0.0)
            continue
        top = receiver[in_ids[first]]
        for e in range(first + 1, stop):
            top = max(top, receiver[in_ids[e]])
        most = max(sender[v] + top, 0.0)
        whole = np.floor(sender[v] - most)
        mantissa = np.float32(np.exp2(sender[v] - most - whole))
        exponent = np.float32(whole)
        least = np.float32(np.exp2(-most)) if most < last else np.float32(0.0)
        total = np.float64(0.0)
        for e in range(first, stop):
            u = in_ids[e]
            at = min(np.int64(-(exponent + powers[u, 1])), last)
            total += max(least, mantissa * powers[u, 0] * halves[at])
        share = np.float32(1.0 / total)
        pieces[v, 1] = mantissa * share
        pieces[v, 2] = exponent
        pieces[v, 3] = least * share


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def middle_layer(out_ptr, out_ids, pieces, powers, halves, slope, offset, columns, bias, heads):
    """Return float32 [n, r]: a hidden layer on rank-one features, and what is asked of it.

    The layer before gave node v relu(x_v * slope + offset): an arc moves the 16 bytes of
    ``pieces`` and the 32 numbers are made again beside it. They are summed two arcs at
    a time, so that the sums travel to memory half as often.

    Parameters
    ----------
    out_ptr, out_ids : CSR
    pieces, powers, halves
        From :func:`attention`; column 0 of ``pieces`` is x.
    slope, offset : float32 [h]
    columns : float32 [h, h2]
        The layer's weights, transposed.
    bias : float32 [h2]
    heads : float32 [r, h2]
        What the next layer asks of relu of this one: its output and its attention.
    """
    n = len(out_ptr) - 1
    width, wide, asked = len(slope), len(bias), len(heads)
    zero = np.float32(0.0)
    last = np.int64(len(halves) - 1)
    gathered = np.empty(width, dtype=np.float32)
    hidden = np.empty(wide, dtype=np.float32)
    result = np.empty((n, asked), dtype=np.float32)
    for u in range(n):
        for i in range(width):
            gathered[i] = zero
        mine, lift = powers[u, 0], powers[u, 1]
        e, stop = out_ptr[u], out_ptr[u + 1]
        while e + 1 < stop:
            v, w = out_ids[e], out_ids[e + 1]
            at = min(np.int64(-(pieces[v, 2] + lift)), last)
            to = min(np.int64(-(pieces[w, 2] + lift)), last)
            a = max(pieces[v, 3], pieces[v, 1] * mine * halves[at])
            b = max(pieces[w, 3], pieces[w, 1] * mine * halves[to])
            x, y = pieces[v, 0], pieces[w, 0]
            for i in range(width):
                line = a * max(x * slope[i] + offset[i], zero)
                gathered[i] += line + b * max(y * slope[i] + offset[i], zero)
            e += 2
        if e < stop:
            v = out_ids[e]
            at = min(np.int64(-(pieces[v, 2] + lift)), last)
            a = max(pieces[v, 3], pieces[v, 1] * mine * halves[at])
            x = pieces[v, 0]
            for i in range(width):
                gathered[i] += a * max(x * slope[i] + offset[i], zero)
        for o in range(wide):
            hidden[o] = bias[o]
        i = 0
        while i + 3 < width:
            p, q, r, s = gathered[i], gathered[i + 1], gathered[i + 2], gathered[i + 3]
            for o in range(wide):
                hidden[o] += (
                    p * columns[i, o]
                    + q * columns[i + 1, o]
                    + r * columns[i + 2, o]
                    + s * columns[i + 3, o]
                )
            i += 4
        while i < width:
            p = gathered[i]
            for o in range(wide):
                hidden[o] += p * columns[i, o]
            i += 1
        for ask in range(asked):
            total = zero
            for o in range(wide):
                total += max(hidden[o], zero) * heads[ask, o]
            result[u, ask] = total
    return result


@njit(cache=True, nogil=True)
def last_layer(out_ptr, out_ids, pieces, powers, halves, bias):
    """Return float32 [n]: the output; column 0 of ``pieces`` is y_v, its weights applied."""
    n = len(out_ptr) - 1
    last = np.int64(len(halves) - 1)
    result = np.empty(n, dtype=np.float32)
    for u in range(n):
        mine, lift = powers[u, 0], powers[u, 1]
        total = np.float64(0.0)  # hubs add thousands of terms: float32 lost three digits here
        for e in range(out_ptr[u], out_ptr[u + 1]):
            v = out_ids[e]
            at = min(np.int64(-(pieces[v, 2] + lift)), last)
            total += max(pieces[v, 3], pieces[v, 1] * mine * halves[at]) * pieces[v, 0]
        result[u] = np.float32(total) + bias
    return result
