"""The user layer of the NETR-Tree: users in clusters, and what a cluster can mean to a user."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shoal.core.seeds import philox
from shoal.spatial.query import SocialPlan

__all__ = ["UserLayer"]

#: Covers the rounding of a place's vector to float32, which the set bound does not see.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class UserLayer:
    """Users by k-means of their vectors into about sqrt(U) clusters.

    Attributes
    ----------
    centres : float64 [clusters, dim]
        Means of the clusters.
    radii : float64 [clusters]
        Largest distance of a member from its centre, rounded up.
    cluster : int32 [U]
        Cluster of each user. Users without a vector are in a cluster of their
        own, number ``clusters``: to them every relation is 0.
    """

    centres: npt.NDArray[np.float64]
    radii: npt.NDArray[np.float64]
    cluster: npt.NDArray[np.int32]

    @classmethod
    def fit(cls, vectors: npt.NDArray[np.float32], *, seed: int = 0, rounds: int = 10) -> UserLayer:
        """Cluster users (float32 [U, dim]) by Lloyd's iteration."""
        points = vectors.astype(np.float64)
        known = np.flatnonzero(np.einsum("ij,ij->i", points, points) > 0)
        clusters = max(1, math.isqrt(len(known))) if len(known) else 0
        cluster = np.full(len(points), clusters, dtype=np.int32)
        if not clusters:
            return cls(np.zeros((0, points.shape[1])), np.zeros(0), cluster)
        mine = points[known]
        chosen = philox(seed, "netr", "users").choice(len(mine), clusters, replace=False)
        centres = mine[np.sort(chosen)].copy()
        label = _nearest(mine, centres)
        for _ in range(rounds):
            sums = np.zeros_like(centres)
            np.add.at(sums, label, mine)
            sizes = np.bincount(label, minlength=clusters)
            full = sizes > 0
            centres[full] = sums[full] / sizes[full, None]
            new = _nearest(mine, centres)
            if (new == label).all():
                break
            label = new
        away = np.sqrt(((mine - centres[label]) ** 2).sum(axis=1))
        radii = np.zeros(clusters)
        np.maximum.at(radii, label, away)
        cluster[known] = label
        return cls(centres, radii * (1.0 + 1e-9) + 1e-12, cluster)

    @property
    def width(self) -> int:
        """Return the 64-bit words of a set of clusters."""
        return (len(self.radii) + 1 + 63) // 64

    def of(self, users: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the cluster of each user, those that came later being without a vector."""
        found = np.full(len(users), len(self.radii), dtype=np.int64)
        known = users < len(self.cluster)
        found[known] = self.cluster[users[known]]
        return found

    def most(
        self, social: SocialPlan | None, vector: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """Return the most that the relation to a member of each cluster can be.

        Parameters
        ----------
        social : SocialPlan or None
            The user; with ``friends``, the largest relation to a related member.
        vector : float64 [dim]
            The user's vector.

        Returns
        -------
        float64 [clusters + 1]
            The last is that of the users without a vector.
        """
        most = np.zeros(len(self.radii) + 1)
        if social is not None and social.friends:
            np.maximum.at(most, self.of(social.users), social.relation)
            return most + _ROUNDING
        length = float(np.sqrt(vector @ vector))
        dim = self.centres.shape[1]
        most[:-1] = np.minimum(1.0, self.centres @ vector[:dim] + length * self.radii)
        return most + _ROUNDING


def _nearest(
    points: npt.NDArray[np.float64], centres: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    squares = np.einsum("ij,ij->i", centres, centres)
    label = np.empty(len(points), dtype=np.int64)
    for first in range(0, len(points), 8192):
        part = points[first : first + 8192]
        label[first : first + 8192] = np.argmin(squares - 2.0 * (part @ centres.T), axis=1)
    return label
