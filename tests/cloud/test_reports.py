"""Reports equal what one gets by going through the rows by hand."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import given
from hypothesis import strategies as st

from shoal.cloud import reports
from shoal.cloud import store as tables
from shoal.cloud.migrations.upgrade import upgrade
from shoal.cloud.store import Store
from shoal.core.errors import NotFoundError

TASK = "delay"
START = 1_000_000_000_000
SECOND = 1_000_000


@pytest.fixture
def store(tmp_path: Path):
    opened = Store(f"sqlite:///{tmp_path}/cloud.db")
    yield opened
    opened.close()


class Rows:
    """Writes rows with everything filled in that a test does not speak of."""

    def __init__(self, store: Store, seed: int = 7) -> None:
        self.store, self.random = store, random.Random(seed)
        self.number = itertools.count(1)
        with store.begin() as connection:
            connection.execute(sa.insert(tables.scenario).values(name="default", created_us=0))
            connection.execute(
                sa.insert(tables.task).values(name=TASK, scenario="default", created_us=0)
            )

    def add(self, table: sa.Table, **values: Any) -> Any:
        with self.store.begin() as connection:
            done = connection.execute(sa.insert(table).values(**values))
        return (done.inserted_primary_key or (None,))[0]

    def id(self) -> bytes:
        return next(self.number).to_bytes(16, "big")

    def cohort(self, *names: str) -> tuple[list[int], int]:
        """Make cohorts, and a set of all of them."""
        ids = [
            self.add(tables.cohort, name=name, predicate="true", predicate_sha="", created_us=0)
            for name in names
        ]
        return ids, self.set(ids)

    def set(self, ids: list[int]) -> int:
        number: int = self.add(
            tables.cohort_set, cohorts=sorted(ids), digest=repr(ids), created_us=0
        )
        return number

    def device(self, cohort_set: int | None = None, **values: Any) -> bytes:
        identity = self.id()
        usual = {"first_seen_us": 0, "last_seen_us": 0, "enrolled_us": 0, "public_key": b"k" * 32}
        self.add(tables.device, id=identity, cohort_set=cohort_set, **{**usual, **values})
        return identity

    def release(self, cohort: int, **values: Any) -> int:
        usual = {
            "task": TASK, "version": 2, "salt": "s", "state": "gray", "policy": {},
            "created_us": START - SECOND, "started_us": START,
        }  # fmt: skip
        number: int = self.add(tables.release, cohort=cohort, **{**usual, **values})
        return number

    def event(self, release: int, at_us: int, evidence: dict[str, Any]) -> None:
        self.add(tables.release_event, release=release, at_us=at_us, actor="a", to_state="gray",
                 evidence=evidence)  # fmt: skip

    def run(self, device: bytes, **values: Any) -> None:
        usual = {"run": self.id(), "task": TASK, "version": 2, "outcome": 0, "ts_us": 0,
                 "received_us": START}  # fmt: skip
        self.add(tables.run_summary, device=device, **{**usual, **values})

    def result(self, device: bytes, **values: Any) -> None:
        usual = {"id": self.id(), "task": TASK, "version": 2, "name": "out", "ts_us": 0,
                 "received_us": START, "value": 1}  # fmt: skip
        self.add(tables.result, device=device, **{**usual, **values})

    def feature(self, device: bytes, **values: Any) -> None:
        usual = {"task": TASK, "version": 2, "name": "f", "key": self.id().hex(), "revision": 1,
                 "ts_us": 0, "received_us": START, "dtype": "json", "value": b"1"}  # fmt: skip
        self.add(tables.feature, device=device, **{**usual, **values})


# -- coverage -------------------------------------------------------------------------------


def test_coverage_is_what_counting_gives(store: Store) -> None:
    rows = Rows(store)
    (wanted, other), both = rows.cohort("wanted", "other")
    alone, outside = rows.set([wanted]), rows.set([other])
    release = rows.release(wanted)
    elsewhere = rows.release(other, task=TASK, version=3)
    known: list[dict[str, Any]] = []
    for place in range(60):
        device = {
            "set": rows.random.choice([both, alone, outside]),
            "seen": START + rows.random.randrange(-50, 50) * SECOND,
            "revoked": place % 11 == 0,
            "installed": None,
            "state": rows.random.choice(
                [None, "trial", "good", "bad", "refused", "removed", "wanted"]
            ),
        }
        identity = rows.device(
            device["set"],
            last_seen_us=device["seen"],
            revoked_us=START if device["revoked"] else None,
        )
        if device["seen"] >= START and rows.random.random() < 0.7:
            device["installed"] = START + rows.random.randrange(0, 60) * SECOND
            rows.add(tables.sticky, release=release, device=identity, seen_us=device["installed"])
            rows.add(tables.sticky, release=elsewhere, device=identity, seen_us=START)
        if device["state"]:
            for version in (2, 3):
                rows.add(tables.holding, device=identity, task=TASK, version=version,
                         state=device["state"], reported_us=START)  # fmt: skip
        known.append(device)
    rows.event(release, START - SECOND, {"threshold": 0})
    rows.event(release, START, {"threshold": 1_000})
    rows.event(release, START + 5 * SECOND, {"note": "no step in it"})
    rows.event(release, START + 20 * SECOND, {"threshold": 10_000})
    rows.event(elsewhere, START + 21 * SECOND, {"threshold": 77})

    found = reports.coverage(store, release, now_us=START + 60 * SECOND)

    inside = [d for d in known if d["set"] in (both, alone) and not d["revoked"]]
    reachable = [d for d in inside if d["seen"] >= START]
    times = sorted((d["installed"] - START) / 1e6 for d in inside if d["installed"] is not None)
    assert found.eligible == len(inside)
    assert found.reachable == len(reachable)
    assert found.holding == sum(d["state"] in ("trial", "good") for d in inside)
    assert found.refused == sum(d["state"] in ("bad", "refused") for d in inside)
    assert found.ever == len(times)
    assert [at for at, _ in found.points] == times
    for at, share in found.points[:-1]:
        assert share <= sum(time <= at for time in times) / len(reachable) + 1e-12
    assert found.points[-1][1] == pytest.approx(len(times) / len(reachable))
    assert found.allowed == [(-1.0, 0.0), (0.0, 0.1), (20.0, 1.0)]
    assert found.elapsed_s == 60.0
    for share in (0.1, 0.25, 0.5, 0.8, 1.0):
        needed = next(
            (n for n in range(1, len(times) + 1) if n / len(reachable) >= share - 1e-12), None
        )
        assert found.time_to(share) == (None if needed is None else times[needed - 1])


def test_coverage_of_a_closed_release_stands_still(store: Store) -> None:
    rows = Rows(store)
    (cohort,), members = rows.cohort("all")
    rows.device(members, last_seen_us=START + SECOND)
    release = rows.release(cohort, state="rolled_back", closed_us=START + 9 * SECOND)
    assert reports.coverage(store, release, now_us=START + 900 * SECOND).elapsed_s == 9.0
    assert reports.coverage(store, release).elapsed_s == 9.0


def test_coverage_before_the_start_counts_from_the_draft(store: Store) -> None:
    rows = Rows(store)
    (cohort,), members = rows.cohort("all")
    rows.device(members)
    release = rows.release(cohort, state="draft", started_us=None)
    found = reports.coverage(store, release, now_us=START)
    assert (found.elapsed_s, found.points, found.time_to(0.5)) == (1.0, [], None)
    assert (found.eligible, found.reachable) == (1, 0)
    # A clock that went back does not make the time run backwards.
    assert reports.coverage(store, release, now_us=0).elapsed_s == 0.0


def test_a_device_that_installed_it_was_reachable(store: Store) -> None:
    """Last-seen times are written with a delay; shares must not pass one for that."""
    rows = Rows(store)
    (cohort,), members = rows.cohort("all")
    release = rows.release(cohort)
    for _ in range(3):
        device = rows.device(members, last_seen_us=START - SECOND)
        rows.add(tables.sticky, release=release, device=device, seen_us=START + SECOND)
    found = reports.coverage(store, release, now_us=START + 2 * SECOND)
    assert found.reachable == 3
    assert found.points == [(1.0, 1 / 3), (1.0, 2 / 3), (1.0, 1.0)]


def test_no_such_release(store: Store) -> None:
    with pytest.raises(NotFoundError, match="no release 5"):
        reports.coverage(store, 5)
    assert reports.release_history(store, 5) == []


def test_history_is_in_order_and_of_one_release(store: Store) -> None:
    rows = Rows(store)
    (cohort,), _ = rows.cohort("all")
    first = rows.release(cohort)
    second = rows.release(cohort, state="draft")
    for place in range(6):
        rows.event((first, second)[place % 2], START - place, {"n": place})
    assert [row["evidence"]["n"] for row in reports.release_history(store, first)] == [0, 2, 4]


# -- health ---------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 10**9), max_size=300), st.floats(0, 1))
def test_quantile_is_the_value_of_its_rank(values: list[int], share: float) -> None:
    found = reports.quantile(sorted(values), share)
    if not values:
        assert found == 0
        return
    rank = int(share * len(values))
    below = sum(value < found for value in values)
    up_to = sum(value <= found for value in values)
    assert found in values
    assert below <= rank
    assert up_to > rank or found == max(values)


def test_health_is_what_counting_gives(store: Store) -> None:
    rows = Rows(store)
    devices = [rows.device() for _ in range(5)]
    known = []
    for place in range(150):
        run = {
            "outcome": rows.random.choice([0, 0, 0, 300, 302, 9_999]),
            "wall_us": rows.random.randrange(1, 10**6),
            "latency_us": rows.random.randrange(1, 10**6),
            "received_us": START + place,
            "version": rows.random.choice([1, 2]),
        }
        device = rows.random.choice(devices[: 3 if run["outcome"] == 0 else 5])
        rows.run(device, **run)
        known.append((device, run))
    rows.run(devices[0], task="another", version=2)
    for place in range(9):
        rows.result(devices[0], version=1 + place % 3)
        rows.feature(devices[0], version=1 + place % 2)
    mine = [(device, run) for device, run in known if run["version"] == 2]
    good = [(device, run) for device, run in mine if run["outcome"] == 0]

    found = reports.task_health(store, TASK, 2)
    assert found.runs == len(mine)
    assert found.failures == len(mine) - len(good)
    assert (found.results, found.features) == (3, 4)
    assert found.devices == len({device for device, _ in mine})  # failed ones too
    counted = Counter(run["outcome"] for _, run in mine)
    assert found.outcomes == {
        "ok": counted[0],
        "deadline": counted[300],
        "exception": counted[302],
        "9999": counted[9_999],
    }
    for name in ("wall", "latency"):
        ordered = sorted(run[f"{name}_us"] for _, run in good)
        assert getattr(found, f"{name}_p50_us") == ordered[len(ordered) // 2]
        assert getattr(found, f"{name}_p99_us") == ordered[int(0.99 * len(ordered))]

    newest = sorted(good, key=lambda item: item[1]["received_us"])[-10:]
    short = reports.task_health(store, TASK, 2, sample=10)
    assert short.runs == found.runs
    assert short.wall_p50_us == sorted(run["wall_us"] for _, run in newest)[5]


def test_failed_runs_do_not_speed_a_version_up(store: Store) -> None:
    rows = Rows(store)
    device = rows.device()
    rows.run(device, wall_us=100)
    for _ in range(20):
        rows.run(device, wall_us=1, outcome=302)
    assert reports.task_health(store, TASK, 2).wall_p50_us == 100


# -- flow -----------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["results", "features", "runs"])
def test_flow_has_each_row_in_its_bucket(store: Store, table: str) -> None:
    rows = Rows(store)
    device = rows.device()
    now, buckets, width = START, 6, 10 * SECOND
    start = now - buckets * width
    times = [start - 1, start, start + 1, now - 1, now, now + 1]
    times += [start + k * width + shift for k in range(1, buckets) for shift in (-1, 0, 1)]
    times += [start + rows.random.randrange(1, buckets * width) for _ in range(40)]
    add = {"results": rows.result, "features": rows.feature, "runs": rows.run}[table]
    for at in times:
        add(device, received_us=at)
    expected = [
        sum(start + k * width < at <= start + (k + 1) * width for at in times)
        for k in range(buckets)
    ]
    found = reports.event_flow(store, seconds=60, buckets=buckets, now_us=now)
    assert getattr(found, table) == expected
    assert sum(expected) == len(times) - 3  # one at the open edge and two outside
    assert (found.bucket_s, found.start_us) == (10.0, start)
    others = {"results", "features", "runs"} - {table}
    assert all(getattr(found, name) == [0] * buckets for name in others)


def test_flow_counts_what_was_lost(store: Store) -> None:
    rows = Rows(store)
    for _ in range(3):
        rows.add(tables.dead_letter, device=rows.id(), seq=1, code=100, body=b"", at_us=0)
    store.count_dropped("uplink", "full", 4)
    store.count_dropped("uplink", "full", 2)
    store.count_dropped("ingest", "late")
    found = reports.event_flow(store)
    assert found.dead_letters == 3
    assert found.dropped == {"ingest.late": 1, "uplink.full": 6}


def test_a_window_narrower_than_its_buckets(store: Store) -> None:
    found = reports.event_flow(store, seconds=1e-6, buckets=4, now_us=START)
    assert (found.results, found.start_us) == ([0] * 4, START - 4)


# -- fleet ----------------------------------------------------------------------------------


def test_fleet_groups_are_what_counting_gives(store: Store) -> None:
    rows = Rows(store)
    known = []
    for place in range(80):
        attributes: dict[str, Any] = {"user": {"name": f"u{place}"}}
        if place % 7:
            attributes["app"] = {"version": rows.random.choice(["1.0", "1.10", "<b>"])}
        if place % 3:
            attributes["device"] = {"os": rows.random.choice(["ä", "ios"]), "class": place % 2}
        seen = START + rows.random.randrange(-600, 1) * SECOND
        revoked = place % 13 == 0
        rows.device(None, attributes=attributes, last_seen_us=seen,
                    revoked_us=1 if revoked else None)  # fmt: skip
        known.append((attributes, seen, revoked))
    edge = START - 300 * SECOND
    rows.device(None, attributes={}, last_seen_us=edge)
    rows.device(None, attributes={}, last_seen_us=edge - 1)

    found = reports.fleet_summary(store, now_us=START)
    assert found.devices == len(known) + 2
    assert found.seen_recently == sum(seen >= edge for _, seen, _ in known) + 1
    assert found.revoked == sum(revoked for *_, revoked in known)
    for room, name in (("app", "version"), ("device", "os"), ("device", "class")):
        values = Counter(
            str(attributes[room][name]) for attributes, *_ in known if room in attributes
        )
        assert found.groups[f"{room}.{name}"] == dict(values)
    quick = reports.fleet_summary(store, now_us=START, groups=False)
    assert (quick.devices, quick.groups) == (found.devices, {})


def test_cohorts_by_name(store: Store) -> None:
    rows = Rows(store)
    (first, second), _ = rows.cohort("north", "south")
    assert reports.cohort_names(store) == {first: "north", second: "south"}


# -- nothing at all, and the schema ---------------------------------------------------------


def test_an_empty_database(store: Store) -> None:
    fleet = reports.fleet_summary(store)
    assert (fleet.devices, fleet.seen_recently, fleet.revoked, fleet.groups) == (0, 0, 0, {})
    flow = reports.event_flow(store)
    assert flow.results == flow.features == flow.runs == [0] * 60
    assert (flow.dead_letters, flow.dropped) == (0, {})
    health = reports.task_health(store, "none", 1)
    assert (health.runs, health.wall_p99_us, health.outcomes) == (0, 0, {})
    assert reports.cohort_names(store) == {}


def test_a_release_without_devices(store: Store) -> None:
    rows = Rows(store)
    (cohort,), _ = rows.cohort("nobody")
    found = reports.coverage(store, rows.release(cohort), now_us=START)
    assert (found.eligible, found.reachable, found.points) == (0, 0, [])


def test_a_database_of_the_first_schema_is_upgraded(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/old.db"
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        upgrade(connection, "0001")
        names = {i["name"] for i in sa.inspect(connection).get_indexes("run_summary")}
        assert "ix_run_summary_newest" not in names
        connection.execute(
            sa.text("INSERT INTO scenario (name, repo, created_us) VALUES ('s','',0)")
        )
    engine.dispose()
    store = Store(url)
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, tables.metadata) == []
        assert connection.execute(sa.select(tables.scenario.c.name)).scalars().all() == ["s"]
    store.close()


def test_the_pages_queries_use_their_indexes(store: Store) -> None:
    """A scan of all runs or features would not be noticed in a small test."""
    plans = []
    with store.engine.connect() as connection:
        for statement in (
            "SELECT device, wall_us FROM run_summary WHERE task = 'a' AND version = 1"
            " AND outcome = 0 ORDER BY received_us DESC LIMIT 10",
            "SELECT outcome, count(*) FROM run_summary WHERE task = 'a' AND version = 1"
            " GROUP BY outcome",
            "SELECT count(*) FROM feature WHERE task = 'a' AND version = 1",
            "SELECT count(*) FROM result WHERE received_us > 1 AND received_us <= 2",
        ):
            found = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}").all()
            plans.append(" / ".join(row[-1] for row in found))
    assert "ix_run_summary_newest" in plans[0]
    assert "TEMP B-TREE" not in plans[0] + plans[1]
    assert all("COVERING INDEX" in plan for plan in plans[1:])
