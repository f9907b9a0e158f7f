"""The files of the image repository, and the state that they commit to.

``timestamp.json`` names a snapshot, the snapshot names every other role's
version; what neither names is the leaving of a crash and is not looked at.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata, Root, Signed, Snapshot, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer

from shoal.core.errors import UnavailableError
from shoal.core.files import write_bytes

__all__ = ["read_roles", "write_role"]

_COMPACT = JSONSerializer(compact=True)


def write_role(folder: Path, role: str, metadata: Metadata[Any]) -> bytes:
    """Write a role's signed metadata under its name and return the bytes."""
    data = metadata.to_bytes(_COMPACT)
    name = "timestamp.json" if role == "timestamp" else f"{metadata.signed.version}.{role}.json"
    write_bytes(folder / name, data)
    return data


def read_roles(folder: Path) -> dict[str, Metadata[Any]]:
    """Read the newest root and everything that ``timestamp.json`` leads to.

    Raises
    ------
    UnavailableError
        A file is missing or damaged.
    """
    timestamp = _read(folder / "timestamp.json", Timestamp)
    version = timestamp.signed.snapshot_meta.version
    snapshot = _read(folder / f"{version}.snapshot.json", Snapshot)
    roles: dict[str, Metadata[Any]] = {"timestamp": timestamp, "snapshot": snapshot}
    for name, meta in snapshot.signed.meta.items():
        roles[name.removesuffix(".json")] = _read(folder / f"{meta.version}.{name}", Targets)
    roots = [int(path.name.partition(".")[0]) for path in folder.glob("*.root.json")]
    roles["root"] = _read(folder / f"{max(roots, default=1)}.root.json", Root)
    return roles


def _read(path: Path, kind: type[Signed]) -> Metadata[Any]:
    hint = "restore the metadata folder from a copy"
    try:
        metadata: Metadata[Any] = Metadata.from_file(str(path))
    except Exception as error:  # the library lets its own, OSError and ValueError through
        raise UnavailableError(
            f"image metadata {path.name} cannot be read: {error}", hint=hint
        ) from error
    if not isinstance(metadata.signed, kind):
        raise UnavailableError(f"image metadata {path.name} is of another role", hint=hint)
    return metadata
