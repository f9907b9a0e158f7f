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
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.typing.templates import AttributeTemplate
from numba.extending import (
    infer_getattr,
    intrinsic,
    lower_getattr_generic,
    models,
    register_model,
)

from shoal.spatial._score import (
    EARTH_KM,
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


# --- tuples by address --------------------------------------------------------------------------


class _Held(types.Type):
    """The address of a named tuple; see :func:`held`."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind
        super().__init__(name=f"held({kind})")


register_model(_Held)(models.OpaqueModel)


@infer_getattr
class _HeldFields(AttributeTemplate):
    key = _Held

    def generic_resolve(self, kind: _Held, name: str) -> Any:
        return kind.kind.types[kind.kind.fields.index(name)]


@lower_getattr_generic(_Held)
def _field_of_held(context, builder, kind, value, name):
    place = kind.kind.fields.index(name)
    part = kind.kind.types[place]
    struct = context.get_value_type(kind.kind).as_pointer()
    at = cgutils.gep_inbounds(builder, builder.bitcast(value, struct), 0, place)
    if not isinstance(part, types.Array):
        return builder.load(at)
    kept = context.make_array(part)(context, builder, ref=at)
    array = context.make_array(part)(context, builder)
    for field in ("nitems", "itemsize", "data", "shape", "strides"):
        setattr(array, field, getattr(kept, field))
    array.meminfo = cgutils.get_null_value(array.meminfo.type)
    array.parent = cgutils.get_null_value(array.parent.type)
    return array._getvalue()


@intrinsic
def held(_context, kind):
    """Return the address of a named tuple of arrays and numbers, to be used like the tuple.

    Handing a tuple of forty arrays from function to function would copy some two
    hundred words at every call and count each array up and down. The address is
    good until the function that asked for it returns, and what it leads to is not
    counted: whoever called the kernel holds the arrays.
    """

    def generate(context, builder, signature, values):
        place = cgutils.alloca_once(builder, context.get_value_type(signature.args[0]))
        builder.store(values[0], place)
        return builder.bitcast(place, cgutils.voidptr_t)

    return _Held(kind)(kind), generate


@intrinsic
def _sums(_context, values, base, pick, vector, size, out):
    """Fill ``out`` [16] with sums over j of ``vector[j] * values[base + pick[j] + lane]``.

    Returns the largest of them.

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
        largest = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.DoubleType(), [wide]),
            "llvm.vector.reduce.fmax.v16f64",
        )
        return builder.call(largest, [added], fastmath=("nnan",))

    return types.float64(values, base, pick, vector, size, out), generate


@njit(inline="always")
def _dots(values, base, pick, vector, out):
    return _sums(values, base, pick, vector, len(vector), out)


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
def _near(boxes, node, reals, decay_kind):
    """Return what :func:`near` does, from a distance that is a little shorter and cheaper.

    The arc sine's series has positive terms alone: the first ones are below it.
    """
    km = 0.0
    space = 0.0
    if reals[0] > 0.0:
        chord2 = box_chord2(reals[1], reals[2], reals[3], boxes, node)
        square = 0.25 * chord2
        half = math.sqrt(square)
        km = half * (1.0 + square * (1.0 / 6.0 + square * 0.075))
        km = max(0.0, (2.0 * EARTH_KM * (1.0 - 1e-9)) * km - 1e-7)
        if km > reals[4]:
            return False, km, space
        space = decay_of(decay_kind, reals[5], km)
        if decay_kind >= 2:
            space *= 1.0 + _SLACK
    if reals[9] < 4.0 and box_chord2(reals[6], reals[7], reals[8], boxes, node) > reals[9]:
        return False, km, space
    return True, km, space


@njit(inline="always")
def _worst(best, count):
    """Return the score and the distance that an answer must reach to be among the best."""
    if count < best.k:
        return -np.inf, np.inf
    return best.scores[best.k - 1], best.kms[best.k - 1]


