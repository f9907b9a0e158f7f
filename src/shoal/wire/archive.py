"""Stored ZIP in one canonical form: the container format of task packages.

Any ZIP tool reads these files. We read them more strictly than a ZIP tool
would: every header must be, byte for byte, what :func:`write_archive` writes
for the same names and contents. So there is one file for one content, nothing
can hide between or behind the members, no member is compressed (no bombs), a
link or a folder, and a local header cannot tell another story than the central
directory. (Walle sheet 6.4; the ZIP layout is APPNOTE.TXT 6.3.)
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from shoal.core.errors import InputError, IntegrityError, LimitError
from shoal.wire.limits import WireLimits
from shoal.wire.specs import check_member_path

__all__ = [
    "ByteSource",
    "FileSource",
    "Member",
    "MemorySource",
    "read_directory",
    "read_member",
    "write_archive",
]

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")

# One fixed choice for everything a ZIP header may vary in.
_VERSION = 20
_MADE_BY = (3 << 8) | _VERSION  # Unix, so that the mode below counts
_FLAGS = 0x800  # names are UTF-8
_STORED = 0
_TIME, _DATE = 0, (1 << 5) | 1  # 1980-01-01 00:00:00, the oldest a ZIP can say
_MODE = (0o100644) << 16  # a plain file


@dataclass(frozen=True)
class Member:
    """One member: its path, size in bytes, CRC-32 and where its bytes start."""

    path: str
    size: int
    crc: int
    offset: int


class ByteSource(Protocol):
    """Bytes that can be read at any place."""

    size: int

    def read_at(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``; fewer only at the end."""
        ...


class MemorySource:
    """A :class:`ByteSource` over bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self.size = len(data)

    def read_at(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``; fewer only at the end."""
        return bytes(self._data[offset : offset + length])


class FileSource:
    """A :class:`ByteSource` over an open file; it stays the same if its name moves."""

    def __init__(self, path: str | Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._descriptor).st_size

    def read_at(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``; fewer only at the end."""
        return os.pread(self._descriptor, length, offset)

    def close(self) -> None:
        """Close the file; once only."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _local_header(name: bytes, size: int, crc: int) -> bytes:
    return (
        _LOCAL.pack(
            b"PK\3\4", _VERSION, _FLAGS, _STORED, _TIME, _DATE, crc, size, size, len(name), 0
        )
        + name
    )


def _central_header(name: bytes, size: int, crc: int, start: int) -> bytes:
    return (
        _CENTRAL.pack(
            b"PK\1\2",
            _MADE_BY,
            _VERSION,
            _FLAGS,
            _STORED,
            _TIME,
            _DATE,
            crc,
            size,
            size,
            len(name),
            0,
            0,
            0,
            0,
            _MODE,
            start,
        )
        + name
    )


def _end_record(count: int, directory: int, start: int) -> bytes:
    return _END.pack(b"PK\5\6", 0, 0, count, count, directory, start, 0)


def write_archive(members: Iterable[tuple[str, bytes]]) -> bytes:
    """Return the archive of ``(path, content)`` pairs, in the order given."""
    body = bytearray()
    directory = bytearray()
    count = 0
    for path, content in members:
        name = path.encode()
        crc = zlib.crc32(content)
        directory += _central_header(name, len(content), crc, len(body))
        body += _local_header(name, len(content), crc)
        body += content
        count += 1
    end = _end_record(count, len(directory), len(body))
    return bytes(body + directory + end)


def read_directory(source: ByteSource, limits: WireLimits) -> list[Member]:
    """Read the list of members and check the form of the whole archive.

    Contents are not read here, so the cost depends on the number of members
    only; :func:`read_member` checks each content.

    Raises
    ------
    LimitError
        The file, or the number of members, exceeds ``limits``.
    IntegrityError
        Truncated, or a header is not the canonical one.
    InputError
        A member is compressed, a link, a folder, named twice, or would climb
        out of the folder it is unpacked into; ``row`` is its number from 1.
    """
    if source.size > limits.package:
        raise LimitError("package too large", field="package", value=source.size)
    if source.size < _END.size:
        raise IntegrityError("not a task package, or truncated")
    tail = source.read_at(source.size - _END.size, _END.size)
    magic, _, _, count, _, length, start, _ = _END.unpack(tail)
    if magic != b"PK\5\6" or tail != _end_record(count, length, start):
        raise IntegrityError("not a task package, or truncated")
    if count > limits.package_members:
        raise LimitError("too many members", field="package", value=count)
    if start + length + _END.size != source.size:
        raise IntegrityError("package directory does not end where the file ends")
    directory = source.read_at(start, length)
    members: list[Member] = []
    taken: dict[str, int] = {}
    position = 0
    offset = 0
    for row in range(1, count + 1):
        member, entry = _read_entry(directory, position, row, taken)
        if offset != entry.start or member.offset + member.size > start:
            raise IntegrityError(f"package member {row} is not where the directory says")
        header = source.read_at(offset, entry.header)
        if header != _local_header(member.path.encode(), member.size, member.crc):
            raise IntegrityError(f"package member {row} has two different headers")
        members.append(member)
        position += entry.length
        offset = member.offset + member.size
    if position != length or offset != start:
        raise IntegrityError("package holds bytes that belong to no member")
    return members


@dataclass(frozen=True)
class _Entry:
    """Where a central entry says that its member is, and the lengths of both headers."""

    start: int
    length: int
    header: int


def _read_entry(
    directory: bytes, position: int, row: int, taken: dict[str, int]
) -> tuple[Member, _Entry]:
    if position + _CENTRAL.size > len(directory):
        raise IntegrityError("package directory is truncated")
    fields = _CENTRAL.unpack_from(directory, position)
    magic, method, crc, packed, size = fields[0], fields[4], fields[7], fields[8], fields[9]
    name_length, mode, start = fields[10], fields[15] >> 16, fields[16]
    if magic != b"PK\1\2":
        raise IntegrityError("package directory is damaged")
    name = directory[position + _CENTRAL.size : position + _CENTRAL.size + name_length]
    try:
        path = name.decode()
    except UnicodeDecodeError as error:
        raise InputError("member name is not UTF-8", field="package", row=row) from error
    check_member_path(path, field="package", row=row)
    if method != _STORED or packed != size:
        raise InputError("member is compressed", field=path, row=row)
    if mode & 0o170000 not in {0, 0o100000}:
        raise InputError("member is not a plain file", field=path, row=row)
    _take_name(path.casefold(), row, taken, path)
    entry = _central_header(name, size, crc, start)
    if directory[position : position + len(entry)] != entry:
        raise IntegrityError(f"package member {row} has a header that is not canonical")
    header = _LOCAL.size + len(name)
    return Member(path, size, crc, start + header), _Entry(start, len(entry), header)


def _take_name(folded: str, row: int, taken: dict[str, int], path: str) -> None:
    """Note a name and its folders (negative rows); refuse what cannot lie side by side."""
    if folded in taken:
        raise InputError(f"same name as member {abs(taken[folded])}", field=path, row=row)
    taken[folded] = row
    while "/" in folded:
        folded = folded.rpartition("/")[0]
        if taken.setdefault(folded, -row) > 0:
            raise InputError(
                f"needs a folder where member {taken[folded]} is a file", field=path, row=row
            )


def read_member(source: ByteSource, member: Member) -> bytes:
    """Return the content of a member; :class:`IntegrityError` if its CRC-32 differs."""
    data = source.read_at(member.offset, member.size)
    if len(data) != member.size or zlib.crc32(data) != member.crc:
        raise IntegrityError(f"package member {member.path} is damaged")
    return data
