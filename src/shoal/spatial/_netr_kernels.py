"""Kernels of the NETR-Tree: an R-tree whose nodes know words, busy hours and user clusters."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from shoal.spatial._score import decay_of, distance_km, position
from shoal.spatial._visit_kernels import heap_pop, heap_push
from shoal.spatial._visit_rows import (
    LEAVES,
    LOOKED_AT,
    NODES,
    blend,
    cannot_beat,
    damped,
    finish,
    has_word,
    lower_bound,
    near,
    passes,
    related_at,
    row_attributes,
    row_dot,
)
from shoal.spatial._visit_values import social_of

__all__ = ["FAN_OUT", "Crowd", "TimeTree"]

FAN_OUT = 32


class TimeTree(NamedTuple):
    """The location layer: boxes and keyword sets (CSR) of all nodes, leaves first."""

    boxes: Any
    level_start: Any
    word_ptr: Any
    word_ids: Any


class Crowd(NamedTuple):
    """What check-ins add to it: row values, time maxima and sets of user clusters of nodes.

    times float32 [slots, rows16], vectors float32 flat blocks, time_max uint8
    [slots, nodes], clusters uint64 [nodes, width], dim.
    """

    times: Any
    vectors: Any
    time_max: Any
    clusters: Any
    dim: Any


@njit(cache=True, nogil=True)
def time_maxima(times, rows, level_start, out):
    """Fill ``out`` (uint8 [slots, nodes], zeros) with the rounded-up maxima of all nodes."""
    for b in range(times.shape[0]):
        for row in range(rows):
            node = row // FAN_OUT
            out[b, node] = max(out[b, node], math.ceil(255.0 * np.float64(times[b, row])))
        for level in range(1, len(level_start) - 1):
            for child in range(level_start[level] - level_start[level - 1]):
                node = level_start[level] + child // FAN_OUT
                out[b, node] = max(out[b, node], out[b, level_start[level - 1] + child])


@njit(cache=True, nogil=True)
def cluster_sets(row, cluster, level_start, out):
    """Put the clusters that visited rows into the sets of their ancestors (uint64 bits)."""
    one = np.uint64(1)
    for i in range(len(row)):
        node = row[i]
        for level in range(len(level_start) - 1):
            node //= FAN_OUT
            out[level_start[level] + node, cluster[i] >> 6] |= one << np.uint64(cluster[i] & 63)


@njit(cache=True, nogil=True)
def widen(row, times, crowd, level_start):
    """Raise the time maxima of a row's ancestors to new values (float32 [slots])."""
    node = row
    for level in range(len(level_start) - 1):
        node //= FAN_OUT
        place = level_start[level] + node
        for b in range(len(times)):
            value = math.ceil(255.0 * np.float64(times[b]))
            crowd.time_max[b, place] = max(crowd.time_max[b, place], value)


@njit
def _text_most(tree, query, node):
    """Return the most that the text part can be under a node; below 0: no answer there."""
    text = 0.0
    present = 0
    first, stop = tree.word_ptr[node], tree.word_ptr[node + 1]
    for w in range(len(query.words)):
        at = lower_bound(tree.word_ids, first, stop, query.words[w])
        if query.words[w] >= 0 and at < stop and tree.word_ids[at] == query.words[w]:
            text += query.word_weights[w]
            present += 1
        elif query.match == 1:
            return -1.0
    if query.match == 2 and present == 0:
        return -1.0
    return text


@njit
def social_most(crowd, node, cluster_most):
    """Return the most that a relation to one of a node's clusters can be."""
    most = -1.0
    for c in range(len(cluster_most)):
        if (crowd.clusters[node, c >> 6] >> np.uint64(c & 63)) & np.uint64(1):
            most = max(most, cluster_most[c])
    return most


