"""Tests that tell whether a release is worse than its limit, or safe, at any time.

A fixed failure threshold that is watched after every device stops far too many
harmless releases, and so does any fixed-sample test (Walle sheet A.6). The
tests here hold their error rates at *every* stopping time: each is a
non-negative martingale under its null hypothesis, so by Ville's inequality it
ever reaches ``1/alpha`` with probability at most ``alpha``.

The unit of analysis is the device: one 0/1 outcome each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from shoal.core.errors import InputError

__all__ = [
    "NO_EVIDENCE",
    "ArmCount",
    "Form",
    "Reading",
    "Rule",
    "Verdict",
    "confidence_bounds",
    "devices_to_advance",
    "judge",
    "log_evidence_safe",
    "log_evidence_worse",
]

#: Natural logarithm of "no evidence at all".
NO_EVIDENCE = -math.inf

Rule = Literal["always_valid", "threshold", "versus_control"]
#: Which mixture a confidence sequence inverts; see :func:`confidence_bounds`.
Form = Literal["one_sided", "two_sided"]

_PRIOR = 0.5  # Jeffreys: both shapes of the mixing Beta distribution
_BISECTIONS = 54  # as many as a double has bits


class Verdict(StrEnum):
    """What the devices seen so far say about one guardrail."""

    WORSE = "worse"
    SAFE = "safe"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class ArmCount:
    """Devices observed in one arm, and how many of them failed the guardrail."""

    devices: int = 0
    failures: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.failures <= self.devices:
            raise InputError(
                "failures must lie between 0 and the number of devices",
                field="failures",
                value=(self.failures, self.devices),
            )

    def __add__(self, other: ArmCount) -> ArmCount:
        return ArmCount(self.devices + other.devices, self.failures + other.failures)


@dataclass(frozen=True, slots=True)
class Reading:
    """The verdict on one guardrail and the figures that it rests on (JSON-able)."""

    guardrail: str
    verdict: Verdict
    evidence: dict[str, Any]


def _counts(
    failures: ArrayLike, devices: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    s = np.asarray(failures, dtype=np.float64)
    n = np.asarray(devices, dtype=np.float64)
    if not bool(np.all((s >= 0) & (s <= n) & np.isfinite(n))):
        raise InputError("failures must lie between 0 and the number of devices", field="failures")
    return s, n


def _limits(limit: ArrayLike) -> NDArray[np.float64]:
    p = np.asarray(limit, dtype=np.float64)
    if not bool(np.all((p > 0) & (p < 1))):
        raise InputError("must lie strictly between 0 and 1", field="limit", value=limit)
    return p


def _log_evidence(
    s: NDArray[np.float64],
    n: NDArray[np.float64],
    p: NDArray[np.float64],
    tail: Callable[..., Any],
) -> NDArray[np.float64]:
    """Log of the truncated mixture likelihood over the likelihood at ``p``.

    ``tail`` is the regularised incomplete beta function or its complement. Both
    are evaluated directly, never as one minus the other, so neither tail
    cancels. Where one underflows to zero the evidence is minus infinity, which
    errs towards "not proven"; so does the NaN of an argument out of range.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        value = (
            special.betaln(_PRIOR + s, _PRIOR + n - s)
            + np.log(tail(_PRIOR + s, _PRIOR + n - s, p))
            - special.betaln(_PRIOR, _PRIOR)
            - np.log(tail(_PRIOR, _PRIOR, p))
            - special.xlogy(s, p)
            - special.xlog1py(n - s, -p)
        )
    return np.asarray(np.where(np.isnan(value), NO_EVIDENCE, value), dtype=np.float64)


def log_evidence_worse(
    failures: ArrayLike, devices: ArrayLike, limit: ArrayLike
) -> NDArray[np.float64]:
    """Log evidence that the failure rate is above ``limit`` (Walle sheet A.6).

    Parameters
    ----------
    failures, devices : array-like of int
        Devices that failed, and devices observed; they broadcast.
    limit : array-like of float
        The rate p0, strictly between 0 and 1.

    Returns
    -------
    ndarray of float64
        ``ln E_worse``. ``exp`` of it is a test martingale (at most, a
        supermartingale) for every rate up to ``limit``, so it ever reaches
        ``ln(1/alpha)`` with probability at most ``alpha``.

    Raises
    ------
    InputError
        Counts or limit out of range.
    """
    s, n = _counts(failures, devices)
    return _log_evidence(s, n, _limits(limit), special.betaincc)


