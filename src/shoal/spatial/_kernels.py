"""What the kernels of the packed layout read: the layout, the query, and one row's parts.

Layout and query are int64 and float64 arrays, which hold numbers and addresses; their
places are named here. The parts of a row are those of its score (``scoring``).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from shoal.spatial._build_kernels import (
    load_f4,
    load_f8,
    load_i8,
    load_u2,
    load_u4,
    load_u8,
    store_f8,
    view_f4x2,
    view_f8,
    view_f8x2,
    view_i4,
    view_i8,
)
from shoal.spatial._score import (
    attribute_cost,
    decay_of,
    distance_km,
    in_region,
    passes_filters,
    position,
    unit_vector,
)

__all__ = ["MAX_WORDS", "parts"]

#: Most words of a query, and most words it excludes.
MAX_WORDS = 64
#: Most columns that bound the preferences of a query together.
MAX_TERMS = 24
#: Answers from which on the best are kept in a heap.
HEAPED = 128

_ALL = 1
_ANY = 2
_RAD = math.pi / 180.0

# Places in the array ``a`` that describes a layout: numbers, then addresses of arrays.
(
    N, NNZ, V, D, EXACT, WIDE, NODES, LEVELS, BLOCKS, TREES, BITS, LONG, SLOTS, BYTES, COLUMNS,
) = range(15)  # fmt: skip
(
    KEYS, LON32, LAT32, LON64, LAT64, VALUES32, VALUES64, LENGTHS, POST, PTR, BOXES, LEVEL_START,
    NODE_LOW, NODE_HIGH, BLOCK_BOXES, BLOCK_LOW, BLOCK_HIGH, TREE_BITS, TREE_RANK, TREE_START,
    BLOB, OFFSETS, TABLE, SPEC_LOW, SPEC_SPAN, SPEC_MISSING,
) = range(16, 42)  # fmt: skip
LAYOUT_SIZE = 42

# Places in the integers ``qi`` of a query: numbers, where its lists begin, the words.
(
    K, HAS_POINT, MATCH, BM25, DECAY_KIND, REGION, N_WORDS, N_WITHOUT, N_PREFER, N_GROUPS, LIVE,
) = range(11)  # fmt: skip
(
    PREFER, FLIP, GROUP, GROUP_PTR, GROUP_LOW, GROUP_HIGH, RINGS, RINGS_STOP, PREFER_WEIGHT, LOW,
    HIGH, POINTS, POINTS_STOP,
) = range(11, 24)  # fmt: skip
WORDS = 24
WITHOUT = WORDS + MAX_WORDS
# The columns that bound its preferences together: their number, then column * 2 + flip.
N_TERMS = WITHOUT + MAX_WORDS
TERMS = N_TERMS + 1
INTEGERS = TERMS + MAX_TERMS
# Places in its reals ``qf``: numbers, then the words' weights.
(
    LON, LAT, SCALE, MAX_KM, K1, B, MEAN_WORDS, W_SPACE, W_TEXT, W_ATTRIBUTES, CAP_X, CAP_Y, CAP_Z,
    CAP_CHORD2, COS_LAT, X, Y, Z,
) = range(18)  # fmt: skip
WEIGHTS = 18
FACTORS = WEIGHTS + MAX_WORDS
REALS = FACTORS + MAX_TERMS


@njit(error_model="numpy")
def locate(qf):
    """Fill in what follows from the query's point."""
    store_f8(qf, COS_LAT, math.cos(load_f8(qf, LAT) * _RAD))
    x, y, z = unit_vector(load_f8(qf, LON), load_f8(qf, LAT))
    store_f8(qf, X, x)
    store_f8(qf, Y, y)
    store_f8(qf, Z, z)


# --- postings --------------------------------------------------------------------------------


