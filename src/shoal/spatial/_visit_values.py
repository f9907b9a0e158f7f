"""Exact values of the time and social parts, and the bounds of tree nodes over them.

How a value is computed is fixed here to the last bit, so that every layout, the
memtable and an explanation agree:

- The time part of a place at a slot is a float32, made in float64: the smoothed counts
  are added up over the place's slots in ascending order. :func:`time_row` gives the
  same for all slots at once.
- A place's vector is the float32 of ``sum / count`` in float64, where the sum
  over its visitors is kept in integers (steps of 2^-36), so it depends neither
  on the order of check-ins nor on what was there before.
- The social part is ``social_of(x)`` with x the products ``z[j] * p[j]``, each
  exact in float64, added one by one for j = 0, 1, ...

Vectors lie in blocks of 16 rows, ``[block][dimension][16]``, flat.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit

__all__ = ["FIXED", "Best", "Places", "Query", "Tree", "Visits", "social_of"]

#: Steps of a user vector's coordinate in one: 2^26 visits of a place fit an int64.
FIXED = float(1 << 36)


#: exp need not be monotone in its last bit; attribute bounds are quotients of bytes.
_SLACK = 1e-12


class Places(NamedTuple):
    """Rows of a layout; see ``PackedLayout``. ``low``, ``span``, ``missing``: attributes."""

    keys: Any
    lon32: Any
    lat32: Any
    lon64: Any
    lat64: Any
    exact: Any
    values32: Any
    values64: Any
    wide: Any
    lengths: Any
    post: Any
    ptr: Any
    low: Any
    span: Any
    missing: Any


class Tree(NamedTuple):
    """The packed tree: boxes of all levels, where each level starts, attribute bounds."""

    boxes: Any
    level_start: Any
    node_low: Any
    node_high: Any


class Visits(NamedTuple):
    """Row values and node bounds of the time and social parts; see ``VisitColumns``.

    times float32 [slots, rows16] and time_max uint8 [slots, nodes16]; vectors,
    centres float32 flat [block][d][16]; boxes float32 flat [group][d][low, high][16];
    radii float32 [nodes16]; group_start int64 [levels]. rows16 and nodes16 are
    padded to whole blocks and groups. ``dim`` is d, a multiple of 4.
    """

    times: Any
    time_max: Any
    vectors: Any
    boxes: Any
    centres: Any
    radii: Any
    group_start: Any
    dim: Any


class Query(NamedTuple):
    """A plan in numbers; arrays are read-only.

    ``reals`` float64 [10]: has a point, its unit vector, greatest distance, scale
    of the decay, unit vector and squared chord of the cap that holds the area.
    ``vector`` float64 [d]; ``pick`` int64 [d] the place of each coordinate's
    upper term in a group of boxes, ``step`` that of a coordinate in a block.
    ``form`` 0: half, 1: positive, 2: related users, whose places are
    ``related_rows`` (int64, ascending) with ``related`` (float64) and its
    maxima over 64 (``related_max``).
    """

    has_point: Any
    lon: Any
    lat: Any
    cos_lat: Any
    match: Any
    words: Any
    word_weights: Any
    without: Any
    bm25: Any
    k1: Any
    b: Any
    mean_words: Any
    weights: Any
    decay_kind: Any
    decay_scale: Any
    max_km: Any
    pref_column: Any
    pref_flip: Any
    pref_weight: Any
    filter_column: Any
    filter_ptr: Any
    filter_low: Any
    filter_high: Any
    region_kind: Any
    region_points: Any
    region_ptr: Any
    live: Any
    slot: Any
    form: Any
    vector: Any
    pick: Any
    step: Any
    length: Any
    reals: Any
    related_rows: Any
    related: Any
    related_max: Any


class Best(NamedTuple):
    """The best so far and room to work in.

    ``scratch`` float64 [7, 16], ``ranges`` int64 [words, 2], ``text`` float64
    [256], ``masks`` int64 [16]; ``counts`` is added to.
    """

    scores: Any
    kms: Any
    keys: Any
    rows: Any
    k: Any
    counts: Any
    scratch: Any
    ranges: Any
    text: Any
    masks: Any


@njit(inline="always")
def _time_value(smooth, peak, total, prior, prior_weight, by_total):
    denominator = (total if by_total else peak) + prior_weight
    if denominator <= 0.0:
        return np.float32(0.0)
    return np.float32(min(1.0, (smooth + prior_weight * prior) / denominator))


@njit(cache=True, nogil=True)
def smooth_row(slot_of, count_of, first, stop, offsets, weights, smooth):
    """Fill ``smooth`` [slots] with a place's smoothed counts; return (maximum, check-ins).

    The place's slots are ``slot_of[first:stop]``, ascending, with ``count_of``.
    """
    slots = len(smooth)
    smooth[:] = 0.0
    total = 0.0
    for i in range(first, stop):
        slot, count = np.int64(slot_of[i]), np.float64(count_of[i])
        total += count
        for t in range(len(offsets)):
            at = slot + offsets[t]
            if at >= slots:
                at -= slots
            smooth[at] += weights[t] * count
    peak = 0.0
    for b in range(slots):
        peak = max(peak, smooth[b])
    return peak, total


@njit(cache=True, nogil=True)
def time_row(
    slot_of, count_of, first, stop, offsets, weights, prior, prior_weight, by_total, smooth, out
):
    """Fill ``out`` (float32 [slots]) with the time part of a place at each slot."""
    peak, total = smooth_row(slot_of, count_of, first, stop, offsets, weights, smooth)
    for b in range(len(out)):
        out[b] = _time_value(smooth[b], peak, total, prior[b], prior_weight, by_total)


@njit(cache=True, nogil=True)
def time_rows(
    places, slot_first, slot_stop, slot_of, count_of, smoothing, priors, category, mode, out
):
    """Fill ``out`` (float32 [slots, >= m]) with the time parts of places (-1: none, 0)."""
    offsets, weights = smoothing
    prior_weight, by_total = mode
    slots = out.shape[0]
    smooth = np.empty(slots, dtype=np.float64)
    row = np.empty(slots, dtype=np.float32)
    for i in range(len(places)):
        place = places[i]
        if place < 0:
            continue
        time_row(
            slot_of,
            count_of,
            slot_first[place],
            slot_stop[place],
            offsets,
            weights,
            priors[category[place]],
            prior_weight,
            by_total,
            smooth,
            row,
        )
        for b in range(slots):
            out[b, i] = row[b]


@njit(cache=True, nogil=True)
def times_at(
    places, slot_first, slot_stop, slot_of, count_of, smoothing, priors, category, mode, slot, out
):
    """Fill ``out`` (float64 [m]) with the time part of places at one slot."""
    offsets, weights = smoothing
    prior_weight, by_total = mode
    smooth = np.empty(priors.shape[1], dtype=np.float64)
    for i in range(len(places)):
        place = places[i]
        out[i] = 0.0
        if place < 0:
            continue
        peak, total = smooth_row(
            slot_of, count_of, slot_first[place], slot_stop[place], offsets, weights, smooth
        )
        prior = priors[category[place], slot]
        out[i] = _time_value(smooth[slot], peak, total, prior, prior_weight, by_total)


@njit(inline="always")
def social_of(form, x):
    """Return the social part of a dot product (or of a share of related visits)."""
    if form == 0:
        return min(1.0, max(0.0, 0.5 * (1.0 + x)))
    return min(1.0, max(0.0, x))


@njit(inline="always")
def _coordinate(total, count):
    """Return a place's coordinate from the sum in fixed point and the number of visits."""
    return np.float32(np.float64(total) / (np.float64(count) * FIXED))


