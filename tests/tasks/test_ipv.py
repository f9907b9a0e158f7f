"""The IPV task through log, triggers, runner and container, against batches over the whole log."""

from __future__ import annotations

import importlib.util
import math
import random
import struct
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import InputError
from shoal.data.shop import Shop, ShopConfig
from shoal.device import DeviceStore, EventLog, TaskCode, Uplink, VMPool, VMPoolConfig
from shoal.device.jobs import LogView
from shoal.device.packages import InstalledTask
from shoal.device.runner import TaskRunner
from shoal.device.stream.features import FeatureStore
from shoal.device.stream.ipv import ACTIONS, SOURCES, IpvFold, encode_record, ipv_vector
from shoal.tasks.ipv import write_task_folder
from shoal.wire import Event, EventBatch, ResultBatch
from shoal.wire.frames import Codec
from shoal.wire.package import TaskPackage, build_package
from shoal.wire.specs import parse_pattern

DEVICE = bytes(range(16))
MINUTE = 60_000_000
MESSY = ShopConfig(out_of_order=0.03, duplicates=0.01, missing_exits=0.1, background=0.06)
CLEAN = ShopConfig(items=20, categories=3, out_of_order=0, duplicates=0, missing_exits=0,
                   background=0)  # fmt: skip


# -- the device's side ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task_folder(tmp_path_factory.mktemp("ipv") / "task")


@pytest.fixture(scope="module")
def process() -> Any:
    with VMPool(VMPoolConfig(backend="process", size=1)) as pool:
        yield pool


def install(folder: Path, into: Path) -> tuple[InstalledTask, TaskCode]:
    """Build the folder's package and unpack it as a device does."""
    built = build_package(folder, 1)
    with TaskPackage.open(built.bytes) as package:
        unpacked = package.unpack(into)
    manifest = built.manifest
    code = TaskCode(
        task=manifest.task,
        version=1,
        folder=unpacked,
        entry=manifest.entry["device"],
        digest=built.sha256,
        outputs={output.name: (output.kind, output.dtype) for output in manifest.outputs},
        deadline_ms=20_000,  # a busy machine must not fail a test
        memory_mb=manifest.limits.memory_mb,
        output_kb=manifest.limits.output_kb,
    )
    return InstalledTask(manifest, unpacked, built.sha256, "good"), code


class Device:
    """One device with the task in force; ``restart`` is what a crash between commits leaves."""

    def __init__(self, task: Path, place: Path, pool: VMPool) -> None:
        self.installed, self.code = install(task, place / "package")
        self.place, self.pool = place / "device", pool
        self.open()

    def open(self) -> None:
        self.store = DeviceStore(self.place)
        self.log = EventLog(self.store, burst=10**9)  # replayed at full speed
        self.uplink = Uplink(self.store, DEVICE)
        self.uplink.declare(self.installed.manifest)
        self.runner = TaskRunner(
            self.installed,
            self.code,
            store=self.store,
            view=LogView(self.log),
            uplink=self.uplink,
            features=FeatureStore(self.store),
            pool=self.pool,
        )

    def restart(self) -> None:
        self.store.close()
        self.open()

    def feed(self, events: list[Any]) -> None:
        for e in events:
            self.log.append(
                e.kind, e.page, e.content, ts_us=e.ts_us, visit=e.visit, event_id=e.id,
                mono_us=e.mono_us, boot=e.boot,
            )  # fmt: skip
        self.log.flush()  # a crash may take what is not

    def work(self) -> None:
        while not self.runner.idle:
            self.runner.step()

    def sent(self) -> list[ResultBatch]:
        """What would travel up, as the messages of the wire."""
        self.uplink.welcomed(0)
        self.uplink.seal(everything=True)
        found = []
        while batches := self.uplink.pending(codec=Codec.RAW):
            found += [msgspec.msgpack.decode(b.body, type=ResultBatch) for b in batches]
            self.uplink.acked(batches[-1].seq)
        return found

    def logged(self) -> list[Event]:
        return [event for _, event in self.log.read(0, 10**6)]


def play(task: Path, place: Path, pool: VMPool, events: list[Any]) -> Device:
    device = Device(task, place, pool)
    device.feed(events)
    device.work()
    return device


def vectors(batches: list[ResultBatch]) -> dict[str, bytes]:
    """The newest vector of each visit, in the order in which they travel."""
    found = {}
    for batch in batches:
        for feature in batch.features:
            assert (feature.name, feature.dtype) == ("ipv", "f32[32]")
            found[feature.key] = feature.value
    return found


# -- oracles -------------------------------------------------------------------------------


