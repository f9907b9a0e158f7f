"""The blob store: whole files or none, one a content, damage found and healed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.cloud.blobs import BlobStore
from shoal.core.errors import InputError, IntegrityError, NotFoundError


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_put_and_get(blobs: BlobStore, tmp_path: Path) -> None:
    ref = blobs.put_bytes(b"content", path="a/b", scope="exclusive")
    digest = hashlib.sha256(b"content").digest()
    assert (ref.sha256, ref.size, ref.path, ref.scope) == (digest, 7, "a/b", "exclusive")
    assert blobs.has(digest)
    assert blobs.path(digest) == tmp_path / "blobs/sha256" / digest.hex()[:2] / digest.hex()
    assert blobs.read(digest) == b"content"
    with blobs.open(digest) as stream:
        assert stream.read() == b"content"
    assert not blobs.path(digest).stat().st_mode & 0o222


@settings(max_examples=25, deadline=None)
@given(st.lists(st.binary(max_size=50), max_size=5))
def test_one_file_a_content(contents: list[bytes]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        blobs = BlobStore(folder)
        for content in [*contents, *contents]:
            blobs.put_bytes(content)
        assert list(blobs.hashes()) == sorted({hashlib.sha256(c).digest() for c in contents})
        assert len(files(Path(folder))) == len(set(contents))
        assert blobs.damaged() == []


def test_files_are_copied_not_moved(blobs: BlobStore, tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(b"x" * 3_000_000)
    ref = blobs.put_file(source, path="models/model.onnx")
    source.write_bytes(b"changed")
    assert blobs.read(ref.sha256) == b"x" * 3_000_000
    assert BlobStore(tmp_path / "blobs").has(ref.sha256)  # another process sees it
    with pytest.raises(NotFoundError, match="no file"):
        blobs.put_file(tmp_path / "none")


def test_what_is_not_there(blobs: BlobStore) -> None:
    assert not blobs.has(bytes(32))
    for call in (blobs.path, blobs.open, blobs.read):
        with pytest.raises(NotFoundError):
            call(bytes(32))
    with pytest.raises(InputError, match="32 bytes"):
        blobs.has(b"short")


def test_damage_is_found_and_healed(blobs: BlobStore) -> None:
    good, cut = blobs.put_bytes(b"good"), blobs.put_bytes(b"to be cut")
    assert blobs.damaged() == []
    for ref, content in ((cut, b"to"), (good, b"evil")):
        path = blobs.path(ref.sha256)
        path.chmod(0o644)
        path.write_bytes(content)
    assert sorted(blobs.damaged()) == sorted([good.sha256, cut.sha256])
    with pytest.raises(IntegrityError):
        blobs.read(good.sha256)
    blobs.put_bytes(b"to be cut")  # a truncated file is written again
    assert blobs.damaged() == [good.sha256]


def test_a_kill_in_the_middle_leaves_no_half_file(blobs: BlobStore, tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "from shoal.cloud import blobs as module\n"
        "from shoal.core import files\n"
        "real = os.fsync\n"
        "left = int(sys.argv[2])\n"
        "def fsync(descriptor):\n"
        "    global left\n"
        "    if left == 0: os.kill(os.getpid(), 9)\n"
        "    left -= 1\n"
        "    real(descriptor)\n"
        "files.os.fsync = fsync\n"
        "module.BlobStore(sys.argv[1]).put_bytes(b'payload' * 1000)\n"
    )
    digest = hashlib.sha256(b"payload" * 1000).digest()
    outcomes = []
    for point in range(4):
        folder = tmp_path / f"kill-{point}"
        code = subprocess.run(
            [sys.executable, "-c", script, str(folder), str(point)], check=False
        ).returncode
        store = BlobStore(folder)
        assert store.damaged() == []
        outcomes.append((code, store.has(digest)))
        store.put_bytes(b"payload" * 1000)
        assert store.read(digest) == b"payload" * 1000
    assert outcomes[0] == (-9, False)
    assert outcomes[-1] == (0, True)
