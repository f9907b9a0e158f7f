"""Keys on disk, and the director's statement under every kind of damage."""

from __future__ import annotations

import stat
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.errors import InputError, NotFoundError
from shoal.wire import DesiredTask, ErrorCode, FileRef
from shoal.wire.limits import WireLimits
from shoal.wire.signing import (
    DirectorStatement,
    Signature,
    SignatureError,
    SignedStatement,
    generate_key,
    key_id,
    load_key,
    public_bytes,
    save_key,
    sign_statement,
    verify_statement,
)

KEY = generate_key()
NOW = 1_000_000
STATEMENT = DirectorStatement(
    epoch=1,
    cohort=2,
    mask=3,
    expires_us=NOW + 1,
    tasks=[DesiredTask(task="a", version=1, package=FileRef(sha256=bytes(32), size=1, path="a-1"))],
)


def code_of(data: bytes, now: int = NOW, limits: WireLimits | None = None) -> ErrorCode:
    with pytest.raises(SignatureError) as caught:
        verify_statement(data, [KEY.public_key()], now, limits=limits or WireLimits())
    return caught.value.code


def test_signed_and_verified() -> None:
    data = sign_statement(STATEMENT, KEY)
    assert verify_statement(data, [KEY.public_key()], NOW) == STATEMENT
    assert verify_statement(data, [bytes(32), public_bytes(KEY)], NOW) == STATEMENT
    assert sign_statement(STATEMENT, KEY) == data  # ed25519 draws nothing


def test_the_codes_of_refusal() -> None:
    data = sign_statement(STATEMENT, KEY)
    assert code_of(data, NOW + 1) == ErrorCode.METADATA_EXPIRED
    assert code_of(sign_statement(STATEMENT, generate_key())) == ErrorCode.SIGNATURE_INVALID
    assert code_of(b"") == code_of(b"\x90") == code_of(b"\xff") == ErrorCode.SIGNATURE_INVALID
    assert code_of(data, limits=WireLimits(notice=len(data) - 1)) == ErrorCode.SIZE_EXCEEDED
    strange = KEY.sign(b"shoal-director-1\0\x01")
    signed = SignedStatement(1, b"\x01", [Signature(key_id(KEY), strange)])
    assert code_of(msgspec.msgpack.encode(signed)) == ErrorCode.SCHEMA_MISMATCH


def test_a_signature_counts_only_under_its_own_key_and_purpose() -> None:
    payload = msgspec.msgpack.encode(STATEMENT)
    other = generate_key()
    for signatures in (
        [],
        [Signature(key_id(KEY), KEY.sign(payload))],  # no domain: signed for something else
        [Signature(key_id(KEY), other.sign(b"shoal-director-1\0" + payload))],
        [Signature(key_id(other), KEY.sign(b"shoal-director-1\0" + payload))],
        [Signature("x", b"")] * 9,
    ):
        data = msgspec.msgpack.encode(SignedStatement(1, payload, signatures))
        assert code_of(data) == ErrorCode.SIGNATURE_INVALID
    good = Signature(key_id(KEY), KEY.sign(b"shoal-director-1\0" + payload))
    both = SignedStatement(1, payload, [Signature("x", b""), good])
    assert verify_statement(msgspec.msgpack.encode(both), [KEY.public_key()], NOW)


def test_no_keys_trust_nothing() -> None:
    with pytest.raises(SignatureError):
        verify_statement(sign_statement(STATEMENT, KEY), [], NOW)


@given(st.data())
def test_no_damage_is_accepted(data: st.DataObject) -> None:
    signed = bytearray(sign_statement(STATEMENT, KEY))
    if data.draw(st.booleans()):
        bit = data.draw(st.integers(0, len(signed) * 8 - 1))
        signed[bit // 8] ^= 1 << bit % 8
    else:
        del signed[data.draw(st.integers(0, len(signed) - 1)) :]
    assert code_of(bytes(signed)) in {ErrorCode.SIGNATURE_INVALID, ErrorCode.SCHEMA_MISMATCH}


@given(st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    assert code_of(data) == ErrorCode.SIGNATURE_INVALID or data[:2] != b"\x93\x01"


def test_keys_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    save_key(KEY, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert public_bytes(load_key(path)) == public_bytes(KEY)
    assert key_id(KEY) == key_id(public_bytes(KEY)) == key_id(KEY.public_key())
    assert len(key_id(KEY)) == 32
    with pytest.raises(NotFoundError):
        load_key(tmp_path / "none")
    path.write_text("nonsense")
    with pytest.raises(InputError, match=r"key\.pem"):
        load_key(path)


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    (tmp_path / "ec.pem").write_bytes(pem)
    with pytest.raises(InputError, match="ed25519"):
        load_key(tmp_path / "ec.pem")
