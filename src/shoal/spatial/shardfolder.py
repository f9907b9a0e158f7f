"""A sharded index on disk: one folder a shard, the names of the places, and a manifest.

Every save writes a folder of its own within the index's folder; the manifest
says which one counts and takes its name last, in one rename. A reader finds
either the old index or the new one.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors import numpy as tensors

from shoal.core.errors import InputError, IntegrityError, NotFoundError, UnavailableError
from shoal.core.files import FolderLock, sha256_file, write_bytes, write_text
from shoal.spatial.columns import AttributeSpec
from shoal.spatial.outline import Outline
from shoal.spatial.shards import Call
from shoal.spatial.shardstore import ShardStore
from shoal.spatial.state import IndexState

__all__ = ["KeptShards", "read_folder", "write_folder"]

_FORMAT, _VERSION = "shoal-sharded-index", 1
_MANIFEST, _NAMES = "manifest.json", "names.safetensors"


@dataclass(frozen=True, slots=True)
class KeptShards:
    """What a folder holds; the shards themselves are not read yet."""

    state: IndexState
    specs: tuple[AttributeSpec, ...]
    cuts: npt.NDArray[np.uint64]
    shards: list[Path]
    outlines: list[Outline]


def write_folder(folder: Path, store: ShardStore, state: IndexState) -> None:
    """Write a sharded index; the caller keeps writers away.

    Raises
    ------
    InputError
        The folder holds something else.
    UnavailableError
        A shard cannot be reached; the folder is as it was.
    """
    folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise InputError("not a folder", field="folder", value=str(folder))
    others = [item for item in folder.iterdir() if item.name != ".lock"] if folder.exists() else []
    if others and not (folder / _MANIFEST).exists() and not all(_generation(i) for i in others):
        raise InputError("the folder holds something else", field="folder", value=str(folder))
    with FolderLock(folder, "a save of a sharded index"):
        used = [number for item in folder.iterdir() if (number := _generation(item))]
        home = folder / f"g{max(used, default=0) + 1:06d}"
        home.mkdir()
        try:
            manifest = _write(home, store, state)
        except BaseException:
            shutil.rmtree(home, ignore_errors=True)
            raise
        write_text(folder / _MANIFEST, json.dumps(manifest, indent=1) + "\n")
        for number in used:
            shutil.rmtree(folder / f"g{number:06d}", ignore_errors=True)


def _generation(item: Path) -> int:
    name = item.name
    return int(name[1:]) if name[0] == "g" and name[1:].isdigit() and item.is_dir() else 0


def _write(home: Path, store: ShardStore, state: IndexState) -> dict[str, Any]:
    now = store.snapshot()
    shards = [home / f"shard-{i:04d}" for i in range(len(now.outlines))]
    calls = [Call(i, "save", (str(path),)) for i, path in enumerate(shards)]
    for result in now.transport.call(calls):
        if isinstance(result, UnavailableError):
            raise result
    config, arrays = state.state()
    raw = tensors.save({name: np.ascontiguousarray(values) for name, values in arrays.items()})
    write_bytes(home / _NAMES, raw)
    now.transport.saved(shards, now.outlines, now.epoch)
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "folder": home.name,
        "state": config,
        "attributes": [spec.model_dump(mode="json") for spec in store.specs],
        "cuts": [int(cut) for cut in store.cuts],
        "names_sha256": sha256_file(home / _NAMES).hex(),
        "shards": [outline.to_json() for outline in now.outlines],
    }


def read_folder(folder: Path) -> KeptShards:
    """Return what a folder holds.

    Raises
    ------
    NotFoundError
        There is no sharded index.
    IntegrityError
        A file is cut short or altered, or of a version that is not known.
    """
    folder = folder.resolve()
    path = folder / _MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"{folder} holds no sharded index") from None
    except ValueError as error:
        raise IntegrityError(f"{path}: not JSON: {error}") from error
    if manifest.get("format") != _FORMAT:
        raise NotFoundError(f"{folder} holds no sharded index")
    if manifest.get("version") != _VERSION:
        raise IntegrityError(f"{path}: version {manifest.get('version')} is not known")
    try:
        home = folder / manifest["folder"]
        outlines = [Outline.from_json(plain) for plain in manifest["shards"]]
        names = home / _NAMES
        if sha256_file(names).hex() != manifest["names_sha256"]:
            raise IntegrityError(f"{names}: altered or cut short")
        state = IndexState()
        state.restore(manifest["state"], tensors.load_file(names))
        return KeptShards(
            state=state,
            specs=tuple(AttributeSpec.model_validate(s) for s in manifest["attributes"]),
            cuts=np.array(manifest["cuts"], dtype=np.uint64),
            shards=[home / f"shard-{i:04d}" for i in range(len(outlines))],
            outlines=outlines,
        )
    except FileNotFoundError as error:
        raise IntegrityError(f"{error.filename} is missing") from error
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise IntegrityError(f"{path}: not what was written: {error}") from error
