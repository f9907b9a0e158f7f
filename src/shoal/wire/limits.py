"""Limits that are checked before anything is decoded."""

from __future__ import annotations

import msgspec

__all__ = ["DEFAULT_LIMITS", "WireLimits"]


class WireLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes in bytes unless the name says otherwise."""

    header: int = 256
    notice: int = 64 * 1024
    frame: int = 256 * 1024
    frame_target: int = 30 * 1024
    event_content: int = 8 * 1024
    event_depth: int = 4
    package: int = 100 * 1024 * 1024
    package_members: int = 4096
    resource: int = 2 * 1024 * 1024 * 1024
    string: int = 1024
    nesting: int = 16
    metadata: int = 2 * 1024 * 1024


#: The limits that both ends use unless a setting says otherwise.
DEFAULT_LIMITS = WireLimits()
