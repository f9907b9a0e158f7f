"""Release notices: the complete set of tasks that a group of devices should hold."""

from __future__ import annotations

import msgspec

__all__ = [
    "DesiredTask",
    "FileRef",
    "ReleaseNotice",
    "format_notice_address",
    "parse_notice_address",
]

from shoal.core.errors import InputError


class FileRef(msgspec.Struct, frozen=True, kw_only=True):
    """A file by content: SHA-256, size in bytes and where it belongs."""

    sha256: bytes
    size: int
    path: str
    scope: str = "shared"  # "shared" (CDN) or "exclusive" (one device)
    encoding: str = "identity"  # "identity" or "zstd" for the transport
    delta_from: bytes | None = None


class DesiredTask(msgspec.Struct, frozen=True, kw_only=True):
    """One task that the device should hold; ``version`` 0 means: hold none."""

    task: str
    version: int
    package: FileRef
    resources: list[FileRef] = []
    priority: int = 100
    not_before_us: int = 0
    exclusive: bool = False
    force: bool = False


class ReleaseNotice(msgspec.Struct, frozen=True, kw_only=True):
    """The complete desired set of one (cohort set, mask).

    It is idempotent: a lost notice costs nothing, and every device of the
    same cohort set and mask gets the same bytes, so a CDN may cache it.
    ``director`` holds the director's signed metadata, which is what counts;
    the clear fields beside it only say where to look.
    """

    schema: int = 1
    epoch: int
    cohort: int
    mask: int
    expires_us: int
    director: bytes
    tasks: list[DesiredTask] = []
    urls: dict[str, list[str]] = {}
    jitter_s: float = 0.0
    retry_after_s: float = 0.0


def format_notice_address(epoch: int, cohort: int, mask: int) -> str:
    """Write the address ``<epoch>.<cohort>.<mask>`` of a notice."""
    return f"{epoch}.{cohort}.{mask}"


def parse_notice_address(text: str) -> tuple[int, int, int]:
    """Read ``<epoch>.<cohort>.<mask>``; raises :class:`InputError` if it is not that."""
    try:
        epoch, cohort, mask = (int(part) for part in text.split("."))
    except ValueError:
        raise InputError("expected epoch.cohort.mask", field="notice", value=text) from None
    if min(epoch, cohort, mask) < 0:
        raise InputError("must not be negative", field="notice", value=text)
    return epoch, cohort, mask
