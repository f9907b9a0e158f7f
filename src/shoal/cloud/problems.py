"""Refusals that a device is told about: an error code, a status and a hint.

Bodies are RFC 9457 problem documents; the codes are those of ``wire.codes``,
the same that NACK frames and run outcomes use (Walle sheet 6.7).
"""

from __future__ import annotations

import logging
import math

import msgspec
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from shoal.core.errors import InputError, LimitError, NotFoundError, ShoalError
from shoal.wire.codes import HTTP_STATUS, ErrorCode

__all__ = ["PROBLEM_TYPE", "Problem", "ProblemDocument", "problem_of"]

#: Media type of problem documents.
PROBLEM_TYPE = "application/problem+json"

_log = logging.getLogger(__name__)


class ProblemDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The body of an error answer (RFC 9457), with ``code`` and ``hint`` added."""

    title: str
    status: int
    detail: str
    code: int
    hint: str = ""
    type: str = "about:blank"


class Problem(ShoalError):  # noqa: N818 - the RFC's own word
    """A request is refused; the gateway turns it into a problem document.

    Parameters
    ----------
    code : ErrorCode
        What is wrong.
    message : str
        In one line.
    hint : str, optional
        What the caller can do.
    status : int, optional
        HTTP status; that of the code if absent.
    retry_after_s : float, optional
        Seconds after which the caller may come back.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        hint: str | None = None,
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.status = HTTP_STATUS.get(code, 400) if status is None else status
        self.retry_after_s = retry_after_s

    def body(self) -> bytes:
        """Return the problem document in JSON."""
        return msgspec.json.encode(
            ProblemDocument(
                title=self.code.name.lower(),
                status=self.status,
                detail=self.message,
                code=int(self.code),
                hint=self.hint or "",
            )
        )

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers of the answer, ``Retry-After`` in whole seconds included."""
        headers = [(b"content-type", PROBLEM_TYPE.encode())]
        if self.retry_after_s is not None:
            headers.append((b"retry-after", str(max(1, math.ceil(self.retry_after_s))).encode()))
        return headers


def problem_of(error: Exception) -> Problem:
    """Turn whatever stopped a request into what its sender is told.

    An error may name its code in an attribute ``wire_code``. What shoal did not
    raise on purpose is logged: the store or a disk that is away (503), or a defect
    (500), of which the sender learns nothing more.
    """
    if isinstance(error, Problem):
        return error
    if isinstance(error, ShoalError) and hasattr(error, "wire_code"):
        return Problem(error.wire_code, error.message, hint=error.hint)
    if isinstance(error, LimitError):
        return Problem(ErrorCode.TOO_LARGE, error.message, hint=error.hint)
    if isinstance(error, InputError):
        return Problem(ErrorCode.BAD_FRAME, error.message, hint=error.hint)
    if isinstance(error, NotFoundError):
        return Problem(ErrorCode.UNKNOWN_TASK, error.message, hint=error.hint)
    if isinstance(error, (msgspec.DecodeError, UnicodeDecodeError, RecursionError)):
        return Problem(ErrorCode.SCHEMA_MISMATCH, f"the body does not decode: {error}"[:300])
    if isinstance(error, ShoalError):
        return Problem(ErrorCode.BAD_FRAME, error.message, hint=error.hint, status=409)
    if isinstance(error, (OperationalError, PoolTimeoutError, OSError)):
        _log.exception("a request failed on the store or the disk")
        return Problem(
            ErrorCode.RATE_LIMITED,
            "the store is away for the moment",
            status=503,
            retry_after_s=5.0,
            hint="come back later",
        )
    _log.exception("a request failed on a defect")
    return Problem(ErrorCode.BAD_FRAME, "internal error", status=500)
