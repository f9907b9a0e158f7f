"""Percentage buckets: the same device always falls into the same bucket of a release.

The hash is murmur3, as in the feature-flag systems of the field (Unleash,
Firebase), so that flags and releases can share buckets. It must never change:
another hash would move devices between the arms of running releases.
"""

from __future__ import annotations

import mmh3

__all__ = ["BUCKETS", "bucket", "bucket_of_bytes"]

#: Number of buckets; a release threshold counts in these (10,000 = everyone).
BUCKETS = 10_000


def bucket(salt: str, device: str) -> int:
    """Return ``murmur3_32(salt ":" device) mod 10,000``.

    Parameters
    ----------
    salt : str
        The release's salt.
    device : str
        The device id as lower-case hex.

    Returns
    -------
    int
        In ``[0, 10,000)``. A device is in a gray step with threshold ``t`` iff
        its bucket is below ``t``, so steps are monotone by construction.
    """
    return bucket_of_bytes(f"{salt}:{device}".encode())


def bucket_of_bytes(key: bytes) -> int:
    """Return the bucket of an already joined ``salt:device`` key (the hot path)."""
    return int(mmh3.hash(key, 0, signed=False)) % BUCKETS
