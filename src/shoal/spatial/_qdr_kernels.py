"""Best-first search of the QDR-Tree.

A score is computed by ``_score`` alone and in one order of operations, and a
node's bound takes the same steps with bounds in place of values. Addition and
multiplication in floating point are monotone, so the bound needs no slack
where the steps are exact; only the decays that call ``exp`` get one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from shoal.spatial._score import (
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
from shoal.spatial._visit_rows import blend, cannot_beat, lower_bound, row_attributes

__all__ = [
    "BITMAP_PRUNES",
    "CORNER_PRUNES",
    "COUNTS",
    "DUPLICATES",
    "SKYLINE_PRUNES",
    "SKYLINE_TESTS",
    "Places",
    "Query",
    "Trees",
    "query_point",
    "row_parts",
    "search",
]

#: Positions in the array of counts that :func:`search` adds to.
NODES, SCORED, LOOKED_AT = 0, 1, 2
BITMAP_PRUNES, CORNER_PRUNES, SKYLINE_TESTS, SKYLINE_PRUNES, DUPLICATES = 3, 4, 5, 6, 7
COUNTS = 8

_EXP_SLACK = 1.0 + 1e-12
_NO_SOURCE = 1 << 30


class Places(NamedTuple):
    """The places of a layout, n rows; see ``qdrtree`` for the arrays."""

    keys: np.ndarray  # int64 [n]
    lon32: np.ndarray  # int32 [n] or empty
    lat32: np.ndarray
    lon64: np.ndarray  # float64 [n] or empty
    lat64: np.ndarray
    exact: bool
    values32: np.ndarray  # float32 [d, n] or empty
    values64: np.ndarray  # float64 [d, n] or empty
    wide: bool
    word_ptr: np.ndarray  # int64 [n + 1]
    word_ids: np.ndarray  # int32
    low: np.ndarray  # float64 [d], of the attributes' ranges
    span: np.ndarray
    missing: np.ndarray  # int64 [d]


class Trees(NamedTuple):
    """All DR-Trees, flat; see ``qdrtree`` for the arrays."""

    fan_out: int
    member_ptr: np.ndarray  # int64 [trees + 1]
    members: np.ndarray  # uint32; the last tree's are its rows 0 .. n and not stored
    level_ptr: np.ndarray  # int64 [trees + 1]
    level_first: np.ndarray  # int64 [levels + 1]
    boxes: np.ndarray  # float32 [nodes, 6]
    node_low: np.ndarray  # float32 [nodes, d]
    node_high: np.ndarray
    sky_ptr: np.ndarray  # int64 [nodes + 1]
    sky: np.ndarray  # float32 [points, d]
    bit_width: np.ndarray  # int64 [trees]
    bit_first: np.ndarray  # int64 [trees]
    bits: np.ndarray  # uint64


class Query(NamedTuple):
    """A plan in numbers of this layout."""

    has_point: bool
    lon: float
    lat: float
    cos_lat: float
    x: float
    y: float
    z: float
    match: int
    words: np.ndarray  # int64 [w], -1: occurs nowhere here
    word_weights: np.ndarray  # float64 [w]
    leaf_of: np.ndarray  # int64 [w], tree of the word, -1 in the tail
    bit_of: np.ndarray  # int64 [w]
    source_of: np.ndarray  # int64 [w], order in which the word's list or tree is searched
    bm25: bool
    k1: float
    b: float
    mean_words: float
    weights: np.ndarray  # float64 [5]
    decay_kind: int
    decay_scale: float
    max_km: float
    pref_column: np.ndarray  # int32 [m]
    pref_flip: np.ndarray  # uint8 [m]
    pref_weight: np.ndarray  # float64 [m]
    filter_column: np.ndarray
    filter_ptr: np.ndarray
    filter_low: np.ndarray
    filter_high: np.ndarray
    region_kind: int
    region_points: np.ndarray
    region_ptr: np.ndarray
    cap_x: float
    cap_y: float
    cap_z: float
    cap_chord2: float
    without: np.ndarray  # int64
    live: np.ndarray  # uint8 [n] or empty
    use_bitmaps: bool
    use_corners: bool
    use_skylines: bool


@njit(cache=True, nogil=True)
def query_point(lon, lat):
    """Return (x, y, z, cos of the latitude) of a query's point."""
    x, y, z = unit_vector(lon, lat)
    return x, y, z, math.cos(lat * (math.pi / 180.0))


