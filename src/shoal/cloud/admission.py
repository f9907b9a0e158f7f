"""What a batch must be before it is stored: inflated, decoded, and each record checked.

A batch comes from a device that may be broken or hostile. A batch that cannot
be read at all is refused whole; inside a readable batch only the records that
break a rule are refused, and the innocent ones beside them are kept (Walle
sheet 6.6, B.6, B.7).
"""

from __future__ import annotations

import array
import math
import re
import sys
from collections.abc import Callable
from typing import Any, Final

import msgspec

from shoal.core.errors import InputError, LimitError, ShoalError
from shoal.wire.codes import ErrorCode
from shoal.wire.compression import BodyCodec, UnknownDictionaryError
from shoal.wire.events import Event, EventBatch
from shoal.wire.frames import Batch, BatchKind
from shoal.wire.limits import WireLimits
from shoal.wire.profile import TaskProfile
from shoal.wire.results import FeatureRecord, ResultBatch, ResultRecord, RunSummary

__all__ = ["Admitted", "RefusedBatchError", "RefusedRecord", "admit"]

_RESULTS: Final = msgspec.msgpack.Decoder(ResultBatch)
_EVENTS: Final = msgspec.msgpack.Decoder(EventBatch)
_PROFILE: Final = msgspec.msgpack.Decoder(TaskProfile)
_SCHEMA: Final = 1
_INT_MAX: Final = (1 << 63) - 1
_VECTOR: Final = re.compile(r"f32\[(\d{1,6})\]")
_REASON: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_MAX_REASONS: Final = 64


class RefusedBatchError(ShoalError):
    """The whole batch is refused; ``code`` says why."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class RefusedRecord(msgspec.Struct, frozen=True):
    """One record that was left out, with the reason and its msgpack bytes."""

    code: int
    reason: str
    body: bytes


class Admitted(msgspec.Struct, frozen=True, kw_only=True):
    """The readable part of a batch; exactly one of the first three is set.

    Result values are plain JSON-able values here (bytes as base64 text).
    """

    results: ResultBatch | None = None
    events: EventBatch | None = None
    profile: TaskProfile | None = None
    refused: list[RefusedRecord] = []


def admit(device: bytes, frame: Batch, codec: BodyCodec, limits: WireLimits) -> Admitted:
    """Read the batch of a device.

    Parameters
    ----------
    device : bytes
        Who the connection belongs to, 16 bytes.
    frame : Batch
        As received.
    codec : BodyCodec
    limits : WireLimits

    Raises
    ------
    UnknownDictionaryError
        The sender should use another codec and send it again.
    RefusedBatchError
        TOO_LARGE: it inflates past the limit; BAD_FRAME: it does not inflate,
        is of an unknown kind or bears another number; SCHEMA_MISMATCH: it is
        not what its kind says, or of a newer schema; NOT_ENTITLED: it speaks
        for another device.
    """
    try:
        raw = codec.unpack(frame)
    except UnknownDictionaryError:
        raise
    except LimitError as error:
        raise RefusedBatchError(ErrorCode.TOO_LARGE, str(error)) from error
    except InputError as error:
        raise RefusedBatchError(ErrorCode.BAD_FRAME, str(error)) from error
    if frame.kind == BatchKind.RESULTS:
        return _results(device, frame, _decode(_RESULTS, raw), limits)
    if frame.kind == BatchKind.EVENTS:
        return _events(device, frame, _decode(_EVENTS, raw), limits)
    if frame.kind == BatchKind.PROFILE:
        profile = _decode(_PROFILE, raw)
        _check_head(device, frame, profile.schema, profile.device, frame.seq)
        return Admitted(profile=profile)
    raise RefusedBatchError(ErrorCode.BAD_FRAME, f"unknown kind of batch {frame.kind}")


def _decode(decoder: msgspec.msgpack.Decoder[Any], raw: bytes) -> Any:
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise RefusedBatchError(
            ErrorCode.SCHEMA_MISMATCH, f"batch does not decode: {error}"
        ) from error


def _check_head(device: bytes, frame: Batch, schema: int, named: bytes, seq: int) -> None:
    if schema != _SCHEMA:
        raise RefusedBatchError(
            ErrorCode.SCHEMA_MISMATCH, f"schema {schema} is not known here (this is {_SCHEMA})"
        )
    if named != device:
        raise RefusedBatchError(
            ErrorCode.NOT_ENTITLED, f"batch speaks for another device ({named[:16].hex()})"
        )
    if seq != frame.seq:
        raise RefusedBatchError(ErrorCode.BAD_FRAME, f"batch {seq} came as number {frame.seq}")


# -- results --------------------------------------------------------------------------------


def _results(device: bytes, frame: Batch, batch: ResultBatch, limits: WireLimits) -> Admitted:
    _check_head(device, frame, batch.schema, batch.device, batch.seq)
    refused: list[RefusedRecord] = []

    def keep(records: list[Any], check: Callable[[Any, WireLimits], Any]) -> list[Any]:
        kept = []
        for record in records:
            try:
                kept.append(check(record, limits))
            except _BadRecordError as error:
                body = msgspec.msgpack.encode(record)
                refused.append(RefusedRecord(ErrorCode.SCHEMA_MISMATCH, str(error), body))
        return kept

    return Admitted(
        results=msgspec.structs.replace(
            batch,
            results=keep(batch.results, _result),
            features=keep(batch.features, _feature),
            runs=keep(batch.runs, _run),
            installs=keep(batch.installs, _install),
            dropped=_reasons(batch.dropped),
        ),
        refused=refused,
    )


class _BadRecordError(ValueError):
    pass


def _result(record: ResultRecord, limits: WireLimits) -> ResultRecord:
    _id(record.id)
    _common(record, limits)
    _text(record.model_version or "", "model_version", limits)
    return msgspec.structs.replace(record, value=_plain(record.value, limits.nesting))


def _feature(record: FeatureRecord, limits: WireLimits) -> FeatureRecord:
    _common(record, limits)
    _text(record.key, "key", limits)
    _text(record.dtype, "dtype", limits)
    _text(record.model_version or "", "model_version", limits)
    _number(record.revision, "revision")
    vector = _VECTOR.fullmatch(record.dtype)
    try:
        if vector is not None:
            _finite_floats(record.value, int(vector[1]))
        elif record.dtype == "json":
            msgspec.json.decode(record.value)
        elif record.dtype == "msgpack":
            _plain(msgspec.msgpack.decode(record.value), limits.nesting)
        else:
            raise _BadRecordError(f"unknown dtype {record.dtype[:40]!r}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _BadRecordError(f"value is not {record.dtype}: {error}") from error
    return record


def _finite_floats(value: bytes, length: int) -> None:
    if len(value) != 4 * length:
        raise _BadRecordError(f"{len(value)} bytes are not f32[{length}]")
    floats = array.array("f", value)
    if sys.byteorder == "big":
        floats.byteswap()
    if not all(map(math.isfinite, floats)):
        raise _BadRecordError("a feature must be finite")


def _run(record: RunSummary, limits: WireLimits) -> RunSummary:
    _id(record.run)
    _text(record.task, "task", limits)
    _text(record.backend, "backend", limits)
    _text(record.message, "message", limits)
    for name in ("version", "outcome", "cpu_us", "wall_us", "peak_kb", "ts_us", "latency_us"):
        _number(getattr(record, name), name, signed=name in ("ts_us", "latency_us"))
    if record.outcome > 999:
        raise _BadRecordError("outcome out of range")
    return record


def _install(record: Any, limits: WireLimits) -> Any:
    for name in ("task", "state", "message"):
        _text(getattr(record, name), name, limits)
    for name in ("version", "code", "ts_us"):
        _number(getattr(record, name), name, signed=name == "ts_us")
    return record


def _common(record: ResultRecord | FeatureRecord, limits: WireLimits) -> None:
    _text(record.task, "task", limits)
    _text(record.name, "name", limits)
    _number(record.version, "version")
    _number(record.ts_us, "ts_us", signed=True)


def _reasons(dropped: dict[str, int]) -> dict[str, int]:
    """Return a device's counts with every odd reason or number put under ``other``."""
    kept: dict[str, int] = {}
    for reason, number in dropped.items():
        count = min(max(number, 0), 1 << 40)
        name = reason if _REASON.fullmatch(reason) and len(kept) < _MAX_REASONS else "other"
        if count:
            kept[name] = kept.get(name, 0) + count
    return kept


