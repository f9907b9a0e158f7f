"""Check-ins and friendships: every form of time, what is dropped is counted."""

from __future__ import annotations

import datetime
import gzip
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import InputError, NotFoundError
from shoal.data.checkins import (
    CheckinLog,
    Friendships,
    read_checkins,
    read_friendships,
    read_lbsn_places,
)

UTC = datetime.UTC
MOMENT = datetime.datetime(2024, 3, 31, 1, 30, tzinfo=UTC)
SECONDS = int(MOMENT.timestamp())


@pytest.mark.parametrize(
    "times",
    [
        [SECONDS, SECONDS + 1],
        np.array([SECONDS + 0.9, SECONDS + 1.0]),
        [MOMENT, MOMENT + datetime.timedelta(seconds=1)],
        [MOMENT.astimezone(datetime.timezone(datetime.timedelta(hours=5))),
         MOMENT + datetime.timedelta(seconds=1)],
        pl.Series([MOMENT, MOMENT + datetime.timedelta(seconds=1)]),
    ],
    ids=["seconds", "fractions", "datetimes", "zones", "polars"],
)  # fmt: skip
def test_times_in_every_form(times: object) -> None:
    log = CheckinLog(["a", "b"], [1, 2], times)
    assert log.time.tolist() == [SECONDS, SECONDS + 1]
    assert log.user.tolist() == ["a", "b"]
    assert log.poi.dtype == np.int64
    assert (len(log), log.slots, log.dropped) == (2, None, {})


def test_naive_times_need_a_zone() -> None:
    naive = MOMENT.replace(tzinfo=None)
    for times in ([naive], np.array([naive], dtype="datetime64[s]"), pl.Series([naive])):
        with pytest.raises(InputError, match="without a time zone"):
            CheckinLog([1], [1], times)
        assert CheckinLog([1], [1], times, tz="UTC").time.tolist() == [SECONDS]
        helsinki = CheckinLog([1], [1], times, tz="Europe/Helsinki").time
        assert helsinki.tolist() == [SECONDS - 2 * 3600]
    with pytest.raises(InputError, match="no such time zone"):
        CheckinLog([1], [1], [naive], tz="Mars/Olympus")


def test_slots() -> None:
    assert CheckinLog([1, 1], [1, 2], [0, 167], slots=168).slots == 168
    with pytest.raises(InputError, match=r"\[0, 168\)") as failed:
        CheckinLog([1, 1], [1, 2], [1, 168], slots=168)
    assert failed.value.row == 2
    assert "count from 1" in (failed.value.hint or "")
    for bad in ([-1], [0.5], [np.nan]):
        with pytest.raises(InputError, match="a slot is"):
            CheckinLog([1], [1], bad, slots=24)
    with pytest.raises(InputError, match="number of slots"):
        CheckinLog([1], [1], [0], slots=0)
    with pytest.raises(InputError, match="no order"):
        CheckinLog([1], [1], [0], slots=24).before(1)


@pytest.mark.parametrize(
    ("times", "reason"),
    [
        ([1.0, np.nan], "not a time"),
        ([1.0, np.inf], "not a time"),
        (["yesterday", "today"], "seconds since 1970"),
        ([MOMENT, 5], "not a time"),
        ([SECONDS * 1000, SECONDS * 1000], "milliseconds"),
        ([1, 2, 3], "2 users, 2 places and 3 times"),
        (pl.Series([MOMENT, None]), "missing"),
    ],
    ids=["nan", "inf", "text", "mixed", "milliseconds", "length", "null"],
)
def test_bad_times(times: object, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        CheckinLog([1, 2], [1, 2], times)


def test_bad_ids() -> None:
    for bad in ([1, "a"], [1.5, 2], ["", "a"], pl.Series([1, None])):
        with pytest.raises(InputError, match="id"):
            CheckinLog(bad, [1, 2], [0, 1])


def test_policies_for_duplicates_and_the_future() -> None:
    columns = [1, 1, 1], [5, 5, 6], [100, 100, 999]
    assert len(CheckinLog(*columns, now=500)) == 2
    log = CheckinLog(*columns, duplicates="drop", now=500)
    assert log.dropped == {"time in the future": 1, "duplicate check-in": 1}
    assert log.time.tolist() == [100]
    assert len(CheckinLog(*columns, duplicates="keep", future="keep", now=500)) == 3
    with pytest.raises(InputError, match=r"row 3.*future"):
        CheckinLog(*columns, future="error", now=500)
    with pytest.raises(InputError, match=r"row 2.*duplicate"):
        CheckinLog(*columns, duplicates="error", now=5000)
    with pytest.raises(InputError, match="policy"):
        CheckinLog(*columns, duplicates="what", now=5000)


def test_splits_by_time() -> None:
    log = CheckinLog([1, 2], ["x", "y"], [100, 200])
    past = log.take(log.before(150))
    assert (past.user.tolist(), past.poi.tolist(), past.time.tolist()) == ([1], ["x"], [100])


def test_friendships_are_pairs_each_once() -> None:
    made = Friendships.of([1, 2, 3, 3], [2, 1, 3, 1])
    assert made.edges.tolist() == [[1, 2], [1, 3]]
    assert made.dropped == {"self-loop": 1, "repeated pair": 1}
    assert Friendships.of(["b"], ["a"]).edges.tolist() == [["a", "b"]]
    assert len(Friendships.of([], [])) == 0
    with pytest.raises(InputError, match="1 users for 2 friends"):
        Friendships.of([1], [1, 2])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=30))
