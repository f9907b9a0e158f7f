"""A social embedding on disk: ``social-<hash>.safetensors`` and ``manifest.json``.

The file of arrays carries its hash in its name, so a new one never replaces
the one that the present manifest speaks of; the manifest is renamed into place
last, and what it no longer names is deleted after that.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.core.errors import IntegrityError, NotFoundError
from shoal.core.files import sha256_file, write_bytes, write_text

__all__ = ["SCHEMA", "read_arrays", "write_arrays"]

#: Version of the format.
SCHEMA = 1
_FORMAT = "shoal social embedding"
_MANIFEST = "manifest.json"


def write_arrays(
    folder: str | os.PathLike[str],
    arrays: Mapping[str, npt.NDArray[Any]],
    facts: Mapping[str, Any],
) -> None:
    """Write arrays and JSON facts into a folder, which is made if it is missing."""
    import safetensors.numpy  # noqa: PLC0415 - only where files are touched

    home = Path(folder)
    home.mkdir(parents=True, exist_ok=True)
    data = safetensors.numpy.save(
        {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    )
    digest = hashlib.sha256(data).hexdigest()
    name = f"social-{digest[:16]}.safetensors"
    write_bytes(home / name, data)
    manifest = {
        "format": _FORMAT,
        "schema": SCHEMA,
        "arrays": {"file": name, "bytes": len(data), "sha256": digest},
        **facts,
    }
    write_text(home / _MANIFEST, json.dumps(manifest, indent=1) + "\n")
    for old in home.glob("social-*.safetensors"):
        if old.name != name:
            with suppress(OSError):
                old.unlink()


def read_arrays(
    folder: str | os.PathLike[str],
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Return the arrays and the manifest of a folder.

    Raises
    ------
    NotFoundError
        There is no manifest.
    IntegrityError
        The manifest or the file of arrays is not what was written; it is named.
    """
    import safetensors.numpy  # noqa: PLC0415 - as above

    path = Path(folder) / _MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist") from None
    except ValueError as error:
        raise IntegrityError(f"{path} is cut short or altered: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise IntegrityError(f"{path} is no manifest of a social embedding")
    if manifest.get("schema") != SCHEMA:
        raise IntegrityError(
            f"{path} has schema {manifest.get('schema')!r}; this version reads {SCHEMA}"
        )
    try:
        entry = manifest["arrays"]
        name, size, digest = str(entry["file"]), int(entry["bytes"]), str(entry["sha256"])
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{path} does not say which arrays it belongs to") from error
    if Path(name).name != name:  # a manifest must not lead out of its folder
        raise IntegrityError(f"{path} names a file elsewhere: {name!r}")
    file = Path(folder) / name
    try:
        found = file.stat().st_size
    except OSError:
        raise IntegrityError(f"{file} is missing") from None
    if found != size:
        raise IntegrityError(f"{file} has {found} bytes, not {size}")
    if sha256_file(file).hex() != digest:
        raise IntegrityError(f"{file} was altered: its checksum differs")
    try:
        return dict(safetensors.numpy.load_file(file)), manifest
    except Exception as error:
        raise IntegrityError(f"{file} is no file of arrays: {error}") from error