@njit(cache=True, nogil=True)
def vector_blocks(places, sums, counts, visitors, min_visitors, dim, out):
    """Fill the blocks ``out`` (float32 flat, zeros) with the vectors of places (-1: none)."""
    for i in range(len(places)):
        place = places[i]
        if place < 0 or visitors[place] < min_visitors or counts[place] <= 0:
            continue
        base = (i // 16) * dim * 16 + i % 16
        for j in range(sums.shape[1]):
            out[base + j * 16] = _coordinate(sums[place, j], counts[place])


@njit(cache=True, nogil=True)
def socials_of(places, sums, counts, visitors, min_visitors, vector, form, out):
    """Fill ``out`` (float64 [m]) with the social part of places for a user's vector."""
    for i in range(len(places)):
        place = places[i]
        x = 0.0
        if place >= 0 and visitors[place] >= min_visitors and counts[place] > 0:
            for j in range(sums.shape[1]):
                x += vector[j] * np.float64(_coordinate(sums[place, j], counts[place]))
        out[i] = social_of(form, x)


@njit(cache=True, nogil=True)
def add_visits(user_row, place, clipped, fixed_vectors, sums, counts, visitors):
    """Add (user, place) pairs with their clipped visits to the sums of places.

    ``user_row`` is the row of ``fixed_vectors`` (int64 [U, d]), or -1 for a user
    without a vector.
    """
    for i in range(len(place)):
        o = place[i]
        counts[o] += clipped[i]
        visitors[o] += 1
        if user_row[i] >= 0:
            for j in range(sums.shape[1]):
                sums[o, j] += clipped[i] * fixed_vectors[user_row[i], j]


@njit(cache=True, nogil=True)
def time_maxima(times, rows, level_start, group_start, out):
    """Fill ``out`` (uint8 [slots, nodes16], zeros) with the rounded-up maxima of all nodes."""
    levels = len(level_start) - 1
    for b in range(times.shape[0]):
        for row in range(rows):
            node = row >> 4
            value = math.ceil(255.0 * np.float64(times[b, row]))
            out[b, node] = max(out[b, node], value)
        for level in range(1, levels):
            below, here = group_start[level - 1] * 16, group_start[level] * 16
            for child in range(level_start[level] - level_start[level - 1]):
                node = here + (child >> 4)
                out[b, node] = max(out[b, node], out[b, below + child])


@njit(inline="always")
def _node_rows(level, node, rows):
    """Return the range of rows of a node."""
    width = 1 << (4 * (level + 1))
    return node * width, min(rows, (node + 1) * width)


@njit(cache=True, nogil=True)
def vector_bounds(vectors, rows, dim, level_start, group_start, boxes, centres, radii):
    """Fill the boxes, centres and radii of all nodes from the vectors of their rows.

    A centre is rounded to float32 before distances to it are taken, and a radius
    is rounded up: the ball holds every vector in spite of both roundings.
    """
    levels = len(level_start) - 1
    mean = np.empty(dim, dtype=np.float64)
    for level in range(levels):
        for node in range(level_start[level + 1] - level_start[level]):
            first, stop = _node_rows(level, node, rows)
            group = group_start[level] + (node >> 4)
            lane = node & 15
            for j in range(dim):
                low, high, total = np.float32(np.inf), np.float32(-np.inf), 0.0
                if level == 0:
                    base = (node * dim + j) * 16
                    for i in range(stop - first):
                        value = vectors[base + i]
                        low, high = min(low, value), max(high, value)
                        total += value
                else:
                    under = group_start[level - 1] + node
                    children = min(16, level_start[level] - level_start[level - 1] - node * 16)
                    base = (under * dim + j) * 32
                    for i in range(children):
                        low = min(low, boxes[base + i])
                        high = max(high, boxes[base + 16 + i])
                    base = (under * dim + j) * 16
                    for i in range(children):
                        start, end = _node_rows(level - 1, node * 16 + i, rows)
                        total += np.float64(centres[base + i]) * (end - start)
                boxes[(group * dim + j) * 32 + lane] = low
                boxes[(group * dim + j) * 32 + 16 + lane] = high
                mean[j] = np.float64(np.float32(total / (stop - first)))
                centres[(group * dim + j) * 16 + lane] = np.float32(mean[j])
            most = 0.0
            for row in range(first, stop):
                base = (row >> 4) * dim * 16 + (row & 15)
                square = 0.0
                for j in range(dim):
                    away = np.float64(vectors[base + j * 16]) - mean[j]
                    square += away * away
                most = max(most, square)
            radii[group * 16 + lane] = radius_of(most)


@njit(cache=True, nogil=True)
def radius_of(square):
    """Return a float32 radius that is not below the root of ``square``, rounding included."""
    radius = np.float32(math.sqrt(square) * (1.0 + _SLACK))
    if square > 0.0:
        # Two steps: np.float32 may have rounded down by half of one, the sum by less.
        radius = np.float32(np.float64(radius) * (1.0 + 2.4e-7) + 1e-30)
    return radius


@njit(cache=True, nogil=True)
def widen(row, times, vector, visits, level_start):
    """Widen the bounds of a row's ancestors so that they hold new values of the row.

    ``times`` float32 [slots] and ``vector`` float32 [d]. For the one writer; call
    it before the row's values are changed.
    """
    dim = visits.dim
    levels = len(level_start) - 1
    for level in range(levels):
        node = row >> (4 * (level + 1))
        group, lane = visits.group_start[level] + (node >> 4), node & 15
        place = group * 16 + lane
        for b in range(len(times)):
            value = math.ceil(255.0 * np.float64(times[b]))
            visits.time_max[b, place] = max(visits.time_max[b, place], value)
        square = 0.0
        for j in range(len(vector)):
            at = (group * dim + j) * 32 + lane
            visits.boxes[at] = min(visits.boxes[at], vector[j])
            visits.boxes[at + 16] = max(visits.boxes[at + 16], vector[j])
            centre = np.float64(visits.centres[(group * dim + j) * 16 + lane])
            away = np.float64(vector[j]) - centre
            square += away * away
        visits.radii[place] = max(visits.radii[place], radius_of(square))


@njit(cache=True, nogil=True)
def cos_of_degrees(lat):
    """Return the cosine of a latitude, as every search computes it."""
    return math.cos(lat * (math.pi / 180.0))
