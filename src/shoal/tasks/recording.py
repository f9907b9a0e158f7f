"""Recorded events: one JSON object a line, read for tests, simulations and replays.

A line is ``{"kind": "click", "page": "detail", "at_ms": 1200, "content": {...}}``:

=========== ===================================================================
``kind``    name of an :class:`~shoal.wire.events.EventKind` in lower case, or a
            number (an app's own kinds start at 64)
``page``    where it arose
``at_ms``   milliseconds since the start of the recording, or instead
``ts_us``   microseconds since 1970 (UTC)
``visit``   any text; equal texts are the same page visit (optional)
``content`` what the event says (optional)
``id``      32 hexadecimal digits; a repeated id is the same event (optional)
=========== ===================================================================

Ids that are not given derive from the line, so replaying a recording twice
records every event once.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from shoal.core.errors import InputError, NotFoundError
from shoal.core.files import write_text
from shoal.wire.events import Event, EventKind, new_ulid

__all__ = ["RECORDING_START_US", "read_recording", "write_recording"]

#: Where a recording with relative times begins: 2026-01-01 00:00 UTC.
RECORDING_START_US = 1_767_225_600_000_000

_KINDS = {kind.name.lower(): int(kind) for kind in EventKind}
_FIELDS = ("kind", "page", "at_ms", "ts_us", "visit", "content", "id")


def read_recording(path: str | Path, *, start_us: int = RECORDING_START_US) -> Iterator[Event]:
    """Yield the events of a recording in the order of its lines.

    Parameters
    ----------
    path : path-like
        A file of JSON lines; empty lines are skipped.
    start_us : int
        The time that ``at_ms`` counts from, microseconds since 1970 (UTC).

    Raises
    ------
    NotFoundError
        There is no such file.
    InputError
        A line is not an event; names line, field and value. Raised when the
        line is reached: what came before it has been yielded.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFoundError(f"no recording at {file}") from None
    except UnicodeDecodeError as error:
        raise InputError("not UTF-8", source=file.name) from error
    for row, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _event(line, row, file.name, start_us)


def write_recording(path: str | Path, events: Iterable[Event]) -> int:
    """Write events as a recording, whole or not at all; return how many."""
    lines = []
    for event in events:
        entry: dict[str, Any] = {
            "kind": event.kind,
            "page": event.page,
            "ts_us": event.ts_us,
            "id": event.id.hex(),
        }
        if event.visit is not None:
            entry["visit"] = event.visit.hex()
        if event.content:
            entry["content"] = event.content
        lines.append(json.dumps(entry, ensure_ascii=False))
    write_text(path, "".join(f"{line}\n" for line in lines))
    return len(lines)


def _event(line: str, row: int, source: str, start_us: int) -> Event:
    def wrong(message: str, field: str | None = None, value: object = None) -> InputError:
        return InputError(message, field=field, value=value, row=row, source=source)

    try:
        entry = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError) as error:
        raise wrong(f"not JSON: {error}") from error
    if not isinstance(entry, dict):
        raise wrong("expected an object", value=entry)
    for name in entry:
        if name not in _FIELDS:
            raise wrong(f"unknown field, known: {', '.join(_FIELDS)}", field=name)
    kind = entry.get("kind")
    if isinstance(kind, str):
        kind = _KINDS.get(kind)
    if not isinstance(kind, int) or isinstance(kind, bool) or not 0 <= kind <= 255:
        raise wrong("expected a name or a number in [0, 255]", "kind", entry.get("kind"))
    page = entry.get("page")
    if not isinstance(page, str) or not page:
        raise wrong("expected text", "page", page)
    content = entry.get("content", {})
    if not isinstance(content, dict):
        raise wrong("expected an object", "content", content)
    ts_us = _time(entry, start_us, wrong)
    raw_id = entry.get("id")
    if raw_id is None:
        entropy = hashlib.blake2b(f"{row}\0{line.strip()}".encode(), digest_size=10).digest()
        event_id = new_ulid(ts_us, entropy)
    else:
        event_id = _id(raw_id, "id", wrong)
    visit = entry.get("visit")
    if visit is not None and not isinstance(visit, str):
        raise wrong("expected text", "visit", visit)
    return Event(
        id=event_id,
        kind=kind,
        page=page,
        ts_us=ts_us,
        visit=None if visit is None else _visit(visit),
        content=content,
    )


def _time(entry: dict[str, Any], start_us: int, wrong: Any) -> int:
    given = [name for name in ("at_ms", "ts_us") if name in entry]
    if len(given) != 1:
        raise wrong("give either at_ms or ts_us", "at_ms")
    value = entry[given[0]]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise wrong("expected a number", given[0], value)
    time_us = start_us + round(value * 1000) if given[0] == "at_ms" else round(value)
    if not 0 <= time_us < 1 << 62:
        raise wrong("out of range", given[0], value)
    return time_us


def _id(value: object, field: str, wrong: Any) -> bytes:
    try:
        data = bytes.fromhex(value) if isinstance(value, str) else b""
    except ValueError:
        data = b""
    if len(data) != 16:
        raise wrong("expected 32 hexadecimal digits", field, value)
    return data


def _visit(text: str) -> bytes:
    """Take 32 hexadecimal digits as they are; make a 16-byte id of any other text."""
    if len(text) == 32:
        try:
            return bytes.fromhex(text)
        except ValueError:
            pass  # an ordinary name of that length
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
