"""Device tokens: forged, expired, rotated."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.cloud.problems import Problem
from shoal.cloud.tokens import TokenMint, new_token_key
from shoal.core.errors import InputError, IntegrityError
from shoal.wire.codes import ErrorCode

_NOW = 1_700_000_000_000_000
_MINT = TokenMint([bytes(32)], ttl_s=60)
_TOKEN = _MINT.mint(bytes(range(16)), 7, _NOW)


@given(device=st.binary(min_size=16, max_size=16), cohort=st.integers(0, 2**32 - 1))
def test_claims_come_back(device: bytes, cohort: int) -> None:
    token = _MINT.mint(device, cohort, _NOW)
    assert len(token) == 56 and token.isascii()
    for form in (token, token.encode()):
        claims = _MINT.verify(form, _NOW)
        assert claims == (device, cohort, (_NOW // 1_000_000 + 60) * 1_000_000)


@given(place=st.integers(0, 55), other=st.characters(codec="ascii", categories=["L", "N", "P"]))
def test_any_change_of_a_character_is_refused(place: int, other: str) -> None:
    forged = _TOKEN[:place] + other + _TOKEN[place + 1 :]
    if forged == _TOKEN:
        return
    with pytest.raises(Problem) as caught:
        _MINT.verify(forged, _NOW)
    assert caught.value.code is ErrorCode.UNAUTHENTICATED


@given(
    st.one_of(st.text(max_size=80), st.binary(max_size=80), st.text("é", min_size=56, max_size=56))
)
def test_rubbish_is_refused(rubbish: str | bytes) -> None:
    with pytest.raises(Problem):
        _MINT.verify(rubbish, _NOW)


def test_expiry_and_foreign_key() -> None:
    _MINT.verify(_TOKEN, _NOW + 59_000_000)
    with pytest.raises(Problem, match="expired"):
        _MINT.verify(_TOKEN, _NOW + 61_000_000)
    with pytest.raises(Problem, match="forged"):
        TokenMint([os.urandom(32)]).verify(_TOKEN, _NOW)


def test_rotation_keeps_exactly_two_keys_and_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "tokens.json"
    mint = TokenMint.open(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first = mint.mint(bytes(16), 1, _NOW)
    mint.rotate()
    second = mint.mint(bytes(16), 1, _NOW)
    again = TokenMint.open(path)
    assert again.verify(first, _NOW) == again.verify(second, _NOW)
    assert again.mint(bytes(16), 1, _NOW) == second
    again.rotate()
    again.verify(second, _NOW)
    with pytest.raises(Problem):
        again.verify(first, _NOW)
    for _ in range(300):  # ids wrap around at 256
        again.rotate()
    assert TokenMint.open(path).verify(again.mint(bytes(16), 1, _NOW), _NOW).cohort == 1


def test_what_is_remembered_expires_and_goes_with_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    import shoal.cloud.tokens as module

    monkeypatch.setattr(module, "_REMEMBERED", 8)
    mint = TokenMint([new_token_key()], ttl_s=60)
    tokens = [mint.mint(n.to_bytes(16, "big"), n, _NOW) for n in range(50)]
    for _ in range(2):
        for number, token in enumerate(tokens):
            assert mint.verify(token, _NOW).cohort == number
            assert len(mint._verified) <= 8
    mint.verify(tokens[0], _NOW)
    with pytest.raises(Problem, match="expired"):
        mint.verify(tokens[0], _NOW + 61_000_000)
    mint.rotate()
    mint.verify(tokens[0], _NOW)
    mint.rotate()
    with pytest.raises(Problem, match="forged"):
        mint.verify(tokens[0], _NOW)


def test_damaged_key_file_and_bad_arguments(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    for damaged in (b"{", b'{"keys":{},"newest":0}', b'{"keys":{"0":"AAAA"},"newest":0}'):
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError):
            TokenMint.open(path)
    with pytest.raises(InputError):
        TokenMint([new_token_key()] * 3)
    with pytest.raises(InputError):
        _MINT.mint(b"short", 1)
    with pytest.raises(InputError):
        _MINT.mint(bytes(16), 2**32)
