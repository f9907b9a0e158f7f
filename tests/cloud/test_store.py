"""The store: transactions, migrations, and what survives whom."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from shoal.cloud import store as tables
from shoal.cloud.migrations.upgrade import configuration
from shoal.cloud.store import HEAD, LIVE_STATES, Store
from shoal.core.errors import ConflictError, InputError, UnavailableError


@pytest.fixture
def store(tmp_path: Path):
    opened = Store(f"sqlite:///{tmp_path}/cloud.db")
    yield opened
    opened.close()


def test_migrated_database_is_what_the_tables_say(store: Store) -> None:
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, tables.metadata) == []
        assert context.get_current_revision() == HEAD
    assert ScriptDirectory.from_config(configuration()).get_current_head() == HEAD


def test_a_missing_column_would_be_noticed(store: Store) -> None:
    """Negative control of the comparison above."""
    with store.begin() as connection:
        connection.execute(sa.text("ALTER TABLE operator DROP COLUMN role"))
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata)


def test_opens_again_and_refuses_a_newer_schema(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/cloud.db"
    first = Store(url)
    first.put("answer", {"is": 42})
    first.close()
    second = Store(url)
    assert second.get("answer") == {"is": 42}
    with second.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    second.close()
    with pytest.raises(ConflictError, match="9999"):
        Store(url)


def test_migrations_are_inside_the_package() -> None:
    folder = Path(tables.__file__).parent / "migrations"
    assert (folder / "env.py").exists()
    assert list((folder / "versions").glob("0001*.py"))


def test_bad_addresses(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="database_url"):
        Store("not an address")
    with pytest.raises(InputError, match="file"):
        Store("sqlite://")
    with pytest.raises(UnavailableError):
        Store(f"sqlite:///{tmp_path}")  # a folder


def test_a_failed_block_leaves_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError), store.begin() as connection:
        store.put("a", 1)
        assert store.get("a") == 1  # the transaction sees itself
        connection.execute(sa.select(1))
        raise RuntimeError
    assert store.get("a") is None


def test_a_failed_inner_block_takes_back_only_itself(store: Store) -> None:
    with store.begin():
        store.put("outer", 1)
        with pytest.raises(RuntimeError), store.begin():
            store.put("inner", 1)
            raise RuntimeError
    assert store.get("outer") == 1
    assert store.get("inner") is None


def test_epochs_rise_without_gaps_under_threads(store: Store) -> None:
    seen: list[int] = []

    def work() -> None:
        for _ in range(25):
            with store.begin() as connection:
                seen.append(store.bump_epoch(connection))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(1, 101))
    assert store.epoch() == 100


def test_readers_are_not_held_up_by_a_writer(store: Store) -> None:
    store.put("a", 1)
    seen = []
    with store.begin():
        store.put("a", 2)
        thread = threading.Thread(target=lambda: seen.append(store.get("a")))
        thread.start()
        thread.join(5)
    assert seen == [1]


def test_drop_counts_add_up(store: Store) -> None:
    store.count_dropped("device", "full", 3)
    store.count_dropped("device", "full")
    with store.read() as connection:
        assert connection.execute(sa.select(tables.dropped.c.total)).scalar_one() == 4


def test_leader_changes_only_when_the_time_is_up(store: Store) -> None:
    assert store.acquire_leader("tick", "a", 0, 100)
    assert not store.acquire_leader("tick", "b", 99, 100)
    assert store.acquire_leader("tick", "a", 50, 100)
    assert store.acquire_leader("tick", "b", 150, 100)
    assert not store.acquire_leader("tick", "a", 151, 100)


def _release(store: Store, state: str, task: str = "t") -> int:
    with store.begin() as connection:
        done = connection.execute(
            sa.insert(tables.release).values(
                task=task, version=1, cohort=1, salt="s", state=state, policy={}, created_us=0
            )
        )
        return int(done.inserted_primary_key[0])


def test_two_live_releases_of_a_task_in_a_cohort_are_impossible(store: Store) -> None:
    with store.begin() as connection:
        connection.execute(sa.insert(tables.scenario).values(name="d", created_us=0))
        for name in ("t", "u"):
            connection.execute(sa.insert(tables.task).values(scenario="d", name=name, created_us=0))
        connection.execute(
            sa.insert(tables.cohort).values(
                name="c", predicate="true", predicate_sha="x", created_us=0
            )
        )
    for state in LIVE_STATES:
        first = _release(store, state)
        with pytest.raises(sa.exc.IntegrityError):
            _release(store, "beta")
        _release(store, "draft")
        with store.begin() as connection:
            connection.execute(
                sa.update(tables.release)
                .where(tables.release.c.id == first)
                .values(state="rolled_back")
            )
    _release(store, "gray", "u")
    with pytest.raises(sa.exc.IntegrityError):
        _release(store, "draft", "no such task")


_KILLED = """
import sys, sqlalchemy as sa
from shoal.cloud.store import Store
store = Store(sys.argv[1])
number = 0
while True:
    number += 1
    with store.begin() as connection:
        store.put("first", number)
        store.put("second", number)
    print(number, flush=True)
"""


def test_kill_at_any_moment_keeps_whole_transactions(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/cloud.db"
    acknowledged = 0
    for delay in (1, 3, 10):
        process = subprocess.Popen(
            [sys.executable, "-c", _KILLED, url], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for _ in range(delay):
            acknowledged = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        store = Store(url)
        assert store.get("first") == store.get("second") >= acknowledged
        store.close()
    with sqlite3.connect(tmp_path / "cloud.db") as plain:
        assert plain.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    plain.close()
