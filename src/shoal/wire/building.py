"""Building a task package from a task folder (Walle sheet 6.4)."""

from __future__ import annotations

import builtins
import hashlib
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from shoal.core.errors import InputError, LimitError
from shoal.core.files import sha256_file
from shoal.wire.archive import MemorySource, read_directory, write_archive
from shoal.wire.limits import DEFAULT_LIMITS, WireLimits
from shoal.wire.lint import check_entry, lint_code
from shoal.wire.manifest import (
    check_manifest,
    check_member_path,
    encode_manifest,
    read_task_toml,
)
from shoal.wire.specs import ProvenanceSpec, ResourceSpec, TaskManifest

__all__ = ["MANIFEST_NAME", "BuiltPackage", "build_package", "entry_path", "source_files"]

#: Name of the first member of every package.
MANIFEST_NAME = "manifest.json"

_ORDER = {"code": 0, "data": 1, "model": 2}
_PICKLES = {".pkl", ".pickle", ".joblib", ".pyc", ".pyo", ".pt", ".pth"}


@dataclass(frozen=True)
class BuiltPackage:
    """A package in memory.

    Attributes
    ----------
    bytes : bytes
        The file.
    sha256 : bytes
        Its SHA-256, 32 bytes: the identity of the package.
    manifest : TaskManifest
        As it stands inside.
    separate : list of (ResourceSpec, Path)
        Files that travel beside it, and where they lie.
    content : bytes
        SHA-256 over everything but version, label and provenance: equal for two
        builds of the same source.
    warnings : list of str
        Advice to the author: what the linter saw, which files stay behind.
    """

    bytes: builtins.bytes
    sha256: builtins.bytes
    manifest: TaskManifest
    separate: list[tuple[ResourceSpec, Path]]
    content: builtins.bytes
    warnings: list[str] = field(default_factory=list)


def source_files(folder: Path) -> list[str]:
    """List the plain files of a task folder; links and devices are refused."""
    found: list[str] = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != "." and name != "__pycache__")
        for name in [*folders, *names]:
            path = Path(place) / name
            inside = path.relative_to(folder).as_posix()
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise InputError(
                    "links and special files do not travel", field="path", value=inside
                )
            if name in names and name[0] != ".":
                found.append(inside)
    return sorted(found)


def _chosen(files: list[str], declared: list[ResourceSpec]) -> tuple[list[ResourceSpec], list[str]]:
    """Return the resources of a package and the files that stay behind."""
    by_path = {resource.path: resource for resource in declared}
    for position, resource in enumerate(declared):
        if resource.path not in files:
            raise InputError(
                "no such file in the task folder",
                source="task.toml",
                field=f"resources[{position}].path",
                value=resource.path,
            )
    chosen = list(declared)
    left: list[str] = []
    for path in files:
        top = path.partition("/")[0]
        if path in by_path or path == "task.toml" or top == "tests":
            continue
        if path.endswith(".py"):
            chosen.append(ResourceSpec(name=path, path=path, kind="code"))
        elif top == "models" and "/" in path:
            chosen.append(ResourceSpec(name=path, path=path, kind="model"))
        elif top == "data" and "/" in path:
            chosen.append(ResourceSpec(name=path, path=path, kind="data"))
        else:
            left.append(path)
    return sorted(chosen, key=lambda item: (_ORDER[item.kind], item.path)), left


def _refuse_pickle(path: str, head: bytes) -> None:
    looks_pickled = len(head) > 2 and head[0] == 0x80 and head[1] in {4, 5} and head[2] == 0x95
    if Path(path).suffix.lower() in _PICKLES or looks_pickled:
        raise InputError(
            "pickles and bytecode can run code when they load, so they do not travel",
            field="path",
            value=path,
            hint="ship models as ONNX, safetensors or MNN files, data as JSON or raw arrays",
        )


