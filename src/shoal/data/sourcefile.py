"""Bytes and text of a file that may be compressed, with errors that say what is wrong with it."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
import zlib
from pathlib import Path
from typing import Any

from shoal.core.errors import InputError, NotFoundError, UnavailableError

__all__ = ["bare_suffix", "read_bytes", "read_text"]

_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
_CUT_SHORT = "the file is cut short; download or copy it again"


def bare_suffix(path: str | Path) -> str:
    """Return the suffix below a compression's: ``.csv`` of ``places.csv.gz``."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] in _PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_bytes(path: str | Path, *, member: str | None = None) -> bytes:
    """Return a file's content, unpacked if its name ends in .gz, .bz2, .xz, .zst or .zip.

    Parameters
    ----------
    path : path-like
        The file.
    member : str, optional
        Which file of a zip; by default its largest that is no readme.

    Raises
    ------
    NotFoundError
        There is no such file.
    InputError
        It is empty, cut short or not packed as its name says.
    UnavailableError
        It is a .zst and the package for it is not installed.
    """
    path = Path(path)
    if not path.is_file():
        what = "a folder" if path.is_dir() else "not there"
        raise NotFoundError(f"{path} is {what}", hint="give the path of a file")
    raw = path.read_bytes()
    if not raw:
        raise InputError("the file is empty", source=path.name)
    kind = path.suffix.lower()
    try:
        content = _unpack(raw, kind, member)
    except EOFError:
        raise InputError(_CUT_SHORT, source=path.name) from None
    except (OSError, lzma.LZMAError, zipfile.BadZipFile, zlib.error, ValueError) as error:
        cut = "ended before" in str(error) or "incomplete" in str(error)
        text = _CUT_SHORT if cut else f"not a readable {kind} file: {error}"
        raise InputError(text, source=path.name) from error
    if not content:
        raise InputError("the file is empty", source=path.name)
    return content


def _unpack(raw: bytes, kind: str, member: str | None) -> bytes:
    if kind == ".gz":
        return gzip.decompress(raw)
    if kind == ".bz2":
        return bz2.decompress(raw)
    if kind == ".xz":
        return lzma.decompress(raw)
    if kind == ".zst":
        return _unpack_zst(raw)
    if kind == ".zip":
        return _unpack_zip(raw, member)
    return raw


def _unpack_zst(raw: bytes) -> bytes:
    try:
        from backports import zstd  # noqa: PLC0415 - part of Python from 3.14 on
    except ModuleNotFoundError:
        raise UnavailableError(
            "a .zst file needs the package 'backports.zstd'", hint="pip install backports.zstd"
        ) from None
    reader: Any = zstd.ZstdDecompressor()
    parts = []
    try:
        while True:
            parts.append(reader.decompress(raw))
            if not reader.eof:
                raise EOFError
            raw = reader.unused_data
            if not raw:
                return b"".join(parts)
            reader = zstd.ZstdDecompressor()
    except zstd.ZstdError as error:
        raise ValueError(str(error)) from error


def _unpack_zip(raw: bytes, member: str | None) -> bytes:
    import io  # noqa: PLC0415

    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        files = [entry for entry in archive.infolist() if not entry.is_dir()]
        if member is None:
            found = [entry for entry in files if "readme" not in entry.filename.lower()]
            if not found:
                raise ValueError("it holds no file")
            name = max(found, key=lambda entry: entry.file_size).filename
        else:
            name = member
        try:
            return archive.read(name)
        except KeyError:
            listed = ", ".join(entry.filename for entry in files[:5])
            raise ValueError(f"no {name!r} in it, only {listed}") from None


def read_text(path: str | Path, *, encoding: str = "utf-8", member: str | None = None) -> str:
    """Return a text file's content; a byte order mark is taken off.

    Raises
    ------
    InputError
        As :func:`read_bytes`, or the bytes are not in ``encoding``; the message
        names the line.
    """
    content = read_bytes(path, member=member)
    name = Path(path).name
    if encoding.lower().replace("_", "-") in {"utf-8", "utf8"}:
        if content[:2] in {b"\xff\xfe", b"\xfe\xff"}:
            raise InputError("this is UTF-16, not UTF-8", source=name, hint='encoding="utf-16"')
        encoding = "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        cut = error.start >= len(content) - 4
        raise InputError(
            f"line {line} is not {error.encoding}",
            value=content[max(error.start - 10, 0) : error.start + 10],
            source=name,
            hint=_CUT_SHORT if cut else 'say the encoding, for example encoding="cp1252"',
        ) from None
    except LookupError:
        raise InputError("no such encoding", field="encoding", value=encoding) from None
