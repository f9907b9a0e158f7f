"""Buckets: the reference hash, uniform, monotone, and independent from release to release."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from shoal.wire.buckets import BUCKETS, bucket, bucket_of_bytes


def murmur3_32(data: bytes, seed: int = 0) -> int:
    """Return MurmurHash3_x86_32 (Austin Appleby, public domain), written out as the oracle."""
    h, mask = seed, 0xFFFFFFFF

    def mixed(k: int) -> int:
        k = k * 0xCC9E2D51 & mask
        k = (k << 15 | k >> 17) & mask
        return k * 0x1B873593 & mask

    whole = len(data) // 4 * 4
    for start in range(0, whole, 4):
        h ^= mixed(int.from_bytes(data[start : start + 4], "little"))
        h = (h << 13 | h >> 19) & mask
        h = (h * 5 + 0xE6546B64) & mask
    if tail := data[whole:]:
        h ^= mixed(int.from_bytes(tail, "little"))
    h ^= len(data)
    h ^= h >> 16
    h = h * 0x85EBCA6B & mask
    h ^= h >> 13
    h = h * 0xC2B2AE35 & mask
    return h ^ h >> 16


# Published test values of MurmurHash3_x86_32.
REFERENCE = [
    (b"", 0, 0),
    (b"", 1, 0x514E28B7),
    (b"", 0xFFFFFFFF, 0x81F16F39),
    (b"\xff\xff\xff\xff", 0, 0x76293B50),
    (b"!Ce\x87", 0, 0xF55B516B),
    (b"!Ce\x87", 0x5082EDEE, 0x2362F9DE),
    (b"!Ce", 0, 0x7E4A8634),
    (b"!C", 0, 0xA0F7B07A),
    (b"!", 0, 0x72661CF4),
    (b"\0\0\0\0", 0, 0x2362F9DE),
    (b"aaaa", 0x9747B28C, 0x5A97808A),
    (b"Hello, world!", 0x9747B28C, 0x24884CBA),
    (b"The quick brown fox jumps over the lazy dog", 0x9747B28C, 0x2FA826CD),
]


@pytest.mark.parametrize(("data", "seed", "expected"), REFERENCE)
def test_the_oracle_is_murmur3(data: bytes, seed: int, expected: int) -> None:
    assert murmur3_32(data, seed) == expected


# Values of the Unleash client specification's hash, (murmur3("group:id") % n) + 1.
@pytest.mark.parametrize(
    ("group", "identity", "size", "expected"),
    [("gr1", "123", 100, 73), ("groupX", "999", 100, 25)],
)
def test_the_hash_of_unleash(group: str, identity: str, size: int, expected: int) -> None:
    assert murmur3_32(f"{group}:{identity}".encode()) % size + 1 == expected


@given(st.text(max_size=40), st.text(max_size=40))
def test_bucket_is_murmur3_of_salt_and_device(salt: str, device: str) -> None:
    key = f"{salt}:{device}".encode(errors="surrogatepass")
    assert bucket_of_bytes(key) == murmur3_32(key) % BUCKETS


def test_uniform_over_a_million_devices() -> None:
    rng = np.random.Generator(np.random.Philox(key=11))
    ids = rng.bytes(16 * 1_000_000)
    counts = np.zeros(BUCKETS, dtype=np.int64)
    for start in range(0, len(ids), 16):
        counts[bucket_of_bytes(b"release-7:" + ids[start : start + 16].hex().encode())] += 1
    assert stats.chisquare(counts).pvalue > 0.001
    # Negative control: the test notices a hash that favours a few buckets by a tenth.
    counts[: BUCKETS // 10] += 10
    assert stats.chisquare(counts).pvalue < 0.001


def test_steps_are_monotone_and_hit_their_share() -> None:
    buckets = [bucket("demo-3", f"{number:032x}") for number in range(20_000)]
    inside: set[int] = set()
    for threshold in (0, 10, 100, 500, 2000, 5000, BUCKETS):
        now = {device for device, place in enumerate(buckets) if place < threshold}
        assert inside <= now
        inside = now
        expected = 20_000 * threshold / BUCKETS
        assert abs(len(now) - expected) <= 5 * (expected + 1) ** 0.5
    assert len(inside) == 20_000


def test_two_releases_expose_independent_devices() -> None:
    devices = [f"{number:032x}" for number in range(20_000)]
    table = np.zeros((2, 2))
    for device in devices:
        table[int(bucket("a", device) < 5000), int(bucket("b", device) < 5000)] += 1
    assert stats.chi2_contingency(table).pvalue > 0.001
    same = np.zeros((2, 2))
    for device in devices:  # negative control: one salt is one draw
        same[int(bucket("a", device) < 5000), int(bucket("a", device) < 5000)] += 1
    assert stats.chi2_contingency(same).pvalue < 0.001
