"""Ingest: durable before ACK, stored once, the broken put aside, the innocent kept."""

from __future__ import annotations

import asyncio
import math
import os
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.cloud import store as tables
from shoal.cloud.deadletters import MAX_OF_DEVICE
from shoal.cloud.ingest import Ingest
from shoal.cloud.store import Store
from shoal.core.errors import UnavailableError
from shoal.wire.codes import ErrorCode
from shoal.wire.compression import BodyCodec
from shoal.wire.events import Event, EventBatch
from shoal.wire.frames import Ack, Batch, BatchKind, Codec, Nack
from shoal.wire.profile import TaskProfile
from shoal.wire.results import (
    FeatureRecord,
    InstallReport,
    ResultBatch,
    ResultRecord,
    RunSummary,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

DEVICE = b"d" * 16
OTHER = b"e" * 16
NOW = 1_700_000_000_000_000
CODEC = BodyCodec()


def frame(seq: int, body: Any, kind: int = BatchKind.RESULTS) -> Batch:
    raw = body if isinstance(body, bytes) else msgspec.msgpack.encode(body)
    return Batch(seq, kind, *CODEC.pack(raw))


def result(number: int, value: Any = 0.5, **fields: Any) -> ResultRecord:
    made = ResultRecord(number.to_bytes(16, "big"), "t", 1, "late", NOW + number, value)
    return msgspec.structs.replace(made, **fields)


def results(seq: int, *records: ResultRecord, device: bytes = DEVICE, **lists: Any) -> Batch:
    return frame(seq, ResultBatch(1, device, seq, list(records), **lists))


def feature(key: str, first: float = 1.0, **fields: Any) -> FeatureRecord:
    made = FeatureRecord("t", 1, "vector", key, NOW, 0, "f32[2]", struct.pack("<2f", first, 0))
    return msgspec.structs.replace(made, **fields)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(f"sqlite:///{tmp_path}/cloud.db")
    yield opened
    opened.close()


@pytest.fixture
def ingest(store: Store) -> Iterator[Ingest]:
    with Ingest(store) as made:
        yield made


def count(store: Store, table: sa.Table) -> int:
    with store.read() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


def rows(store: Store, table: sa.Table) -> list[dict[str, Any]]:
    with store.read() as connection:
        return [dict(row._mapping) for row in connection.execute(sa.select(table))]


def dropped(store: Store) -> dict[str, int]:
    return {row["reason"]: row["total"] for row in rows(store, tables.dropped)}


# -- what is stored ---------------------------------------------------------------------------


def test_every_kind_of_record_reaches_its_table(store: Store, ingest: Ingest) -> None:
    run = RunSummary(b"r" * 16, "t", 1, 0, "process", 5, 6, 7, NOW, 8, "fine")
    batch = results(
        1, result(1, {"p": [1, 2.5, "x", None, True, b"\x00\x01"]}), features=[feature("k")],
        runs=[run], installs=[InstallReport("t", 1, "good", 0, NOW)],
    )  # fmt: skip
    assert ingest.accept(DEVICE, batch, NOW + 9) == Ack(1)
    (stored,) = rows(store, tables.result)
    assert stored == {
        "id": result(1).id, "device": DEVICE, "task": "t", "version": 1, "name": "late",
        "ts_us": NOW + 1, "received_us": NOW + 9, "model_version": None,
        "value": {"p": [1, 2.5, "x", None, True, "AAE="]},
    }  # fmt: skip
    (stored,) = rows(store, tables.run_summary)
    assert (stored["run"], stored["latency_us"], stored["message"]) == (b"r" * 16, 8, "fine")
    (stored,) = rows(store, tables.feature)
    assert (stored["key"], stored["value"]) == ("k", struct.pack("<2f", 1, 0))
    event = Event(b"v" * 16, 4, "shop", NOW, 3, 2, None, {"a": 1})
    events = EventBatch(1, DEVICE, "t", 1, 2, 2, 0, [event])
    assert ingest.accept(DEVICE, frame(2, events, BatchKind.EVENTS), NOW) == Ack(2)
    (stored,) = rows(store, tables.event_raw)
    assert msgspec.msgpack.decode(stored["body"], type=Event) == event
    (stored,) = rows(store, tables.cursor)
    assert (stored["device"], stored["seq"]) == (DEVICE, 2)


def test_a_wrong_clock_is_corrected_inside_one_boot(store: Store, ingest: Ingest) -> None:
    year = 365 * 86_400 * 1_000_000
    events = [
        Event(b"a" * 16, 4, "p", NOW - 5 * year, 1_000_000, 7),  # 5 years off, 2 s ago
        Event(b"b" * 16, 4, "p", NOW - 5 * year, 1_000_000, 6),  # an earlier boot: unknown
        Event(b"c" * 16, 4, "p", NOW - 2_300_000, 1_000_000, 7),  # right within a second
    ]
    batch = EventBatch(1, DEVICE, "t", 1, 1, 7, 3_000_000, events)
    assert ingest.accept(DEVICE, frame(1, batch, BatchKind.EVENTS), NOW) == Ack(1)
    stored = {row["id"][:1]: row["ts_us"] for row in rows(store, tables.event_raw)}
    assert stored == {b"a": NOW - 2_000_000, b"b": NOW - 5 * year, b"c": NOW - 2_300_000}


def test_a_repeated_batch_changes_nothing(store: Store) -> None:
    heard: list[int] = []
    with Ingest(store, lambda _d, batch, _n: heard.append(batch.seq)) as ingest:
        for seq in (1, 2):
            assert ingest.accept(DEVICE, results(seq, result(seq)), NOW) == Ack(seq)
        assert ingest.accept(DEVICE, results(1, result(1)), NOW) == Ack(2)
        assert ingest.counts["repeated"] == 1
    assert heard == [1, 2]
    assert count(store, tables.result) == 2


def test_a_record_that_comes_again_under_another_number_is_stored_once(store: Store) -> None:
    seen: list[ResultBatch] = []
    with Ingest(store, lambda _d, batch, _n: seen.append(batch)) as ingest:
        run = RunSummary(b"r" * 16, "t", 1, 302, "process", 1, 1, 1)
        ingest.accept(DEVICE, results(1, result(1, 0.1), runs=[run]), NOW)
        ingest.accept(DEVICE, results(2, result(1, 0.9), result(2), runs=[run]), NOW)
    assert {row["value"] for row in rows(store, tables.result)} == {0.1, 0.5}
    assert [r.id for r in seen[1].results] == [result(2).id]
    assert (len(seen[0].runs), len(seen[1].runs)) == (1, 0)


def test_a_later_revision_of_a_feature_wins_whatever_the_order(store: Store) -> None:
    with Ingest(store) as ingest:
        ingest.accept(DEVICE, results(1, features=[feature("k", 2, revision=2)]), NOW)
        ingest.accept(DEVICE, results(2, features=[feature("k", 1, revision=1)]), NOW)
        ingest.accept(
            DEVICE,
            results(3, features=[feature("j", 5, revision=5), feature("j", 4, revision=4)]),
            NOW,
        )
        assert {r["key"]: r["revision"] for r in rows(store, tables.feature)} == {"k": 2, "j": 5}
        newer = feature("k", 9, ts_us=NOW + 1)
        ingest.accept(DEVICE, results(4, features=[newer]), NOW)
    stored = {
        row["key"]: struct.unpack("<2f", row["value"])[0] for row in rows(store, tables.feature)
    }
    assert stored == {"k": 9, "j": 5}


# -- numbers ----------------------------------------------------------------------------------


def test_a_gap_is_refused_and_may_come_again(store: Store, ingest: Ingest) -> None:
    answer = ingest.accept(DEVICE, results(3, result(3)), NOW)
    assert isinstance(answer, Nack)
    assert (answer.code, answer.retry_ms >= 0) == (ErrorCode.WINDOW_EXCEEDED, True)
    assert (count(store, tables.result), count(store, tables.dead_letter)) == (0, 0)
    for seq in (1, 2, 3):
        assert ingest.accept(DEVICE, results(seq, result(seq)), NOW) == Ack(seq)


def test_cursors_of_devices_are_their_own(ingest: Ingest) -> None:
    assert ingest.accept(DEVICE, results(1, result(1)), NOW) == Ack(1)
    assert isinstance(ingest.accept(OTHER, results(2, result(2), device=OTHER), NOW), Nack)
    assert ingest.accept(OTHER, results(1, result(3), device=OTHER), NOW) == Ack(1)


def test_a_lost_cursor_moves_up_to_what_the_device_knows(store: Store, ingest: Ingest) -> None:
    assert ingest.resume(DEVICE, 0, NOW).result() == 0
    assert ingest.resume(DEVICE, 40, NOW).result() == 40
    assert dropped(store) == {"cursor_lost": 40}
    assert ingest.resume(DEVICE, 12, NOW).result() == 40  # never down
    assert ingest.accept(DEVICE, results(41, result(1)), NOW) == Ack(41)
    assert ingest.resume(DEVICE, 1 << 60, NOW).result() == 41  # nonsense moves nothing


@pytest.mark.parametrize("seq", [0, -1, 1 << 53, 1 << 63])
def test_numbers_out_of_range_are_refused(ingest: Ingest, seq: int) -> None:
    answer = ingest.accept(DEVICE, Batch(seq, 2, 0, 0, b""), NOW)
    assert isinstance(answer, Nack)
    assert (answer.code, answer.retry_ms) == (ErrorCode.BAD_FRAME, -1)


# -- the broken and the hostile ---------------------------------------------------------------


def _bomb() -> Batch:
    return Batch(1, BatchKind.RESULTS, Codec.ZSTD, 0, zstd.compress(bytes(64 << 20)))


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (_bomb, ErrorCode.TOO_LARGE),
        (lambda: Batch(1, 2, Codec.ZSTD, 0, b"\x00noise"), ErrorCode.BAD_FRAME),
        (lambda: Batch(1, 2, 77, 0, b"?"), ErrorCode.BAD_FRAME),
        (lambda: frame(1, ResultBatch(1, DEVICE, 1), kind=9), ErrorCode.BAD_FRAME),
        (lambda: frame(1, ResultBatch(1, DEVICE, 5)), ErrorCode.BAD_FRAME),
        (lambda: frame(1, b"\xc1 no msgpack"), ErrorCode.SCHEMA_MISMATCH),
        (lambda: frame(1, {"not": "a batch"}), ErrorCode.SCHEMA_MISMATCH),
        (lambda: frame(1, b"\x91" * 100_000), ErrorCode.SCHEMA_MISMATCH),  # nested for ever
        (lambda: frame(1, ResultBatch(2, DEVICE, 1)), ErrorCode.SCHEMA_MISMATCH),  # newer
        (lambda: results(1, result(1), device=OTHER), ErrorCode.NOT_ENTITLED),
        (lambda: frame(1, EventBatch(1, OTHER, "t", 1, 1, 0, 0, []), 1), ErrorCode.NOT_ENTITLED),
        (lambda: frame(1, TaskProfile(device=OTHER, agent="a"), 3), ErrorCode.NOT_ENTITLED),
    ],
)
def test_a_batch_that_cannot_be_read_is_a_dead_letter(
    store: Store, ingest: Ingest, make: Callable[[], Batch], code: ErrorCode
) -> None:
    batch = make()
    answer = ingest.accept(DEVICE, batch, NOW)
    assert isinstance(answer, Nack)
    assert (answer.seq, answer.code, answer.retry_ms) == (1, code, -1)
    (letter,) = rows(store, tables.dead_letter)
    assert (letter["device"], letter["seq"], letter["code"]) == (DEVICE, 1, code)
    assert letter["body"] == batch.body
    assert dropped(store) == {f"batch_{code.name.lower()}": 1}
    # The next one is taken, and the bad one is not stored twice when it comes again.
    assert ingest.accept(DEVICE, results(2, result(2)), NOW) == Ack(2)
    assert ingest.accept(DEVICE, batch, NOW) == Ack(2)
    assert (count(store, tables.dead_letter), count(store, tables.result)) == (1, 1)


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "bad",
    [
        result(1, math.nan),
        result(1, {"x": [math.inf]}),
        result(1, _deep(40)),
        result(1, 1 << 63),
        result(1, {(1, 2): 3}),
        result(1, msgspec.msgpack.Ext(4, b"x")),
        result(1, id=b"short"),
        result(1, name="n" * 2000),
        result(1, task="nul\0"),
        result(1, ts_us=1 << 63),
        feature("k", math.nan),
        feature("k", dtype="f32[3]"),
        feature("k", dtype="f32[x]"),
        feature("k", dtype="json", value=b"{"),
        feature("k", dtype="json", value=b"NaN"),
        feature("k", dtype="msgpack", value=msgspec.msgpack.encode(math.nan)),
        feature("k" * 2000),
        RunSummary(b"r", "t", 1, 0, "process", 1, 1, 1),
        RunSummary(b"r" * 16, "t", 1, 5000, "process", 1, 1, 1),
        RunSummary(b"r" * 16, "t", 1, 0, "process", -5, 1, 1),
        InstallReport("t", 1, "good", -1),
    ],
)
def test_a_bad_record_is_put_aside_and_its_neighbours_are_kept(
    store: Store, ingest: Ingest, bad: Any
) -> None:
    kind = {ResultRecord: "results", FeatureRecord: "features", RunSummary: "runs"}
    lists: dict[str, list[Any]] = {"results": [result(2)], "features": [feature("good")]}
    lists.setdefault(kind.get(type(bad), "installs"), []).append(bad)
    answer = ingest.accept(DEVICE, frame(1, ResultBatch(1, DEVICE, 1, **lists)), NOW)
    assert isinstance(answer, Nack)
    assert (answer.code, answer.retry_ms) == (ErrorCode.SCHEMA_MISMATCH, -1)
    assert [row["id"] for row in rows(store, tables.result)] == [result(2).id]
    assert [row["key"] for row in rows(store, tables.feature)] == ["good"]
    assert count(store, tables.run_summary) == 0
    (letter,) = rows(store, tables.dead_letter)
    assert len(msgspec.msgpack.decode(letter["body"], strict=False)) == 1
    assert dropped(store) == {"record_schema_mismatch": 1}