def log_evidence_safe(
    failures: ArrayLike, devices: ArrayLike, limit: ArrayLike
) -> NDArray[np.float64]:
    """Log evidence that the failure rate is below ``limit``; see :func:`log_evidence_worse`."""
    s, n = _counts(failures, devices)
    return _log_evidence(s, n, _limits(limit), special.betainc)


def devices_to_advance(limit: float, error: float, failures: int = 0) -> int:
    """Return the fewest devices after which a guardrail can be called safe.

    Parameters
    ----------
    limit : float
        The guardrail's limit p0.
    error : float
        Allowed probability beta of advancing an unsafe release.
    failures : int
        Failures among them.

    Returns
    -------
    int
        Smallest n with ``E_safe(failures, n) >= 1/error``.
    """
    _limits(limit)
    _limits(error)
    goal = -math.log(error)
    low, high = failures, max(8, 2 * failures)
    while float(log_evidence_safe(failures, high, limit)) < goal:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if float(log_evidence_safe(failures, middle, limit)) >= goal:
            high = middle
        else:
            low = middle
    return high


def confidence_bounds(
    failures: ArrayLike,
    devices: ArrayLike,
    level: float,
    form: Form = "one_sided",
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper confidence sequence of a rate, each valid at ``level`` for all times.

    Parameters
    ----------
    failures, devices : array-like of int
        They broadcast.
    level : float
        Probability, for each bound by itself, of *ever* being wrong.
    form : {"one_sided", "two_sided"}
        ``"two_sided"`` is the form of Walle sheet A.6: all rates whose
        beta-binomial mixture likelihood ratio stays below ``1/level``.
        ``"one_sided"`` (ours) inverts the mixtures that are truncated at the
        rate in question, the same martingales as the test against a limit: for
        small rates the prior mass below the rate is small, so the truncated
        mixture is sharper where it matters (the upper bounds).

    Returns
    -------
    lower, upper : ndarray of float64
        In [0, 1]; found by bisection and rounded outwards.
    """
    _limits(level)
    s, n = np.broadcast_arrays(*_counts(failures, devices))
    goal = -math.log(level)
    if form == "two_sided":

        def mixture(p: NDArray[np.float64]) -> NDArray[np.float64]:
            with np.errstate(divide="ignore", invalid="ignore"):
                value = (
                    special.betaln(_PRIOR + s, _PRIOR + n - s)
                    - special.betaln(_PRIOR, _PRIOR)
                    - special.xlogy(s, p)
                    - special.xlog1py(n - s, -p)
                )
            return np.asarray(value, dtype=np.float64)

        below = above = mixture
    elif form == "one_sided":

        def below(p: NDArray[np.float64]) -> NDArray[np.float64]:
            return _log_evidence(s, n, p, special.betaincc)

        def above(p: NDArray[np.float64]) -> NDArray[np.float64]:
            return _log_evidence(s, n, p, special.betainc)

    else:
        raise InputError("expected one_sided or two_sided", field="form", value=form)

    rate = np.divide(s, n, out=np.full(s.shape, 0.5), where=n > 0)
    # The likelihood ratio is at most 1 at the observed rate, hence inside the
    # set; it leaves the set at most once on either side.
    out_low, in_low = np.zeros_like(rate), rate.copy()
    in_high, out_high = rate.copy(), np.ones_like(rate)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (out_low + in_low)
        outside = below(middle) >= goal
        out_low = np.where(outside, middle, out_low)
        in_low = np.where(outside, in_low, middle)
        middle = 0.5 * (in_high + out_high)
        outside = above(middle) >= goal
        out_high = np.where(outside, middle, out_high)
        in_high = np.where(outside, in_high, middle)
    return out_low, out_high


def _by_limit(
    new: ArmCount, limit: float, alpha: float, beta: float, guardrails: int
) -> tuple[Verdict, dict[str, Any]]:
    worse = float(log_evidence_worse(new.failures, new.devices, limit))
    safe = float(log_evidence_safe(new.failures, new.devices, limit))
    roll_back_at = math.log(guardrails / alpha)
    advance_at = -math.log(beta)
    evidence = {
        "log_e_worse": _finite(worse),
        "roll_back_at": roll_back_at,
        "log_e_safe": _finite(safe),
        "advance_at": advance_at,
    }
    if worse >= roll_back_at:
        return Verdict.WORSE, evidence
    return (Verdict.SAFE if safe >= advance_at else Verdict.UNDECIDED), evidence


def _by_control(
    new: ArmCount,
    control: ArmCount,
    *,
    margin: float,
    alpha: float,
    beta: float,
    guardrails: int,
    form: Form,
) -> tuple[Verdict, dict[str, Any]]:
    s = [new.failures, control.failures]
    n = [new.devices, control.devices]
    low, high = confidence_bounds(s, n, alpha / (2 * guardrails), form)
    excess_at_least = float(low[0] - high[1])
    low, high = confidence_bounds(s, n, beta / 2, form)
    excess_at_most = float(high[0] - low[1])
    evidence = {
        "excess_at_least": excess_at_least,
        "excess_at_most": excess_at_most,
        "margin": margin,
        "control_devices": control.devices,
        "control_failures": control.failures,
    }
    if excess_at_least > margin:
        return Verdict.WORSE, evidence
    return (Verdict.SAFE if excess_at_most < margin else Verdict.UNDECIDED), evidence


def _by_threshold(new: ArmCount, limit: float, min_devices: int) -> tuple[Verdict, dict[str, Any]]:
    if new.devices < max(1, min_devices):
        return Verdict.UNDECIDED, {"needs_devices": max(1, min_devices)}
    return (Verdict.WORSE if new.failures > limit * new.devices else Verdict.SAFE), {}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def judge(
    guardrail: str,
    new: ArmCount,
    *,
    limit: float,
    alpha: float,
    beta: float,
    rule: Rule = "always_valid",
    guardrails: int = 1,
    control: ArmCount | None = None,
    margin: float = 0.0,
    min_devices: int = 1,
    form: Form = "one_sided",
) -> Reading:
    """Judge one guardrail of a release from the devices counted so far.

    Parameters
    ----------
    guardrail : str
        Its name, for the record.
    new : ArmCount
        Devices that hold the new version.
    limit : float
        The rate p0 that must not be exceeded.
    alpha : float
        Allowed probability of ever rolling back a harmless release, over all
        guardrails together.
    beta : float
        Allowed probability of ever calling an unsafe guardrail safe.
    rule : {"always_valid", "threshold", "versus_control"}
        ``"threshold"`` is the published fixed rule (Walle, OSDI 2022): worse
        when more than ``limit`` of at least ``min_devices`` devices failed. It
        holds no error rate when it is watched continuously.
    guardrails : int
        How many guardrails the release has; alpha is shared among them.
    control : ArmCount, optional
        Devices of the same cohort that do not have the version yet.
    margin : float
        Allowed excess over the control arm (rule ``"versus_control"``).
    min_devices : int
        For rule ``"threshold"``.
    form : {"one_sided", "two_sided"}
        See :func:`confidence_bounds`.

    Returns
    -------
    Reading
    """
    figures: dict[str, Any] = {
        "rule": rule,
        "limit": limit,
        "devices": new.devices,
        "failures": new.failures,
    }
    if rule == "always_valid":
        verdict, evidence = _by_limit(new, limit, alpha, beta, guardrails)
    elif rule == "versus_control":
        verdict, evidence = _by_control(
            new,
            control or ArmCount(),
            margin=margin,
            alpha=alpha,
            beta=beta,
            guardrails=guardrails,
            form=form,
        )
    elif rule == "threshold":
        verdict, evidence = _by_threshold(new, limit, min_devices)
    else:
        raise InputError("unknown rule", field="rule", value=rule)
    return Reading(guardrail, verdict, {**figures, **evidence})
