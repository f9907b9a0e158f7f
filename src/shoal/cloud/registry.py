"""The registry: what versions of which tasks exist, where their bytes are, who signed them.

Publishing builds the package, stores its bytes by hash, commits the source and
tags it (git is the truth), has the image role sign it, and writes the index. Each
step can be repeated, and the tag is the point of no return: a crash before it
leaves bytes that nobody names, a crash after it is mended by the next start or
the next publish (Walle sheet A.2).
"""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec

from shoal.cloud.blobs import BlobStore
from shoal.cloud.images import DEFAULT_SCENARIO, ImageRepository
from shoal.cloud.store import Store
from shoal.cloud.tagsign import allowed_signer
from shoal.cloud.taskgit import TaskGit, VersionRecord
from shoal.cloud.taskversions import TaskVersion, write_rows
from shoal.core.errors import ConflictError, InputError, IntegrityError, NotFoundError
from shoal.wire.limits import DEFAULT_LIMITS, WireLimits
from shoal.wire.package import BuiltPackage, build_package
from shoal.wire.signing import PrivateKey, generate_key, key_id, load_key, save_key
from shoal.wire.specs import ProvenanceSpec, check_task_name

__all__ = ["Registry", "TaskVersion"]

_BUILDER = "shoal.cloud.registry"


