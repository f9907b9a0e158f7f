"""Files of an index: bundles of arrays that are mapped, and the manifest that names them.

A bundle is a folder with ``arrays.safetensors`` and a ``manifest.json`` that holds
its size, checksums and whatever belongs to the arrays. It is written under a
temporary name, fsynced and renamed, and never changed again. The manifest of the
index names its bundles with the checksums of their manifests, and is swapped by one
rename: a reader sees the old index or the new one. Bundles that no manifest names
are removed; whoever has mapped one keeps reading it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy.typing as npt

from shoal.core import crashpoints
from shoal.core.errors import InputError, IntegrityError, NotFoundError
from shoal.core.files import fsync_folder, sha256_file, write_bytes
from shoal.data.arrayfile import ArrayFile, read_arrays, write_arrays

__all__ = [
    "SCHEMA",
    "Bundle",
    "IndexManifest",
    "is_index",
    "read_bundle",
    "read_manifest",
    "remove_unnamed",
    "write_bundle",
    "write_manifest",
]

#: Version of the folder's form; a newer one is refused.
SCHEMA = 1
_FORMAT = "shoal.spatial.index"
_ARRAYS, _MANIFEST = "arrays.safetensors", "manifest.json"
_BUNDLE_NAME = re.compile(r"(segment|deaths|state)-\d{6,}(-\d+)?(\.part)?")

_T = TypeVar("_T")
_Arrays = dict[str, npt.NDArray[Any]]


class _BundleManifest(msgspec.Struct, frozen=True):
    schema: int
    arrays: ArrayFile
    meta: dict[str, Any]


class Bundle(msgspec.Struct, frozen=True):
    """A bundle by name, with the SHA-256 of its manifest."""

    name: str
    sha256: str


class IndexManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What an index consists of at one moment.

    Attributes
    ----------
    generation : int
        Grows by one with every change.
    specs : list of dict
        The attributes.
    config : dict
        The caller's.
    segments : list of Bundle
    deaths : Bundle, optional
        The rows of each segment that are dead, in the order of their deaths.
    state : Bundle, optional
        The caller's arrays.
    journal, notes : int
        First journal file whose rows, and whose notes, are not in the bundles;
        0 for all there are.
    """

    generation: int
    specs: list[dict[str, Any]]
    config: dict[str, Any]
    segments: list[Bundle]
    deaths: Bundle | None = None
    state: Bundle | None = None
    journal: int = 0
    notes: int = 0

    def names(self) -> set[str]:
        """Return the names of all bundles."""
        return {
            bundle.name
            for bundle in (*self.segments, self.deaths, self.state)
            if bundle is not None
        }


# --- bundles ----------------------------------------------------------------------------------


def write_bundle(
    folder: Path, name: str, arrays: Mapping[str, npt.NDArray[Any]], meta: Mapping[str, Any]
) -> Bundle:
    """Write a bundle into an index folder: afterwards it is there whole and durably."""
    target, part = folder / name, folder / f"{name}.part"
    for left_over in (target, part):
        if left_over.exists():  # of a process that died
            shutil.rmtree(left_over)
    part.mkdir()
    file = write_arrays(part / _ARRAYS, arrays)
    crashpoints.crashpoint("spatial.bundle.arrays")
    text = _json(_BundleManifest(SCHEMA, file, dict(meta)))
    write_bytes(part / _MANIFEST, text)
    crashpoints.crashpoint("spatial.bundle.before")
    part.rename(target)
    fsync_folder(folder)
    crashpoints.crashpoint("spatial.bundle.after")
    return Bundle(name, hashlib.sha256(text).hexdigest())


def read_bundle(
    folder: Path, bundle: Bundle, *, mmap: bool = True, verify: bool = False
) -> tuple[_Arrays, dict[str, Any]]:
    """Return the arrays and the meta of a bundle.

    Raises
    ------
    IntegrityError
        A file is missing, truncated or altered (with ``verify``, in any byte;
        without, in its size, its header or its manifest).
    """
    manifest, path = folder / bundle.name / _MANIFEST, folder / bundle.name / _ARRAYS
    try:
        text = manifest.read_bytes()
        if hashlib.sha256(text).hexdigest() != bundle.sha256:
            raise IntegrityError(f"{manifest} was altered: it has another checksum")
        known = _decode(text, _BundleManifest, manifest)
        arrays = read_arrays(path, known.arrays, mmap=mmap)
        if verify and sha256_file(path).hex() != known.arrays.sha256:
            raise IntegrityError(f"{path} was altered: it has another checksum")
    except FileNotFoundError as error:
        raise IntegrityError(f"{error.filename} is missing") from error
    return arrays, known.meta


# --- the manifest of the index ----------------------------------------------------------------


def is_index(folder: Path) -> bool:
    """Say whether a folder holds an index."""
    return (folder / _MANIFEST).is_file()


def read_manifest(folder: str | os.PathLike[str]) -> IndexManifest:
    """Return the manifest of an index folder.

    Raises
    ------
    NotFoundError
        There is no such folder.
    InputError
        The folder holds no index, or one of a newer version.
    IntegrityError
        The manifest is truncated or altered.
    """
    path = Path(folder) / _MANIFEST
    if not path.parent.exists():
        raise NotFoundError(f"there is no folder {path.parent}")
    if not path.is_file():
        raise InputError("holds no spatial index: there is no manifest.json", source=str(folder))
    text = path.read_bytes()
    try:
        outer = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise IntegrityError(f"{path} is truncated or altered: it is no JSON") from None
    if not isinstance(outer, dict) or outer.get("format") != _FORMAT:
        raise InputError("holds no spatial index: its manifest is another's", source=str(folder))
    if outer.get("schema") != SCHEMA:
        raise InputError(
            f"the index has form {outer.get('schema')}, and this version reads form {SCHEMA}",
            source=str(path),
            hint="upgrade shoal, or build the index anew",
        )
    index = outer.get("index")
    if hashlib.sha256(_json(index)).hexdigest() != outer.get("sha256"):
        raise IntegrityError(f"{path} was altered: it has another checksum")
    return _decode(_json(index), IndexManifest, path)


def write_manifest(folder: Path, manifest: IndexManifest) -> None:
    """Swap the manifest of an index folder: the new state is the index from here on."""
    index = msgspec.json.decode(msgspec.json.encode(manifest))
    checksum = hashlib.sha256(_json(index)).hexdigest()
    outer = {"format": _FORMAT, "schema": SCHEMA, "sha256": checksum, "index": index}
    crashpoints.crashpoint("spatial.manifest.before")
    write_bytes(folder / _MANIFEST, _json(outer))
    crashpoints.crashpoint("spatial.manifest.after")


def remove_unnamed(folder: Path, names: Iterable[str]) -> None:
    """Remove the bundles that are not among ``names``, and what a dead process left."""
    kept = set(names)
    for path in folder.iterdir():
        if _BUNDLE_NAME.fullmatch(path.name) and path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)
            crashpoints.crashpoint("spatial.bundle.removed")
        elif path.name.startswith(f".{_MANIFEST}.") or path.name.startswith(".journal-"):
            path.unlink(missing_ok=True)


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value, order="deterministic"), indent=1)


def _decode(text: bytes, kind: type[_T], path: Path) -> _T:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{path} is truncated or altered: {error}") from None
