"""Collective storage, and folds that are exactly once over kill -9 at any write."""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import InputError, LimitError
from shoal.device.store import DeviceStore, DiskFullError
from shoal.device.stream.features import FeatureFold, FeatureStore, check_value
from shoal.device.stream.log import EventLog


@pytest.fixture
def store(tmp_path: Path):
    with DeviceStore(tmp_path) as store:
        yield store


def rows(store: DeviceStore) -> int:
    with store.read() as cursor:
        return cursor.execute("SELECT count(*) FROM feature").fetchone()[0]


def test_writes_gather_until_the_threshold_a_second_or_a_read(store: DeviceStore) -> None:
    now = [0]
    features = FeatureStore(store, threshold=10, monotonic=lambda: now[0])
    for n in range(9):
        features.put("t", "f", str(n), b"1", ts_us=n)
    assert (rows(store), features.flushes) == (0, 0)
    features.put("t", "f", "9", b"1", ts_us=9)
    assert (rows(store), features.flushes) == (10, 1)
    features.put("t", "f", "10", b"1", ts_us=9)
    assert features.get("t", "f", "3").ts_us == 3
    assert features.flushes == 1  # that key was written already
    assert features.get("t", "f", "10").value == b"1"
    assert features.flushes == 2
    features.put("t", "g", "x1", b"1", ts_us=0)
    assert len(features.scan("t", "f", "1")) == 2
    assert features.flushes == 2
    assert [r.key for r in features.scan("t", "g", "x")] == ["x1"]
    assert features.flushes == 3
    features.put("t", "g", "x2", b"1", ts_us=0)
    now[0] += 1_000_000
    features.put("t", "g", "x3", b"1", ts_us=0)
    assert (rows(store), features.flushes) == (14, 4)


