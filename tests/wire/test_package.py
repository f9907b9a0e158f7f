"""Packages: reproducible, readable by any ZIP tool, and closed to what does not belong."""

from __future__ import annotations

import hashlib
import io
import os
import random
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.core.errors import InputError, IntegrityError, LimitError, NotFoundError, ShoalError
from shoal.wire.archive import MemorySource, read_directory, read_member, write_archive
from shoal.wire.limits import DEFAULT_LIMITS, WireLimits
from shoal.wire.manifest import TaskManifest, encode_manifest
from shoal.wire.package import TaskPackage, build_package
from shoal.wire.specs import ProvenanceSpec, ResourceSpec

MODEL = bytes(range(256)) * 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "task"
    for name, content in {
        "task.toml": b'task = "demo"\nlabel = "l"\n\n[[resources]]\nname = "net"\n'
        b'path = "models/net.onnx"\nkind = "model"\n\n[[resources]]\nname = "big"\n'
        b'path = "models/big.onnx"\nkind = "model"\nseparate = true\n',
        "main.py": b"import math\n\n\ndef run(ctx, batch):\n    return math.pi\n",
        "lib/inner.py": b"VALUE = 1\n",
        "models/net.onnx": MODEL,
        "models/big.onnx": MODEL * 2,
        "data/table.json": b"{}",
        "tests/events.jsonl": b"{}\n",
        "notes.md": b"# notes",
        ".hidden": b"secret",
        "__pycache__/main.pyc": b"\0",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def small_package() -> bytes:
    code = b"def run(ctx, batch):\n    return 1\n"
    resource = ResourceSpec(
        name="main.py",
        path="main.py",
        kind="code",
        sha256=hashlib.sha256(code).hexdigest(),
        size=len(code),
    )
    manifest = TaskManifest(task="demo", version=1, resources=[resource])
    return write_archive([("manifest.json", encode_manifest(manifest)), ("main.py", code)])


# -- building ---------------------------------------------------------------------------


def test_same_folder_same_bytes(folder: Path, tmp_path: Path) -> None:
    one = build_package(folder, 3, label="x", provenance=ProvenanceSpec(commit="c"))
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(folder, copy)
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    two = build_package(copy, 3, label="x", provenance=ProvenanceSpec(commit="c"))
    assert one.bytes == two.bytes
    assert one.sha256 == hashlib.sha256(one.bytes).digest() == two.sha256
    assert (copy / "main.py").write_bytes(b"def run(ctx, batch):\n    return 2\n")
    assert build_package(copy, 3).sha256 != one.sha256  # negative control


def test_same_bytes_in_another_process_with_another_hash_seed(folder: Path) -> None:
    script = (
        "import sys; from shoal.wire.package import build_package;"
        "print(build_package(sys.argv[1], 1).sha256.hex())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", script, str(folder)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert seen == {build_package(folder, 1).sha256.hex()}


def test_content_hash_leaves_out_version_label_and_provenance(folder: Path) -> None:
    one = build_package(folder, 1)
    two = build_package(folder, 2, label="other", provenance=ProvenanceSpec(commit="c"))
    assert one.content == two.content
    assert one.sha256 != two.sha256
    (folder / "data/table.json").write_text("[]")
    assert build_package(folder, 1).content != one.content


def test_what_travels_and_in_which_order(folder: Path) -> None:
    built = build_package(folder, 1)
    with zipfile.ZipFile(io.BytesIO(built.bytes)) as standard:
        assert standard.testzip() is None
        assert standard.namelist() == [
            "manifest.json",
            "lib/inner.py",
            "main.py",
            "data/table.json",
            "models/net.onnx",
        ]
        assert standard.read("models/net.onnx") == MODEL
    assert [(spec.name, path.name) for spec, path in built.separate] == [("big", "big.onnx")]
    assert built.warnings == ["notes.md: not code, not declared, stays behind"]


def test_the_linter_speaks_of_clocks_randomness_and_network(folder: Path) -> None:
    (folder / "main.py").write_text(
        "import random\nimport time, urllib.request\nfrom socket import socket\n"
        "def run(ctx, batch):\n    return time.time() + random.random()\n"
    )
    text = "\n".join(build_package(folder, 1).warnings)
    for word in ("row 1: random", "row 2: urllib", "row 3: socket", "row 5: time.time"):
        assert word in text


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("main.py", b"def run(:\n", "row 1"),
        ("main.py", b"x = 1\n", "defines no run"),
        ("main.py", b"\0", "not Python"),
        ("models/net.pkl", b"x", "pickles"),
        ("data/table.json", b"\x80\x04\x95\x01.", "pickles"),
        ("models/big.onnx", b"\x80\x05\x95\x01.", "pickles"),
        ("manifest.json.py", b"def f(:", "row 1"),
    ],
)
def test_folders_that_do_not_build(folder: Path, name: str, content: bytes, error: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=error):
        build_package(folder, 1)


