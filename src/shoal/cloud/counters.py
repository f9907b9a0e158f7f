"""Random numbers addressed by (seed, stream, device, event), many at a time.

Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011) over arrays: what a device draws depends on nothing but its own numbers,
so neither the order of events nor the number of workers changes a simulation.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shoal.core.seeds import derive_seed

__all__ = ["CounterRandom", "philox4x32"]

_M0: Final = np.uint64(0xD2511F53)
_M1: Final = np.uint64(0xCD9E8D57)
_W0: Final = 0x9E3779B9
_W1: Final = 0xBB67AE85
_LOW: Final = np.uint64(0xFFFFFFFF)
_HALF: Final = np.uint64(32)

Words = NDArray[np.uint64]


def philox4x32(
    counter: tuple[Words, Words, Words, Words], key: tuple[int, int]
) -> tuple[Words, Words, Words, Words]:
    """Return four random 32-bit words (as uint64) for each counter, after ten rounds.

    Parameters
    ----------
    counter : four arrays of uint64
        Values below 2**32; they broadcast.
    key : two ints
        Below 2**32.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        first, second = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (
            (second >> _HALF) ^ c1 ^ np.uint64(k0),
            second & _LOW,
            (first >> _HALF) ^ c3 ^ np.uint64(k1),
            first & _LOW,
        )
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return c0, c1, c2, c3


class CounterRandom:
    """Uniform numbers of one stream below a seed.

    Parameters
    ----------
    seed : int
    *names : str or int
        What the stream is for.
    """

    def __init__(self, seed: int, *names: str | int) -> None:
        value = derive_seed(seed, *names)
        self._key = (value & 0xFFFFFFFF, value >> 32)

    def words(self, device: ArrayLike, event: ArrayLike = 0) -> tuple[Words, Words, Words, Words]:
        """Return four 32-bit words for each (device, event)."""
        d = np.asarray(device, dtype=np.uint64)
        e = np.asarray(event, dtype=np.uint64)
        d, e = np.broadcast_arrays(d, e)
        return philox4x32((d & _LOW, d >> _HALF, e & _LOW, e >> _HALF), self._key)

    def uniform(self, device: ArrayLike, event: ArrayLike = 0) -> NDArray[np.float64]:
        """Return one number in (0, 1) for each (device, event), with 52 random bits."""
        first, second, _, _ = self.words(device, event)
        bits = ((first << np.uint64(20)) | (second >> np.uint64(12))).astype(np.float64)
        return np.asarray((bits + 0.5) * 2.0**-52)

    def two(
        self, device: ArrayLike, event: ArrayLike = 0
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return two independent numbers in (0, 1), with 52 and 32 random bits."""
        first, second, third, _ = self.words(device, event)
        bits = ((first << np.uint64(20)) | (second >> np.uint64(12))).astype(np.float64)
        return (bits + 0.5) * 2.0**-52, (third.astype(np.float64) + 0.5) * 2.0**-32
