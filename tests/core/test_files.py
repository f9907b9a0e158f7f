"""Files are whole or absent, whatever kills the writer; a folder has one owner."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys

import pytest

from shoal.core.errors import ConflictError
from shoal.core.files import FolderLock, atomic_writer, sha256_file, write_bytes, write_text


def test_write_replaces_the_whole_file(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "old and much longer than the new text")
    write_text(path, "neü")
    assert path.read_text(encoding="utf-8") == "neü"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_mode_is_applied(tmp_path):
    path = tmp_path / "key"
    write_bytes(path, b"k", mode=0o600)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_raising_block_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "a"
    write_bytes(path, b"old")
    with pytest.raises(RuntimeError, match="half way"), atomic_writer(path) as stream:
        stream.write(b"new, but only ha")
        raise RuntimeError("half way")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


_WRITER = """
import os, signal, sys
from shoal.core import files
step = sys.argv[2]
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if step == "fsync":
    os.fsync = die
elif step == "rename":
    files.Path.replace = die
with files.atomic_writer(sys.argv[1]) as stream:
    stream.write(b"new" * 100_000)
    stream.flush()
    if step == "write":
        die()
if step == "after":
    die()
"""


@pytest.mark.parametrize("step", ["write", "fsync", "rename", "after"])
def test_kill_9_at_each_step_leaves_the_old_or_the_new_file(tmp_path, step):
    path = tmp_path / "a"
    write_bytes(path, b"old")
    done = subprocess.run([sys.executable, "-c", _WRITER, str(path), step], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == (b"new" * 100_000 if step == "after" else b"old")


def test_negative_control_a_plain_write_is_torn_by_kill_9(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    plain = (
        "import os, signal, sys\n"
        "stream = open(sys.argv[1], 'wb', buffering=0)\n"
        "stream.write(b'new, but only ha')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", plain, str(path)], check=False)
    assert path.read_bytes() not in (b"old", b"new, but only half")


def test_sha256_of_a_file_over_several_chunks(tmp_path):
    path = tmp_path / "big"
    data = os.urandom((1 << 20) + 17)
    path.write_bytes(data)
    assert sha256_file(path) == hashlib.sha256(data).digest()


def test_second_owner_is_refused_and_told_who_holds_the_folder(tmp_path):
    with (
        FolderLock(tmp_path / "data", owner="agent one"),
        pytest.raises(ConflictError, match=f"agent one \\(process {os.getpid()}\\)"),
    ):
        FolderLock(tmp_path / "data")
    FolderLock(tmp_path / "data").close()  # free again


def test_kill_9_of_the_owner_frees_the_folder(tmp_path):
    holder = (
        "import os, signal, sys\n"
        "from shoal.core.files import FolderLock\n"
        "lock = FolderLock(sys.argv[1])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", holder, str(tmp_path)], check=False)
    FolderLock(tmp_path).close()
