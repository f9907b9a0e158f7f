"""A device's id and key: chosen once, kept, and shown by a signature."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from shoal.core.errors import InputError, IntegrityError
from shoal.device.identity import Identity
from shoal.wire.enrolment import enrolment_message
from shoal.wire.profile import TaskProfile
from shoal.wire.signing import public_bytes


def test_it_is_chosen_once_and_kept(tmp_path: Path) -> None:
    one = Identity(tmp_path / "identity")
    again = Identity(tmp_path / "identity")
    assert one.device == again.device and len(one.device) == 16
    assert one.name == one.device.hex()
    assert public_bytes(one.key) == public_bytes(again.key)
    assert Identity(tmp_path / "other").device != one.device
    assert (tmp_path / "identity" / "key.pem").stat().st_mode & 0o077 == 0


def test_the_request_proves_the_key(tmp_path: Path) -> None:
    identity = Identity(tmp_path)
    profile = TaskProfile(device=identity.device, agent="test")
    request = identity.enrol_request("token", profile, 17)
    message = enrolment_message("token", request.public_key, identity.device, 17)
    key = Ed25519PublicKey.from_public_bytes(request.public_key)
    key.verify(request.proof, message)
    with pytest.raises(InvalidSignature):  # negative control
        key.verify(
            request.proof, enrolment_message("token", request.public_key, identity.device, 18)
        )


@pytest.mark.parametrize("content", [b"", b"zz" * 16, b"ab" * 15, b"\xff" * 32, b"AB" * 16])
def test_a_damaged_id_is_not_replaced_silently(tmp_path: Path, content: bytes) -> None:
    Identity(tmp_path)
    (tmp_path / "device").write_bytes(content)
    with pytest.raises(IntegrityError, match="device id"):
        Identity(tmp_path)


def test_a_damaged_key_is_not_replaced_silently(tmp_path: Path) -> None:
    Identity(tmp_path)
    (tmp_path / "key.pem").write_text("not a key")
    with pytest.raises(InputError, match="private key"):
        Identity(tmp_path)