@njit
def _bound(tree, crowd, query, cluster_most, node, scores, kms, count, k):
    """Return (keep, upper bound of the score, least distance) of a node."""
    inside, km, space = near(tree.boxes, node, query.reals, query.decay_kind)
    if not inside:
        return False, 0.0, 0.0
    text = _text_most(tree, query, node)
    if text < 0.0:
        return False, 0.0, 0.0
    time = 0.0
    if query.weights[3] > 0.0 and query.slot >= 0:
        time = crowd.time_max[query.slot, node] / 255.0
    most = 1.0 if len(query.pref_column) else 0.0
    ub = blend(query.weights, space, text, most, time, 1.0)
    if cannot_beat(ub, km, scores, kms, count, k):
        return False, 0.0, 0.0
    if query.weights[4] > 0.0:
        social = social_of(query.form, social_most(crowd, node, cluster_most))
        ub = blend(query.weights, space, text, most, time, social)
        if cannot_beat(ub, km, scores, kms, count, k):
            return False, 0.0, 0.0
    return True, ub, km


@njit
def _words_of(places, query, row):
    """Return (text part, do the words match) of a row."""
    text = 0.0
    matched = 0
    for w in range(len(query.words)):
        if query.words[w] >= 0 and has_word(places, row, query.words[w]):
            text += query.word_weights[w]
            matched += 1
    good = True
    if query.match == 1:
        good = matched == len(query.words)
    elif query.match == 2:
        good = matched > 0
    return damped(places, query, row, text), good


@njit(cache=True, nogil=True)
def row_parts(places, query, rows, parts, kms, good):
    """Fill in parts [m, 3 of 5], kilometres [m] and whether each row qualifies [m]."""
    for i in range(len(rows)):
        row = rows[i]
        parts[i, 1], fits = _words_of(places, query, row)
        lon, lat = position(
            places.lon32, places.lat32, places.lon64, places.lat64, places.exact, row
        )
        if query.has_point:
            kms[i] = distance_km(query.lon, query.lat, query.cos_lat, lon, lat)
            parts[i, 0] = decay_of(query.decay_kind, query.decay_scale, kms[i])
            fits = fits and kms[i] <= query.max_km
        attributes = row_attributes(places, query, row)
        parts[i, 2] = attributes if attributes > -0.5 else 0.0
        good[i] = fits and attributes > -0.5 and passes(places, query, row, lon, lat)


@njit(cache=True, nogil=True)
def search(places, tree, crowd, query, cluster_most, scores, kms, keys, rows, count, k, counts):
    """Search the tree best-first; return the new count of answers.

    ``cluster_most`` float64 [clusters] bounds the relation of the user to the
    members of each cluster.
    """
    n = len(places.keys)
    bounds = np.empty((256, 2), dtype=np.float64)
    entries = np.empty(256, dtype=np.int64)  # level << 40 | node of the level
    levels = len(tree.level_start) - 1
    size = heap_push(bounds, entries, 0, np.inf, 0.0, np.int64(levels - 1) << 40)
    while size:
        if cannot_beat(bounds[0, 0], bounds[0, 1], scores, kms, count, k):
            break
        size = heap_pop(bounds, entries, size)
        level = entries[size] >> 40
        node = entries[size] & ((np.int64(1) << 40) - 1)
        counts[NODES] += 1
        first = node * FAN_OUT
        if level == 0:
            counts[LEAVES] += 1
            for row in range(first, min(n, first + FAN_OUT)):
                counts[LOOKED_AT] += 1
                if len(query.live) and not query.live[row]:
                    continue
                text, good = _words_of(places, query, row)
                if not good:
                    continue
                time = 0.0
                if query.weights[3] > 0.0 and query.slot >= 0:
                    time = np.float64(crowd.times[query.slot, row])
                social = 0.0
                if query.weights[4] > 0.0:
                    if query.form == 2:
                        social = social_of(2, related_at(query, row))
                    else:
                        base = (row >> 4) * crowd.dim * 16 + (row & 15)
                        social = social_of(query.form, row_dot(crowd.vectors, base, query.vector))
                count = finish(
                    places, query, row, text, time, social, scores, kms, keys, rows, count, k,
                    counts,
                )  # fmt: skip
            continue
        if size + FAN_OUT > len(entries):
            bounds = np.concatenate((bounds, np.empty_like(bounds)))
            entries = np.concatenate((entries, np.empty_like(entries)))
        below = tree.level_start[level - 1]
        for child in range(first, min(tree.level_start[level] - below, first + FAN_OUT)):
            keep, ub, km = _bound(
                tree, crowd, query, cluster_most, below + child, scores, kms, count, k
            )
            if keep:
                entry = (np.int64(level - 1) << 40) | child
                size = heap_push(bounds, entries, size, ub, km, entry)
    return count