def test_friendships_are_the_set_of_pairs(pairs) -> None:
    made = Friendships.of([a for a, _ in pairs], [b for _, b in pairs])
    wanted = {(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]}
    assert sorted(map(tuple, made.edges.tolist())) == sorted(wanted)
    assert len(made) + sum(made.dropped.values()) == len(pairs)


def test_tables_and_lbsn_text(tmp_path: Path) -> None:
    text = "0\t7\t1185638400.0\n0\t8\t1185638401.0\n3\t7\t1185638400.0\n"
    (tmp_path / "check_ins.txt.gz").write_bytes(gzip.compress(text.encode()))
    log = read_checkins(tmp_path / "check_ins.txt.gz")
    assert log.user.tolist() == [0, 0, 3]
    assert log.time.tolist() == [1185638400, 1185638401, 1185638400]

    frame = pl.DataFrame({"uid": ["a", "b"], "venue": [1, 2], "timestamp": [MOMENT, MOMENT]})
    frame.write_parquet(tmp_path / "c.parquet")
    assert read_checkins(tmp_path / "c.parquet").time.tolist() == [SECONDS] * 2
    (tmp_path / "c.csv").write_text("when,who,poi\n2024-03-31T01:30:00Z,a,1\n")
    named = read_checkins(tmp_path / "c.csv", user="who", time="when")
    assert (named.user.tolist(), named.time.tolist()) == (["a"], [SECONDS])

    (tmp_path / "social.txt").write_text("1 2\n2 1\n4 4\n")
    assert read_friendships(tmp_path / "social.txt").edges.tolist() == [[1, 2]]

    (tmp_path / "poi_coos.txt").write_text("7\t40.39\t-80.08\n8\t40.40\t-80.09\n")
    (tmp_path / "poi_categories.txt").write_text("7\t3\n7\t4\n9\t1\n")
    places = read_lbsn_places(tmp_path / "poi_coos.txt", tmp_path / "poi_categories.txt")
    assert (places.lon.tolist(), places.lat.tolist()) == ([-80.08, -80.09], [40.39, 40.40])
    assert places.keyword_lists() == [["category3", "category4"], []]
    assert places.category == ["category3", None]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", "1 2\n", "user, poi and time"),
        ("a.txt", "", "empty"),
        ("a.csv", "user,poi,time\n", "no rows"),
        ("a.csv", "user,poi,when\n1,2,3\n", "time.*no single column.*user, poi, when"),
        ("a.csv", "user,uid,poi,time\n1,1,2,3\n", "user.*no single column.*user, uid"),
        ("a.csv", "user,poi,time\n1,2,noon\n", "row 1.*ISO 8601"),
        ("a.csv", "user,poi,time\n1,2,2024-01-01T00:00:00\n", "time zone"),
        ("a.csv", "user,poi,time\n,2,3\n", "missing"),
        ("a.parquet", "PAR1", "Parquet"),
    ],
    ids=range(9),
)
def test_files_of_checkins_that_cannot_be_used(
    tmp_path: Path, name: str, content: str, reason: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=reason):
        read_checkins(tmp_path / name)


def test_other_files_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1\n2\n")
    with pytest.raises(InputError, match="two users"):
        read_friendships(tmp_path / "a.txt")
    with pytest.raises(InputError, match="latitude"):
        read_lbsn_places(tmp_path / "a.txt")
    with pytest.raises(NotFoundError):
        read_checkins(tmp_path / "none.parquet")
    with pytest.raises(InputError, match="no column 'who'"):
        (tmp_path / "c.csv").write_text("user,poi,time\n1,2,3\n")
        read_checkins(tmp_path / "c.csv", user="who")
