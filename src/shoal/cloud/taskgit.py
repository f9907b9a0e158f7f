"""One scenario's bare git repository: a branch a task, a signed tag a version.

Git holds the truth about versions: the source as it was published, and in the
message of the annotated tag, as JSON, everything that identifies the package.
Files above 128 KiB lie in the blob store; the tree has a pointer
``<path>.pointer.json`` with their hash and size (Walle sheet A.2).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
from dulwich.objects import Blob, Commit, ObjectID, Tag, Tree
from dulwich.refs import Ref, check_ref_format
from dulwich.repo import Repo

from shoal.cloud.blobs import BlobStore
from shoal.cloud.tagsign import sign_tag, verify_tag
from shoal.core.errors import ConflictError, InputError, IntegrityError, NotFoundError
from shoal.core.files import fsync_folder, write_bytes
from shoal.wire.building import source_files
from shoal.wire.signing import PrivateKey, PublicKey
from shoal.wire.specs import check_member_path

__all__ = ["POINTER_ABOVE", "POINTER_SUFFIX", "TaskGit", "VersionRecord"]

#: Files larger than this many bytes lie in the blob store.
POINTER_ABOVE = 128 * 1024

POINTER_SUFFIX = ".pointer.json"

_AUTHOR = b"shoal registry <registry@shoal.invalid>"
_FILE_MODE, _TREE_MODE = 0o100644, 0o40000


class VersionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a tag says of a version: enough to rebuild every index.

    Hashes are lower-case hex; ``files`` are the separate resources' (sha256,
    size, path, scope).
    """

    schema: int = 1
    task: str
    version: int
    label: str
    sha256: str
    size: int
    content: str
    files: list[tuple[str, int, str, str]] = []
    capabilities: list[str] = []
    manifest: dict[str, Any] = {}
    actor: str = ""
    created_us: int = 0


def _make_bare(folder: Path) -> None:
    """Make a bare repository as a whole: a crash leaves none, or one to be made anew."""
    making = folder.with_suffix(".making")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    repo = Repo.init_bare(str(making))
    config = repo.get_config()
    config.set((b"core",), b"fsyncObjectFiles", True)
    config.write_to_path()
    repo.close()
    making.replace(folder)
    fsync_folder(folder.parent)