@njit(inline="always")
def _behind(bound, km, worst, reach):
    return bound < worst or (bound == worst and km > reach)


@njit
def _bounds_below(places, tree, visits, query, best, level, node, count):
    """Bound the children of an inner node; return those that may hold answers, as bits.

    ``best.scratch`` gets the bounds in row 0 and the least distances in row 1.
    Cheap parts first; the social bound is taken for all 16 at once, and only if
    one of them is still in.
    """
    worst, reach = _worst(best, count)
    below = level - 1
    start = tree.level_start[below]
    children = min(16, tree.level_start[level] - start - node * 16)
    shift = 4 * level
    first = node << (4 * (level + 1))
    scratch = best.scratch
    ub, km_of, text, social = scratch[0], scratch[1], scratch[2], scratch[5]
    space_of, rest_of = scratch[3], scratch[4]
    weights = query.weights
    alive = (1 << children) - 1
    for i in range(16):
        text[i] = 0.0
    if len(query.words):
        alive = _words_below(places, query, best.ranges, first, shift, children, text)
    group = visits.group_start[below] + node
    wanted = 0
    has_attributes = len(query.pref_column) > 0
    for i in range(children):
        if not (alive >> i) & 1:
            continue
        inside, km, space = _near(tree.boxes, start + node * 16 + i, query.reals, query.decay_kind)
        if not inside:
            continue
        time = _time_most(visits, query, group * 16 + i)
        attributes = 0.0
        if has_attributes:
            attributes = attribute_most(tree, query, start + node * 16 + i)
        bound = blend(weights, space, text[i], attributes, time, 1.0)
        if _behind(bound, km, worst, reach):
            continue
        ub[i], km_of[i], space_of[i], rest_of[i] = bound, km, space, attributes
        wanted |= 1 << i
    if wanted == 0 or not weights[4] > 0.0:
        return wanted
    form, vector, dim = query.form, query.vector, visits.dim
    if form == 2:
        for i in range(children):
            social[i] = (
                related_most(query, first + (i << shift), first + ((i + 1) << shift))
                if (wanted >> i) & 1
                else 0.0
            )
    else:
        balls = scratch[6]
        _dots(visits.boxes, group * dim * 32, query.pick, vector, social)
        _dots(visits.centres, group * dim * 16, query.step, vector, balls)
        for i in range(children):
            radius = np.float64(visits.radii[group * 16 + i])
            social[i] = min(social[i], balls[i] + query.length * radius + _SLACK)
    kept = 0
    for i in range(children):
        if not (wanted >> i) & 1:
            continue
        time = _time_most(visits, query, group * 16 + i)
        bound = blend(weights, space_of[i], text[i], rest_of[i], time, social_of(form, social[i]))
        if not _behind(bound, km_of[i], worst, reach):
            ub[i] = bound
            kept |= 1 << i
    return kept


@njit
def _time_most(visits, query, place):
    """Return the most that the time part can be under the node with that place in its group."""
    if not query.weights[3] > 0.0:
        return 1.0
    if query.slot < 0:
        return 0.0
    return visits.time_max[query.slot, place] / 255.0


@njit
def _finish(places, query, best, row, text, time, social, count):
    return finish(
        places, query, row, text, time, social, best.scores, best.kms, best.keys, best.rows, count,
        best.k, best.counts,
    )  # fmt: skip


@njit
def _one_row(places, visits, query, best, row, text, space, km, count):
    """Look at a single row whose words are known; the social part is taken last."""
    best.counts[LOOKED_AT] += 1
    if len(query.live) and not query.live[row]:
        return count
    worst, reach = _worst(best, count)
    most = 1.0 if len(query.pref_column) else 0.0
    time = 0.0
    if query.weights[3] > 0.0 and query.slot >= 0:
        time = np.float64(visits.times[query.slot, row])
    text = damped(places, query, row, text)
    if _behind(blend(query.weights, space, text, most, time, 1.0), km, worst, reach):
        return count
    social = 0.0
    if query.weights[4] > 0.0:
        if query.form == 2:
            social = social_of(2, related_at(query, row))
        else:
            base = (row >> 4) * visits.dim * 16 + (row & 15)
            social = social_of(query.form, row_dot(visits.vectors, base, query.vector))
        if _behind(blend(query.weights, space, text, most, time, social), km, worst, reach):
            return count
    return _finish(places, query, best, row, text, time, social, count)