@pytest.mark.parametrize(
    "bad",
    [
        Event(b"short", 4, "p", NOW),
        Event(b"v" * 16, 70_000, "p", NOW),
        Event(b"v" * 16, 4, "p", NOW, content={"x": "y" * 9000}),
        Event(b"v" * 16, 4, "p", NOW, content={"x": _deep(9)}),
        Event(b"v" * 16, 4, "p", NOW, visit=b"short"),
    ],
)
def test_a_bad_event_is_put_aside(store: Store, ingest: Ingest, bad: Event) -> None:
    good = Event(b"g" * 16, 4, "p", NOW, content={"x": 1})
    batch = EventBatch(1, DEVICE, "t", 1, 1, 0, 0, [bad, good])
    assert isinstance(ingest.accept(DEVICE, frame(1, batch, BatchKind.EVENTS), NOW), Nack)
    assert [row["id"] for row in rows(store, tables.event_raw)] == [b"g" * 16]
    assert count(store, tables.dead_letter) == 1


def test_one_device_cannot_fill_the_disk_with_dead_letters(store: Store, ingest: Ingest) -> None:
    answers = [
        ingest.submit(DEVICE, Batch(seq, 2, 0, 0, b"nonsense"), NOW)
        for seq in range(1, MAX_OF_DEVICE + 11)
    ]
    assert all(isinstance(answer.result(), Nack) for answer in answers)
    assert count(store, tables.dead_letter) == MAX_OF_DEVICE
    assert dropped(store)["dead_letter_overflow"] == 10


