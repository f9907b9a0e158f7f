"""Which places the related users of a query visited, and their share of the visits there."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.spatial.query import SocialPlan
from shoal.spatial.visitconfig import VisitConfig
from shoal.spatial.visitlog import VisitLog
from shoal.spatial.visitsums import VisitSums

__all__ = ["RelatedVisits"]

_CACHED = 64
_NO_PLACES = np.empty(0, dtype=np.int64)
_NO_PARTS = np.empty(0, dtype=np.float64)


class RelatedVisits:
    """The shares of the latest queries, each by the epoch that it was computed in."""

    def __init__(self, config: VisitConfig) -> None:
        self._config = config
        self._known: OrderedDict[Any, Any] = OrderedDict()

    def of(
        self, social: SocialPlan, log: VisitLog, sums: VisitSums, epoch: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return what :meth:`~shoal.spatial.visits.VisitStore.related` says."""
        name = (epoch, social.users.tobytes(), social.relation.tobytes())
        known = self._known.get(name)
        if known is not None:
            found: tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]] = known
            return found
        places, parts = [], []
        for user, relation in zip(social.users.tolist(), social.relation.tolist(), strict=True):
            at, visits = log.visited(user)
            places.append(at)
            parts.append(relation * np.minimum(visits, self._config.clip_per_user))
        at, inverse = np.unique(np.concatenate([_NO_PLACES, *places]), return_inverse=True)
        # bincount adds in the order given: users ascending, so no sum depends on anything else.
        total = np.bincount(inverse, weights=np.concatenate([_NO_PARTS, *parts]), minlength=len(at))
        shown = (sums.visitors[at] >= self._config.min_visitors) & (sums.counts[at] > 0)
        at = at[shown]
        found = at, total[shown] / sums.counts[at]
        self._known[name] = found
        if len(self._known) > _CACHED:
            self._known.popitem(last=False)
        return found
