"""Batch bodies from waiting records: one ``ResultBatch``, or one ``EventBatch`` a task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, cast

import msgspec

from shoal.device.outbox import RecordKind
from shoal.wire.events import EventBatch
from shoal.wire.frames import BatchKind
from shoal.wire.results import ResultBatch

__all__ = [
    "EventGroup",
    "emptied",
    "event_batch",
    "event_group",
    "result_batch",
    "without_send_time",
]

_SCHEMA: Final = 1
_GROUP: Final = msgspec.msgpack.Decoder(tuple[str, int, msgspec.Raw])
_RESULT_BATCH: Final = msgspec.msgpack.Decoder(ResultBatch)
_EVENT_BATCH: Final = msgspec.msgpack.Decoder(EventBatch)

#: (task, version) of the events that share a batch; ``None`` for everything else.
EventGroup = tuple[str, int] | None


def event_group(kind: RecordKind, body: bytes) -> EventGroup:
    """Return which records may share a batch with this one."""
    return _GROUP.decode(body)[:2] if kind == RecordKind.EVENT else None


def result_batch(
    device: bytes, seq: int, records: Iterable[tuple[RecordKind, bytes]], dropped: dict[str, int]
) -> bytes:
    """Return the encoded ``ResultBatch`` of already encoded records."""
    lists: dict[RecordKind, list[msgspec.Raw]] = {kind: [] for kind in RecordKind}
    for kind, body in records:
        lists[kind].append(msgspec.Raw(body))
    return msgspec.msgpack.encode(
        ResultBatch(
            schema=_SCHEMA,
            device=device,
            seq=seq,
            # Raw bytes are written as they are; decoding them only to encode them
            # again would be most of the cost of a batch.
            results=cast(Any, lists[RecordKind.RESULT]),
            features=cast(Any, lists[RecordKind.FEATURE]),
            runs=cast(Any, lists[RecordKind.RUN]),
            installs=cast(Any, lists[RecordKind.INSTALL]),
            dropped=dropped,
        )
    )


def event_batch(
    device: bytes,
    seq: int,
    group: tuple[str, int],
    *,
    bodies: Iterable[bytes],
    boot: int,
    mono_us: int,
) -> bytes:
    """Return the encoded ``EventBatch`` of records of one (task, version)."""
    return msgspec.msgpack.encode(
        EventBatch(
            schema=_SCHEMA,
            device=device,
            task=group[0],
            version=group[1],
            seq=seq,
            boot=boot,
            sent_mono_us=mono_us,
            events=cast(Any, [_GROUP.decode(body)[2] for body in bodies]),
        )
    )


def without_send_time(body: bytes) -> bytes:
    """Return an ``EventBatch`` that is sent again, without the time of its first sending.

    The cloud corrects event times by "received now, sent then", which holds only
    for a batch that travels at once.
    """
    return msgspec.msgpack.encode(
        msgspec.structs.replace(_EVENT_BATCH.decode(body), sent_mono_us=0)
    )


def emptied(device: bytes, seq: int, kind: int, body: bytes) -> bytes:
    """Return a ``ResultBatch`` that only counts what the batch ``body`` held."""
    if kind == BatchKind.EVENTS:
        return result_batch(
            device, seq, (), {"too_large_batch": len(_EVENT_BATCH.decode(body).events)}
        )
    batch = _RESULT_BATCH.decode(body)
    held = len(batch.results) + len(batch.features) + len(batch.runs) + len(batch.installs)
    return result_batch(device, seq, (), {**batch.dropped, "too_large_batch": held})
