"""Several frames in one HTTP body: the tunnel's fallback where no socket can stay open.

``POST /v1/d/uplink`` carries HELLO and BATCH frames, its answer WELCOME, ACK,
NACK, PAUSE and NOTICE frames: the same frames as on the tunnel, each behind its
length as a big-endian u32 (Walle sheet 6.6, A.5).
"""

from __future__ import annotations

from collections.abc import Iterable

from shoal.core.errors import InputError, LimitError
from shoal.wire.frames import Frame, decode_frame, encode_frame
from shoal.wire.limits import DEFAULT_LIMITS, WireLimits

__all__ = ["MAX_EXCHANGE_FRAMES", "join_frames", "split_frames"]

#: Frames that one body may carry.
MAX_EXCHANGE_FRAMES = 64


def join_frames(frames: Iterable[Frame]) -> bytes:
    """Return the body that carries ``frames`` in order."""
    encoded = [encode_frame(frame) for frame in frames]
    return b"".join(len(data).to_bytes(4, "big") + data for data in encoded)


def split_frames(body: bytes, limits: WireLimits = DEFAULT_LIMITS) -> list[Frame]:
    """Read the frames of a body.

    Raises
    ------
    LimitError
        More than :data:`MAX_EXCHANGE_FRAMES` frames, or one above ``limits.frame``.
    InputError
        Truncated, or a frame does not decode.
    """
    frames: list[Frame] = []
    position = 0
    while position < len(body):
        if len(frames) == MAX_EXCHANGE_FRAMES:
            raise LimitError("too many frames", field="body", value=f"> {MAX_EXCHANGE_FRAMES}")
        start = position + 4
        length = int.from_bytes(body[position:start], "big")
        position = start + length
        if position > len(body):
            raise InputError("body is truncated", field="body", value=len(body))
        frames.append(decode_frame(body[start:position], limits))
    return frames
