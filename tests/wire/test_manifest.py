"""The task manifest: what an author may write, and what is refused, with the place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.errors import InputError, LimitError, NotFoundError
from shoal.wire.manifest import (
    ResourceSpec,
    TaskManifest,
    check_member_path,
    check_task_name,
    decode_manifest,
    encode_manifest,
    parse_pattern,
    read_task_toml,
)

FULL = """
task = "shop.rank"
label = "first"
model_version = "m1"

[entry]
device = "main:run"
cloud = "pkg.merge:merge_all"

[[triggers]]
name = "viewed"
sequence = ["page_enter@detail", "click@*", "64@*"]
mode = "relaxed"
within_ms = 5000
where = [
  { step = 1, field = "price", op = ">=", value = 10.5 },
  { step = 1, field = "item", op = "in", value = ["a", "b"] },
  { step = 0, field = "gift", op = "exists", value = false },
]
cooldown_ms = 100

[[triggers]]
name = "left"
sequence = ["exposure@list"]
not_followed_by = "click@list"
within_ms = 1000

[[triggers]]
name = "bored"
sequence = ["exposure@list"]
count = 5
without = "click@*"

[input]
scope = "since"
events = ["*@detail", "click@*"]
max_events = 50

[[outputs]]
name = "rank"
dtype = "f32[32]"
kind = "feature"
bytes_per_day = 1000
uplink = "now"

[[resources]]
name = "ranker"
path = "models/ranker.onnx"
kind = "model"
scope = "exclusive"
separate = true

[requires]
python = ">=3.12"
engines = { onnx = ">=1.20" }
memory_mb = 64
capabilities = ["camera"]

[limits]
deadline_ms = 50
runs_per_hour = 10

[isolation]
sandbox_level = 2

