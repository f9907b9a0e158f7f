"""Kernels that build the QDR-Tree's nodes: boxes, attributes, skylines and bitmaps."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from shoal.spatial._score import attribute_cost
from shoal.spatial._skyline_kernels import merge_surplus, put_in_window

__all__ = ["attribute_costs", "build_tree"]


@njit(cache=True, nogil=True)
def attribute_costs(values32, values64, wide, low, span, missing):
    """Return what bounds may assume of each row: (least, most) cost, float64 [n, d].

    Costs are of the orientation "lower is better" and after the NaN policy.
    ``worst`` and ``exclude`` can never make a row better than its other
    attributes do, in either direction, so they are (1, 0): they add nothing to
    the minima nor to the maxima.
    """
    d = len(low)
    n = values64.shape[1] if wide else values32.shape[1]
    least = np.empty((n, d), dtype=np.float64)
    most = np.empty((n, d), dtype=np.float64)
    for c in range(d):
        for row in range(n):
            value = values64[c, row] if wide else np.float64(values32[c, row])
            if math.isnan(value) and missing[c] != 1:
                least[row, c] = 1.0
                most[row, c] = 0.0
            else:
                cost = attribute_cost(value, low[c], span[c], False, missing[c])
                least[row, c] = cost
                most[row, c] = cost
    return least, most


@njit(cache=True, nogil=True)
def build_tree(
    rows, vectors, least, most, word_ptr, word_ids, leaf_of, bit_of, tree, width, fan_out, cap
):
    """Build the nodes of one DR-Tree over ``rows``, packed in the given order.

    Parameters
    ----------
    rows : int64 [m]
        Members, at least one, in an order that keeps neighbours together.
    vectors : float64 [n, 3]
    least, most : float32 [n, d]
        :func:`attribute_costs`, rounded down and up.
    word_ptr, word_ids : int64 [n + 1], int32
        Words of each row.
    leaf_of, bit_of : int32 [V]
        Tree of each word and its bit there.
    tree, width : int
        This tree, and its bitmaps' length in words of 64 bits (0: none).
    fan_out, cap : int
        Children of a node; most points of a skyline.

    Returns
    -------
    tuple
        (boxes float64 [nodes, 6] not widened, node_low float32 [nodes, d],
        node_high, sky_count int64 [nodes], sky float32 [points, d], bits uint64
        [nodes, width], level_count int64 [levels]); leaves first, level by level.
    """
    d = least.shape[1]
    counts = [(len(rows) + fan_out - 1) // fan_out]
    while counts[-1] > 1:
        counts.append((counts[-1] + fan_out - 1) // fan_out)
    level_count = np.array(counts)
    nodes = level_count.sum()
    boxes = np.empty((nodes, 6), dtype=np.float64)
    boxes[:, :3] = np.inf
    boxes[:, 3:] = -np.inf
    node_low = np.ones((nodes, d), dtype=np.float32)
    node_high = np.zeros((nodes, d), dtype=np.float32)
    sky_count = np.zeros(nodes, dtype=np.int64)
    sky_first = np.zeros(nodes + 1, dtype=np.int64)
    sky = np.empty((nodes * cap if d else 0, d), dtype=np.float32)
    bits = np.zeros((nodes, width), dtype=np.uint64)
    window = np.empty((fan_out * max(1, cap), d), dtype=np.float32)
    one = np.uint64(1)
    first = 0
    for level in range(len(level_count)):
        below = first - (level_count[level - 1] if level else 0)
        under = level_count[level - 1] if level else len(rows)
        for j in range(level_count[level]):
            node = first + j
            count = 0
            for at in range(j * fan_out, min(under, (j + 1) * fan_out)):
                if level == 0:
                    row = rows[at]
                    for c in range(3):
                        boxes[node, c] = min(boxes[node, c], vectors[row, c])
                        boxes[node, 3 + c] = max(boxes[node, 3 + c], vectors[row, c])
                    for c in range(d):
                        node_low[node, c] = min(node_low[node, c], least[row, c])
                        node_high[node, c] = max(node_high[node, c], most[row, c])
                    if d:
                        count = put_in_window(window, count, least, row)
                    if width:
                        for p in range(word_ptr[row], word_ptr[row + 1]):
                            if leaf_of[word_ids[p]] == tree:
                                bit = bit_of[word_ids[p]]
                                bits[node, bit >> 6] |= one << np.uint64(bit & 63)
                else:
                    child = below + at
                    for c in range(3):
                        boxes[node, c] = min(boxes[node, c], boxes[child, c])
                        boxes[node, 3 + c] = max(boxes[node, 3 + c], boxes[child, 3 + c])
                    for c in range(d):
                        node_low[node, c] = min(node_low[node, c], node_low[child, c])
                        node_high[node, c] = max(node_high[node, c], node_high[child, c])
                    for i in range(sky_first[child], sky_first[child] + sky_count[child]):
                        count = put_in_window(window, count, sky, i)
                    for w in range(width):
                        bits[node, w] |= bits[child, w]
            if d:
                count = merge_surplus(window, count, cap)
                sky[sky_first[node] : sky_first[node] + count] = window[:count]
            sky_count[node] = count
            sky_first[node + 1] = sky_first[node] + count
        first += level_count[level]
    return boxes, node_low, node_high, sky_count, sky[: sky_first[nodes]].copy(), bits, level_count
