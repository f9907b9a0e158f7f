"""What a person is told about a release: where it stands, and what it waits for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shoal.cloud.guardrails import Verdict
from shoal.cloud.release_plans import ManagedRelease
from shoal.cloud.releases import Release, ReleaseState
from shoal.wire.simulation import SimulationReport

__all__ = ["describe", "simulation_problem"]


def describe(
    m: ManagedRelease,
    evidence: Mapping[str, Any],
    *,
    eligible: int,
    exposed: Sequence[int],
    missing_beta: Sequence[str],
    in_the_way: Release | None,
    now_us: int,
) -> dict[str, Any]:
    """Put a release's standing into one JSON-able dictionary; see ``ReleaseController.status``."""
    waiting = None
    state = m.release.state
    if state is ReleaseState.DRAFT:
        waiting = "a passed simulation test"
    elif state is ReleaseState.SIMULATED and not m.release.started:
        waiting = "an operator to start it"
    elif state is ReleaseState.SIMULATED and missing_beta:
        waiting = f"beta device {missing_beta[0]} to enrol in the cohort"
    elif state is ReleaseState.SIMULATED and in_the_way:
        waiting = f"release {in_the_way.id} (version {in_the_way.version}, {in_the_way.state})"
    elif state is ReleaseState.BETA:
        waiting = "every beta device to run without failure"
    elif state is ReleaseState.GRAY:
        waiting = (
            "the minimum stay"
            if evidence["verdict"] == Verdict.SAFE
            else "a verdict of every guardrail"
        )
    elif state is ReleaseState.PAUSED:
        waiting = "an operator to resume it"
    return {
        "id": m.release.id,
        "task": m.release.task,
        "version": m.release.version,
        "cohort": m.release.cohort,
        "state": str(state),
        "step": m.release.step,
        "steps": [*m.policy.steps],
        "threshold": m.release.threshold,
        "epoch": m.release.epoch,
        "previous": m.release.previous,
        "lock_version": m.lock_version,
        "dwell_s": (now_us - m.step_us) / 1e6,
        "eligible": eligible,
        "exposed": list(exposed),
        **evidence,
        "waiting_for": waiting,
        "warnings": m.policy.feasibility(eligible, exposed=exposed if m.salt else None),
    }


def simulation_problem(report: SimulationReport, limits: Mapping[str, Any]) -> str | None:
    """Return why a simulation test failed; ``None`` if it passed.

    Parameters
    ----------
    report : SimulationReport
    limits : mapping
        The limits that the task's own manifest states.
    """
    if report.failures:
        return report.message or f"{report.failures} of {report.n_runs} runs failed"
    if report.n_traces < 1 or report.n_runs < 1:
        return "no trace was replayed, or none caused a run"
    deadline_ms = limits.get("deadline_ms")
    if deadline_ms and report.max_wall_us > deadline_ms * 1000:
        return f"a run took {report.max_wall_us / 1000:.0f} ms, the limit is {deadline_ms} ms"
    memory_mb = limits.get("memory_mb")
    if memory_mb and report.max_peak_kb > memory_mb * 1024:
        return f"a run took {report.max_peak_kb} KB, the limit is {memory_mb} MB"
    return None
