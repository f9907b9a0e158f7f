"""The tunnel without wires: frames lost, doubled, reordered, either end forgetting.

The device's real uplink and send window speak to the cloud's real ingest over a
network made of lists. Whatever happens, every result is stored once, and the
batches of a device are applied once and in order.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.cloud import store as tables
from shoal.cloud.ingest import Ingest
from shoal.cloud.store import Store
from shoal.core.errors import InputError
from shoal.device.store import DeviceStore
from shoal.device.uplink import Uplink
from shoal.device.window import ByeError, SendWindow
from shoal.wire.codes import ErrorCode
from shoal.wire.compression import BodyCodec, train_dictionary
from shoal.wire.frames import (
    Ack,
    Batch,
    Bye,
    Codec,
    Frame,
    Hello,
    Nack,
    Notice,
    Pause,
    Ping,
    Pong,
    Welcome,
)
from shoal.wire.manifest import OutputSpec
from shoal.wire.results import ResultBatch, ResultRecord

NOW = 1_700_000_000_000_000
OUTPUTS = [OutputSpec(name=name, uplink=name) for name in ("now", "soon", "idle")]


class Cloud:
    """A real ingest that notes what it applied."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(f"sqlite:///{folder}/cloud.db")
        self.applied: dict[bytes, list[int]] = {}
        self.ingest = Ingest(self.store, self._note)

    def _note(self, device: bytes, batch: ResultBatch, _now_us: int) -> None:
        self.applied.setdefault(device, []).append(batch.seq)

    def restart(self) -> None:
        self.ingest.close()
        self.ingest = Ingest(self.store, self._note)

    def forget_cursor(self, device: bytes) -> None:
        with self.store.begin() as connection:
            connection.execute(sa.delete(tables.cursor).where(tables.cursor.c.device == device))

    def stored(self, device: bytes) -> list[int]:
        query = sa.select(tables.result.c.value).where(tables.result.c.device == device)
        with self.store.read() as connection:
            return sorted(connection.execute(query).scalars())


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    made = Cloud(tmp_path_factory.mktemp("cloud"))
    yield made
    made.ingest.close()
    made.store.close()


class Device:
    """A real uplink and the network between it and the cloud."""

    def __init__(self, folder: Path, cloud: Cloud) -> None:
        self.folder = folder
        self.cloud = cloud
        self.id = os.urandom(16)
        self.clock = 0.0
        self.number = 0
        self.expected: set[int] = set()
        self.to_cloud: list[Frame] = []
        self.to_device: list[Frame] = []
        self.window: SendWindow | None = None
        self.notices: list[tuple[int, int, int]] = []
        self.open()

    def open(self) -> None:
        self.store = DeviceStore(self.folder)
        self.uplink = Uplink(self.store, self.id)
        self.uplink.declare_outputs("t", 1, OUTPUTS)

    def put(self, name: str, count: int, size: int = 0) -> None:
        records = []
        for _ in range(count):
            self.number += 1
            self.expected.add(self.number)
            unique = random.Random(self.number).randbytes(size).hex()
            key = self.id[:8] + self.number.to_bytes(8, "big")
            records.append(ResultRecord(key, "t", 1, name, NOW, self.number, unique or None))
        with self.store.transaction() as cursor:
            assert self.uplink.put_results(cursor, records, NOW) == count

    def connect(self) -> None:
        # What the old connection had under way may still reach the cloud, late.
        self.to_device.clear()
        self.window = SendWindow(
            self.uplink, self.id, "token", "agent",
            on_notice=lambda *address: self.notices.append(address),
            monotonic=lambda: self.clock,
        )  # fmt: skip
        self.to_cloud.append(self.window.hello())

    def send(self) -> None:
        if self.window is not None:
            self.uplink.seal(NOW, everything=True)
            try:
                self.to_cloud += self.window.frames()
            except ByeError:
                self.connect()

    def serve(self, place: int, keep: bool) -> None:
        """Let one frame reach the cloud, and its answer set out."""
        if not self.to_cloud:
            return
        place %= len(self.to_cloud)
        frame = self.to_cloud[place] if keep else self.to_cloud.pop(place)
        if isinstance(frame, Hello):
            ack = self.cloud.ingest.resume(self.id, frame.resume_seq, NOW).result()
            self.to_device.append(Welcome(b"c", ack, 4, 256 * 1024, Codec.ZSTD, 0, NOW))
        else:
            assert isinstance(frame, Batch)
            self.to_device.append(self.cloud.ingest.accept(self.id, frame, NOW))

    def hear(self, place: int, keep: bool) -> None:
        """Let one answer reach the device."""
        if not self.to_device or self.window is None:
            return
        place %= len(self.to_device)
        frame = self.to_device[place] if keep else self.to_device.pop(place)
        try:
            self.window.take(frame)
        except (ByeError, InputError):  # a doubled WELCOME, an ACK before it: begin again
            self.connect()

    def settle(self) -> None:
        """With an orderly network from now on, all has to arrive."""
        self.to_cloud.clear()
        self.connect()
        for _ in range(400):
            self.clock += 1
            self.send()
            while self.to_cloud:
                self.serve(0, keep=False)
            while self.to_device:
                self.hear(0, keep=False)
            if self.window is not None and self.window.welcomed and not self.uplink.has_work:
                return
        raise AssertionError("the tunnel does not settle")


