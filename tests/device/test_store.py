"""The device's database: atomic, survives damage, a full disk and a kill at any moment."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from shoal.core.errors import ConflictError, IntegrityError, UnavailableError
from shoal.device.store import DeviceStore, DiskFullError

TABLES = {
    "meta", "event", "visit", "consumer", "feature", "outbox", "package", "run", "quarantine",
}  # fmt: skip


def test_has_the_tables_of_the_sheet(tmp_path: Path) -> None:
    with DeviceStore(tmp_path / "new" / "folder") as store, store.read() as cursor:
        names = {
            row[0] for row in cursor.execute("SELECT name FROM sqlite_master WHERE type='table'")
        }
        assert cursor.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert names >= TABLES


def test_meta_keeps_types_and_survives_reopening(tmp_path: Path) -> None:
    with DeviceStore(tmp_path) as store:
        store.meta_set("text", "a")
        store.meta_set("bytes", b"\x00\xff")
        store.meta_set("number", 7)
        store.meta_set("gone", 1)
        store.meta_set("gone", None)
        store.sync()
    with DeviceStore(tmp_path) as store:
        assert [store.meta_get(k) for k in ("text", "bytes", "number", "gone")] == [
            "a", b"\x00\xff", 7, None,
        ]  # fmt: skip
        assert store.meta_get("absent", 3) == 3


def test_an_error_rolls_back_and_tells_memory(tmp_path: Path) -> None:
    undone = []
    with DeviceStore(tmp_path) as store:
        with pytest.raises(RuntimeError), store.transaction() as cursor:
            assert store.in_transaction
            store.on_rollback(lambda: undone.append("outer"))
            cursor.execute("INSERT INTO meta VALUES ('a', 1)")
            raise RuntimeError
        assert store.meta_get("a") is None
        assert undone == ["outer"]
        assert not store.in_transaction


def test_inner_transaction_is_a_savepoint(tmp_path: Path) -> None:
    undone = []
    with DeviceStore(tmp_path) as store:
        with store.transaction():
            store.meta_set("kept", 1)
            with pytest.raises(RuntimeError), store.transaction():
                store.on_rollback(lambda: undone.append("inner"))
                store.meta_set("dropped", 1)
                raise RuntimeError
        assert undone == ["inner"]
        assert store.meta_get("kept") == 1
        assert store.meta_get("dropped") is None
        with pytest.raises(RuntimeError), store.transaction():
            with store.transaction():
                store.meta_set("kept", 2)
            raise RuntimeError
        assert store.meta_get("kept") == 1


def test_threads_take_turns(tmp_path: Path) -> None:
    with DeviceStore(tmp_path) as store:
        store.meta_set("n", 0)

        def add() -> None:
            for _ in range(50):
                with store.transaction():
                    store.meta_set("n", store.meta_get("n") + 1)

        threads = [threading.Thread(target=add) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.meta_get("n") == 200


@pytest.mark.parametrize("damage", ["header", "middle", "not a database", "other database"])
def test_a_damaged_file_is_moved_aside_and_counted(tmp_path: Path, damage: str) -> None:
    with DeviceStore(tmp_path) as store:
        store.meta_set("identity", b"me")
        with store.transaction() as cursor:
            cursor.executemany(
                "INSERT INTO outbox (class, kind, body, created_us) VALUES ('now', 1, ?, 0)",
                [(os.urandom(500),) for _ in range(400)],
            )
        store.compact()
    path = tmp_path / "device.db"
    data = bytearray(path.read_bytes())
    if damage == "header":
        data[:100] = bytes(100)
    elif damage == "middle":
        data[60_000:160_000] = os.urandom(100_000)
    elif damage == "not a database":
        data = bytearray(b"this is not a database" * 100)
    path.write_bytes(data)
    if damage == "other database":
        path.unlink()
        other = sqlite3.connect(path)
        other.execute("CREATE TABLE meta_other (a)")
        other.close()
    with DeviceStore(tmp_path) as store:
        assert store.moved_aside == 1
        assert (tmp_path / "device.db.damaged-1").exists()
        store.meta_set("works", 1)
        if damage == "middle":
            assert store.meta_get("identity") == b"me"
    with DeviceStore(tmp_path) as store:
        assert store.moved_aside == 1
        assert store.meta_get("works") == 1


def test_damage_found_while_running_is_one_error_and_the_store_goes_on(tmp_path: Path) -> None:
    store = DeviceStore(tmp_path)
    with store.transaction() as cursor:
        cursor.executemany(
            "INSERT INTO event VALUES (?, ?, 0, 0, 0, 1, 'p', NULL, ?)",
            [(n, os.urandom(16), os.urandom(900)) for n in range(1, 4000)],
        )
    store.compact()
    path = tmp_path / "device.db"
    with path.open("r+b") as stream:
        stream.seek(8192)
        stream.write(os.urandom(path.stat().st_size - 8192))
    with pytest.raises(IntegrityError, match="moved aside"), store.read() as cursor:
        cursor.execute("PRAGMA cache_size=1")
        cursor.execute("SELECT sum(length(content)) FROM event").fetchone()
    assert store.moved_aside == 1
    store.meta_set("works", 1)
    assert store.meta_get("works") == 1
    store.close()


def test_a_full_quota_is_one_clear_error_and_nothing_half_written(tmp_path: Path) -> None:
    with DeviceStore(tmp_path, max_megabytes=0.5) as store:
        store.meta_set("before", 1)
        with pytest.raises(DiskFullError, match="no room"), store.transaction() as cursor:
            for n in range(1000):
                cursor.execute(
                    "INSERT INTO outbox (class, kind, body, created_us) VALUES ('now', 1, ?, 0)",
                    (os.urandom(4000),),
                )
                store.meta_set("half", n)
        assert store.meta_get("half") is None
        assert store.meta_get("before") == 1
        store.meta_set("after", 1)
        with store.read() as cursor:
            assert cursor.execute("SELECT count(*) FROM outbox").fetchone()[0] == 0
            assert cursor.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


def test_a_full_disk_leaves_the_process_alive_and_the_file_whole(tmp_path: Path) -> None:
    # A file size limit of the kernel stands for the full disk: writes beyond it fail.
    script = textwrap.dedent("""
        import os, resource, sys
        from shoal.device.store import DeviceStore, DiskFullError
        store = DeviceStore(sys.argv[1])
        store.meta_set("before", 1)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
        try:
            with store.transaction() as cursor:
                for n in range(1000):
                    cursor.execute("INSERT INTO outbox (class, kind, body, created_us)"
                                   " VALUES ('now', 1, ?, 0)", (os.urandom(4000),))
        except DiskFullError as error:
            print("full:", "\\n" not in str(error))
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        store.meta_set("after", 1)
        print("lives", store.meta_get("before"))
    """)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.stdout.split("\n")[:2] == ["full: True", "lives 1"], done.stderr
    with DeviceStore(tmp_path) as store:
        assert store.moved_aside == 0
        assert store.meta_get("after") == 1
        with store.read() as cursor:
            assert cursor.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
            assert cursor.execute("SELECT count(*) FROM outbox").fetchone()[0] == 0


def test_a_read_only_folder_is_one_clear_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UnavailableError, match="cannot be made"):
        DeviceStore(blocked / "data")


def test_a_newer_schema_is_refused_and_untouched(tmp_path: Path) -> None:
    with DeviceStore(tmp_path) as store:
        store.meta_set("store.schema", 99)
    with pytest.raises(ConflictError, match="newer"):
        DeviceStore(tmp_path)
    assert not (tmp_path / "device.db.damaged-1").exists()


def test_run_table_is_a_ring(tmp_path: Path) -> None:
    with DeviceStore(tmp_path) as store, store.transaction() as cursor:
        cursor.executemany(
            "INSERT INTO run (id, task, version, started_us, cpu_us, wall_us, peak_kb, backend,"
            " outcome) VALUES (?, 't', 1, 0, 0, 0, 0, 'inline', 0)",
            ((n.to_bytes(16, "big"),) for n in range(10_500)),
        )
        count, newest = cursor.execute("SELECT count(*), max(n) FROM run").fetchone()
    assert 10_000 <= count < 10_100
    assert newest == 10_500


def test_kill_between_writes_never_leaves_half_a_transaction(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import sys
        from shoal.device.store import DeviceStore
        store = DeviceStore(sys.argv[1])
        n = store.meta_get("a", 0)
        print("up", flush=True)
        while True:
            n += 1
            with store.transaction() as cursor:
                store.meta_set("a", n)
                store.meta_set("b", n)
            if n % 50 == 0:
                print(n, flush=True)
    """)
    seen = 0
    for attempt in range(5):
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        child.stdout.readline()
        for _ in range(attempt + 1):
            seen = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        with DeviceStore(tmp_path) as store:
            assert store.moved_aside == 0
            assert store.meta_get("a") == store.meta_get("b") >= seen
