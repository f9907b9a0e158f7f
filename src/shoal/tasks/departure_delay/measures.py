"""What the demo came to: coverage, rollback, runs, bytes, and predictions against offline ones."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import polars as pl
import sqlalchemy as sa

from shoal.cloud import reports
from shoal.cloud.service import Cloud
from shoal.cloud.store import device, feature, holding, result, sticky
from shoal.tasks.departure_delay.features import (
    LEG_COLUMNS,
    SCHEDULE_COLUMNS,
    STREAM_COLUMNS,
    matrix,
)
from shoal.tasks.departure_delay.fleet import AircraftSpec
from shoal.tasks.departure_delay.training import TrainedModels, auc
from shoal.wire.results import FeatureRecord, ResultRecord

__all__ = ["DemoReport", "Measures"]

_TASK = "departure_delay"


class DemoReport(msgspec.Struct, kw_only=True):
    """What happened; times in seconds, ``checks`` says what had to hold."""

    aircraft: int = 0
    eligible: int = 0
    time_to_50: float | None = None
    time_to_95: float | None = None
    time_to_100: float | None = None
    runs: int = 0
    failed_runs_good_version: int = 0
    failed_runs_broken_version: int = 0
    broken_devices: int = 0
    rollback_decided_s: float | None = None
    rollback_done_s: float | None = None
    latency_p50_ms: float = 0.0
    latency_p99_ms: float = 0.0
    events: int = 0
    raw_bytes: int = 0
    feature_bytes: int = 0
    predictions: int = 0
    held_out: int = 0
    auc_schedule: float = 0.0
    auc_stream: float = 0.0
    auc_offline_schedule: float = 0.0
    auc_offline_stream: float = 0.0
    largest_difference: float = 0.0
    seconds: float = 0.0
    checks: dict[str, bool] = msgspec.field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether everything that had to hold did."""
        return bool(self.checks) and all(self.checks.values())


