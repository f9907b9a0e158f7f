"""Skylines: block-nested loops, and how a skyline is brought down to few points."""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["merge_surplus", "put_in_window", "skyline_window"]


@njit(inline="always")
def _covers(a, i, b, j):
    """Say whether point a[i] is nowhere above point b[j]."""
    covers = True
    for c in range(a.shape[1]):
        covers &= a[i, c] <= b[j, c]
    return covers


@njit(cache=True, nogil=True)
def skyline_window(points, order):
    """Return the rows of ``points`` [m, d] that no other row dominates, in any order.

    Block-nested loops with the whole result as window. ``order`` (int64 [m])
    must name a row after every row that dominates it, so a row that entered the
    window never leaves it.
    """
    window = np.empty(len(order), dtype=np.int64)
    count = 0
    for row in order:
        kept = True
        for w in range(count):
            # Equal rows do not dominate each other.
            if _covers(points, window[w], points, row) and not _covers(
                points, row, points, window[w]
            ):
                # A row that throws out many comes to the front of the window.
                if w > 0:
                    window[w], window[w - 1] = window[w - 1], window[w]
                kept = False
                break
        if kept:
            window[count] = row
            count += 1
    return window[:count].copy()


@njit
def put_in_window(window, count, points, i):
    """Put point i into a window of points of which none covers another; return the new count."""
    w = 0
    while w < count:
        if _covers(window, w, points, i):
            return count
        if _covers(points, i, window, w):
            count -= 1
            window[w] = window[count]
        else:
            w += 1
    window[count] = points[i]
    return count + 1


@njit(cache=True, nogil=True)
def merge_surplus(window, count, cap):
    """Bring a skyline down to ``cap`` points in place; return the new count.

    Points are put in order of their first coordinate, and the two neighbours
    that lose least (sum over coordinates of what their minimum gives away) are
    replaced by their coordinate-wise minimum, until few enough are left.
    """
    if count <= cap:
        return count
    d = window.shape[1]
    order = np.argsort(window[:count, 0], kind="mergesort")
    window[:count] = window[:count][order]
    while count > cap:
        best = 0
        least = np.inf
        for i in range(count - 1):
            loss = 0.0
            for c in range(d):
                loss += abs(window[i, c] - window[i + 1, c])
            if loss < least:
                least = loss
                best = i
        for c in range(d):
            window[best, c] = min(window[best, c], window[best + 1, c])
        # The merged point covers its partner, and maybe others now.
        merged = window[best].copy()
        kept = 0
        for i in range(count):
            if i != best:
                covered = True
                for c in range(d):
                    if merged[c] > window[i, c]:
                        covered = False
                        break
                if covered:
                    continue
            window[kept] = window[i]
            kept += 1
        count = kept
    return count
