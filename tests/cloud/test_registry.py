"""The registry: git holds the truth, publishing repeats safely, tags are what git verifies."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from dulwich.objects import Tag
from dulwich.refs import Ref
from dulwich.repo import Repo

from shoal.cloud import store as tables
from shoal.cloud.blobs import BlobStore
from shoal.cloud.images import ImageRepository
from shoal.cloud.registry import Registry
from shoal.cloud.store import Store
from shoal.cloud.tagsign import sign_tag, verify_tag
from shoal.cloud.taskgit import POINTER_ABOVE
from shoal.core.errors import ConflictError, InputError, NotFoundError
from shoal.wire.package import TaskPackage, build_package
from shoal.wire.signing import generate_key

MODEL = bytes(range(256)) * 1024  # above the pointer's size


class Cloud:
    """The parts a registry stands on, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs = BlobStore(folder / "blobs")
        self.images = ImageRepository(folder / "images", folder / "offline")
        self.images.init()
        self.store = Store(f"sqlite:///{folder}/cloud.db")
        self.registry = self.open()

    def open(self) -> Registry:
        return Registry(self.folder / "registry", self.blobs, self.images, self.store)

    def rows(self, table: sa.Table) -> list[sa.Row]:  # type: ignore[type-arg]
        with self.store.read() as connection:
            return list(connection.execute(sa.select(table)))


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(tmp_path)


def task_folder(folder: Path, name: str = "demo", number: int = 1) -> Path:
    root = folder / "source" / name
    for path, content in {
        "task.toml": f'task = "{name}"\n[[resources]]\nname = "big"\npath = "models/big.onnx"\n'
        'kind = "model"\nseparate = true\n[requires]\ncapabilities = ["gps"]\n'.encode(),
        "main.py": f"def run(ctx, batch):\n    return {number}\n".encode(),
        "models/big.onnx": MODEL,
        "models/inside.onnx": MODEL[: POINTER_ABOVE + 1],
        "tests/events.jsonl": b"{}\n",
    }.items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    return root


def test_publish_signs_stores_tags_and_indexes(cloud: Cloud) -> None:
    made = cloud.registry.publish(task_folder(cloud.folder), label="first", actor="ann")
    assert (made.task, made.version, made.label, made.tag) == ("demo", 1, "first", "demo/1")
    assert made.manifest.provenance.commit == made.commit
    with TaskPackage.open(cloud.blobs.path(made.sha256), sha256=made.sha256) as package:
        assert package.manifest == made.manifest
    assert [(ref.path, ref.size, ref.scope) for ref in made.resources] == [
        ("models/big.onnx", len(MODEL), "shared")
    ]
    assert cloud.blobs.read(made.resources[0].sha256) == MODEL
    target = cloud.images.target("demo", 1)
    assert target is not None
    assert (target.hashes["sha256"], target.length) == (made.sha256.hex(), made.size)
    assert target.custom["capabilities"] == ["gps"]  # type: ignore[index]
    assert made.desired().package.sha256 == made.sha256
    (row,) = cloud.rows(tables.task_version)
    assert (row.task, row.version, row.package_sha256, row.created_by) == (
        "demo",
        1,
        made.sha256,
        "ann",
    )
    assert {row.sha256 for row in cloud.rows(tables.blob)} == {
        made.sha256,
        made.resources[0].sha256,
    }


def test_publishing_the_same_source_twice_changes_nothing(cloud: Cloud) -> None:
    folder = task_folder(cloud.folder)
    one = cloud.registry.publish(folder, label="a")
    metadata = sorted(path.name for path in cloud.images.metadata_folder.iterdir())
    assert cloud.registry.publish(folder, label="b") == one
    assert cloud.open().publish(folder) == one  # another process
    (folder / "tests/events.jsonl").write_text("{}\n{}\n")
    assert cloud.registry.publish(folder) == one  # tests do not travel
    assert sorted(path.name for path in cloud.images.metadata_folder.iterdir()) == metadata
    assert len(cloud.rows(tables.task_version)) == 1
    task_folder(cloud.folder, number=2)
    assert cloud.registry.publish(folder).version == 2  # negative control
    task_folder(cloud.folder, number=1)
    assert cloud.registry.publish(folder) == one  # an old source is the old version


