"""Weights and decays: how the parts of a score are blended.

Every part of a score lies in [0, 1] and is monotone in the quantity that
bounds it (distance, matched words, attribute minima, slot maxima, a vector's
box), so the same weighted sum that blends the parts of an object blends the
bounds of a node. That is all that exactness needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError

__all__ = ["PARTS", "Decay", "Exp", "Gauss", "Linear", "Saturation", "Weights", "make_decay"]

#: Parts of a score, in the order in which every array of weights holds them.
PARTS = ("space", "text", "attributes", "time", "social")


@dataclass(frozen=True, slots=True)
class Weights:
    """What each part of the score counts for; only the ratios matter.

    Parameters
    ----------
    space, text, attributes, time, social : float
        Finite and not negative (a negative weight would break the bounds), at
        least one of them positive. A part of weight 0 is never looked at.

    Raises
    ------
    InputError
        A weight is negative, NaN or infinite, or all are 0.
    """

    space: float = 0.0
    text: float = 0.0
    attributes: float = 0.0
    time: float = 0.0
    social: float = 0.0

    def __post_init__(self) -> None:
        for part in PARTS:
            value = getattr(self, part)
            if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
                raise InputError("a weight must be a number", field=part, value=value)
            if not math.isfinite(value) or value < 0:
                raise InputError(
                    "a weight must be finite and not negative", field=part, value=value
                )
        if not any(getattr(self, part) > 0 for part in PARTS):
            raise InputError("at least one weight must be positive", field="weights")

    @classmethod
    def of(cls, weights: Weights | Mapping[str, float]) -> Weights:
        """Return ``weights`` as :class:`Weights`, naming a part that does not exist."""
        if isinstance(weights, Weights):
            return weights
        unknown = set(weights) - set(PARTS)
        if unknown:
            raise InputError(
                f"no such part of a score; the parts are {', '.join(PARTS)}",
                field="weights",
                value=sorted(unknown)[0],
            )
        return cls(**dict(weights))

    def shares(self) -> npt.NDArray[np.float64]:
        """Return the weights in the order of :data:`PARTS`, scaled to the sum 1."""
        raw = np.array([getattr(self, field.name) for field in fields(self)], dtype=np.float64)
        raw /= raw.max()  # so that the sum of huge weights does not overflow
        shares: npt.NDArray[np.float64] = raw / raw.sum()
        return shares


def _positive(name: str, value: float) -> None:
    if not math.isfinite(value) or value <= 0:
        raise InputError("must be finite and positive", field=name, value=value)


@dataclass(frozen=True, slots=True)
class Linear:
    """``max(0, 1 - d / max_km)``: falls in a straight line to 0 at ``max_km``."""

    max_km: float
    kind: ClassVar[int] = 0

    def __post_init__(self) -> None:
        _positive("max_km", self.max_km)

    @property
    def scale(self) -> float:
        """Return the scale of the decay, kilometres."""
        return self.max_km


@dataclass(frozen=True, slots=True)
class Saturation:
    """``pivot / (pivot + d)``: one half at ``pivot_km`` (Elasticsearch's distance_feature)."""

    pivot_km: float
    kind: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _positive("pivot_km", self.pivot_km)

    @property
    def scale(self) -> float:
        """Return the scale of the decay, kilometres."""
        return self.pivot_km


@dataclass(frozen=True, slots=True)
class Exp:
    """``exp(-d / scale_km)``."""

    scale_km: float
    kind: ClassVar[int] = 2

    def __post_init__(self) -> None:
        _positive("scale_km", self.scale_km)

    @property
    def scale(self) -> float:
        """Return the scale of the decay, kilometres."""
        return self.scale_km


@dataclass(frozen=True, slots=True)
class Gauss:
    """``exp(-(d / scale_km)^2 / 2)``: ``scale_km`` is the standard deviation."""

    scale_km: float
    kind: ClassVar[int] = 3

    def __post_init__(self) -> None:
        _positive("scale_km", self.scale_km)

    @property
    def scale(self) -> float:
        """Return the scale of the decay, kilometres."""
        return self.scale_km


#: A fall of the space part with distance.
Decay: TypeAlias = Linear | Saturation | Exp | Gauss

_DECAYS: dict[str, type[Linear | Saturation | Exp | Gauss]] = {
    "linear": Linear,
    "saturation": Saturation,
    "exp": Exp,
    "gauss": Gauss,
}


def make_decay(name: str, km: float) -> Decay:
    """Return the decay called ``name`` (linear, saturation, exp, gauss) with its scale.

    Raises
    ------
    InputError
        The name is unknown, or the scale is not finite and positive.
    """
    if name not in _DECAYS:
        raise InputError(
            f"no such decay; choose from {', '.join(_DECAYS)}", field="decay", value=name
        )
    return _DECAYS[name](km)
