"""The journal: every write of a durable index, in order, before it is acknowledged.

A file is a header of 16 bytes (magic, version, number) and frames. A frame is the
length of its payload, the CRC-32 of the payload and the CRC-32 of those eight bytes,
each a little-endian u32, then the payload: msgpack of an :data:`Entry`. The header
has a checksum of its own so that a damaged length is not taken for the torn end of
a file. Files are numbered without gaps; a new one is begun at each flush.

A process that dies leaves at most one frame cut short at the end of the last file.
Nobody was told that it is safe, so it is dropped and reported. Anything else that
does not fit its checksum is an error.
"""

from __future__ import annotations

import os
import re
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
import numpy as np

from shoal.core import crashpoints
from shoal.core.errors import IntegrityError, LimitError, UnavailableError
from shoal.core.files import fsync_folder, write_bytes
from shoal.spatial.columns import PlaceColumns

__all__ = [
    "Deleted",
    "Entry",
    "Journal",
    "Noted",
    "Torn",
    "Upserted",
    "journal_path",
    "journals",
    "read_journal",
]

_MAGIC = b"SHOALJNL"
_HEADER = struct.Struct("<8sII")
_FRAME = struct.Struct("<II")
_CRC = struct.Struct("<I")
_FRAME_BYTES = _FRAME.size + _CRC.size
_VERSION = 1
_MOST_BYTES = 1 << 30
_NAME = re.compile(r"journal-(\d{6,})\.log")


class Upserted(msgspec.Struct, array_like=True, tag="u", frozen=True):
    """Places that were added or replaced; arrays are little-endian bytes."""

    keys: bytes
    lon: bytes
    lat: bytes
    words: list[str]
    lengths: bytes
    ids: bytes
    values: bytes
    note: bytes = b""

    @classmethod
    def of(cls, columns: PlaceColumns, note: bytes) -> Upserted:
        """Return the entry of some columns."""
        return cls(
            keys=columns.keys.astype("<i8").tobytes(),
            lon=columns.lon.astype("<f8").tobytes(),
            lat=columns.lat.astype("<f8").tobytes(),
            words=list(columns.words),
            lengths=np.diff(columns.word_ptr).astype("<u4").tobytes(),
            ids=columns.word_ids.astype("<i4").tobytes(),
            values=columns.values.astype("<f8").tobytes(),
            note=note,
        )

    def columns(self, attributes: int) -> PlaceColumns:
        """Return the columns; ``attributes`` is the number of rows of ``values``."""
        keys = np.frombuffer(self.keys, dtype="<i8").astype(np.int64)
        ptr = np.zeros(len(keys) + 1, dtype=np.int64)
        np.cumsum(np.frombuffer(self.lengths, dtype="<u4"), out=ptr[1:])
        return PlaceColumns(
            keys=keys,
            lon=np.frombuffer(self.lon, dtype="<f8").astype(np.float64),
            lat=np.frombuffer(self.lat, dtype="<f8").astype(np.float64),
            words=self.words,
            word_ptr=ptr,
            word_ids=np.frombuffer(self.ids, dtype="<i4").astype(np.int32),
            values=np.frombuffer(self.values, dtype="<f8")
            .astype(np.float64)
            .reshape(attributes, len(keys)),
        )


class Deleted(msgspec.Struct, array_like=True, tag="d", frozen=True):
    """Keys that were deleted."""

    keys: bytes
    note: bytes = b""


class Noted(msgspec.Struct, array_like=True, tag="n", frozen=True):
    """Something of the companion's."""

    kind: str
    payload: bytes


Entry: TypeAlias = Upserted | Deleted | Noted

_DECODER = msgspec.msgpack.Decoder(Upserted | Deleted | Noted)
_ENCODER = msgspec.msgpack.Encoder()


@dataclass(frozen=True, slots=True)
class Torn:
    """The end of a journal that was cut short: file, and bytes dropped from where on."""

    path: Path
    at: int
    dropped: int


def journal_path(folder: Path, number: int) -> Path:
    """Return the path of a journal file."""
    return folder / f"journal-{number:06d}.log"


def journals(folder: Path) -> list[int]:
    """Return the numbers of the journal files of a folder, ascending."""
    found = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in found if match)