def test_versions_rise_by_task(cloud: Cloud) -> None:
    for number in (1, 2, 3):
        cloud.registry.publish(task_folder(cloud.folder, number=number))
        cloud.registry.publish(task_folder(cloud.folder, "other", number=number))
    assert cloud.registry.tasks() == ["demo", "other"]
    assert [item.version for item in cloud.registry.versions("demo")] == [1, 2, 3]
    assert cloud.registry.get("demo").version == 3
    assert cloud.registry.versions("none") == []
    with pytest.raises(NotFoundError, match="no task none"):
        cloud.registry.get("none", 1)
    with pytest.raises(NotFoundError, match="no version 9"):
        cloud.registry.get("demo", 9)


def test_git_alone_rebuilds_everything(cloud: Cloud, tmp_path: Path) -> None:
    for number in (1, 2):
        cloud.registry.publish(task_folder(cloud.folder, number=number), label=f"n{number}")
    before = [cloud.registry.get("demo", version) for version in (1, 2)]
    rows = [row._asdict() for row in cloud.rows(tables.task_version)]
    with cloud.store.begin() as connection:
        for table in (tables.task_version, tables.blob, tables.task, tables.scenario):
            connection.execute(sa.delete(table))
    again = cloud.open()
    assert [again.get("demo", version) for version in (1, 2)] == before
    rebuilt = [row._asdict() for row in cloud.rows(tables.task_version)]
    for one, two in zip(rows, rebuilt, strict=True):
        assert {**one, "id": 0} == {**two, "id": 0}
    # Even the package can be made again from the source in git, bit for bit.
    for version in before:
        source = again.export("demo", version.version, tmp_path / f"export-{version.version}")
        built = build_package(
            source, version.version, label=version.label, provenance=version.manifest.provenance
        )
        assert built.sha256 == version.sha256
    with pytest.raises(ConflictError, match="not empty"):
        again.export("demo", 1, tmp_path / "export-1")


def test_large_files_are_pointers_in_git(cloud: Cloud) -> None:
    made = cloud.registry.publish(task_folder(cloud.folder))
    size = sum(path.stat().st_size for path in (cloud.folder / "registry/default.git").rglob("*"))
    assert size < len(MODEL)
    listing = git(cloud, "ls-tree", "-r", "--name-only", made.commit).splitlines()
    assert listing == [
        "main.py",
        "models/big.onnx.pointer.json",
        "models/inside.onnx.pointer.json",
        "task.toml",
        "tests/events.jsonl",
    ]
    pointer = json.loads(git(cloud, "show", f"{made.commit}:models/big.onnx.pointer.json"))
    assert pointer == {"sha256": made.resources[0].sha256.hex(), "size": len(MODEL)}


