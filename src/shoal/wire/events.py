"""Events: what happened on a device, in the order and at the time it says."""

from __future__ import annotations

import os
import time
from enum import IntEnum
from typing import Any

import msgspec

__all__ = ["Event", "EventBatch", "EventKind", "new_ulid"]


class EventKind(IntEnum):
    """The five kinds that Walle names, ours from 16, an app's own from 64."""

    PAGE_ENTER = 1
    PAGE_SCROLL = 2
    EXPOSURE = 3
    CLICK = 4
    PAGE_EXIT = 5
    APP_FOREGROUND = 16
    APP_BACKGROUND = 17
    TIMER = 18


def new_ulid(ts_us: int | None = None, entropy: bytes | None = None) -> bytes:
    """Return a 16-byte ULID: 48 bits of milliseconds, 80 bits of randomness.

    Parameters
    ----------
    ts_us : int, optional
        Time in microseconds since 1970 (UTC); now if absent.
    entropy : bytes, optional
        Ten bytes to use instead of the system's randomness (replays).
    """
    millis = (time.time_ns() // 1_000_000) if ts_us is None else max(ts_us, 0) // 1000
    return (millis & ((1 << 48) - 1)).to_bytes(6, "big") + (
        os.urandom(10) if entropy is None else entropy
    )


class Event(msgspec.Struct, frozen=True, array_like=True):
    """One event of a device.

    Attributes
    ----------
    id : bytes
        16-byte ULID; the same id is the same event.
    kind : int
        An :class:`EventKind` or an app's own number (64 and above).
    page : str
        Page, screen or place where it arose.
    ts_us : int
        Wall-clock time of the device, microseconds since 1970 (UTC).
    mono_us : int
        The device's monotonic clock in microseconds; orders events of one boot.
    boot : int
        Counts the starts of the device; ``mono_us`` compares only within one.
    visit : bytes or None
        16-byte id of the page visit, when the app gives one.
    content : dict
        What the event says; at most 8 KiB and depth 4 by default.
    """

    id: bytes
    kind: int
    page: str
    ts_us: int
    mono_us: int = 0
    boot: int = 0
    visit: bytes | None = None
    content: dict[str, Any] = {}


class EventBatch(msgspec.Struct, frozen=True, array_like=True):
    """Raw events of one task that its manifest allows to leave the device."""

    schema: int
    device: bytes
    task: str
    version: int
    seq: int
    boot: int
    sent_mono_us: int
    events: list[Event]