@njit(error_model="numpy")
def lower_bound(post, first, stop, row):
    """Return the first place in ``post[first:stop]`` (an address) that is not below ``row``."""
    while first < stop:
        middle = (first + stop) >> 1
        if load_u4(post, middle) < row:
            first = middle + 1
        else:
            stop = middle
    return first


@njit(error_model="numpy")
def has_row(post, first, stop, row):
    """Say whether ``row`` is in ``post[first:stop]`` (an address)."""
    i = lower_bound(post, first, stop, row)
    return i < stop and load_u4(post, i) == row


@njit(error_model="numpy")
def tree_of(a, word):
    """Return the first node of a word's tree, -1 if it has none."""
    bits = load_u8(load_i8(a, TREE_BITS), word >> 6)
    bit = np.uint64(word & 63)
    if (bits >> bit) & np.uint64(1) == np.uint64(0):
        return np.int64(-1)
    below = bits & ((np.uint64(1) << bit) - np.uint64(1))
    count = load_u4(load_i8(a, TREE_RANK), word >> 6)
    while below != np.uint64(0):
        below &= below - np.uint64(1)
        count += 1
    return load_u4(load_i8(a, TREE_START), count)


# --- the parts of one row --------------------------------------------------------------------


@njit(error_model="numpy")
def place_of(a, row):
    """Return (lon, lat) of a row, degrees."""
    n = load_i8(a, N)
    return position(
        view_i4(load_i8(a, LON32), n),
        view_i4(load_i8(a, LAT32), n),
        view_f8(load_i8(a, LON64), n),
        view_f8(load_i8(a, LAT64), n),
        load_i8(a, EXACT) != 0,
        row,
    )


@njit(error_model="numpy")
def distance_of(a, qf, row):
    """Return the distance of a row, kilometres."""
    lon, lat = place_of(a, row)
    return distance_km(load_f8(qf, LON), load_f8(qf, LAT), load_f8(qf, COS_LAT), lon, lat)


@njit(error_model="numpy")
def decayed(qi, qf, km):
    """Return the space part at a distance."""
    return decay_of(load_i8(qi, DECAY_KIND), load_f8(qf, SCALE), km)


@njit(error_model="numpy")
def damping_of(a, qf, row):
    """Return what BM25 leaves of the text part of a row."""
    length = (
        load_u4(load_i8(a, LENGTHS), row) if load_i8(a, LONG) else load_u2(load_i8(a, LENGTHS), row)
    )
    k1, b = load_f8(qf, K1), load_f8(qf, B)
    full = 1.0 + k1 * (1.0 - b + b * length / load_f8(qf, MEAN_WORDS))
    return min(1.0, (1.0 + k1 * (1.0 - b)) / full)


@njit(error_model="numpy")
def value_of(a, column, row):
    """Return an attribute of a row."""
    if load_i8(a, WIDE):
        return load_f8(load_i8(a, VALUES64), column * load_i8(a, N) + row)
    return load_f4(load_i8(a, VALUES32), column * load_i8(a, N) + row)


@njit(error_model="numpy")
def attributes_of(a, qi, qf, row, neutral):
    """Return the attribute part of a row; -1 if a missing value excludes it.

    With ``neutral`` such a value counts one half instead.
    """
    total = 0.0
    for j in range(load_i8(qi, N_PREFER)):
        c = load_i8(qi, load_i8(qi, PREFER) + j)
        missing = load_i8(load_i8(a, SPEC_MISSING), c)
        if neutral and missing == 2:
            missing = 1
        cost = attribute_cost(
            value_of(a, c, row),
            load_f8(load_i8(a, SPEC_LOW), c),
            load_f8(load_i8(a, SPEC_SPAN), c),
            load_i8(qi, load_i8(qi, FLIP) + j) != 0,
            missing,
        )
        if cost < 0.0:
            return -1.0
        total += load_f8(qf, load_i8(qi, PREFER_WEIGHT) + j) * cost
    return 1.0 - total