[determinism]
seed = 3
"""


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "task.toml"
    path.write_text(text)
    return path


def test_everything_that_can_be_said(tmp_path: Path) -> None:
    manifest = read_task_toml(toml(tmp_path, FULL))
    assert manifest == read_task_toml(tmp_path)  # the folder does as well
    assert (manifest.schema, manifest.version) == (1, 0)
    assert [trigger.count for trigger in manifest.triggers] == [1, 1, 5]
    assert manifest.triggers[0].where[1].value == ["a", "b"]
    assert manifest.limits.memory_mb == 256  # a default
    assert decode_manifest(encode_manifest(manifest)) == manifest


def test_the_least_that_must_be_said(tmp_path: Path) -> None:
    manifest = read_task_toml(toml(tmp_path, 'task = "a"'))
    assert manifest == TaskManifest(task="a")
    assert manifest.entry == {"device": "main:run"}


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", "task"),
        ('task = "A"', "task"),
        ('task = "a"\nextra = 1', "extra"),
        ('task = "a"\nversion = 3', "version"),
        ('task = "a"\n[limits]\ndeadline = 3', "limits.deadline"),
        ('task = "a"\n[limits]\ndeadline_ms = "3"', "limits.deadline_ms"),
        ('task = "a"\n[limits]\ndeadline_ms = 0', "limits.deadline_ms"),
        ('task = "a"\n[limits]\nmemory_mb = -1', "limits.memory_mb"),
        ('task = "a"\n[isolation]\nsandbox_level = 4', "isolation.sandbox_level"),
        ('task = "a"\n[entry]\ncloud = "main:run"', "entry"),
        ('task = "a"\n[entry]\ndevice = "main"', "entry.device"),
        ('task = "a"\n[entry]\ndevice = "../main:run"', "entry.device"),
        ('task = "a"\n[input]\nevents = ["click"]', "input.events"),
        ('task = "a"\n[input]\nevents = []', "input.events"),
        ('task = "a"\n[input]\nscope = "all"', "input.scope"),
        ('task = "a"\n[input]\nmax_events = 0', "input.max_events"),
        ('task = "a"\n[[triggers]]\nname = "t"', "triggers"),
        ('task = "a"\n[[triggers]]\nname = "t"\nsequence = []', "triggers[0].sequence"),
        ('task = "a"\n[[triggers]]\nname = "t"\nsequence = ["tap@x"]', "triggers[0].sequence"),
        (
            'task = "a"\n[[triggers]]\nname = "t"\nsequence = ["*@*"]\ntypo = 1',
            "triggers[0].typo",
        ),
        (
            'task = "a"\n[[triggers]]\nname = "t"\nsequence = ["*@*"]\nnot_followed_by = "*@*"',
            "triggers[0].within_ms",
        ),
        (
            'task = "a"\n[[triggers]]\nname = "t"\nsequence = ["*@*"]\n'
            'where = [{ step = 1, field = "x", op = "==", value = 1 }]',
            "triggers[0].where[0].step",
        ),
        (
            'task = "a"\n[[triggers]]\nname = "t"\nsequence = ["*@*"]\n'
            'where = [{ field = "x", op = "in", value = 1 }]',
            "triggers[0].where[0].value",
        ),
        (
            'task = "a"\n[[triggers]]\nname = "t"\nsequence = ["*@*"]\n'
            'where = [{ field = "x", op = "~", value = 1 }]',
            "where",
        ),
        ('task = "a"\n[[outputs]]\nname = "x"\n[[outputs]]\nname = "x"', "outputs"),
        ('task = "a"\n[[resources]]\nname = "m"\npath = "../m"', "resources[0].path"),
        ('task = "a"\n[[resources]]\nname = "m"\npath = "/m"', "resources[0].path"),
        (
            'task = "a"\n[[resources]]\nname = "m"\npath = "M"\n'
            '[[resources]]\nname = "n"\npath = "m"',
            "resources",
        ),
    ],
)
def test_bad_fields_are_named(tmp_path: Path, text: str, field: str) -> None:
    with pytest.raises(InputError) as caught:
        read_task_toml(toml(tmp_path, text))
    assert field in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"task\.toml"):
        read_task_toml(tmp_path)
    with pytest.raises(InputError, match="not TOML"):
        read_task_toml(toml(tmp_path, "task ="))
    (tmp_path / "task.toml").write_bytes(b"\xff")
    with pytest.raises(InputError, match="UTF-8"):
        read_task_toml(tmp_path)


def test_unknown_fields_are_ignored_only_in_a_higher_schema() -> None:
    raw = json.loads(encode_manifest(TaskManifest(task="a")))
    raw["novelty"] = 1
    raw["limits"]["novelty"] = 1
    with pytest.raises(InputError, match="unknown field"):
        decode_manifest(json.dumps(raw).encode())
    raw["schema"] = 2
    newer = decode_manifest(json.dumps(raw).encode())
    assert (newer.schema, newer.task) == (2, "a")


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"null", b"{", b"\xff", b'{"schema": "1"}', b'{"schema": 0, "task": "a"}']
)
def test_bytes_that_are_no_manifest(data: bytes) -> None:
    with pytest.raises(InputError):
        decode_manifest(data)


def test_limits_of_size_and_depth() -> None:
    with pytest.raises(LimitError):
        decode_manifest(b" " * (2 * 1024 * 1024 + 1))
    deep: Any = 1
    for _ in range(20):
        deep = [deep]
    raw = json.loads(encode_manifest(TaskManifest(task="a")))
    raw["schema"] = 2
    raw["deep"] = deep
    with pytest.raises(LimitError, match="deep"):
        decode_manifest(json.dumps(raw).encode())
    with pytest.raises(InputError):
        decode_manifest(b"[" * 100_000)


def test_limit_of_text(tmp_path: Path) -> None:
    assert read_task_toml(toml(tmp_path, f'task = "a"\nlabel = "{"x" * 1024}"'))
    with pytest.raises(LimitError, match="label"):
        read_task_toml(toml(tmp_path, f'task = "a"\nlabel = "{"x" * 1025}"'))
    with pytest.raises(LimitError, match=r"requires\.engines"):
        read_task_toml(toml(tmp_path, f'task = "a"\n[requires.engines]\n{"x" * 1025} = ""'))


def test_limit_of_resources() -> None:
    spec = ResourceSpec(name="m", path="m", sha256="0" * 64, size=2**31, separate=True)
    good = TaskManifest(task="a", version=1, resources=[spec])
    assert decode_manifest(encode_manifest(good)) == good
    for changed in (
        msgspec.structs.replace(spec, size=2**31 + 1),
        msgspec.structs.replace(spec, separate=False),
        msgspec.structs.replace(spec, size=-1),
    ):
        manifest = msgspec.structs.replace(good, resources=[changed])
        with pytest.raises(LimitError, match=r"resources\[0\]\.size"):
            decode_manifest(encode_manifest(manifest))


def test_equal_manifests_have_equal_bytes() -> None:
    one = TaskManifest(task="a", entry={"device": "m:f", "cloud": "m:g"})
    two = TaskManifest(task="a", entry={"cloud": "m:g", "device": "m:f"})
    assert encode_manifest(one) == encode_manifest(two)


@given(st.binary(max_size=200))
def test_noise_only_raises_input_error(data: bytes) -> None:
    with pytest.raises(InputError):
        decode_manifest(data)


scalar = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)


@given(
    st.sampled_from([*TaskManifest.__struct_fields__, "other"]),
    scalar | st.lists(scalar, max_size=2) | st.dictionaries(st.text(max_size=5), scalar),
)
def test_one_field_of_any_type(name: str, value: object) -> None:
    raw = msgspec.to_builtins(TaskManifest(task="a"))
    raw[name] = value
    try:
        manifest = decode_manifest(json.dumps(raw).encode())
    except InputError:
        return
    assert decode_manifest(encode_manifest(manifest)) == manifest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("*@*", (None, None)),
        ("click@detail", (4, "detail")),
        ("page_enter@*", (1, None)),
        ("64@a@b", (64, "a@b")),
    ],
)
def test_patterns(text: str, expected: tuple[int | None, str | None]) -> None:
    assert parse_pattern(text) == expected


@pytest.mark.parametrize("text", ["", "click", "click@", "@x", "CLICK@x", "-1@x", "²@x", "1.5@x"])
def test_bad_patterns(text: str) -> None:
    with pytest.raises(InputError):
        parse_pattern(text)


@pytest.mark.parametrize("name", ["a", "a.b-c_9", "a" * 64])
def test_task_names(name: str) -> None:
    assert check_task_name(name) == name


@pytest.mark.parametrize("name", ["", "A", "9a", "a" * 65, "a/b", "a b", "a\n", "ä"])
def test_bad_task_names(name: str) -> None:
    with pytest.raises(InputError):
        check_task_name(name)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a//b",
        "./a",
        "a/",
        "C:/x",
        "a\\..\\b",
        "a\0b",
        "a\nb",
        " a",
        "a ",
        "a/ /b",
        "x" * 241,
        "a\u202eb",
        "con*",
    ],
)
def test_paths_that_climb_or_confuse(path: str) -> None:
    with pytest.raises(InputError):
        check_member_path(path)


@given(st.text(max_size=30))
def test_an_accepted_path_stays_inside(path: str) -> None:
    try:
        check_member_path(path)
    except InputError:
        return
    base = Path("/base/folder")
    assert (base / path).resolve().is_relative_to(base)
    assert (base / path) != base
