"""How fast a release can reach a fleet, and when it will have.

Devices learn of a release when they talk to the cloud anyway, so reach is
bounded by how often they talk: with request rates ``r`` per device, at most
``1 - mean(exp(-r t))`` of them know after ``t`` seconds (Walle sheet A.6). With
rates spread like a Gamma distribution that is ``1 - (b / (b + t))**a``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from shoal.cloud.policy import ReleasePolicy
from shoal.core.errors import InputError
from shoal.core.seeds import philox
from shoal.wire.buckets import BUCKETS

__all__ = [
    "Forecast",
    "GammaRates",
    "Step",
    "coverage_limit",
    "coverage_of_steps",
    "fit_gamma",
    "forecast",
    "plan_steps",
]

_FOREVER = 1e12  # seconds: beyond any release
_LOG_RANGE = 18.0  # |ln a|, |ln b| that a fit may reach


@dataclass(frozen=True, slots=True)
class GammaRates:
    """Request rates of a cohort, as a Gamma distribution.

    Attributes
    ----------
    shape : float
        ``a``; small where devices differ much.
    rate : float
        ``b``, seconds; the mean rate is ``a / b`` requests per second.
    covariance : tuple of three floats
        Variances of ``ln a`` and ``ln b``, and their covariance; zeros when known.
    devices : int
        Devices that the fit rests on.
    """

    shape: float
    rate: float
    covariance: tuple[float, float, float] = (0.0, 0.0, 0.0)
    devices: int = 0

    def coverage(self, after_s: ArrayLike) -> NDArray[np.float64]:
        """Return the share of devices that have made a request ``after_s`` seconds."""
        t = np.maximum(np.asarray(after_s, dtype=np.float64), 0.0)
        return np.asarray(-np.expm1(-self.shape * np.log1p(t / self.rate)))

    def time_to(self, share: float) -> float:
        """Return the seconds until ``share`` (below 1) of the devices have made a request."""
        _check_share(share)
        return float(self.rate * np.expm1(-np.log1p(-share) / self.shape))

    def draw(self, number: int, seed: int) -> list[GammaRates]:
        """Draw plausible rates around the fit (normal in ``ln a``, ``ln b``)."""
        first, second, both = self.covariance
        spread = np.array([[first, both], [both, second]])
        centre = np.log([self.shape, self.rate])
        rng = philox(seed, "reach", "draw")
        found = rng.multivariate_normal(centre, spread, size=number, method="svd")
        values = np.exp(np.clip(found, -2 * _LOG_RANGE, 2 * _LOG_RANGE))
        return [GammaRates(float(a), float(b)) for a, b in values]


def _check_share(share: float) -> None:
    if not 0 <= share < 1:
        raise InputError("must lie in [0, 1)", field="share", value=share)


def coverage_limit(rates: ArrayLike, times_s: ArrayLike) -> NDArray[np.float64]:
    """Return ``1 - mean(exp(-rates * t))`` for each time.

    Parameters
    ----------
    rates : array-like of float, shape (devices,)
        Requests per second of each device.
    times_s : array-like of float, shape (times,)
        Seconds since the release was published; before it counts as 0.

    Returns
    -------
    ndarray of float64, shape (times,)
    """
    r = np.asarray(rates, dtype=np.float64)
    if r.ndim != 1 or r.size == 0 or not bool((r >= 0).all()):
        raise InputError("expected non-negative rates of at least one device", field="rates")
    t = np.maximum(np.atleast_1d(np.asarray(times_s, dtype=np.float64)), 0.0)
    return np.array([-np.expm1(-r * moment).mean() for moment in t])


def fit_gamma(requests: ArrayLike, observed_s: ArrayLike) -> GammaRates:
    """Fit Gamma request rates to how often devices were seen, by maximum likelihood.

    Parameters
    ----------
    requests : array-like of int, shape (devices,)
        Requests of each device while it was observed.
    observed_s : array-like of float, shape (devices,) or scalar
        How long it was observed, seconds, positive.

    Returns
    -------
    GammaRates
        With the covariance of the estimates. The count of a device is negative
        binomial given its time, so differing times need no correction.

    Raises
    ------
    InputError
        Nobody made a request, or an argument is out of range.
    """
    n, t = np.broadcast_arrays(
        np.atleast_1d(np.asarray(requests, dtype=np.float64)),
        np.asarray(observed_s, dtype=np.float64),
    )
    if not bool(np.all((n >= 0) & (t > 0) & np.isfinite(t) & np.isfinite(n))):
        raise InputError("need counts >= 0 and positive, finite times", field="requests")
    total = float(n.sum())
    if total == 0:
        raise InputError("no request was observed: nothing can be said of rates", field="requests")
    # Devices that share count and time need one evaluation only.
    pairs, weight = np.unique(np.stack([n, t]), axis=1, return_counts=True)
    n, t = pairs
    w = weight.astype(np.float64)

    def loss(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        a, b = np.exp(x)
        value = w * (
            special.gammaln(a + n) - special.gammaln(a) + a * np.log(b) - (a + n) * np.log(b + t)
        )
        by_a = a * (w * (special.psi(a + n) - special.psi(a) + np.log(b) - np.log(b + t))).sum()
        by_b = (w * (a - b * (a + n) / (b + t))).sum()
        return -float(value.sum()), -np.array([by_a, by_b])

    mean = total / float((w * t).sum())
    bounds = [(-_LOG_RANGE, _LOG_RANGE)] * 2
    starts = [np.clip(np.log([a, a / mean]), -_LOG_RANGE, _LOG_RANGE) for a in (0.5, 2.0, 20.0)]
    best = min(
        (
            optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
            for start in starts
        ),
        key=lambda found: float(found.fun),
    )
    step = 1e-4
    hessian = np.stack(
        [
            (loss(best.x + step * axis)[1] - loss(best.x - step * axis)[1]) / (2 * step)
            for axis in np.eye(2)
        ]
    )
    # Where the data say nothing about a direction (no spread to be seen) its
    # variance would be without bound; the prior of a factor e**2 ends that.
    covariance = np.linalg.inv(0.5 * (hessian + hessian.T) + np.eye(2) / 4.0)
    a, b = np.exp(best.x)
    return GammaRates(
        shape=float(a),
        rate=float(b),
        covariance=(
            float(covariance[0, 0]),
            float(covariance[1, 1]),
            float(covariance[0, 1]),
        ),
        devices=int(w.sum()),
    )


@dataclass(frozen=True, slots=True)
class Step:
    """From ``start_s`` on, buckets below ``threshold`` (of 10,000) are let in."""

    start_s: float
    threshold: int


def coverage_of_steps(
    rates: GammaRates, steps: Sequence[Step], times_s: ArrayLike
) -> NDArray[np.float64]:
    """Return the share of the cohort reached when it is let in step by step.

    A pause shows as a later start of the next step: who is in stays in.
    """
    t = np.atleast_1d(np.asarray(times_s, dtype=np.float64))
    covered = np.zeros_like(t)
    inside = 0
    for step in steps:
        if not inside <= step.threshold <= BUCKETS:
            raise InputError("thresholds must not fall", field="steps", value=step.threshold)
        share = (step.threshold - inside) / BUCKETS
        covered += share * rates.coverage(t - step.start_s)
        inside = step.threshold
    return covered


def plan_steps(
    rates: GammaRates, policy: ReleasePolicy, eligible: int, *, first: int = 1, start_s: float = 0.0
) -> list[Step]:
    """Foresee when each gray step begins, if nothing fails.

    A step is left after the minimum stay and once the guardrails have seen
    enough devices, each of them ``outcome_after_s`` after it was reached at the
    latest. A step that can never be left is the last one returned.

    Parameters
    ----------
    rates : GammaRates
    policy : ReleasePolicy
    eligible : int
        Devices in the cohort.
    first : int
        The gray step that begins at ``start_s``; the earlier ones are behind.
    start_s : float
        Seconds from now.
    """
    need = max(policy.devices_needed(guardrail) for guardrail in policy.guardrails)
    inside = policy.threshold(first - 1)
    steps = [Step(0.0, inside)] if inside else []
    for threshold in policy.steps[first - 1 :]:
        steps.append(Step(start_s, threshold))
        if threshold == BUCKETS:
            break

        def reached(at: float, so_far: tuple[Step, ...] = tuple(steps)) -> float:
            return float(coverage_of_steps(rates, so_far, at)[0]) * eligible - need

        if reached(_FOREVER) < 0:
            break
        seen = start_s
        if reached(start_s) < 0:
            seen = float(optimize.brentq(reached, start_s, _FOREVER, xtol=0.1))
            seen += policy.outcome_after_s
        start_s = max(start_s + policy.min_dwell_s, seen)
    return steps


@dataclass(frozen=True, slots=True)
class Forecast:
    """When ``share`` of the cohort will have been reached, in seconds from now.

    ``None`` where the steps never get there. ``low_s`` and ``high_s`` bound it
    with the probability that was asked for, given that rates stay as they are
    and no guardrail stops the release.
    """

    share: float
    at_s: float | None
    low_s: float | None
    high_s: float | None


def _time_of(rates: GammaRates, steps: Sequence[Step], share: float) -> float | None:
    def missing(at: float) -> float:
        return float(coverage_of_steps(rates, steps, at)[0]) - share

    if not steps or missing(_FOREVER) < 0:
        return None
    return float(optimize.brentq(missing, 0.0, _FOREVER, xtol=0.1)) if missing(0.0) < 0 else 0.0


def forecast(
    rates: GammaRates,
    policy: ReleasePolicy,
    eligible: int,
    share: float,
    *,
    first: int = 1,
    start_s: float = 0.0,
    level: float = 0.9,
    draws: int = 200,
    seed: int = 0,
) -> Forecast:
    """Forecast when a release will have reached ``share`` of its cohort.

    Parameters
    ----------
    rates, policy, eligible, first, start_s
        As in :func:`plan_steps`.
    share : float
        In [0, 1).
    level : float
        Probability of the interval.
    draws : int
        Plausible rates that the interval is made from.
    seed : int
    """
    _check_share(share)

    def when(some: GammaRates) -> float | None:
        planned = plan_steps(some, policy, eligible, first=first, start_s=start_s)
        return _time_of(some, planned, share)

    at = when(rates)
    found = np.array([_FOREVER if (t := when(r)) is None else t for r in rates.draw(draws, seed)])
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])

    def known(value: float) -> float | None:
        return None if value >= _FOREVER * 0.99 else float(value)

    return Forecast(share=share, at_s=at, low_s=known(low), high_s=known(high))
