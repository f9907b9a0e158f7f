"""The frame decoder: round trips, limits, and whatever a hostile peer may send."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import InputError, LimitError
from shoal.wire import frames
from shoal.wire.frames import decode_frame, encode_frame
from shoal.wire.limits import WireLimits

number = st.integers(0, 2**63 - 1)
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
valid = st.one_of(
    st.builds(frames.Hello, number, st.text(), st.binary(), st.text(), number),
    st.builds(frames.Welcome, st.binary(), number, number, number, number, number, number),
    st.builds(frames.Batch, number, number, number, number, st.binary(max_size=200)),
    st.builds(frames.Ack, number),
    st.builds(frames.Nack, number, number, st.integers(-1, 10**6), st.text()),
    st.builds(frames.Notice, number, number, number),
    st.builds(frames.Pause, number, st.sampled_from(["all", "idle", "soon"])),
    st.builds(frames.Ping, number),
    st.builds(frames.Pong, number),
    st.builds(frames.Bye, number, st.text()),
)


@given(valid)
def test_round_trip(frame: frames.Frame) -> None:
    assert decode_frame(encode_frame(frame)) == frame


@settings(max_examples=500)
@given(st.binary(max_size=300))
def test_noise_only_raises_input_error(data: bytes) -> None:
    with contextlib.suppress(InputError):
        decode_frame(data)


@given(st.integers(0, 255), anything)
def test_well_formed_msgpack_of_any_shape(kind: int, body: Any) -> None:
    data = bytes((kind,)) + msgspec.msgpack.encode(body)
    try:
        frame = decode_frame(data)
    except InputError:
        return
    assert type(frame) is frames._TYPES[kind]


@given(valid, st.data())
def test_truncation_and_bit_flips(frame: frames.Frame, data: st.DataObject) -> None:
    encoded = bytearray(encode_frame(frame))
    if data.draw(st.booleans()):
        del encoded[data.draw(st.integers(0, len(encoded) - 1)) :]
    else:
        bit = data.draw(st.integers(0, len(encoded) * 8 - 1))
        encoded[bit // 8] ^= 1 << bit % 8
    with contextlib.suppress(InputError):
        decode_frame(bytes(encoded))


def test_every_truncation_of_a_frame_is_refused() -> None:
    encoded = encode_frame(frames.Batch(1, 2, 0, 0, b"payload"))
    for length in range(len(encoded)):
        with pytest.raises(InputError):
            decode_frame(encoded[:length])
    assert decode_frame(encoded)


@pytest.mark.parametrize("kind", [0, 11, 200, 255])
def test_unknown_types_are_refused(kind: int) -> None:
    with pytest.raises(InputError, match="unknown frame type"):
        decode_frame(bytes((kind, 0x90)))


def test_a_frame_at_its_limit_passes_and_one_above_does_not() -> None:
    limits = WireLimits(frame=100)
    overhead = len(encode_frame(frames.Batch(1, 2, 0, 0, b"x" * 50))) - 50
    fits = encode_frame(frames.Batch(1, 2, 0, 0, b"x" * (100 - overhead)))
    assert len(fits) == 100
    assert decode_frame(fits, limits)
    with pytest.raises(LimitError, match="too large"):
        decode_frame(fits + b"\0", limits)


def test_deep_nesting_does_not_exhaust_the_stack() -> None:
    with pytest.raises(InputError):
        decode_frame(b"\x03" + b"\x91" * 200_000)


def test_a_length_that_lies_allocates_nothing() -> None:
    # bin32 of 4 GiB announced, one byte sent.
    with pytest.raises(InputError):
        decode_frame(b"\x03\x95\x01\x01\x00\x00\xc6\xff\xff\xff\xff\x00")