def test_revisions_rise_with_changes_and_older_ones_are_ignored(store: DeviceStore) -> None:
    features = FeatureStore(store)
    assert features.put("t", "f", "k", b"1", ts_us=0).revision == 0
    assert features.put("t", "f", "k", b"1", ts_us=1).revision == 0
    assert features.put("t", "f", "k", b"2", ts_us=2).revision == 1
    assert features.put("t", "f", "k", b"9", ts_us=3, revision=5).revision == 5
    assert features.put("t", "f", "k", b"3", ts_us=4, revision=4).value == b"9"
    assert features.stale == 1
    features.flush()
    assert features.put("t", "f", "k", b"3", ts_us=4, revision=4).value == b"9"


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.sampled_from(
        ["put", "put", "put", "get", "scan", "flush", "commit", "rollback"])), max_size=40),
    st.integers(1, 12),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_the_threshold_never_changes_an_answer(program: list, threshold: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder, DeviceStore(folder) as store:
        features, model = FeatureStore(store, threshold), {}

        def put(key: str, number: int) -> None:
            value = str(number).encode()
            held = model.get(key)
            model[key] = (value, 0 if held is None else held[1] + (held[0] != value))
            features.put("t", "f", key, value, ts_us=0)

        for key, number, what in program:
            if what == "put":
                put(key, number)
            elif what == "get":
                found = features.get("t", "f", key)
                assert (found and (found.value, found.revision)) == model.get(key)
            elif what == "flush":
                features.flush()
            elif what == "commit":
                features.commit("t", 1, number)
            elif what == "rollback":
                before = dict(model)
                with pytest.raises(RuntimeError), store.transaction():
                    for n in range(number):
                        put(key, n + 10)
                    if number % 2:
                        features.flush()
                    raise RuntimeError
                model = before
            found = {r.key: (r.value, r.revision) for r in features.scan("t", "f")}
            if what == "scan":
                assert found == model
        features.flush()
        assert {r.key: (r.value, r.revision) for r in features.scan("t", "f")} == model


@pytest.mark.parametrize(
    ("dtype", "value", "words"),
    [
        ("f32[2]", struct.pack("<2f", 1.0, float("nan")), "finite"),
        ("f32[2]", struct.pack("<2f", 1.0, float("-inf")), "finite"),
        ("f32[2]", b"1234", "needs 8 bytes"),
        ("json", b"NaN", "not json"),
        ("json", b'{"a": Infinity}', "not json"),
        ("json", b"{", "not json"),
        ("msgpack", msgspec.msgpack.encode({"a": [float("nan")]}), "finite"),
        ("msgpack", b"\xc1", "not msgpack"),
        ("pickle", b"", "dtype"),
        ("json", "text", "bytes"),
        ("json", b'"' + b"x" * 70_000 + b'"', "longer"),
    ],
)
def test_values_that_are_not_what_they_say_are_refused(
    store: DeviceStore, dtype: str, value: bytes, words: str
) -> None:
    with pytest.raises((InputError, LimitError), match=words):
        FeatureStore(store).put("t", "f", "k", value, ts_us=0, dtype=dtype)
    check_value("f32[2]", struct.pack("<2f", 3.4e38, -0.0))


@pytest.mark.parametrize("bad", [{"task": ""}, {"name": ""}, {"key": "x" * 2000}, {"key": 3}])
def test_bad_names_are_refused_by_field(store: DeviceStore, bad: dict) -> None:
    fields = {"task": "t", "name": "f", "key": "k", **bad}
    with pytest.raises(InputError, match=next(iter(bad))):
        FeatureStore(store).put(**fields, value=b"1", ts_us=0)


def test_forget_removes_one_task_only(store: DeviceStore) -> None:
    features = FeatureStore(store)
    for task in ("t", "u"):
        features.put(task, "f", "k", b"1", ts_us=0)
        features.commit(task, 1, 5, b"state")
    features.forget("t")
    assert features.get("t", "f", "k") is None
    assert features.consumer("t") == (0, 0, None)
    assert features.consumer("u") == (1, 5, b"state")
    assert features.get("u", "f", "k") is not None


# -- folds ---------------------------------------------------------------------------------


def step(state: dict, event, put) -> dict:
    """Count the events of each page, with a running hash that order and repeats change."""
    count, mixed = state.get(event.page, [0, 0])
    count, mixed = count + 1, (mixed * 31 + event.content["n"]) % 1_000_003
    state[event.page] = [count, mixed]
    put("count", event.page, msgspec.json.encode([count, mixed]), ts_us=event.ts_us)
    if event.content["n"] % 7 == 0:
        put("seven", str(event.content["n"]), b"true", ts_us=event.ts_us)
    return state


def make_fold(store: DeviceStore, threshold: int = 100, batch: int = 100) -> FeatureFold:
    return FeatureFold(
        store, EventLog(store, burst=10**9), FeatureStore(store, threshold), "fold", 1,
        initial=dict, step=step, state_type=dict, batch=batch,
    )  # fmt: skip


def fill(store: DeviceStore, count: int, first: int = 0) -> None:
    log = EventLog(store, burst=10**9)
    rng = random.Random(first)
    for n in range(first, first + count):
        log.append(3, rng.choice("abc"), {"n": n}, ts_us=n)
    log.flush()


def answer(store: DeviceStore) -> list:
    features = FeatureStore(store)
    return [(r.name, r.key, r.value, r.revision, r.ts_us)
            for name in ("count", "seven") for r in features.scan("fold", name)]  # fmt: skip


@pytest.fixture(scope="module")
def one_pass(tmp_path_factory) -> list:
    with DeviceStore(tmp_path_factory.mktemp("oracle")) as store:
        fill(store, 600)
        fold = make_fold(store, 10**6, 10**6)
        assert fold.run() == 600
        return answer(store)


@pytest.mark.parametrize(("threshold", "batch"), [(1, 1), (3, 7), (100, 100), (1000, 13)])
def test_any_threshold_and_batch_equal_one_pass(
    store: DeviceStore, one_pass: list, threshold: int, batch: int
) -> None:
    fill(store, 600)
    assert make_fold(store, threshold, batch).run() == 600
    assert answer(store) == one_pass
    assert make_fold(store).run() == 0


def test_an_error_in_a_step_rolls_the_batch_back_and_the_fold_goes_on(
    store: DeviceStore, one_pass: list
) -> None:
    fill(store, 600)
    fold = make_fold(store, 3, 50)
    whole, failures = fold._step, iter([37, 222, 222, 480])
    fail_at = next(failures)

    def shaky(state: dict, event, put) -> dict:
        nonlocal fail_at
        state = whole(state, event, put)
        if event.content["n"] == fail_at:
            fail_at = next(failures, -1)
            raise RuntimeError("poison")
        return state

    fold._step = shaky
    failed = 0
    while True:
        try:
            if not fold.run():
                break
        except RuntimeError:
            failed += 1
    assert failed == 4
    assert answer(store) == one_pass


def test_a_full_disk_stops_the_fold_and_loses_nothing(tmp_path: Path, one_pass: list) -> None:
    with DeviceStore(tmp_path) as store:
        fill(store, 600)
        fold = make_fold(store)

        def fat(state: dict, event, put) -> dict:
            put("fat", str(event.content["n"]), b'"' + b"x" * 500 + b'"', ts_us=0)
            return step(state, event, put)

        fold._step = fat
        fold.run(100)
        with store.read() as cursor:
            cursor.execute(f"PRAGMA max_page_count={store.size_bytes() // 4096}")
        with pytest.raises(DiskFullError):
            fold.run()
        with store.read() as cursor:
            cursor.execute("PRAGMA max_page_count=1000000")
        fold.run()
        assert answer(store) == one_pass


CHILD = """
import sys
sys.path.insert(0, {tests!r})
from test_features import fill, make_fold
from shoal.device.store import DeviceStore
store = DeviceStore(sys.argv[1])
batch, threshold = int(sys.argv[2]), int(sys.argv[3])
# Report every write to SQLite, so that the parent can kill at any of them.
def tell(statement):
    sys.stdout.write("w\\n"); sys.stdout.flush()
fold = make_fold(store, threshold, batch)
store._connection.set_trace_callback(tell)
fold.run()
print("done", flush=True)
"""


def kill_loop(folder: Path, seed: int, batch: int, threshold: int) -> int:
    """Run the fold in a process that is killed at random writes until it ends; return kills."""
    rng, kills = random.Random(seed), 0
    script = CHILD.format(tests=str(Path(__file__).parent))
    while True:
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(folder), str(batch), str(threshold)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert child.stdout is not None
        writes = rng.randrange(1, 400)
        for line in child.stdout:
            writes -= 1
            if line == "done\n":
                child.wait()
                child.stdout.close()
                return kills
            if writes == 0:
                break
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        kills += 1


@pytest.mark.parametrize(("seed", "batch", "threshold"), [(1, 5, 3), (2, 20, 100)])
def test_kill_at_any_write_equals_one_pass(
    tmp_path: Path, one_pass: list, seed: int, batch: int, threshold: int
) -> None:
    with DeviceStore(tmp_path) as store:
        fill(store, 600)
    kills = kill_loop(tmp_path, seed, batch, threshold)
    assert kills >= 3
    with DeviceStore(tmp_path) as store:
        assert store.moved_aside == 0
        assert answer(store) == one_pass


def test_committing_position_and_features_apart_is_caught(tmp_path: Path, one_pass: list) -> None:
    """Negative control: with two transactions a crash between them shows."""
    with DeviceStore(tmp_path) as store:
        fill(store, 600)
        fold = make_fold(store, 1, 50)
        features = fold._features
        for _, event in fold._log.read(0, 50):
            fold.state = step(fold.state, event, lambda *a, **o: features.put("fold", *a, **o))
        features.flush()  # the process dies here: features written, position not
        again = make_fold(store, 1, 50)
        assert again.last_seq == 0
        again.run()
        assert answer(store) != one_pass


def test_script_text_is_valid() -> None:
    compile(textwrap.dedent(CHILD.format(tests="x")), "child", "exec")
