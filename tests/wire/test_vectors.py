"""Golden vectors: the bytes of every struct and frame, fixed for clients in other languages.

A vector that changes is a protocol that changed. New ones are written by
``python tests/wire/test_vectors.py``, which never overwrites an old one.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

import shoal.wire
from shoal.core.errors import InputError
from shoal.wire import (
    DesiredTask,
    Event,
    EventBatch,
    EventKind,
    FeatureRecord,
    FileRef,
    HeldTask,
    InstallReport,
    ReleaseNotice,
    ResultBatch,
    ResultRecord,
    RunSummary,
    TaskProfile,
    bucket,
    frames,
    profile_digest,
)
from shoal.wire.enrolment import (
    EnrolReply,
    EnrolRequest,
    ExclusiveGrant,
    ProfileReply,
    enrolment_message,
)
from shoal.wire.frames import decode_frame, encode_frame
from shoal.wire.profile import format_profile_header, parse_profile_header
from shoal.wire.signing import (
    DirectorStatement,
    PrivateKey,
    Signature,
    SignedStatement,
    key_id,
    public_bytes,
    sign_statement,
    verify_statement,
)
from shoal.wire.simulation import SimulationReport

FOLDER = Path(__file__).parent / "vectors"
NOW = 1_700_000_000_000_000
DEVICE = bytes(range(16))
KEY = PrivateKey.from_private_bytes(bytes(range(32)))

_PACKAGE = FileRef(sha256=bytes(range(32)), size=1234, path="demo-3.shoal")
_DELTA = FileRef(
    sha256=b"\xff" * 32,
    size=2**40,
    path="models/große.onnx",
    scope="exclusive",
    encoding="zstd",
    delta_from=bytes(32),
)
_DESIRED = DesiredTask(
    task="demo",
    version=3,
    package=_PACKAGE,
    resources=[_DELTA],
    priority=5,
    not_before_us=NOW,
    exclusive=True,
    force=True,
)
_EVENT = Event(
    id=bytes(range(100, 116)),
    kind=EventKind.CLICK,
    page="detail",
    ts_us=NOW,
    mono_us=123_456,
    boot=2,
    visit=bytes(16),
    content={"item": "é1", "price": 1.5, "tags": [1, -1, None, True]},
)
_PROFILE = TaskProfile(
    device=DEVICE,
    agent="shoal/0.1",
    python="3.11.7",
    platform="linux-x86_64",
    engines={"onnx": "1.32.0"},
    capabilities=["camera"],
    attributes={"app": {"version": "2.1"}, "device": {"memory_mb": 4096}, "user": {}},
    held=[HeldTask("demo", 3, "good")],
    disk_free_mb=100,
    sandbox_level=3,
)
_STATEMENT = DirectorStatement(
    epoch=300, cohort=7, mask=5, expires_us=NOW + 86_400_000_000, tasks=[_DESIRED]
)
_RESULT = ResultRecord(DEVICE, "demo", 3, "score", NOW, {"p": 0.25}, "m1")
_FEATURE = FeatureRecord("demo", 3, "ipv", "item-1", NOW, 1, "f32[2]", b"\0\0\x80?\0\0\0@", "m1")
_RUN = RunSummary(DEVICE, "demo", 3, 302, "process", 900, 1500, 20_480, NOW, 250, "ValueError: x")
_INSTALL = InstallReport("demo", 3, "refused", 206, NOW, "needs onnx")

SAMPLES: dict[str, msgspec.Struct] = {
    "event": _EVENT,
    "event-shortest": Event(bytes(16), 64, "", -1),
    "event-batch": EventBatch(1, DEVICE, "demo", 3, 2**63, 2, 99, [_EVENT]),
    "feature-record": _FEATURE,
    "result-record": _RESULT,
    "run-summary": _RUN,
    "install-report": _INSTALL,
    "result-batch": ResultBatch(
        1, DEVICE, 42, [_RESULT], [_FEATURE], [_RUN], [_INSTALL], {"idle": 3}
    ),
    "result-batch-empty": ResultBatch(1, DEVICE, 1),
    "held-task": HeldTask("demo", 3, "good"),
    "task-profile": _PROFILE,
    "file-ref": _PACKAGE,
    "file-ref-delta": _DELTA,
    "desired-task": _DESIRED,
    "desired-task-none": DesiredTask(
        task="demo", version=0, package=FileRef(sha256=bytes(32), size=0, path="")
    ),
    "release-notice": ReleaseNotice(
        epoch=300,
        cohort=7,
        mask=5,
        expires_us=NOW,
        director=b"signed",
        tasks=[_DESIRED],
        urls={"00ff": ["/v1/d/files/00ff"]},
        jitter_s=2.5,
        retry_after_s=1.0,
    ),
    "director-statement": _STATEMENT,
    "signature": Signature("00" * 16, bytes(64)),
    "signed-statement": msgspec.msgpack.decode(
        sign_statement(_STATEMENT, KEY), type=SignedStatement
    ),
    "enrol-request": EnrolRequest(
        token="once", public_key=public_bytes(KEY), profile=_PROFILE, proof=bytes(64), ts_us=NOW
    ),
    "enrol-reply": EnrolReply(
        device=DEVICE, token="t", cohort=7, epoch=300, root=b"{}", server_time_us=NOW
    ),
    "profile-reply": ProfileReply(
        token="t", cohort=7, epoch=300, notice="300.7.5", server_time_us=NOW
    ),
    "exclusive-grant": ExclusiveGrant(director=b"signed", urls={"00ff": "/v1/d/exclusive/demo/3"}),
    "simulation-report": SimulationReport(
        1, 9, "demo", 3, DEVICE, 2, 10, 0, 1500, 20_480, bytes(32), NOW, "", bytes(64)
    ),
}
FRAMES: dict[str, frames.Frame] = {
    "frame-hello": frames.Hello(1, "token", DEVICE, "shoal/0.1", 41, [0, 1, 2], [7]),
    "frame-welcome": frames.Welcome(bytes(8), 41, 8, 262_144, 1, 0, NOW),
    "frame-batch": frames.Batch(42, frames.BatchKind.RESULTS, frames.Codec.ZSTD, 0, b"\x01\x02"),
    "frame-ack": frames.Ack(2**64 - 1),
    "frame-nack": frames.Nack(42, 107, 500, "window"),
    "frame-notice": frames.Notice(300, 7, 5),
    "frame-pause": frames.Pause(1000, "idle"),
    "frame-ping": frames.Ping(1),
    "frame-pong": frames.Pong(1),
    "frame-bye": frames.Bye(110, "stale"),
}
#: Read from TOML or JSON, or never sent: they have no msgpack form to fix.
NOT_ON_THE_WIRE = {"WireLimits", "ProfileHeader"}


def readable(value: Any) -> Any:
    """Write a struct as JSON: bytes as ``{"hex": …}``."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, msgspec.Struct):
        return {name: readable(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, dict):
        return {key: readable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [readable(item) for item in value]
    return int(value) if isinstance(value, EventKind | frames.BatchKind | frames.Codec) else value


def encoded(name: str) -> bytes:
    return encode_frame(FRAMES[name]) if name in FRAMES else msgspec.msgpack.encode(SAMPLES[name])


def vector(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return loaded


@pytest.mark.parametrize("name", [*SAMPLES, *FRAMES])
def test_bytes_are_the_golden_ones(name: str) -> None:
    sample = {**SAMPLES, **FRAMES}[name]
    golden = vector(name)
    assert encoded(name).hex() == golden["bytes"]
    assert readable(sample) == golden["fields"]
    assert type(sample).__name__ == golden["struct"]
    data = bytes.fromhex(golden["bytes"])
    back = decode_frame(data) if name in FRAMES else msgspec.msgpack.decode(data, type=type(sample))
    assert back == sample


def test_a_changed_byte_is_noticed() -> None:
    # Negative control: the comparison above can fail.
    golden = bytearray(bytes.fromhex(vector("event")["bytes"]))
    golden[-1] ^= 1
    assert golden != msgspec.msgpack.encode(_EVENT)
    assert encoded("event").hex() != vector("event-shortest")["bytes"]


def test_every_struct_of_the_wire_has_a_vector() -> None:
    have = {type(sample).__name__ for sample in [*SAMPLES.values(), *FRAMES.values()]}
    for module in pkgutil.iter_modules(shoal.wire.__path__):
        if module.name == "specs":  # the manifest is JSON; its vector is below
            continue
        loaded = importlib.import_module(f"shoal.wire.{module.name}")
        for name, kind in vars(loaded).items():
            if (
                isinstance(kind, type)
                and issubclass(kind, msgspec.Struct)
                and kind.__module__ == loaded.__name__
                and name not in NOT_ON_THE_WIRE
            ):
                assert name in have, f"{module.name}.{name} has no golden vector"


@pytest.mark.parametrize("name", [*SAMPLES, *FRAMES])
def test_a_newer_peer_with_a_field_more_is_understood(name: str) -> None:
    sample = {**SAMPLES, **FRAMES}[name]
    data = encoded(name)
    head, body = (data[:1], data[1:]) if name in FRAMES else (b"", data)
    raw = msgspec.msgpack.decode(body)
    raw = [*raw, "new"] if isinstance(raw, list) else {**raw, "new": 1}
    longer = head + msgspec.msgpack.encode(raw)
    if name in FRAMES:
        assert decode_frame(longer) == sample
    else:
        assert msgspec.msgpack.decode(longer, type=type(sample)) == sample


def test_signed_statement_verifies_with_the_published_key() -> None:
    golden = vector("signed-statement")
    statement = verify_statement(bytes.fromhex(golden["bytes"]), [public_bytes(KEY)], NOW)
    assert statement == _STATEMENT


def derived() -> dict[str, Any]:
    """Return values that are computed rather than encoded."""
    sets: list[list[list[Any]]] = [[], [["demo", 3]], [["b", 2], ["a", 1], ["ä", 2**40]]]
    return {
        "profile_digest": [
            {"pairs": pairs, "digest": profile_digest([(name, number) for name, number in pairs])}
            for pairs in sets
        ],
        "profile_header": [
            {"epoch": epoch, "cohort": cohort, "header": format_profile_header(epoch, cohort, text)}
            for epoch, cohort, text in ((0, 0, profile_digest([])), (300, 7, "A" * 22))
        ],
        "bucket": [
            {"salt": salt, "device": device, "bucket": bucket(salt, device)}
            for salt, device in (("", ""), ("demo-1", DEVICE.hex()), ("sälz", "ff" * 16))
        ],
        "enrolment_message": enrolment_message("once", public_bytes(KEY), DEVICE, NOW).hex(),
        "key_id": key_id(KEY),
    }


def test_derived_values_are_the_golden_ones() -> None:
    golden = json.loads((FOLDER / "derived.json").read_text())
    assert derived() == golden
    for entry in golden["profile_header"]:
        header = parse_profile_header(entry["header"])
        assert (header.epoch, header.cohort) == (entry["epoch"], entry["cohort"])
    with pytest.raises(InputError):
        parse_profile_header(golden["profile_header"][0]["header"] + "x")


def write() -> None:
    """Write the vectors that are missing."""
    FOLDER.mkdir(exist_ok=True)
    texts = {"derived": json.dumps(derived(), indent=1, ensure_ascii=False)}
    for name, sample in {**SAMPLES, **FRAMES}.items():
        fields = {
            "struct": type(sample).__name__,
            "fields": readable(sample),
            "bytes": encoded(name).hex(),
        }
        texts[name] = json.dumps(fields, indent=1, ensure_ascii=False)
    for name, text in texts.items():
        path = FOLDER / f"{name}.json"
        if not path.exists():
            path.write_text(text + "\n")


if __name__ == "__main__":
    write()