def matches(pattern: str, event: Event) -> bool:
    kind, page = parse_pattern(pattern)
    return kind in (None, event.kind) and page in (None, event.page)


def up_to_the_last_run(events: list[Event], folder: Path) -> list[Event]:
    """The log as far as the task can have seen it: what comes later waits for its next run."""
    wakes = [trigger.sequence[0] for trigger in build_package(folder, 1).manifest.triggers]
    last = max(n for n, e in enumerate(events) if any(matches(wake, e) for wake in wakes))
    return events[: last + 1]


def one_pass(events: list[Event], folder: Path) -> dict[str, dict]:
    """Records of one fold over everything that the task may read."""
    readable = build_package(folder, 1).manifest.input.events
    fold, newest = IpvFold(), {}
    for event in events:
        if any(matches(pattern, event) for pattern in readable):
            for record in fold.on(event):
                newest[record["visit"]] = record
    return newest


def by_visit(events: list[Event]) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = defaultdict(list)
    for event in sorted(events, key=lambda e: (e.boot, e.mono_us)):
        if event.page == "detail" and event.visit:
            found[event.visit.hex()].append(event)
    return found


def offline(own: list[Event], history: tuple[float, int, int] = (0, 0, 0)) -> list[float]:
    """The slots of one visit from the sorted list of all its events; nothing of the fold's."""
    of = defaultdict(list)
    for event in own:
        of[event.kind].append(event)
    field = lambda kind, name: [e.content[name] for e in of[kind]]  # noqa: E731
    began, ended = (of[1] or own)[0], (of[5] or own)[-1]
    shown = [ms / 1000 for ms in field(3, "duration_ms")]
    widgets = field(4, "widget")
    reasons = [e.content.get("reason", 0) for e in of[4] if e.content["widget"] == "delete"]
    hour = 2 * math.pi * (began.ts_us // 3_600_000_000 % 24) / 24
    logs = [
        (ended.mono_us - began.mono_us) / 1e6, len(own), len(widgets), len(shown), len(of[2]),
        max(field(2, "speed"), default=0), round(math.fsum(field(2, "distance")), 3),
    ]  # fmt: skip
    return [
        *map(math.log1p, logs),
        max(field(2, "depth"), default=0),
        *(float(name in widgets) for name in ACTIONS),
        float(bool(reasons)),
        max(reasons, default=0) / 4,
        math.log1p(max(shown, default=0)),
        math.log1p(sum(field(3, "duration_ms")) / 1e3 / len(shown) if shown else 0),
        math.log1p(max(field(2, "duration_ms"), default=0) / 1000),
        history[0],
        math.log1p(history[1]),
        math.log1p(history[2]),
        math.sin(hour),
        math.cos(hour),
        (SOURCES.index(of[1][0].content["source"]) if of[1] else 6) / 7,
        0.0,
        (bool(of[1]) + bool(of[5])) / 2,
        1.0,
    ]


def histories(visits: dict[str, list[Event]]) -> dict[str, tuple[float, int, int]]:
    """Slots 23 to 25 by looking back over all earlier visits, one by one."""
    found, seen = {}, []
    for key, own in visits.items():
        item, category, at = own[0].content["item"], own[0].content["category"], own[0].ts_us
        same = [t for i, _, t in seen if i == item]
        today = [(i, c) for i, c, t in seen if t // 86_400_000_000 == at // 86_400_000_000]
        bucket = 0
        if same:
            bounds = (60, 600, 3600, 21_600, 86_400, 259_200)
            bucket = 1 + sum((at - same[-1]) // 10**6 >= bound for bound in bounds)
        found[key] = (
            bucket / 7, sum(i == item for i, _ in today), sum(c == category for _, c in today)
        )  # fmt: skip
        seen.append((item, category, at))
    return found


# -- through runner and container ----------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_features_equal_the_batch_over_the_whole_log(
    folder: Path, tmp_path: Path, process: VMPool, seed: int
) -> None:
    events = Shop(MESSY, seed).device(seed, 10)
    found = {}
    with VMPool(VMPoolConfig(backend="inline")) as inline:
        for name, pool in (("process", process), ("inline", inline)):
            device = play(folder, tmp_path / name, pool, events)
            found[name] = device.sent()
            assert set(device.runner.counts) == {"ok"}
    arrived = vectors(found["process"])
    assert arrived == vectors(found["inline"])
    logged = device.logged()
    assert len(logged) < len(events)  # duplicates were there, and were kept out
    logged = up_to_the_last_run(logged, folder)
    expected = {key: ipv_vector(r) for key, r in one_pass(logged, folder).items()}
    assert arrived == expected
    visits = by_visit(logged)
    assert arrived.keys() <= visits.keys()
    assert len(visits) - len(arrived) <= 1  # one may be open at the end of the log
    # And no fold at all: from each visit's list of events, all slots but history and closing.
    without_exit = 0
    for key, vector in arrived.items():
        got, wanted = struct.unpack("<32f", vector), offline(visits[key])
        wanted = struct.unpack("<32f", struct.pack("<32f", *wanted))
        skipped = {23, 24, 25, 29}
        if all(event.kind != 5 for event in visits[key]):
            without_exit += 1
            skipped |= {0} if got[29] > 0 else set()  # ended in the background, say
        assert [got[n] for n in range(32) if n not in skipped] == [
            wanted[n] for n in range(32) if n not in skipped
        ]
    assert without_exit > 0
    # What the device keeps is what travelled.
    kept = {f.key: f.value for f in FeatureStore(device.store).scan("ipv", "ipv")}
    assert kept == arrived


def test_every_slot_of_a_clean_stream_without_any_fold(
    folder: Path, tmp_path: Path, process: VMPool
) -> None:
    device = play(folder, tmp_path, process, Shop(CLEAN, 1).device(1, 20))
    visits = by_visit(device.logged())
    history = histories(visits)
    expected = {
        key: struct.pack("<32f", *offline(own, history[key])) for key, own in visits.items()
    }
    assert vectors(device.sent()) == expected
    assert len(expected) > 20
    assert max(one for _, one, _ in history.values()) >= 1


def test_a_forgotten_event_is_noticed(folder: Path, tmp_path: Path, process: VMPool) -> None:
    """Negative control: the comparisons above have teeth."""
    events = Shop(CLEAN, 1).device(1, 2)
    scroll = next(e for e in events if e.page == "detail" and e.kind == 2)
    device = play(folder, tmp_path, process, [e for e in events if e is not scroll])
    whole = by_visit([Event(*e) for e in events])
    found = struct.unpack("<32f", vectors(device.sent())[scroll.visit.hex()])
    wanted = struct.pack("<32f", *offline(whole[scroll.visit.hex()]))
    assert found[:23] != struct.unpack("<32f", wanted)[:23]


def test_features_take_less_than_a_tenth_of_the_events(
    folder: Path, tmp_path: Path, process: VMPool
) -> None:
    events = Shop(ShopConfig(), 4).device(1, 8)
    plain = play(folder, tmp_path / "plain", process, events)
    both = write_task_folder(tmp_path / "both", records=True)
    records = play(both, tmp_path / "records", process, events)
    own = [e for e in plain.logged() if e.page == "detail"]
    raw = sum(
        len(msgspec.msgpack.encode(EventBatch(1, DEVICE, "ipv", 1, n, 1, 0, own[n : n + 28])))
        for n in range(0, len(own), 28)
    )
    # Whole messages, summaries of runs included.
    sizes = [
        sum(len(msgspec.msgpack.encode(b)) for b in device.sent()) for device in (plain, records)
    ]
    assert 0 < sizes[0] < 0.03 * raw
    assert sizes[0] < sizes[1] < 0.1 * raw


def test_records_travel_if_they_are_wanted(tmp_path: Path, process: VMPool) -> None:
    task = write_task_folder(tmp_path / "task", records=True)
    device = play(task, tmp_path / "device", process, Shop(MESSY, 5).device(0, 6))
    batches = device.sent()
    found: dict[str, dict] = {}
    for result in (r for batch in batches for r in batch.results):
        held = found.get(result.value["visit"])
        assert held is None or result.value["revision"] > held["revision"]
        found[result.value["visit"]] = result.value
    expected = one_pass(up_to_the_last_run(device.logged(), task), task)
    assert {key: encode_record(r) for key, r in found.items()} == {
        key: encode_record(r) for key, r in expected.items()
    }
    assert vectors(batches) == {key: ipv_vector(r) for key, r in found.items()}
    assert max(r["revision"] for r in found.values()) >= 1


@pytest.mark.parametrize("seed", range(3))
def test_restarts_anywhere_change_nothing(
    folder: Path, tmp_path: Path, process: VMPool, seed: int
) -> None:
    events = Shop(MESSY, 6).device(2, 5)
    whole = play(folder, tmp_path / "whole", process, events)
    rng = random.Random(seed)
    cut = Device(folder, tmp_path / "cut", process)
    left = list(events)
    while left:
        count = rng.randrange(1, 60)
        cut.feed(left[:count])
        left = left[count:]
        for _ in range(rng.randrange(6)):  # it may be in the middle of a run when it stops
            cut.runner.step()
        cut.restart()
    cut.work()
    assert vectors(cut.sent()) == vectors(whole.sent())
    key = ("ipv",)
    states = []
    for device in (whole, cut):
        with device.store.read() as cursor:
            states.append(cursor.execute("SELECT state FROM consumer WHERE task=?", key).fetchone())
    assert states[0] == states[1]


# -- the code itself, in this process ------------------------------------------------------


class Context:
    """What ``main.py`` needs of a context."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}
        self.found: dict[str, list[float]] = {}
        self.lines: list[str] = []
        self.features = SimpleNamespace(put=self.put)

    def put(self, name: str, key: str, value: list[float], *, ts_us: int) -> None:
        assert name == "ipv"
        assert ts_us > 0
        self.found[key] = value

    def log(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def main(folder: Path) -> Any:
    held = sys.modules.pop("ipv", None)
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location("ipv_main", folder / "main.py")
        assert spec is not None
        assert spec.loader is not None
        module: ModuleType = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("ipv", None)
        if held is not None:
            sys.modules["ipv"] = held


LOGGED = [Event(*e) for e in {e.id: e for e in Shop(MESSY, 7).device(3, 4)}.values()]


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, len(LOGGED)), max_size=30))
def test_how_events_are_split_into_runs_changes_nothing(main: Any, cuts: list[int]) -> None:
    whole, split = Context(), Context()
    main.run(whole, SimpleNamespace(events=LOGGED))
    places = [0, *sorted(cuts), len(LOGGED)]
    for start, end in pairwise(places):
        split.state = msgspec.msgpack.decode(msgspec.msgpack.encode(split.state))
        main.run(split, SimpleNamespace(events=LOGGED[start:end]))
    assert split.found == whole.found
    assert split.state == whole.state
    assert len(whole.found) > 5


def event(kind: int, second: float, page: str = "detail", visit: int | None = None,
          boot: int = 1, **content: Any) -> Event:  # fmt: skip
    at = int(second * 1e6)
    name = None if visit is None else visit.to_bytes(16, "big")
    return Event(random.randbytes(16), kind, page, 10**15 + at, 10**9 + at, boot, name,
                 {"item": 1, **content})  # fmt: skip


@pytest.mark.parametrize(
    ("after", "closed_by"),
    [
        ([event(17, 20, "app"), event(16, 400, "app")], "background"),
        ([event(18, 2000, "app")], "timeout"),
        ([event(16, 5, "app", boot=2)], "restart"),
        ([event(1, 30), event(5, 40)], "implied"),
    ],
)
def test_a_visit_without_exit_gives_its_feature_too(
    folder: Path, tmp_path: Path, process: VMPool, after: list[Event], closed_by: str
) -> None:
    task = write_task_folder(tmp_path / "task", records=True)
    device = play(task, tmp_path / "device", process, [event(1, 0), event(4, 9), *after])
    first = next(r.value for batch in device.sent() for r in batch.results)
    assert (first["closed_by"], first["clicks"]) == (closed_by, 1)


def test_late_events_change_a_feature_for_ten_minutes(main: Any) -> None:
    context = Context()
    run = lambda *events: main.run(context, SimpleNamespace(events=events))  # noqa: E731
    key = (1).to_bytes(16, "big").hex()
    run(event(1, 0, visit=1), event(5, 60, visit=1))
    before = context.found[key]
    run(event(4, 30, visit=1, widget="buy"), event(1, 600, visit=2), event(5, 610, visit=2))
    changed = context.found[key]
    assert changed != before
    assert not context.lines
    run(event(1, 700, visit=3), event(4, 31, visit=1, widget="cart"), event(5, 710, visit=3))
    assert context.found[key] == changed
    assert context.lines == ["1 events came too late for their visit"]


def test_the_package_is_whole_and_repeats(tmp_path: Path) -> None:
    folder = write_task_folder(tmp_path / "one")
    again = write_task_folder(tmp_path / "two")
    built = build_package(folder, 3)
    assert built.bytes == build_package(again, 3).bytes
    assert not built.warnings
    with TaskPackage.open(built.bytes) as package:
        assert set(package.names()) >= {"main.py", "ipv.py"}
    assert [o.name for o in built.manifest.outputs] == ["ipv"]
    both = build_package(write_task_folder(tmp_path / "both", records=True), 3).manifest
    assert [o.name for o in both.outputs] == ["ipv", "visit"]
    # Written over: the second writing decides.
    assert build_package(write_task_folder(tmp_path / "both"), 3).sha256 == built.sha256
    (folder / "main.py").unlink()
    with pytest.raises(InputError, match="main"):
        build_package(folder, 3)