@njit(inline="always")
def _has_word(places, row, word):
    """Say whether a row has a word (its number, -1 for none), by binary search."""
    stop = places.word_ptr[row + 1]
    at = lower_bound(places.word_ids, places.word_ptr[row], stop, word)
    return at < stop and places.word_ids[at] == word


@njit(inline="always")
def _text(places, query, row):
    """Return (text part, words matched, first source of a matched word) of a row."""
    text = 0.0
    matched = 0
    source = _NO_SOURCE
    for w in range(len(query.words)):
        if query.words[w] >= 0 and _has_word(places, row, query.words[w]):
            text += query.word_weights[w]
            matched += 1
            source = min(source, query.source_of[w])
    if query.bm25:
        length = np.float64(places.word_ptr[row + 1] - places.word_ptr[row])
        damped = 1.0 + query.k1 * (1.0 - query.b + query.b * length / query.mean_words)
        text *= min(1.0, (1.0 + query.k1 * (1.0 - query.b)) / damped)
    return text, matched, source


@njit(inline="always")
def _measure(places, query, row, own):
    """Return (qualifies, space, text, attributes, km, first source) of a row.

    ``own`` is the source that is searched: a row that does not qualify by its
    words, or answers for another source, is not measured any further. -1: all
    is filled in.
    """
    text, matched, source = _text(places, query, row)
    good = True
    if query.match == 1:
        good = matched == len(query.words)
    elif query.match == 2:
        good = matched > 0
    if own >= 0 and not (good and (query.match != 2 or source == own)):
        return False, 0.0, 0.0, 0.0, 0.0, source
    lon, lat = position(places.lon32, places.lat32, places.lon64, places.lat64, places.exact, row)
    km = 0.0
    space = 0.0
    if query.has_point:
        km = distance_km(query.lon, query.lat, query.cos_lat, lon, lat)
        space = decay_of(query.decay_kind, query.decay_scale, km)
        good = good and km <= query.max_km
    attributes = row_attributes(places, query, row)
    good = good and attributes > -0.5  # rounding alone brings it no lower than -1e-15
    if good and len(query.filter_column):
        good = passes_filters(
            query.filter_column,
            query.filter_ptr,
            query.filter_low,
            query.filter_high,
            places.values32,
            places.values64,
            places.wide,
            row,
        )
    good = good and in_region(query.region_kind, query.region_points, query.region_ptr, lon, lat)
    for w in range(len(query.without)):
        good = good and not _has_word(places, row, query.without[w])
    return good, space, text, attributes, km, source


@njit(cache=True, nogil=True)
def row_parts(places, query, rows, parts, kms, good):
    """Fill in parts [m, 5], kilometres [m] and whether each row qualifies [m]."""
    for i in range(len(rows)):
        fits, space, text, attributes, km, _ = _measure(places, query, rows[i], -1)
        parts[i, 0], parts[i, 1] = space, text
        parts[i, 2] = attributes if attributes > -0.5 else 0.0
        kms[i] = km
        good[i] = fits


@njit(inline="always")
def _attribute_bound(trees, query, node, skyline):
    """Return the most that the attribute part can be under a node.

    The skyline holds for "lower is better"; an attribute whose direction the
    query turned round is bounded by the node's maximum, in either case.
    """
    m = len(query.pref_column)
    if m == 0:
        return 0.0
    first, stop = trees.sky_ptr[node], trees.sky_ptr[node + 1]
    if not skyline:
        stop = first + 1
    least = np.inf
    for i in range(first, stop):
        total = 0.0
        for j in range(m):
            c = query.pref_column[j]
            if query.pref_flip[j]:
                cost = 1.0 - np.float64(trees.node_high[node, c])
            elif skyline:
                cost = np.float64(trees.sky[i, c])
            else:
                cost = np.float64(trees.node_low[node, c])
            total += query.pref_weight[j] * cost
        least = min(least, total)
    return 1.0 - least


