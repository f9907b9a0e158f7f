"""A cover index on disk: ``index-<hash>.safetensors`` and ``manifest.json``.

The arrays' file carries its hash in its name, so a new one never replaces the one
that the present manifest speaks of; the manifest is renamed into place last.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from shoal.core.errors import IntegrityError, NotFoundError
from shoal.core.files import fsync_folder, sha256_file, write_text
from shoal.data.arrayfile import ArrayFile, Arrays, read_arrays, write_arrays

__all__ = ["SCHEMA", "graph_hash", "join_names", "read_index", "split_names", "write_index"]

#: Version of the format.
SCHEMA = 1
_FORMAT = "shoal cover index"
_MANIFEST = "manifest.json"


def graph_hash(arrays: Mapping[str, Any], *, directed: bool) -> str:
    """Return the SHA-256 of a graph's arcs: ``out_ptr`` and ``out_ids`` of the arrays."""
    digest = hashlib.sha256(b"directed" if directed else b"undirected")
    digest.update(np.ascontiguousarray(arrays["out_ptr"], dtype="<i8").tobytes())
    digest.update(np.ascontiguousarray(arrays["out_ids"], dtype="<i4").tobytes())
    return digest.hexdigest()


def write_index(folder: str | os.PathLike[str], arrays: Arrays, facts: Mapping[str, Any]) -> None:
    """Write arrays and JSON facts into a folder, which is made if it is missing."""
    home = Path(folder)
    home.mkdir(parents=True, exist_ok=True)
    part = home / f".index-{uuid.uuid4().hex}.part"
    try:
        known = write_arrays(part, arrays)
        name = f"index-{known.sha256[:16]}.safetensors"
        part.replace(home / name)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    fsync_folder(home)
    manifest = {
        "format": _FORMAT,
        "schema": SCHEMA,
        "arrays": {"file": name, **msgspec.to_builtins(known)},
        **facts,
    }
    write_text(home / _MANIFEST, json.dumps(manifest, indent=1) + "\n")
    for old in home.glob("index-*.safetensors"):
        if old.name != name:
            with suppress(OSError):
                old.unlink()


def read_index(folder: str | os.PathLike[str]) -> tuple[Arrays, dict[str, Any]]:
    """Return the arrays and the manifest of a folder.

    Raises
    ------
    NotFoundError
        There is no manifest.
    IntegrityError
        The manifest or the arrays are not what was written; the file is named.
    """
    path = Path(folder) / _MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist") from None
    except ValueError as error:
        raise IntegrityError(f"{path} is cut short or altered: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise IntegrityError(f"{path} is no manifest of a cover index")
    if manifest.get("schema") != SCHEMA:
        raise IntegrityError(
            f"{path} has schema {manifest.get('schema')!r}; this version reads {SCHEMA}"
        )
    try:
        entry = dict(manifest["arrays"])
        name = str(entry.pop("file"))
        known = msgspec.convert(entry, ArrayFile)
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{path} does not say which arrays it belongs to") from error
    if Path(name).name != name:  # a manifest must not lead out of its folder
        raise IntegrityError(f"{path} names a file elsewhere: {name!r}")
    file = Path(folder) / name
    if not file.exists():
        raise IntegrityError(f"{file} is missing")
    arrays = read_arrays(file, known, mmap=False)
    if sha256_file(file).hex() != known.sha256:
        raise IntegrityError(f"{file} was altered: its checksum differs")
    return arrays, manifest


def join_names(names: list[Any] | None) -> Arrays:
    """Return names as arrays: integers as they are, texts as UTF-8 with their ends."""
    if names is None:
        return {}
    if names and isinstance(names[0], str):
        coded = [name.encode() for name in names]
        ends = np.cumsum([len(code) for code in coded], dtype=np.int64)
        return {"name_bytes": np.frombuffer(b"".join(coded), np.uint8), "name_ends": ends}
    return {"name_ids": np.array(names, dtype=np.int64)}


def split_names(arrays: Arrays) -> list[Any] | None:
    """Return the names that :func:`join_names` wrote."""
    if "name_ids" in arrays:
        return list(arrays["name_ids"].tolist())
    if "name_ends" not in arrays:
        return None
    raw = arrays["name_bytes"].tobytes()
    ends = [0, *arrays["name_ends"].tolist()]
    return [raw[a:b].decode() for a, b in itertools.pairwise(ends)]
