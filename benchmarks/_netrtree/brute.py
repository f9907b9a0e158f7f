"""The score of every place: the brute force in float64, and the scan with BLAS in float32.

Both follow the sheet's definitions on their own, without the package's kernels.
The scan is what an engineer writes with NumPy: distances, a column of the time
table, a sum over posting lists, one matrix-vector product, and ``argpartition``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse

from _netrtree.data import MAX_KM, Ask, VisitedPlaces
from _qdrtree.queries import EARTH_KM, unit_vectors

SMOOTHING_HOURS = 1.0
PRIOR_WEIGHT = 5.0
CLIP_PER_USER = 5
MIN_VISITORS = 3


def time_table(places: VisitedPlaces) -> np.ndarray:
    """Return float64 [slots, n]: is this the place's busy time?"""
    n, slots = len(places), places.slots
    counts = np.bincount(places.place * slots + places.slot, minlength=n * slots)
    counts = counts.reshape(n, slots).astype(np.float64)
    smooth = _smoothed(counts)
    kinds = int(places.category.max()) + 1
    per_kind = np.zeros((kinds, slots))
    np.add.at(per_kind, places.category, counts)
    per_kind[per_kind.sum(axis=1) == 0] = per_kind.sum(axis=0)
    prior = _smoothed(per_kind)
    prior /= np.maximum(prior.max(axis=1, keepdims=True), 1e-300)
    table = smooth + PRIOR_WEIGHT * prior[places.category]
    table /= (smooth.max(axis=1) + PRIOR_WEIGHT)[:, None]
    return np.ascontiguousarray(np.minimum(1.0, table).T)


def _smoothed(counts: np.ndarray) -> np.ndarray:
    slots = counts.shape[1]
    offsets = np.arange(slots)
    away = np.minimum(offsets, slots - offsets)
    weights = np.where(away <= 6 * SMOOTHING_HOURS, np.exp(-0.5 * (away / SMOOTHING_HOURS) ** 2), 0)
    weights /= weights.sum()
    smooth = np.zeros_like(counts)
    for offset in np.flatnonzero(weights):
        smooth += weights[offset] * np.roll(counts, offset, axis=1)
    return smooth


def place_vectors(places: VisitedPlaces, vectors: np.ndarray) -> np.ndarray:
    """Return float64 [n, dim]: the mean vector of the visitors; 0 where there are few."""
    n = len(places)
    pairs, counts = np.unique(places.place * places.n_users + places.user, return_counts=True)
    place, user = pairs // places.n_users, pairs % places.n_users
    weight = np.minimum(counts, CLIP_PER_USER).astype(np.float64)
    matrix = scipy.sparse.csr_array((weight, (place, user)), shape=(n, places.n_users))
    sums = matrix @ vectors.astype(np.float64)
    total = np.bincount(place, weights=weight, minlength=n)
    few = np.bincount(place, minlength=n) < MIN_VISITORS
    sums[few] = 0.0
    found: np.ndarray = sums / np.maximum(total, 1.0)[:, None]
    return found


class FullScan:
    """Every place scored, in float64 (the check) or float32 (the peer)."""

    name = "BLAS full scan (NumPy)"
    version = np.__version__

    def __init__(
        self, places: VisitedPlaces, vectors: np.ndarray, dtype: Any, table: np.ndarray
    ) -> None:
        columns = places.columns
        self.dtype = dtype
        self.n = len(places)
        self.at = unit_vectors(columns.lon, columns.lat)
        self.times = table.astype(dtype)
        self.vectors = np.ascontiguousarray(place_vectors(places, vectors).astype(dtype))
        self.users = vectors.astype(dtype)
        order = np.argsort(columns.word_ids, kind="stable")
        rows = np.repeat(np.arange(self.n), np.diff(columns.word_ptr))
        self.post = rows[order]
        self.ptr = np.searchsorted(columns.word_ids[order], np.arange(len(columns.words) + 1))
        self.number = {word: i for i, word in enumerate(columns.words)}

    def scores(self, ask: Ask, mix: tuple[float, ...]) -> np.ndarray:
        """Return every place's score; -1 where it has none of the words."""
        space, text, time, social = mix
        # The chord from the point, then the arc: exact near 0, where a dot product is not.
        away = self.at - unit_vectors(np.float64(ask.lon), np.float64(ask.lat))
        chord = np.sqrt(np.einsum("ij,ij->i", away, away))
        kms = (2 * EARTH_KM) * np.arcsin(np.minimum(1.0, 0.5 * chord))
        score = (space * np.maximum(0.0, 1.0 - kms / MAX_KM)).astype(self.dtype)
        score += time * self.times[ask.slot]
        score += (0.5 * social) * (1.0 + self.vectors @ self.users[ask.user])
        if ask.words:
            share = np.zeros(self.n, dtype=self.dtype)
            for word, part in zip(ask.words, ask.shares, strict=True):
                i = self.number[word]
                share[self.post[self.ptr[i] : self.ptr[i + 1]]] += part
            score += text * share
            score[share == 0] = -1.0
        return score

    def top(self, ask: Ask, mix: tuple[float, ...]) -> list[tuple[int, float]]:
        """Return the best places and their scores."""
        score = self.scores(ask, mix)
        k = min(ask.k, self.n)
        best = np.argpartition(-score, k - 1)[:k]
        best = best[np.argsort(-score[best], kind="stable")]
        return [(int(row), float(score[row])) for row in best if score[row] >= 0]
