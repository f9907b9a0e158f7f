"""What a simulated release came to; kept as JSON, with the curves as Parquet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from shoal.core.errors import InputError
from shoal.core.files import atomic_writer, write_text

__all__ = ["FleetReport"]

_CURVES = ("times_s", "reached", "installed", "limit")


class FleetReport(msgspec.Struct, frozen=True, kw_only=True):
    """Result of :class:`~shoal.cloud.simulate.FleetSimulation`.

    Attributes
    ----------
    config, seed : dict, int
        What was simulated.
    devices, eligible : int
        Devices in the fleet, and in the release's cohort.
    state, history : str, list of dict
        Where the release ended, and its transitions by simulated time.
    times_s, reached, installed, limit : list of float
        Seconds since the release began; shares of the eligible devices that had
        the notice, held the version, and could have had the notice at best.
    coverage_gap : float
        Largest distance between ``reached`` and ``limit`` (until a rollback).
    dkw_band : float
        The distance that chance alone stays below with probability 99 %.
    time_to_s : dict
        Seconds until 50, 95 and 99 % were reached; ``None``: not in time.
    harmed_devices : int
        Devices that installed the version and on which it fails.
    first_bad_to_reverted_s : float or None
        From the first such installation until 99 % of the devices that had the
        version were back.
    outside_received : int
        Notices of the new version to devices outside the cohort: must be 0.
    unknown_cohort, waiting_for_clock, predicate_errors : int
        Checks without a plan; notices that a device with a wrong clock put off;
        attributes on which the predicate failed.
    requests, notices, pulls, peak_pulls_per_s, bytes_pulled, plan_rebuilds : int
        Work of the cloud.
    check_us : float
        CPU time per check of the plan table, microseconds.
    wall_s, cpu_s, peak_mib : float
        Cost of the simulation; the peak is that of the whole process.
    """

    schema: int = 1
    config: dict[str, Any]
    seed: int
    devices: int
    eligible: int
    state: str
    history: list[dict[str, Any]]
    times_s: list[float]
    reached: list[float]
    installed: list[float]
    limit: list[float]
    coverage_gap: float
    dkw_band: float
    time_to_s: dict[str, float | None]
    reached_devices: int
    installed_devices: int
    harmed_devices: int
    first_bad_to_reverted_s: float | None
    outside_received: int
    unknown_cohort: int
    waiting_for_clock: int
    predicate_errors: int
    requests: int
    notices: int
    pulls: int
    peak_pulls_per_s: int
    bytes_pulled: int
    plan_rebuilds: int
    check_us: float
    wall_s: float
    cpu_s: float
    peak_mib: float

    def summary(self) -> dict[str, Any]:
        """Return everything but the curves (JSON-able)."""
        return {
            name: value for name, value in msgspec.to_builtins(self).items() if name not in _CURVES
        }

    def save(self, folder: str | Path) -> tuple[Path, Path]:
        """Write ``fleet.json`` and ``coverage.parquet`` into ``folder``; return both paths."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        table = pa.table({name: pa.array(getattr(self, name), pa.float64()) for name in _CURVES})
        curves = target / "coverage.parquet"
        with atomic_writer(curves) as stream:
            pq.write_table(table, stream)
        summary = target / "fleet.json"
        write_text(summary, json.dumps(self.summary(), indent=2, sort_keys=True) + "\n")
        return summary, curves

    @classmethod
    def load(cls, folder: str | Path) -> FleetReport:
        """Read what :meth:`save` wrote.

        Raises
        ------
        InputError
            A file is missing or is not such a report.
        """
        source = Path(folder)
        try:
            fields = json.loads((source / "fleet.json").read_text())
            table = pq.read_table(source / "coverage.parquet")
            fields |= {name: table.column(name).to_pylist() for name in _CURVES}
            return msgspec.convert(fields, cls)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise InputError(f"not a fleet report: {error}", source=str(source)) from error
