"""The fleet: holdings by report, pages, and what is written when."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.cloud import store as tables
from shoal.cloud.fleet import Fleet
from shoal.cloud.store import Store
from shoal.core.errors import NotFoundError
from shoal.wire.profile import HeldTask, TaskProfile
from shoal.wire.results import InstallReport, ResultBatch


@pytest.fixture
def store(tmp_path: Path):
    opened = Store(f"sqlite:///{tmp_path}/cloud.db")
    with opened.begin() as connection:
        connection.execute(
            sa.insert(tables.cohort_set),
            [{"cohorts": [], "digest": str(n), "created_us": 0} for n in (1, 2)],
        )
    yield opened
    opened.close()


def add(store: Store, fleet: Fleet, number: int, cohort_set: int = 1, held=()) -> bytes:
    device = number.to_bytes(16, "big")
    profile = TaskProfile(device=device, agent="t", held=[HeldTask(*item) for item in held])
    with store.begin() as connection:
        assert fleet.write_profile(
            connection, profile, cohort_set, 10, public_key=bytes(32), enrolled_us=1
        )
    return device


def holdings(fleet: Fleet, device: bytes) -> dict[tuple[str, int], str]:
    return {(h["task"], h["version"]): h["state"] for h in fleet.get(device).holdings}


def report(fleet: Fleet, device: bytes, *installs: tuple) -> None:
    batch = ResultBatch(
        schema=1, device=device, seq=1, installs=[InstallReport(*i) for i in installs]
    )
    fleet.on_results(device, batch, 20)


def test_reports_refine_what_the_profile_said(store: Store) -> None:
    fleet = Fleet(store)
    device = add(store, fleet, 1, held=[("t", 1, "good"), ("u", 5, "good")])
    report(fleet, device, ("t", 2, "downloading", 0))
    assert holdings(fleet, device)["t", 1] == "good"
    report(fleet, device, ("t", 2, "trial", 0))
    assert holdings(fleet, device) == {
        ("t", 1): "kept", ("t", 2): "trial", ("u", 5): "good",
    }  # fmt: skip
    report(fleet, device, ("t", 2, "bad", 303, 0, "crashed"), ("t", 1, "good", 0))
    assert holdings(fleet, device)["t", 2] == "bad"
    assert holdings(fleet, device)["t", 1] == "good"
    report(fleet, device, ("t", 2, "removed", 0))
    assert ("t", 2) not in holdings(fleet, device)
    add(store, fleet, 1, held=[("t", 3, "good")])  # the whole truth again
    assert holdings(fleet, device) == {("t", 3): "good"}


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    reports=st.lists(
        st.tuples(
            st.sampled_from("tu"),
            st.integers(1, 3),
            st.sampled_from(["wanted", "verified", "trial", "good", "bad", "refused", "removed"]),
        ),
        max_size=12,
    )
)
def test_at_most_one_version_of_a_task_is_counted_as_running(store: Store, reports: list) -> None:
    fleet = Fleet(store)
    device = add(store, fleet, 9)
    expected: dict[tuple[str, int], str] = {}
    for task, version, state in reports:
        report(fleet, device, (task, version, state, 0))
        if state == "removed":
            expected.pop((task, version), None)
            continue
        expected[task, version] = state
        if state in ("trial", "good"):
            for key, before in list(expected.items()):
                if key[0] == task and key[1] != version and before in ("trial", "good"):
                    expected[key] = "kept"
    found = holdings(fleet, device)
    assert found == expected
    for task in "tu":
        assert sum(s in ("trial", "good") for (t, _), s in found.items() if t == task) <= 1


def test_requests_are_written_once_and_add_up(store: Store) -> None:
    fleet = Fleet(store)
    device = add(store, fleet, 1)
    for at in (30, 31, 32):
        fleet.saw(device, at)
    fleet.saw(b"stranger".ljust(16), 33)  # not enrolled (any more): nothing to update
    assert fleet.get(device).requests == 3 and fleet.get(device).last_seen_us == 32
    assert fleet.flush() == 2
    assert fleet.flush() == 0
    fleet.saw(device, 40)
    assert fleet.get(device).requests == 4
    fleet.flush()
    assert Fleet(store).get(device).requests == 4
    assert Fleet(store).get(device).last_seen_us == 40


def test_pages_and_choices(store: Store) -> None:
    fleet = Fleet(store)
    for number in range(1, 8):
        add(
            store, fleet, number, 1 + number % 2, held=[("t", number, "good")] if number > 5 else []
        )
    seen, after = [], b""
    while page := fleet.devices(after=after, limit=3):
        seen += [entry.device for entry in page]
        after = bytes.fromhex(page[-1].device)
    assert seen == [f"{n:032x}" for n in range(1, 8)]
    assert len(fleet.devices(cohort_set=2)) == 4
    assert [e.device for e in fleet.devices(task="t")] == [f"{n:032x}" for n in (6, 7)]
    counts = fleet.counts()
    assert counts["devices"] == 7 and counts["by_cohort_set"] == {"1": 3, "2": 4}


def test_unknown_devices(store: Store) -> None:
    fleet = Fleet(store)
    for ask in (
        lambda: fleet.get(bytes(16)),
        lambda: fleet.revoke(bytes(16), 1),
        lambda: fleet.restore(bytes(16)),
    ):
        with pytest.raises(NotFoundError):
            ask()
    with store.begin() as connection:
        profile = TaskProfile(device=bytes(16), agent="t")
        assert not fleet.write_profile(connection, profile, 1, 1)
