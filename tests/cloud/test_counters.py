"""Counter-based randomness: published vectors, uniformity, independence of order."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from shoal.cloud.counters import CounterRandom, philox4x32

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers_of_random123(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    words = philox4x32(tuple(np.array([c], dtype=np.uint64) for c in counter), key)  # type: ignore[arg-type]
    assert tuple(int(word[0]) for word in words) == expected


def test_draws_are_uniform_and_streams_differ() -> None:
    index = np.arange(200_000)
    first = CounterRandom(1, "a").uniform(index)
    second = CounterRandom(1, "b").uniform(index)
    assert stats.kstest(first, "uniform").pvalue > 1e-4
    assert ((first > 0) & (first < 1)).all()
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.02
    assert abs(np.corrcoef(*CounterRandom(1, "a").two(index))[0, 1]) < 0.02


def test_a_draw_depends_on_nothing_but_its_own_numbers() -> None:
    random = CounterRandom(7, "gap")
    everyone = random.uniform(np.arange(1_000), np.arange(1_000) % 7)
    shuffled = np.random.default_rng(0).permutation(1_000)
    np.testing.assert_array_equal(random.uniform(shuffled, shuffled % 7), everyone[shuffled])
    assert random.uniform(5, 5) == everyone[5]
    assert random.uniform(5, 6) != everyone[5]