def git(cloud: Cloud, *arguments: str, check: bool = True) -> str:
    if shutil.which("git") is None:
        pytest.skip("needs git")
    allowed = cloud.folder / "allowed"
    allowed.write_text(cloud.registry.allowed_signers())
    return subprocess.run(
        [
            "git",
            "-c",
            f"gpg.ssh.allowedSignersFile={allowed}",
            "-C",
            str(cloud.folder / "registry/default.git"),
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=check,
    ).stdout


def test_git_itself_accepts_the_repository_and_its_signatures(cloud: Cloud) -> None:
    for number in (1, 2):
        cloud.registry.publish(task_folder(cloud.folder, number=number))
    git(cloud, "fsck", "--strict")
    assert git(cloud, "tag", "--list").split() == ["demo/1", "demo/2"]
    assert git(cloud, "rev-list", "--count", "demo").strip() == "2"
    if shutil.which("ssh-keygen") is None:
        pytest.skip("needs ssh-keygen to verify a tag with git")
    git(cloud, "verify-tag", "demo/1")
    cloud.registry._key = generate_key()  # negative control: another signer is not allowed
    with pytest.raises(subprocess.CalledProcessError):
        git(cloud, "verify-tag", "demo/1")


def test_signatures_of_tags() -> None:
    key, other = generate_key(), generate_key()
    signature = sign_tag(b"payload", key)
    assert verify_tag(b"payload", signature, [other.public_key(), key.public_key()])
    assert not verify_tag(b"payload!", signature, [key.public_key()])
    assert not verify_tag(b"payload", signature, [other.public_key()])
    for damaged in (
        b"",
        signature[:-30],
        signature.replace(b"SSH", b"PGP"),
        b"\n".join([signature] * 2),
    ):
        assert not verify_tag(b"payload", damaged, [key.public_key()])


def test_a_tag_by_a_stranger_is_not_believed_and_counted(cloud: Cloud) -> None:
    cloud.registry.publish(task_folder(cloud.folder))
    repo = Repo(str(cloud.folder / "registry/default.git"))
    real = repo[repo.refs[Ref(b"refs/tags/demo/1")]]
    assert isinstance(real, Tag)
    for name, signer in ((b"demo/2", generate_key()), (b"demo/3", None)):
        forged = Tag()
        forged.name = name
        forged.object = real.object
        forged.tagger, forged.tag_time, forged.tag_timezone = real.tagger, 0, 0
        forged.message = real.message.replace(b'"version": 1', b'"version": ' + name[-1:], 1)
        if signer is not None:
            forged.signature = sign_tag(forged.as_raw_string(), signer)
        repo.object_store.add_object(forged)
        repo.refs[Ref(b"refs/tags/" + name)] = forged.id
    repo.refs[Ref(b"refs/tags/demo/4")] = real.id  # a real tag under another name
    repo.refs[Ref(b"refs/tags/light")] = real.object[1]  # not annotated
    repo.close()
    again = cloud.open()
    assert [item.version for item in again.versions("demo")] == [1]
    assert sorted(again.refused) == [
        f"default:{n}" for n in ("demo/2", "demo/3", "demo/4", "light")
    ]
    assert cloud.images.target("demo", 2) is None


def test_floors_withdraw_versions(cloud: Cloud) -> None:
    folder = task_folder(cloud.folder)
    cloud.registry.publish(folder)
    cloud.registry.publish(task_folder(cloud.folder, number=2))
    cloud.registry.set_floor("demo", 2)
    assert [item.withdrawn for item in cloud.registry.versions("demo")] == [True, False]
    assert {row.floor for row in cloud.rows(tables.task_version)} == {2}
    assert [item.floor for item in cloud.open().versions("demo")] == [2, 2]
    task_folder(cloud.folder, number=1)
    with pytest.raises(ConflictError, match="withdrawn as version 1"):
        cloud.registry.publish(folder)
    with pytest.raises(ConflictError, match="only rises"):
        cloud.registry.set_floor("demo", 1)
    with pytest.raises(InputError, match="at most 3"):
        cloud.registry.set_floor("demo", 4)
    with pytest.raises(NotFoundError):
        cloud.registry.set_floor("none", 1)
    task_folder(cloud.folder, number=3)
    assert cloud.registry.publish(folder).floor == 2


def test_scenarios_keep_to_their_names(cloud: Cloud) -> None:
    with pytest.raises(InputError, match=r"named fleet\."):
        cloud.registry.publish(task_folder(cloud.folder, "demo"), scenario="fleet")
    made = cloud.registry.publish(task_folder(cloud.folder, "fleet.plan"), scenario="fleet")
    assert made.scenario == "fleet"
    assert (cloud.folder / "registry/fleet.git").is_dir()
    with pytest.raises(ConflictError, match="belongs to scenario fleet"):
        cloud.registry.publish(task_folder(cloud.folder, "fleet.plan"))
    with pytest.raises(InputError, match="belong to scenario fleet"):
        cloud.registry.publish(task_folder(cloud.folder, "fleet.other"))
    assert cloud.open().get("fleet.plan").scenario == "fleet"


@pytest.mark.parametrize("name", ["a..b", "a.lock", "a."])
def test_names_git_cannot_hold(cloud: Cloud, name: str) -> None:
    with pytest.raises(InputError, match="branch name"):
        cloud.registry.publish(task_folder(cloud.folder, name))


def test_a_folder_that_does_not_build_publishes_nothing(cloud: Cloud) -> None:
    folder = task_folder(cloud.folder)
    (folder / "main.py").write_text("def run(:\n")
    with pytest.raises(InputError, match=r"main\.py, row 1"):
        cloud.registry.publish(folder)
    (folder / "main.py").write_text("def run(ctx, batch): pass\n")
    (folder / "data").mkdir()
    (folder / "data/x.pointer.json").write_text("{}")
    with pytest.raises(InputError, match="registry's own"):
        cloud.registry.publish(folder)
    assert cloud.registry.tasks() == []
    assert cloud.images.target("demo", 1) is None


@pytest.mark.parametrize("step", ["add_target", "write_rows"])
def test_a_crash_after_the_tag_is_mended_by_the_next_start(
    cloud: Cloud, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shoal.cloud import registry as module

    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("killed")

    target = cloud.images if step == "add_target" else module
    monkeypatch.setattr(target, step, crash)
    folder = task_folder(cloud.folder)
    with pytest.raises(RuntimeError):
        cloud.registry.publish(folder)
    monkeypatch.undo()
    again = cloud.open()
    assert again.get("demo").version == 1
    assert cloud.images.target("demo", 1) is not None
    assert len(cloud.rows(tables.task_version)) == 1
    assert again.publish(folder).version == 1


def test_a_crash_before_the_tag_leaves_no_version(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shoal.cloud.taskgit import TaskGit

    def crash(*_: object) -> str:
        raise RuntimeError("killed")

    monkeypatch.setattr(TaskGit, "tag", crash)
    folder = task_folder(cloud.folder)
    with pytest.raises(RuntimeError):
        cloud.registry.publish(folder)
    monkeypatch.undo()
    again = cloud.open()
    assert again.tasks() == []
    assert cloud.images.target("demo", 1) is None
    assert again.publish(folder).version == 1


@pytest.mark.parametrize(
    "points",
    [(0, 8, 20, 32, 44, 200), pytest.param((*range(0, 50, 2), 200), marks=pytest.mark.slow)],
)
def test_kill_at_many_moments_of_publishing(tmp_path: Path, points: tuple[int, ...]) -> None:
    folder = task_folder(tmp_path)
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from shoal.cloud.blobs import BlobStore\n"
        "from shoal.cloud.images import ImageRepository\n"
        "from shoal.cloud.registry import Registry\n"
        "base, source, left = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])\n"
        "images = ImageRepository(base / 'images', base / 'offline')\n"
        "images.init()\n"
        "registry = Registry(base / 'registry', BlobStore(base / 'blobs'), images)\n"
        "def hook(event, arguments):\n"
        "    global left\n"
        "    if event in ('os.rename', 'os.remove', 'os.mkdir'):\n"
        "        if left == 0: os.kill(os.getpid(), 9)\n"
        "        left -= 1\n"
        "sys.addaudithook(hook)\n"
        "registry.publish(source)\n"
    )
    killed = 0
    for point in points:
        base = tmp_path / f"kill-{point}"
        base.mkdir()
        code = subprocess.run(
            [sys.executable, "-c", script, str(base), str(folder), str(point)], check=False
        ).returncode
        killed += code == -9
        assert code in (-9, 0)
        assert code == -9 or point > 30
        images = ImageRepository(base / "images", base / "offline")
        blobs = BlobStore(base / "blobs")
        registry = Registry(base / "registry", blobs, images)
        assert registry.refused == {}
        assert blobs.damaged() == []
        made = registry.publish(folder)
        assert made.version == 1
        target = images.target("demo", 1)
        assert target is not None
        assert target.hashes["sha256"] == made.sha256.hex()
        assert TaskPackage.open(blobs.read(made.sha256), sha256=made.sha256)
    assert killed >= 4


def test_two_publishers_at_once_get_different_versions(cloud: Cloud) -> None:
    folders = []
    for number in range(6):
        source = task_folder(cloud.folder, number=number)
        folders.append(shutil.copytree(source, cloud.folder / f"copy-{number}"))
    registries = [cloud.registry, cloud.open()]
    failures: list[BaseException] = []

    def publish(number: int) -> None:
        try:
            registries[number % 2].publish(folders[number])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    found = cloud.open().versions("demo")
    assert [item.version for item in found] == [1, 2, 3, 4, 5, 6]
    assert len({item.sha256 for item in found}) == 6


def test_without_database_or_images_it_still_keeps_versions(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry", BlobStore(tmp_path / "blobs"), None)
    registry.publish(task_folder(tmp_path))
    assert registry.get("demo").floor == 0
    with pytest.raises(NotFoundError, match="floors"):
        registry.set_floor("demo", 1)
    registry.close()
    assert Registry(tmp_path / "registry", BlobStore(tmp_path / "blobs"), None).tasks() == ["demo"]
