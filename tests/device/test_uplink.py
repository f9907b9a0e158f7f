"""Uplink: only what is declared leaves; batches keep number and content until acknowledged."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import ConflictError, InputError
from shoal.device.outbox import OutboxBounds
from shoal.device.store import DeviceStore
from shoal.device.uplink import Uplink
from shoal.wire.compression import BodyCodec
from shoal.wire.events import Event, EventBatch, new_ulid
from shoal.wire.frames import Batch, BatchKind
from shoal.wire.limits import WireLimits
from shoal.wire.manifest import OutputSpec
from shoal.wire.results import (
    FeatureRecord,
    InstallReport,
    ResultBatch,
    ResultRecord,
    RunSummary,
)

DEVICE = bytes(range(16))
NOW = 1_700_000_000_000_000
SECOND = 1_000_000

OUTPUTS = [
    OutputSpec(name="late", uplink="now"),
    OutputSpec(name="score", uplink="soon"),
    OutputSpec(name="log", uplink="idle"),
    OutputSpec(name="vector", kind="feature", dtype="f32[2]", uplink="soon"),
    OutputSpec(name="raw", kind="events", uplink="idle"),
]


def result(number: int, name: str = "score", size: int = 10, task: str = "t") -> ResultRecord:
    return ResultRecord(number.to_bytes(16, "big"), task, 1, name, NOW, "x" * size)


def read(batch: Batch) -> ResultBatch:
    assert batch.kind == BatchKind.RESULTS
    body = msgspec.msgpack.decode(BodyCodec().unpack(batch), type=ResultBatch)
    assert (body.device, body.seq) == (DEVICE, batch.seq)
    return body


def numbers(batches: list[Batch]) -> list[int]:
    return [int.from_bytes(r.id, "big") for batch in batches for r in read(batch).results]


def put(uplink: Uplink, *records: ResultRecord, now: int = NOW) -> int:
    with uplink.store.transaction() as cursor:
        return uplink.put_results(cursor, records, now)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DeviceStore]:
    with DeviceStore(tmp_path) as opened:
        yield opened


def make(store: DeviceStore, **options: object) -> Uplink:
    uplink = Uplink(store, DEVICE, **options)  # type: ignore[arg-type]
    uplink.declare_outputs("t", 1, OUTPUTS)
    return uplink


@pytest.fixture
def uplink(store: DeviceStore) -> Uplink:
    made = make(store)
    made.welcomed(0)
    return made


# -- what may leave ---------------------------------------------------------------------------


def test_only_declared_outputs_leave_and_the_rest_is_counted(uplink: Uplink) -> None:
    event = Event(new_ulid(NOW), 4, "shop", NOW)
    with uplink.store.transaction() as cursor:
        assert uplink.put_results(cursor, [result(1), result(2, "secret")], NOW) == 1
        assert uplink.put_results(cursor, [result(3, task="other")], NOW) == 0
        wrong = FeatureRecord("t", 1, "vector", "k", NOW, 0, "json", b"{}")
        right = FeatureRecord("t", 1, "vector", "k", NOW, 0, "f32[2]", bytes(8))
        assert uplink.put_features(cursor, [wrong, right], NOW) == 1
        assert uplink.put_events(cursor, "t", 1, [event], NOW) == 1
        assert uplink.put_events(cursor, "t", 2, [event], NOW) == 0
    assert uplink.dropped() == {
        "undeclared_result": 2, "undeclared_feature": 1, "undeclared_event": 1,
    }  # fmt: skip
    uplink.seal(NOW + SECOND)
    (batch,) = uplink.pending()
    assert numbers([batch]) == [1]
    assert read(batch).features == [right]
    assert read(batch).dropped == {
        "undeclared_result": 2, "undeclared_feature": 1, "undeclared_event": 1,
    }  # fmt: skip
    assert uplink.dropped() == {}  # reported once


def test_a_retracted_declaration_closes_the_door(uplink: Uplink) -> None:
    assert put(uplink, result(1)) == 1
    uplink.retract("t", 1)
    assert put(uplink, result(2)) == 0


def test_a_budget_of_bytes_a_day_is_kept_over_restarts(store: DeviceStore) -> None:
    size = len(msgspec.msgpack.encode(result(1)))
    outputs = [OutputSpec(name="score", bytes_per_day=3 * size + 1)]
    day = 86_400 * SECOND
    for taken, when in ((2, 0), (1, 0), (0, 1), (2, day), (2, 3 * day), (1, 3 * day + 5)):
        uplink = Uplink(store, DEVICE)
        uplink.declare_outputs("t", 1, outputs)
        assert put(uplink, result(1), result(2), now=NOW // day * day + when) == taken
    assert uplink.dropped() == {"over_budget_result": 1 + 2 + 1}


def test_a_budget_is_not_spent_by_what_is_rolled_back(store: DeviceStore) -> None:
    uplink = Uplink(store, DEVICE)
    size = len(msgspec.msgpack.encode(result(1)))
    uplink.declare_outputs("t", 1, [OutputSpec(name="score", bytes_per_day=size)])
    with pytest.raises(RuntimeError), store.transaction() as cursor:
        assert uplink.put_results(cursor, [result(1)], NOW) == 1
        raise RuntimeError
    assert put(uplink, result(1)) == 1


def test_one_record_too_large_for_a_frame_is_counted(store: DeviceStore) -> None:
    uplink = make(store, limits=WireLimits(frame=4096, frame_target=1024))
    assert put(uplink, result(1, size=5000), result(2)) == 1
    assert uplink.dropped() == {"too_large_result": 1}


def test_runs_and_installs_need_no_declaration_and_messages_are_cut(uplink: Uplink) -> None:
    with uplink.store.transaction() as cursor:
        uplink.put_runs(cursor, [RunSummary(bytes(16), "t", 9, 302, "process", 1, 2, 3,
                                            message="m" * 5000)], NOW)  # fmt: skip
        uplink.put_installs(cursor, [InstallReport("t", 9, "good", 0, NOW)], NOW)
        assert uplink.put_runs(cursor, [], NOW) == 0
    uplink.seal(NOW + SECOND)
    body = read(uplink.pending()[0])
    assert len(body.runs[0].message) == uplink.limits.string
    assert body.installs == [InstallReport("t", 9, "good", 0, NOW)]


# -- classes and closing ----------------------------------------------------------------------


def test_classes_close_at_their_time_and_urgent_ones_go_first(store: DeviceStore) -> None:
    idle_allowed = False
    uplink = make(store, idle_allowed=lambda: idle_allowed)
    uplink.welcomed(0)
    put(uplink, result(1, "log"), result(2, "score"), result(3, "late"))
    uplink.seal(NOW)
    assert numbers(uplink.pending()) == [3]
    uplink.seal(NOW + 199_999)
    assert numbers(uplink.pending()) == [3]
    uplink.seal(NOW + 200_000)
    assert numbers(uplink.pending()) == [3, 2]
    uplink.seal(NOW + 3600 * SECOND)
    assert numbers(uplink.pending()) == [3, 2]
    idle_allowed = True
    uplink.seal(NOW + 3600 * SECOND)
    assert numbers(uplink.pending()) == [3, 2, 1]
    assert [batch.seq for batch in uplink.pending()] == [1, 2, 3]


def test_a_clock_set_back_does_not_hold_records(uplink: Uplink) -> None:
    put(uplink, result(1), now=NOW + 5 * 365 * 86_400 * SECOND)
    uplink.seal(NOW)
    assert numbers(uplink.pending()) == [1]


def test_batches_close_at_the_target_size_in_order(uplink: Uplink) -> None:
    put(uplink, *(result(number, size=1000) for number in range(100)))
    uplink.seal(NOW)  # no age at all: the size alone closes
    batches = uplink.pending()
    assert 3 <= len(batches) <= 5
    assert numbers(batches) == list(range(100))
    for batch in batches:
        assert len(BodyCodec().unpack(batch)) <= uplink.limits.frame_target + 200


def test_a_held_class_is_not_numbered(uplink: Uplink) -> None:
    put(uplink, result(1, "log"), result(2, "score"), result(3, "late"))
    uplink.seal(NOW, everything=True)
    assert numbers(uplink.pending(hold={"idle", "soon"})) == [3]
    assert numbers(uplink.pending(hold={"idle"})) == [3, 2]
    assert numbers(uplink.pending()) == [3, 2, 1]


def test_events_travel_by_task_and_version(store: DeviceStore) -> None:
    uplink = make(store, monotonic=lambda: 777)
    uplink.declare_outputs("u", 4, [OutputSpec(name="raw", kind="events", uplink="now")])
    uplink.declare_outputs("t", 1, [OutputSpec(name="raw", kind="events", uplink="now")])
    store.meta_set("log.boot", 5)
    uplink.welcomed(0)
    events = [Event(new_ulid(NOW + n), 4, "shop", NOW, n, 5, None, {"n": n}) for n in range(6)]
    with store.transaction() as cursor:
        for place, event in enumerate(events):
            task, version = ("t", 1) if place % 2 else ("u", 4)
            uplink.put_events(cursor, task, version, [event], NOW)
    uplink.seal(NOW)
    bodies = [
        msgspec.msgpack.decode(BodyCodec().unpack(batch), type=EventBatch)
        for batch in uplink.pending()
    ]
    assert [(b.task, b.version, b.boot, b.sent_mono_us) for b in bodies] == [
        ("u", 4, 5, 777), ("t", 1, 5, 777),
    ]  # fmt: skip
    assert [b.events for b in bodies] == [events[0::2], events[1::2]]
    # Sent again, the time of sending is not claimed any more.
    again = msgspec.msgpack.decode(BodyCodec().unpack(uplink.pending()[0]), type=EventBatch)
    assert again == msgspec.structs.replace(bodies[0], sent_mono_us=0)


# -- numbers ----------------------------------------------------------------------------------


def test_a_batch_keeps_number_and_content_until_acknowledged(
    store: DeviceStore, uplink: Uplink
) -> None:
    put(uplink, result(1))
    uplink.seal(NOW + SECOND)
    first = uplink.pending()
    put(uplink, result(2))
    uplink.seal(NOW + SECOND)
    assert uplink.pending()[:1] == first
    assert uplink.resume_seq == 0
    reopened = make(store)
    reopened.welcomed(0)
    assert reopened.pending()[:1] == first
    assert [b.seq for b in reopened.pending(after=1)] == [2]
    reopened.acked(1)
    assert (reopened.resume_seq, [b.seq for b in reopened.pending()]) == (1, [2])
    reopened.acked(2)
    assert (reopened.resume_seq, reopened.pending(), reopened.unacknowledged) == (2, [], 0)


def test_at_most_a_window_is_numbered(uplink: Uplink) -> None:
    for number in range(12):
        put(uplink, result(number, "late", size=20_000))
    uplink.seal(NOW)
    assert [b.seq for b in uplink.pending(4)] == [1, 2, 3, 4]
    assert [b.seq for b in uplink.pending(4, after=4)] == []
    uplink.acked(3)
    assert [b.seq for b in uplink.pending(4, after=4)] == [5, 6, 7]


def test_a_refused_batch_is_forgotten_and_counted(uplink: Uplink) -> None:
    for number in range(3):
        put(uplink, result(number, "late", size=20_000))
    uplink.seal(NOW)
    uplink.pending()
    uplink.refused(2, 109)
    uplink.refused(2, 109)  # told twice
    assert [b.seq for b in uplink.pending()] == [1, 3]
    assert uplink.dropped() == {"refused_109": 1}


def test_no_number_before_the_cloud_has_spoken(store: DeviceStore) -> None:
    uplink = make(store)
    put(uplink, result(1))
    uplink.seal(NOW, everything=True)
    with pytest.raises(ConflictError, match="cursor"):
        uplink.pending()


def test_a_wiped_device_jumps_over_the_clouds_cursor(store: DeviceStore) -> None:
    uplink = make(store)
    put(uplink, result(1))
    uplink.seal(NOW, everything=True)
    assert uplink.resume_seq == 0
    uplink.welcomed(500)
    batches = uplink.pending()
    assert ([b.seq for b in batches], numbers(batches)) == ([501], [1])
    assert (uplink.resume_seq, uplink.jumps) == (500, 1)


def test_a_restored_image_of_the_device_loses_nothing(tmp_path: Path) -> None:
    with DeviceStore(tmp_path / "a") as store:
        uplink = make(store)
        uplink.welcomed(0)
        put(uplink, result(1))
        uplink.seal(NOW, everything=True)
        assert [b.seq for b in uplink.pending()] == [1]
        put(uplink, result(2))  # waits in the image
        store.compact()
        image = (tmp_path / "a" / "device.db").read_bytes()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "device.db").write_bytes(image)
    with DeviceStore(tmp_path / "b") as store:  # the cloud went on to 9 meanwhile
        uplink = make(store)
        assert uplink.resume_seq == 0
        uplink.welcomed(9)
        uplink.seal(NOW, everything=True)
        batches = uplink.pending()
        assert ([b.seq for b in batches], numbers(batches)) == ([10], [2])


def test_a_cloud_that_forgot_gets_the_oldest_unacknowledged_again(uplink: Uplink) -> None:
    for number in range(5):
        put(uplink, result(number, "late", size=20_000))
    uplink.seal(NOW)
    assert len(uplink.pending()) == 5
    uplink.acked(2)
    assert uplink.resume_seq == 2
    uplink.welcomed(uplink.resume_seq)  # the cloud's cursor was 0 and has moved up to 2
    assert [b.seq for b in uplink.pending()] == [3, 4, 5]
    assert uplink.jumps == 0


def test_a_damaged_store_needs_a_new_hello(store: DeviceStore, uplink: Uplink) -> None:
    put(uplink, result(1))
    assert not uplink.needs_hello
    store.moved_aside += 1  # what DeviceStore does when it replaces a damaged file
    assert uplink.needs_hello
    with pytest.raises(ConflictError):
        uplink.pending()


def test_a_batch_that_fits_no_frame_is_emptied_not_stuck(uplink: Uplink) -> None:
    noise = random.Random(1).randbytes(20_000).hex()
    put(uplink, msgspec.structs.replace(result(1, "late"), value=noise), result(2))
    uplink.seal(NOW, everything=True)
    batches = uplink.pending(max_frame=400)
    assert [b.seq for b in batches] == [1, 2]
    assert read(batches[0]) == ResultBatch(1, DEVICE, 1, dropped={"too_large_batch": 1})
    assert numbers(batches) == [2]


# -- bounds -----------------------------------------------------------------------------------


def test_idle_is_dropped_first_then_soon_and_now_last(store: DeviceStore) -> None:
    bounds = OutboxBounds(total=30_000, soon=20_000, idle=10_000)
    uplink = make(store, bounds=bounds)
    for number in range(10):
        put(uplink, result(number, "log", size=1500))
    assert uplink.dropped() == {"outbox_idle": 4}
    for number in range(100, 114):
        put(uplink, result(number, "score", size=1500))
    assert uplink.dropped() == {"outbox_idle": 4, "outbox_soon": 2}
    for number in range(200, 216):
        put(uplink, result(number, "late", size=1500))
    counts = uplink.dropped()
    assert counts["outbox_idle"] == 10  # all of it
    assert "outbox_now" not in counts
    put(uplink, *(result(number, "late", size=1500) for number in range(300, 306)))
    uplink.welcomed(0)
    uplink.seal(NOW, everything=True)
    left = numbers(uplink.pending())
    assert left == [*range(204, 216), *range(300, 306)]  # the newest, in order
    counts = read(uplink.pending()[0]).dropped
    assert counts == {"outbox_idle": 10, "outbox_soon": 14, "outbox_now": 4}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_went_in_comes_out_or_is_counted(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any mix of puts, rollbacks, reopenings, acks, bounds: nothing vanishes or doubles."""
    bounds = OutboxBounds(total=20_000, soon=12_000, idle=6_000)
    limits = WireLimits(frame_target=4000)
    put_in: set[int] = set()
    seen: list[int] = []
    reported = 0
    with DeviceStore(tmp_path_factory.mktemp("uplink")) as store:
        uplink = make(store, bounds=bounds, limits=limits)
        uplink.welcomed(0)
        next_number, cloud = 0, 0

        def deliver(window: int, acknowledge: bool) -> None:
            nonlocal cloud, reported
            for batch in uplink.pending(window):
                if batch.seq > cloud:
                    assert batch.seq == cloud + 1
                    cloud = batch.seq
                    seen.extend(numbers([batch]))
                    reported += sum(read(batch).dropped.values())
            if acknowledge:
                uplink.acked(cloud)

        for _ in range(data.draw(st.integers(1, 25), label="steps")):
            step = data.draw(st.sampled_from(["put", "roll back", "deliver", "lose", "reopen"]))
            if step in ("put", "roll back"):
                name = data.draw(st.sampled_from(["late", "score", "log"]))
                count = data.draw(st.integers(1, 5))
                size = data.draw(st.integers(0, 1500))
                made = [result(next_number + n, name, size) for n in range(count)]
                next_number += count
                if step == "put":
                    put(uplink, *made)
                    put_in.update(int.from_bytes(r.id, "big") for r in made)
                else:
                    with pytest.raises(ZeroDivisionError), store.transaction() as cursor:
                        uplink.put_results(cursor, made, NOW)
                        1 / 0  # noqa: B018
            elif step == "reopen":
                uplink = make(store, bounds=bounds, limits=limits)
                uplink.welcomed(cloud)
            else:
                uplink.seal(NOW, everything=data.draw(st.booleans()))
                deliver(data.draw(st.integers(1, 8)), step == "deliver")
        for _ in range(60):
            uplink.seal(NOW, everything=True)
            deliver(8, True)
        assert uplink.unacknowledged == 0
        assert len(seen) == len(set(seen))
        assert set(seen) <= put_in
        assert len(put_in) - len(seen) == reported + sum(uplink.dropped().values())


def test_the_class_ranges_of_the_table_do_not_touch(uplink: Uplink) -> None:
    for number, name in enumerate(["late", "score", "log"] * 3):
        put(uplink, result(number, name))
    with uplink.store.read() as cursor:
        rows = cursor.execute("SELECT class, seq FROM outbox ORDER BY seq DESC").fetchall()
    assert [row[0] for row in rows] == ["now"] * 3 + ["soon"] * 3 + ["idle"] * 3


def test_a_wrong_device_id_is_refused(store: DeviceStore) -> None:
    with pytest.raises(InputError, match="16 bytes"):
        Uplink(store, b"short")


def test_listeners_hear_of_every_put(uplink: Uplink) -> None:
    heard: list[int] = []
    uplink.on_put(lambda: heard.append(1))
    put(uplink, result(1))
    put(uplink, result(2, "secret"))
    assert heard
    assert isinstance(uplink.store, DeviceStore)
    assert sqlite3.sqlite_version