@njit(error_model="numpy")
def blend(qf, space, text, attributes):
    """Return the score of three parts."""
    score = 0.0
    if load_f8(qf, W_SPACE) > 0.0:
        score += load_f8(qf, W_SPACE) * space
    if load_f8(qf, W_TEXT) > 0.0:
        score += load_f8(qf, W_TEXT) * text
    if load_f8(qf, W_ATTRIBUTES) > 0.0:
        score += load_f8(qf, W_ATTRIBUTES) * attributes
    return score


@njit(error_model="numpy")
def allowed(a, qi, qf, row):
    """Say whether excluded words, filters and region let a row pass."""
    for j in range(load_i8(qi, N_WITHOUT)):
        word = load_i8(qi, WITHOUT + j)
        if word >= 0 and has_row(
            load_i8(a, POST),
            load_u4(load_i8(a, PTR), word),
            load_u4(load_i8(a, PTR), word + 1),
            row,
        ):
            return False
    groups = load_i8(qi, N_GROUPS)
    if groups > 0:
        n, d, wide = load_i8(a, N), load_i8(a, D), load_i8(a, WIDE) != 0
        if not passes_filters(
            view_i8(qi + 8 * load_i8(qi, GROUP), groups),
            view_i8(qi + 8 * load_i8(qi, GROUP_PTR), groups + 1),
            view_f8(qf + 8 * load_i8(qi, LOW), load_i8(qi, HIGH) - load_i8(qi, LOW)),
            view_f8(qf + 8 * load_i8(qi, HIGH), load_i8(qi, POINTS) - load_i8(qi, HIGH)),
            view_f4x2(load_i8(a, VALUES32), d, n),
            view_f8x2(load_i8(a, VALUES64), d, n),
            wide,
            row,
        ):
            return False
    if load_i8(qi, REGION) > 0:
        lon, lat = place_of(a, row)
        first, stop = load_i8(qi, POINTS), load_i8(qi, POINTS_STOP)
        points = view_f8x2(qf + 8 * first, (stop - first) >> 1, 2)
        return in_region(
            load_i8(qi, REGION),
            points,
            view_i8(qi + 8 * load_i8(qi, RINGS), load_i8(qi, RINGS_STOP) - load_i8(qi, RINGS)),
            lon,
            lat,
        )
    return True


# --- all of one row, for explanations -----------------------------------------------------------


@njit(cache=True, nogil=True, error_model="numpy")
def parts(layout, integers, reals, rows, out, km_out, qualifies):
    """Fill the parts [m, 5], the distances and the membership of rows."""
    a, qi, qf = layout.ctypes.data, integers.ctypes.data, reals.ctypes.data
    locate(qf)
    for i in range(len(rows)):
        row = rows[i]
        good = True
        if load_i8(qi, HAS_POINT):
            km_out[i] = distance_of(a, qf, row)
            out[i, 0] = decayed(qi, qf, km_out[i])
            good = km_out[i] <= load_f8(qf, MAX_KM)
        found = 0
        text = 0.0
        for w in range(load_i8(qi, N_WORDS)):
            word = load_i8(qi, WORDS + w)
            if word >= 0 and has_row(
                load_i8(a, POST),
                load_u4(load_i8(a, PTR), word),
                load_u4(load_i8(a, PTR), word + 1),
                row,
            ):
                text += load_f8(qf, WEIGHTS + w)
                found += 1
        if (load_i8(qi, MATCH) == _ALL and found < load_i8(qi, N_WORDS)) or (
            load_i8(qi, MATCH) == _ANY and found == 0
        ):
            good = False
        out[i, 1] = text * damping_of(a, qf, row) if load_i8(qi, BM25) else text
        if load_i8(qi, N_PREFER) > 0:
            out[i, 2] = attributes_of(a, qi, qf, row, False)
            if out[i, 2] < -0.5:
                good = False
                out[i, 2] = attributes_of(a, qi, qf, row, True)
        qualifies[i] = good and allowed(a, qi, qf, row)
