"""The general search of the packed layout: best-first over row ranges or over blocks of postings.

A node of either tree covers a range of rows, and "which words occur in it" is two
binary searches in each word's postings, which begin in the parent's range. When few
postings of the rarest word are left, they are looked at one by one and the search
goes no deeper.

Bounds are computed by the very operations that compute a score, in their order, from
parts that are never below a row's. Rounding is monotone, so a bound is never below a
score, not even in the last bit, and needs no slack; only ``exp`` promises nothing of
the kind and gets some. So a node whose bound only equals the worst of the best is
dropped when it is farther away, and equal scores do not force a scan.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from shoal.spatial._build_kernels import (
    FAN_OUT,
    load_f4,
    load_f8,
    load_i8,
    load_u1,
    load_u2,
    load_u4,
    load_u8,
    store_f8,
    store_i8,
    view_f4x2,
    view_f8,
    view_f8x2,
    view_i4,
    view_i8,
)
from shoal.spatial._score import (
    attribute_cost,
    before,
    box_chord2,
    decay_of,
    distance_km,
    in_region,
    km_of_chord2,
    offer,
    passes_filters,
    position,
    unit_vector,
)

__all__ = ["MAX_WORDS", "bounds_of_nodes", "parts", "search_any_tree"]

#: Most words of a query, and most words it excludes.
MAX_WORDS = 64
#: Most columns that bound the preferences of a query together.
MAX_TERMS = 24
#: Postings of the rarest word in a node from which on the search goes deeper.
SWITCH = 64
#: Answers from which on the best are kept in a heap.
HEAPED = 128

_ALL = 1
_ANY = 2
_RAD = math.pi / 180.0
_STEPS = 4294967295.0
_LEVELS = 10

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


# --- bounds ----------------------------------------------------------------------------------


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
def combined_bound(a, qi, qf, low, high, node):
    """Return the largest attribute part of a node's rows, by the columns of ``combine``."""
    total = 0.0
    first = node * load_i8(a, COLUMNS)
    for i in range(load_i8(qi, N_TERMS)):
        term = load_i8(qi, TERMS + i)
        c = first + (term >> 1)
        byte = 255 - load_u1(high, c) if term & 1 else load_u1(low, c)
        total += load_f8(qf, FACTORS + i) * byte
    # Other operations than a score's, so their rounding is allowed for.
    return 1.0 - total * (1.0 - 1e-12) + 1e-12


@njit(error_model="numpy")
def attribute_bound(a, qi, qf, low, high, node):
    """Return the largest attribute part of a node's rows, each attribute bounded apart.

    Not as tight as ``combined_bound``, but exact where all rows cost the same.
    """
    total = 0.0
    first = node * load_i8(a, COLUMNS)
    for j in range(load_i8(qi, N_PREFER)):
        c = first + load_i8(qi, load_i8(qi, PREFER) + j)
        cost = 1.0 - load_u1(high, c) / 255.0 if _flipped(qi, j) else load_u1(low, c) / 255.0
        total += load_f8(qf, load_i8(qi, PREFER_WEIGHT) + j) * cost
    return 1.0 - total


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
        attributes = min(
            combined_bound(a, qi, qf, low, high, node),
            attribute_bound(a, qi, qf, low, high, node),
        )
    return blend(qf, space, text, attributes), km


# --- the best so far -------------------------------------------------------------------------


@njit(error_model="numpy")
def hopeless(score, km, best, count, k, worst):
    """Say whether nothing of this score (at most) and distance (at least) is among the best."""
    if count < k:
        return False
    least = best[0][worst]
    return score < least or (score == least and km > best[1][worst])


@njit(error_model="numpy")
def _swap(best, i, j):
    best[0][i], best[0][j] = best[0][j], best[0][i]
    best[1][i], best[1][j] = best[1][j], best[1][i]
    best[2][i], best[2][j] = best[2][j], best[2][i]
    best[3][i], best[3][j] = best[3][j], best[3][i]


@njit(error_model="numpy")
def _sink(best, i, size):
    """Put entry ``i`` of a heap with the worst on top in its place."""
    scores, kms, keys = best[0], best[1], best[2]
    while True:
        child = 2 * i + 1
        if child >= size:
            return
        other = child + 1
        if other < size and before(
            scores[child], kms[child], keys[child], scores[other], kms[other], keys[other]
        ):
            child = other
        if not before(scores[i], kms[i], keys[i], scores[child], kms[child], keys[child]):
            return
        _swap(best, i, child)
        i = child


