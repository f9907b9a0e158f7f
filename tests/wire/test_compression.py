"""Batch bodies: they come back whole, and a hostile one costs no more than an honest one."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import tracemalloc

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import InputError, LimitError
from shoal.wire.codes import ErrorCode
from shoal.wire.compression import (
    INFLATION,
    BodyCodec,
    UnknownDictionaryError,
    inflated_limit,
    train_dictionary,
)
from shoal.wire.frames import Batch, BatchKind, Codec
from shoal.wire.limits import WireLimits
from shoal.wire.results import ResultBatch, ResultRecord

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def _batch(packed: tuple[int, int, bytes]) -> Batch:
    return Batch(1, BatchKind.RESULTS, *packed)


def _sample(number: int) -> bytes:
    made = random.Random(number)
    results = [
        ResultRecord(made.randbytes(16), "departure_delay", 3, "late", made.getrandbits(50), 0.5)
        for _ in range(2)
    ]
    return msgspec.msgpack.encode(ResultBatch(1, bytes(16), number, results))


@pytest.fixture(scope="module")
def dictionary() -> bytes:
    return train_dictionary((_sample(number) for number in range(400)), 4096)


@given(raw=st.binary(max_size=4000), codec=st.sampled_from([Codec.RAW, Codec.ZSTD]))
def test_what_is_packed_unpacks_to_the_same_bytes(raw: bytes, codec: Codec) -> None:
    packed = BodyCodec().pack(raw, codec)
    assert BodyCodec().unpack(_batch(packed)) == raw
    assert len(packed[2]) <= len(raw)  # never grows


def test_repetition_shrinks_and_noise_stays_raw() -> None:
    assert len(BodyCodec().pack(b"event " * 1000)[2]) < 100
    assert BodyCodec().pack(os.urandom(5000))[0] == Codec.RAW


def test_a_trained_dictionary_helps_small_batches(dictionary: bytes) -> None:
    codec = BodyCodec({7: dictionary})
    raw = _sample(10_001)
    packed = codec.pack(raw, Codec.ZSTD_DICTIONARY, 7)
    assert packed[:2] == (Codec.ZSTD_DICTIONARY, 7)
    assert len(packed[2]) < len(codec.pack(raw)[2])
    assert codec.unpack(_batch(packed)) == raw
    # Negative control: another dictionary, or none, cannot read it.
    with pytest.raises(UnknownDictionaryError) as caught:
        BodyCodec().unpack(_batch(packed))
    assert caught.value.code == ErrorCode.UNKNOWN_DICTIONARY
    other = train_dictionary((_sample(number) for number in range(500, 900)), 4096)
    with pytest.raises(InputError):
        BodyCodec({7: other}).unpack(_batch(packed))


@pytest.mark.parametrize("number", [0, -1])
def test_a_dictionary_needs_an_id(number: int, dictionary: bytes) -> None:
    with pytest.raises(InputError, match="at least 1"):
        BodyCodec({number: dictionary})


def test_bad_dictionaries_and_samples_are_refused() -> None:
    with pytest.raises(InputError, match="dictionary"):
        BodyCodec({1: b"no dictionary"})
    with pytest.raises(InputError, match="samples"):
        train_dictionary([b"a", b"b"])
    with pytest.raises(UnknownDictionaryError):
        BodyCodec().pack(b"x" * 100, Codec.ZSTD_DICTIONARY, 9)


def test_both_ends_agree_on_the_best_common_codec(dictionary: bytes) -> None:
    codec = BodyCodec({1: dictionary, 4: dictionary})
    assert codec.dictionaries == [1, 4]
    assert codec.choose([0, 1, 2], [1, 4, 9]) == (Codec.ZSTD_DICTIONARY, 4)
    assert codec.choose([0, 1, 2], [9]) == (Codec.ZSTD, 0)
    assert codec.choose([0, 1], [4]) == (Codec.ZSTD, 0)
    assert codec.choose([0], []) == (Codec.RAW, 0)


def test_a_zip_bomb_stops_at_the_limit() -> None:
    bomb = zstd.compress(bytes(256 * 1024 * 1024), 3)
    assert len(bomb) < 100_000
    tracemalloc.start()
    with pytest.raises(LimitError, match="inflates past"):
        BodyCodec().unpack(_batch((Codec.ZSTD, 0, bomb)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * inflated_limit()


def test_a_window_larger_than_the_limit_is_refused() -> None:
    options = {
        zstd.CompressionParameter.window_log: 27,
        zstd.CompressionParameter.content_size_flag: 0,
    }
    compressor = zstd.ZstdCompressor(options=options)
    body = compressor.compress(b"small " * 50) + compressor.flush()
    assert zstd.decompress(body) == b"small " * 50  # honest otherwise
    with pytest.raises(InputError, match="inflate"):
        BodyCodec().unpack(_batch((Codec.ZSTD, 0, body)))


def test_the_limits_are_exact() -> None:
    limits = WireLimits(frame=1024)
    codec = BodyCodec(limits=limits)
    edge = bytes(INFLATION * 1024)
    assert codec.unpack(_batch(codec.pack(edge))) == edge
    with pytest.raises(LimitError):
        codec.pack(edge + b"\0")
    with pytest.raises(LimitError):
        codec.unpack(_batch((Codec.ZSTD, 0, zstd.compress(edge + b"\0"))))
    with pytest.raises(LimitError):
        codec.unpack(_batch((Codec.RAW, 0, edge + b"\0")))
    with pytest.raises(LimitError, match="frame"):
        codec.pack(os.urandom(1024))


def test_damage_is_told_apart() -> None:
    body = zstd.compress(b"a batch " * 200)
    codec = BodyCodec()
    for hostile, message in (
        (body[:-3], "truncated"),
        (b"", "truncated"),
        (body + b"more", "after the end"),
        (b"\0" * 50, "inflate"),
    ):
        with pytest.raises(InputError, match=message):
            codec.unpack(_batch((Codec.ZSTD, 0, hostile)))
    with pytest.raises(InputError, match="codec"):
        codec.unpack(_batch((9, 0, body)))


@settings(max_examples=300)
@given(noise=st.binary(max_size=300), codec=st.integers(0, 3), flip=st.integers(0, 60))
def test_hostile_bodies_only_raise_input_errors(noise: bytes, codec: int, flip: int) -> None:
    honest = bytearray(zstd.compress(b"abcdefgh" * 40))
    honest[flip % len(honest)] ^= 0xFF
    for body in (noise, bytes(honest)):
        with contextlib.suppress(InputError):
            BodyCodec().unpack(_batch((codec, 1, body)))
