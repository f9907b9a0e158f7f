"""Keys, and the director's signed statement of what a group of devices should hold.

The director is the online half of the two signatures that a device wants to see
before it installs anything (Walle sheet 6.5, after Uptane): it says *which*
version; the image repository (TUF, :mod:`shoal.cloud.images`) says which bytes
that version is. One statement is signed per (cohort set, mask), so all devices
of a group share it and a cache may keep it.

The signature covers a domain label and the exact bytes of the statement, which
travel unchanged, so nothing depends on re-encoding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey as PrivateKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PublicKey as PublicKey,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from shoal.core.errors import InputError, IntegrityError, NotFoundError
from shoal.core.files import write_bytes
from shoal.wire.codes import ErrorCode
from shoal.wire.limits import DEFAULT_LIMITS, WireLimits
from shoal.wire.notices import DesiredTask

__all__ = [
    "DirectorStatement",
    "PrivateKey",
    "PublicKey",
    "Signature",
    "SignatureError",
    "SignedStatement",
    "generate_key",
    "key_id",
    "load_key",
    "public_bytes",
    "save_key",
    "sign_statement",
    "verify_statement",
]

_DOMAIN = b"shoal-director-1\0"

#: Statement schema that this release writes.
STATEMENT_SCHEMA = 1


class SignatureError(IntegrityError):
    """A signed message is not acceptable; ``code`` says why.

    ``SIGNATURE_INVALID``, ``METADATA_EXPIRED``, ``SIZE_EXCEEDED`` or
    ``SCHEMA_MISMATCH``.
    """

    def __init__(self, message: str, code: ErrorCode, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = code


class DirectorStatement(msgspec.Struct, frozen=True, kw_only=True):
    """What the devices of (cohort set, mask) should hold.

    Attributes
    ----------
    schema : int
        1.
    epoch : int
        Global epoch of the cohort set's last change; for one cohort set it
        never goes back.
    cohort, mask : int
        Whom it speaks to.
    expires_us : int
        Microseconds since 1970 (UTC).
    tasks : list of DesiredTask
        The complete desired set.
    """

    schema: int = STATEMENT_SCHEMA
    epoch: int
    cohort: int
    mask: int
    expires_us: int
    tasks: list[DesiredTask] = []


class Signature(msgspec.Struct, frozen=True, array_like=True):
    """One ed25519 signature (64 bytes) and the id of the key that made it."""

    key_id: str
    signature: bytes


class SignedStatement(msgspec.Struct, frozen=True, array_like=True):
    """The bytes of a :class:`DirectorStatement` and who signed them."""

    schema: int
    payload: bytes
    signatures: list[Signature]


_ENCODER = msgspec.msgpack.Encoder(order="deterministic")
_SIGNED = msgspec.msgpack.Decoder(SignedStatement)
_STATEMENT = msgspec.msgpack.Decoder(DirectorStatement)
#: Signatures looked at in one statement; more are refused, not skipped.
_MOST_SIGNATURES = 8


def generate_key() -> PrivateKey:
    """Return a new ed25519 private key."""
    return PrivateKey.generate()


def public_bytes(key: PrivateKey | PublicKey) -> bytes:
    """Return the raw public key, 32 bytes."""
    public = key.public_key() if isinstance(key, PrivateKey) else key
    return public.public_bytes(Encoding.Raw, PublicFormat.Raw)


def key_id(key: PrivateKey | PublicKey | bytes) -> str:
    """Return the id of a key: the first 32 hex digits of SHA-256 of its public bytes."""
    raw = key if isinstance(key, bytes) else public_bytes(key)
    return hashlib.sha256(raw).hexdigest()[:32]


def save_key(key: PrivateKey, path: str | Path) -> None:
    """Write a private key as PEM (PKCS#8), readable by its owner only."""
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_bytes(path, pem, mode=0o600)


def load_key(path: str | Path) -> PrivateKey:
    """Read a private key that :func:`save_key` wrote.

    Raises
    ------
    NotFoundError
        There is no such file.
    InputError
        It is not an ed25519 private key in PEM.
    """
    file = Path(path)
    try:
        key = load_pem_private_key(file.read_bytes(), None)
    except FileNotFoundError:
        raise NotFoundError(f"no key file {file.name}") from None
    except (ValueError, TypeError) as error:
        raise InputError("not a PEM private key", source=file.name) from error
    if not isinstance(key, PrivateKey):
        raise InputError("not an ed25519 key", source=file.name)
    return key


def sign_statement(statement: DirectorStatement, key: PrivateKey) -> bytes:
    """Return the signed statement, ready for ``ReleaseNotice.director``."""
    payload = _ENCODER.encode(statement)
    signature = Signature(key_id(key), key.sign(_DOMAIN + payload))
    return _ENCODER.encode(SignedStatement(STATEMENT_SCHEMA, payload, [signature]))


def verify_statement(
    data: bytes,
    keys: Iterable[PublicKey | bytes],
    now_us: int,
    *,
    limits: WireLimits = DEFAULT_LIMITS,
) -> DirectorStatement:
    """Check and read a signed statement.

    Parameters
    ----------
    data : bytes
        What :func:`sign_statement` returned.
    keys : iterable of PublicKey or bytes
        The director's keys that are in force (raw public keys have 32 bytes);
        one valid signature by any of them is enough.
    now_us : int
        The estimated server time, microseconds since 1970 (UTC).

    Returns
    -------
    DirectorStatement

    Raises
    ------
    SignatureError
        With ``code`` ``SIZE_EXCEEDED``, ``SIGNATURE_INVALID`` (malformed, or no
        signature by a known key), ``SCHEMA_MISMATCH`` or ``METADATA_EXPIRED``.
        Nothing of the content is looked at before the signature holds.
    """
    if len(data) > limits.notice:
        raise SignatureError(
            f"director metadata of {len(data)} bytes exceeds {limits.notice}",
            ErrorCode.SIZE_EXCEEDED,
        )
    try:
        signed = _SIGNED.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SignatureError(
            f"director metadata does not decode: {error}", ErrorCode.SIGNATURE_INVALID
        ) from error
    if signed.schema != STATEMENT_SCHEMA:
        raise SignatureError(
            f"director metadata has schema {signed.schema}", ErrorCode.SCHEMA_MISMATCH
        )
    if not _signed_by_any(signed, keys):
        raise SignatureError(
            "director metadata has no valid signature of a known key",
            ErrorCode.SIGNATURE_INVALID,
        )
    try:
        statement = _STATEMENT.decode(signed.payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SignatureError(
            f"director statement does not decode: {error}", ErrorCode.SCHEMA_MISMATCH
        ) from error
    if statement.schema < 1:
        raise SignatureError(
            f"director statement has schema {statement.schema}", ErrorCode.SCHEMA_MISMATCH
        )
    if statement.expires_us <= now_us:
        raise SignatureError("director metadata has expired", ErrorCode.METADATA_EXPIRED)
    return statement


def _signed_by_any(signed: SignedStatement, keys: Iterable[PublicKey | bytes]) -> bool:
    if len(signed.signatures) > _MOST_SIGNATURES:
        return False
    known = {
        key_id(key): PublicKey.from_public_bytes(key) if isinstance(key, bytes) else key
        for key in keys
    }
    for signature in signed.signatures:
        key = known.get(signature.key_id)
        if key is None:
            continue
        try:
            key.verify(signature.signature, _DOMAIN + signed.payload)
        except InvalidSignature:
            continue
        return True
    return False