def test_more_folders_that_do_not_build(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="version"):
        build_package(folder, 0)
    with pytest.raises(NotFoundError):
        build_package(tmp_path / "nothing", 1)
    with pytest.raises(LimitError, match="separate"):
        raise_hint(lambda: build_package(folder, 1, limits=WireLimits(package=1000)))
    (folder / "models/net.onnx").unlink()
    with pytest.raises(InputError, match=r"resources\[0\]"):
        build_package(folder, 1)


def raise_hint(call: object) -> None:
    try:
        call()  # type: ignore[operator]
    except ShoalError as error:
        raise type(error)(f"{error} {error.hint}") from error


@pytest.mark.parametrize("target", ["/etc/passwd", "main.py", "lib"])
def test_links_do_not_travel(folder: Path, target: str) -> None:
    (folder / "data/link").symlink_to(target)
    with pytest.raises(InputError, match="links"):
        build_package(folder, 1)


def test_special_files_do_not_travel(folder: Path) -> None:
    os.mkfifo(folder / "data/pipe")
    with pytest.raises(InputError, match="special"):
        build_package(folder, 1)


# -- opening ----------------------------------------------------------------------------


def test_open_read_and_unpack(folder: Path, tmp_path: Path) -> None:
    built = build_package(folder, 1)
    path = tmp_path / "demo-1.shoal"
    path.write_bytes(built.bytes)
    big = {built.separate[0][0].sha256: built.separate[0][1]}
    with TaskPackage.open(path, sha256=built.sha256) as package:
        assert package.manifest == built.manifest
        assert (package.sha256, package.size) == (built.sha256, len(built.bytes))
        assert package.read("models/net.onnx") == MODEL
        target = package.unpack(tmp_path / "out" / "demo", big)
        assert (target / "models/big.onnx").read_bytes() == MODEL * 2
        found = {item.relative_to(target).as_posix() for item in target.rglob("*.*")}
        assert found == {*package.names(), "manifest.json", "models/big.onnx"}
        assert all(not item.stat().st_mode & 0o022 for item in target.rglob("*.py"))
        (target / "stray").write_text("x")
        package.unpack(target, big)  # replaced as a whole
        assert not (target / "stray").exists()
        assert [item.name for item in (tmp_path / "out").iterdir()] == ["demo"]
        with pytest.raises(NotFoundError):
            package.read("nothing")


def test_unpack_leaves_nothing_behind_when_it_fails(folder: Path, tmp_path: Path) -> None:
    built = build_package(folder, 1)
    package = TaskPackage.open(built.bytes)
    wrong = tmp_path / "wrong"
    wrong.write_bytes(MODEL * 2 + b"x")
    same_size = tmp_path / "same-size"
    same_size.write_bytes(b"\0" * len(MODEL * 2))
    key = built.separate[0][0].sha256
    for separate, error in (
        ({}, NotFoundError),
        ({key: wrong}, IntegrityError),
        ({key: same_size}, IntegrityError),
    ):
        with pytest.raises(error):
            package.unpack(tmp_path / "out" / "demo", separate)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_promised_hash_is_checked(folder: Path) -> None:
    built = build_package(folder, 1)
    assert TaskPackage.open(built.bytes, sha256=built.sha256)
    with pytest.raises(IntegrityError, match="hash"):
        TaskPackage.open(built.bytes, sha256=bytes(32))


