"""Postgres as the source of truth: rows in and out, the change feed, shards rebuilt."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shoal.core.errors import (
    ConflictError,
    InputError,
    NotFoundError,
    UnavailableError,
)
from shoal.spatial import AttributeSpec
from shoal.spatial.columns import PlaceColumns
from shoal.spatial.curve import hilbert_key
from shoal.spatial.index import SpatialKeywordIndex
from shoal.spatial.postgres import CheckinRows, PlaceSource
from shoal.spatial.postgres_shards import rebuild_shard
from shoal.spatial.sharding import ShardedIndex

pytestmark = pytest.mark.postgres

SPECS = (
    AttributeSpec(name="price", low=1, high=4),
    AttributeSpec(name="noise", low=0, high=1, missing="neutral"),
)
WORDS = ("bar", "café", "pizza", "ramen", "日本", '{a,"b"}')


def _binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    if not found and on_path:
        found = [Path(on_path).resolve()]
    return found[-1].parent if found else None


@pytest.fixture(scope="module")
def server():
    """Run a server of its own on a socket in a temporary folder."""
    pytest.importorskip("asyncpg", reason="asyncpg is not installed")
    binaries = _binaries()
    if binaries is None:
        pytest.skip("no Postgres server: neither /usr/lib/postgresql/*/bin nor initdb on PATH")
    who = {}
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path must be short
    if os.geteuid() == 0:  # initdb refuses root
        try:
            entry = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("root, and there is no user postgres to run the server as")
        who = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        os.chown(folder, entry.pw_uid, entry.pw_gid)

    def run(*command):
        subprocess.run(command, check=True, cwd=folder, capture_output=True, timeout=60, **who)

    data = folder / "data"
    run(
        binaries / "initdb", "-D", data, "-U", "shoal", "-A", "trust", "-E", "UTF8",
        "--locale=C", "--no-sync", "--no-instructions",
    )  # fmt: skip
    settings = (
        f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off "
        "-c max_connections=20 -c shared_buffers=16MB"
    )
    run(binaries / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", settings, "start")
    try:
        yield f"postgresql://shoal@/postgres?host={folder}"
    finally:
        run(binaries / "pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def schema(request):
    return "s_" + "".join(c if c.isalnum() else "_" for c in request.node.name.lower())[-40:]


@pytest.fixture
def source(server, schema):
    with PlaceSource(server, schema=schema) as made:
        yield made


def raw_places(n, seed=0, first=0):
    rng = np.random.default_rng(seed)
    values = rng.uniform(0, 4, (2, n))
    values[rng.random((2, n)) < 0.2] = np.nan
    return {
        "lon": rng.uniform(-180, 180, n),
        "lat": rng.uniform(-90, 90, n),
        "keywords": [list(rng.choice(WORDS, rng.integers(0, 4))) for _ in range(n)],
        "attributes": {"price": values[0], "noise": values[1]},
        "ids": np.arange(first, first + n),
    }


def build(n, seed=0, **changes):
    return SpatialKeywordIndex.build(
        **(raw_places(n, seed) | changes), attribute_specs=SPECS, analyzer="exact"
    )


def rows_of(columns: PlaceColumns):
    """Return everything a place is, by key."""
    return {
        int(key): (
            float(columns.lon[i]),
            float(columns.lat[i]),
            tuple(
                columns.words[w]
                for w in columns.word_ids[columns.word_ptr[i] : columns.word_ptr[i + 1]]
            ),
            tuple(None if np.isnan(v) else float(v) for v in columns.values[:, i]),
        )
        for i, key in enumerate(columns.keys)
    }


def answers(index, **changes):
    asked = {"point": (10, 20), "k": 20, "prefer": {"price": "min"}, "where": {"noise": (">", 0.1)}}
    found = index.query(**(asked | changes))
    return found.ids, found.scores.tolist(), found.kms.tolist()


def test_an_index_goes_out_and_comes_back_the_same(source):
    index = build(300, labels=[f"№ {i}" for i in range(300)])
    seq = source.export_index(index)
    assert (seq, len(source), source.seq(), source.specs()) == (300, 300, 300, SPECS)
    again, caught_up = source.import_index()
    assert caught_up == seq
    assert rows_of(again.columns()) == rows_of(index.columns())
    assert answers(again) == answers(index)
    assert again.query(point=(0, 0), k=3).labels == index.query(point=(0, 0), k=3).labels
    assert again.config.analyzer == "exact"


def test_text_ids_keep_their_keys_and_so_their_ties(source):
    names = [f"p{i:03d}" for i in range(50)][::-1]
    index = build(50, ids=names, lon=np.zeros(50), lat=np.zeros(50), keywords=None)
    source.export_index(index)
    index.delete([names[3]])
    source.remove(index.ids.find([names[3]]))
    index.ids.add(["never stored"])  # a number that Postgres has no row for
    seq = source.upsert(index, [0.0], [0.0], ids=["later"])
    again, caught_up = source.import_index()
    assert caught_up == seq
    assert again.query(point=(0, 0), k=60).ids == index.query(point=(0, 0), k=60).ids
    assert again.ids.get("later") == index.ids.get("later")


def test_a_shard_is_one_range_and_ranges_part_everything(source, server):
    index = build(200, seed=3)
    source.export_index(index)
    ends = source.cuts(4)
    everything = {}
    for low, high in zip([0, *ends], [*ends, None], strict=True):
        shard, seq = rebuild_shard(server, low, high, schema=source.schema)
        columns = shard.columns()
        curve = hilbert_key(columns.lon, columns.lat)
        assert ((curve >= low) & (curve < (high or 2**63))).all()
        assert 40 <= len(columns) <= 60
        assert seq == 200
        everything |= rows_of(columns)
    assert everything == rows_of(index.columns())


def test_the_change_feed_brings_an_index_level(source):
    index = build(100)
    seq = source.export_index(index)
    other, _ = source.import_index()
    more = raw_places(30, seed=9, first=90)  # ten of them replace
    source.upsert(index, more["lon"], more["lat"], ids=more["ids"], keywords=more["keywords"],
                  attributes=more["attributes"], labels=["new"] * 30)  # fmt: skip
    source.delete(index, [5, 6, 7, 1234])
    assert rows_of(other.columns()) != rows_of(index.columns())
    changes = source.changes_since(seq)
    assert (len(changes.rows.columns), changes.deleted.tolist(), changes.more) == (
        30,
        [5, 6, 7],
        False,
    )
    for limit in (7, 100_000):
        third, _ = source.import_index() if limit == 7 else (other, 0)
        source.catch_up(third, seq, limit=limit)
        assert rows_of(third.columns()) == rows_of(index.columns())
        assert third.query(point=(0, 0), k=5).ids == index.query(point=(0, 0), k=5).ids
    assert source.catch_up(other, changes.seq) == changes.seq  # nothing more: nothing happens
    assert set(source.changes_since(seq).rows.labels) == {"new"}


def test_a_shard_lets_go_of_what_moved_out_of_its_range(source, server):
    index = build(120, seed=5)
    source.export_index(index)
    (cut,) = source.cuts(2)
    shards = [rebuild_shard(server, 0, cut, schema=source.schema),
              rebuild_shard(server, cut, None, schema=source.schema)]  # fmt: skip
    mover = int(shards[0][0].columns().keys[0])
    far = shards[1][0].columns()
    source.upsert(index, far.lon[:1], far.lat[:1], ids=[mover])
    for (shard, seq), (low, high) in zip(shards, ((0, cut), (cut, None)), strict=True):
        source.catch_up(shard, seq, low=low, high=high)
    here, there = (set(shard.columns().keys.tolist()) for shard, _ in shards)
    assert mover in there
    assert not here & there
    assert here | there == set(index.columns().keys.tolist())


def test_all_shards_from_the_source_answer_as_one_index(source):
    index = build(150, seed=6)
    source.export_index(index)
    sharded, seq = ShardedIndex.from_postgres(source, 5)
    assert seq == 150
    assert answers(sharded) == answers(index)
    source.delete(index, index.query(point=(10, 20), k=2).ids)
    assert source.catch_up(sharded, seq) == source.seq()
    assert answers(sharded, match="any", keywords=["pizza"]) == answers(
        index, match="any", keywords=["pizza"]
    )


def test_writers_at_the_same_time_leave_no_gap_in_the_feed(source, server, schema):
    source.create(SPECS)
    seen: set[int] = set()
    done = threading.Event()

    def read():
        seq = 0
        while True:
            last = done.is_set()
            changes = source.changes_since(seq, limit=50)
            seen.update(changes.rows.columns.keys.tolist())
            seq = changes.seq
            if last and not changes.more:
                return

    def write(first):
        with PlaceSource(server, schema=schema) as mine:
            for start in range(first, first + 100, 10):
                one = build(10, seed=start, ids=np.arange(start, start + 10)).columns()
                mine.put(one)

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(1000 * i,)) for i in range(3)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert len(seen) == 300


def test_check_ins_follow_their_places(source):
    index = build(40, seed=8)
    source.export_index(index)
    place = np.repeat(np.arange(40), 2)
    source.put_checkins(
        CheckinRows(np.arange(80), place, np.full(80, 7, dtype=np.int32)),
    )
    everything = source.checkins()
    assert everything.user.tolist() == list(range(80))
    assert set(everything.slot.tolist()) == {7}
    (cut,) = source.cuts(2)
    low, high = source.checkins(0, cut), source.checkins(cut)
    assert len(low.user) + len(high.user) == 80
    assert set(low.place.tolist()) == set(source.read(0, cut).columns.keys.tolist())


def test_an_empty_source_is_an_empty_index(source):
    source.create(SPECS)
    index, seq = source.import_index()
    assert (len(index), seq, source.cuts(3)) == (0, 0, [0, 0])
    assert len(source.checkins().user) == 0


def test_what_is_wrong_is_said(source, server):
    with pytest.raises(NotFoundError, match="no places"):
        source.read()
    source.create(SPECS, analyzer="exact", id_kind="text")
    with pytest.raises(ConflictError, match="already"):
        source.create(SPECS)
    columns = build(3).columns()
    with pytest.raises(InputError, match="2 ids for 3"):
        source.put(columns, ids=["a", "b"])
    source.put(columns, ids=["a", "b", "c"])
    with pytest.raises(ConflictError, match="another place"):
        source.put(replace(columns, keys=columns.keys + 10), ids=["a", "x", "y"])
    with pytest.raises(InputError, match="cannot store"):
        source.put(columns, ids=["a", "b", "c"], labels=["nul \0", None, None])
    assert source.seq() == 3  # what failed took no number
    with pytest.raises(InputError, match="at least"):
        source.changes_since(-1)
    for name in ("a;drop", "A", "1a", "", "a" * 64):
        with pytest.raises(InputError, match="schema"):
            PlaceSource(server, schema=name)
    with pytest.raises(UnavailableError, match="does not answer"):
        PlaceSource("postgresql://shoal@/postgres?host=/nonexistent", timeout_s=1)
    with pytest.raises(InputError, match="address"):
        PlaceSource("nonsense://")
