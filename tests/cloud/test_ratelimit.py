"""Token buckets against the plain statement of what they allow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.cloud.ratelimit import KeyedBuckets, TokenBucket
from shoal.core.errors import InputError


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@given(
    rate=st.floats(0.1, 50),
    burst=st.integers(1, 20),
    gaps=st.lists(st.floats(0, 2), min_size=1, max_size=100),
)
def test_never_more_than_burst_plus_rate_times_time(
    rate: float, burst: int, gaps: list[float]
) -> None:
    clock = _Clock()
    bucket = TokenBucket(rate, burst, clock=clock)
    taken = []
    for gap in gaps:
        clock.now += gap
        wait = bucket.take()
        if wait == 0:
            taken.append(clock.now)
        else:
            clock.now += wait + 1e-9  # what it promised is there
            assert bucket.take() == 0
            taken.append(clock.now)
    for start in range(len(taken)):
        span = taken[-1] - taken[start]
        assert len(taken) - start <= burst + rate * span + 1e-6


def test_zero_allows_everything_and_negative_is_refused() -> None:
    bucket = TokenBucket(0)
    assert all(bucket.take() == 0 for _ in range(1000))
    with pytest.raises(InputError):
        TokenBucket(-1)


def test_keys_are_apart_and_the_oldest_is_forgotten() -> None:
    clock = _Clock()
    buckets = KeyedBuckets(1, 1, capacity=2, clock=clock)
    assert buckets.take("a") == 0 and buckets.take("b") == 0
    assert buckets.take("a") > 0
    assert buckets.take("c") == 0  # forgets b, the least recently used
    assert buckets.take("a") > 0
    assert buckets.take("b") == 0
