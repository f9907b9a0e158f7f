"""Files by content: a folder where the name of a file is the hash of what is in it.

Layout ``sha256/ab/<hex>``. A file is written under a temporary name, fsynced and
renamed, so a hash that has a file has the whole file; writing the same content
twice writes once. Object storage takes the same four calls (Walle sheet A.2).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

from shoal.core.errors import InputError, IntegrityError, NotFoundError
from shoal.core.files import atomic_writer, fsync_folder, sha256_file
from shoal.wire.notices import FileRef

__all__ = ["BlobStore"]

_CHUNK = 1 << 20


class BlobStore:
    """A local folder of content-addressed files.

    Parameters
    ----------
    folder : path-like
        Made if missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder) / "sha256"
        self._folder.mkdir(parents=True, exist_ok=True)

    def _place(self, sha256: bytes) -> Path:
        if len(sha256) != 32:
            raise InputError("expected 32 bytes", field="sha256", value=sha256)
        name = sha256.hex()
        return self._folder / name[:2] / name

    def _prepared(self, sha256: bytes) -> Path:
        place = self._place(sha256)
        if not place.parent.exists():
            place.parent.mkdir(exist_ok=True)
            fsync_folder(self._folder)
        return place

    def put_bytes(
        self, data: bytes, *, path: str = "", scope: Literal["shared", "exclusive"] = "shared"
    ) -> FileRef:
        """Store ``data`` durably and return how to refer to it.

        ``path`` and ``scope`` go into the reference only.
        """
        digest = hashlib.sha256(data).digest()
        place = self._prepared(digest)
        if not self._holds(place, len(data)):
            with atomic_writer(place, mode=0o444) as stream:
                stream.write(data)
        return FileRef(sha256=digest, size=len(data), path=path, scope=scope)

    def put_file(
        self,
        source: str | Path,
        *,
        path: str = "",
        scope: Literal["shared", "exclusive"] = "shared",
    ) -> FileRef:
        """Store a copy of a file durably; see :meth:`put_bytes`.

        Raises
        ------
        NotFoundError
            No such file.
        IntegrityError
            The file changed while it was read.
        """
        origin = Path(source)
        if not origin.is_file():
            raise NotFoundError(f"no file {origin}")
        digest = sha256_file(origin)
        size = origin.stat().st_size
        place = self._prepared(digest)
        if not self._holds(place, size):
            check = hashlib.sha256()
            with origin.open("rb") as read, atomic_writer(place, mode=0o444) as write:
                while chunk := read.read(_CHUNK):
                    check.update(chunk)
                    write.write(chunk)
                if check.digest() != digest:
                    raise IntegrityError(f"{origin.name} changed while it was read")
        return FileRef(sha256=digest, size=size, path=path, scope=scope)

    @staticmethod
    def _holds(place: Path, size: int) -> bool:
        # A file of another size is a disk's damage; writing the content again heals it.
        return place.is_file() and place.stat().st_size == size

    def has(self, sha256: bytes) -> bool:
        """Whether the content is here."""
        return self._place(sha256).is_file()

    def path(self, sha256: bytes) -> Path:
        """Return where the content lies; :class:`NotFoundError` if it does not."""
        place = self._place(sha256)
        if not place.is_file():
            raise NotFoundError(f"no file with hash {sha256.hex()}")
        return place

    def open(self, sha256: bytes) -> IO[bytes]:
        """Open the content for reading; :class:`NotFoundError` if it is not here."""
        return self.path(sha256).open("rb")

    def read(self, sha256: bytes) -> bytes:
        """Return the whole content, checked.

        Raises
        ------
        NotFoundError
            It is not here.
        IntegrityError
            The disk gave back something else.
        """
        data = self.path(sha256).read_bytes()
        if hashlib.sha256(data).digest() != sha256:
            raise IntegrityError(f"stored file {sha256.hex()} is damaged")
        return data

    def hashes(self) -> Iterator[bytes]:
        """Go through the hashes of everything stored, in order."""
        for place in sorted(self._folder.glob("[0-9a-f][0-9a-f]/*")):
            if len(place.name) == 64:
                yield bytes.fromhex(place.name)

    def damaged(self) -> list[bytes]:
        """Read everything and return the hashes whose files are not what they should be."""
        return [digest for digest in self.hashes() if sha256_file(self._place(digest)) != digest]