def test_an_unknown_dictionary_asks_for_another_coding(store: Store, ingest: Ingest) -> None:
    batch = Batch(1, 2, Codec.ZSTD_DICTIONARY, 5, zstd.compress(b"x" * 99))
    answer = ingest.accept(DEVICE, batch, NOW)
    assert isinstance(answer, Nack)
    assert (answer.code, answer.retry_ms) == (ErrorCode.UNKNOWN_DICTIONARY, 0)
    assert count(store, tables.dead_letter) == 0
    assert ingest.accept(DEVICE, results(1, result(1)), NOW) == Ack(1)


def test_odd_reasons_of_a_device_are_counted_as_other(store: Store) -> None:
    seen: list[dict[str, int]] = []
    with Ingest(store, lambda _d, batch, _n: seen.append(batch.dropped)) as ingest:
        odd = {"outbox_idle": 3, "Bad Reason\n": 4, "x" * 99: 5, "minus": -7}
        ingest.accept(DEVICE, results(1, dropped=odd), NOW)
    assert seen == [{"outbox_idle": 3, "other": 9}]


# -- model versions ---------------------------------------------------------------------------


def _publish(store: Store, task: str, version: int, model_version: str | None) -> None:
    with store.begin() as connection:
        connection.execute(
            store.insert_ignore(tables.scenario), {"name": "s", "repo": "", "created_us": 1}
        )
        connection.execute(
            store.insert_ignore(tables.task), {"name": task, "scenario": "s", "created_us": 1}
        )
        connection.execute(sa.insert(tables.task_version), {
            "task": task, "version": version, "package_sha256": bytes(32), "size": 1,
            "manifest": {"model_version": model_version}, "created_us": 1,
        })  # fmt: skip