def read_journal(path: Path, number: int, *, last: bool) -> Iterator[Entry | Torn]:
    """Yield the entries of a journal file, and at the end what was cut short, if anything.

    Parameters
    ----------
    path : Path
        The file.
    number : int
        Its number.
    last : bool
        Whether it is the last one: only there may a frame be cut short.

    Raises
    ------
    IntegrityError
        The file is damaged.
    """
    data = path.read_bytes()
    if len(data) < _HEADER.size:
        raise IntegrityError(f"{path} is cut short: no journal header")
    if _HEADER.unpack_from(data) != (_MAGIC, _VERSION, number):
        raise IntegrityError(f"{path} is no journal {number} of version {_VERSION}")
    at = _HEADER.size
    while at < len(data):
        start = at + _FRAME_BYTES
        torn = Torn(path, at, len(data) - at)
        if start > len(data):
            break
        length, crc = _FRAME.unpack_from(data, at)
        (header_crc,) = _CRC.unpack_from(data, at + _FRAME.size)
        if zlib.crc32(data[at : at + _FRAME.size]) != header_crc:
            if any(data[at:]):
                raise IntegrityError(
                    f"{path} is damaged at byte {at}",
                    hint="restore the folder from a copy; what is before that byte is whole",
                )
            break  # a power cut may leave zeros where a frame was to go
        payload = memoryview(data)[start : start + length]
        if len(payload) < length:
            break
        if zlib.crc32(payload) != crc:
            if start + length == len(data):
                break
            raise IntegrityError(
                f"{path} is damaged in the frame at byte {at}",
                hint="restore the folder from a copy; what is before that byte is whole",
            )
        try:
            entry = _DECODER.decode(payload)
        except msgspec.MsgspecError as error:
            raise IntegrityError(f"{path}, frame at byte {at}: {error}") from None
        yield entry
        at = start + length
    else:
        return
    if not last:
        raise IntegrityError(f"{path} is cut short at byte {at}, and it is not the last journal")
    yield torn


class Journal:
    """The journal file that is being written, and those after it.

    Parameters
    ----------
    folder : Path
        Where the files lie.
    number : int
        The file to go on with; it is made if there is none.
    durability : {"fsync", "os"}
        What :meth:`sync` waits for.
    """

    def __init__(self, folder: Path, number: int, durability: Literal["fsync", "os"]) -> None:
        self.folder = folder
        self.durability = durability
        self.number = number
        self._tickets = 0
        self._synced = 0
        self._sync_lock = threading.Lock()
        self._broken: str | None = None
        self._stream = -1
        self.bytes = 0
        self._open()

    @property
    def empty(self) -> bool:
        """Say whether the present file has no frame."""
        return self.bytes == _HEADER.size

    def append(self, entry: Entry) -> int:
        """Write an entry; return the ticket to wait for in :meth:`sync`. One caller at a time."""
        if self._broken:
            raise UnavailableError(f"the journal could not be written: {self._broken}")
        payload = _ENCODER.encode(entry)
        if len(payload) > _MOST_BYTES:
            raise LimitError(f"one write is at most {_MOST_BYTES >> 20} MiB", value=len(payload))
        head = _FRAME.pack(len(payload), zlib.crc32(payload))
        frame = head + _CRC.pack(zlib.crc32(head)) + payload
        crashpoints.crashpoint("spatial.journal.before")
        try:
            _write(self._stream, frame)
        except OSError as error:
            self._undo(error)
            raise UnavailableError(
                f"cannot write {journal_path(self.folder, self.number)}: {error.strerror}"
            ) from error
        self.bytes += len(frame)
        self._tickets += 1
        crashpoints.crashpoint("spatial.journal.after")
        return self._tickets

    def sync(self, ticket: int) -> None:
        """Wait until an entry is as safe as ``durability`` says.

        Callers that wait at the same time share one fsync: the first takes it
        for all that was written before it began.
        """
        if self.durability == "os" or ticket <= self._synced:
            return
        with self._sync_lock:
            if ticket <= self._synced:
                return
            written = self._tickets
            try:
                os.fsync(self._stream)
            except OSError as error:
                # What the kernel holds after a failed fsync is unknown: write no more.
                self._broken = str(error)
                raise UnavailableError(f"cannot sync the journal: {error.strerror}") from error
            self._synced = written
        crashpoints.crashpoint("spatial.journal.synced")

    def rotate(self) -> int:
        """Begin the next file and return its number. No append may run meanwhile."""
        with self._sync_lock:
            os.fsync(self._stream)
            self._synced = self._tickets
            os.close(self._stream)
            self.number += 1
            self._open()
        crashpoints.crashpoint("spatial.journal.rotated")
        return self.number

    def remove_before(self, number: int) -> None:
        """Remove the files of smaller numbers."""
        for old in journals(self.folder):
            if old < number:
                journal_path(self.folder, old).unlink(missing_ok=True)
                crashpoints.crashpoint("spatial.journal.removed")

    def close(self) -> None:
        """Make what was written safe and close the file."""
        with self._sync_lock:
            if self._stream >= 0:
                os.fsync(self._stream)
                self._synced = self._tickets
                os.close(self._stream)
                self._stream = -1

    def _open(self) -> None:
        path = journal_path(self.folder, self.number)
        if not path.exists():
            write_bytes(path, _HEADER.pack(_MAGIC, _VERSION, self.number))
        self._stream = os.open(path, os.O_WRONLY | os.O_APPEND)
        self.bytes = os.fstat(self._stream).st_size

    def _undo(self, error: OSError) -> None:
        """Cut off what a failed write left, so that the next frame follows a whole one."""
        try:
            os.ftruncate(self._stream, self.bytes)
        except OSError:
            self._broken = str(error)


def cut_torn(torn: Torn) -> None:
    """Cut off the torn end of a journal, so that writing can go on there."""
    with torn.path.open("r+b") as stream:
        stream.truncate(torn.at)
        stream.flush()
        os.fsync(stream.fileno())
    fsync_folder(torn.path.parent)


def _write(stream: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(stream, rest) :]
