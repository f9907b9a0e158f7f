"""A published version of a task, as the rest of the cloud sees it: an object and its rows."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from shoal.cloud import store as tables
from shoal.cloud.images import DEFAULT_SCENARIO
from shoal.cloud.store import Store
from shoal.cloud.taskgit import VersionRecord
from shoal.wire.notices import DesiredTask, FileRef
from shoal.wire.specs import TaskManifest

__all__ = ["TaskVersion", "write_rows"]


@dataclass(frozen=True)
class TaskVersion:
    """One published version.

    Attributes
    ----------
    task, version, label : str, int, str
        Which; the label is for people.
    sha256, size : bytes, int
        Hash (32 bytes) and size of the package.
    manifest : TaskManifest
        As it stands in the package.
    package : FileRef
        Where the package's bytes are.
    resources : list of FileRef
        Separate files.
    commit, tag : str
        Where its source is in git.
    scenario : str
        Whose repository and release key.
    content : str
        Hash (hex) of the source, equal for two builds of the same source.
    floor : int
        Lowest version of the task that devices may run.
    actor, created_us : str, int
        Who published it, and when (microseconds since 1970, UTC).
    """

    task: str
    version: int
    label: str
    sha256: bytes
    size: int
    manifest: TaskManifest
    package: FileRef
    resources: list[FileRef]
    commit: str
    tag: str
    scenario: str = DEFAULT_SCENARIO
    content: str = ""
    floor: int = 0
    actor: str = ""
    created_us: int = 0

    @property
    def withdrawn(self) -> bool:
        """Whether the version lies below its task's floor."""
        return self.version < self.floor

    def desired(self, *, priority: int = 100, force: bool = False) -> DesiredTask:
        """Return the version as an entry of a desired set."""
        return DesiredTask(
            task=self.task,
            version=self.version,
            package=self.package,
            resources=self.resources,
            priority=priority,
            exclusive=any(item.scope == "exclusive" for item in self.resources),
            force=force,
        )

    @classmethod
    def from_record(
        cls, record: VersionRecord, scenario: str, commit: str, tag: str
    ) -> TaskVersion:
        """Make the version that a tag's record describes."""
        package = FileRef(
            sha256=bytes.fromhex(record.sha256),
            size=record.size,
            path=f"{record.task}-{record.version}.shoal",
        )
        return cls(
            task=record.task,
            version=record.version,
            label=record.label,
            sha256=package.sha256,
            size=record.size,
            manifest=msgspec.convert(record.manifest, TaskManifest),
            package=package,
            resources=[
                FileRef(sha256=bytes.fromhex(sha256), size=size, path=path, scope=scope)
                for sha256, size, path, scope in record.files
            ],
            commit=commit,
            tag=tag,
            scenario=scenario,
            content=record.content,
            actor=record.actor,
            created_us=record.created_us,
        )


def write_rows(store: Store, versions: list[TaskVersion], signer: str) -> None:
    """Write the index rows of ``versions``; what is there already is brought up to date.

    Parameters
    ----------
    store : Store
        Its tables ``scenario``, ``task``, ``task_version`` and ``blob`` are written.
    versions : list of TaskVersion
        In one transaction.
    signer : str
        Id of the key that signed the tags.
    """
    with store.begin() as connection:
        for item in versions:
            created = item.created_us
            connection.execute(
                store.insert_ignore(tables.scenario),
                {
                    "name": item.scenario,
                    "repo": f"{item.scenario}.git",
                    "created_us": created,
                },
            )
            connection.execute(
                store.insert_ignore(tables.task),
                {
                    "scenario": item.scenario,
                    "name": item.task,
                    "branch": item.task,
                    "owner": item.actor,
                    "created_us": created,
                },
            )
            connection.execute(
                store.upsert(
                    tables.task_version,
                    ["task", "version"],
                    ["label", "tag", "commit", "package_sha256", "size", "manifest", "floor"],
                ),
                {
                    "task": item.task,
                    "version": item.version,
                    "label": item.label,
                    "tag": item.tag,
                    "commit": item.commit,
                    "package_sha256": item.sha256,
                    "size": item.size,
                    "manifest": msgspec.to_builtins(item.manifest),
                    "key_id": signer,
                    "floor": item.floor,
                    "created_by": item.actor,
                    "created_us": created,
                },
            )
            for ref in (item.package, *item.resources):
                connection.execute(
                    store.insert_ignore(tables.blob),
                    {
                        "sha256": ref.sha256,
                        "size": ref.size,
                        "scope": ref.scope,
                        "created_us": created,
                    },
                )
