"""The best answers so far, and the queue of nodes that may hold better ones."""

from __future__ import annotations

import numpy as np
from numba import njit

from shoal.spatial._kernels import HEAPED
from shoal.spatial._score import before, offer

__all__ = [
    "HEAPED",
    "heap_of_best",
    "hopeless",
    "put",
    "queue_key",
    "queue_pop",
    "queue_push",
    "sort_heap",
]

_STEPS = 4294967295.0


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