@njit(inline="always")
def _text_bound(trees, query, tree, node_in_tree, source):
    """Return the most that the text part can be under a node; below 0: no answer there.

    Only the rows that this tree answers for count: those with a word of the
    tree and none of a source searched before it.
    """
    text = 0.0
    present = 0
    width = trees.bit_width[tree]
    first = trees.bit_first[tree] + node_in_tree * width
    for w in range(len(query.words)):
        if query.words[w] < 0 or query.source_of[w] < source:
            continue
        if query.leaf_of[w] == tree and query.source_of[w] == source:
            bit = query.bit_of[w]
            if query.use_bitmaps:
                here = (trees.bits[first + (bit >> 6)] >> np.uint64(bit & 63)) & np.uint64(1)
                if here == 0:
                    if query.match == 1:
                        return -1.0
                    continue
            present += 1
        text += query.word_weights[w]
    if query.match == 2 and present == 0:
        return -1.0
    return text


@njit
def _bound(trees, query, tree, level, j, source, scores, kms, count, k, counts):
    """Return (keep, upper bound of the score, lower bound of the distance) of a node."""
    base = trees.level_ptr[tree]
    node = trees.level_first[base + level] + j
    km = 0.0
    space = 0.0
    if query.has_point:
        km = km_of_chord2(box_chord2(query.x, query.y, query.z, trees.boxes, node))
        if km > query.max_km:
            return False, 0.0, 0.0
        space = decay_of(query.decay_kind, query.decay_scale, km)
        if query.decay_kind >= 2:
            space *= _EXP_SLACK  # exp need not be monotone in its last bit
    if (
        query.cap_chord2 < 4.0
        and box_chord2(query.cap_x, query.cap_y, query.cap_z, trees.boxes, node) > query.cap_chord2
    ):
        return False, 0.0, 0.0
    text = _text_bound(trees, query, tree, node - trees.level_first[base], source)
    if text < 0.0:
        counts[BITMAP_PRUNES] += 1
        return False, 0.0, 0.0
    most = 1.0 if len(query.pref_column) else 0.0
    ub = blend(query.weights, space, text, most, 0.0, 0.0)
    if cannot_beat(ub, km, scores, kms, count, k):
        return False, 0.0, 0.0
    if len(query.pref_column) and query.weights[2] > 0.0:
        if query.use_corners:
            corner = _attribute_bound(trees, query, node, False)
            ub = blend(query.weights, space, text, corner, 0.0, 0.0)
            if cannot_beat(ub, km, scores, kms, count, k):
                counts[CORNER_PRUNES] += 1
                return False, 0.0, 0.0
        if query.use_skylines:
            counts[SKYLINE_TESTS] += 1
            least = _attribute_bound(trees, query, node, True)
            ub = min(ub, blend(query.weights, space, text, least, 0.0, 0.0))
            if cannot_beat(ub, km, scores, kms, count, k):
                counts[SKYLINE_PRUNES] += 1
                return False, 0.0, 0.0
    return True, ub, km


# Not the heap of _visit_kernels: with one packed number an entry, the search as a whole came out a
# quarter slower.


@njit(inline="always")
def _first(bounds, a, b):
    """Say whether heap entry a comes out before b: higher bound, then nearer."""
    if bounds[a, 0] != bounds[b, 0]:
        return bounds[a, 0] > bounds[b, 0]
    return bounds[a, 1] < bounds[b, 1]


@njit(inline="always")
def _swap(bounds, places, a, b):
    for c in range(2):
        bounds[a, c], bounds[b, c] = bounds[b, c], bounds[a, c]
    for c in range(3):
        places[a, c], places[b, c] = places[b, c], places[a, c]


@njit
def _rise(bounds, entries, i):
    while i > 0:
        parent = (i - 1) >> 1
        if not _first(bounds, i, parent):
            return
        _swap(bounds, entries, i, parent)
        i = parent


@njit
def _sink(bounds, entries, size):
    i = 0
    while True:
        child = 2 * i + 1
        if child >= size:
            return
        if child + 1 < size and _first(bounds, child + 1, child):
            child += 1
        if not _first(bounds, child, i):
            return
        _swap(bounds, entries, i, child)
        i = child


