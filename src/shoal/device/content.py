"""Files on a device by their hash: whole under their name, or on their way beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from shoal.core.crashpoints import crashpoint
from shoal.core.errors import UnavailableError
from shoal.core.files import fsync_folder, sha256_file
from shoal.device.trust import TrustError
from shoal.wire.codes import ErrorCode
from shoal.wire.notices import FileRef

__all__ = ["ContentStore"]

_CHUNK = 1 << 20


class ContentStore:
    """A folder of files named by their SHA-256 in hex.

    Parameters
    ----------
    folder : path-like
        Made if it is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self._content = Path(folder)
        self._content.mkdir(parents=True, exist_ok=True)

    def has(self, ref: FileRef) -> bool:
        """Whether a file is here, whole by its size."""
        path = self.path(ref.sha256)
        return path.is_file() and path.stat().st_size == ref.size

    def path(self, sha256: bytes) -> Path:
        """Return where a file lies or will lie."""
        return self._content / sha256.hex()

    def receive(
        self, ref: FileRef, download: Callable[[int], Iterator[bytes]], chunk: int = _CHUNK
    ) -> Iterator[None]:
        """Bring a file into the content store, going on where an earlier try stopped.

        Parameters
        ----------
        ref : FileRef
            What the signed metadata promises.
        download : callable
            ``download(offset)`` yields the bytes from ``offset`` on.
        chunk : int
            Bytes between two steps.

        Yields
        ------
        None
            After every ``chunk`` bytes, so that the caller can do something else.

        Raises
        ------
        TrustError
            ``SIZE_EXCEEDED`` or ``HASH_MISMATCH``; nothing is kept.
        UnavailableError
            The download broke off; what came is kept for the next try.
        OSError
            The disk refuses (for example: full).
        """
        target = self.path(ref.sha256)
        if self.has(ref):
            return
        part = target.with_suffix(".part")
        offset = part.stat().st_size if part.exists() else 0
        if offset > ref.size:
            part.unlink()
            offset = 0
        with part.open("ab") as stream:
            if offset < ref.size:
                since = 0
                for data in download(offset):
                    offset += len(data)
                    if offset > ref.size:
                        part.unlink(missing_ok=True)
                        raise TrustError(
                            f"{ref.path or target.name} is longer than the {ref.size} bytes"
                            " that were signed",
                            ErrorCode.SIZE_EXCEEDED,
                        )
                    stream.write(data)
                    crashpoint("sync.download")
                    since += len(data)
                    if since >= chunk:
                        since = 0
                        yield
            stream.flush()
            os.fsync(stream.fileno())
        if offset < ref.size:
            raise UnavailableError(
                f"{ref.path or target.name} ended after {offset} of {ref.size} bytes"
            )
        if sha256_file(part) != ref.sha256:
            part.unlink(missing_ok=True)
            raise TrustError(
                f"{ref.path or target.name} is not the file that was signed",
                ErrorCode.HASH_MISMATCH,
            )
        crashpoint("sync.downloaded")
        part.replace(target)
        fsync_folder(self._content)
        crashpoint("sync.stored")

    def discard(self, sha256: bytes) -> None:
        """Remove a file if it is not what its name says."""
        path = self._content / sha256.hex()
        if path.is_file() and sha256_file(path) != sha256:
            path.unlink()

    def collect_garbage(self, keep: Collection[str]) -> int:
        """Remove every file, whole or not, whose hash (hex) is not in ``keep``; return how many."""
        removed = 0
        for path in self._content.iterdir():
            if path.name.removesuffix(".part") not in keep:
                path.unlink(missing_ok=True)
                removed += 1
        return removed
