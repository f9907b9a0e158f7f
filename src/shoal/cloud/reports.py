"""What operators look at: coverage of a release, health of a task, flow of events.

Every function reads one state of the store and returns plain frozen structs;
the console, the command line and the admin interface show the same numbers.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from shoal.cloud.store import (
    Store,
    dead_letter,
    device,
    dropped,
    feature,
    holding,
    release,
    release_event,
    result,
    run_summary,
    sticky,
)
from shoal.cloud.store import cohort as cohort_table
from shoal.cloud.store import cohort_set as cohort_set_table
from shoal.core.errors import NotFoundError
from shoal.wire.codes import ErrorCode
from shoal.wire.results import InstallState

__all__ = [
    "Coverage",
    "EventFlow",
    "FleetSummary",
    "TaskHealth",
    "cohort_names",
    "coverage",
    "event_flow",
    "fleet_summary",
    "outcome_name",
    "quantile",
    "release_history",
    "task_health",
]

_HELD = (InstallState.TRIAL, InstallState.GOOD)
#: Attributes by which the fleet is counted.
_GROUPS = (("app", "version"), ("device", "os"), ("device", "class"))


class Coverage(msgspec.Struct, frozen=True, kw_only=True):
    """How far a release has come.

    Attributes
    ----------
    eligible : int
        Devices in the release's cohort now, revoked ones left out.
    reachable : int
        Those of them that spoke to the cloud since the release began, as far as
        is written down: at least those that have installed it.
    holding : int
        Devices that report the version as installed now.
    ever : int
        Devices that reported it at any time.
    refused : int
        Devices that refused it or found it bad.
    points : list of (seconds, share)
        Seconds since the release began and the share of the reachable devices
        that had installed the version by then.
    allowed : list of (seconds, share)
        The share of buckets let in, from each change of the step on.
    elapsed_s : float
        From the start to now, or to the close.
    """

    eligible: int
    reachable: int
    holding: int
    ever: int
    refused: int
    points: list[tuple[float, float]]
    allowed: list[tuple[float, float]]
    elapsed_s: float

    def time_to(self, share: float) -> float | None:
        """Return the seconds until ``share`` of the reachable devices held it, or ``None``."""
        return next((at for at, reached in self.points if reached >= share - 1e-12), None)


class TaskHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Runs and results of one version of a task; times in microseconds.

    Runs, failures, results, features and outcomes count everything; ``devices``
    speaks of the newest runs of each outcome and the quantiles of the newest good
    runs, as many as were asked for.
    """

    task: str
    version: int
    runs: int
    failures: int
    devices: int
    results: int
    features: int
    wall_p50_us: int
    wall_p99_us: int
    latency_p50_us: int
    latency_p99_us: int
    outcomes: dict[str, int]


class EventFlow(msgspec.Struct, frozen=True, kw_only=True):
    """What came in per bucket of time, oldest first.

    ``results``, ``features`` and ``runs`` count rows by the time at which the
    cloud received them: bucket ``k`` holds those after ``start_us + k * width``
    up to and including ``start_us + (k + 1) * width``.
    """

    bucket_s: float
    start_us: int
    results: list[int]
    features: list[int]
    runs: list[int]
    dead_letters: int
    dropped: dict[str, int]


class FleetSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The fleet in numbers; ``groups`` counts devices by attribute, then by its value."""

    devices: int
    seen_recently: int
    revoked: int
    groups: dict[str, dict[str, int]]


def outcome_name(code: int) -> str:
    """Return the lower-case name of an outcome, or the number if it is not known here."""
    try:
        return ErrorCode(code).name.lower()
    except ValueError:
        return str(code)


def quantile(values: Sequence[int], share: float) -> int:
    """Return the ``share`` quantile by rank: the value below which ``share`` of them lie.

    Parameters
    ----------
    values : sequence of int
        Sorted.
    share : float
        0 to 1.

    Returns
    -------
    int
        ``values[floor(share * n)]``, the last one at most; 0 if there are none.
    """
    if not values:
        return 0
    return values[min(int(share * len(values)), len(values) - 1)]


def _pairs(rows: Iterable[Any]) -> dict[Any, Any]:
    return {row[0]: row[1] for row in rows}


def _cohort_sets(connection: sa.Connection, cohort_id: int) -> list[int]:
    """Return the cohort sets that contain a cohort."""
    rows = connection.execute(sa.select(cohort_set_table.c.id, cohort_set_table.c.cohorts))
    return [row.id for row in rows if cohort_id in row.cohorts]


def _number(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    """Return the number of rows for which a condition holds; 0 if there are no rows."""
    return sa.func.coalesce(sa.func.sum(sa.case((condition, 1), else_=0)), 0)


def coverage(store: Store, release_id: int, *, now_us: int | None = None) -> Coverage:
    """Measure how far a release has come.

    Parameters
    ----------
    store : Store
        The database.
    release_id : int
        The release.
    now_us : int, optional
        The time to speak of; the clock if absent.

    Raises
    ------
    NotFoundError
        There is no such release.
    """
    now = time.time_ns() // 1000 if now_us is None else now_us
    with store.read() as connection:
        row = connection.execute(sa.select(release).where(release.c.id == release_id)).first()
        if row is None:
            raise NotFoundError(f"no release {release_id}")
        start = row.started_us or row.created_us
        end = max(row.closed_us or now, start)
        member = device.c.cohort_set.in_(_cohort_sets(connection, row.cohort))
        active = sa.and_(member, device.c.revoked_us.is_(None))
        eligible, reachable = connection.execute(
            sa.select(sa.func.count(), _number(device.c.last_seen_us >= start))
            .select_from(device)
            .where(active)
        ).one()
        version = sa.and_(holding.c.task == row.task, holding.c.version == row.version)
        states: dict[str, int] = _pairs(
            connection.execute(
                sa.select(holding.c.state, sa.func.count())
                .join(device, device.c.id == holding.c.device)
                .where(version, active)
                .group_by(holding.c.state)
            )
        )
        seen = (
            connection.execute(
                sa.select(sticky.c.seen_us)
                .join(device, device.c.id == sticky.c.device)
                .where(sticky.c.release == release_id, active)
                .order_by(sticky.c.seen_us)
            )
            .scalars()
            .all()
        )
        steps = connection.execute(
            sa.select(release_event.c.at_us, release_event.c.to_state, release_event.c.evidence)
            .where(release_event.c.release == release_id)
            .order_by(release_event.c.id)
        ).all()
    reachable = max(reachable, len(seen))
    allowed = [
        ((step.at_us - start) / 1e6, step.evidence["threshold"] / 10_000)
        for step in steps
        if isinstance(step.evidence, dict) and "threshold" in step.evidence
    ]
    return Coverage(
        eligible=eligible,
        reachable=reachable,
        holding=sum(states.get(state, 0) for state in _HELD),
        ever=len(seen),
        refused=states.get(InstallState.REFUSED, 0) + states.get(InstallState.BAD, 0),
        points=[
            (max(at - start, 0) / 1e6, (place + 1) / reachable) for place, at in enumerate(seen)
        ],
        allowed=allowed,
        elapsed_s=(end - start) / 1e6,
    )


def release_history(store: Store, release_id: int) -> list[dict[str, Any]]:
    """Return the append-only history of a release, oldest first."""
    with store.read() as connection:
        return [
            dict(row._mapping)
            for row in connection.execute(
                sa.select(release_event)
                .where(release_event.c.release == release_id)
                .order_by(release_event.c.id)
            )
        ]


def task_health(store: Store, task: str, version: int, *, sample: int = 5_000) -> TaskHealth:
    """Summarise the runs and results of one version.

    Parameters
    ----------
    store : Store
        The database.
    task, version : str, int
        Whose runs.
    sample : int
        How many of the newest good runs the times are taken from; a version of
        a large fleet has more than anyone wants to sort for a page.
    """
    with store.read() as connection:
        where = sa.and_(run_summary.c.task == task, run_summary.c.version == version)
        outcomes: dict[int, int] = _pairs(
            connection.execute(
                sa.select(run_summary.c.outcome, sa.func.count())
                .where(where)
                .group_by(run_summary.c.outcome)
            )
        )

        def count(table: sa.Table) -> int:
            return int(
                connection.execute(
                    sa.select(sa.func.count())
                    .select_from(table)
                    .where(table.c.task == task, table.c.version == version)
                ).scalar_one()
            )

        newest = connection.execute(
            sa.select(run_summary.c.device, run_summary.c.wall_us, run_summary.c.latency_us)
            .where(where, run_summary.c.outcome == 0)
            .order_by(run_summary.c.received_us.desc())
            .limit(sample)
        ).all()
        # One index range an outcome: the newest runs of each, failed ones included.
        devices = {row.device for row in newest}
        for code in outcomes:
            if code:
                failed = (
                    sa.select(run_summary.c.device)
                    .where(where, run_summary.c.outcome == code)
                    .order_by(run_summary.c.received_us.desc())
                    .limit(sample)
                )
                devices.update(row.device for row in connection.execute(failed))
        results, features = count(result), count(feature)
    wall = sorted(row.wall_us for row in newest)
    latency = sorted(row.latency_us for row in newest)
    return TaskHealth(
        task=task,
        version=version,
        runs=sum(outcomes.values()),
        failures=sum(number for code, number in outcomes.items() if code),
        devices=len(devices),
        results=results,
        features=features,
        wall_p50_us=quantile(wall, 0.5),
        wall_p99_us=quantile(wall, 0.99),
        latency_p50_us=quantile(latency, 0.5),
        latency_p99_us=quantile(latency, 0.99),
        outcomes={outcome_name(code): number for code, number in sorted(outcomes.items())},
    )


def _received(
    connection: sa.Connection, table: sa.Table, start: int, width: int, buckets: int
) -> list[int]:
    """Count rows by bucket of ``received_us``; each bucket is one range of its index."""
    first = sa.select(sa.literal(0, sa.BigInteger).label("place")).cte("places", recursive=True)
    places = first.union_all(sa.select(first.c.place + 1).where(first.c.place + 1 < buckets))
    after = start + places.c.place * width
    inside = (
        sa.select(sa.func.count())
        .select_from(table)
        .where(table.c.received_us > after, table.c.received_us <= after + width)
        .correlate(places)
        .scalar_subquery()
    )
    rows = connection.execute(sa.select(places.c.place, inside).order_by(places.c.place))
    return [number for _, number in rows]


def event_flow(
    store: Store, *, seconds: float = 300.0, buckets: int = 60, now_us: int | None = None
) -> EventFlow:
    """Count what came in during the last ``seconds``, in ``buckets`` equal parts."""
    now = time.time_ns() // 1000 if now_us is None else now_us
    width = max(int(seconds * 1e6 / buckets), 1)
    start = now - width * buckets
    with store.read() as connection:
        letters = connection.execute(sa.select(sa.func.count()).select_from(dead_letter))
        lost = connection.execute(
            sa.select(dropped.c.part, dropped.c.reason, dropped.c.total).order_by(
                dropped.c.part, dropped.c.reason
            )
        )
        return EventFlow(
            bucket_s=width / 1e6,
            start_us=start,
            results=_received(connection, result, start, width, buckets),
            features=_received(connection, feature, start, width, buckets),
            runs=_received(connection, run_summary, start, width, buckets),
            dead_letters=letters.scalar_one(),
            dropped={f"{part}.{reason}": total for part, reason, total in lost},
        )


def fleet_summary(
    store: Store,
    *,
    recently_s: float = 300.0,
    now_us: int | None = None,
    groups: bool = True,
) -> FleetSummary:
    """Count the fleet and its groups by app version, OS and device class.

    Parameters
    ----------
    store : Store
        The database.
    recently_s : float
        Devices heard of in this many seconds count as seen recently.
    now_us : int, optional
        The time to speak of; the clock if absent.
    groups : bool
        Whether to count the groups, which reads every device's attributes.
    """
    now = time.time_ns() // 1000 if now_us is None else now_us
    since = int(now - recently_s * 1e6)
    counted: dict[str, Counter[str]] = {}
    with store.read() as connection:
        total, recent, revoked = connection.execute(
            sa.select(
                sa.func.count(),
                _number(device.c.last_seen_us >= since),
                _number(device.c.revoked_us.is_not(None)),
            ).select_from(device)
        ).one()
        if groups:
            values = [device.c.attributes[path].as_string() for path in _GROUPS]
            numbered = [value.label(f"v{place}") for place, value in enumerate(values)]
            inner = sa.select(*numbered).subquery()
            for *found, number in connection.execute(
                sa.select(*inner.c, sa.func.count()).group_by(*inner.c)
            ):
                for (room, name), value in zip(_GROUPS, found, strict=True):
                    if value is not None:
                        counted.setdefault(f"{room}.{name}", Counter())[str(value)] += number
    return FleetSummary(
        devices=total,
        seen_recently=recent,
        revoked=revoked,
        groups={name: dict(sorted(values.items())) for name, values in sorted(counted.items())},
    )


def cohort_names(store: Store) -> dict[int, str]:
    """Return the name of every cohort by its id."""
    with store.read() as connection:
        rows = connection.execute(sa.select(cohort_table.c.id, cohort_table.c.name))
        return {row.id: row.name for row in rows}
