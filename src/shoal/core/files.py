"""Files that are either whole or absent.

A reader never sees half a file: bytes go to a temporary name in the same
folder, are fsynced, and take the final name by one rename; the folder is
fsynced too, so that the rename survives a power cut.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from shoal.core.errors import ConflictError

__all__ = [
    "FolderLock",
    "atomic_writer",
    "fsync_folder",
    "sha256_file",
    "write_bytes",
    "write_text",
]

_CHUNK = 1 << 20


def fsync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable; a no-op where folders cannot be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_writer(path: str | os.PathLike[str], *, mode: int = 0o644) -> Iterator[IO[bytes]]:
    """Open a temporary file that takes the name ``path`` when the block ends well.

    Parameters
    ----------
    path : path-like
        The final name. Its folder must exist.
    mode : int
        Permission bits of the new file.

    Yields
    ------
    file object
        Opened for binary writing. If the block raises, ``path`` is untouched.
    """
    target = Path(path)
    descriptor, name = tempfile.mkstemp(
        prefix=f".{target.name}.", suffix=".part", dir=target.parent
    )
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(mode)
        temporary.replace(target)
        fsync_folder(target.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_bytes(path: str | os.PathLike[str], data: bytes, *, mode: int = 0o644) -> None:
    """Write ``data`` under ``path`` atomically and durably."""
    with atomic_writer(path, mode=mode) as stream:
        stream.write(data)


def write_text(path: str | os.PathLike[str], text: str, *, mode: int = 0o644) -> None:
    """Write ``text`` as UTF-8 under ``path`` atomically and durably."""
    write_bytes(path, text.encode(), mode=mode)


def sha256_file(path: str | os.PathLike[str]) -> bytes:
    """Return the SHA-256 digest (32 bytes) of a file, read in chunks."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.digest()


class FolderLock:
    """An exclusive lock on a data folder, held until closed or the process ends.

    The kernel drops the lock with the process, so a ``kill -9`` leaves no
    stale lock behind.

    Parameters
    ----------
    folder : path-like
        The folder to own; made if it is missing.
    owner : str
        Who asks, for the error message of the second comer.

    Raises
    ------
    ConflictError
        Another process holds the folder.
    """

    def __init__(self, folder: str | os.PathLike[str], owner: str = "shoal") -> None:
        import fcntl  # noqa: PLC0415 - POSIX only, and only needed here

        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._stream = (self.folder / ".lock").open("a+")
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._stream.seek(0)
            holder = self._stream.read().strip() or "another process"
            self._stream.close()
            raise ConflictError(
                f"folder {self.folder} is in use by {holder}",
                hint="stop the other process or choose another folder",
            ) from error
        self._stream.truncate(0)
        self._stream.write(f"{owner} (process {os.getpid()})")
        self._stream.flush()

    def close(self) -> None:
        """Release the folder."""
        self._stream.close()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
