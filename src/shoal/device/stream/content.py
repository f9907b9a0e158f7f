"""What an event may say: plain, finite, bounded values."""

from __future__ import annotations

import math

import msgspec

from shoal.core.errors import InputError, LimitError
from shoal.wire.limits import DEFAULT_LIMITS, WireLimits

__all__ = ["check_content"]

# The wire's integers have 64 bits.
_I64 = 1 << 63
_pack = msgspec.msgpack.Encoder().encode


def _check_value(value: object, depth: int, limits: WireLimits, path: str) -> None:
    if value is None or value is True or value is False:
        return
    kind = type(value)
    if kind is str:
        if len(value) > limits.string:  # type: ignore[arg-type]
            raise LimitError(f"string longer than {limits.string}", field=path, value=value)
    elif kind is float:
        if not math.isfinite(value):  # type: ignore[arg-type]
            raise InputError("must be a finite number", field=path, value=value)
    elif kind is int:
        if not -_I64 <= value < 2 * _I64:  # type: ignore[operator]
            raise InputError("must fit 64 bits", field=path, value=value)
    elif kind is dict or kind is list or kind is tuple:
        if depth >= limits.event_depth:
            raise LimitError(f"nested deeper than {limits.event_depth}", field=path)
        if kind is dict:
            for key, item in value.items():  # type: ignore[attr-defined]
                if type(key) is not str:
                    raise InputError("keys must be strings", field=path, value=key)
                _check_value(item, depth + 1, limits, f"{path}.{key}"[:200])
        else:
            for item in value:  # type: ignore[attr-defined]
                _check_value(item, depth + 1, limits, path)
    else:
        raise InputError(
            f"must be null, bool, number, string, list or map, not {kind.__name__}", field=path
        )


def check_content(content: object, limits: WireLimits = DEFAULT_LIMITS) -> bytes:
    """Check an event's content and return it as msgpack.

    Parameters
    ----------
    content : dict
        Plain values only: null, bool, numbers, strings, lists, maps with string keys.
    limits : WireLimits
        ``event_content`` bytes, ``event_depth`` levels, ``string`` characters.

    Raises
    ------
    LimitError
        Too large or too deep.
    InputError
        Not a map, NaN or infinite, or a type that does not travel.
    """
    if type(content) is not dict:
        raise InputError("must be a map", field="content", value=content)
    _check_value(content, 0, limits, "content")
    packed = _pack(content)
    if len(packed) > limits.event_content:
        raise LimitError(
            f"larger than {limits.event_content} bytes", field="content", value=len(packed)
        )
    return packed