def test_a_declared_model_version_is_the_only_one(store: Store, ingest: Ingest) -> None:
    _publish(store, "t", 1, "m1")
    _publish(store, "t", 2, "m2")
    good = [feature("a", model_version="m1"), feature("b", version=2, model_version="m2")]
    bad = [feature("c", model_version="m2"), feature("d", version=2), feature("e")]
    answer = ingest.accept(
        DEVICE,
        results(1, result(1), result(2, model_version="m9"), result(3, model_version="m1"),
                features=[*good, *bad]),
        NOW,
    )  # fmt: skip
    assert isinstance(answer, Nack)
    assert (answer.code, answer.retry_ms) == (ErrorCode.MODEL_VERSION_SKEW, -1)
    assert {row["key"] for row in rows(store, tables.feature)} == {"a", "b"}
    assert {row["id"] for row in rows(store, tables.result)} == {result(1).id, result(3).id}
    assert dropped(store) == {"record_model_version_skew": 4}
    (letter,) = rows(store, tables.dead_letter)
    assert len(msgspec.msgpack.decode(letter["body"])) == 4


def test_without_a_declaration_a_stream_keeps_the_model_it_began_with(store: Store) -> None:
    with Ingest(store) as ingest:
        first = results(1, features=[feature("a", model_version="m1")])
        assert ingest.accept(DEVICE, first, NOW) == Ack(1)
    with Ingest(store) as ingest:  # remembered by the table, not by the process
        other = [feature("b", model_version="m2"), feature("c")]
        assert isinstance(ingest.accept(DEVICE, results(2, features=other), NOW), Nack)
        same = results(3, features=[feature("d", model_version="m1")])
        assert ingest.accept(DEVICE, same, NOW) == Ack(3)
        next_version = results(4, features=[feature("e", version=2, model_version="m2")])
        assert ingest.accept(DEVICE, next_version, NOW) == Ack(4)
        # One hostile device does not decide for the others.
        theirs = results(1, features=[feature("a", model_version="m7")], device=OTHER)
        assert ingest.accept(OTHER, theirs, NOW) == Ack(1)
    assert {row["key"] for row in rows(store, tables.feature)} == {"a", "d", "e"}


