"""Frames of the tunnel: one type byte and a msgpack body in each binary message."""

from __future__ import annotations

from enum import IntEnum

import msgspec

from shoal.core.errors import InputError, LimitError
from shoal.wire.limits import DEFAULT_LIMITS, WireLimits

__all__ = [
    "Ack",
    "Batch",
    "BatchKind",
    "Bye",
    "Codec",
    "Frame",
    "Hello",
    "Nack",
    "Notice",
    "Pause",
    "Ping",
    "Pong",
    "Welcome",
    "decode_frame",
    "encode_frame",
]


class BatchKind(IntEnum):
    """What the body of a BATCH frame decodes to."""

    EVENTS = 1
    RESULTS = 2
    PROFILE = 3


class Codec(IntEnum):
    """How the body of a BATCH frame is compressed."""

    RAW = 0
    ZSTD = 1
    ZSTD_DICTIONARY = 2


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """Device to cloud: who I am and up to where I have been acknowledged."""

    protocol: int
    token: str
    device: bytes
    agent: str
    resume_seq: int
    codecs: list[int] = msgspec.field(default_factory=lambda: [0, 1])
    dictionaries: list[int] = []


class Welcome(msgspec.Struct, frozen=True, array_like=True):
    """Cloud to device: everything up to ``ack_seq`` is durable; send at most ``window`` ahead."""

    connection: bytes
    ack_seq: int
    window: int
    max_frame: int
    codec: int
    dictionary: int
    server_time_us: int


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """Device to cloud: one durable, numbered, compressed batch."""

    seq: int
    kind: int
    codec: int
    dictionary: int
    body: bytes


class Ack(msgspec.Struct, frozen=True, array_like=True):
    """Cloud to device: every batch up to ``seq`` is durable."""

    seq: int


class Nack(msgspec.Struct, frozen=True, array_like=True):
    """Cloud to device: batch ``seq`` was not taken; ``retry_ms`` < 0 means: never send it again."""

    seq: int
    code: int
    retry_ms: int
    text: str = ""


class Notice(msgspec.Struct, frozen=True, array_like=True):
    """Cloud to device: a notice at this address may concern you."""

    epoch: int
    cohort: int
    mask: int


class Pause(msgspec.Struct, frozen=True, array_like=True):
    """Cloud to device: send nothing of ``scope`` (``all``, ``idle``, ``soon``) for ``ms``."""

    ms: int
    scope: str = "all"


class Ping(msgspec.Struct, frozen=True, array_like=True):
    """Either way; answered by a PONG with the same number."""

    mono_us: int


class Pong(msgspec.Struct, frozen=True, array_like=True):
    """The answer to a PING."""

    mono_us: int


class Bye(msgspec.Struct, frozen=True, array_like=True):
    """Either way: the sender closes, with its reason."""

    code: int
    text: str


Frame = Hello | Welcome | Batch | Ack | Nack | Notice | Pause | Ping | Pong | Bye

_TYPES: dict[int, type[Frame]] = {
    1: Hello,
    2: Welcome,
    3: Batch,
    4: Ack,
    5: Nack,
    6: Notice,
    7: Pause,
    8: Ping,
    9: Pong,
    10: Bye,
}
_NUMBERS = {kind: number for number, kind in _TYPES.items()}
_ENCODER = msgspec.msgpack.Encoder()
_DECODERS = {number: msgspec.msgpack.Decoder(kind) for number, kind in _TYPES.items()}


def encode_frame(frame: Frame) -> bytes:
    """Return the bytes of one frame."""
    return bytes((_NUMBERS[type(frame)],)) + _ENCODER.encode(frame)


def decode_frame(data: bytes, limits: WireLimits = DEFAULT_LIMITS) -> Frame:
    """Read one frame.

    Raises
    ------
    LimitError
        Longer than ``limits.frame``.
    InputError
        Empty, of an unknown type, or not what the type's struct says.
    """
    if len(data) > limits.frame:
        raise LimitError("frame too large", field="frame", value=len(data))
    if not data or data[0] not in _DECODERS:
        raise InputError("unknown frame type", field="frame", value=data[:1])
    try:
        return _DECODERS[data[0]].decode(memoryview(data)[1:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"frame does not decode: {error}", field="frame") from error