@njit
def _few_rows(places, visits, query, best, space, km, count):
    """Look at the rows of a range that match, by the postings of the words."""
    n_words = len(query.words)
    ranges, post, word_weights = best.ranges, places.post, query.word_weights
    every = query.match == 1
    source, stop_source = 0, n_words
    if every:
        for w in range(1, n_words):
            if ranges[w, 1] - ranges[w, 0] < ranges[source, 1] - ranges[source, 0]:
                source = w
        stop_source = source + 1
    while source < stop_source:
        for at in range(ranges[source, 0], ranges[source, 1]):
            row = np.int64(post[at])
            text = 0.0
            good = True
            for w in range(n_words):
                here = w == source
                if not here:
                    p = lower_bound(post, ranges[w, 0], ranges[w, 1], row)
                    here = p < ranges[w, 1] and post[p] == row
                    # Any word: the row was met with an earlier one.
                    if here != every and (every or w < source):
                        good = False
                        break
                if here:
                    text += word_weights[w]
            if good:
                count = _one_row(places, visits, query, best, row, text, space, km, count)
        source += 1
    return count


@njit
def _row_bounds(visits, query, best, leaf, at, space, most, worst):
    """Bound the 16 rows of a leaf, whose social parts lie in row 5 of the scratch.

    Returns the rows that reach ``worst``, as bits. The parts that do not count
    have weight 0: adding their zeros changes nothing.
    """
    weights, form, first = query.weights, query.form, leaf * 16
    w1, w3, w4 = weights[1], weights[3], weights[4]
    social, text = best.scratch[5], best.text
    base = blend(weights, space, 0.0, 0.0, 0.0, 0.0)
    rest = weights[2] * most if weights[2] > 0.0 else 0.0
    timed = w3 > 0.0 and query.slot >= 0
    times, slot = visits.times, max(0, query.slot)
    bits = 0
    for i in range(16):
        x = 0.0
        if w4 > 0.0:
            x = social_of(form, social[i])
            social[i] = x
        bound = base
        if w1 > 0.0:
            bound += w1 * text[at + i]
        bound += rest
        if timed:
            bound += w3 * np.float64(times[slot, first + i])
        bound += w4 * x
        bits |= np.int64(bound >= worst) << i
    return bits


@njit
def _leaf(places, tree, visits, query, best, leaf, alive, at, count):
    """Look at the rows of a leaf that ``alive`` has; their text lies in ``best.text[at:]``."""
    weights = query.weights
    worst, reach = _worst(best, count)
    inside, km, space = _near(tree.boxes, leaf, query.reals, query.decay_kind)
    if not inside:
        return count
    most = attribute_most(tree, query, leaf) if len(query.pref_column) else 0.0
    text = 1.0 if len(query.words) else 0.0
    time = _time_most(visits, query, leaf)
    if _behind(blend(weights, space, text + _SLACK, most, time, 1.0), km, worst, reach):
        return count
    counts, first, form = best.counts, leaf * 16, query.form
    counts[LEAVES] += 1
    counts[LOOKED_AT] += 16 if alive == 65535 else _ones(alive)
    social = best.scratch[5]
    with_social = weights[4] > 0.0
    if with_social:
        if form == 2:
            for i in range(16):
                social[i] = related_at(query, first + i) if (alive >> i) & 1 else 0.0
        else:
            top = _dots(visits.vectors, leaf * visits.dim * 16, query.step, query.vector, social)
            bound = blend(weights, space, text + _SLACK, most, time, social_of(form, top))
            if _behind(bound, km, worst, reach):
                return count
    bits = alive & _row_bounds(visits, query, best, leaf, at, space, most, worst)
    if bits == 0:
        return count
    timed = weights[3] > 0.0 and query.slot >= 0
    for i in range(16):
        if not (bits >> i) & 1:
            continue
        row = first + i
        if len(query.live) and not query.live[row]:
            continue
        part = social[i] if with_social else 0.0
        hours = np.float64(visits.times[query.slot, row]) if timed else 0.0
        words = damped(places, query, row, best.text[at + i])
        worst, reach = _worst(best, count)
        if _behind(blend(weights, space, words, most, hours, part), km, worst, reach):
            continue
        count = _finish(places, query, best, row, words, hours, part, count)
    return count


