"""Index folders: mapped back as they were, damage named, readers beside a writer."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from live_bench import SPECS, Model, build_plain, check, load_plain, make_places, rows_of

from shoal.core.errors import ConflictError, InputError, IntegrityError, NotFoundError
from shoal.spatial.segments import SegmentStore
from shoal.spatial.storage import read_manifest


def saved(folder: Path, n: int = 30) -> Model:
    model = Model()
    with SegmentStore(SPECS, build_plain, load_plain, memtable_rows=16) as store:
        for seed in range(2):
            columns = make_places(range(5 * seed, n), seed)
            store.upsert(columns)
            model.upsert(columns)
        store.delete(np.array([7]))
        model.delete([7])
        store.save(folder, {"a": 1}, {"more": np.arange(3)})
    return model


def load(folder: Path, **options: bool) -> SegmentStore:
    return SegmentStore.load(folder, build_plain, load_plain, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("mmap", [True, False])
def test_what_was_saved_is_loaded(tmp_path: Path, mmap: bool) -> None:
    model = saved(tmp_path / "index")
    with load(tmp_path / "index", mmap=mmap, verify=True) as store:
        check(store.snapshot(), model)
        assert store.config == {"a": 1}
        assert store.extra["more"].tolist() == [0, 1, 2]
        store.upsert(make_places([3, 99], seed=5))
        model.upsert(make_places([3, 99], seed=5))
        check(store.snapshot(), model)
        store.save(tmp_path / "index", {"a": 2})
    with load(tmp_path / "index", verify=True) as store:
        check(store.snapshot(), model)
        assert (store.config, store.extra) == ({"a": 2}, {})


def test_only_new_segments_are_written_again(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    saved(folder)
    before = {path.name for path in folder.glob("segment-*")}
    with load(folder) as store:
        store.upsert(make_places([99], seed=5))
        store.save(folder, {})
    after = {path.name for path in folder.glob("segment-*")}
    assert before < after
    assert len(after - before) == 1


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")


def test_every_truncated_empty_or_missing_file_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    saved(folder)
    files = _files(folder)
    assert len(files) >= 7
    for path in files:
        data = path.read_bytes()
        for wrong in (data[: len(data) // 2], b"", data[:-1]):
            path.write_bytes(wrong)
            with pytest.raises(IntegrityError, match=path.name) as caught:
                load(folder)
            assert path.parent.name in str(caught.value)
        path.unlink()
        with pytest.raises((IntegrityError, InputError), match=path.name):
            load(folder)
        path.write_bytes(data)
    load(folder).close()


def test_every_altered_file_is_named_when_verified(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    saved(folder)
    for path in _files(folder):
        data = path.read_bytes()
        for at in {len(data) // 3, len(data) - 3}:
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            with pytest.raises((IntegrityError, InputError), match=path.parent.name):
                load(folder, verify=True)
        path.write_bytes(data)
    load(folder, verify=True).close()


def test_folders_that_are_no_index(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no manifest\.json"):
        load(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "another"}')
    with pytest.raises(InputError, match="another's"):
        load(tmp_path)
    with SegmentStore(SPECS, build_plain, load_plain) as store:
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "thesis.txt").write_text("mine")
        with pytest.raises(InputError, match=r"thesis\.txt"):
            store.save(tmp_path / "full", {})
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="no folder"):
            store.save(tmp_path / "file", {})


def test_a_newer_form_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "index")
    path = tmp_path / "index" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"schema": 2}))
    with pytest.raises(InputError, match="form 2"):
        load(tmp_path / "index")


def test_one_writer_and_readers_beside_it(tmp_path: Path) -> None:
    folder, model = tmp_path / "index", Model()

    def open_(read_only: bool) -> SegmentStore:
        return SegmentStore.open(
            folder, build_plain, load_plain, specs=SPECS, memtable_rows=16, read_only=read_only
        )

    with pytest.raises(NotFoundError):
        open_(True)
    with open_(False) as writer:
        with pytest.raises(ConflictError, match="in use"):
            open_(False)
        with pytest.raises(ConflictError, match="in use"), load_new() as other:
            other.save(folder, {})
        reader = open_(True)
        assert reader.durable is not None
        assert reader.snapshot().n_live == 0
        with pytest.raises(ConflictError, match="reading only"):
            reader.upsert(make_places([1], seed=1))
        for seed in range(12):
            columns = make_places(range(seed, seed + 10), seed)
            writer.upsert(columns)
            model.upsert(columns)
            if seed % 5 == 4:
                writer.compact()
            writer.wait()  # a merge in the background would be one more state to go to
            old, rows = reader.snapshot(), rows_of(reader.snapshot().columns())
            assert reader.durable.refresh()
            assert not reader.durable.refresh()
            check(reader.snapshot(), model, seeds=(seed,))
            assert rows_of(old.columns()) == rows  # still mapped, though removed from the folder
        with pytest.raises(ConflictError, match="opened for reading"):
            assert writer.durable is not None
            writer.durable.refresh()
        reader.close()
    with load(folder) as store:
        check(store.snapshot(), model)
    with open_(False) as writer:
        check(writer.snapshot(), model)


def load_new() -> SegmentStore:
    store = SegmentStore(SPECS, build_plain, load_plain)
    store.upsert(make_places([1], seed=1))
    return store


def test_a_save_over_an_open_index_forgets_its_journal(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    with SegmentStore.open(folder, build_plain, load_plain, specs=SPECS) as store:
        store.upsert(make_places(range(50, 60), seed=1))
    model = saved(folder)
    with load(folder) as store:
        check(store.snapshot(), model)
    with SegmentStore.open(folder, build_plain, load_plain) as store:
        check(store.snapshot(), model)
        assert read_manifest(folder).config == {"a": 1}


def test_a_missing_journal_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    with SegmentStore.open(folder, build_plain, load_plain, specs=SPECS) as store:
        store.upsert(make_places(range(5), seed=1))
        store.flush()
        store.upsert(make_places(range(5), seed=2))
    (path,) = folder.glob("journal-*.log")
    path.unlink()
    with pytest.raises(IntegrityError, match=path.name):
        SegmentStore.open(folder, build_plain, load_plain)
