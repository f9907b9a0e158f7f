"""Sums over the visitors of each place, in integers: how many came, how often, and their vectors.

A vector is added in fixed point, so that a sum does not depend on the order of
check-ins and what was added can be taken out again without a trace.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shoal.spatial import _visit_values as kernels
from shoal.spatial.visitconfig import VisitConfig
from shoal.spatial.visitlog import VisitLog

__all__ = ["VisitSums", "padded"]


class VisitSums:
    """The sums of all places of a log, by its numbers.

    Attributes
    ----------
    counts : int64 [capacity]
        Check-ins of each place, at most ``clip_per_user`` of one user.
    visitors : int64 [capacity]
        Distinct users.
    """

    def __init__(
        self, log: VisitLog, user_vectors: npt.NDArray[np.float32], config: VisitConfig
    ) -> None:
        self._config = config
        self.dim = int(user_vectors.shape[1])
        n = log.capacity
        self._sums = np.zeros((n, self.dim), dtype=np.int64)
        self.counts = np.zeros(n, dtype=np.int64)
        self.visitors = np.zeros(n, dtype=np.int64)
        users, places, visits = log.pairs()
        clipped = np.minimum(visits, config.clip_per_user)
        step = 1 << 16
        for first in range(0, max(1, len(user_vectors)), step):
            last = first + step >= len(user_vectors)
            mine = slice(
                int(np.searchsorted(users, first)),
                len(users) if last else int(np.searchsorted(users, first + step)),
            )
            fixed = fixed_point(user_vectors[first : first + step])
            rows = users[mine] - first
            rows[rows >= len(fixed)] = -1
            kernels.add_visits(
                rows, places[mine], clipped[mine], fixed, self._sums, self.counts, self.visitors
            )

    def grow(self, capacity: int) -> None:
        """Make room for places that the log has added."""
        missing = capacity - len(self.counts)
        if missing > 0:
            self._sums = np.concatenate([self._sums, np.zeros((missing, self.dim), np.int64)])
            self.counts = np.concatenate([self.counts, np.zeros(missing, np.int64)])
            self.visitors = np.concatenate([self.visitors, np.zeros(missing, np.int64)])

    def add(self, place: int, before: int, vector: npt.NDArray[np.float32] | None) -> None:
        """Add one check-in of a user of that vector who had been there ``before`` times."""
        if before < self._config.clip_per_user:
            self.counts[place] += 1
            if vector is not None:
                self._sums[place] += fixed_point(vector)
        if before == 0:
            self.visitors[place] += 1

    def take_out(
        self,
        places: npt.NDArray[np.int64],
        visits: npt.NDArray[np.int64],
        vector: npt.NDArray[np.float32],
    ) -> None:
        """Take out the ``visits`` of a user at the places he visited, each once."""
        clipped = np.minimum(visits, self._config.clip_per_user)
        self._sums[places] -= clipped[:, None] * fixed_point(vector)
        self.counts[places] -= clipped
        self.visitors[places] -= 1

    def blocks(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return P(o) of places in blocks of 16, float32: coordinates padded with zeros to 4."""
        dim = padded(self.dim)
        blocks = np.zeros(padded(len(places), 16) * dim, dtype=np.float32)
        kernels.vector_blocks(
            places,
            self._sums,
            self.counts,
            self.visitors,
            self._config.min_visitors,
            dim,
            blocks,
        )
        return blocks

    def socials(
        self,
        places: npt.NDArray[np.int64],
        vector: npt.NDArray[np.float64],
        form: int,
        out: npt.NDArray[np.float64],
    ) -> None:
        """Fill ``out`` with the social part of places for a user's vector (float64 [dim])."""
        kernels.socials_of(
            places,
            self._sums,
            self.counts,
            self.visitors,
            self._config.min_visitors,
            vector,
            form,
            out,
        )

    def nbytes(self) -> int:
        """Return the bytes of the sums."""
        return self._sums.nbytes + self.counts.nbytes + self.visitors.nbytes


def padded(count: int, to: int = 4) -> int:
    """Return the multiple of ``to`` that holds ``count``, at least one of it."""
    return max(to, -(-count // to) * to)


def fixed_point(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Return vectors in the fixed point of the sums, int64."""
    fixed: npt.NDArray[np.int64] = np.rint(vectors.astype(np.float64) * kernels.FIXED).astype(
        np.int64
    )
    return fixed
