"""Device tokens: who a device is and which cohort set it is in, checked in about 1.5 µs.

A token is 42 bytes in base64 (56 characters): layout 1, key id, device id,
cohort set, expiry in seconds, and a keyed BLAKE2b-128 over all of that. It proves
the right to ask and to upload; it does not authorise code, which is the
business of the signatures (Walle sheet A.5).
"""

from __future__ import annotations

import binascii
import hashlib
import os
import struct
import time
from hmac import compare_digest
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from shoal.cloud.problems import Problem
from shoal.core.errors import InputError, IntegrityError
from shoal.core.files import write_bytes
from shoal.wire.codes import ErrorCode

__all__ = ["TokenClaims", "TokenMint", "new_token_key"]

_LAYOUT: Final = 1
_TEXT: Final = 56
_FIELDS: Final = struct.Struct(">BB16sII16s")  # layout, key id, device, cohort, expiry, MAC
_SIGNED: Final = 26  # bytes before the MAC
#: Verified tokens that are remembered, about 250 bytes each; forgotten together.
_REMEMBERED: Final = 65_536
_HINT: Final = "enrol again with the device's own key"


class TokenClaims(NamedTuple):
    """What a valid token says; a tuple, because it is made for every request."""

    device: bytes
    cohort: int
    expires_us: int


class _KeyFile(msgspec.Struct, frozen=True, kw_only=True):
    schema: int = 1
    keys: dict[int, bytes]
    newest: int


def new_token_key() -> bytes:
    """Return 32 random bytes for :class:`TokenMint`."""
    return os.urandom(32)


class TokenMint:
    """Makes and checks device tokens; the two newest keys are valid.

    A device shows the same token for days, so tokens that were verified are
    remembered (a bounded number of them, and only until the keys change); expiry
    is looked at every time.

    Parameters
    ----------
    keys : dict of int to bytes, or list of bytes
        Keys of 32 bytes by id in [0, 255]; a list is numbered from 0. The last
        one (the highest position) signs new tokens.
    ttl_s : float
        Life of a token, seconds.

    Raises
    ------
    InputError
        No key, more than two, or one of another length.
    """

    def __init__(self, keys: dict[int, bytes] | list[bytes], *, ttl_s: float = 7 * 86_400.0):
        numbered = dict(enumerate(keys)) if isinstance(keys, list) else dict(keys)
        if not 1 <= len(numbered) <= 2:
            raise InputError("one or two keys are valid at a time", field="keys")
        for number, key in numbered.items():
            if len(key) != 32 or not 0 <= number <= 255:
                raise InputError("a key has 32 bytes and an id below 256", field="keys")
        self.ttl_us = int(ttl_s * 1e6)
        self._path: Path | None = None
        self._set_keys(numbered, list(numbered)[-1])

    @classmethod
    def open(cls, path: Path, *, ttl_s: float = 7 * 86_400.0) -> TokenMint:
        """Read the keys from a file, which is made (mode 0600) if it is missing.

        Raises
        ------
        IntegrityError
            The file is damaged.
        """
        if path.exists():
            try:
                stored = msgspec.json.decode(path.read_bytes(), type=_KeyFile)
                mint = cls(stored.keys, ttl_s=ttl_s)
                mint._set_keys(stored.keys, stored.newest)
            except (msgspec.DecodeError, InputError) as error:
                raise IntegrityError(f"key file {path} is damaged: {error}") from error
            mint._path = path
            return mint
        path.parent.mkdir(parents=True, exist_ok=True)
        mint = cls([new_token_key()], ttl_s=ttl_s)
        mint._path = path
        mint._save()
        return mint

    def rotate(self) -> None:
        """Sign with a new key from now on; the key before it stays valid, older ones do not."""
        number = (self._newest + 1) % 256
        kept = {self._newest: self._keys[self._newest], number: new_token_key()}
        self._set_keys(kept, number)
        self._save()

    def _set_keys(self, keys: dict[int, bytes], newest: int) -> None:
        if newest not in keys:
            raise InputError("there is no such key", field="newest", value=newest)
        self._keys, self._newest = keys, newest
        # Hashing states that have taken in their key: copying one is cheaper than keying anew.
        self._states = {
            number: hashlib.blake2b(digest_size=16, key=key) for number, key in keys.items()
        }
        # After the states: whoever holds the old dictionary writes into nothing.
        self._verified: dict[str | bytes, TokenClaims] = {}

    def _mac(self, number: int, signed: bytes) -> bytes:
        state = self._states[number].copy()
        state.update(signed)
        return state.digest()

    def _save(self) -> None:
        if self._path is not None:
            stored = _KeyFile(keys=self._keys, newest=self._newest)
            write_bytes(self._path, msgspec.json.encode(stored), mode=0o600)

    def mint(self, device: bytes, cohort: int, now_us: int | None = None) -> str:
        """Return a token for a device (16 bytes) in a cohort set."""
        if len(device) != 16:
            raise InputError("a device id has 16 bytes", field="device", value=device)
        if not 0 <= cohort < 1 << 32:
            raise InputError("out of range", field="cohort", value=cohort)
        now = time.time_ns() // 1000 if now_us is None else now_us
        expires = (now + self.ttl_us) // 1_000_000
        head = _FIELDS.pack(_LAYOUT, self._newest, device, cohort, expires, bytes(16))[:_SIGNED]
        return binascii.b2a_base64(head + self._mac(self._newest, head), newline=False).decode()

    def verify(self, token: str | bytes, now_us: int) -> TokenClaims:
        """Check a token and return what it says.

        Raises
        ------
        Problem
            UNAUTHENTICATED: malformed, forged, of a forgotten key, or expired.
        """
        verified = self._verified
        claims = verified.get(token)
        if claims is None:
            claims = self._check(token)
            if len(verified) >= _REMEMBERED:
                verified.clear()
            verified[token] = claims
        if now_us >= claims[2]:
            raise Problem(ErrorCode.UNAUTHENTICATED, "device token has expired", hint=_HINT)
        return claims

    def _check(self, token: str | bytes) -> TokenClaims:
        try:
            raw = binascii.a2b_base64(token, strict_mode=True) if len(token) == _TEXT else b""
            layout, number, device, cohort, expires, mac = _FIELDS.unpack(raw)
        except (ValueError, struct.error):  # not base64, not ASCII, not 42 bytes
            raise Problem(ErrorCode.UNAUTHENTICATED, "malformed device token", hint=_HINT) from None
        if (
            layout != _LAYOUT
            or number not in self._states
            or not compare_digest(self._mac(number, raw[:_SIGNED]), mac)
        ):
            raise Problem(
                ErrorCode.UNAUTHENTICATED, "device token is forged or too old", hint=_HINT
            )
        return TokenClaims(device, cohort, expires * 1_000_000)