# -- events ---------------------------------------------------------------------------------


def _events(device: bytes, frame: Batch, batch: EventBatch, limits: WireLimits) -> Admitted:
    _check_head(device, frame, batch.schema, batch.device, batch.seq)
    try:
        _text(batch.task, "task", limits)
        _number(batch.version, "version")
    except _BadRecordError as error:
        raise RefusedBatchError(ErrorCode.SCHEMA_MISMATCH, str(error)) from error
    kept, refused = [], []
    for event in batch.events:
        try:
            _event(event, limits)
        except _BadRecordError as error:
            body = msgspec.msgpack.encode(event)
            refused.append(RefusedRecord(ErrorCode.SCHEMA_MISMATCH, str(error), body))
        else:
            kept.append(event)
    return Admitted(events=msgspec.structs.replace(batch, events=kept), refused=refused)


def _event(event: Event, limits: WireLimits) -> None:
    _id(event.id)
    _text(event.page, "page", limits)
    _number(event.kind, "kind")
    if event.kind > 0xFFFF:
        raise _BadRecordError("kind out of range")
    for name in ("ts_us", "mono_us", "boot"):
        _number(getattr(event, name), name, signed=True)
    if event.visit is not None:
        _id(event.visit)
    if len(msgspec.msgpack.encode(event.content)) > limits.event_content:
        raise _BadRecordError(f"content is longer than {limits.event_content} bytes")
    _plain(event.content, limits.event_depth)


# -- values ---------------------------------------------------------------------------------


def _id(value: bytes) -> None:
    if len(value) != 16:
        raise _BadRecordError(f"an id has 16 bytes (got {len(value)})")


def _text(value: str, name: str, limits: WireLimits) -> None:
    if len(value) > limits.string:
        raise _BadRecordError(f"{name} is longer than {limits.string} characters")
    if "\0" in value:  # Postgres takes none
        raise _BadRecordError(f"{name} holds a NUL character")


def _number(value: int, name: str, *, signed: bool = False) -> None:
    if not (-_INT_MAX if signed else 0) <= value <= _INT_MAX:
        raise _BadRecordError(f"{name} is out of range")


def _plain(value: Any, depth: int) -> Any:
    """Return ``value`` as JSON can hold it, or refuse it: too deep, not finite, not data."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        if not -_INT_MAX <= value <= _INT_MAX:
            raise _BadRecordError("a whole number is out of range")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _BadRecordError("a number is not finite")
        return value
    if isinstance(value, bytes):
        return msgspec.to_builtins(value)
    if depth <= 0:
        raise _BadRecordError("value is nested too deeply")
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth - 1) for item in value]
    if isinstance(value, dict):
        if not all(isinstance(key, (str, int)) for key in value):
            raise _BadRecordError("a key is neither text nor a whole number")
        return {str(key): _plain(item, depth - 1) for key, item in value.items()}
    raise _BadRecordError(f"a {type(value).__name__} is not data")