def test_a_file_that_changes_under_our_hands_is_noticed(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.shoal"
    path.write_bytes(build_package(folder, 1).bytes)
    with TaskPackage.open(path) as package:
        data = bytearray(path.read_bytes())
        data[data.index(MODEL)] ^= 1
        path.write_bytes(data)
        with pytest.raises(IntegrityError):
            package.read("models/net.onnx")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        TaskPackage.open(tmp_path / "none.shoal")


# -- fuzz -------------------------------------------------------------------------------


def test_the_untouched_package_opens() -> None:
    # Negative control of everything below.
    assert TaskPackage.open(small_package()).names() == ["main.py"]


def test_every_truncation_is_refused() -> None:
    data = small_package()
    for length in range(len(data)):
        with pytest.raises(IntegrityError):
            TaskPackage.open(data[:length])


def test_every_single_bit_flip_is_refused() -> None:
    # All of them: about 15,000.
    data = bytearray(small_package())
    for bit in range(len(data) * 8):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises((IntegrityError, InputError)):
            TaskPackage.open(bytes(data))
        data[bit // 8] ^= 1 << bit % 8
    assert bytes(data) == small_package()


def test_ten_thousand_random_damages_raise_only_our_errors() -> None:
    draw = random.Random(7)
    good = small_package()
    for _ in range(10_000):
        data = bytearray(good)
        for _ in range(draw.randint(1, 4)):
            kind, place = draw.randrange(4), draw.randrange(len(data))
            if kind == 0:
                data[place] = draw.randrange(256)
            elif kind == 1:
                del data[place : place + draw.randint(1, 40)]
            elif kind == 2:
                data[place:place] = draw.randbytes(draw.randint(1, 40))
            else:
                data[place : place + 4] = struct.pack("<I", draw.choice([0, 2**31, 2**32 - 1]))
            if not data:
                break
        if bytes(data) == good:
            continue
        with pytest.raises((IntegrityError, InputError)):
            TaskPackage.open(bytes(data))


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=400))
def test_noise_is_no_package(data: bytes) -> None:
    with pytest.raises((IntegrityError, InputError)):
        TaskPackage.open(data)


@given(st.lists(st.tuples(st.from_regex(r"[a-z]{1,8}\.bin", fullmatch=True), st.binary())))
def test_archive_round_trip(members: list[tuple[str, bytes]]) -> None:
    members = list(dict(members).items())
    source = MemorySource(write_archive(members))
    found = read_directory(source, DEFAULT_LIMITS)
    assert [(item.path, read_member(source, item)) for item in found] == members


# -- hostile archives -------------------------------------------------------------------


