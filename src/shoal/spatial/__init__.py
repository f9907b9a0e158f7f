"""Exact search over space, words, attributes, time and friends."""

from shoal.spatial.columns import AttributeSpec
from shoal.spatial.scoring import Exp, Gauss, Linear, Saturation, Weights

__all__ = ["AttributeSpec", "Exp", "Gauss", "Linear", "Saturation", "Weights"]
