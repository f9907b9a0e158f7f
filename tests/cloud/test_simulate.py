"""A release to a simulated fleet, against the curve that it cannot beat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from shoal.cloud import simulate
from shoal.cloud.fleet_report import FleetReport
from shoal.cloud.policy import Guardrail, ReleasePolicy
from shoal.cloud.population import Population, combinations
from shoal.cloud.predicates import Predicate
from shoal.cloud.reach import GammaRates
from shoal.cloud.simulate import FleetConfig, FleetSimulation
from shoal.core.errors import InputError

POLICY = ReleasePolicy(
    steps=(500, 2_000, 5_000, 10_000),
    min_dwell_s=120,
    outcome_after_s=120,
    guardrails=(Guardrail(name="failure", limit=0.05),),
    rollback_timeout_s=60,
)


def fleet(devices: int = 4_000, **changes: Any) -> FleetConfig:
    options: dict[str, Any] = {
        "devices": devices, "horizon_s": 2_400, "mean_gap_s": 240, "tick_s": 10,
        "runs_per_s": 0.05, "rate_shape": 1.5,
    }  # fmt: skip
    return FleetConfig(**{**options, **changes})


# -- the population ---------------------------------------------------------------------------


def test_a_device_is_the_same_in_a_small_and_in_a_large_fleet() -> None:
    small, large = Population(fleet(50), 3), Population(fleet(500), 3)
    np.testing.assert_array_equal(small.rate, large.rate[:50])
    np.testing.assert_array_equal(small.kind, large.kind[:50])
    assert small.names == large.names[:50]
    assert len(set(large.names)) == 500


@pytest.mark.parametrize("rates", ["gamma", "lognormal"])
def test_rates_have_the_mean_and_spread_asked_for(rates: str) -> None:
    config = fleet(100_000, rates=rates, rate_shape=1.5 if rates == "gamma" else 0.8)
    rate = Population(config, 1).rate
    assert rate.mean() * config.mean_gap_s == pytest.approx(1, rel=0.02)
    expected = (
        stats.gamma(1.5, scale=1 / (1.5 * config.mean_gap_s))
        if rates == "gamma"
        else stats.lognorm(0.8, scale=np.exp(-np.log(config.mean_gap_s) - 0.32))
    )
    assert stats.kstest(rate, expected.cdf).pvalue > 1e-3


def test_gaps_with_off_times_follow_the_two_state_chain() -> None:
    """The closed form of the limit is the distribution of the simulated first request."""
    config = fleet(60_000, on_mean_s=300, off_mean_s=700, rate_shape=50)
    population = Population(config, 2)
    first = population.first()
    times = np.array([30.0, 100.0, 300.0, 900.0, 2_400.0])
    everyone = np.ones(config.devices, dtype=bool)
    limit = population.limit(everyone, np.zeros(config.devices), times)
    found = (first[:, None] < times).mean(axis=0)
    np.testing.assert_allclose(found, limit, atol=np.sqrt(np.log(2 / 0.001) / (2 * 60_000)))
    # Off times make it slower than a device that is always on at the same rate.
    assert (limit[1:4] < GammaRates(50, 50 * 240).coverage(times)[1:4] - 0.02).all()


# -- a full release -----------------------------------------------------------------------------


def test_a_full_release_follows_the_limit_inside_the_dkw_band() -> None:
    report = FleetSimulation(fleet(20_000), seed=5).run()
    assert report.state == "full"
    assert report.coverage_gap < report.dkw_band
    assert report.unknown_cohort == 0
    assert report.outside_received == 0
    closed = GammaRates(1.5, 1.5 * 240).coverage(report.times_s)
    assert np.abs(np.array(report.limit) - closed).max() < 2 * report.dkw_band
    half = report.time_to_s["50%"]
    assert half is not None
    assert half == pytest.approx(GammaRates(1.5, 360).time_to(0.5), rel=0.05)
    assert (np.array(report.installed) <= np.array(report.reached) + 1e-12).all()
    assert report.pulls == report.reached_devices
    assert report.requests == pytest.approx(20_000 * 2_400 / 240, rel=0.03)


def test_negative_control_a_cloud_that_answers_late_leaves_the_band(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half of the checks say "nothing to do": the gap must show it."""
    real = simulate.PlanTable.check
    calls = iter(range(10**9))

    def lazy(self: Any, header: Any, device: str) -> Any:
        found = real(self, header, device)
        return found if next(calls) % 2 else None

    monkeypatch.setattr(simulate.PlanTable, "check", lazy)
    report = FleetSimulation(fleet(20_000), seed=5).run()
    assert report.coverage_gap > 5 * report.dkw_band


def test_the_same_seed_gives_the_same_fleet_history() -> None:
    measured = ("check_us", "wall_s", "cpu_s", "peak_mib")

    def run(seed: int) -> dict[str, Any]:
        report = FleetSimulation(fleet(1_000), seed=seed).run(POLICY)
        fields = {**report.summary(), "reached": report.reached}
        return {name: value for name, value in fields.items() if name not in measured}

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_wrong_clocks_wait_and_slow_links_install_later() -> None:
    config = fleet(2_000, wrong_clock=0.2, bandwidths=((1.0, 1_000.0),), package_bytes=100_000)
    report = FleetSimulation(config, seed=1).run()
    assert report.waiting_for_clock > 0
    assert report.installed_devices < 0.85 * report.reached_devices
    reached, installed = np.array(report.reached), np.array(report.installed)
    early = np.array(report.times_s) < 100  # a download takes 100 s
    assert installed[early].max() == 0
    assert reached[early].max() > 0.1


