"""Cohorts: predicates that hold, fail and change; sets that stay and split."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.cloud import store as tables
from shoal.cloud.cohorts import CohortBook
from shoal.cloud.fleet import Fleet
from shoal.cloud.predicates import Predicate, PredicateError, attributes_of, version_at_least
from shoal.cloud.store import Store
from shoal.core.errors import InputError, NotFoundError
from shoal.wire.buckets import bucket
from shoal.wire.profile import TaskProfile


@pytest.fixture
def store(tmp_path: Path):
    opened = Store(f"sqlite:///{tmp_path}/cloud.db")
    yield opened
    opened.close()


def attributes(**maps: dict) -> dict:
    return {"app": {}, "device": {}, "user": {}, "agent": {}, **maps}


def test_predicates_speak_about_the_four_maps() -> None:
    here = attributes(
        app={"version": "2.10.1"}, device={"os": "android", "cores": 8}, user={"group": "beta"}
    )
    for source, expected in {
        'device.os == "android"': True,
        'device.os in ["ios", "linux"]': False,
        "device.cores >= 8": True,
        'version_at_least(app.version, "2.9")': True,
        'version_at_least(app.version, "2.11")': False,
        'user.group == "beta" && !(device.os == "ios")': True,
        "has(user.age) && user.age > 18": False,
        "true": True,
    }.items():
        assert Predicate(source)(here) is expected, source


def test_single_devices_and_percentages() -> None:
    device = "ab" * 16
    here = attributes(device={"id": device})
    assert Predicate(f'device.id == "{device}"')(here)
    for threshold in (0, bucket("s", device), bucket("s", device) + 1, 10_000):
        found = Predicate(f'bucket("s", device.id) < {threshold}')(here)
        assert found == (bucket("s", device) < threshold)


@pytest.mark.parametrize(
    "source",
    ["app.missing == 1", "1", '"yes"', "device.os", "1 / 0 == 1", "nothing.at.all", "f(1)"],
)
def test_a_predicate_that_fails_or_is_no_boolean_says_so(source: str) -> None:
    with pytest.raises(PredicateError):
        Predicate(source)(attributes(device={"os": "x"}))


@pytest.mark.parametrize("source", ["", "  ", "a ==", "((", "x" * 5000])
def test_what_is_no_expression_is_refused(source: str) -> None:
    with pytest.raises(InputError, match="predicate"):
        Predicate(source)


@given(
    st.lists(st.integers(0, 99), min_size=1, max_size=4),
    st.lists(st.integers(0, 99), min_size=1, max_size=4),
)
def test_versions_compare_as_numbers(left: list[int], right: list[int]) -> None:
    width = max(len(left), len(right))
    expected = left + [0] * (width - len(left)) >= right + [0] * (width - len(right))
    found = version_at_least(".".join(map(str, left)), ".".join(map(str, right)))
    assert found == expected


def test_words_in_versions() -> None:
    assert not version_at_least("2.1rc1", "2.1")
    assert version_at_least("2.1", "2.1rc1")
    assert version_at_least("v3", "v2.9")


def test_a_set_is_a_combination_and_failures_are_counted(store: Store) -> None:
    book = CohortBook(store)
    book.define("android", 'device.os == "android"')
    book.define("broken", "user.age > 3")
    first = book.cohort_set(attributes(device={"os": "android"}))
    again = book.cohort_set(attributes(device={"os": "android"}, app={"version": "9"}))
    other = book.cohort_set(attributes(device={"os": "ios"}))
    none = book.cohort_set(attributes())
    assert first == again != other >= 1
    assert none == other  # in no cohort at all is a combination too
    assert book.sets()[first] == [book.get("android").id]
    assert book.errors["broken"] == 4
    assert "age" in book.last_error["broken"]
    assert book.errors["android"] == 1  # the device without device.os
    assert CohortBook(store).cohort_set(attributes(device={"os": "android"})) == first


def test_the_cache_evaluates_equal_attributes_once(store: Store) -> None:
    book = CohortBook(store)
    book.define("broken", "user.age > 3")
    for _ in range(5):
        book.cohort_set(attributes(app={"a": 1}))
    assert book.errors["broken"] == 1


def test_unknown_names_and_bad_names(store: Store) -> None:
    book = CohortBook(store)
    with pytest.raises(NotFoundError):
        book.get("nobody")
    for name in ("", "x" * 65, "a\nb"):
        with pytest.raises(InputError):
            book.define(name, "true")


def _enrol(store: Store, book: CohortBook, fleet: Fleet, number: int, os: str) -> int:
    profile = TaskProfile(
        device=number.to_bytes(16, "big"), agent="t", attributes={"device": {"os": os}}
    )
    cohort_set = book.cohort_set(attributes_of(profile), device=profile.device)
    with store.begin() as connection:
        fleet.write_profile(connection, profile, cohort_set, 1, public_key=bytes(32), enrolled_us=1)
    return cohort_set


def _sets_of_devices(store: Store) -> dict[int, int]:
    with store.read() as connection:
        rows = connection.execute(sa.select(tables.device.c.id, tables.device.c.cohort_set))
        return {int.from_bytes(row.id, "big"): row.cohort_set for row in rows}


def test_a_new_cohort_retires_only_the_sets_that_it_splits(store: Store) -> None:
    book, fleet = CohortBook(store), Fleet(store)
    book.define("phones", 'device.os in ["android", "ios"]')
    phones = {_enrol(store, book, fleet, n, os) for n, os in enumerate(["android", "ios"])}
    others = {_enrol(store, book, fleet, n, "linux") for n in (7, 8)}
    assert len(phones) == len(others) == 1
    book.define("android", 'device.os == "android"')
    now = _sets_of_devices(store)
    assert now[7] == now[8] == others.pop()  # nothing changed for them
    assert now[0] != now[1]
    assert phones.pop() not in {now[0], now[1]} | set(book.sets())
    assert book.sets()[now[0]] == [book.get("phones").id, book.get("android").id]
    # The same definition again changes nothing.
    epoch = store.epoch()
    book.define("android", 'device.os == "android"')
    assert store.epoch() == epoch and _sets_of_devices(store) == now


def test_a_changed_predicate_moves_devices_together_or_apart(store: Store) -> None:
    book, fleet = CohortBook(store), Fleet(store)
    book.define("c", 'device.os == "a"')
    for number, os in enumerate("aab"):
        _enrol(store, book, fleet, number, os)
    before = _sets_of_devices(store)
    book.define("c", 'device.os == "b"')
    after = _sets_of_devices(store)
    assert after[0] == after[1] != after[2]
    sets = book.sets()
    assert sets[after[0]] == [] and sets[after[2]] == [book.get("c").id]
    assert before != after


_oses = st.sampled_from(["a", "b", "c"])


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    devices=st.lists(_oses, min_size=1, max_size=6),
    definitions=st.lists(
        st.tuples(st.sampled_from(["x", "y"]), st.sets(_oses)), min_size=1, max_size=5
    ),
)
def test_stored_sets_always_equal_a_fresh_evaluation(
    tmp_path_factory: pytest.TempPathFactory, devices: list[str], definitions: list
) -> None:
    opened = Store(f"sqlite:///{tmp_path_factory.mktemp('c')}/cloud.db")
    try:
        book, fleet = CohortBook(opened), Fleet(opened)
        for number, os in enumerate(devices):
            _enrol(opened, book, fleet, number, os)
        inside: dict[str, set[str]] = {}
        for name, oses in definitions:
            inside[name] = oses
            quoted = ", ".join(f'"{os}"' for os in sorted(oses))
            book.define(name, f"device.os in [{quoted}]")
            sets, stored = book.sets(), _sets_of_devices(opened)
            for number, os in enumerate(devices):
                expected = {book.get(n).id for n, group in inside.items() if os in group}
                assert set(sets[stored[number]]) == expected
    finally:
        opened.close()
