"""What devices tell about releases: one 0/1 outcome a device, guardrail and arm.

A device is counted once, at its n-th run or a fixed time after it was first
heard of with the version, whichever comes first. A failure is *not* counted
earlier than a success would be: if it were, early looks would see more failures
than there are, and the tests of :mod:`shoal.cloud.guardrails` would no longer
hold their error rates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from shoal.cloud import store as tables
from shoal.cloud.guardrails import ArmCount
from shoal.cloud.policy import Guardrail
from shoal.cloud.release_plans import ManagedRelease
from shoal.cloud.releases import ReleaseState
from shoal.cloud.store import Store
from shoal.wire.buckets import bucket
from shoal.wire.codes import ErrorCode
from shoal.wire.results import (
    InstallReport,
    InstallState,
    ResultBatch,
    ResultRecord,
    RunSummary,
)

__all__ = ["Observations"]

#: Refusals that speak of the device and not of the version.
_DEVICE_MATTERS: Final = frozenset(
    {
        ErrorCode.CLOCK_SKEW,
        ErrorCode.METADATA_EXPIRED,
        ErrorCode.INCOMPATIBLE,
        ErrorCode.DISK_FULL,
        ErrorCode.NOT_ENTITLED,
        ErrorCode.DOWNLOAD_FAILED,
    }
)
_ON_ITS_WAY: Final = frozenset(
    {InstallState.WANTED, InstallState.DOWNLOADING, InstallState.VERIFIED}
)
_RUNNING: Final = frozenset({InstallState.TRIAL, InstallState.GOOD})
_OBSERVED: Final = frozenset(
    {ReleaseState.BETA, ReleaseState.GRAY, ReleaseState.PAUSED, ReleaseState.FULL}
)


@dataclass(slots=True)
class _Told:
    """What one batch says about one version."""

    runs: list[RunSummary]
    installs: list[InstallReport]
    signals: list[ResultRecord]


def _run_failed(guardrail: Guardrail, run: RunSummary) -> bool:
    match guardrail.kind:
        case "failure":
            return run.outcome not in (ErrorCode.OK, ErrorCode.CANCELLED)
        case "latency":
            return max(run.latency_us, run.wall_us) > (guardrail.budget or 0) * 1e3
        case "memory":
            return run.peak_kb > (guardrail.budget or 0)
        case _:
            return False


def _install_failed(report: InstallReport) -> bool:
    return report.state == InstallState.BAD or (
        report.state == InstallState.REFUSED and report.code not in _DEVICE_MATTERS
    )


def _failures(guardrail: Guardrail, told: _Told, runs: Sequence[RunSummary]) -> int:
    failed = sum(_run_failed(guardrail, run) for run in runs)
    if guardrail.kind == "failure":
        failed += sum(_install_failed(report) for report in told.installs)
    elif guardrail.kind == "custom":
        name = guardrail.signal or guardrail.name
        failed += sum(record.name == name and _is_positive(record.value) for record in told.signals)
    return failed


def _is_positive(value: Any) -> bool:
    return value is True or (isinstance(value, (int, float)) and value > 0)


class Observations:
    """Counts the outcomes of the releases that are being watched.

    Parameters
    ----------
    store : Store
        Everything lives in its tables, so a restart forgets nothing.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        # Snapshots, swapped whole: readers on other threads need no lock.
        self._new: Mapping[tuple[str, int], tuple[ManagedRelease, ...]] = {}
        self._control: Mapping[tuple[str, int], tuple[ManagedRelease, ...]] = {}
        self._signals: frozenset[str] = frozenset()
        self._virtual: int | None = None
        self._sets: dict[int, frozenset[int]] = {}

    def watch(self, releases: Iterable[ManagedRelease], now_us: int, virtual: int | None) -> None:
        """Observe these releases from now on, and no others."""
        new: dict[tuple[str, int], tuple[ManagedRelease, ...]] = {}
        control: dict[tuple[str, int], tuple[ManagedRelease, ...]] = {}
        for m in releases:
            release = m.release
            if release.state not in _OBSERVED:
                continue
            over = now_us - m.step_us > m.policy.watch_full_s * 1e6
            if release.state is ReleaseState.FULL and over:
                continue
            key = (release.task, release.version)
            new[key] = (*new.get(key, ()), m)
            if m.policy.rule == "versus_control" and release.previous:
                key = (release.task, release.previous)
                control[key] = (*control.get(key, ()), m)
        self._virtual = virtual
        self._signals = frozenset(
            guardrail.signal or guardrail.name
            for group in new.values()
            for m in group
            for guardrail in m.policy.guardrails
            if guardrail.kind == "custom"
        )
        self._new, self._control = new, control

    def on_results(self, device: bytes, batch: ResultBatch, now_us: int) -> None:
        """Count what a batch of a device says about watched releases.

        Called inside the write transaction that makes the batch durable, it
        joins that transaction, and no outcome is lost or counted twice.
        """
        told = self._told(batch)
        if not told:
            return
        with self._store.begin() as connection:
            cohorts = self._cohorts(connection, device)
            if cohorts is None or self._virtual in cohorts:
                return
            hexed = device.hex()
            for key, news in told.items():
                for m in self._new.get(key, ()):
                    if m.release.cohort not in cohorts:
                        self._store.count_dropped("releases", "outside_cohort")
                        continue
                    beta = hexed in m.policy.beta_devices
                    self._note_installed(connection, m, device, news, now_us)
                    arm = "beta" if beta else "new"
                    self._fold(connection, m, device, news, arm=arm, now_us=now_us)
                for m in self._control.get(key, ()):
                    if (
                        news.runs
                        and m.release.cohort in cohorts
                        and hexed not in m.policy.beta_devices
                        and bucket(m.salt, hexed) >= m.release.threshold
                    ):
                        self._fold(connection, m, device, news, arm="control", now_us=now_us)

    def on_pull(self, device: bytes, task: str, version: int, now_us: int) -> None:
        """Note that a device fetches a version; if it then stays silent, that counts.

        The gateway calls it with the device's token at hand, for guardrails of
        kind ``"no_report"``.
        """
        releases = self._new.get((task, version), ())
        if not any(g.kind == "no_report" for m in releases for g in m.policy.guardrails):
            return
        report = InstallReport(task, version, InstallState.DOWNLOADING, 0, now_us)
        batch = ResultBatch(schema=1, device=device, seq=0, installs=[report])
        self.on_results(device, batch, now_us)

    def _told(self, batch: ResultBatch) -> dict[tuple[str, int], _Told]:
        told: dict[tuple[str, int], _Told] = {}

        def about(task: str, version: int) -> _Told | None:
            key = (task, version)
            if key not in self._new and key not in self._control:
                return None
            return told.setdefault(key, _Told([], [], []))

        for run in batch.runs:
            if news := about(run.task, run.version):
                news.runs.append(run)
        for report in batch.installs:
            if news := about(report.task, report.version):
                news.installs.append(report)
        for record in batch.results:
            if record.name in self._signals and (news := about(record.task, record.version)):
                news.signals.append(record)
        return told

    def _cohorts(self, connection: sa.Connection, device: bytes) -> frozenset[int] | None:
        row = connection.execute(
            sa.select(tables.device.c.cohort_set, tables.device.c.revoked_us).where(
                tables.device.c.id == device
            )
        ).one_or_none()
        if row is None or row.cohort_set is None or row.revoked_us is not None:
            self._store.count_dropped("releases", "unknown_device")
            return None
        if row.cohort_set not in self._sets:
            self._sets = {
                found.id: frozenset(found.cohorts)
                for found in connection.execute(
                    sa.select(tables.cohort_set.c.id, tables.cohort_set.c.cohorts)
                )
            }
        return self._sets.get(row.cohort_set, frozenset())

    def _note_installed(
        self,
        connection: sa.Connection,
        m: ManagedRelease,
        device: bytes,
        news: _Told,
        now_us: int,
    ) -> None:
        if news.runs or any(report.state in _RUNNING for report in news.installs):
            connection.execute(
                self._store.insert_ignore(tables.sticky),
                {"release": m.release.id, "device": device, "seen_us": now_us},
            )

    def _fold(
        self,
        connection: sa.Connection,
        m: ManagedRelease,
        device: bytes,
        news: _Told,
        *,
        arm: str,
        now_us: int,
    ) -> None:
        """Add a batch to the rows of one device and arm, and count what is decided."""
        heard = bool(news.runs) or any(r.state not in _ON_ITS_WAY for r in news.installs)
        lives = bool(news.runs or news.signals) or any(
            r.state in _RUNNING or _install_failed(r) for r in news.installs
        )
        table = tables.outcome
        mine = sa.and_(
            table.c.release == m.release.id, table.c.device == device, table.c.arm == arm
        )
        rows = {row.guardrail: row for row in connection.execute(sa.select(table).where(mine))}
        decided: dict[str, ArmCount] = {}
        wanted = m.policy.runs_per_outcome
        for guardrail in m.policy.guardrails:
            silent_kind = guardrail.kind == "no_report"
            if silent_kind and arm == "control":
                continue
            row = rows.get(guardrail.name)
            if (row is not None and row.decided_us is not None) or (
                row is None and not silent_kind and not lives
            ):
                continue
            runs, failed = (row.runs, row.failed) if row is not None else (0, 0)
            if silent_kind:
                runs = max(runs, int(heard))
                done = runs > 0
            else:
                fresh = news.runs[: wanted - runs]
                runs += len(fresh)
                failed += _failures(guardrail, news, fresh)
                done = runs >= wanted
            values = {
                "runs": runs,
                "failed": failed,
                "decided_us": now_us if done else None,
            }
            if row is None:
                connection.execute(
                    sa.insert(table).values(
                        release=m.release.id,
                        device=device,
                        guardrail=guardrail.name,
                        arm=arm,
                        since_us=now_us,
                        **values,
                    )
                )
            else:
                connection.execute(
                    sa.update(table)
                    .where(mine, table.c.guardrail == guardrail.name)
                    .values(**values)
                )
            if done:
                decided[guardrail.name] = ArmCount(1, int(failed > 0))
        if decided:
            self.add_counts(connection, m.release.id, arm, decided, now_us)

    def close_due(self, connection: sa.Connection, m: ManagedRelease, now_us: int) -> None:
        """Count the devices whose time of observation is over."""
        table = tables.outcome
        cut = now_us - int(m.policy.outcome_after_s * 1e6)
        due = sa.and_(
            table.c.release == m.release.id,
            table.c.decided_us.is_(None),
            table.c.since_us <= cut,
            table.c.arm != "beta",  # named devices are judged by their runs alone
        )
        silent = {g.name for g in m.policy.guardrails if g.kind == "no_report"}
        failed = sa.case(
            (table.c.guardrail.in_(silent), sa.case((table.c.runs == 0, 1), else_=0)),
            else_=sa.case((table.c.failed > 0, 1), else_=0),
        )
        query = (
            sa.select(table.c.arm, table.c.guardrail, sa.func.count(), sa.func.sum(failed))
            .where(due)
            .group_by(table.c.arm, table.c.guardrail)
        )
        counts: dict[str, dict[str, ArmCount]] = defaultdict(dict)
        for arm, guardrail, devices, failures in connection.execute(query).all():
            counts[arm][guardrail] = ArmCount(devices, int(failures))
        if not counts:
            return
        connection.execute(sa.update(table).where(due).values(decided_us=now_us))
        for arm, decided in counts.items():
            self.add_counts(connection, m.release.id, arm, decided, now_us)

    def add_counts(
        self,
        connection: sa.Connection,
        release: int,
        arm: str,
        decided: Mapping[str, ArmCount],
        now_us: int,
    ) -> None:
        """Add decided devices to an arm's totals."""
        table = tables.arm_count
        for guardrail, count in decided.items():
            row = {
                "release": release,
                "guardrail": guardrail,
                "arm": arm,
                "devices": 0,
                "failures": 0,
                "updated_us": now_us,
            }
            connection.execute(self._store.insert_ignore(table), row)
            connection.execute(
                sa.update(table)
                .where(
                    table.c.release == release,
                    table.c.guardrail == guardrail,
                    table.c.arm == arm,
                )
                .values(
                    devices=table.c.devices + count.devices,
                    failures=table.c.failures + count.failures,
                    updated_us=now_us,
                )
            )

    def counts(self, connection: sa.Connection, release: int) -> dict[tuple[str, str], ArmCount]:
        """Return the totals of a release by (guardrail, arm)."""
        table = tables.arm_count
        rows = connection.execute(sa.select(table).where(table.c.release == release))
        return {(r.guardrail, r.arm): ArmCount(r.devices, r.failures) for r in rows}

    def beta(self, connection: sa.Connection, m: ManagedRelease) -> tuple[list[str], list[str]]:
        """Return the named devices that have passed, and those that have failed."""
        table = tables.outcome
        silent = {g.name for g in m.policy.guardrails if g.kind == "no_report"}
        passed: dict[str, bool] = {}
        failed: set[str] = set()
        rows = connection.execute(
            sa.select(table).where(table.c.release == m.release.id, table.c.arm == "beta")
        )
        for row in rows:
            device = row.device.hex()
            if row.failed > 0:
                failed.add(device)
            done = row.decided_us is not None
            if row.guardrail not in silent or len(silent) == len(m.policy.guardrails):
                passed[device] = passed.get(device, True) and done
        good = {device for device, done in passed.items() if done} - failed
        named = m.policy.beta_devices
        return [d for d in named if d in good], [d for d in named if d in failed]
