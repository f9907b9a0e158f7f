"""The one table of error codes: HTTP problem bodies, NACK frames and run outcomes share it."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["HTTP_STATUS", "ErrorCode"]


class ErrorCode(IntEnum):
    """What went wrong, as a number both ends know. 0 is "fine"."""

    OK = 0
    # 1xx: the protocol
    BAD_FRAME = 100
    UNSUPPORTED_PROTOCOL = 101
    TOO_LARGE = 102
    UNAUTHENTICATED = 103
    DEVICE_REVOKED = 104
    CLOCK_SKEW = 105
    RATE_LIMITED = 106
    WINDOW_EXCEEDED = 107
    UNKNOWN_DICTIONARY = 108
    SCHEMA_MISMATCH = 109
    STALE_EPOCH = 110
    # 2xx: the package
    UNKNOWN_TASK = 200
    SIGNATURE_INVALID = 201
    METADATA_EXPIRED = 202
    ROLLBACK_REFUSED = 203
    HASH_MISMATCH = 204
    SIZE_EXCEEDED = 205
    INCOMPATIBLE = 206
    DISK_FULL = 207
    NOT_ENTITLED = 208
    QUARANTINED = 209
    BELOW_FLOOR = 210
    DOWNLOAD_FAILED = 211
    # 3xx: the run
    DEADLINE = 300
    MEMORY = 301
    EXCEPTION = 302
    VM_CRASHED = 303
    IMPORT_REFUSED = 304
    SANDBOX_VIOLATION = 305
    OUTPUT_TOO_LARGE = 306
    ENGINE_ERROR = 307
    CIRCUIT_OPEN = 308
    CANCELLED = 309
    MODEL_VERSION_SKEW = 310
    NO_REPORT = 399


#: HTTP status of a problem document for each code that can reach HTTP.
HTTP_STATUS: dict[ErrorCode, int] = {
    ErrorCode.BAD_FRAME: 400,
    ErrorCode.UNSUPPORTED_PROTOCOL: 426,
    ErrorCode.TOO_LARGE: 413,
    ErrorCode.UNAUTHENTICATED: 401,
    ErrorCode.DEVICE_REVOKED: 403,
    ErrorCode.CLOCK_SKEW: 400,
    ErrorCode.RATE_LIMITED: 429,
    ErrorCode.WINDOW_EXCEEDED: 429,
    ErrorCode.UNKNOWN_DICTIONARY: 422,
    ErrorCode.SCHEMA_MISMATCH: 422,
    ErrorCode.STALE_EPOCH: 410,
    ErrorCode.UNKNOWN_TASK: 404,
    ErrorCode.NOT_ENTITLED: 403,
    ErrorCode.SIZE_EXCEEDED: 413,
}