def test_jitter_keeps_the_pulls_near_what_the_servers_take() -> None:
    """An eager fleet and a small limit: without jitter the first second would be a herd."""
    config = fleet(5_000, mean_gap_s=5, rate_shape=50, horizon_s=200, pull_limit_per_s=100)
    report = FleetSimulation(config, seed=1).run()
    herd = FleetSimulation(config.model_copy(update={"pull_limit_per_s": 1e9}), seed=1).run()
    assert report.peak_pulls_per_s < 1.6 * config.pull_limit_per_s
    assert herd.peak_pulls_per_s > 5 * config.pull_limit_per_s


# -- gray steps ------------------------------------------------------------------------------------


def test_a_healthy_release_goes_through_its_steps_to_full() -> None:
    report = FleetSimulation(fleet(failure_rate={"*": 0.005}), seed=2).run(POLICY, beta=2)
    to = [event["to"] for event in report.history]
    assert [state for i, state in enumerate(to) if i == 0 or state != to[i - 1]] == [
        "draft", "simulated", "beta", "gray", "full",
    ]  # fmt: skip
    assert [e["threshold"] for e in report.history if e["to"] == "gray"] == [500, 2_000, 5_000]
    assert report.coverage_gap < report.dkw_band
    times = [event["at_s"] for event in report.history if event["to"] in ("gray", "full")]
    assert min(np.diff(times)) >= POLICY.min_dwell_s


def test_a_failing_release_is_stopped_with_few_devices_harmed() -> None:
    config = fleet(failure_rate={"*": 0.0, "linux": 0.9})
    report = FleetSimulation(config, seed=2).run(POLICY)
    assert report.state == "rolled_back"
    assert report.harmed_devices < 0.05 * report.eligible
    assert report.installed_devices < 0.12 * report.eligible
    stop = next(event for event in report.history if event["to"] == "rolling_back")
    assert stop["guardrails"][0]["verdict"] == "worse"


def test_silent_crashes_are_seen_by_the_no_report_guardrail_alone() -> None:
    config = fleet(silent_rate=0.5)
    policy = POLICY.model_copy(
        update={"guardrails": (*POLICY.guardrails, Guardrail(name="silent", kind="no_report",
                                                             limit=0.05))}
    )  # fmt: skip
    report = FleetSimulation(config, seed=2).run(policy)
    assert report.state == "rolled_back"
    stop = next(event for event in report.history if event["to"] == "rolling_back")
    assert {g["guardrail"]: g["verdict"] for g in stop["guardrails"]}["silent"] == "worse"


def test_false_stops_of_harmless_releases_are_rare() -> None:
    """Eight releases at a fifth of the limit: none is stopped (alpha is 1 %)."""
    config = fleet(1_200, failure_rate={"*": 0.01}, horizon_s=1_200, mean_gap_s=60)
    states = {FleetSimulation(config, seed=seed).run(POLICY).state for seed in range(8)}
    assert not states & {"rolling_back", "rolled_back"}


_predicates = st.one_of(
    st.sampled_from(
        ["true", "false", "app.version >= 3", "device.os == 'linux'", "user.group == 'a'",
         "device.os in ['android', 'macos'] && app.version != 2", "device.class == 'low'",
         "device.nonsense == 1"]
    ),
    st.builds(
        "app.version {} {} || device.os == '{}'".format,
        st.sampled_from(["<", ">=", "=="]),
        st.integers(1, 5),
        st.sampled_from(["linux", "windows"]),
    ),
)  # fmt: skip


@given(predicate=_predicates, steps=st.booleans(), seed=st.integers(0, 50))
@settings(max_examples=10, deadline=None)
def test_no_device_outside_the_cohort_ever_receives(predicate: str, steps: bool, seed: int) -> None:
    config = fleet(300, predicate=predicate, horizon_s=900, mean_gap_s=60)
    report = FleetSimulation(config, seed=seed).run(POLICY if steps else None)
    compiled = Predicate(predicate)
    inside = []
    for attributes in combinations(config):
        try:
            inside.append(compiled(attributes))
        except InputError:
            inside.append(False)
    eligible = int(np.array(inside)[Population(config, seed).kind].sum())
    assert report.eligible == eligible
    assert report.outside_received == 0
    assert report.installed_devices <= eligible
    if not steps and eligible:
        assert report.installed_devices > 0.9 * eligible


# -- the report ---------------------------------------------------------------------------------


def test_a_report_is_saved_and_read_back(tmp_path: Path) -> None:
    report = FleetSimulation(fleet(500, horizon_s=300), seed=1).run()
    summary, curves = report.save(tmp_path / "out")
    assert json.loads(summary.read_text())["devices"] == 500
    assert curves.stat().st_size > 0
    assert FleetReport.load(tmp_path / "out") == report
    summary.write_text("{}")
    with pytest.raises(InputError, match="not a fleet report"):
        FleetReport.load(tmp_path / "out")
    curves.write_bytes(b"broken")
    with pytest.raises(InputError, match="not a fleet report"):
        FleetReport.load(tmp_path / "out")


@pytest.mark.parametrize(
    ("field", "value"),
    [("devices", 0), ("horizon_s", -1), ("rates", "guess"), ("silent_rate", 2), ("nonsense", 1)],
)
def test_impossible_fleets_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        FleetConfig.model_validate({field: value})


def test_a_predicate_that_does_not_compile_is_one_clear_line() -> None:
    with pytest.raises(InputError):
        FleetSimulation(fleet(10, predicate="app.version >=")).run()


@pytest.mark.slow
def test_a_hundred_thousand_devices_stay_within_two_percent_of_the_limit() -> None:
    report = FleetSimulation(FleetConfig(devices=100_000), seed=1).run()
    assert report.coverage_gap < 0.02
    assert report.outside_received == 0
