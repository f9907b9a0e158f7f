"""The task profile of a device, and the short digest that stands for it in a header."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from typing import Any

import msgspec

from shoal.core.errors import InputError, LimitError
from shoal.wire.limits import DEFAULT_LIMITS, WireLimits

__all__ = [
    "DEVICE_HEADER",
    "NOTICE_HEADER",
    "PROFILE_HEADER",
    "PROTOCOL",
    "HeldTask",
    "ProfileHeader",
    "TaskProfile",
    "format_profile_header",
    "parse_profile_header",
    "profile_digest",
]

#: Protocol number that this release speaks; the one before is understood too.
PROTOCOL = 1

PROFILE_HEADER = "Shoal-Profile"
DEVICE_HEADER = "Shoal-Device"
NOTICE_HEADER = "Shoal-Notice"

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


class HeldTask(msgspec.Struct, frozen=True, array_like=True):
    """One task of a device's settled set and its state."""

    task: str
    version: int
    state: str


class TaskProfile(msgspec.Struct, frozen=True, kw_only=True):
    """What a device is and holds; sent in full only when the digest does not match.

    ``attributes`` has the maps ``app``, ``device`` and ``user`` that cohort
    predicates speak about.
    """

    schema: int = 1
    device: bytes
    agent: str
    protocol: int = PROTOCOL
    python: str = ""
    platform: str = ""
    engines: dict[str, str] = {}
    capabilities: list[str] = []
    attributes: dict[str, dict[str, Any]] = {}
    held: list[HeldTask] = []
    disk_free_mb: int = 0
    sandbox_level: int = 0


def profile_digest(pairs: Iterable[tuple[str, int]]) -> str:
    """Return the digest of a settled set of (task, version) pairs.

    BLAKE2b-128 over the pairs sorted by name, each as big-endian u16 length,
    UTF-8 name, big-endian u64 version (Walle sheet 6.3), written as 22
    characters of unpadded URL-safe base64.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, version in sorted(pairs):
        raw = name.encode()
        digest.update(len(raw).to_bytes(2, "big") + raw + version.to_bytes(8, "big"))
    return base64.urlsafe_b64encode(digest.digest())[:22].decode()


def _base36(number: int) -> str:
    if number == 0:
        return "0"
    digits = []
    while number:
        number, rest = divmod(number, 36)
        digits.append(_DIGITS[rest])
    return "".join(reversed(digits))


class ProfileHeader(msgspec.Struct, frozen=True):
    """The parsed ``Shoal-Profile`` header: ``1.<epoch>.<cohort>.<digest>``."""

    protocol: int
    epoch: int
    cohort: int
    digest: str


def format_profile_header(epoch: int, cohort: int, digest: str) -> str:
    """Write the ``Shoal-Profile`` header (about 45 bytes at any number of tasks)."""
    return f"{PROTOCOL}.{_base36(epoch)}.{_base36(cohort)}.{digest}"


def parse_profile_header(text: str, limits: WireLimits = DEFAULT_LIMITS) -> ProfileHeader:
    """Read a ``Shoal-Profile`` header.

    Raises
    ------
    LimitError
        The header is longer than ``limits.header``.
    InputError
        It does not have the form ``protocol.epoch.cohort.digest``.
    """
    if len(text) > limits.header:
        raise LimitError("header too long", field=PROFILE_HEADER, value=len(text))
    parts = text.split(".")
    try:
        protocol, epoch, cohort, digest = parts
        header = ProfileHeader(int(protocol), int(epoch, 36), int(cohort, 36), digest)
    except ValueError:
        raise InputError(
            "expected protocol.epoch.cohort.digest", field=PROFILE_HEADER, value=text
        ) from None
    if header.epoch < 0 or header.cohort < 0 or len(digest) != 22:
        raise InputError("field out of range", field=PROFILE_HEADER, value=text)
    return header
