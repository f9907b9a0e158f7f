"""Optimistic locking over HTTP: ``ETag`` on the way out, ``If-Match`` on the way in."""

from __future__ import annotations

import re

from shoal.core.errors import ConflictError, InputError

__all__ = ["PreconditionError", "expected_version"]

_ETAG = re.compile(r'(?:W/)?"(\d{1,18})"|(\d{1,18})')


class PreconditionError(ConflictError):
    """``If-Match`` names an older state: someone else was faster (status 412)."""


def expected_version(if_match: str | None) -> int | None:
    """Read an ``If-Match`` header; ``None`` for none and for ``*``.

    Raises
    ------
    InputError
        It is not an ETag of ours.
    """
    if if_match is None or if_match.strip() == "*":
        return None
    match = _ETAG.fullmatch(if_match.strip())
    if match is None:
        raise InputError("expected an ETag", field="If-Match", value=if_match)
    return int(match.group(1) or match.group(2))
