"""What a visit counts for, and what a check-in and a user's vector must be like."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from shoal.core.errors import InputError
from shoal.core.settings import Settings

__all__ = ["VisitConfig", "check_slot", "check_user", "checked_vectors"]


class VisitConfig(Settings):
    """What a visit counts for.

    With c(o, b) the check-ins of place o in slot b, g a circular Gaussian of sum
    1 and m the weight of the prior, the time part is ::

        T(o, b) = (sum_b' g(b - b') c(o, b') + m prior(b)) / (N(o) + m)

    where N(o) is the largest of the smoothed counts (``normaliser="max"``: is
    this the place's busy time?) or the number of check-ins (``"total"``: how
    likely is this time?). ``prior`` is that of the place's category. A place of
    which nothing is known has 0.

    With c(v, o) the visits of user v, at most ``clip_per_user``, and z_v the
    user's vector, the social part for user u is g(x) of ::

        x = <z_u, P(o)>,    P(o) = sum_v c(v, o) z_v / sum_v c(v, o)

    and P(o) = 0 for a place with fewer than ``min_visitors`` visitors, which
    hides them. For the sparse form x is the same mean over the relations of the
    related users alone, and the social part is x itself.

    Parameters
    ----------
    time_slots : {24, 168}
        Hours of the day, or of the week.
    smoothing_hours : float
        Standard deviation of g; 0 is no smoothing.
    prior_weight : float
        m, in check-ins.
    normaliser : {"max", "total"}
        As above.
    clip_per_user : int
        Check-ins of one user at one place that count for the social part.
    min_visitors : int
        Distinct visitors below which a place's social part is neutral.
    social_map : {"half", "positive"}
        g(x) = (1 + x) / 2, or max(0, x). Neutral is 1/2, or 0.
    """

    time_slots: Literal[24, 168] = 168
    smoothing_hours: float = Field(default=1.0, ge=0.0, le=12.0)
    prior_weight: float = Field(default=5.0, ge=0.0)
    normaliser: Literal["max", "total"] = "max"
    clip_per_user: int = Field(default=5, ge=1)
    min_visitors: int = Field(default=3, ge=1)
    social_map: Literal["half", "positive"] = "half"


def checked_vectors(user_vectors: npt.ArrayLike | None) -> npt.NDArray[np.float32]:
    """Return the users' vectors, float32 [U, dim] of length 1 or less; none: no user has one."""
    if user_vectors is None:
        return np.zeros((0, 4), dtype=np.float32)
    vectors = np.ascontiguousarray(user_vectors, dtype=np.float32)
    if vectors.ndim != 2 or vectors.shape[1] == 0:
        raise InputError(
            "the users' vectors are one row each", field="user_vectors", value=vectors.shape
        )
    length = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    wrong = ~(length <= 1.0 + 1e-5)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(
            "a user's vector must be finite and of length 1 or 0",
            field="user_vectors",
            value=float(length[row]),
            row=row + 1,
        )
    return vectors


def check_slot(slot: int, slots: int, row: int | None = None) -> None:
    """Raise InputError for a slot that is neither -1 nor one of ``slots``."""
    if not -1 <= slot < slots:
        raise InputError(f"a slot lies in 0 .. {slots - 1}", field="slot", value=slot, row=row)


def check_user(user: int, row: int | None = None) -> None:
    """Raise InputError for a number that no user has."""
    if user < 0:
        raise InputError("a user's number is at least 0", field="user", value=user, row=row)
