"""Kernels of the time and social parts: their exact values, and the search with all five.

How a value is computed is fixed here to the last bit, so that every layout, the
memtable and an explanation agree:

- The time part of a place at a slot is a float32, made in float64 by
  :func:`time_at`: the smoothed counts are added up over the place's slots in
  ascending order. :func:`time_row` gives the same for all slots at once.
- A place's vector is the float32 of ``sum / count`` in float64, where the sum
  over its visitors is kept in integers (steps of 2^-36), so it depends neither
  on the order of check-ins nor on what was there before.
- The social part is ``social_of(x)`` with x the products ``z[j] * p[j]``, each
  exact in float64, added one by one for j = 0, 1, ...

Vectors lie in blocks of 16 rows, ``[block][dimension][16]``, flat: a leaf's dot
products, and the bounds of 16 sibling nodes, are then one pass of the vector unit
in which each lane still adds in the order above. A bound that is made of terms
none of which is below the row's, added in the same order, is never below the
row's value, rounding included.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from shoal.spatial._score import (
    attribute_cost,
    box_chord2,
    decay_of,
    distance_km,
    in_region,
    km_of_chord2,
    offer,
    passes_filters,
    position,
)

__all__ = [
    "COUNTS",
    "FIXED",
    "LEAVES",
    "LOOKED_AT",
    "NODES",
    "SAMPLED",
    "SCANS",
    "SCORED",
    "Places",
    "Query",
    "Tree",
    "Visits",
]

#: Steps of a user vector's coordinate in one: 2^26 visits of a place fit an int64.
FIXED = float(1 << 36)
#: exp need not be monotone in its last bit; attribute bounds are quotients of bytes.
_SLACK = 1e-12
#: Candidates in a node's range at which they are looked at one by one.
_FEW = 64

# Entries of the counts that a search adds to.
NODES, SCORED, LOOKED_AT, LEAVES, SCANS, SAMPLED, COUNTS = range(7)


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


# --- arrays without counts ----------------------------------------------------------------------


@intrinsic
def borrowed(_context, kind):
    """Return an array, or a named tuple with arrays, that no longer counts its references.

    Handing a tuple of forty arrays from function to function would count each
    up and down, atomically, at every call. Whoever called the kernel holds them.
    """

    def strip(context, builder, kind, value):
        if isinstance(kind, types.Array):
            array = context.make_array(kind)(context, builder, value)
            array.meminfo = cgutils.get_null_value(array.meminfo.type)
            array.parent = cgutils.get_null_value(array.parent.type)
            return array._getvalue()
        if isinstance(kind, types.BaseTuple):
            for i, part in enumerate(kind.types):
                old = builder.extract_value(value, i)
                value = builder.insert_value(value, strip(context, builder, part, old), i)
        return value

    def generate(context, builder, signature, values):
        return strip(context, builder, signature.args[0], values[0])

    return kind(kind), generate


@intrinsic
def _sums(_context, values, base, pick, vector, size, out):
    """Fill ``out`` [16] with sums over j of ``vector[j] * values[base + pick[j] + lane]``.

    The compiler does not find this loop by itself (it cannot know that the arrays
    do not overlap): one float64 vector of 16 lanes, added to for j = 0, 1, ...
    """
    wide, one, zero = ir.VectorType(ir.DoubleType(), 16), ir.IntType(64), ir.IntType(32)

    def generate(context, builder, signature, given):
        def data(place):
            kind = signature.args[place]
            return context.make_array(kind)(context, builder, given[place]).data

        value_at, pick_at, vector_at, out_at = data(0), data(2), data(3), data(5)
        nothing = ir.Constant(wide, [ir.Constant(ir.DoubleType(), 0.0)] * 16)
        before = builder.block
        loop = builder.function.append_basic_block("sums")
        after = builder.function.append_basic_block("sums_done")
        builder.branch(loop)
        builder.position_at_end(loop)
        j, total = builder.phi(one), builder.phi(wide)
        j.add_incoming(ir.Constant(one, 0), before)
        total.add_incoming(nothing, before)
        first = builder.add(given[1], builder.load(builder.gep(pick_at, [j])))
        lanes = builder.bitcast(
            builder.gep(value_at, [first]), ir.VectorType(ir.FloatType(), 16).as_pointer()
        )
        terms = builder.fpext(builder.load(lanes, align=4), wide)
        factor = builder.insert_element(
            ir.Constant(wide, ir.Undefined),
            builder.load(builder.gep(vector_at, [j])),
            ir.Constant(zero, 0),
        )
        factor = builder.shuffle_vector(
            factor,
            ir.Constant(wide, ir.Undefined),
            ir.Constant(ir.VectorType(zero, 16), [0] * 16),
        )
        added = builder.fadd(total, builder.fmul(factor, terms))
        following = builder.add(j, ir.Constant(one, 1))
        j.add_incoming(following, loop)
        total.add_incoming(added, loop)
        builder.cbranch(builder.icmp_signed("<", following, given[4]), loop, after)
        builder.position_at_end(after)
        builder.store(added, builder.bitcast(out_at, wide.as_pointer()), align=8)
        return context.get_dummy_value()

    return types.none(values, base, pick, vector, size, out), generate


@njit(inline="always")
def _dots(values, base, pick, vector, out):
    _sums(values, base, pick, vector, len(vector), out)


# --- exact values -------------------------------------------------------------------------------


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


# --- bounds -------------------------------------------------------------------------------------


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


# --- search -------------------------------------------------------------------------------------


@njit(inline="always")
def blend(weights, space, text, attributes, time, social):
    """Return the score, or the bound, of the five parts; a part of weight 0 is left out."""
    score = 0.0
    if weights[0] > 0.0:
        score += weights[0] * space
    if weights[1] > 0.0:
        score += weights[1] * text
    if weights[2] > 0.0:
        score += weights[2] * attributes
    if weights[3] > 0.0:
        score += weights[3] * time
    if weights[4] > 0.0:
        score += weights[4] * social
    return score


@njit(inline="always")
def cannot_beat(ub, km, scores, kms, count, k):
    """Say whether what has that bound and that least distance holds no answer."""
    if count < k:
        return False
    last = k - 1
    return ub < scores[last] or (ub == scores[last] and km > kms[last])


@njit(inline="always")
def lower_bound(values, first, stop, value):
    """Return the first position in ``first .. stop`` whose value is not below ``value``."""
    while first < stop:
        middle = (first + stop) >> 1
        if values[middle] < value:
            first = middle + 1
        else:
            stop = middle
    return first


@njit(inline="always")
def row_dot(values, base, vector):
    """Return what :func:`_dots` gives for one row of a block."""
    total = 0.0
    for j in range(len(vector)):
        total += vector[j] * values[base + j * 16]
    return total


@njit
def related_at(query, row):
    """Return the share of related visits of a row."""
    at = lower_bound(query.related_rows, 0, len(query.related_rows), row)
    if at < len(query.related_rows) and query.related_rows[at] == row:
        return query.related[at]
    return 0.0


@njit
def related_most(query, first, stop):
    """Return the largest share of related visits of the rows ``first .. stop``."""
    rows = query.related_rows
    a = lower_bound(rows, 0, len(rows), first)
    b = lower_bound(rows, a, len(rows), stop)
    most = 0.0
    while a < b:
        if (a & 63) == 0 and a + 64 <= b:
            most = max(most, query.related_max[a >> 6])
            a += 64
        else:
            most = max(most, query.related[a])
            a += 1
    return most


@njit
def has_word(places, row, word):
    """Say whether a row has a word (its number), by binary search."""
    stop = np.int64(places.ptr[word + 1])
    at = lower_bound(places.post, np.int64(places.ptr[word]), stop, row)
    return at < stop and places.post[at] == row


@njit
def row_attributes(places, query, row):
    """Return the attribute part of a row; -1: the row is excluded."""
    if len(query.pref_column) == 0:
        return 0.0
    total = 0.0
    for j in range(len(query.pref_column)):
        c = query.pref_column[j]
        value = places.values64[c, row] if places.wide else np.float64(places.values32[c, row])
        cost = attribute_cost(
            value, places.low[c], places.span[c], query.pref_flip[j], places.missing[c]
        )
        if cost < 0.0:
            return -1.0
        total += query.pref_weight[j] * cost
    return 1.0 - total


@njit
def damped(places, query, row, text):
    """Return the text part of a row from the shares of its words."""
    if query.bm25:
        length = np.float64(places.lengths[row])
        norm = 1.0 + query.k1 * (1.0 - query.b + query.b * length / query.mean_words)
        text *= min(1.0, (1.0 + query.k1 * (1.0 - query.b)) / norm)
    return text


@njit
def passes(places, query, row, lon, lat):
    """Say whether a row passes filters, area and excluded words."""
    if len(query.filter_column) and not passes_filters(
        query.filter_column,
        query.filter_ptr,
        query.filter_low,
        query.filter_high,
        places.values32,
        places.values64,
        places.wide,
        row,
    ):
        return False
    if query.region_kind and not in_region(
        query.region_kind, query.region_points, query.region_ptr, lon, lat
    ):
        return False
    unwanted = False
    for w in range(len(query.without)):
        unwanted = unwanted or has_word(places, row, query.without[w])
    return not unwanted


@njit
def finish(places, query, row, text, time, social, scores, kms, keys, rows, count, k, counts):
    """Score a row whose text, time and social parts are known, and offer it."""
    attributes = row_attributes(places, query, row)
    if attributes < -0.5:  # rounding alone brings it no lower than -1e-15
        return count
    lon, lat = position(places.lon32, places.lat32, places.lon64, places.lat64, places.exact, row)
    km = 0.0
    space = 0.0
    if query.has_point:
        km = distance_km(query.lon, query.lat, query.cos_lat, lon, lat)
        if not km <= query.max_km:
            return count
        space = decay_of(query.decay_kind, query.decay_scale, km)
    score = blend(query.weights, space, text, attributes, time, social)
    counts[SCORED] += 1
    if cannot_beat(score, km, scores, kms, count, k):
        return count
    if not passes(places, query, row, lon, lat):
        return count
    return offer(scores, kms, keys, rows, count, k, score, km, places.keys[row], row)


@njit
def near(boxes, node, reals, decay_kind):
    """Return (may hold answers, least distance, most of the space part) of a box.

    ``reals`` is ``Query.reals``: a tuple of forty entries is too much to hand over here.
    """
    km = 0.0
    space = 0.0
    if reals[0] > 0.0:
        km = km_of_chord2(box_chord2(reals[1], reals[2], reals[3], boxes, node))
        if km > reals[4]:
            return False, km, space
        space = decay_of(decay_kind, reals[5], km)
        if decay_kind >= 2:
            space *= 1.0 + _SLACK
    if reals[9] < 4.0 and box_chord2(reals[6], reals[7], reals[8], boxes, node) > reals[9]:
        return False, km, space
    return True, km, space


@njit
def attribute_most(tree, query, node):
    """Return the most that the attribute part can be under a node."""
    total = 0.0
    for j in range(len(query.pref_column)):
        c = query.pref_column[j]
        if query.pref_flip[j]:
            cost = 1.0 - tree.node_high[node, c] / 255.0
        else:
            cost = tree.node_low[node, c] / 255.0
        total += query.pref_weight[j] * cost
    return 1.0 - total + _SLACK


@njit
def _words_below(places, query, ranges, first, shift, n_below, text):
    """Fill ``text`` [16] by child and return the children that may match, as bits.

    ``ranges`` int64 [words, 2] are the postings of each word below the node,
    whose first row is ``first``; a child has ``1 << shift`` rows.
    """
    everyone = (1 << n_below) - 1
    for i in range(16):
        text[i] = 0.0
    if query.match == 0 or len(query.words) == 0:
        return everyone
    matching = everyone if query.match == 1 else 0
    for w in range(len(query.words)):
        at, stop = ranges[w, 0], ranges[w, 1]
        here = 0
        while at < stop:
            child = (np.int64(places.post[at]) - first) >> shift
            here |= 1 << child
            text[child] += query.word_weights[w]
            at += 1
            if shift and at < stop and ((np.int64(places.post[at]) - first) >> shift) == child:
                at = lower_bound(places.post, at, stop, first + ((child + 1) << shift))
        if query.match == 1:
            matching &= here
        else:
            matching |= here
    return matching


@njit
def _ranges_of(places, query, first, stop, ranges):
    """Fill each word's postings within rows ``first .. stop``; return the candidates' number.

    -1: more than can be told without counting (no words); 0: none can match.
    """
    if query.match == 0 or len(query.words) == 0:
        return -1
    fewest, total = np.int64(1) << 60, np.int64(0)
    for w in range(len(query.words)):
        word = query.words[w]
        if word < 0:
            ranges[w, 0] = ranges[w, 1] = 0
        else:
            end = np.int64(places.ptr[word + 1])
            a = lower_bound(places.post, np.int64(places.ptr[word]), end, first)
            ranges[w, 0], ranges[w, 1] = a, lower_bound(places.post, a, end, stop)
        size = ranges[w, 1] - ranges[w, 0]
        fewest = min(fewest, size)
        total += size
        if fewest == 0 and query.match == 1:
            return 0
    return fewest if query.match == 1 else total


@njit
def _bounds_below(places, tree, visits, query, level, node, ranges, scratch, scores, kms, count, k):
    """Bound the children of an inner node; return those that may hold answers, as bits.

    ``scratch`` float64 [6, 16] gets the bounds in row 0 and the least distances
    in row 1. Cheap parts first; the social bound is taken for all 16 at once,
    and only if one of them is still in.
    """
    below = level - 1
    children = min(16, tree.level_start[level] - tree.level_start[below] - node * 16)
    shift = 4 * level
    first = node << (4 * (level + 1))
    ub, km_of, text, space_of, rest_of, social = (
        scratch[0],
        scratch[1],
        scratch[2],
        scratch[3],
        scratch[4],
        scratch[5],
    )
    alive = (1 << children) - 1
    text[:] = 0.0
    if len(query.words):
        alive = _words_below(places, query, ranges, first, shift, children, text)
    group = visits.group_start[below] + node
    wanted = 0
    has_attributes = len(query.pref_column) > 0
    for i in range(children):
        if not (alive >> i) & 1:
            continue
        child = tree.level_start[below] + node * 16 + i
        inside, km, space = near(tree.boxes, child, query.reals, query.decay_kind)
        if not inside:
            continue
        time = 1.0
        if query.weights[3] > 0.0:
            time = visits.time_max[query.slot, group * 16 + i] / 255.0 if query.slot >= 0 else 0.0
        attributes = attribute_most(tree, query, child) if has_attributes else 0.0
        bound = blend(query.weights, space, text[i], attributes, time, 1.0)
        if cannot_beat(bound, km, scores, kms, count, k):
            continue
        ub[i], km_of[i], space_of[i], rest_of[i] = bound, km, space, attributes
        wanted |= 1 << i
    if wanted == 0 or not query.weights[4] > 0.0:
        return wanted
    if query.form == 2:
        for i in range(children):
            social[i] = (
                related_most(query, first + (i << shift), first + ((i + 1) << shift))
                if (wanted >> i) & 1
                else 0.0
            )
    else:
        _dots(visits.boxes, group * visits.dim * 32, query.pick, query.vector, social)
    kept = 0
    for i in range(children):
        if not (wanted >> i) & 1:
            continue
        time = 1.0
        if query.weights[3] > 0.0:
            time = visits.time_max[query.slot, group * 16 + i] / 255.0 if query.slot >= 0 else 0.0
        bound = blend(
            query.weights, space_of[i], text[i], rest_of[i], time, social_of(query.form, social[i])
        )
        if cannot_beat(bound, km_of[i], scores, kms, count, k):
            continue
        ub[i] = bound
        kept |= 1 << i
    if kept == 0 or query.form == 2:
        return kept
    _dots(visits.centres, group * visits.dim * 16, query.step, query.vector, scratch[6])
    for i in range(children):
        if not (kept >> i) & 1:
            continue
        ball = scratch[6, i] + query.length * np.float64(visits.radii[group * 16 + i]) + _SLACK
        if ball >= social[i]:
            continue
        time = 1.0
        if query.weights[3] > 0.0:
            time = visits.time_max[query.slot, group * 16 + i] / 255.0 if query.slot >= 0 else 0.0
        bound = blend(
            query.weights, space_of[i], text[i], rest_of[i], time, social_of(query.form, ball)
        )
        ub[i] = bound
        if cannot_beat(bound, km_of[i], scores, kms, count, k):
            kept &= ~(1 << i)
    return kept


@njit
def _one_row(
    places, visits, query, row, text, space, km, scores, kms, keys, rows, count, k, counts
):
    """Look at a single row whose words are known; the social part is taken last."""
    counts[LOOKED_AT] += 1
    if len(query.live) and not query.live[row]:
        return count
    most = 1.0 if len(query.pref_column) else 0.0
    time = 0.0
    if query.weights[3] > 0.0 and query.slot >= 0:
        time = np.float64(visits.times[query.slot, row])
    if query.bm25:
        text = damped(places, query, row, text)
    if cannot_beat(blend(query.weights, space, text, most, time, 1.0), km, scores, kms, count, k):
        return count
    social = 0.0
    if query.weights[4] > 0.0:
        if query.form == 2:
            social = social_of(2, related_at(query, row))
        else:
            base = (row >> 4) * visits.dim * 16 + (row & 15)
            social = social_of(query.form, row_dot(visits.vectors, base, query.vector))
        if cannot_beat(
            blend(query.weights, space, text, most, time, social), km, scores, kms, count, k
        ):
            return count
    return finish(places, query, row, text, time, social, scores, kms, keys, rows, count, k, counts)


@njit
def _few_rows(places, visits, query, ranges, space, km, scores, kms, keys, rows, count, k, counts):
    """Look at the rows of a range that match, by the postings of the words."""
    n_words = len(query.words)
    if query.match == 1:
        rarest = 0
        for w in range(1, n_words):
            if ranges[w, 1] - ranges[w, 0] < ranges[rarest, 1] - ranges[rarest, 0]:
                rarest = w
        for at in range(ranges[rarest, 0], ranges[rarest, 1]):
            row = np.int64(places.post[at])
            text = 0.0
            good = True
            for w in range(n_words):
                if w != rarest:
                    p = lower_bound(places.post, ranges[w, 0], ranges[w, 1], row)
                    if p == ranges[w, 1] or places.post[p] != row:
                        good = False
                        break
                text += query.word_weights[w]
            if good:
                count = _one_row(
                    places, visits, query, row, text, space, km, scores, kms, keys, rows, count,
                    k, counts,
                )  # fmt: skip
        return count
    for source in range(n_words):
        for at in range(ranges[source, 0], ranges[source, 1]):
            row = np.int64(places.post[at])
            text = 0.0
            first = True
            for w in range(n_words):
                here = w == source
                if not here:
                    p = lower_bound(places.post, ranges[w, 0], ranges[w, 1], row)
                    here = p < ranges[w, 1] and places.post[p] == row
                    if here and w < source:
                        first = False
                        break
                if here:
                    text += query.word_weights[w]
            if first:
                count = _one_row(
                    places, visits, query, row, text, space, km, scores, kms, keys, rows, count,
                    k, counts,
                )  # fmt: skip
    return count


@njit
def _leaf(
    places, tree, visits, query, leaf, ranges, scratch, scores, kms, keys, rows, count, k, counts
):
    """Look at the rows of a leaf."""
    counts[LEAVES] += 1
    first = leaf * 16
    n_rows = min(16, len(places.keys) - first)
    inside, km, space = near(tree.boxes, leaf, query.reals, query.decay_kind)
    if not inside:
        return count
    text, social = scratch[2], scratch[5]
    alive = (1 << n_rows) - 1
    text[:] = 0.0
    if len(query.words):
        alive = _words_below(places, query, ranges, first, 0, n_rows, text)
    most = attribute_most(tree, query, leaf) if len(query.pref_column) else 0.0
    wanted = 0
    n_wanted = 0
    for i in range(n_rows):
        row = first + i
        if not (alive >> i) & 1 or (len(query.live) and not query.live[row]):
            continue
        time = 0.0
        if query.weights[3] > 0.0 and query.slot >= 0:
            time = np.float64(visits.times[query.slot, row])
        if query.bm25:
            text[i] = damped(places, query, row, text[i])
        counts[LOOKED_AT] += 1
        if cannot_beat(
            blend(query.weights, space, text[i], most, time, 1.0), km, scores, kms, count, k
        ):
            continue
        wanted |= 1 << i
        n_wanted += 1
    if wanted == 0:
        return count
    with_social = query.weights[4] > 0.0
    block = leaf * visits.dim * 16
    if with_social and query.form != 2:
        if n_wanted > 2:
            _dots(visits.vectors, block, query.step, query.vector, social)
        else:
            for i in range(n_rows):
                if (wanted >> i) & 1:
                    social[i] = row_dot(visits.vectors, block + i, query.vector)
    for i in range(n_rows):
        if not (wanted >> i) & 1:
            continue
        row = first + i
        time = 0.0
        if query.weights[3] > 0.0 and query.slot >= 0:
            time = np.float64(visits.times[query.slot, row])
        part = 0.0
        if with_social:
            part = social_of(query.form, related_at(query, row) if query.form == 2 else social[i])
            if cannot_beat(
                blend(query.weights, space, text[i], most, time, part), km, scores, kms, count, k
            ):
                continue
        count = finish(
            places, query, row, text[i], time, part, scores, kms, keys, rows, count, k, counts
        )
    return count


@njit(inline="always")
def _first(bounds, a, b):
    """Say whether heap entry a comes out before b: higher bound, then nearer."""
    if bounds[a, 0] != bounds[b, 0]:
        return bounds[a, 0] > bounds[b, 0]
    return bounds[a, 1] < bounds[b, 1]


@njit(inline="always")
def _swap(bounds, entries, a, b):
    bounds[a, 0], bounds[b, 0] = bounds[b, 0], bounds[a, 0]
    bounds[a, 1], bounds[b, 1] = bounds[b, 1], bounds[a, 1]
    entries[a], entries[b] = entries[b], entries[a]


@njit
def heap_push(bounds, entries, size, ub, km, entry):
    """Put an entry into the heap, which has room; return the new size."""
    bounds[size, 0], bounds[size, 1] = ub, km
    entries[size] = entry
    i = size
    while i > 0:
        parent = (i - 1) >> 1
        if not _first(bounds, i, parent):
            break
        _swap(bounds, entries, i, parent)
        i = parent
    return size + 1


@njit
def heap_pop(bounds, entries, size):
    """Take the first entry out of the heap; it is left at place ``size - 1``, the new size."""
    size -= 1
    _swap(bounds, entries, 0, size)
    i = 0
    while True:
        child = 2 * i + 1
        if child >= size:
            return size
        if child + 1 < size and _first(bounds, child + 1, child):
            child += 1
        if not _first(bounds, child, i):
            return size
        _swap(bounds, entries, i, child)
        i = child


@njit
def open_share(places, tree, visits, query, groups, ranges, scratch, scores, kms, count, k):
    """Return the share of sampled leaves that may still hold answers, and their number.

    Takes ``groups`` families of sibling leaves, evenly spread over the rows.
    """
    parents = tree.level_start[2] - tree.level_start[1]
    groups = min(groups, parents)
    kept = 0
    seen = 0
    for g in range(groups):
        node = (2 * g + 1) * parents // (2 * groups)
        leaves = min(16, tree.level_start[1] - node * 16)
        seen += leaves
        first = node * 256
        found = np.int64(-1)
        if len(query.words):
            found = _ranges_of(places, query, first, min(len(places.keys), first + 256), ranges)
        if found == 0:
            continue
        bits = _bounds_below(
            places, tree, visits, query, 1, node, ranges, scratch, scores, kms, count, k
        )
        for i in range(leaves):
            kept += (bits >> i) & 1
    return kept / max(1, seen), seen


@njit
def _scan(
    places, tree, visits, query, opened, n_opened, ranges, scratch, scores, kms, keys, rows,
    count, k, counts,
):  # fmt: skip
    """Look at all leaves in the order of rows, but for those opened, under the bounds."""
    n = len(places.keys)
    for node in range(tree.level_start[2] - tree.level_start[1]):
        first = node * 256
        found = np.int64(-1)
        if len(query.words):
            found = _ranges_of(places, query, first, min(n, first + 256), ranges)
        if found == 0:
            continue
        counts[NODES] += 1
        bits = _bounds_below(
            places, tree, visits, query, 1, node, ranges, scratch, scores, kms, count, k
        )
        if bits == 0:
            continue
        # The bounds live in the scratch that a leaf works in: the bits alone are kept.
        for i in range(16):
            if not (bits >> i) & 1:
                continue
            leaf = node * 16 + i
            known = False
            for o in range(n_opened):
                if opened[o] == leaf:
                    known = True
                    break
            if known:
                continue
            if found > 0:
                _ranges_of(places, query, leaf * 16, min(n, leaf * 16 + 16), ranges)
            count = _leaf(
                places, tree, visits, query, leaf, ranges, scratch, scores, kms, keys, rows,
                count, k, counts,
            )  # fmt: skip
    return count


@njit(cache=True, nogil=True)
def search(
    places, tree, visits, query, mode, groups, most_share, scratch, ranges, opened,
    scores, kms, keys, rows, count, k, counts,
):  # fmt: skip
    """Search the packed tree best-first with all five parts; return the new count of answers.

    ``scratch`` float64 [7, 16], ``ranges`` int64 [words, 2] and ``opened`` int64
    [probe] are room to work in. ``mode`` 0: after ``probe`` leaves, the share of
    ``groups`` families of leaves that must still be opened is looked at; above
    ``most_share`` the rest is scanned. 1: tree only. 2: scan only.
    """
    places, tree, visits = borrowed(places), borrowed(tree), borrowed(visits)
    query, scores, kms = borrowed(query), borrowed(scores), borrowed(kms)
    keys, rows, counts = borrowed(keys), borrowed(rows), borrowed(counts)
    scratch, ranges, opened = borrowed(scratch), borrowed(ranges), borrowed(opened)
    n = len(places.keys)
    levels = len(tree.level_start) - 1
    probe = len(opened)
    n_opened = 0
    if mode == 2 and levels > 1:
        counts[SCANS] += 1
        return _scan(
            places, tree, visits, query, opened, 0, ranges, scratch, scores, kms, keys, rows,
            count, k, counts,
        )  # fmt: skip
    planning = mode == 0 and levels > 2
    bounds = np.empty((256, 2), dtype=np.float64)
    entries = np.empty(256, dtype=np.int64)  # level << 40 | node
    size = heap_push(bounds, entries, 0, np.inf, 0.0, np.int64(levels - 1) << 40)
    while size:
        if cannot_beat(bounds[0, 0], bounds[0, 1], scores, kms, count, k):
            break
        size = heap_pop(bounds, entries, size)
        level = entries[size] >> 40
        node = entries[size] & ((np.int64(1) << 40) - 1)
        first, stop = _node_rows(level, node, n)
        counts[NODES] += 1
        found = np.int64(-1)
        if len(query.words):
            found = _ranges_of(places, query, first, stop, ranges)
        if found == 0:
            continue
        if 0 < found <= _FEW and level > 0:
            _, km, space = near(
                tree.boxes, tree.level_start[level] + node, query.reals, query.decay_kind
            )
            planning = False  # a scan would offer these rows again
            count = _few_rows(
                places, visits, query, ranges, space, km, scores, kms, keys, rows, count, k, counts
            )
            continue
        if level == 0:
            count = _leaf(
                places, tree, visits, query, node, ranges, scratch, scores, kms, keys, rows,
                count, k, counts,
            )  # fmt: skip
            if not planning:
                continue
            opened[n_opened] = node
            n_opened += 1
            if n_opened < probe:
                continue
            planning = False
            share, seen = open_share(
                places, tree, visits, query, groups, ranges, scratch, scores, kms, count, k
            )
            counts[SAMPLED] += seen
            if share > most_share:
                counts[SCANS] += 1
                return _scan(
                    places, tree, visits, query, opened, n_opened, ranges, scratch, scores, kms,
                    keys, rows, count, k, counts,
                )  # fmt: skip
            continue
        if size + 16 > len(entries):
            bounds = np.concatenate((bounds, np.empty_like(bounds)))
            entries = np.concatenate((entries, np.empty_like(entries)))
        bits = _bounds_below(
            places, tree, visits, query, level, node, ranges, scratch, scores, kms, count, k
        )
        child = 0
        while bits:
            if bits & 1:
                entry = (np.int64(level - 1) << 40) | (node * 16 + child)
                size = heap_push(bounds, entries, size, scratch[0, child], scratch[1, child], entry)
            bits >>= 1
            child += 1
    return count
