"""The journal: entries come back as they went in, and damage is found."""

from __future__ import annotations

import errno
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from live_bench import make_places, rows_of

from shoal.core.errors import IntegrityError, UnavailableError
from shoal.spatial import journal as journal_module
from shoal.spatial.journal import (
    Deleted,
    Entry,
    Journal,
    Noted,
    Torn,
    Upserted,
    journal_path,
    journals,
    read_journal,
)


def entries() -> list[Entry]:
    return [
        Upserted.of(make_places([1, 5, 9], seed=1), b"note"),
        Deleted(np.array([5], dtype="<i8").tobytes()),
        Noted("checkin", b"\x00\xff"),
        Upserted.of(make_places([], seed=1), b""),
    ]


def write(folder: Path) -> tuple[Path, list[int]]:
    """A journal of all entries; and where each frame ends."""
    journal, ends = Journal(folder, 1, "fsync"), []
    for entry in entries():
        journal.sync(journal.append(entry))
        ends.append(journal.bytes)
    journal.close()
    return journal_path(folder, 1), ends


def test_entries_come_back(tmp_path: Path) -> None:
    path, _ = write(tmp_path)
    assert list(read_journal(path, 1, last=False)) == entries()
    first = entries()[0]
    assert isinstance(first, Upserted)
    assert rows_of(first.columns(2)) == rows_of(make_places([1, 5, 9], seed=1))


def test_every_cut_is_torn_in_the_last_file_and_damage_in_others(tmp_path: Path) -> None:
    path, ends = write(tmp_path)
    data = path.read_bytes()
    for size in range(16, len(data)):
        path.write_bytes(data[:size])
        whole = sum(end <= size for end in ends)
        found = list(read_journal(path, 1, last=True))
        assert found[:whole] == entries()[:whole]
        if size in (16, *ends):
            assert len(found) == whole
            continue
        (torn,) = found[whole:]
        assert isinstance(torn, Torn)
        assert torn.at + torn.dropped == size
        with pytest.raises(IntegrityError, match=r"journal-000001\.log is cut short"):
            list(read_journal(path, 1, last=False))


def test_every_flipped_byte_before_the_last_frame_is_found(tmp_path: Path) -> None:
    path, ends = write(tmp_path)
    data = path.read_bytes()
    for at in range(ends[-2]):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :])
        with pytest.raises(IntegrityError, match=r"journal-000001\.log"):
            list(read_journal(path, 1, last=True))


def test_zeros_at_the_end_are_a_power_cut(tmp_path: Path) -> None:
    path, _ = write(tmp_path)
    path.write_bytes(path.read_bytes() + bytes(300))
    *found, torn = read_journal(path, 1, last=True)
    assert found == entries()
    assert isinstance(torn, Torn)
    assert torn.dropped == 300


def test_rotation_numbers_files_without_gaps(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 7, "os")
    assert journal.empty
    for number in (8, 9):
        journal.append(Noted("a", b""))
        assert journal.rotate() == number
    assert journals(tmp_path) == [7, 8, 9]
    journal.remove_before(9)
    assert journals(tmp_path) == [9]
    journal.close()


def test_callers_that_wait_share_a_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, calls, gate = Journal(tmp_path, 1, "fsync"), [], threading.Event()

    def slow(stream: int) -> None:
        calls.append(stream)
        gate.wait(10)

    monkeypatch.setattr(os, "fsync", slow)
    threads = []
    for _ in range(8):
        ticket = journal.append(Noted("a", b""))
        threads.append(threading.Thread(target=journal.sync, args=(ticket,)))
        threads[-1].start()
    while not calls:
        pass
    gate.set()
    for thread in threads:
        thread.join()
    assert 1 <= len(calls) <= 8
    journal.sync(1)
    assert len(calls) <= 8


def test_a_failed_write_leaves_whole_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path, 1, "os")
    journal.append(Noted("a", b"1"))
    real = os.write

    def full(stream: int, data: memoryview) -> int:
        if len(data) > 5:
            return real(stream, data[:5])
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(journal_module.os, "write", full)
    with pytest.raises(UnavailableError, match="no space left"):
        journal.append(Noted("b", b"2"))
    monkeypatch.undo()
    journal.append(Noted("c", b"3"))
    journal.close()
    found = list(read_journal(journal_path(tmp_path, 1), 1, last=False))
    assert found == [Noted("a", b"1"), Noted("c", b"3")]


@pytest.mark.parametrize("content", [b"", b"SHOAL", b"x" * 40], ids=["empty", "short", "other"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = journal_path(tmp_path, 1)
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"journal-000001\.log"):
        list(read_journal(path, 1, last=True))
