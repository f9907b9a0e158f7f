"""The search with all five parts: space, words, attributes, time and friends.

A leaf of sixteen rows, or a group of sixteen sibling nodes, is one pass of the vector
unit in which each lane adds in the order of the exact value (``_visit_values``). A bound
that is made of terms none of which is below the row's, added in the same order, is never
below the row's value, rounding included.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from shoal.spatial._score import EARTH_KM, box_chord2, decay_of
from shoal.spatial._visit_memory import _dots, held
from shoal.spatial._visit_rows import (
    _FEW,
    LEAVES,
    LOOKED_AT,
    NODES,
    SAMPLED,
    SCANS,
    attribute_most,
    blend,
    damped,
    finish,
    lower_bound,
    related_at,
    related_most,
    row_dot,
)
from shoal.spatial._visit_values import _SLACK, Best, _node_rows, social_of


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