class Measures:
    """Fills a report from what the cloud knows.

    Parameters
    ----------
    cloud : Cloud
        Where everything came together.
    report : DemoReport
        To be filled.
    train_before : int
        First week that the models have not seen.
    until_us : int
        End of the replay, microseconds since 1970 (UTC).
    """

    def __init__(
        self, cloud: Cloud, report: DemoReport, *, train_before: int, until_us: int
    ) -> None:
        self._cloud = cloud
        self.report = report
        self._train_before = train_before
        self._until_us = until_us

    def coverage(self, release: int) -> None:
        """Take how fast a release reached its devices."""
        found = reports.coverage(self._cloud.store, release)
        self.report.eligible = found.eligible
        self.report.time_to_50 = found.time_to(0.5)
        self.report.time_to_95 = found.time_to(0.95)
        self.report.time_to_100 = found.time_to(1.0)

    def rollback(self, release: int) -> None:
        """Take how many devices a bad release reached and when it was taken back."""
        cloud = self._cloud
        history = reports.release_history(cloud.store, release)
        with cloud.store.read() as connection:
            self.report.broken_devices = connection.execute(
                sa.select(sa.func.count()).select_from(sticky).where(sticky.c.release == release)
            ).scalar_one()
        times = {row["to_state"]: row["at_us"] for row in reversed(history)}
        if "gray" in times and "rolling_back" in times:
            self.report.rollback_decided_s = (times["rolling_back"] - times["gray"]) / 1e6
        if "gray" in times and "rolled_back" in times:
            self.report.rollback_done_s = (times["rolled_back"] - times["gray"]) / 1e6

    def runs(self) -> None:
        """Take runs, failures, times and bytes."""
        store = self._cloud.store
        good, broken = (reports.task_health(store, _TASK, version) for version in (1, 2))
        report = self.report
        report.runs = good.runs + broken.runs
        report.failed_runs_good_version = good.failures
        report.failed_runs_broken_version = broken.failures
        report.latency_p50_ms = good.wall_p50_us / 1000
        report.latency_p99_ms = good.wall_p99_us / 1000
        report.feature_bytes = self._sent_bytes()

    def _sent_bytes(self) -> int:
        """Return the size of the records that came up, as they are encoded on the wire."""
        encode = msgspec.msgpack.encode
        with self._cloud.store.read() as connection:
            results = connection.execute(sa.select(result).where(result.c.task == _TASK)).all()
            features = connection.execute(sa.select(feature).where(feature.c.task == _TASK)).all()
        sent = sum(
            len(encode(ResultRecord(r.id, r.task, r.version, r.name, r.ts_us, r.value)))
            for r in results
        )
        return sent + sum(
            len(
                encode(
                    FeatureRecord(
                        f.task, f.version, f.name, f.key, f.ts_us, f.revision, f.dtype, f.value
                    )
                )
            )
            for f in features
        )

    def predictions(
        self, features: pl.DataFrame, models: TrainedModels, specs: list[AircraftSpec]
    ) -> None:
        """Compare what came back with the offline computation over the same departures."""
        store = self._cloud.store
        with store.read() as connection:
            names = {
                row.id: row.attributes.get("device", {}).get("name", "")
                for row in connection.execute(sa.select(device.c.id, device.c.attributes))
            }
            rows = [
                (names[row.device], row.value["departure"], row.value["p"], row.value["p_schedule"])
                for row in connection.execute(
                    sa.select(result.c.device, result.c.value).where(
                        result.c.task == _TASK, result.c.version == 1
                    )
                )
            ]
        schema = {
            "tailnum": pl.String,
            "departure": pl.String,
            "p": pl.Float64,
            "p_schedule": pl.Float64,
        }
        sent = pl.DataFrame(rows, schema=schema, orient="row")
        report = self.report
        report.predictions = sent.height
        report.checks["no prediction twice"] = (
            sent.n_unique(["tailnum", "departure"]) == sent.height
        )
        eligible = [spec.tailnum for spec in specs if spec.attributes["app"]["major"] >= 2]
        fleet = features.filter(
            pl.col("tailnum").is_in(eligible)
            & (pl.col("scheduled").dt.timestamp("us") <= self._until_us)
        )
        offline = fleet.with_columns(
            offline_p=pl.Series(_predict(models.stream, matrix(fleet, STREAM_COLUMNS))),
            offline_schedule=pl.Series(_predict(models.schedule, matrix(fleet, SCHEDULE_COLUMNS))),
        )
        both = offline.join(sent, on=["tailnum", "departure"], how="inner")
        report.checks["every departure predicted"] = both.height == fleet.height == sent.height
        gaps = both.select(
            (pl.col("p") - pl.col("offline_p")).abs().max().alias("stream"),
            (pl.col("p_schedule") - pl.col("offline_schedule")).abs().max().alias("schedule"),
        ).row(0)
        report.largest_difference = float(max(gap or 0.0 for gap in gaps))
        held_out = both.filter(
            (pl.col("week") >= self._train_before) & pl.col("late").is_not_null()
        )
        labels = held_out["late"].to_numpy()
        report.held_out = held_out.height
        report.auc_stream = auc(labels, held_out["p"].to_numpy())
        report.auc_schedule = auc(labels, held_out["p_schedule"].to_numpy())
        report.auc_offline_stream = auc(labels, held_out["offline_p"].to_numpy())
        report.auc_offline_schedule = auc(labels, held_out["offline_schedule"].to_numpy())
        report.checks["leg features equal the offline ones"] = self._legs_agree(offline, names)

    def _legs_agree(self, offline: pl.DataFrame, names: dict[bytes, str]) -> bool:
        """Compare the features that came up with the offline ones, bit for bit."""
        rows = offline.select("tailnum", "departure", *LEG_COLUMNS).rows()
        expected = {row[:2]: struct.pack("<4f", *row[2:]) for row in rows}
        with self._cloud.store.read() as connection:
            sent = connection.execute(
                sa.select(feature.c.device, feature.c.key, feature.c.value).where(
                    feature.c.task == _TASK, feature.c.version == 1
                )
            ).all()
        wrong = sum(expected.get((names[row.device], row.key)) != row.value for row in sent)
        return bool(sent) and wrong == 0

    def check(self, good: int, broken: int, specs: list[AircraftSpec]) -> None:
        """Write down what had to hold and whether it did."""
        report, store = self.report, self._cloud.store
        with store.read() as connection:
            outside = connection.execute(
                sa.select(device.c.attributes)
                .join(holding, holding.c.device == device.c.id)
                .where(holding.c.task == _TASK, device.c.profile.is_not(None))
            ).all()
            outside_names = {
                row.attributes["device"]["name"]
                for row in outside
                if row.attributes.get("app", {}).get("major", 9) < 2
            }
        report.checks["version 1 is in full release"] = self._state(good) in ("full", "superseded")
        report.checks["version 2 was rolled back"] = self._state(broken) == "rolled_back"
        report.checks["nobody outside the cohort received it"] = not outside_names
        report.checks["no failed run of version 1"] = report.failed_runs_good_version == 0
        report.checks["predictions equal the offline ones"] = report.largest_difference < 1e-6
        same = abs(report.auc_stream - report.auc_offline_stream) < 1e-9
        report.checks["AUC equals the offline one"] = same
        report.checks["the stream features help"] = report.auc_stream > report.auc_schedule
        eligible = sum(spec.attributes["app"]["major"] >= 2 for spec in specs)
        report.checks["every eligible device was reached"] = report.eligible == eligible

    def _state(self, release: int) -> str:
        return str(self._cloud.releases.status(release)["state"])


def _predict(model: bytes, rows: np.ndarray[Any, np.dtype[np.float32]]) -> list[float]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    values = session.run(None, {"x": rows})[0][:, 0]
    return [float(value) for value in values]