class TaskGit:
    """A bare repository at ``folder``; made if missing.

    Parameters
    ----------
    folder : path-like
        For example ``default.git``.
    blobs : BlobStore
        For large files.
    key : PrivateKey
        Signs tags.
    trusted : list of PublicKey
        Keys whose tags are believed, besides ``key``'s own.
    """

    def __init__(
        self,
        folder: str | Path,
        blobs: BlobStore,
        key: PrivateKey,
        trusted: list[PublicKey] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self._blobs = blobs
        self._key = key
        self._trusted = [key.public_key(), *(trusted or [])]
        if not self.folder.is_dir():
            _make_bare(self.folder)
        self._repo = Repo(str(self.folder))
        # Tag objects never change under their id, so each is verified once.
        self._read: dict[bytes, tuple[str, str, VersionRecord | IntegrityError]] = {}

    def close(self) -> None:
        """Close the repository's files."""
        self._repo.close()

    def clear_locks(self) -> None:
        """Remove the lock files of a writer that was killed.

        For the one writer there is: the registry calls it while it holds its own
        lock, which the kernel frees with the process.
        """
        for lock in self.folder.rglob("*.lock"):
            lock.unlink(missing_ok=True)

    # -- writing -----------------------------------------------------------------------------

    def commit(self, task: str, source: str | Path, message: str, now_us: int) -> str:
        """Commit a task folder to the task's branch and return the commit's id.

        The same tree as the branch has already makes no new commit.

        Raises
        ------
        InputError
            The task's name is no branch name, or a file may not travel.
        ConflictError
            Another writer moved the branch.
        """
        branch = Ref(f"refs/heads/{task}".encode())
        if not check_ref_format(branch):
            raise InputError(
                "cannot be a branch name in git",
                field="task",
                value=task,
                hint="no '..', no dot at the end, no '.lock' at the end",
            )
        tree = self._store_tree(Path(source))
        found = self._repo.refs.read_ref(branch)
        parent = ObjectID(found) if found else None
        if parent is not None and self._commit(parent).tree == tree:
            return parent.decode()
        commit = Commit()
        commit.tree = tree
        commit.parents = [parent] if parent else []
        commit.author = commit.committer = _AUTHOR
        commit.author_time = commit.commit_time = now_us // 1_000_000
        commit.author_timezone = commit.commit_timezone = 0
        commit.encoding = b"UTF-8"
        commit.message = message.encode()
        self._repo.object_store.add_object(commit)
        if not self._repo.refs.set_if_equals(branch, parent, commit.id):
            raise ConflictError(f"branch {task} moved while it was written", hint="publish again")
        return commit.id.decode()

    def _commit(self, identity: bytes) -> Commit:
        found = self._repo[ObjectID(identity)]
        if not isinstance(found, Commit):
            raise IntegrityError(f"git object {identity.decode()} is not a commit")
        return found

    def _store_tree(self, folder: Path) -> ObjectID:
        nested: dict[str, Any] = {}
        paths = source_files(folder)
        for path in paths:
            check_member_path(path)
            if path.endswith(POINTER_SUFFIX):
                raise InputError(
                    f"names ending in {POINTER_SUFFIX} are the registry's own",
                    field="path",
                    value=path,
                )
            name, content = path, b""
            if (folder / path).stat().st_size > POINTER_ABOVE:
                ref = self._blobs.put_file(folder / path)
                name = path + POINTER_SUFFIX
                content = json.dumps({"sha256": ref.sha256.hex(), "size": ref.size}).encode()
            else:
                content = (folder / path).read_bytes()
            blob = Blob.from_string(content)
            self._repo.object_store.add_object(blob)
            place = nested
            *parents, last = name.split("/")
            for part in parents:
                place = place.setdefault(part, {})
            place[last] = blob.id
        return self._store_nested(nested)

    def _store_nested(self, nested: dict[str, Any]) -> ObjectID:
        tree = Tree()
        for name, value in nested.items():
            if isinstance(value, dict):
                tree.add(name.encode(), _TREE_MODE, self._store_nested(value))
            else:
                tree.add(name.encode(), _FILE_MODE, value)
        self._repo.object_store.add_object(tree)
        return tree.id

    def tag(self, record: VersionRecord, commit: str) -> str:
        """Write the signed annotated tag of a version and return its name.

        Raises
        ------
        ConflictError
            The version exists already.
        """
        name = f"{record.task}/{record.version}"
        tag = Tag()
        tag.name = name.encode()
        tag.object = (Commit, commit.encode())
        tag.tagger = _AUTHOR
        tag.tag_time = record.created_us // 1_000_000
        tag.tag_timezone = 0
        body = msgspec.json.format(msgspec.json.encode(record, order="deterministic"), indent=1)
        title = f"{record.task} {record.version}"
        # One line: a newline in a label would end the title.
        label = " ".join(record.label.split())
        tag.message = f"{title}{f' ({label})' if label else ''}\n\n".encode() + body + b"\n"
        tag.signature = sign_tag(tag.as_raw_string(), self._key)
        self._repo.object_store.add_object(tag)
        if not self._repo.refs.add_if_new(Ref(b"refs/tags/" + tag.name), tag.id):
            raise ConflictError(f"{name} exists already; versions never change")
        return name

    # -- reading -----------------------------------------------------------------------------

    def records(self) -> Iterator[tuple[str, str, VersionRecord | IntegrityError]]:
        """Go through all tags: name, commit id, and the record or why it is not believed."""
        tags = self._repo.refs.as_dict(Ref(b"refs/tags"))
        for name, identity in sorted(tags.items()):
            shown = name.decode(errors="replace")
            found = self._read.get(identity)
            if found is None or found[0] != shown:
                found = self._read[identity] = self._read_tag(shown, identity)
            yield found

    def _read_tag(
        self, name: str, identity: bytes
    ) -> tuple[str, str, VersionRecord | IntegrityError]:
        tag = self._repo[ObjectID(identity)]
        if not isinstance(tag, Tag):
            return name, "", IntegrityError(f"tag {name} is not annotated")
        commit = tag.object[1].decode()
        payload = tag.raw_without_sig()
        if tag.signature is None or not verify_tag(payload, tag.signature, self._trusted):
            return name, commit, IntegrityError(f"tag {name} has no valid signature")
        body = (tag.message or b"").partition(b"\n\n")[2]
        try:
            record = msgspec.json.decode(body, type=VersionRecord)
        except msgspec.DecodeError as error:
            return name, commit, IntegrityError(f"tag {name} has no record: {error}")
        if name != f"{record.task}/{record.version}" or tag.name != name.encode():
            return name, commit, IntegrityError(f"tag {name} speaks of another version")
        return name, commit, record

    def export(self, commit: str, folder: str | Path) -> Path:
        """Write the source of a commit into ``folder`` (new or empty).

        Raises
        ------
        ConflictError
            The folder has something in it.
        NotFoundError
            No such commit, or a large file is not in the blob store.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        if any(target.iterdir()):
            raise ConflictError(f"folder {target} is not empty")
        try:
            root = self._commit(commit.encode())
        except KeyError:
            raise NotFoundError(f"no commit {commit}") from None
        self._export_tree(root.tree, target)
        return target

    def _export_tree(self, identity: ObjectID, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        for entry in cast("Tree", self._repo[identity]).items():
            name = check_member_path((entry.path or b"").decode())
            if entry.mode == _TREE_MODE:
                self._export_tree(entry.sha, folder / name)
                continue
            content = cast("Blob", self._repo[entry.sha]).data
            if name.endswith(POINTER_SUFFIX):
                name = name.removesuffix(POINTER_SUFFIX)
                content = self._blobs.read(bytes.fromhex(json.loads(content)["sha256"]))
            write_bytes(folder / name, content)