@njit(inline="always")
def _ones(bits):
    found = 0
    while bits:
        found += 1
        bits &= bits - 1
    return found


@njit
def _group(places, tree, visits, query, best, group, count):
    """Look at the rows of up to 16 sibling leaves; with words, ``best.ranges`` are theirs."""
    n = len(places.keys)
    first = group * 256
    leaves = min(16, tree.level_start[1] - group * 16)
    masks = best.masks
    with_words = query.match != 0 and len(query.words) > 0
    if with_words:
        _words_of_group(places, query, best, first)
    for i in range(leaves):
        alive = (1 << min(16, n - first - i * 16)) - 1
        if with_words:
            alive = masks[i]
            if alive == 0:
                continue
        count = _leaf(places, tree, visits, query, best, group * 16 + i, alive, i * 16, count)
    return count


@njit
def _words_of_group(places, query, best, first):
    """Fill ``best.text`` and ``best.masks`` for 256 rows from the words' postings there."""
    masks, text, post, ranges = best.masks, best.text, places.post, best.ranges
    every = query.match == 1
    for i in range(256):
        text[i] = 0.0
    for i in range(16):
        masks[i] = 0
    for w in range(len(query.words)):
        weight = query.word_weights[w]
        if every and w > 0:
            # Bits 16 .. 31: the rows that have this word too.
            for i in range(16):
                masks[i] &= 65535
            for at in range(ranges[w, 0], ranges[w, 1]):
                row = np.int64(post[at]) - first
                text[row] += weight
                masks[row >> 4] |= np.int64(65536) << (row & 15)
            for i in range(16):
                masks[i] &= masks[i] >> 16
        else:
            for at in range(ranges[w, 0], ranges[w, 1]):
                row = np.int64(post[at]) - first
                text[row] += weight
                masks[row >> 4] |= np.int64(1) << (row & 15)


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
def open_share(places, tree, visits, query, best, groups, count):
    """Return the share of sampled leaves that may still hold answers, and their number.

    Takes ``groups`` families of sibling leaves, evenly spread over the rows.
    """
    parents = tree.level_start[2] - tree.level_start[1]
    groups = min(groups, parents)
    kept = 0
    seen = 0
    for g in range(groups):
        node = (2 * g + 1) * parents // (2 * groups)
        seen += min(16, tree.level_start[1] - node * 16)
        if _candidates(places, query, best, 1, node) == 0:
            continue
        kept += _ones(_bounds_below(places, tree, visits, query, best, 1, node, count))
    return kept / max(1, seen), seen


@njit
def _candidates(places, query, best, level, node):
    """Fill ``best.ranges`` for the rows of a node; return what :func:`_ranges_of` does."""
    if len(query.words) == 0:
        return np.int64(-1)
    first, stop = _node_rows(level, node, len(places.keys))
    return np.int64(_ranges_of(places, query, first, stop, best.ranges))