# -- callbacks --------------------------------------------------------------------------------


def test_a_callback_writes_in_the_same_transaction(store: Store) -> None:
    def callback(device: bytes, batch: ResultBatch, now_us: int) -> None:
        with store.begin() as connection:
            number = connection.execute(sa.select(sa.func.count(tables.result.c.id))).scalar_one()
        store.put("seen", [device.hex(), batch.seq, now_us, number])

    with Ingest(store, callback) as ingest:
        ingest.accept(DEVICE, results(1, result(1)), NOW)
    assert store.get("seen") == [DEVICE.hex(), 1, NOW, 1]


def test_a_failing_callback_loses_its_own_writes_only(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    def callback(_device: bytes, batch: ResultBatch, _now_us: int) -> None:
        store.put(f"seen{batch.seq}", 1)
        if batch.seq == 1:
            raise ZeroDivisionError

    with Ingest(store, callback) as ingest:
        assert ingest.accept(DEVICE, results(1, result(1)), NOW) == Ack(1)
        assert ingest.accept(DEVICE, results(2, result(2)), NOW) == Ack(2)
    assert (store.get("seen1"), store.get("seen2")) == (None, 1)
    assert count(store, tables.result) == 2
    assert dropped(store) == {"callback_failed": 1}
    assert "callback" in caplog.text


def test_a_profile_goes_to_its_handler(store: Store) -> None:
    seen: list[TaskProfile] = []
    profile = TaskProfile(device=DEVICE, agent="a")
    with Ingest(store, on_profile=lambda _d, made, _n: seen.append(made)) as ingest:
        assert ingest.accept(DEVICE, frame(1, profile, BatchKind.PROFILE), NOW) == Ack(1)
    assert seen == [profile]
    with Ingest(store) as ingest:
        assert isinstance(ingest.accept(DEVICE, frame(2, profile, BatchKind.PROFILE), NOW), Nack)


# -- many at once, and trouble ----------------------------------------------------------------


def test_many_event_loops_and_threads_share_transactions(store: Store) -> None:
    devices = [os.urandom(16) for _ in range(40)]
    batches = 10
    with Ingest(store) as ingest:

        async def one(device: bytes) -> None:
            for seq in range(1, batches + 1):
                record = ResultRecord(os.urandom(16), "t", 1, "late", NOW, seq)
                batch = results(seq, record, device=device)
                future = ingest.submit(device, batch, NOW)
                assert await asyncio.wrap_future(future) == Ack(seq)

        def loop(some: list[bytes]) -> None:
            async def all_of_them() -> None:
                await asyncio.gather(*map(one, some))

            asyncio.run(all_of_them())

        threads = [threading.Thread(target=loop, args=(devices[n::4],)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ingest.counts["taken"] == 400
        assert ingest.counts["groups"] < 400  # they did share
    assert count(store, tables.result) == 400
    assert {row["seq"] for row in rows(store, tables.cursor)} == {batches}


def test_a_full_queue_answers_come_again_and_loses_nothing(store: Store) -> None:
    held = threading.Event()
    with Ingest(store, lambda *_: held.wait(30) and None, max_waiting_bytes=2000) as ingest:
        first = ingest.submit(DEVICE, results(1, result(1)), NOW)
        futures = [ingest.submit(DEVICE, results(n, result(n)), NOW) for n in range(2, 40)]
        busy = [f.result() for f in futures if f.done()]
        assert busy
        assert ingest.pressure > 0.5
        assert {(a.code, a.retry_ms > 0) for a in busy if isinstance(a, Nack)} == {
            (ErrorCode.RATE_LIMITED, True)
        }
        held.set()
        assert first.result() == Ack(1)
        done = [f.result() for f in futures]
        taken = 1 + sum(isinstance(a, Ack) for a in done)
        for n in range(taken + 1, 40):
            assert ingest.accept(DEVICE, results(n, result(n)), NOW) == Ack(n)
        assert ingest.pressure == 0
    assert count(store, tables.result) == 39


def test_a_store_that_is_away_keeps_the_batch_with_the_device(
    store: Store, ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise sa.exc.OperationalError("INSERT", {}, Exception("disk I/O error"))

    with monkeypatch.context() as patch:
        patch.setattr(store, "begin", away)
        answer = ingest.accept(DEVICE, results(1, result(1)), NOW)
        assert isinstance(answer, Nack)
        assert (answer.code, answer.retry_ms > 0) == (ErrorCode.RATE_LIMITED, True)
        with pytest.raises(UnavailableError):
            ingest.resume(DEVICE, 0, NOW).result()
    assert ingest.accept(DEVICE, results(1, result(1)), NOW) == Ack(1)


def test_a_poison_batch_does_not_take_its_group_with_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect of ours on one batch: that one becomes a dead letter, the others are stored."""
    from shoal.cloud.rows import RowWriter

    honest = RowWriter.add_results

    def poisoned(self: RowWriter, device: bytes, batch: ResultBatch, now: int) -> int:
        if any(record.value == "poison" for record in batch.results):
            raise sa.exc.DataError("INSERT", {}, Exception("no such value"))
        return honest(self, device, batch, now)

    monkeypatch.setattr(RowWriter, "add_results", poisoned)
    gate = threading.Event()
    with Ingest(store, lambda *_: gate.wait(30) and None) as ingest:
        first = ingest.submit(DEVICE, results(1, result(1)), NOW)
        futures = [
            ingest.submit(DEVICE, results(2, result(2, "poison")), NOW),
            ingest.submit(DEVICE, results(3, result(3)), NOW),
            ingest.submit(OTHER, results(1, result(4), device=OTHER), NOW),
        ]
        gate.set()
        assert first.result() == Ack(1)
        answers = [future.result() for future in futures]
    assert isinstance(answers[0], Nack)
    assert (answers[0].code, answers[0].retry_ms) == (ErrorCode.SCHEMA_MISMATCH, -1)
    assert answers[1:] == [Ack(3), Ack(1)]
    assert count(store, tables.result) == 3
    assert dropped(store) == {"batch_schema_mismatch": 1}


def test_after_close_nothing_is_promised(store: Store) -> None:
    ingest = Ingest(store)
    future = ingest.submit(DEVICE, results(1, result(1)), NOW)
    ingest.close()
    ingest.close()
    assert future.result() == Ack(1)  # what waited was stored
    assert isinstance(ingest.accept(DEVICE, results(2, result(2)), NOW), Nack)
    with pytest.raises(UnavailableError):
        ingest.resume(DEVICE, 0, NOW).result()


@settings(max_examples=150, deadline=None)
@given(noise=st.binary(max_size=80), kind=st.integers(0, 4), codec=st.integers(0, 3))
def test_noise_never_stops_the_writer(
    noise: bytes, kind: int, codec: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ingest = _shared(tmp_path_factory)
    device = os.urandom(16)
    answer = ingest.accept(device, Batch(1, kind, codec, 0, noise), NOW)
    assert isinstance(answer, Nack)
    seq = 2 if answer.retry_ms < 0 else 1  # put aside, or to come again in another coding
    assert (seq == 1) == (codec == Codec.ZSTD_DICTIONARY)
    assert ingest.accept(device, results(seq, result(1), device=device), NOW) == Ack(seq)


_made: list[Ingest] = []


def _shared(factory: pytest.TempPathFactory) -> Ingest:
    if not _made:
        _made.append(Ingest(Store(f"sqlite:///{factory.mktemp('noise')}/cloud.db")))
    return _made[0]
