"""Signatures of registry tags, in the form that git itself verifies.

A tag is signed with ed25519 in OpenSSH's SSHSIG format (PROTOCOL.sshsig of
OpenSSH, namespace ``git``), so that ``git verify-tag`` with an allowed-signers
file accepts what the registry signed, and nobody needs our code to check it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct

from cryptography.exceptions import InvalidSignature

from shoal.wire.signing import PrivateKey, PublicKey, public_bytes

__all__ = ["allowed_signer", "sign_tag", "verify_tag"]

_MAGIC = b"SSHSIG"
_NAMESPACE = b"git"
_HASH = b"sha512"
_KIND = b"ssh-ed25519"
_BEGIN = b"-----BEGIN SSH SIGNATURE-----"
_END = b"-----END SSH SIGNATURE-----"


def _string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _signed_data(payload: bytes) -> bytes:
    parts = (_NAMESPACE, b"", _HASH, hashlib.sha512(payload).digest())
    return _MAGIC + b"".join(_string(part) for part in parts)


def _public_blob(raw: bytes) -> bytes:
    return _string(_KIND) + _string(raw)


def allowed_signer(principal: str, key: PublicKey | PrivateKey) -> str:
    """Return the line for git's ``gpg.ssh.allowedSignersFile``."""
    blob = base64.b64encode(_public_blob(public_bytes(key))).decode()
    return f'{principal} namespaces="git" ssh-ed25519 {blob}\n'


def sign_tag(payload: bytes, key: PrivateKey) -> bytes:
    """Return the armoured signature of a tag object's bytes."""
    blob = (
        _MAGIC
        + struct.pack(">I", 1)
        + _string(_public_blob(public_bytes(key)))
        + b"".join(_string(part) for part in (_NAMESPACE, b"", _HASH))
        + _string(_string(_KIND) + _string(key.sign(_signed_data(payload))))
    )
    text = base64.b64encode(blob)
    lines = [text[start : start + 70] for start in range(0, len(text), 70)]
    return b"\n".join([_BEGIN, *lines, _END, b""])


def verify_tag(payload: bytes, armoured: bytes, keys: list[PublicKey]) -> bool:
    """Whether ``armoured`` is a signature of ``payload`` by one of ``keys``.

    The signature must be, byte for byte, of the form that :func:`sign_tag` writes;
    whatever is not, is not a signature.
    """
    lines = armoured.strip().split(b"\n")
    if len(lines) < 3 or lines[0] != _BEGIN or lines[-1] != _END:
        return False
    try:
        blob = base64.b64decode(b"".join(lines[1:-1]), validate=True)
    except binascii.Error:
        return False
    for key in keys:
        head = (
            _MAGIC
            + struct.pack(">I", 1)
            + _string(_public_blob(public_bytes(key)))
            + b"".join(_string(part) for part in (_NAMESPACE, b"", _HASH))
        )
        tail = struct.pack(">I", 4 + len(_KIND) + 4 + 64) + _string(_KIND) + struct.pack(">I", 64)
        if not blob.startswith(head + tail) or len(blob) != len(head) + len(tail) + 64:
            continue
        try:
            key.verify(blob[-64:], _signed_data(payload))
        except InvalidSignature:
            continue
        return True
    return False
