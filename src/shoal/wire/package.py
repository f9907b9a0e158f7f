"""Task packages: what the cloud builds, signs and ships, and a device checks and unpacks.

A package is a stored ZIP in canonical form (:mod:`shoal.wire.archive`) with
``manifest.json`` first, then code, data and models, so that a device can refuse
before it has downloaded a model. Its identity is the SHA-256 of the file; the
manifest names hash and size of every member besides. The same folder, version,
label and provenance give the same bytes (Walle sheet 6.4).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from shoal.core.errors import InputError, IntegrityError, LimitError, NotFoundError
from shoal.core.files import fsync_folder, sha256_file, write_bytes
from shoal.wire.archive import FileSource, Member, MemorySource, read_directory, read_member
from shoal.wire.building import MANIFEST_NAME, BuiltPackage, build_package, entry_path
from shoal.wire.limits import DEFAULT_LIMITS, WireLimits
from shoal.wire.manifest import decode_manifest
from shoal.wire.specs import ResourceSpec, TaskManifest

__all__ = ["MANIFEST_NAME", "BuiltPackage", "TaskPackage", "build_package"]

_CHUNK = 1 << 20


class TaskPackage:
    """A checked package. Make one with :meth:`open`; close it, or use it in ``with``.

    Attributes
    ----------
    manifest : TaskManifest
        What the task is.
    sha256 : bytes
        SHA-256 of the file, 32 bytes.
    size : int
        Size of the file in bytes.
    """

    def __init__(
        self,
        source: MemorySource | FileSource,
        members: dict[str, Member],
        manifest: TaskManifest,
        manifest_bytes: bytes,
        sha256: bytes,
    ) -> None:
        self._source = source
        self._manifest_bytes = manifest_bytes
        self._members = members
        self.manifest = manifest
        self.sha256 = sha256
        self.size = source.size

    @classmethod
    def open(
        cls,
        path_or_bytes: str | Path | bytes,
        limits: WireLimits = DEFAULT_LIMITS,
        *,
        sha256: bytes | None = None,
    ) -> TaskPackage:
        """Open a package and check all of it.

        Parameters
        ----------
        path_or_bytes : path-like or bytes
            The file, or its content.
        limits : WireLimits
            Sizes and counts that are accepted.
        sha256 : bytes, optional
            The hash that the file must have (from signed metadata).

        Raises
        ------
        IntegrityError
            Truncated, damaged, not canonical, or another hash than promised.
        LimitError
            Too large, or too many members.
        InputError
            A member that may not be there, or a manifest that is wrong.
        NotFoundError
            No such file.
        """
        source: MemorySource | FileSource
        if isinstance(path_or_bytes, bytes):
            source = MemorySource(path_or_bytes)
        else:
            try:
                source = FileSource(path_or_bytes)
            except FileNotFoundError:
                raise NotFoundError(f"no package at {path_or_bytes}") from None
        try:
            return cls._checked(source, limits, sha256)
        except BaseException:
            if isinstance(source, FileSource):
                source.close()
            raise

    @classmethod
    def _checked(
        cls, source: MemorySource | FileSource, limits: WireLimits, wanted: bytes | None
    ) -> TaskPackage:
        found = read_directory(source, limits)
        digest = hashlib.sha256()
        for offset in range(0, source.size, _CHUNK):
            digest.update(source.read_at(offset, _CHUNK))
        if wanted is not None and digest.digest() != wanted:
            raise IntegrityError(
                f"package has hash {digest.hexdigest()[:16]}..., not {wanted.hex()[:16]}..."
            )
        if not found or found[0].path != MANIFEST_NAME:
            raise InputError(f"the first member must be {MANIFEST_NAME}", field="package")
        if found[0].size > limits.metadata:
            raise LimitError("manifest too large", field=MANIFEST_NAME, value=found[0].size)
        manifest_bytes = read_member(source, found[0])
        manifest = decode_manifest(manifest_bytes, limits)
        if manifest.version < 1:
            raise InputError(
                "must be at least 1",
                field="version",
                value=manifest.version,
                source=MANIFEST_NAME,
            )
        members = {member.path: member for member in found[1:]}
        package = cls(source, members, manifest, manifest_bytes, digest.digest())
        inside = {item.path for item in manifest.resources if not item.separate}
        for path in sorted(inside ^ members.keys()):
            raise InputError(
                "is in the manifest but not in the package"
                if path in inside
                else "is in the package but not in the manifest",
                field=path,
            )
        for item in manifest.resources:
            if not item.separate:
                package._verified(item)
        for entry in manifest.entry.values():
            if entry_path(entry.partition(":")[0], members) is None:
                raise InputError("names no module of the package", field="entry", value=entry)
        return package

    def _verified(self, resource: ResourceSpec) -> bytes:
        member = self._members[resource.path]
        if member.size != resource.size:
            raise IntegrityError(f"{resource.path} has {member.size} bytes, not {resource.size}")
        content = read_member(self._source, member)
        if hashlib.sha256(content).hexdigest() != resource.sha256:
            raise IntegrityError(f"{resource.path} is not what the manifest says")
        return content

    def names(self) -> list[str]:
        """Return the paths of the members, the manifest not among them, in file order."""
        return list(self._members)

    def read(self, name: str) -> bytes:
        """Return the content of one member, checked again against the manifest.

        Raises
        ------
        NotFoundError
            No such member.
        IntegrityError
            The file changed under our hands.
        """
        for resource in self.manifest.resources:
            if resource.path == name and name in self._members:
                return self._verified(resource)
        raise NotFoundError(f"package has no member {name}")

    def unpack(self, folder: str | Path, separate: Mapping[str, str | Path] | None = None) -> Path:
        """Unpack into ``folder`` as a whole: no one ever sees a part of it.

        After an error ``folder`` is untouched. A crash in the moment of
        replacing an old folder may leave none, never half a one.

        Parameters
        ----------
        folder : path-like
            Replaced if it exists.
        separate : mapping of str to path-like, optional
            Files of separate resources by SHA-256 (hex); each is checked and
            linked (or copied across file systems) to its place.

        Returns
        -------
        Path
            The folder; its files are read-only.

        Raises
        ------
        NotFoundError
            A separate resource is not in ``separate``.
        IntegrityError
            Content differs from the manifest.
        """
        target = Path(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            write_bytes(staging / MANIFEST_NAME, self._manifest_bytes, mode=0o444)
            for resource in self.manifest.resources:
                place = staging / resource.path
                place.parent.mkdir(parents=True, exist_ok=True)
                if resource.separate:
                    _link(resource, place, separate or {})
                else:
                    write_bytes(place, self._verified(resource), mode=0o444)
            staging.chmod(0o755)
            _swap(staging, target)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        return target

    def close(self) -> None:
        """Close the file behind the package."""
        if isinstance(self._source, FileSource):
            self._source.close()

    def __enter__(self) -> TaskPackage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _link(resource: ResourceSpec, place: Path, separate: Mapping[str, str | Path]) -> None:
    if resource.sha256 not in separate:
        raise NotFoundError(f"separate file {resource.path} is not at hand")
    origin = Path(separate[resource.sha256])
    if origin.stat().st_size != resource.size or sha256_file(origin).hex() != resource.sha256:
        raise IntegrityError(f"{resource.path} is not what the manifest says")
    try:
        os.link(origin, place)
    except OSError:  # another file system, or one without links
        shutil.copyfile(origin, place)
        place.chmod(0o444)


def _swap(staging: Path, target: Path) -> None:
    """Give ``staging`` the name ``target``; an old folder goes only after it has made way."""
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
        target.replace(old / "folder")
        staging.replace(target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        staging.replace(target)
    fsync_folder(target.parent)