@njit
def _consider(places, query, row, source, scores, kms, keys, rows, count, k, counts):
    """Score one row and offer it; return the new count of answers."""
    counts[LOOKED_AT] += 1
    if len(query.live) and not query.live[row]:
        return count
    good, space, text, attributes, km, first = _measure(places, query, row, source)
    if query.match == 2 and first != source:
        # A tree also holds rows for words that were not asked for: those whose words of the
        # query all belong elsewhere are answered for there.
        counts[DUPLICATES] += first < _NO_SOURCE
        return count
    if not good:
        return count
    counts[SCORED] += 1
    score = blend(query.weights, space, text, attributes, 0.0, 0.0)
    return offer(scores, kms, keys, rows, count, k, score, km, places.keys[row], row)


@njit(cache=True, nogil=True)
def search(
    places,
    trees,
    query,
    tail_rows,
    list_first,
    list_stop,
    roots,
    scores,
    kms,
    keys,
    rows,
    count,
    k,
    counts,
):
    """Search posting lists, then trees best-first under one threshold; return the new count.

    ``list_first``, ``list_stop`` (int64 [s]) are the ranges of ``tail_rows``
    that are sources 0 .. s - 1; tree ``roots[i]`` is source s + i. A row is
    answered for by the first source among those of its words, and passed over in the others.
    """
    for source in range(len(list_first)):
        for p in range(list_first[source], list_stop[source]):
            count = _consider(
                places,
                query,
                np.int64(tail_rows[p]),
                source,
                scores,
                kms,
                keys,
                rows,
                count,
                k,
                counts,
            )
    lists = len(list_first)
    last_tree = len(trees.member_ptr) - 2
    bounds = np.empty((256, 2), dtype=np.float64)
    entries = np.empty((256, 3), dtype=np.int64)  # source, level, number within the level
    size = 0
    for i in range(len(roots)):
        tree = roots[i]
        top = trees.level_ptr[tree + 1] - trees.level_ptr[tree] - 1
        if top < 0:
            continue
        keep, ub, km = _bound(trees, query, tree, top, 0, lists + i, scores, kms, count, k, counts)
        if not keep:
            continue
        if size == len(bounds):
            bounds = np.concatenate((bounds, np.empty_like(bounds)))
            entries = np.concatenate((entries, np.empty_like(entries)))
        bounds[size, 0], bounds[size, 1] = ub, km
        entries[size, 0], entries[size, 1], entries[size, 2] = lists + i, top, 0
        _rise(bounds, entries, size)
        size += 1
    while size:
        if cannot_beat(bounds[0, 0], bounds[0, 1], scores, kms, count, k):
            break
        source, level, j = entries[0, 0], entries[0, 1], entries[0, 2]
        size -= 1
        _swap(bounds, entries, 0, size)
        _sink(bounds, entries, size)
        counts[NODES] += 1
        tree = roots[source - lists]
        first = j * trees.fan_out
        if level == 0:
            start = trees.member_ptr[tree]
            stop = min(trees.member_ptr[tree + 1] - start, first + trees.fan_out)
            for at in range(first, stop):
                row = at if tree == last_tree else np.int64(trees.members[start + at])
                count = _consider(
                    places, query, row, source, scores, kms, keys, rows, count, k, counts
                )
            continue
        base = trees.level_ptr[tree] + level - 1
        stop = min(trees.level_first[base + 1] - trees.level_first[base], first + trees.fan_out)
        for child in range(first, stop):
            keep, ub, km = _bound(
                trees, query, tree, level - 1, child, source, scores, kms, count, k, counts
            )
            if not keep:
                continue
            if size == len(bounds):
                bounds = np.concatenate((bounds, np.empty_like(bounds)))
                entries = np.concatenate((entries, np.empty_like(entries)))
            bounds[size, 0], bounds[size, 1] = ub, km
            entries[size, 0], entries[size, 1], entries[size, 2] = source, level - 1, child
            _rise(bounds, entries, size)
            size += 1
    return count
