"""Sending files over ASGI: immutable, resumable, by content.

A file's strong ETag is its SHA-256, so a device that lost its connection asks for
the rest with ``Range`` and ``If-Range`` and cannot end up with halves of two
different files.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, Final

from shoal.core.errors import IntegrityError, NotFoundError

__all__ = [
    "Headers",
    "Receive",
    "Scope",
    "Send",
    "TruncatedFileError",
    "parse_range",
    "send_file",
    "send_response",
]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


class TruncatedFileError(IntegrityError):
    """A file ended before its length; the answer had begun, so the connection is cut."""


_CHUNK: Final = 256 * 1024
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


def parse_range(text: str, size: int) -> tuple[int, int] | None:
    """Read a ``Range`` header for a file of ``size`` bytes.

    Returns
    -------
    tuple of (start, stop) or None
        Half-open; ``None`` where the header is to be ignored: malformed, or
        several ranges, which a server need not serve (RFC 9110, 14.2).

    Raises
    ------
    NotFoundError
        The range lies outside the file (status 416).
    """
    match = _RANGE.fullmatch(text.strip())
    if match is None or match.group(1) == match.group(2) == "":
        return None
    first, last = match.groups()
    if first == "":  # the last n bytes
        start, stop = max(0, size - int(last)), size
    else:
        start = int(first)
        stop = size if last == "" else min(size, int(last) + 1)
        if last != "" and int(last) < start:
            return None
    if start >= size or start >= stop:
        raise NotFoundError(f"range {text} lies outside {size} bytes")
    return start, stop


async def send_response(send: Send, status: int, headers: Headers, body: bytes = b"") -> None:
    """Send a whole answer; its length is added."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [*headers, (b"content-length", str(len(body)).encode())],
        }
    )
    await send({"type": "http.response.body", "body": body})


async def send_file(
    scope: Scope, send: Send, path: Path, *, etag: str, headers: Headers
) -> tuple[int, int]:
    """Send a file or the part of it that the request asks for.

    Parameters
    ----------
    scope, send
        Of the ASGI request; GET or HEAD.
    path : Path
        The file; it must not change while it is sent.
    etag : str
        Strong validator, without quotes.
    headers : list
        Further headers of the answer.

    Returns
    -------
    tuple of (int, int)
        Status and bytes of the body that were sent.
    """
    asked = {name: value.decode("latin-1") for name, value in scope["headers"]}
    size = path.stat().st_size
    quoted = f'"{etag}"'
    common = [*headers, (b"etag", quoted.encode()), (b"accept-ranges", b"bytes")]
    if quoted in asked.get(b"if-none-match", ""):
        await send({"type": "http.response.start", "status": 304, "headers": common})
        await send({"type": "http.response.body", "body": b""})
        return 304, 0
    start, stop, status = 0, size, 200
    wanted = asked.get(b"range")
    if wanted is not None and asked.get(b"if-range", quoted) == quoted:
        try:
            part = parse_range(wanted, size)
        except NotFoundError:
            await send_response(
                send, 416, [*common, (b"content-range", f"bytes */{size}".encode())]
            )
            return 416, 0
        if part is not None:
            (start, stop), status = part, 206
            common.append((b"content-range", f"bytes {start}-{stop - 1}/{size}".encode()))
    common.append((b"content-length", str(stop - start).encode()))
    await send({"type": "http.response.start", "status": status, "headers": common})
    if scope["method"] == "HEAD":
        await send({"type": "http.response.body", "body": b""})
        return status, 0
    with path.open("rb") as stream:
        stream.seek(start)
        left = stop - start
        while left > 0:
            want = min(_CHUNK, left)
            if size <= _CHUNK:
                chunk = stream.read(want)  # small: the page cache has it
            else:
                chunk = await asyncio.to_thread(stream.read, want)
            if not chunk:  # shorter than promised: the server closes the connection
                raise TruncatedFileError(f"{path.name} ended {left} bytes early")
            left -= len(chunk)
            await send({"type": "http.response.body", "body": chunk, "more_body": left > 0})
        if stop == start:
            await send({"type": "http.response.body", "body": b""})
    return status, stop - start
