"""The digest of a settled set, and the headers that carry it."""

from __future__ import annotations

import contextlib
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.errors import InputError, LimitError
from shoal.wire.notices import format_notice_address, parse_notice_address
from shoal.wire.profile import (
    ProfileHeader,
    format_profile_header,
    parse_profile_header,
    profile_digest,
)

names = st.text(min_size=1, max_size=20)
sets = st.dictionaries(names, st.integers(0, 2**63 - 1), max_size=12)


@given(sets, st.randoms(use_true_random=False))
def test_order_does_not_matter(pairs: dict[str, int], random: object) -> None:
    listed = list(pairs.items())
    random.shuffle(listed)  # type: ignore[attr-defined]
    assert profile_digest(listed) == profile_digest(sorted(pairs.items()))


@given(sets, sets)
def test_different_sets_have_different_digests(one: dict[str, int], two: dict[str, int]) -> None:
    assert (profile_digest(one.items()) == profile_digest(two.items())) == (one == two)


def test_lengths_keep_names_apart() -> None:
    # Without the length prefix the bytes of these two sets would run together.
    tail = "b" + "\0" * 7 + "\x01"
    assert profile_digest([("a", 1)]) != profile_digest([("a" + tail, 1)])
    assert profile_digest([("ab", 1)]) != profile_digest([("a", 1), ("b", 1)])


def test_the_empty_set_is_the_hash_of_nothing() -> None:
    import base64

    plain = base64.urlsafe_b64encode(hashlib.blake2b(b"", digest_size=16).digest())
    assert profile_digest([]) == plain.decode().rstrip("=")


@given(st.integers(0, 2**63), st.integers(0, 2**31), sets)
def test_header_round_trip(epoch: int, cohort: int, pairs: dict[str, int]) -> None:
    digest = profile_digest(pairs.items())
    text = format_profile_header(epoch, cohort, digest)
    assert parse_profile_header(text) == ProfileHeader(1, epoch, cohort, digest)
    assert len(text) <= 60


@pytest.mark.parametrize(
    "text", ["", "1", "1.2.3", "1.a.b.c", "1.2.3.4.5", "x.0.0." + "A" * 22, "1.-1.0." + "A" * 22]
)
def test_bad_headers_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="Shoal-Profile"):
        parse_profile_header(text)


@given(st.text(max_size=80))
def test_no_header_does_more_than_raise_input_error(text: str) -> None:
    with contextlib.suppress(InputError):
        parse_profile_header(text)


def test_a_header_above_its_limit_is_not_looked_at() -> None:
    with pytest.raises(LimitError):
        parse_profile_header("1.0.0." + "A" * 251)


@given(st.tuples(*[st.integers(0, 2**40)] * 3))
def test_notice_address_round_trip(address: tuple[int, int, int]) -> None:
    assert parse_notice_address(format_notice_address(*address)) == address


@pytest.mark.parametrize("text", ["", "1.2", "1.2.3.4", "1.2.x", "-1.2.3", "../../etc"])
def test_bad_notice_addresses_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="notice"):
        parse_notice_address(text)
