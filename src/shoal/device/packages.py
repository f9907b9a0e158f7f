"""The packages on a device: downloaded by content, switched by one transaction.

Files arrive under ``content/`` by their hash and are unpacked under
``packages/``; which version of a task is in force is one row. So a switch, to
a new version or back to the last good one, is a database transaction, and a
``kill -9`` at any moment leaves either the old version or the new one whole
(Walle sheet A.8).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shoal.core.crashpoints import crashpoint
from shoal.core.errors import IntegrityError, NotFoundError
from shoal.core.files import fsync_folder, sha256_file
from shoal.device.store import DeviceStore
from shoal.device.trust import TrustError
from shoal.wire.codes import ErrorCode
from shoal.wire.limits import DEFAULT_LIMITS, WireLimits
from shoal.wire.notices import FileRef
from shoal.wire.package import TaskPackage
from shoal.wire.results import InstallState
from shoal.wire.specs import TaskManifest

__all__ = ["InstalledTask", "PackageRow", "PackageStore"]

_HELD = (InstallState.TRIAL, InstallState.GOOD)
_CHUNK = 1 << 20


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
        self._content = Path(folder) / "content"
        self._unpacked = Path(folder) / "packages"
        self._store = store
        self._limits = limits
        for place in (self._content, self._unpacked):
            place.mkdir(parents=True, exist_ok=True)

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

    def last_good(self, task: str, *, other_than: int) -> int | None:
        """Return the good version of a task that was in force last, not ``other_than``."""
        previous = self._store.meta_get(f"lastgood.{task}")
        good = [r.version for r in self.rows() if r.task == task and r.state == InstallState.GOOD]
        candidates = [version for version in good if version != other_than]
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

        Each version keeps its own place in the event log: a new one begins where
        its predecessor stands, one that comes back goes on from where it was.
        """
        key = f"active.{task}"
        old = cursor.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
        if old is not None and version == int(old[0]):
            return
        place = cursor.execute(
            "SELECT version, last_seq, state FROM consumer WHERE task=?", (task,)
        ).fetchone()
        if place is not None:
            cursor.execute(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"place.{task}.{place[0]}", place[1])
            )
            cursor.execute(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)",
                (f"state.{task}.{place[0]}", place[2] or b""),
            )
        if version is None:
            cursor.execute("DELETE FROM meta WHERE key=?", (key,))
            cursor.execute("DELETE FROM consumer WHERE task=?", (task,))
            return
        kept = cursor.execute(
            "SELECT p.value, s.value FROM meta p JOIN meta s ON s.key=? WHERE p.key=?",
            (f"state.{task}.{version}", f"place.{task}.{version}"),
        ).fetchone()
        last_seq, state = kept if kept is not None else (place[1:] if place else (0, None))
        cursor.execute(
            "INSERT OR REPLACE INTO consumer (task, version, last_seq, state) VALUES (?, ?, ?, ?)",
            (task, version, last_seq, state or None),
        )
        cursor.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, version))

    # -- files ---------------------------------------------------------------------------------

    def has(self, ref: FileRef) -> bool:
        """Whether a file is here, whole by its size."""
        path = self._content / ref.sha256.hex()
        return path.is_file() and path.stat().st_size == ref.size

    def path(self, ref: FileRef) -> Path:
        """Return where a file lies or will lie."""
        return self._content / ref.sha256.hex()

    def receive(self, ref: FileRef, download: Callable[[int], Iterator[bytes]]) -> Path:
        """Bring a file into the content store, going on where an earlier try stopped.

        Parameters
        ----------
        ref : FileRef
            What the signed metadata promises.
        download : callable
            ``download(offset)`` yields the bytes from ``offset`` on.

        Raises
        ------
        TrustError
            ``SIZE_EXCEEDED`` or ``HASH_MISMATCH``; nothing is kept.
        UnavailableError
            The download broke off; what came is kept for the next try.
        OSError
            The disk refuses (for example: full).
        """
        target = self.path(ref)
        if self.has(ref):
            return target
        part = target.with_suffix(".part")
        offset = part.stat().st_size if part.exists() else 0
        if offset > ref.size:
            part.unlink()
            offset = 0
        with part.open("ab") as stream:
            if offset < ref.size:
                for chunk in download(offset):
                    offset += len(chunk)
                    if offset > ref.size:
                        stream.close()
                        part.unlink(missing_ok=True)
                        raise TrustError(
                            f"{ref.path or target.name} is longer than the {ref.size} bytes"
                            " that were signed",
                            ErrorCode.SIZE_EXCEEDED,
                        )
                    stream.write(chunk)
                    crashpoint("sync.download")
            stream.flush()
            os.fsync(stream.fileno())
        if offset < ref.size or sha256_file(part) != ref.sha256:
            part.unlink(missing_ok=True)
            raise TrustError(
                f"{ref.path or target.name} is not the file that was signed",
                ErrorCode.HASH_MISMATCH,
            )
        crashpoint("sync.downloaded")
        part.replace(target)
        fsync_folder(self._content)
        crashpoint("sync.stored")
        return target

    def unpack(self, ref: FileRef) -> tuple[TaskManifest, Path]:
        """Check and unpack a package; unpacking it again is a no-op.

        Raises
        ------
        IntegrityError, LimitError, InputError
            The package is not acceptable.
        """
        with TaskPackage.open(self.path(ref), self._limits, sha256=ref.sha256) as package:
            manifest = package.manifest
            target = self._unpacked / f"{manifest.task}-{manifest.version}-{ref.sha256.hex()[:16]}"
            if not (target / ".whole").exists():
                shutil.rmtree(target, ignore_errors=True)
                package.unpack(target)
                crashpoint("sync.unpacked")
                (target / ".whole").touch()
                fsync_folder(target)
        return manifest, target

    def model_paths(self, manifest: TaskManifest, folder: Path) -> dict[str, Path]:
        """Return where the models of a task lie: in its folder, or by content."""
        return {
            resource.name: self._content / resource.sha256
            if resource.separate
            else folder / resource.path
            for resource in manifest.resources
            if resource.kind == "model"
        }

    def load(self, row: PackageRow) -> InstalledTask:
        """Return an installed version, its files checked against their hashes.

        Raises
        ------
        NotFoundError, IntegrityError
            A file is missing or was changed after the installation.
        """
        folder = Path(row.folder)
        path = self._content / row.sha256.hex()
        if not (folder / ".whole").exists() or not path.is_file():
            raise NotFoundError(f"{row.task} {row.version} is not whole on the disk")
        with TaskPackage.open(path, self._limits, sha256=row.sha256) as package:
            manifest = package.manifest
            for name in package.names():
                member = folder / name
                if not member.is_file() or member.read_bytes() != package.read(name):
                    raise IntegrityError(f"{row.task} {row.version}: {name} was changed")
        for resource in manifest.resources:
            if resource.separate:
                _check_file(self._content / resource.sha256, bytes.fromhex(resource.sha256))
        return InstalledTask(manifest, folder, row.sha256, row.state)

    def collect_garbage(self, keep: Iterable[bytes]) -> int:
        """Remove content and folders that nothing refers to; returns how many."""
        hashes = {digest.hex() for digest in keep}
        removed = 0
        for path in self._content.iterdir():
            if path.name.removesuffix(".part") not in hashes:
                path.unlink(missing_ok=True)
                removed += 1
        shorts = {digest[:16] for digest in hashes}
        for folder in self._unpacked.iterdir():
            if folder.name.rpartition("-")[2] not in shorts:
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
        return removed

    def free_bytes(self) -> int:
        """Return the free space of the disk."""
        return shutil.disk_usage(self._content).free

    @staticmethod
    def is_held(state: str) -> bool:
        """Whether a version in this state is installed."""
        return state in _HELD


def _check_file(path: Path, sha256: bytes) -> None:
    if not path.is_file():
        raise NotFoundError(f"{path.name} is missing")
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    if digest.digest() != sha256:
        raise IntegrityError(f"{path.name} was changed")
