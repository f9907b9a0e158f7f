"""The packages on a device: downloaded by content, switched by one transaction.

Files arrive under ``content/`` by their hash and are unpacked under
``packages/``; which version of a task is in force is one row. So a switch, to
a new version or back to the last good one, is a database transaction, and a
``kill -9`` at any moment leaves either the old version or the new one whole
(Walle sheet A.8).
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from shoal.core.crashpoints import crashpoint
from shoal.core.errors import (
    InputError,
    IntegrityError,
    NotFoundError,
    ShoalError,
)
from shoal.core.files import sha256_file, write_bytes
from shoal.device.content import ContentStore
from shoal.device.store import DeviceStore
from shoal.wire.limits import DEFAULT_LIMITS, WireLimits
from shoal.wire.manifest import check_member_path, decode_manifest
from shoal.wire.notices import FileRef
from shoal.wire.package import MANIFEST_NAME, TaskPackage
from shoal.wire.results import InstallState
from shoal.wire.specs import TaskManifest

__all__ = ["InstalledTask", "PackageRow", "PackageStore"]

_HELD = (InstallState.TRIAL, InstallState.GOOD)


@dataclass(frozen=True)
class PackageRow:
    """What the device remembers of one version of a task."""

    task: str
    version: int
    sha256: bytes
    state: str
    epoch: int
    crashes: int
    good_runs: int
    code: int
    folder: str


@dataclass(frozen=True)
class InstalledTask:
    """A version in force, ready to run."""

    manifest: TaskManifest
    folder: Path
    digest: bytes
    state: str

    @property
    def key(self) -> tuple[str, int]:
        """Task and version."""
        return self.manifest.task, self.manifest.version


class PackageStore:
    """Content, unpacked packages and the rows about them.

    Parameters
    ----------
    folder : path-like
        The agent's folder.
    store : DeviceStore
        Its database.
    limits : WireLimits
        Bounds on what is accepted.
    """

    def __init__(
        self, folder: str | Path, store: DeviceStore, limits: WireLimits = DEFAULT_LIMITS
    ) -> None:
        self.content = ContentStore(Path(folder) / "content")
        self._unpacked = Path(folder) / "packages"
        self._store = store
        self._limits = limits
        self._unpacked.mkdir(parents=True, exist_ok=True)

    # -- rows ----------------------------------------------------------------------------------

    def rows(self) -> list[PackageRow]:
        """Return every version that the device knows of."""
        with self._store.read() as cursor:
            found = cursor.execute(
                "SELECT task, version, sha256, state, epoch, crashes, good_runs, code,"
                " coalesce(folder, '')"
                " FROM package ORDER BY task, version"
            ).fetchall()
        return [PackageRow(*row) for row in found]

    def row(self, task: str, version: int) -> PackageRow | None:
        """Return what is known of one version."""
        return next((r for r in self.rows() if (r.task, r.version) == (task, version)), None)

    def active(self) -> dict[str, int]:
        """Return the version in force of every task that has one."""
        with self._store.read() as cursor:
            found = cursor.execute(
                "SELECT substr(key, 8), value FROM meta WHERE key GLOB 'active.*'"
            ).fetchall()
        return {str(task): int(version) for task, version in found}

    def last_good(self, task: str, *, other_than: int, floor: int = 0) -> int | None:
        """Return the good version of a task that was in force last.

        Not ``other_than``, and none below ``floor``, which were withdrawn.
        """
        previous = self._store.meta_get(f"lastgood.{task}")
        good = [r.version for r in self.rows() if r.task == task and r.state == InstallState.GOOD]
        candidates = [version for version in good if version != other_than and version >= floor]
        if previous in candidates:
            return int(previous)
        return max(candidates, default=None)

    def write(
        self,
        cursor: sqlite3.Cursor,
        row: tuple[str, int],
        *,
        sha256: bytes,
        state: str,
        epoch: int,
        code: int = 0,
        folder: str = "",
        at_us: int = 0,
    ) -> None:
        """Write what is known of a version; its trial begins anew."""
        cursor.execute(
            "INSERT OR REPLACE INTO package (task, version, sha256, state, epoch, crashes,"
            " good_runs, installed_us, code, folder) VALUES (?, ?, ?, ?, ?, 0, 0, ?, ?, ?)",
            (*row, sha256, state, epoch, at_us, code, folder),
        )

    def set_state(
        self, cursor: sqlite3.Cursor, task: str, version: int, state: str, code: int = 0
    ) -> None:
        """Change the state of a version."""
        cursor.execute(
            "UPDATE package SET state=?, code=? WHERE task=? AND version=?",
            (state, code, task, version),
        )

    def count_runs(
        self, cursor: sqlite3.Cursor, task: str, version: int, good: int, failed: int
    ) -> tuple[int, int, str]:
        """Add to the runs of a version; returns its (good runs, failures, state)."""
        cursor.execute(
            "UPDATE package SET good_runs=good_runs+?, crashes=crashes+?"
            " WHERE task=? AND version=?",
            (good, failed, task, version),
        )
        found = cursor.execute(
            "SELECT good_runs, crashes, state FROM package WHERE task=? AND version=?",
            (task, version),
        ).fetchone()
        return (0, 0, InstallState.REMOVED) if found is None else tuple(found)

    def activate(self, cursor: sqlite3.Cursor, task: str, version: int | None) -> None:
        """Put a version in force, or none, inside the caller's transaction.

        A new version begins where its predecessor stands, with its state. While
        it is on trial the place and state of the good one are kept (and the log
        not trimmed past them), so that the good one, should it come back, goes on
        as if the other had never been. Once the new one is good, nothing of that
        is left, and whoever follows it carries on from it.
        """
        key = f"active.{task}"
        row = cursor.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
        old = None if row is None else int(row[0])
        if old is not None and version == old:
            return
        if version is None:
            cursor.execute("DELETE FROM meta WHERE key=?", (key,))
            cursor.execute("DELETE FROM consumer WHERE task IN (?, ?)", (task, _kept(task)))
            return
        cursor.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, version))
        kept = cursor.execute(
            "SELECT last_seq, state FROM consumer WHERE task=? AND version=?",
            (_kept(task), version),
        ).fetchone()
        if kept is not None:
            cursor.execute("DELETE FROM consumer WHERE task=?", (_kept(task),))
            self._write_place(cursor, task, version, *kept)
            return
        place = cursor.execute(
            "SELECT last_seq, state FROM consumer WHERE task=?", (task,)
        ).fetchone()
        if place is None:
            self._write_place(cursor, task, version, 0, None)
            return
        state = cursor.execute(
            "SELECT state FROM package WHERE task=? AND version=?", (task, old)
        ).fetchone()
        if old is not None and state is not None and state[0] == InstallState.GOOD:
            self._write_place(cursor, _kept(task), old, *place)
        self._write_place(cursor, task, version, *place)

    @staticmethod
    def _write_place(
        cursor: sqlite3.Cursor, task: str, version: int, last_seq: int, state: bytes | None
    ) -> None:
        cursor.execute(
            "INSERT OR REPLACE INTO consumer (task, version, last_seq, state) VALUES (?, ?, ?, ?)",
            (task, version, last_seq, state),
        )

    def forget_kept_place(self, cursor: sqlite3.Cursor, task: str) -> None:
        """Let go of the predecessor's place: the version in force has proved good."""
        cursor.execute("DELETE FROM consumer WHERE task=?", (_kept(task),))

    # -- files ---------------------------------------------------------------------------------

    def manifest(self, ref: FileRef) -> TaskManifest:
        """Check a package that has been received and return its manifest.

        Raises
        ------
        IntegrityError, LimitError, InputError
            The package is not acceptable.
        """
        with TaskPackage.open(
            self.content.path(ref.sha256), self._limits, sha256=ref.sha256
        ) as package:
            return package.manifest

    def unpack(self, ref: FileRef, own: Iterable[FileRef] = ()) -> Path:
        """Unpack a package whose separate files have been received; return the folder.

        Parameters
        ----------
        ref : FileRef
            The package.
        own : iterable of FileRef
            Files of this device alone; their paths begin with its id and a slash,
            and they are put beside the shared ones.

        Raises
        ------
        InputError
            A file of the device alone would replace a shared one, or climbs out.
        """
        with TaskPackage.open(
            self.content.path(ref.sha256), self._limits, sha256=ref.sha256
        ) as package:
            manifest = package.manifest
            target = self._unpacked / f"{manifest.task}-{manifest.version}-{ref.sha256.hex()[:16]}"
            if not target.exists():
                separate = {
                    resource.sha256: self.content.path(bytes.fromhex(resource.sha256))
                    for resource in manifest.resources
                    if resource.separate
                }
                package.unpack(target, separate)
                crashpoint("sync.unpacked")
        shared = {resource.path.casefold() for resource in manifest.resources}
        for file in own:
            path = check_member_path(file.path.partition("/")[2])
            if path.casefold() in shared | {MANIFEST_NAME}:
                raise InputError("would replace a shared file", field="path", value=path)
            place = target / path
            place.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(place, self.content.path(file.sha256).read_bytes(), mode=0o444)
        return target

    def load(self, row: PackageRow, *, thorough: bool = True) -> InstalledTask:
        """Return an installed version.

        Parameters
        ----------
        row : PackageRow
        thorough : bool
            Compare every file with its hash.

        Raises
        ------
        NotFoundError, IntegrityError, InputError
            A file is missing or was changed after the installation.
        """
        folder = self._unpacked / row.folder
        try:
            manifest = decode_manifest((folder / MANIFEST_NAME).read_bytes(), self._limits)
        except OSError as error:
            raise NotFoundError(f"{row.task} {row.version} is not on the disk any more") from error
        if (manifest.task, manifest.version) != (row.task, row.version):
            raise IntegrityError(f"{row.task} {row.version}: its manifest was changed")
        if thorough:
            path = self.content.path(row.sha256)
            with TaskPackage.open(path, self._limits, sha256=row.sha256) as package:
                if package.manifest != manifest:
                    raise IntegrityError(f"{row.task} {row.version}: its manifest was changed")
            for resource in manifest.resources:
                _check_file(folder / resource.path, bytes.fromhex(resource.sha256))
        return InstalledTask(manifest, folder, row.sha256, row.state)

    def collect_garbage(self, keep: Iterable[PackageRow]) -> int:
        """Remove the content and the folders of all other versions; return how many files.

        Packages stay beside their unpacked folders: they repair a damaged one
        without a download, and separate files are shared with the folder's.
        """
        hashes: set[str] = set()
        folders: set[str] = set()
        for row in keep:
            hashes.add(row.sha256.hex())
            folders.add(row.folder)
            with suppress(ShoalError):  # damaged: it is brought again, with its files
                manifest = self.load(row, thorough=False).manifest
                hashes.update(item.sha256 for item in manifest.resources if item.separate)
        removed = self.content.collect_garbage(hashes)
        for folder in self._unpacked.iterdir():
            if folder.name not in folders:
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
        return removed

    def discard(self, row: PackageRow) -> None:
        """Remove the files of a damaged version: what of its content is not whole, and its folder.

        What is whole stays, so that repairing it needs no more than was lost.
        """
        with suppress(ShoalError):
            for item in self.load(row, thorough=False).manifest.resources:
                if item.separate:
                    self.content.discard(bytes.fromhex(item.sha256))
        self.content.discard(row.sha256)
        if row.folder:
            shutil.rmtree(self._unpacked / row.folder, ignore_errors=True)

    def free_bytes(self) -> int:
        """Return the free space of the disk."""
        return shutil.disk_usage(self._unpacked).free

    @staticmethod
    def is_held(state: str) -> bool:
        """Whether a version in this state is installed."""
        return state in _HELD


def _kept(task: str) -> str:
    """Name of the consumer row that keeps the place of a task's last good version."""
    return f"~{task}"  # not a task name


def _check_file(path: Path, sha256: bytes) -> None:
    try:
        found = sha256_file(path)
    except OSError as error:
        raise NotFoundError(f"{path.name} is missing") from error
    if found != sha256:
        raise IntegrityError(f"{path.name} was changed")