@njit
def _scan(places, tree, visits, query, best, opened, n_opened, count):
    """Look at all groups in the order of rows, but for those opened, under the bounds."""
    groups = tree.level_start[2] - tree.level_start[1]
    levels = len(tree.level_start) - 1
    bits = 65535
    for group in range(groups):
        if levels > 2 and (group & 15) == 0:
            bits = 65535
            if _candidates(places, query, best, 2, group >> 4) == 0:
                bits = 0
            else:
                best.counts[NODES] += 1
                bits = _bounds_below(places, tree, visits, query, best, 2, group >> 4, count)
        if not (bits >> (group & 15)) & 1:
            continue
        known = False
        for o in range(n_opened):
            known = known or opened[o] == group
        if known or _candidates(places, query, best, 1, group) == 0:
            continue
        best.counts[NODES] += 1
        count = _group(places, tree, visits, query, best, group, count)
    return count


@njit(cache=True, nogil=True)
def search(
    places, tree, visits, query, mode, groups, most_share, scratch, ranges, opened,
    scores, kms, keys, rows, count, k, counts,
):  # fmt: skip
    """Search the packed tree best-first with all five parts; return the new count of answers.

    ``scratch`` float64 [7, 16], ``ranges`` int64 [words, 2] and ``opened`` int64
    [probe] are room to work in. Leaves are opened by families of 16 siblings.
    ``mode`` 0: after ``probe`` families, the share of the leaves of ``groups``
    families that must still be opened is looked at; above ``most_share`` the rest
    is scanned. 1: tree only. 2: scan only.
    """
    text = np.zeros(256, dtype=np.float64)
    masks = np.empty(16, dtype=np.int64)
    kept = Best(scores, kms, keys, rows, k, counts, scratch, ranges, text, masks)
    count = _search(
        held(places), held(tree), held(visits), held(query), held(kept), mode, groups, most_share,
        opened, count,
    )  # fmt: skip
    # Named once more, so that they are not let go before.
    text[0] = masks[0]
    return count


@njit
def _search(places, tree, visits, query, best, mode, groups, most_share, opened, count):
    levels = len(tree.level_start) - 1
    counts, scratch = best.counts, best.scratch
    if mode == 2 and levels > 1:
        counts[SCANS] += 1
        return _scan(places, tree, visits, query, best, opened, 0, count)
    planning = mode == 0 and levels > 2
    n_opened = 0
    bounds = np.empty((256, 2), dtype=np.float64)
    entries = np.empty(256, dtype=np.int64)  # level << 40 | node
    size = heap_push(bounds, entries, 0, np.inf, 0.0, np.int64(levels - 1) << 40)
    while size:
        worst, reach = _worst(best, count)
        if _behind(bounds[0, 0], bounds[0, 1], worst, reach):
            break
        size = heap_pop(bounds, entries, size)
        level = entries[size] >> 40
        node = entries[size] & ((np.int64(1) << 40) - 1)
        counts[NODES] += 1
        found = _candidates(places, query, best, level, node)
        if found == 0:
            continue
        if 0 < found <= _FEW and level > 1:
            _, km, space = _near(
                tree.boxes, tree.level_start[level] + node, query.reals, query.decay_kind
            )
            planning = False  # a scan would offer these rows again
            count = _few_rows(places, visits, query, best, space, km, count)
            continue
        if level <= 1:
            leaves = counts[LEAVES]
            count = _group(places, tree, visits, query, best, node, count)
            if not planning or counts[LEAVES] == leaves:
                continue
            opened[n_opened] = node
            n_opened += 1
            if n_opened < len(opened):
                continue
            planning = False
            share, seen = open_share(places, tree, visits, query, best, groups, count)
            counts[SAMPLED] += seen
            if share > most_share:
                counts[SCANS] += 1
                return _scan(places, tree, visits, query, best, opened, n_opened, count)
            continue
        if size + 16 > len(entries):
            bounds = np.concatenate((bounds, np.empty_like(bounds)))
            entries = np.concatenate((entries, np.empty_like(entries)))
        bits = _bounds_below(places, tree, visits, query, best, level, node, count)
        child = 0
        while bits:
            if bits & 1:
                entry = (np.int64(level - 1) << 40) | (node * 16 + child)
                size = heap_push(bounds, entries, size, scratch[0, child], scratch[1, child], entry)
            bits >>= 1
            child += 1
    return count
