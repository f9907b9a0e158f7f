"""The searches of a call's segments, one of each kind, each behind an address of its own.

``_call_kernels.answer`` calls them by address. So it need not be compiled together
with them, and a kind of search is compiled when the first query of that kind comes:
together they take half a minute, and most programs need one or two.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cfunc, njit, types

from shoal.spatial._best_kernels import HEAPED, heap_of_best, sort_heap
from shoal.spatial._block_kernels import ROOM, search_plain
from shoal.spatial._build_kernels import (
    load_i8,
    store_i8,
    view_f8,
    view_i8,
    view_i8x2,
    view_u4,
    view_u8,
)
from shoal.spatial._call_kernels import (
    COMPLETE,
    COUNT,
    INTEGERS_AT,
    KEYS_AT,
    KMS_AT,
    MODE,
    QUERY,
    REALS_AT,
    ROWS_AT,
    SCORES_AT,
    SEGMENT_LAYOUT,
    SEGMENT_LIVE,
    SEGMENT_SIZE,
    SEGMENT_WITHOUT,
    SEGMENT_WORDS,
    SEGMENTS,
    SEGMENTS_AT,
    STATE_SIZE,
    STATS_AT,
    WORK,
)
from shoal.spatial._kernels import (
    LIVE,
    MATCH,
    MAX_WORDS,
    N_WITHOUT,
    N_WORDS,
    WITHOUT,
    WORDS,
    K,
    locate,
)
from shoal.spatial._nearest_kernels import (
    BITMAP,
    CHUNK,
    EDGE,
    POOL,
    begin_nearest,
    search_nearest,
)
from shoal.spatial._preference_kernels import search_preferred
from shoal.spatial._tree_kernels import search_any_tree

__all__ = ["GENERAL", "NEAREST", "PLAIN", "PREFERRED", "WORK_SIZE", "address_of"]

NEAREST, PREFERRED, PLAIN, GENERAL = range(4)
#: Entries of 8 bytes that a search works with; all 0 before the first.
WORK_SIZE = 6 * ROOM + 2048 + 21 * MAX_WORDS + BITMAP + 2 * (CHUNK + 1) + 2 * POOL + EDGE
_ALL = 1


@njit(error_model="numpy")
def _work_at(at):
    """Return what ``search_plain`` works with, at an address."""
    wide = 8 * ROOM
    more = at + 6 * wide
    return (
        view_u8(at, ROOM),
        view_u4(at + 5 * wide, ROOM),
        view_i8(at + wide, ROOM),
        view_i8(at + 2 * wide, ROOM),
        view_f8(at + 3 * wide, ROOM),
        view_f8(at + 4 * wide, ROOM),
        view_i8(more, 2048),
        view_i8(more + 8 * 2048, MAX_WORDS),
        view_i8x2(more + 8 * (2048 + MAX_WORDS), MAX_WORDS, 20),
    )


@njit(error_model="numpy")
def _near_at(at):
    """Return what ``search_nearest`` works with, at the same address."""
    at += 8 * (6 * ROOM + 2048 + 21 * MAX_WORDS)
    pool = at + 8 * (BITMAP + 2 * (CHUNK + 1))
    return (
        view_u8(at, BITMAP),
        view_i8(at + 8 * BITMAP, 2 * (CHUNK + 1)),
        view_f8(pool, POOL),
        view_i8(pool + 8 * POOL, POOL),
        view_f8(pool + 16 * POOL, EDGE),
    )


@njit(error_model="numpy")
def _best_of(state):
    """Return the arrays of the answers of the query that is being answered."""
    k = load_i8(state[INTEGERS_AT], K)
    first = 8 * k * state[QUERY]
    return (
        view_f8(state[SCORES_AT] + first, k),
        view_f8(state[KMS_AT] + first, k),
        view_i8(state[KEYS_AT] + first, k),
        view_i8(state[ROWS_AT], k),
    )


@njit(error_model="numpy")
def _begin(state, best):
    """Prepare for the first segment; return what ``stats`` are."""
    locate(state[REALS_AT])
    if len(best[0]) > HEAPED:
        heap_of_best(best, state[COUNT])
    stats = view_i8(state[STATS_AT], 5)
    stats[3] = stats[4] = 0
    return stats


@njit(error_model="numpy")
def _end(best, count):
    if len(best[0]) > HEAPED:
        sort_heap(best, count)
    return count


@njit(error_model="numpy")
def _enter(state, s):
    """Fill in what the query is in a segment; return its layout, 0 if it has no answer."""
    qi = state[INTEGERS_AT]
    record = state[SEGMENTS_AT] + 8 * SEGMENT_SIZE * s
    store_i8(qi, LIVE, load_i8(record, SEGMENT_LIVE))
    if state[MODE] != COMPLETE:
        for w in range(load_i8(qi, N_WORDS)):
            word = load_i8(record, SEGMENT_WORDS + w)
            if word < 0 and load_i8(qi, MATCH) == _ALL:
                return np.int64(0)
            store_i8(qi, WORDS + w, word)
        for w in range(load_i8(qi, N_WITHOUT)):
            store_i8(qi, WITHOUT + w, load_i8(load_i8(record, SEGMENT_WITHOUT), w))
    return load_i8(record, SEGMENT_LAYOUT)


def _nearest(at):
    state = view_i8(at, STATE_SIZE)
    qi, qf = state[INTEGERS_AT], state[REALS_AT]
    best = _best_of(state)
    stats = _begin(state, best)
    work, near = _work_at(state[WORK]), _near_at(state[WORK])
    count = state[COUNT]
    begin_nearest(qf, best, count, len(best[0]), near[4])
    for s in range(state[SEGMENTS]):
        a = _enter(state, s)
        if a != 0:
            count = search_nearest(a, qi, qf, best, count, work, near, stats)
    return count


def _preferred(at):
    state = view_i8(at, STATE_SIZE)
    qi, qf = state[INTEGERS_AT], state[REALS_AT]
    best = _best_of(state)
    stats = _begin(state, best)
    work = _work_at(state[WORK])
    count = state[COUNT]
    for s in range(state[SEGMENTS]):
        a = _enter(state, s)
        if a != 0:
            count = search_preferred(a, qi, qf, best, count, work, stats)
    return _end(best, count)


def _plain(at):
    state = view_i8(at, STATE_SIZE)
    qi, qf = state[INTEGERS_AT], state[REALS_AT]
    best = _best_of(state)
    stats = _begin(state, best)
    work = _work_at(state[WORK])
    count = state[COUNT]
    for s in range(state[SEGMENTS]):
        a = _enter(state, s)
        if a != 0:
            count = search_plain(a, qi, qf, best, count, work, stats)
    return _end(best, count)


def _general(at):
    state = view_i8(at, STATE_SIZE)
    qi, qf = state[INTEGERS_AT], state[REALS_AT]
    best = _best_of(state)
    stats = _begin(state, best)
    count = state[COUNT]
    for s in range(state[SEGMENTS]):
        a = _enter(state, s)
        if a != 0:
            count = search_any_tree(a, qi, qf, best, count, stats)
    return _end(best, count)


_SEARCHES = (_nearest, _preferred, _plain, _general)
_compiled: dict[int, Any] = {}


def address_of(kind: int) -> int:
    """Return the address of a kind of search; it is compiled, or loaded, at the first time."""
    if kind not in _compiled:
        signature = types.int64(types.int64)
        _compiled[kind] = cfunc(signature, cache=True, error_model="numpy")(_SEARCHES[kind])
    address: int = _compiled[kind].address
    return address
