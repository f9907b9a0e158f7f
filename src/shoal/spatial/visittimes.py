"""The time part of places: what their check-ins and their category say of each slot."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shoal.spatial import _visit_values as kernels
from shoal.spatial.timeslots import category_priors, circular_gaussian
from shoal.spatial.visitconfig import VisitConfig
from shoal.spatial.visitlog import VisitLog

__all__ = ["VisitTimes"]


class VisitTimes:
    """The smoothing, and the priors of the categories as a log had them.

    Check-ins are read from the log at each call; :meth:`renew` draws the priors
    from it again.
    """

    def __init__(self, log: VisitLog, config: VisitConfig) -> None:
        self._config = config
        self._smoothing = circular_gaussian(config.time_slots, config.smoothing_hours)
        self._mode = (float(config.prior_weight), config.normaliser == "total")
        self.renew(log)

    def renew(self, log: VisitLog) -> None:
        """Draw the priors from a log."""
        self._priors = category_priors(
            log.category_counts(),
            self._config.smoothing_hours,
            normaliser=self._config.normaliser,
        )

    def at(
        self,
        log: VisitLog,
        places: npt.NDArray[np.int64],
        slot: int,
        out: npt.NDArray[np.float64],
    ) -> None:
        """Fill ``out`` (float64 [m]) with the time part of places at a slot."""
        kernels.times_at(
            places,
            log.slot_first,
            log.slot_stop,
            log.slot_of,
            log.count_of,
            self._smoothing,
            self._priors,
            log.category,
            self._mode,
            slot,
            out,
        )

    def fill(
        self, log: VisitLog, places: npt.NDArray[np.int64], out: npt.NDArray[np.float32]
    ) -> None:
        """Fill ``out`` (float32 [slots, m or more]) with the time part of places at all slots."""
        kernels.time_rows(
            places,
            log.slot_first,
            log.slot_stop,
            log.slot_of,
            log.count_of,
            self._smoothing,
            self._priors,
            log.category,
            self._mode,
            out,
        )