@njit(error_model="numpy")
def _offer_heap(best, count, k, score, km, key, row):
    scores, kms, keys = best[0], best[1], best[2]
    if count == k:
        if before(score, km, key, scores[0], kms[0], keys[0]):
            scores[0], kms[0], keys[0], best[3][0] = score, km, key, row
            _sink(best, np.int64(0), k)
        return count
    i = count
    scores[i], kms[i], keys[i], best[3][i] = score, km, key, row
    while i > 0:
        above = (i - 1) >> 1
        if not before(scores[above], kms[above], keys[above], scores[i], kms[i], keys[i]):
            break
        _swap(best, i, above)
        i = above
    return count + 1


@njit(error_model="numpy")
def heap_of_best(best, count):
    """Turn sorted answers (the best first) into a heap with the worst on top."""
    for i in range(count // 2):
        _swap(best, i, count - 1 - i)


@njit(error_model="numpy")
def sort_heap(best, count):
    """Turn a heap with the worst on top into sorted answers, the best first."""
    for size in range(count - 1, 0, -1):
        _swap(best, np.int64(0), size)
        _sink(best, np.int64(0), size)


@njit(error_model="numpy")
def put(best, count, k, score, km, key, row):
    """Offer one answer to the best ``k``, sorted or in a heap; return their new number."""
    if k > HEAPED:
        return _offer_heap(best, count, k, score, km, key, row)
    return offer(best[0], best[1], best[2], best[3], count, k, score, km, key, row)


# --- the queue: smallest key first -----------------------------------------------------------


@njit(error_model="numpy")
def queue_key(bound, km):
    """Return a key that puts high bounds first and, where they are equal, near nodes."""
    steps = np.uint64(max(0.0, min(bound, 1.0)) * _STEPS)
    near = np.uint64(min(km, 20100.0) * 200000.0)
    return ((np.uint64(0xFFFFFFFF) - steps) << np.uint64(32)) | near


@njit(error_model="numpy")
def queue_push(heap, entries, size, key, entry):
    """Put an entry in the queue, which has room for it; return the new size."""
    i = size
    while i > 0:
        above = (i - 1) >> 1
        if heap[above] <= key:
            break
        heap[i] = heap[above]
        entries[i] = entries[above]
        i = above
    heap[i] = key
    entries[i] = entry
    return size + 1


@njit(error_model="numpy")
def queue_pop(heap, entries, size):
    """Take the first entry away; return the new size."""
    size -= 1
    key, entry = heap[size], entries[size]
    i = 0
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= key:
            break
        heap[i] = heap[child]
        entries[i] = entries[child]
        i = child
    heap[i] = key
    entries[i] = entry
    return size


@njit(error_model="numpy")
def _grown(array, size):
    larger = np.empty(size, array.dtype)
    larger[: len(array)] = array
    return larger


# --- looking at rows one by one --------------------------------------------------------------


@njit(error_model="numpy")
def _text_of(a, qi, qf, row, ranges, base, order, tree):
    """Return the text part of a row, -1 if a word of an earlier tree has it or none does."""
    text = 0.0
    found = False
    for w in range(load_i8(qi, N_WORDS)):
        low, high = ranges[base + 2 * w], ranges[base + 2 * w + 1]
        if low < high and has_row(load_i8(a, POST), low, high, row):
            if tree >= 0 and order[w] < order[tree]:
                return -1.0
            text += load_f8(qf, WEIGHTS + w)
            found = True
    return text if found else -1.0


@njit(error_model="numpy")
def scan(a, qi, qf, best, count, word, first, stop, ranges, base, order, tree, full_text, stats):
    """Offer the rows ``post[first:stop]`` of a word (-1: the rows ``first .. stop`` themselves).

    Other words are looked up in ``ranges[base:]``. With a ``tree`` (the word whose
    tree is searched) rows are left to the trees of earlier words that have them.
    Returns the number of answers.
    """
    k = len(best[0])
    worst = 0 if k > HEAPED else k - 1
    for i in range(first, stop):
        row = load_u4(load_i8(a, POST), i) if word >= 0 else np.int64(i)
        stats[2] += 1
        if load_i8(qi, LIVE) != 0 and load_u1(load_i8(qi, LIVE), row) == 0:
            continue
        text = full_text
        if load_i8(qi, MATCH) == _ANY:
            text = _text_of(a, qi, qf, row, ranges, base, order, tree)
            if text < 0.0:
                continue
        km = 0.0
        space = 0.0
        if load_i8(qi, HAS_POINT):
            km = distance_of(a, qf, row)
            if not km <= load_f8(qf, MAX_KM):
                continue
            space = decayed(qi, qf, km)
        if hopeless(blend(qf, space, text, 1.0), km, best, count, k, worst):
            continue
        stats[1] += 1
        attributes = 0.0
        if load_i8(qi, N_PREFER) > 0:
            attributes = attributes_of(a, qi, qf, row, False)
            if attributes < -0.5:
                continue
        if load_i8(qi, BM25):
            text *= damping_of(a, qf, row)
        score = blend(qf, space, text, attributes)
        if hopeless(score, km, best, count, k, worst):
            continue
        if load_i8(qi, MATCH) == _ALL:
            missing = False
            for w in range(load_i8(qi, N_WORDS)):
                if w != word and not has_row(
                    load_i8(a, POST), ranges[base + 2 * w], ranges[base + 2 * w + 1], row
                ):
                    missing = True
                    break
            if missing:
                continue
        if not allowed(a, qi, qf, row):
            continue
        count = put(best, count, k, score, km, load_i8(load_i8(a, KEYS), row), row)
    return count


# --- the search ------------------------------------------------------------------------------


@njit(error_model="numpy")
def _rows_of(a, tree, first_post, last_post, level, i):
    """Return the range of rows that node ``i`` of a level covers."""
    size = np.int64(FAN_OUT) << (4 * level)
    if tree < 0:
        return i * size, min(load_i8(a, N), (i + 1) * size)
    first = first_post + i * size
    last = min(last_post, first + size) - 1
    return load_u4(load_i8(a, POST), first), load_u4(load_i8(a, POST), last) + 1


@njit(error_model="numpy")
def _prepare(a, qi, qf, ranges, order, tables):
    """Fill the words' postings, their order (rare first), and their trees; say which to search.

    ``tables[w]`` holds, level by level, the first node and the number of nodes of
    a word's tree; the last row is the tree over all rows. Returns (what to search,
    rarest word): 0 nothing, 1 the tree over all rows, 2 the rarest word's tree, 3
    the trees of all words, 4 the postings of the rarest word.
    """
    words = load_i8(qi, N_WORDS)
    for level in range(load_i8(a, LEVELS)):
        tables[words, 2 * level] = load_i8(load_i8(a, LEVEL_START), level)
        tables[words, 2 * level + 1] = (
            load_i8(load_i8(a, LEVEL_START), level + 1) - tables[words, 2 * level]
        )
    if load_i8(a, N) == 0:
        return 0, -1
    if load_i8(qi, MATCH) != _ALL and load_i8(qi, MATCH) != _ANY:
        return 1, -1
    rarest, least, most = -1, load_i8(a, N) + 1, 0
    for w in range(words):
        word = load_i8(qi, WORDS + w)
        df = np.int64(0)
        ranges[2 * w] = ranges[2 * w + 1] = 0
        if word >= 0:
            ranges[2 * w], ranges[2 * w + 1] = (
                load_u4(load_i8(a, PTR), word),
                load_u4(load_i8(a, PTR), word + 1),
            )
            df = ranges[2 * w + 1] - ranges[2 * w]
        if load_i8(qi, MATCH) == _ALL or df > 0:
            if df < least:
                rarest, least = w, df
            most = max(most, df)
        order[w] = 0
        for v in range(w):
            if ranges[2 * v + 1] - ranges[2 * v] <= df:
                order[w] += 1
            else:
                order[v] += 1
        start = tree_of(a, word) if df > FAN_OUT else np.int64(-1)
        tables[w, 1] = 0
        if start >= 0:
            level = 0
            nodes = (df + FAN_OUT - 1) // FAN_OUT
            while True:
                tables[w, 2 * level], tables[w, 2 * level + 1] = start, nodes
                start += nodes
                level += 1
                if nodes <= FAN_OUT:
                    break
                nodes = (nodes + FAN_OUT - 1) // FAN_OUT
            tables[w, 2 * level + 1] = 0
    if rarest < 0 or (load_i8(qi, MATCH) == _ALL and least == 0):
        return 0, -1
    small = load_f8(qf, W_ATTRIBUTES) > 0.0
    if load_i8(qi, MATCH) == _ALL:
        if least <= SWITCH and (not small or least <= FAN_OUT):
            return 4, rarest
        if (small or 10 * least <= 3 * load_i8(a, N)) and tables[rarest, 1] > 0:
            return 2, rarest
        return 1, rarest
    if small or 10 * most <= 3 * load_i8(a, N):
        return 3, rarest
    return 1, rarest


@njit(error_model="numpy")
def search_any_tree(a, qi, qf, best, count, stats):
    """Offer every row that can be among the best; return the number of answers.

    ``a`` describes the layout, ``qi`` and ``qf`` the query, in the places named above;
    ``best`` are the answers' arrays of k places, sorted or a heap (``put``); ``stats``
    int64 are added to: nodes, scored, looked at.
    """
    combine(a, qi, qf)
    k = len(best[0])
    worst = np.int64(0) if k > HEAPED else np.int64(k - 1)
    # Numbers written out would be types of their own, and each combination a compilation.
    zero, none = np.int64(0), np.int64(-1)
    count = np.int64(count)
    words = load_i8(qi, N_WORDS)
    stride = 2 * words
    ranges = np.empty(max(1, stride) * 16, np.int64)
    used = stride  # of ranges
    order = np.empty(words, np.int64)
    tables = np.zeros((words + 1, 2 * _LEVELS), np.int64)
    way, rarest = _prepare(a, qi, qf, ranges, order, tables)
    if way == 0:
        return count
    full_text = 0.0
    if load_i8(qi, MATCH) != 0:
        for w in range(words):
            full_text += load_f8(qf, WEIGHTS + w)
    if way == 4:
        return scan(
            a, qi, qf, best, count, rarest, ranges[2 * rarest], ranges[2 * rarest + 1], ranges,
            zero, order, none, full_text, stats,
        )  # fmt: skip
    room = 256
    heap = np.empty(room, np.uint64)
    entries = np.empty(room, np.uint32)
    # What the queue's entries stand for: (tree + 1) << 40 | ranges known << 39 | level << 35 | i.
    node_at = np.empty(room, np.int64)
    base_at = np.empty(room, np.int64)
    bound_at = np.empty(room, np.float64)
    km_at = np.empty(room, np.float64)
    size = made = np.int64(0)

    # The first nodes: of the tree over all rows, or of words' trees (rare words have none).
    for t in range(-1, words):
        if (way == 1) != (t == -1) or (way == 2 and t != rarest):
            continue
        text = full_text
        if way == 3:
            first, last = ranges[2 * t], ranges[2 * t + 1]
            if tables[t, 1] == 0:
                count = scan(
                    a, qi, qf, best, count, t, first, last, ranges, zero, order, t, full_text, stats
                )
                continue
            text = 0.0
            for w in range(words):
                if order[w] >= order[t] and ranges[2 * w] < ranges[2 * w + 1]:
                    text += load_f8(qf, WEIGHTS + w)
        table = tables[t] if t >= 0 else tables[words]
        level = 0
        while table[2 * level + 3] > 0:
            level += 1
        for i in range(table[2 * level + 1]):
            bound, km = node_bound(a, qi, qf, t >= 0, table[2 * level] + i, text)
            if bound < -0.5 or hopeless(bound, km, best, count, k, worst):
                continue
            if made + 1 >= room:
                room *= 2
                heap, entries = _grown(heap, room), _grown(entries, room)
                node_at, base_at = _grown(node_at, room), _grown(base_at, room)
                bound_at, km_at = _grown(bound_at, room), _grown(km_at, room)
            node_at[made] = ((t + 1) << 40) | (level << 35) | i
            base_at[made], bound_at[made], km_at[made] = 0, bound, km
            size = queue_push(heap, entries, size, queue_key(bound, km), np.uint32(made))
            made += 1

    while size > 0:
        if count == k and (heap[0] >> np.uint64(32)) > (
            queue_key(best[0][worst], 0.0) >> np.uint64(32)
        ):
            break
        entry = np.int64(entries[0])
        size = queue_pop(heap, entries, size)
        bound, km = bound_at[entry], km_at[entry]
        if hopeless(bound, km, best, count, k, worst):
            continue
        stats[0] += 1
        code = node_at[entry]
        t = (code >> 40) - 1
        known = (code >> 39) & 1
        level = (code >> 35) & 15
        i = code & 0x7FFFFFFFF
        base = base_at[entry]
        text = full_text

        if words > 0 and load_i8(qi, MATCH) != 0 and not known:
            if used + stride > len(ranges):
                ranges = _grown(ranges, 2 * (used + stride))
            first, last = (ranges[2 * t], ranges[2 * t + 1]) if t >= 0 else (zero, zero)
            from_row, to_row = _rows_of(a, t, first, last, level, i)
            new = used
            empty = False
            any_left = False
            text = 0.0
            for w in range(words):
                low, high = ranges[base + 2 * w], ranges[base + 2 * w + 1]
                if w == t:
                    step = np.int64(FAN_OUT) << (4 * level)
                    low = first + i * step
                    high = min(last, low + step)
                elif low < high:
                    low = lower_bound(load_i8(a, POST), low, high, from_row)
                    high = lower_bound(load_i8(a, POST), low, high, to_row)
                ranges[new + 2 * w], ranges[new + 2 * w + 1] = low, high
                if low == high:
                    empty = True
                    if load_i8(qi, MATCH) == _ALL:
                        break
                else:
                    any_left = True
                    if t < 0 or order[w] >= order[t]:
                        text += load_f8(qf, WEIGHTS + w)
            if not any_left or (empty and load_i8(qi, MATCH) == _ALL):
                continue
            used += stride
            base = new
            if load_i8(qi, MATCH) == _ALL:
                text = full_text
            elif text < full_text:
                bound, km = node_bound(
                    a, qi, qf, t >= 0, (tables[t] if t >= 0 else tables[words])[2 * level] + i, text
                )
                if hopeless(bound, km, best, count, k, worst):
                    continue
                key = queue_key(bound, km)
                if size > 0 and key > heap[0]:
                    # Something else looks better now: this node waits, with what is known.
                    node_at[entry] = code | (1 << 39)
                    base_at[entry], bound_at[entry], km_at[entry] = base, bound, km
                    size = queue_push(heap, entries, size, key, np.uint32(entry))
                    continue
        elif known:
            text = 0.0
            for w in range(words):
                if ranges[base + 2 * w] < ranges[base + 2 * w + 1] and (
                    t < 0 or order[w] >= order[t]
                ):
                    text += load_f8(qf, WEIGHTS + w)

        # Few postings left, or a leaf: look at them.
        if load_i8(qi, MATCH) == _ALL:
            few, left = none, load_i8(a, N) + 1
            for w in range(words):
                length = ranges[base + 2 * w + 1] - ranges[base + 2 * w]
                if length < left:
                    few, left = w, length
            if level == 0 or left <= (FAN_OUT if load_f8(qf, W_ATTRIBUTES) > 0.0 else SWITCH):
                count = scan(
                    a, qi, qf, best, count, few, ranges[base + 2 * few],
                    ranges[base + 2 * few + 1], ranges, base, order, none, full_text, stats,
                )  # fmt: skip
                continue
        elif load_i8(qi, MATCH) == _ANY:
            if t >= 0:
                if level == 0:
                    count = scan(
                        a, qi, qf, best, count, t, ranges[base + 2 * t], ranges[base + 2 * t + 1],
                        ranges, base, order, t, full_text, stats,
                    )  # fmt: skip
                    continue
            else:
                left = 0
                for w in range(words):
                    left += ranges[base + 2 * w + 1] - ranges[base + 2 * w]
                if level == 0 or left <= SWITCH:
                    for w in range(words):
                        count = scan(
                            a, qi, qf, best, count, w, ranges[base + 2 * w],
                            ranges[base + 2 * w + 1], ranges, base, order, w, full_text, stats,
                        )  # fmt: skip
                    continue
        elif level == 0:
            from_row, to_row = _rows_of(a, none, zero, zero, zero, i)
            count = scan(
                a, qi, qf, best, count, none, from_row, to_row, ranges, zero, order, none,
                full_text, stats,
            )  # fmt: skip
            continue

        below = tables[t] if t >= 0 else tables[words]
        child, stop = i * FAN_OUT, min((i + 1) * FAN_OUT, below[2 * level - 1])
        if made + FAN_OUT >= room:
            room *= 2
            heap, entries = _grown(heap, room), _grown(entries, room)
            node_at, base_at = _grown(node_at, room), _grown(base_at, room)
            bound_at, km_at = _grown(bound_at, room), _grown(km_at, room)
        while child < stop:
            bound, km = node_bound(a, qi, qf, t >= 0, below[2 * level - 2] + child, text)
            if bound > -0.5 and not hopeless(bound, km, best, count, k, worst):
                node_at[made] = ((t + 1) << 40) | ((level - 1) << 35) | child
                base_at[made], bound_at[made], km_at[made] = base, bound, km
                size = queue_push(heap, entries, size, queue_key(bound, km), np.uint32(made))
                made += 1
            child += 1
    return count


# --- one row's parts, and bounds for tests ----------------------------------------------------


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


@njit(cache=True, nogil=True, error_model="numpy")
def bounds_of_nodes(layout, integers, reals, blocks, text, out, km_out):
    """Set the bound and the distance of every node of the tree over rows, or of all blocks."""
    a, qi, qf = layout.ctypes.data, integers.ctypes.data, reals.ctypes.data
    locate(qf)
    combine(a, qi, qf)
    for node in range(len(out)):
        out[node], km_out[node] = node_bound(a, qi, qf, blocks, node, text)
