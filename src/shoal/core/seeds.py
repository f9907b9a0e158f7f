"""Counter-based randomness: the same key gives the same bits in any order.

A Philox generator is addressed by (seed, stream, counter) instead of being
advanced, so neither the number of workers nor the order of their work changes
what a device, a run or an event draws (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", SC 2011).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["derive_seed", "philox"]


def derive_seed(seed: int, *names: str | int | bytes) -> int:
    """Return a 64-bit seed for the stream called ``names`` below ``seed``.

    Parameters
    ----------
    seed : int
        The user's seed; any integer.
    *names : str, int or bytes
        What the stream is for, from general to special.

    Returns
    -------
    int
        In ``[0, 2**64)``. Different names give independent streams.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in (seed, *names):
        raw = part if isinstance(part, bytes) else str(part).encode()
        digest.update(type(part).__name__[:1].encode() + len(raw).to_bytes(4, "big") + raw)
    return int.from_bytes(digest.digest(), "big")


def philox(seed: int, *names: str | int | bytes) -> np.random.Generator:
    """Return a NumPy generator on the Philox stream ``names`` of ``seed``."""
    import numpy as np  # noqa: PLC0415 - devices without numpy still import this module

    return np.random.Generator(np.random.Philox(key=derive_seed(seed, *names)))
