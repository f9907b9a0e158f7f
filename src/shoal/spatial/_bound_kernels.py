"""Bounds of nodes: no row below scores more, none is nearer.

Bounds are computed by the very operations that compute a score, in their order, from
parts that are never below a row's. Rounding is monotone, so a bound is never below a
score, not even in the last bit, and needs no slack; only ``exp`` promises nothing of
the kind and gets some, and so does the bound on attributes taken together, whose sum
is another than a score's. So a node whose bound only equals the worst of the best is
dropped when it is farther away, and equal scores do not force a scan.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from shoal.spatial._build_kernels import load_f8, load_i8, load_u1, store_f8, store_i8, view_f4x2
from shoal.spatial._kernels import (
    BLOCK_BOXES,
    BLOCK_HIGH,
    BLOCK_LOW,
    BOXES,
    CAP_CHORD2,
    CAP_X,
    CAP_Y,
    CAP_Z,
    COLUMNS,
    DECAY_KIND,
    FACTORS,
    FLIP,
    GROUP,
    GROUP_HIGH,
    GROUP_LOW,
    HAS_POINT,
    MAX_KM,
    MAX_TERMS,
    N_GROUPS,
    N_PREFER,
    N_TERMS,
    NODE_HIGH,
    NODE_LOW,
    PREFER,
    PREFER_WEIGHT,
    REGION,
    TERMS,
    W_ATTRIBUTES,
    W_SPACE,
    W_TEXT,
    D,
    X,
    Y,
    Z,
    blend,
    decayed,
    locate,
)
from shoal.spatial._score import box_chord2, km_of_chord2

__all__ = [
    "attribute_bound",
    "attribute_part",
    "bounds_of_nodes",
    "box_distance2",
    "combine",
    "combined_cost",
    "cost_limit",
    "node_bound",
    "space_bound",
]


@njit(error_model="numpy")
def box_distance2(boxes, node, x, y, z):
    """Return the squared chord from a unit vector to box ``node`` (``boxes`` an address)."""
    return box_chord2(x, y, z, view_f4x2(boxes, node + 1, 6), node)


@njit(error_model="numpy")
def space_bound(qi, qf, km):
    """Return the largest space part at ``km`` or farther."""
    space = decayed(qi, qf, km)
    if load_i8(qi, DECAY_KIND) >= 2:
        space = min(1.0, space * (1.0 + 1e-12))  # exp need not be monotone to the last bit
    return space


@njit(error_model="numpy")
def _flipped(qi, j):
    return load_i8(qi, load_i8(qi, FLIP) + j) != 0


@njit(error_model="numpy")
def _add_term(qi, qf, column, flip, factor):
    terms = load_i8(qi, N_TERMS)
    if terms < MAX_TERMS:  # a term less is a bound that is less tight
        store_i8(qi, TERMS + terms, 2 * column + (1 if flip else 0))
        store_f8(qf, FACTORS + terms, factor)
        store_i8(qi, N_TERMS, terms + 1)


@njit(error_model="numpy")
def combine(a, qi, qf):
    """Fill in the columns, and their factors, whose sum bounds the query's preferences.

    The weights of a group of attributes (``combinations``) are taken apart from the
    smallest up: as much of it as all have goes to the column of all, what is then left
    of the others to the column of two, and the rest to the attribute's own.
    """
    store_i8(qi, N_TERMS, 0)
    d = load_i8(a, D)
    if load_i8(a, COLUMNS) == d:
        return
    for first in range(0, d, 3):
        members = min(np.int64(3), d - first)
        # Weight and orientation of each member; a repeated preference is left out.
        w0 = w1 = w2 = 0.0
        f0 = f1 = f2 = False
        for j in range(load_i8(qi, N_PREFER)):
            c = load_i8(qi, load_i8(qi, PREFER) + j) - first
            weight = load_f8(qf, load_i8(qi, PREFER_WEIGHT) + j)
            if c == 0 and w0 == 0.0:
                w0, f0 = weight, _flipped(qi, j)
            elif c == 1 and w1 == 0.0:
                w1, f1 = weight, _flipped(qi, j)
            elif c == 2 and w2 == 0.0:
                w2, f2 = weight, _flipped(qi, j)
        base = d + 10 * (first // 3)
        all3 = min(w0, w1, w2)
        if members == 3 and all3 > 0.0:
            column = base + 6 + (2 if f1 != f0 else 0) + (1 if f2 != f0 else 0)
            _add_term(qi, qf, column, f0, all3 * (3.0 / 255.0))
            w0, w1, w2 = w0 - all3, w1 - all3, w2 - all3
        pair = min(w0, w1)
        if pair > 0.0:
            _add_term(qi, qf, base + (1 if f1 != f0 else 0), f0, pair * (2.0 / 255.0))
            w0, w1 = w0 - pair, w1 - pair
        pair = min(w0, w2)
        if pair > 0.0:
            _add_term(qi, qf, base + 2 + (1 if f2 != f0 else 0), f0, pair * (2.0 / 255.0))
            w0, w2 = w0 - pair, w2 - pair
        pair = min(w1, w2)
        if pair > 0.0:
            _add_term(qi, qf, base + 4 + (1 if f2 != f1 else 0), f1, pair * (2.0 / 255.0))
            w1, w2 = w1 - pair, w2 - pair
        if w0 > 0.0:
            _add_term(qi, qf, first, f0, w0 / 255.0)
        if w1 > 0.0:
            _add_term(qi, qf, first + 1, f1, w1 / 255.0)
        if w2 > 0.0:
            _add_term(qi, qf, first + 2, f2, w2 / 255.0)


@njit(error_model="numpy")
def combined_cost(a, qi, qf, low, high, node):
    """Return the least cost of a node's rows, by the columns of ``combine``."""
    total = 0.0
    first = node * load_i8(a, COLUMNS)
    for i in range(load_i8(qi, N_TERMS)):
        term = load_i8(qi, TERMS + i)
        c = first + (term >> 1)
        byte = 255 - load_u1(high, c) if term & 1 else load_u1(low, c)
        total += load_f8(qf, FACTORS + i) * byte
    # Other operations than a score's, so their rounding is allowed for.
    return total * (1.0 - 1e-12) - 1e-12