STEPS = {
    "put": 3, "send": 4, "serve": 8, "serve again": 1, "hear": 8, "hear again": 0.5, "lose up": 1,
    "lose down": 1, "connect": 0.7, "time": 1, "restart device": 0.4, "restart cloud": 0.05,
}  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), forget=st.booleans(), disorder=st.sampled_from([0, 0.1, 0.5]))
def test_every_batch_is_applied_once_and_in_order_on_any_network(
    seed: int, forget: bool, disorder: float, cloud: Cloud, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # Long random walks, not Hypothesis' own short lists: trouble needs a history.
    chance = random.Random(seed)
    device = Device(tmp_path_factory.mktemp("device"), cloud)
    device.connect()
    weights = STEPS | ({"forget cursor": 0.3} if forget else {})
    for step in chance.choices(list(weights), list(weights.values()), k=150):
        place = chance.randrange(4) if chance.random() < disorder else 0
        if step == "put":
            device.put(chance.choice(["now", "soon", "idle"]), chance.randint(1, 3), size=50)
        elif step == "send":
            device.send()
        elif step.startswith("serve"):
            device.serve(place, keep=step.endswith("again"))
        elif step.startswith("hear"):
            device.hear(place, keep=step.endswith("again"))
        elif step == "lose up" and device.to_cloud:
            device.to_cloud.pop(place % len(device.to_cloud))
        elif step == "lose down" and device.to_device:
            device.to_device.pop(place % len(device.to_device))
        elif step == "connect":
            device.connect()
        elif step == "time":
            device.clock += 1
        elif step == "restart device":
            device.store.close()
            device.open()
            device.window = None
            device.to_device.clear()
            device.connect()
        elif step == "restart cloud":
            cloud.restart()
        elif step == "forget cursor":
            cloud.forget_cursor(device.id)
    device.settle()
    assert cloud.stored(device.id) == sorted(device.expected)
    applied = cloud.applied.get(device.id, [])
    if not forget:  # with its cursor the cloud forgets that a batch was applied; ids remain
        assert applied == list(range(1, len(applied) + 1))
    device.store.close()


def _orderly(cloud: Cloud, folder: Path, batches: int) -> Device:
    device = Device(folder, cloud)
    for _ in range(batches):
        device.put("now", 1)
        device.settle()
    return device


def test_a_wiped_device_loses_none_of_its_new_results(cloud: Cloud, tmp_path: Path) -> None:
    device = _orderly(cloud, tmp_path / "d", 12)
    device.store.close()
    shutil.rmtree(tmp_path / "d")
    device.open()  # numbers begin at 1 again, the cursor is at 12
    assert device.uplink.resume_seq == 0
    for _ in range(3):
        device.put("now", 1)
    device.settle()
    assert cloud.stored(device.id) == sorted(device.expected)
    assert (device.uplink.resume_seq, device.uplink.jumps) == (13, 1)


def test_without_the_jump_a_wiped_device_would_lose_results(cloud: Cloud, tmp_path: Path) -> None:
    """Negative control: taking no notice of WELCOME's cursor loses what is new."""
    device = _orderly(cloud, tmp_path / "d", 3)
    device.store.close()
    shutil.rmtree(tmp_path / "d")
    device.open()
    device.put("now", 1)
    device.uplink.welcomed(0)  # a device that does not believe the cloud
    device.uplink.seal(NOW)
    (batch,) = device.uplink.pending()
    assert cloud.ingest.accept(device.id, batch, NOW) == Ack(3)  # taken for a repetition
    assert cloud.stored(device.id) != sorted(device.expected)


def test_an_old_image_of_the_device_loses_nothing(cloud: Cloud, tmp_path: Path) -> None:
    device = _orderly(cloud, tmp_path / "d", 4)
    device.put("soon", 2)
    device.store.close()
    shutil.copytree(tmp_path / "d", tmp_path / "image")
    device.open()
    device.put("now", 3)
    device.settle()
    device.store.close()
    device.folder = tmp_path / "image"  # restored: it knows of 4 batches, the cloud of more
    device.open()
    device.put("now", 1)
    device.settle()
    assert cloud.stored(device.id) == sorted(device.expected)


def test_a_restored_cloud_gets_all_that_was_not_acknowledged(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    cloud = Cloud(tmp_path / "old")
    device = _orderly(cloud, tmp_path / "d", 3)
    cloud.ingest.close()
    cloud.store.close()
    shutil.copytree(tmp_path / "old", tmp_path / "copy")
    cloud = device.cloud = Cloud(tmp_path / "old")
    for _ in range(4):
        device.put("now", 1)
        device.settle()
    cloud.ingest.close()
    cloud.store.close()
    cloud = device.cloud = Cloud(tmp_path / "copy")  # its cursor is at 3, the device at 7
    device.put("now", 2)
    device.settle()
    assert cloud.stored(device.id) == [1, 2, 3, 8, 9]
    with cloud.store.read() as connection:
        (lost,) = connection.execute(sa.select(tables.dropped.c.total)).scalars()
    assert lost == 4  # batches that were acknowledged and are gone with the database: counted
    cloud.ingest.close()
    cloud.store.close()


# -- the window itself ------------------------------------------------------------------------


@pytest.fixture
def device(cloud: Cloud, tmp_path: Path) -> Device:
    made = Device(tmp_path, cloud)
    made.connect()
    return made


def _welcome(**fields: int) -> Welcome:
    values = {"ack_seq": 0, "window": 4, "max_frame": 65_536, "codec": 1, "dictionary": 0}
    return Welcome(b"c", server_time_us=NOW, **{**values, **fields})


def _fill(device: Device, count: int) -> SendWindow:
    assert device.window is not None
    device.window.take(_welcome())
    for _ in range(count):
        device.put("now", 1, size=20_000)
    device.uplink.seal(NOW)
    return device.window


def test_nothing_is_sent_before_welcome(device: Device) -> None:
    device.put("now", 1)
    device.send()
    assert [type(frame) for frame in device.to_cloud] == [Hello]
    assert device.window is not None
    with pytest.raises(InputError, match="before WELCOME"):
        device.window.take(Ack(1))


def test_the_window_bounds_what_is_under_way(device: Device) -> None:
    window = _fill(device, 10)
    assert [b.seq for b in window.frames()] == [1, 2, 3, 4]
    assert window.frames() == []
    window.take(Ack(2))
    assert [b.seq for b in window.frames()] == [5, 6]


def test_a_refusal_for_now_goes_back_to_that_batch(device: Device) -> None:
    window = _fill(device, 4)
    assert len(window.frames()) == 4
    window.take(Ack(1))
    window.take(Nack(2, ErrorCode.RATE_LIMITED, 500))
    window.take(Nack(3, ErrorCode.WINDOW_EXCEEDED, 0))
    window.take(Nack(4, ErrorCode.WINDOW_EXCEEDED, 0))
    assert window.frames() == []
    assert window.wait_s(9) == pytest.approx(0.5)
    device.clock += 0.6
    assert [b.seq for b in window.frames()] == [2, 3, 4]
    window.take(Ack(4))  # a late one may speak for more than was sent again
    assert device.uplink.unacknowledged == 0


def test_a_refusal_for_ever_is_not_repeated(device: Device) -> None:
    window = _fill(device, 3)
    window.frames()
    window.take(Nack(2, ErrorCode.SCHEMA_MISMATCH, -1, "no"))
    assert [b.seq for b in device.uplink.pending()] == [1, 3]
    window.take(Ack(3))
    assert not device.uplink.has_work
    assert device.uplink.dropped() == {"refused_109": 1}


def test_a_cloud_that_waits_for_another_batch_is_greeted_anew(device: Device) -> None:
    window = _fill(device, 1)
    with pytest.raises(ByeError, match="another batch"):
        for _ in range(9):
            (batch,) = window.frames()
            window.take(Nack(batch.seq, ErrorCode.WINDOW_EXCEEDED, 0))


def test_pause_holds_the_classes_it_names(device: Device) -> None:
    assert device.window is not None
    window = device.window
    window.take(_welcome(window=8))
    for name in ("idle", "soon", "now"):
        device.put(name, 1)
    device.uplink.seal(NOW, everything=True)
    window.take(Pause(1000, "all"))
    assert window.frames() == []
    assert window.wait_s(5) == pytest.approx(1.0)
    device.clock = 1.5
    window.take(Pause(1000, "soon"))
    assert len(window.frames()) == 1
    device.clock = 3
    window.take(Pause(1000, "idle"))
    assert len(window.frames()) == 1
    device.clock = 5
    assert len(window.frames()) == 1
    with pytest.raises(InputError, match="scope"):
        window.take(Pause(1, "everything"))


def test_a_long_pause_is_bounded(device: Device) -> None:
    window = _fill(device, 1)
    window.take(Pause(2**40, "all"))
    assert window.wait_s(1e9) <= 300


def test_notices_and_pings_are_answered(device: Device) -> None:
    assert device.window is not None
    assert device.window.take(Ping(77)) == Pong(77)
    assert device.window.take(Pong(78)) is None
    device.window.take(Notice(5, 2, 1))
    assert device.notices == [(5, 2, 1)]


@pytest.mark.parametrize(
    "frame",
    [
        _welcome(), _welcome(window=0), Ack(99), Hello(1, "t", b"", "a", 0),
        Batch(1, 2, 0, 0, b""),
    ],
)  # fmt: skip
def test_what_a_cloud_cannot_say_ends_the_connection(device: Device, frame: Frame) -> None:
    window = _fill(device, 1)
    window.frames()
    with pytest.raises(InputError):
        window.take(frame)
    assert device.uplink.has_work  # and costs nothing


@pytest.mark.parametrize("fields", [{"window": 0}, {"window": 10**6}, {"ack_seq": -1}])
def test_a_senseless_welcome_is_refused(device: Device, fields: dict[str, int]) -> None:
    assert device.window is not None
    with pytest.raises(InputError, match="range"):
        device.window.take(_welcome(**fields))


def test_bye_ends_with_its_code(device: Device) -> None:
    assert device.window is not None
    with pytest.raises(ByeError) as caught:
        device.window.take(Bye(ErrorCode.DEVICE_REVOKED, "out"))
    assert caught.value.code == ErrorCode.DEVICE_REVOKED


def test_a_dictionary_is_used_when_both_have_it_and_given_up_on_108(
    device: Device, cloud: Cloud
) -> None:
    trained = train_dictionary(
        (random.Random(n).randbytes(30) + b"departure_delay late" * 3 for n in range(300)), 2048
    )
    device.uplink.codec = BodyCodec({3: trained})
    device.connect()
    assert device.window is not None
    hello = device.window.hello()
    assert (hello.codecs, hello.dictionaries) == ([0, 1, 2], [3])
    device.window.take(_welcome(codec=Codec.ZSTD_DICTIONARY, dictionary=3))
    device.put("now", 5)
    device.uplink.seal(NOW)
    (batch,) = device.window.frames()
    assert (batch.codec, batch.dictionary) == (Codec.ZSTD_DICTIONARY, 3)
    answer = cloud.ingest.accept(device.id, batch, NOW)  # this cloud has lost it
    assert isinstance(answer, Nack)
    device.window.take(answer)
    (batch,) = device.window.frames()
    assert batch.codec != Codec.ZSTD_DICTIONARY
    assert cloud.ingest.accept(device.id, batch, NOW) == Ack(1)


def test_a_replaced_store_begins_again(device: Device) -> None:
    window = _fill(device, 1)
    device.store.moved_aside += 1
    with pytest.raises(ByeError, match="begin again"):
        window.frames()