def foreign(members: list[tuple[zipfile.ZipInfo | str, bytes]], method: int = 0) -> bytes:
    """Write members with the standard library, which lets everything through."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


def test_a_zip_bomb_is_refused_unopened() -> None:
    bomb = foreign(
        [("manifest.json", b"{}"), ("main.py", b"\0" * 10_000_000)], zipfile.ZIP_DEFLATED
    )
    assert len(bomb) < 20_000
    with pytest.raises(InputError, match="compressed"):
        TaskPackage.open(bomb)


def test_a_stored_member_of_a_foreign_writer_is_not_canonical() -> None:
    with pytest.raises(IntegrityError, match="canonical"):
        TaskPackage.open(foreign([("manifest.json", b"{}")]))


@pytest.mark.parametrize(
    "path", ["../evil", "/etc/cron.d/x", "a/../../b", "C:\\x", "a//b", "x\\y", "a/", "a\0b"]
)
def test_climbing_paths_are_refused(path: str) -> None:
    with pytest.raises(InputError, match=r"row 2.*plain relative path"):
        TaskPackage.open(write_archive([("manifest.json", b"{}"), (path, b"x")]))


@pytest.mark.parametrize(
    ("first", "second"), [("a.py", "a.py"), ("A.py", "a.py"), ("a", "a/b"), ("a/b", "a")]
)
def test_names_that_meet_on_disk_are_refused(first: str, second: str) -> None:
    data = write_archive([("manifest.json", b"{}"), (first, b"1"), (second, b"2")])
    with pytest.raises(InputError, match="row 3"):
        TaskPackage.open(data)


def test_links_in_an_archive_are_refused() -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    link.create_system = 3
    with pytest.raises(InputError, match="plain file"):
        TaskPackage.open(foreign([(link, b"/etc/passwd")]))


def test_two_stories_of_one_member_are_refused() -> None:
    # The local header says another size than the central one: tools disagree on such files.
    data = bytearray(small_package())
    data[18] ^= 1
    with pytest.raises(IntegrityError, match="two different headers"):
        TaskPackage.open(bytes(data))


@pytest.mark.parametrize("where", ["front", "end"])
def test_bytes_around_the_archive_are_refused(where: str) -> None:
    data = small_package()
    extra = b"#!/bin/sh\n"
    with pytest.raises(IntegrityError):
        TaskPackage.open(extra + data if where == "front" else data + extra)


def test_overlapping_members_are_refused() -> None:
    one = write_archive([("manifest.json", b"{}"), ("a", b"x" * 50)])
    two = bytearray(one)
    end = two.rindex(b"PK\1\2")
    two[end + 42 : end + 46] = struct.pack("<L", 0)  # the second starts where the first does
    with pytest.raises(IntegrityError):
        TaskPackage.open(bytes(two))


def package_of(manifest: TaskManifest | bytes, *members: tuple[str, bytes]) -> bytes:
    head = manifest if isinstance(manifest, bytes) else encode_manifest(manifest)
    return write_archive([("manifest.json", head), *members])


def resource(path: str, content: bytes, **changes: object) -> ResourceSpec:
    spec = ResourceSpec(
        name=path, path=path, sha256=hashlib.sha256(content).hexdigest(), size=len(content)
    )
    return msgspec.structs.replace(spec, **changes)


CODE = b"def run(ctx, batch): pass\n"


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (write_archive([]), "first member"),
        (write_archive([("main.py", CODE)]), "first member"),
        (package_of(b"not json"), "not JSON"),
        (package_of(TaskManifest(task="a")), "version"),
        (package_of(TaskManifest(task="a", version=1)), "names no module"),
        (package_of(TaskManifest(task="a", version=1), ("main.py", CODE)), "not in the manifest"),
        (
            package_of(TaskManifest(task="a", version=1, resources=[resource("main.py", CODE)])),
            "not in the package",
        ),
    ],
)
def test_manifests_that_do_not_fit_their_package(data: bytes, error: str) -> None:
    with pytest.raises(InputError, match=error):
        TaskPackage.open(data)


@pytest.mark.parametrize("changes", [{"sha256": "0" * 64}, {"size": 1}])
def test_members_that_are_not_what_the_manifest_says(changes: dict[str, object]) -> None:
    spec = resource("main.py", CODE, **changes)
    manifest = TaskManifest(task="a", version=1, resources=[spec])
    with pytest.raises(IntegrityError, match=r"main\.py"):
        TaskPackage.open(package_of(manifest, ("main.py", CODE)))
    good = TaskManifest(task="a", version=1, resources=[resource("main.py", CODE)])
    assert TaskPackage.open(package_of(good, ("main.py", CODE)))


def test_a_package_of_a_higher_schema_keeps_what_it_cannot_read(tmp_path: Path) -> None:
    good = TaskManifest(task="a", version=1, resources=[resource("main.py", CODE)])
    raw = msgspec.to_builtins(good) | {"schema": 2, "novelty": [1]}
    head = msgspec.json.encode(raw)
    package = TaskPackage.open(package_of(head, ("main.py", CODE)))
    target = package.unpack(tmp_path / "a")
    assert (target / "manifest.json").read_bytes() == head


def test_limits_are_checked_before_anything_is_read() -> None:
    data = small_package()
    for limits in (
        WireLimits(package=len(data) - 1),
        WireLimits(package_members=1),
        WireLimits(metadata=10),
    ):
        with pytest.raises(LimitError):
            TaskPackage.open(data, limits)
    assert TaskPackage.open(data, WireLimits(package=len(data), package_members=2))


def test_a_member_count_that_lies_is_refused() -> None:
    data = bytearray(small_package())
    data[-14:-12] = data[-12:-10] = struct.pack("<H", 3000)
    with pytest.raises(IntegrityError):
        TaskPackage.open(bytes(data))


def test_crc_of_a_swapped_content_is_noticed() -> None:
    data = small_package()
    swapped = data.replace(b"return 1", b"return 2")
    assert zlib.crc32(data) != zlib.crc32(swapped)
    with pytest.raises(IntegrityError, match="damaged"):
        TaskPackage.open(swapped)
