"""Several frames in one body."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.errors import InputError, LimitError
from shoal.wire.exchange import MAX_EXCHANGE_FRAMES, join_frames, split_frames
from shoal.wire.frames import Ack, Batch, Frame, Hello, Nack, Notice
from shoal.wire.limits import WireLimits

_numbers = st.integers(0, 2**63 - 1)
_frames: st.SearchStrategy[Frame] = st.one_of(
    st.builds(Ack, _numbers),
    st.builds(Nack, _numbers, st.integers(0, 400), st.integers(-1, 10_000), st.text(max_size=9)),
    st.builds(Notice, _numbers, _numbers, st.integers(0, 4095)),
    st.builds(Batch, _numbers, st.integers(1, 3), st.just(0), st.just(0), st.binary(max_size=50)),
)


@given(frames=st.lists(_frames, max_size=MAX_EXCHANGE_FRAMES))
def test_frames_come_back_in_order(frames: list[Frame]) -> None:
    assert split_frames(join_frames(frames)) == frames


@given(cut=st.integers(1, 30))
def test_a_truncated_body_is_refused(cut: int) -> None:
    body = join_frames([Hello(1, "token", bytes(16), "agent", 0), Ack(3)])
    if cut == len(join_frames([Ack(3)])):  # cut between two frames: one frame fewer
        assert len(split_frames(body[:-cut])) == 1
        return
    with pytest.raises(InputError):
        split_frames(body[:-cut])


def test_number_and_size_are_bounded() -> None:
    with pytest.raises(LimitError, match="too many"):
        split_frames(join_frames([Ack(1)] * (MAX_EXCHANGE_FRAMES + 1)))
    with pytest.raises(LimitError, match="too large"):
        split_frames(join_frames([Batch(1, 2, 0, 0, bytes(300))]), WireLimits(frame=200))


@given(noise=st.binary(max_size=200))
def test_noise_only_raises_input_errors(noise: bytes) -> None:
    with contextlib.suppress(InputError):
        split_frames(noise)
