"""Coverage part: how near a release to a simulated fleet comes to the limit.

One full release to a fleet whose devices talk to the cloud at Gamma-distributed
rates. The limit is ``1 - mean(exp(-rate t))``: no platform that waits for ordinary
requests can be faster (Walle sheet A.6, A.11). Beside it, on the same fleet and in the same
run, the peers' ways of reaching devices: polling at a fixed interval from a
random phase (device management servers such as hawkBit), at the same mean number
of requests per device.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

#: Fleet of the quick run; the full run has a million devices.
QUICK_DEVICES = 100_000
FULL_DEVICES = 1_000_000


def run(quick: bool, seed: int, *, save: Path | None = None) -> dict[str, Any]:
    """Measure the part.

    Parameters
    ----------
    quick : bool
        100,000 devices instead of a million.
    seed : int
        Seed of the fleet.
    save : Path, optional
        Folder for the reports (JSON and Parquet).

    Returns
    -------
    dict
        ``coverage_gap`` = largest |coverage(t) - limit(t)| over time (bar 0.02),
        and beside it the size of the fleet, times to reach it, costs, and a
        second release in gray steps that is rolled back.
    """
    from shoal.cloud.policy import Guardrail, ReleasePolicy
    from shoal.cloud.simulate import FleetConfig, FleetSimulation

    devices = QUICK_DEVICES if quick else FULL_DEVICES
    config = FleetConfig(devices=devices)
    full = FleetSimulation(config, seed).run()
    # Fixed-interval polling with as many requests: reached at a uniform phase.
    times = np.asarray(full.times_s)
    polled = np.clip(times / config.mean_gap_s, 0, 1)
    policy = ReleasePolicy(
        steps=(100, 500, 2_000, 5_000, 10_000),
        min_dwell_s=300,
        outcome_after_s=300,
        guardrails=(Guardrail(name="failure", limit=0.01),),
    )
    changes = {"failure_rate": {"*": 0.05}, "horizon_s": 1_800.0 if quick else 7_200.0}
    faulty = config.model_copy(update=changes)
    steps = FleetSimulation(faulty, seed).run(policy)
    if save is not None:
        full.save(save / "full")
        steps.save(save / "steps")
    at = {
        state: next((e["at_s"] for e in steps.history if e["to"] == state), None)
        for state in ("gray", "rolling_back", "full")
    }
    return {
        "coverage_gap": full.coverage_gap,
        "coverage_dkw_band": full.dkw_band,
        "coverage_devices": devices,
        "coverage_time_to_s": full.time_to_s,
        "coverage_requests": full.requests,
        "coverage_check_us": full.check_us,
        "coverage_wall_s": full.wall_s,
        "coverage_peak_mib": full.peak_mib,
        "coverage_outside_received": full.outside_received + steps.outside_received,
        "coverage_at_half_time_polling": float(np.interp(config.mean_gap_s / 2, times, polled)),
        "coverage_at_half_time_ours": float(
            np.interp(config.mean_gap_s / 2, times, np.asarray(full.reached))
        ),
        "faulty_state": steps.state,
        "faulty_gray_s": at["gray"],
        "faulty_stopped_s": at["rolling_back"],
        "faulty_installed": steps.installed_devices,
        "faulty_harmed": steps.harmed_devices,
        "faulty_wall_s": steps.wall_s,
    }


def main() -> None:
    """Run this part alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    print(json.dumps(run(options.quick, options.seed, save=options.save)))


if __name__ == "__main__":
    main()
