"""Kernels that every layout shares: distance, decay, attribute cost, order of answers.

One definition of the score is what makes the layouts agree to the last bit, so
nothing here is repeated elsewhere. All functions take scalars and flat arrays.
Angles are degrees, distances kilometres on a sphere of the mean radius of the
Earth, scores float64.
"""

from __future__ import annotations

import math

from numba import njit

__all__ = [
    "E7",
    "EARTH_KM",
    "attribute_cost",
    "before",
    "box_chord2",
    "decay_of",
    "distance_km",
    "in_region",
    "km_of_chord2",
    "offer",
    "passes_filters",
    "position",
    "unit_vector",
]

#: Mean radius of the Earth (IUGG R1), kilometres.
EARTH_KM = 6371.0088
#: Steps of the integer form of a coordinate in one degree.
E7 = 1e7

_RAD = math.pi / 180.0


@njit(inline="always")
def position(lon32, lat32, lon64, lat64, exact, row):
    """Return (lon, lat) of a row in degrees; ``exact`` says that the float64 columns hold them."""
    if exact:
        return lon64[row], lat64[row]
    # Division, not multiplication: it gives back the very double that a decimal of up to
    # seven places was read as.
    return lon32[row] / E7, lat32[row] / E7


@njit(inline="always")
def distance_km(lon, lat, cos_lat, to_lon, to_lat):
    """Return the great-circle distance in kilometres by the haversine form.

    ``cos_lat`` is ``cos(radians(lat))`` of the query, computed once.
    """
    s = math.sin((to_lat - lat) * (0.5 * _RAD))
    c = math.sin((to_lon - lon) * (0.5 * _RAD))
    h = s * s + cos_lat * math.cos(to_lat * _RAD) * c * c
    return 2.0 * EARTH_KM * math.asin(math.sqrt(min(1.0, h)))


@njit(inline="always")
def decay_of(kind, scale, km):
    """Return the space part of a score at a distance; ``kind`` as in ``scoring``."""
    if kind == 0:
        return max(0.0, 1.0 - km / scale)
    if kind == 1:
        return scale / (scale + km)
    if kind == 2:
        return math.exp(-km / scale)
    z = km / scale
    return math.exp(-0.5 * z * z)


@njit
def unit_vector(lon, lat):
    """Return the point of the unit sphere at (lon, lat), float64."""
    cos_lat = math.cos(lat * _RAD)
    return (
        cos_lat * math.cos(lon * _RAD),
        cos_lat * math.sin(lon * _RAD),
        math.sin(lat * _RAD),
    )


@njit(inline="always")
def box_chord2(x, y, z, boxes, node):
    """Return the squared chord from a unit vector to a node's box, 0 inside.

    ``boxes`` is float32 ``[nodes, 6]``: minima of x, y, z, then maxima, widened
    outward when they were built.
    """
    dx = max(0.0, boxes[node, 0] - x, x - boxes[node, 3])
    dy = max(0.0, boxes[node, 1] - y, y - boxes[node, 4])
    dz = max(0.0, boxes[node, 2] - z, z - boxes[node, 5])
    return dx * dx + dy * dy + dz * dz


@njit(inline="always")
def km_of_chord2(chord2):
    """Return a distance that is never above the great-circle distance of that chord.

    Shortened by a part in 10^9 and a tenth of a millimetre, which covers the
    rounding of the unit vectors and of the haversine form.
    """
    half = 0.5 * math.sqrt(chord2)
    half = min(1.0, half)
    return max(0.0, 2.0 * EARTH_KM * math.asin(half) * (1.0 - 1e-9) - 1e-7)


@njit(inline="always")
def attribute_cost(value, low, span, flip, missing):
    """Return one attribute's cost in [0, 1], lower is better; below 0: the row is excluded.

    ``low`` and ``span`` are the attribute's fixed range; values outside it are
    clipped. ``flip`` is for attributes where more is better. ``missing`` says
    what NaN means: 0 worst, 1 neutral, 2 exclude.
    """
    if math.isnan(value):
        if missing == 0:
            return 1.0
        if missing == 1:
            return 0.5
        return -1.0
    cost = min(1.0, max(0.0, (value - low) / span))
    if flip:
        return 1.0 - cost
    return cost


@njit(inline="always")
def before(score, km, key, score2, km2, key2):
    """Say whether the first answer ranks before the second: score, then nearness, then key."""
    if score != score2:
        return score > score2
    if km != km2:
        return km < km2
    return key < key2


@njit
def offer(scores, kms, keys, rows, count, k, score, km, key, row):
    """Put one answer into the sorted arrays of the best ``k``; return the new count.

    ``scores``, ``kms``, ``keys``, ``rows`` hold at least ``k`` places, the best
    first. An answer that ranks behind a full list is left out.
    """
    if count == k:
        last = k - 1
        if not before(score, km, key, scores[last], kms[last], keys[last]):
            return count
        place = last
    else:
        place = count
        count += 1
    while place > 0 and before(score, km, key, scores[place - 1], kms[place - 1], keys[place - 1]):
        scores[place] = scores[place - 1]
        kms[place] = kms[place - 1]
        keys[place] = keys[place - 1]
        rows[place] = rows[place - 1]
        place -= 1
    scores[place] = score
    kms[place] = km
    keys[place] = key
    rows[place] = row
    return count


@njit
def in_region(kind, points, ptr, lon, lat):
    """Say whether (lon, lat) lies in a region (``query.RegionPlan``); kind 0 is everywhere."""
    if kind == 0:
        return True
    if kind == 1:
        west, south, east, north = points[0, 0], points[0, 1], points[1, 0], points[1, 1]
        if lat < south or lat > north:
            return False
        if west <= east:
            return west <= lon <= east
        return lon >= west or lon <= east
    inside = False
    for ring in range(len(ptr) - 1):
        first, stop = ptr[ring], ptr[ring + 1]
        previous = stop - 1
        for corner in range(first, stop):
            x1, y1 = points[previous, 0], points[previous, 1]
            x2, y2 = points[corner, 0], points[corner, 1]
            # Same edge, same order of operations as the reference: (x1, y1) -> (x2, y2).
            if (y1 > lat) != (y2 > lat) and lon < (x2 - x1) * (lat - y1) / (y2 - y1) + x1:
                inside = not inside
            previous = corner
    return inside


@njit
def passes_filters(column, ptr, low, high, values32, values64, wide, row):
    """Say whether a row passes every filter group (``query.FilterPlan``)."""
    for group in range(len(column)):
        value = values64[column[group], row] if wide else values32[column[group], row]
        found = False
        for i in range(ptr[group], ptr[group + 1]):
            if low[i] <= value <= high[i]:
                found = True
                break
        if not found:
            return False
    return True
