"""One row in a search with time and friends: its parts, its filters, and the best of the rows."""

from __future__ import annotations

import numpy as np
from numba import njit

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
from shoal.spatial._visit_values import _SLACK

__all__ = [
    "COUNTS",
    "LEAVES",
    "LOOKED_AT",
    "NODES",
    "SAMPLED",
    "SCANS",
    "SCORED",
    "attribute_most",
    "blend",
    "cannot_beat",
    "damped",
    "finish",
    "has_word",
    "lower_bound",
    "near",
    "passes",
    "related_at",
    "related_most",
    "row_attributes",
    "row_dot",
]

#: Candidates in a node's range at which they are looked at one by one.
_FEW = 64


# Entries of the counts that a search adds to.
NODES, SCORED, LOOKED_AT, LEAVES, SCANS, SAMPLED, COUNTS = range(7)


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