class Registry:
    """Published task versions, in git repositories below ``folder``.

    Parameters
    ----------
    folder : path-like
        Holds ``<scenario>.git`` and ``keys/registry.pem``, the key that signs tags.
    blobs : BlobStore
        Holds packages, separate resources and large source files.
    images : ImageRepository or None
        Signs versions for devices; ``None`` signs nothing (building only).
    store : Store, optional
        Database whose tables ``scenario``, ``task``, ``task_version`` and ``blob``
        keep an index for others to join; git can rebuild it.
    limits : WireLimits
        Bounds on packages.
    clock : callable, optional
        Microseconds since 1970 (UTC).
    """

    def __init__(
        self,
        folder: str | Path,
        blobs: BlobStore,
        images: ImageRepository | None,
        store: Store | None = None,
        *,
        limits: WireLimits = DEFAULT_LIMITS,
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._blobs = blobs
        self._images = images
        self._store = store
        self._limits = limits
        self._clock = clock
        self._lock = threading.RLock()
        self._key = self._open_key()
        self._gits: dict[str, TaskGit] = {}
        self._versions: dict[str, dict[int, TaskVersion]] = {}
        #: Tags that are not believed, and why; counted in the cloud's metrics.
        self.refused: dict[str, str] = {}
        #: Advice from the last publish: linter, files left behind.
        self.warnings: list[str] = []
        self.reindex()

    def _open_key(self) -> PrivateKey:
        path = self._folder / "keys" / "registry.pem"
        if not path.exists():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            save_key(generate_key(), path)
        return load_key(path)

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        """One writer at a time, over threads and processes."""
        with self._lock, (self._folder / ".publish.lock").open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _git(self, scenario: str) -> TaskGit:
        if scenario not in self._gits:
            folder = self._folder / f"{scenario}.git"
            self._gits[scenario] = TaskGit(folder, self._blobs, self._key)
        return self._gits[scenario]

    def close(self) -> None:
        """Close the repositories."""
        with self._lock:
            for git in self._gits.values():
                git.close()
            self._gits.clear()

    # -- reading -------------------------------------------------------------------------------

    def tasks(self) -> list[str]:
        """Return the names of all published tasks, sorted."""
        with self._lock:
            return sorted(self._versions)

    def versions(self, task: str) -> list[TaskVersion]:
        """Return a task's versions, oldest first; empty for an unknown task."""
        with self._lock:
            known = self._versions.get(task, {})
            return [known[number] for number in sorted(known)]

    def get(self, task: str, version: int | None = None) -> TaskVersion:
        """Return one version, the newest by default; :class:`NotFoundError` if there is none."""
        with self._lock:
            known = self._versions.get(task, {})
            number = max(known, default=0) if version is None else version
            if number not in known:
                have = f"it has {', '.join(str(item) for item in sorted(known))}" if known else None
                raise NotFoundError(
                    f"no version {version} of {task}" if known else f"no task {task}", hint=have
                )
            return known[number]

    def allowed_signers(self) -> str:
        """Return the file content that lets ``git verify-tag`` check the registry's tags."""
        return allowed_signer("registry@shoal.invalid", self._key)

    def export(self, task: str, version: int, folder: str | Path) -> Path:
        """Write the source of a version, as it was published, into a new folder."""
        found = self.get(task, version)
        with self._lock:
            return self._git(found.scenario).export(found.commit, folder)

    # -- publishing ------------------------------------------------------------------------------

    def publish(
        self,
        task_folder: str | Path,
        *,
        scenario: str = DEFAULT_SCENARIO,
        label: str = "",
        actor: str = "",
    ) -> TaskVersion:
        """Publish a task folder as the task's next version.

        The same source as an existing version gives back that version and makes
        no new one, whatever the label.

        Parameters
        ----------
        task_folder : path-like
            Holds ``task.toml``.
        scenario : str
            Whose task it is. Tasks of a scenario other than ``default`` begin with
            its name and a dot; a new scenario needs the offline targets key.
        label : str
            A name for people.
        actor : str
            Who publishes.

        Returns
        -------
        TaskVersion

        Raises
        ------
        InputError, LimitError
            The folder is no task (see ``build_package``), or the name does not
            belong to the scenario.
        ConflictError
            The task belongs to another scenario, its source changed while it was
            read, or the same source was withdrawn (it lies below the floor).
        """
        check_task_name(scenario)
        with self._exclusively():
            self._load()  # another process may have published since
            draft = build_package(task_folder, 1, label=label, limits=self._limits)
            task = draft.manifest.task
            self._check_owner(task, scenario)
            self.warnings = draft.warnings
            existing = self._same_content(task, draft.content.hex())
            if existing is not None:
                self._complete(existing)
                return self.get(task, existing.version)
            if self._images is not None:
                self._images.add_scenario(scenario)
            version = max(self._versions.get(task, {}), default=0) + 1
            now = self._clock()
            git = self._git(scenario)
            git.clear_locks()
            commit = git.commit(task, task_folder, f"{task} {version}", now)
            built = build_package(
                task_folder,
                version,
                label=label,
                provenance=ProvenanceSpec(commit=commit, tag=f"{task}/{version}", builder=_BUILDER),
                limits=self._limits,
            )
            if built.content != draft.content:
                raise ConflictError(
                    f"the folder of {task} changed while it was published", hint="publish again"
                )
            record = self._store_bytes(built, actor, now)
            tag = git.tag(record, commit)
            made = TaskVersion.from_record(record, scenario, commit, tag)
            self._versions.setdefault(task, {})[version] = made
            self._complete(made)
            return self.get(task, version)

    def _check_owner(self, task: str, scenario: str) -> None:
        known = self._versions.get(task)
        if known:
            owner = next(iter(known.values())).scenario
            if owner != scenario:
                raise ConflictError(f"task {task} belongs to scenario {owner}")
        head, dot, _ = task.partition(".")
        scenarios = self._images.scenarios() if self._images is not None else []
        if scenario == DEFAULT_SCENARIO:
            if dot and head != DEFAULT_SCENARIO and head in scenarios:
                raise InputError(
                    f"names that begin with {head}. belong to scenario {head}",
                    field="task",
                    value=task,
                )
        elif head != scenario or not dot:
            raise InputError(
                f"a task of scenario {scenario} is named {scenario}.<something>",
                field="task",
                value=task,
            )

    def _same_content(self, task: str, content: str) -> TaskVersion | None:
        same = [item for item in self.versions(task) if item.content == content]
        if not same:
            return None
        newest = same[-1]
        if newest.withdrawn:
            raise ConflictError(
                f"this source was withdrawn as version {newest.version} of {task}",
                hint=f"versions below {newest.floor} may not run any more; change the source",
            )
        return newest

    def _store_bytes(self, built: BuiltPackage, actor: str, now: int) -> VersionRecord:
        package = self._blobs.put_bytes(built.bytes)
        files: list[tuple[str, int, str, str]] = []
        for resource, path in built.separate:
            ref = self._blobs.put_file(path, path=resource.path, scope=resource.scope)
            if ref.sha256.hex() != resource.sha256:
                raise ConflictError(f"{resource.path} changed while it was published")
            files.append((resource.sha256, resource.size, resource.path, resource.scope))
        manifest = built.manifest
        return VersionRecord(
            task=manifest.task,
            version=manifest.version,
            label=manifest.label,
            sha256=package.sha256.hex(),
            size=package.size,
            content=built.content.hex(),
            files=files,
            capabilities=manifest.requires.capabilities,
            manifest=msgspec.to_builtins(manifest),
            actor=actor,
            created_us=now,
        )

    def _complete(self, version: TaskVersion) -> None:
        """Do for a tagged version what follows from the tag; doing it again changes nothing."""
        if self._images is not None:
            self._images.add_target(
                version.task,
                version.version,
                version.sha256.hex(),
                version.size,
                capabilities=version.manifest.requires.capabilities,
            )
        self._note_floor(version.task)
        if self._store is not None:
            write_rows(
                self._store, [self._versions[version.task][version.version]], key_id(self._key)
            )

    def set_floor(self, task: str, version: int) -> None:
        """Withdraw every version of ``task`` below ``version``, for ever.

        Raises
        ------
        NotFoundError
            No such task, or the registry signs nothing.
        InputError
            Above the number that the next version will get.
        ConflictError
            The floor would fall.
        """
        with self._exclusively():
            self._load()
            newest = self.get(task).version
            if version > newest + 1:
                raise InputError(f"must be at most {newest + 1}", field="floor", value=version)
            if self._images is None:
                raise NotFoundError("this registry has no image repository to keep floors in")
            self._images.set_floor(task, version)
            self._note_floor(task)
            if self._store is not None:
                write_rows(self._store, self.versions(task), key_id(self._key))

    def _note_floor(self, task: str) -> None:
        if self._images is None:
            return
        floor = self._images.floor(task)
        known = self._versions.get(task, {})
        for number, item in known.items():
            known[number] = replace(item, floor=floor)

    # -- the index -------------------------------------------------------------------------------

    def reindex(self) -> int:
        """Read everything from git again, finish what a crash left open, rewrite the rows.

        Returns
        -------
        int
            How many versions there are. Tags that are not believed are counted in
            :attr:`refused`.
        """
        with self._exclusively():
            self._load()
            found = [item for task in self.tasks() for item in self.versions(task)]
            for item in found:
                if (
                    self._images is not None
                    and self._images.target(item.task, item.version) is None
                ):
                    self._images.add_scenario(item.scenario)
                    self._complete(item)
            for task in self.tasks():
                self._note_floor(task)
            if self._store is not None and found:
                write_rows(
                    self._store,
                    [self._versions[item.task][item.version] for item in found],
                    key_id(self._key),
                )
            return len(found)

    def _load(self) -> None:
        versions: dict[str, dict[int, TaskVersion]] = {}
        refused: dict[str, str] = {}
        for folder in sorted(self._folder.glob("*.git")):
            scenario = folder.name.removesuffix(".git")
            for tag, commit, record in self._git(scenario).records():
                if isinstance(record, IntegrityError):
                    refused[f"{scenario}:{tag}"] = record.message
                    continue
                known = self._versions.get(record.task, {}).get(record.version)
                if known is None or known.commit != commit or known.sha256.hex() != record.sha256:
                    known = TaskVersion.from_record(record, scenario, commit, tag)
                versions.setdefault(record.task, {})[record.version] = known
        self._versions = versions
        self.refused = refused
