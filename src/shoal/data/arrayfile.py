"""Arrays in one file that can be mapped: safetensors, with checksums to hold it against.

The format is read as its documentation has it: a u64 length, that many bytes of JSON
(name to dtype, shape and byte range), then the bytes. Files may come from strangers:
nothing in them is run, and every range is checked before it is used.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError, IntegrityError

__all__ = ["ArrayFile", "Arrays", "read_arrays", "write_arrays"]

Arrays: TypeAlias = dict[str, npt.NDArray[Any]]

_DTYPES: dict[str, str] = {
    "F64": "<f8", "F32": "<f4", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip
_CODES = {np.dtype(text): code for code, text in _DTYPES.items()}
_ALIGN = 64
_CHUNK = 1 << 24


class ArrayFile(msgspec.Struct, frozen=True):
    """What to hold a file of arrays against.

    Attributes
    ----------
    bytes : int
        Its size.
    sha256, header_sha256 : str
        Of the whole file, and of its header alone (cheap to check when it is mapped).
    """

    bytes: int
    sha256: str
    header_sha256: str


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> ArrayFile:
    """Write arrays as a safetensors file, fsynced; the file must not exist.

    Arrays of wide items come first and the header is padded, so that every
    array is aligned to its items when the file is mapped.
    """
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    order = sorted(whole, key=lambda name: (-whole[name].dtype.itemsize, name))
    header: dict[str, Any] = {}
    end = 0
    for name in order:
        array = whole[name]
        code = _CODES.get(array.dtype.newbyteorder("<"))
        if code is None:
            raise InputError("arrays of this type cannot be kept", field=name, value=array.dtype)
        shape = list(arrays[name].shape)
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGN)
    head = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(head)
    with path.open("xb") as stream:
        stream.write(head)
        for name in order:
            flat = whole[name].reshape(-1)
            raw = flat.astype(flat.dtype.newbyteorder("<"), copy=False).view(np.uint8).data
            for start in range(0, len(raw), _CHUNK):
                chunk = raw[start : start + _CHUNK]
                digest.update(chunk)
                stream.write(chunk)
        stream.flush()
        os.fsync(stream.fileno())
    return ArrayFile(len(head) + end, digest.hexdigest(), hashlib.sha256(head).hexdigest())


def read_arrays(
    path: Path,
    known: ArrayFile | None = None,
    *,
    mmap: bool = True,
    copy_on_write: bool = False,
) -> Arrays:
    """Return the arrays of a safetensors file, mapped or read.

    A mapped array refuses writing; with ``copy_on_write`` it takes it, for itself
    alone: compiled code tells the two apart and would be compiled twice.

    Raises
    ------
    IntegrityError
        The file is truncated, its header is not what ``known`` says, or it is
        no such file.
    """
    size = path.stat().st_size
    if known is not None and size != known.bytes:
        raise IntegrityError(f"{path} has {size} bytes instead of {known.bytes}")
    if size < 8:
        raise IntegrityError(f"{path} is cut short: {size} bytes")
    mode: Literal["c", "r"] = "c" if copy_on_write else "r"
    raw = np.memmap(path, np.uint8, mode) if mmap else np.fromfile(path, np.uint8)
    plain = raw.view(np.ndarray)
    length = int.from_bytes(plain[:8].tobytes(), "little")
    if length > size - 8:
        raise IntegrityError(f"{path} is cut short: a header of {length} bytes in {size}")
    head = plain[: 8 + length].tobytes()
    if known is not None and hashlib.sha256(head).hexdigest() != known.header_sha256:
        raise IntegrityError(f"{path} was altered: its header has another checksum")
    try:
        header = json.loads(head[8:])
        arrays = {
            name: _array(plain[8 + length :], entry)
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise IntegrityError(f"{path} is no safetensors file: {error}") from None
    return arrays


def _array(data: npt.NDArray[np.uint8], entry: Mapping[str, Any]) -> npt.NDArray[Any]:
    first, stop = entry["data_offsets"]
    dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"])
    if not 0 <= first <= stop <= len(data) or math.prod(shape) * dtype.itemsize != stop - first:
        raise ValueError(f"bytes {first} to {stop} for {shape}")
    array: npt.NDArray[Any] = data[first:stop].view(dtype).reshape(shape)
    return array
