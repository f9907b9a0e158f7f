"""The coverage curve, the fit of request rates and the forecast."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.cloud.policy import Guardrail, ReleasePolicy
from shoal.cloud.reach import (
    GammaRates,
    Step,
    coverage_limit,
    coverage_of_steps,
    fit_gamma,
    forecast,
    plan_steps,
)
from shoal.core.errors import InputError
from shoal.core.seeds import philox

POLICY = ReleasePolicy(
    steps=(1_000, 5_000, 10_000),
    min_dwell_s=600,
    outcome_after_s=100,
    guardrails=(Guardrail(name="f", limit=0.05),),
)


def fleet(a: float, b: float, devices: int, seed: int = 1) -> np.ndarray:
    return philox(seed, "rates").gamma(a, 1 / b, devices)


def test_the_closed_form_is_the_limit_of_many_devices() -> None:
    times = np.linspace(0, 5_000, 40)
    devices = 200_000
    empirical = coverage_limit(fleet(1.5, 900, devices), times)
    band = np.sqrt(np.log(2 / 0.001) / (2 * devices))  # DKW at 99.9 %
    assert np.abs(empirical - GammaRates(1.5, 900).coverage(times)).max() < band


@given(st.floats(0.2, 20), st.floats(1, 1e5), st.floats(0, 0.999))
@settings(max_examples=60, deadline=None)
def test_time_to_inverts_coverage(a: float, b: float, share: float) -> None:
    rates = GammaRates(a, b)
    assert float(rates.coverage(rates.time_to(share))) == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize(("a", "b"), [(0.7, 400.0), (3.0, 2_000.0)])
def test_the_fit_finds_the_rates_and_its_interval_covers_them(a: float, b: float) -> None:
    inside, trials = 0, 60
    for trial in range(trials):
        rng = philox(trial, "fit")
        rates = rng.gamma(a, 1 / b, 1_500)
        observed = rng.uniform(500, 6_000, rates.size)
        fitted = fit_gamma(rng.poisson(rates * observed), observed)
        inside += abs(np.log(fitted.shape / a)) < 1.645 * np.sqrt(fitted.covariance[0])
    assert 44 <= inside <= 60  # 90 % nominal: 99.9 % binomial bounds of 60 trials are 45 and 60
    assert fitted.shape == pytest.approx(a, rel=0.25)
    assert fitted.rate == pytest.approx(b, rel=0.25)
    assert fitted.devices == 1_500


def test_equal_devices_and_tiny_samples_do_not_break_the_fit() -> None:
    same = fit_gamma(np.full(50, 10), 100.0)
    assert float(same.coverage(10)) == pytest.approx(1 - np.exp(-1), abs=0.02)
    one = fit_gamma([1], [60.0])
    assert np.isfinite(one.covariance).all()
    assert 0 < float(one.coverage(60)) < 1


@pytest.mark.parametrize(
    ("requests", "observed"), [([0, 0], 10.0), ([1], 0.0), ([-1], 5.0), ([1], np.inf)]
)
def test_what_cannot_be_fitted_is_refused(requests: list[int], observed: float) -> None:
    with pytest.raises(InputError):
        fit_gamma(requests, observed)


def test_bad_rates_and_shares_are_refused() -> None:
    with pytest.raises(InputError, match="rates"):
        coverage_limit([], [1.0])
    with pytest.raises(InputError, match="rates"):
        coverage_limit([0.1, -0.1], [1.0])
    with pytest.raises(InputError, match="share"):
        GammaRates(1, 1).time_to(1.0)
    with pytest.raises(InputError, match="steps"):
        coverage_of_steps(GammaRates(1, 1), [Step(0, 500), Step(1, 100)], 5)


def test_steps_add_up_and_an_immediate_full_step_is_the_whole_curve() -> None:
    rates = GammaRates(1.5, 900)
    times = np.linspace(0, 4_000, 9)
    np.testing.assert_allclose(
        coverage_of_steps(rates, [Step(0, 10_000)], times), rates.coverage(times)
    )
    late = coverage_of_steps(rates, [Step(0, 2_000), Step(1_000, 10_000)], times)
    np.testing.assert_allclose(
        late, 0.2 * rates.coverage(times) + 0.8 * rates.coverage(times - 1_000)
    )


def test_steps_wait_for_enough_devices_and_for_the_minimum_stay() -> None:
    rates = GammaRates(1.5, 900)
    many = plan_steps(rates, POLICY, 10_000_000)
    assert [step.threshold for step in many] == [1_000, 5_000, 10_000]
    assert [step.start_s for step in many] == [0, 600, 1_200]
    few = plan_steps(rates, POLICY, 1_000)  # 74 of 100 devices are needed
    assert few[1].start_s > 600
    reached = coverage_of_steps(rates, few[:1], few[1].start_s - POLICY.outcome_after_s)
    assert float(reached[0]) * 1_000 == pytest.approx(74, abs=0.1)
    stuck = plan_steps(rates, POLICY, 100)
    assert [step.threshold for step in stuck] == [1_000]


def test_the_forecast_agrees_with_a_simulation_and_says_when_it_cannot_be() -> None:
    a, b = 1.5, 900.0
    rng = philox(5, "forecast")
    seen = rng.gamma(a, 1 / b, 4_000)
    fitted = fit_gamma(rng.poisson(seen * 3_600), 3_600.0)
    told = forecast(fitted, POLICY, 1_000_000, 0.8)
    assert told.at_s is not None
    assert told.low_s is not None
    assert told.high_s is not None
    assert told.low_s < told.at_s < told.high_s
    rates = fleet(a, b, 100_000, 9)
    entry = np.select(
        [np.arange(rates.size) % 10 < 1, np.arange(rates.size) % 10 < 5], [0, 600], 1_200
    )
    first = entry + rng.exponential(size=rates.size) / rates
    assert told.low_s * 0.97 < np.quantile(first, 0.8) < told.high_s * 1.03
    stuck = forecast(fitted, POLICY, 100, 0.8)
    assert stuck.at_s is None
