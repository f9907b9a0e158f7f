"""Enrolment and profile: how a device gets, keeps and renews its token.

The whole conversation of a device with the gateway (Walle sheet A.5):

1. ``POST /v1/d/enrol`` with :class:`EnrolRequest` -> :class:`EnrolReply`.
2. ``GET /v1/d/check`` (or any business request) with the headers
   ``Shoal-Profile`` and ``Shoal-Device`` -> 204, or ``Shoal-Notice: e.c.m``.
   The address ``0.0.0`` means: "I do not know your cohort, send the profile".
3. ``POST /v1/d/profile`` with a ``TaskProfile`` -> :class:`ProfileReply`.
4. ``GET /v1/d/notices/e.c.m`` **with** ``Shoal-Device`` -> ``ReleaseNotice``.
   403/208: not this device's notice; 410/110: check again, it has moved on.
5. ``GET /v1/d/files/<sha256 hex>`` (Range) -> bytes; exclusive files only by
   ``GET /v1/d/exclusive/<task>/<version>``.

Bodies are msgpack (:data:`MEDIA_TYPE`). Errors are RFC 9457 problem documents
in JSON with ``code`` (an ``ErrorCode``) and ``hint``. A token that is expired,
or from keys the cloud no longer has, gives 401/103: enrol again, with an empty
enrolment token, the same key and a ``ts_us`` above the last one.

The digest in ``Shoal-Profile`` is over the settled pairs of the last notice:
every desired task with ``version > 0`` that is installed, or refused and
reported. A device that never saw a notice sends the digest of no pairs.
"""

from __future__ import annotations

import msgspec

from shoal.wire.profile import TaskProfile

__all__ = [
    "MEDIA_TYPE",
    "EnrolReply",
    "EnrolRequest",
    "ExclusiveGrant",
    "ProfileReply",
    "enrolment_message",
]

#: Media type of msgpack bodies between device and cloud.
MEDIA_TYPE = "application/vnd.shoal.v1+msgpack"


class EnrolRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A device asks to be known.

    Attributes
    ----------
    token : str
        The operator's one-time token; empty where enrolment is open, or when a
        known device renews its token with the key it enrolled with.
    public_key : bytes
        Raw ed25519 public key, 32 bytes.
    profile : TaskProfile
        ``profile.device`` is the 16-byte id that the device chose.
    proof : bytes
        ed25519 signature (64 bytes) over :func:`enrolment_message`.
    ts_us : int
        The device's estimate of the server's time, microseconds since 1970
        (UTC). It must rise from one enrolment of a device to the next, so that
        a recorded request cannot be replayed.
    """

    token: str = ""
    public_key: bytes
    profile: TaskProfile
    proof: bytes
    ts_us: int = 0


class EnrolReply(msgspec.Struct, frozen=True, kw_only=True):
    """The cloud knows the device now.

    ``root`` holds the trusted TUF root metadata that the device pins; empty if
    the cloud keeps no image repository.
    """

    device: bytes
    token: str
    cohort: int
    epoch: int
    root: bytes
    server_time_us: int


class ProfileReply(msgspec.Struct, frozen=True, kw_only=True):
    """A new token that names the device's cohort set, and the notice to pull, if any."""

    token: str
    cohort: int
    epoch: int
    notice: str | None
    server_time_us: int


class ExclusiveGrant(msgspec.Struct, frozen=True, kw_only=True):
    """The files of one device alone, beside a task version's shared ones.

    Attributes
    ----------
    director : bytes
        Signed ``DirectorStatement`` with one task, ``exclusive``; the paths of its
        resources begin with the device id in hex and a slash, and a device refuses
        a statement whose paths begin otherwise.
    urls : dict
        Where to fetch each file, by SHA-256 in hex; ``Shoal-Device`` is needed.
    """

    director: bytes
    urls: dict[str, str]


def enrolment_message(token: str, public_key: bytes, device: bytes, ts_us: int) -> bytes:
    """Return the bytes that a device signs with its private key to enrol.

    The fields are length-prefixed, so no two requests share a message.

    Parameters
    ----------
    token : str
        As in :class:`EnrolRequest`.
    public_key : bytes
        Raw ed25519 public key.
    device : bytes
        Device id, 16 bytes.
    ts_us : int
        As in :class:`EnrolRequest`; not negative.
    """
    parts = (token.encode(), public_key, device, ts_us.to_bytes(8, "big"))
    return b"shoal-enrol-1\0" + b"".join(len(part).to_bytes(2, "big") + part for part in parts)
