"""What pool, zygote and workers say to each other: msgpack bodies behind a length.

A worker first gets a :class:`LoadOrder`, then :class:`RunOrder` after
:class:`RunOrder`; to each it answers with a
:class:`~shoal.device.container.requests.RunReply`, whose run is empty for the
first. Replies come in the order of the orders.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from shoal.device.container.requests import TaskCode

__all__ = [
    "LEAVING",
    "LENGTH",
    "NO_MEMORY",
    "SANDBOX_REFUSED",
    "STATE_LIMIT",
    "LoadOrder",
    "RunEvent",
    "RunOrder",
    "encode",
    "frame",
    "load_order",
]

#: Before every body: its length in bytes.
LENGTH = struct.Struct("<I")
#: Exit statuses that a worker chooses itself: it wants a successor (nothing is
#: wrong with the orders that it has not read), it has no memory left, or it
#: could not shut itself in.
LEAVING, NO_MEMORY, SANDBOX_REFUSED = 75, 97, 98
#: Largest state of a task, bytes.
STATE_LIMIT = 1 << 20

encode = msgspec.msgpack.Encoder().encode


class LoadOrder(msgspec.Struct, frozen=True, array_like=True):
    """Which code a worker serves from now on, and within which bounds."""

    task: str
    version: int
    folder: str
    entry: str
    models: dict[str, str]
    engine: str
    threads: int
    outputs: dict[str, tuple[str, str]]
    memory_mb: int
    output_bytes: int
    seed: int
    sandbox_level: int
    scratch: str


def load_order(code: TaskCode, *, memory_mb: int, sandbox_level: int, scratch: str) -> LoadOrder:
    """Return the order to load a version of a task."""
    return LoadOrder(
        task=code.task,
        version=code.version,
        folder=str(code.folder),
        entry=code.entry,
        models={name: str(path) for name, path in code.models.items()},
        engine=code.engine if code.models else "",
        threads=code.threads,
        outputs=dict(code.outputs),
        memory_mb=memory_mb,
        output_bytes=code.output_kb << 10,
        seed=code.seed,
        sandbox_level=sandbox_level,
        scratch=scratch,
    )


class RunEvent(msgspec.Struct, array_like=True):
    """An event as a task sees it: the fields of :class:`shoal.wire.Event`, in its order."""

    id: bytes
    kind: int
    page: str
    ts_us: int
    mono_us: int = 0
    boot: int = 0
    visit: bytes | None = None
    content: dict[str, Any] = {}


class RunOrder(msgspec.Struct, frozen=True, array_like=True):
    """One run; ``features`` are (name, key, value)."""

    run: bytes
    events: list[RunEvent]
    state: bytes | None
    features: list[tuple[str, str, Any]]
    now_us: int
    device: bytes
    deadline_s: float


def frame(message: Any) -> bytes:
    """Return a message as it travels."""
    body = encode(message)
    return LENGTH.pack(len(body)) + body