@njit(error_model="numpy")
def cost_limit(qf, space, text, score):
    """Return a cost above which no row with these parts (at most) reaches a score."""
    weight = load_f8(qf, W_ATTRIBUTES)
    if not weight > 0.0:
        return np.inf
    missing = score - 1e-12
    if load_f8(qf, W_SPACE) > 0.0:
        missing -= load_f8(qf, W_SPACE) * space
    if load_f8(qf, W_TEXT) > 0.0:
        missing -= load_f8(qf, W_TEXT) * text
    return 1.0 - missing / weight + 1e-12


@njit(error_model="numpy")
def attribute_bound(a, qi, qf, low, high, node):
    """Return the largest attribute part of a node's rows, each attribute bounded apart.

    Not as tight as ``combined_cost``, but exact where all rows cost the same.
    """
    total = 0.0
    first = node * load_i8(a, COLUMNS)
    for j in range(load_i8(qi, N_PREFER)):
        c = first + load_i8(qi, load_i8(qi, PREFER) + j)
        cost = 1.0 - load_u1(high, c) / 255.0 if _flipped(qi, j) else load_u1(low, c) / 255.0
        total += load_f8(qf, load_i8(qi, PREFER_WEIGHT) + j) * cost
    return 1.0 - total


@njit(error_model="numpy")
def attribute_part(a, qi, qf, low, high, node):
    """Return the better of both bounds on the attribute part of a node's rows."""
    return min(
        1.0 - combined_cost(a, qi, qf, low, high, node),
        attribute_bound(a, qi, qf, low, high, node),
    )


@njit(error_model="numpy")
def node_bound(a, qi, qf, blocks, node, text):
    """Return (no score below the node is above this, nor a distance below this).

    ``node`` is of the tree over all rows, or with ``blocks`` of those over postings.
    The bound is -1 if the node has nothing within ``max_km``, region and filters.
    """
    boxes = load_i8(a, BLOCK_BOXES) if blocks else load_i8(a, BOXES)
    low = load_i8(a, BLOCK_LOW) if blocks else load_i8(a, NODE_LOW)
    high = load_i8(a, BLOCK_HIGH) if blocks else load_i8(a, NODE_HIGH)
    km = 0.0
    space = 0.0
    if load_i8(qi, HAS_POINT):
        km = km_of_chord2(
            box_distance2(boxes, node, load_f8(qf, X), load_f8(qf, Y), load_f8(qf, Z))
        )
        if km > load_f8(qf, MAX_KM):
            return -1.0, km
        if load_f8(qf, W_SPACE) > 0.0:
            space = space_bound(qi, qf, km)
    if (
        load_i8(qi, REGION) > 0
        and load_f8(qf, CAP_CHORD2) < 4.0
        and box_distance2(boxes, node, load_f8(qf, CAP_X), load_f8(qf, CAP_Y), load_f8(qf, CAP_Z))
        > load_f8(qf, CAP_CHORD2)
    ):
        return -1.0, km
    for g in range(load_i8(qi, N_GROUPS)):
        c = node * load_i8(a, COLUMNS) + load_i8(qi, load_i8(qi, GROUP) + g)
        least, most = load_u1(low, c), load_u1(high, c)
        if (
            least > most
            or least > load_i8(qi, load_i8(qi, GROUP_HIGH) + g)
            or most < load_i8(qi, load_i8(qi, GROUP_LOW) + g)
        ):
            return -1.0, km
    attributes = 0.0
    if load_f8(qf, W_ATTRIBUTES) > 0.0:
        attributes = attribute_part(a, qi, qf, low, high, node)
    return blend(qf, space, text, attributes), km


# --- for tests -----------------------------------------------------------------------------------


@njit(cache=True, nogil=True, error_model="numpy")
def bounds_of_nodes(layout, integers, reals, blocks, text, out, km_out):
    """Set the bound and the distance of every node of the tree over rows, or of all blocks."""
    a, qi, qf = layout.ctypes.data, integers.ctypes.data, reals.ctypes.data
    locate(qf)
    combine(a, qi, qf)
    for node in range(len(out)):
        out[node], km_out[node] = node_bound(a, qi, qf, blocks, node, text)
