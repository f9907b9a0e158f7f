"""How an index is made and kept."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shoal.core.settings import Settings

__all__ = ["SpatialKeywordIndexConfig"]


class SpatialKeywordIndexConfig(Settings):
    """Options of an index; load one from TOML with ``shoal.core.settings.load_settings``.

    Parameters
    ----------
    layout : {"packed", "quad_cluster", "netr"}
        How a segment is arranged. All give the same answers; ``packed`` is the
        fast one, the others are the published structures.
    analyzer : {"words", "exact"}
        Split text into words and fold case, or take keywords as they are.
    seed : int
        Restarts of ``quad_cluster``'s clustering and of ``netr``'s user clusters.
    memtable_rows : int
        Recent places that are kept unsorted and scanned.
    fan_in : int
        Segments of a size that are merged into one.
    time_slots : {24, 168}
        Slots of the visiting time: hour of the day, or hour of the week.
    tz : str or None
        Time zone of places without one of their own (an IANA name), used to
        bring a time into a slot. Without it, naive times are refused.
    smoothing_hours : float
        Standard deviation of the circular smoothing of visiting times; 0: none.
    prior_weight : float
        Check-ins that a place's category counts for in its visiting times.
    clip_per_user : int
        Check-ins of one user at one place that count for the social part.
    min_visitors : int
        Distinct visitors below which a place's social part is neutral.
    """

    layout: Literal["packed", "quad_cluster", "netr"] = "packed"
    analyzer: Literal["words", "exact"] = "words"
    seed: int = 0
    memtable_rows: int = Field(default=4096, ge=1, le=1_000_000)
    fan_in: int = Field(default=8, ge=2, le=64)
    time_slots: Literal[24, 168] = 168
    tz: str | None = None
    smoothing_hours: float = Field(default=1.0, ge=0.0, le=12.0)
    prior_weight: float = Field(default=5.0, ge=0.0)
    clip_per_user: int = Field(default=5, ge=1)
    min_visitors: int = Field(default=3, ge=1)