def build_package(
    folder: str | Path,
    version: int,
    *,
    label: str = "",
    provenance: ProvenanceSpec | None = None,
    limits: WireLimits = DEFAULT_LIMITS,
) -> BuiltPackage:
    """Build the package of a task folder.

    Every ``.py`` file outside ``tests/`` travels as code; ``models/`` and
    ``data/`` travel whole; other files travel if ``task.toml`` declares them.

    Parameters
    ----------
    folder : path-like
        Holds ``task.toml`` and, by default, ``main.py``.
    version : int
        At least 1; the registry allocates it.
    label : str
        A name for people; the one of ``task.toml`` if empty.
    provenance : ProvenanceSpec, optional
        Commit, tag and builder to write into the manifest.

    Returns
    -------
    BuiltPackage

    Raises
    ------
    NotFoundError
        No ``task.toml``.
    InputError
        ``task.toml`` is wrong, a declared file is missing, the entry does not
        exist, code does not parse, or a file may not travel; names the place.
    LimitError
        The package, or a separate file, would be too large.
    """
    root = Path(folder)
    declared = read_task_toml(root)
    if version < 1:
        raise InputError("must be at least 1", field="version", value=version)
    resources, left = _chosen(source_files(root), declared.resources)
    warnings = [f"{path}: not code, not declared, stays behind" for path in left]
    members: list[tuple[str, builtins.bytes]] = []
    separate: list[tuple[ResourceSpec, Path]] = []
    finished: list[ResourceSpec] = []
    total = 0
    for resource in resources:
        path = root / resource.path
        check_member_path(resource.path)
        if resource.path.casefold() == MANIFEST_NAME:
            raise InputError("is written by building", field="path", value=resource.path)
        size = path.stat().st_size
        total += 0 if resource.separate else size
        if total > limits.package or size > limits.resource:
            raise LimitError(
                f"package exceeds {limits.package} bytes",
                field="path",
                value=resource.path,
                hint="declare large files with separate = true",
            )
        if resource.separate:
            with path.open("rb") as stream:
                _refuse_pickle(resource.path, stream.read(8))
            digest = sha256_file(path)
        else:
            content = path.read_bytes()
            size = len(content)
            _refuse_pickle(resource.path, content[:8])
            if resource.kind == "code":
                warnings += lint_code(resource.path, content)
            members.append((resource.path, content))
            digest = hashlib.sha256(content).digest()
        done = msgspec.structs.replace(resource, sha256=digest.hex(), size=size)
        finished.append(done)
        if resource.separate:
            separate.append((done, path))
    manifest = msgspec.structs.replace(
        declared,
        version=version,
        label=label or declared.label,
        resources=finished,
        provenance=provenance or ProvenanceSpec(),
    )
    check_manifest(manifest, source="task.toml", limits=limits)
    contents = dict(members)
    for entry in manifest.entry.values():
        module, _, function = entry.partition(":")
        path_of = entry_path(module, contents)
        if path_of is None:
            raise InputError(
                "no such module in the task folder", source="task.toml", field="entry", value=entry
            )
        check_entry(path_of, contents[path_of], function)
    data = write_archive([(MANIFEST_NAME, encode_manifest(manifest)), *members])
    read_directory(MemorySource(data), limits)  # what we build, we would also accept
    neutral = msgspec.structs.replace(
        manifest, version=0, label=declared.label, provenance=ProvenanceSpec()
    )
    return BuiltPackage(
        bytes=data,
        sha256=hashlib.sha256(data).digest(),
        manifest=manifest,
        separate=separate,
        content=hashlib.sha256(encode_manifest(neutral)).digest(),
        warnings=warnings,
    )


def entry_path(module: str, paths: Collection[str]) -> str | None:
    """Return which of ``paths`` holds a module, or ``None``."""
    base = module.replace(".", "/")
    for path in (f"{base}.py", f"{base}/__init__.py"):
        if path in paths:
            return path
    return None
