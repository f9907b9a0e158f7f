"""The server's clock as a device may know it, however wrong its own is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.device.clock import ServerClock, parse_http_date

DAY = 86_400_000_000
YEAR = 365 * DAY
TRUE = 1_800_000_000_000_000


class World:
    """True time, and a device whose wall clock is off."""

    def __init__(self, off_us: int = 0) -> None:
        self.true_us, self.mono_us, self.off_us = TRUE, 5_000_000, off_us

    def wall(self) -> int:
        return self.true_us + self.off_us

    def mono(self) -> int:
        return self.mono_us

    def pass_time(self, us: int) -> None:
        self.true_us += us
        self.mono_us += us

    def clock(self, saved: bytes = b"") -> ServerClock:
        return ServerClock(self.wall, self.mono, saved=saved)

    def ask(self, clock: ServerClock, there_us: int = 1000, back_us: int = 1000) -> None:
        sent = self.mono_us
        self.pass_time(there_us)
        server = self.true_us
        self.pass_time(back_us)
        clock.sample(server, sent, self.mono_us)


@pytest.mark.parametrize("off_us", [0, 5 * YEAR, -5 * YEAR, 3_600_000_000])
def test_the_estimate_is_the_server_s_time(off_us: int) -> None:
    world = World(off_us)
    clock = world.clock()
    assert not clock.known
    world.ask(clock)
    assert clock.known
    assert abs(clock.now_us() - world.true_us) <= 1000
    assert clock.skew_us() == pytest.approx(off_us, abs=2000)
    world.pass_time(10 * DAY)
    assert abs(clock.now_us() - world.true_us) <= 1000
    world.off_us += 7 * YEAR  # someone sets the wall clock: nothing follows it
    assert abs(clock.now_us() - world.true_us) <= 1000


@given(
    off_us=st.integers(-10 * YEAR, 10 * YEAR),
    trips=st.lists(
        st.tuples(st.integers(0, 5_000_000), st.integers(0, 5_000_000)), min_size=1, max_size=20
    ),
)
def test_the_error_is_at_most_half_the_best_round_trip(
    off_us: int, trips: list[tuple[int, int]]
) -> None:
    world = World(off_us)
    clock = world.clock()
    for there, back in trips:
        world.ask(clock, there, back)
    best = min(there + back for there, back in trips)
    # An older, better sample gives way only as clocks may have drifted since.
    assert abs(clock.now_us() - world.true_us) <= best / 2 + 200e-6 * sum(map(sum, trips)) + 1


def test_a_coarse_answer_does_not_spoil_a_fine_one() -> None:
    world = World()
    clock = world.clock()
    world.ask(clock)
    clock.sample_date("Fri, 15 Jan 2027 08:00:00 GMT", world.mono_us, world.mono_us)
    assert abs(clock.now_us() - world.true_us) <= 1000


def test_before_any_answer_the_last_known_difference_counts() -> None:
    world = World(5 * YEAR)
    clock = world.clock()
    for _ in range(3):
        world.ask(clock)
    saved = clock.save()
    world.mono_us = 17  # a restart: the monotonic clock begins anew
    again = world.clock(saved)
    assert not again.known
    assert abs(again.now_us() - world.true_us) <= 2000
    assert again.is_skewed() and again.trusted


@pytest.mark.parametrize("off_us", [2 * DAY, -2 * DAY])
def test_a_clock_far_off_needs_three_answers_that_agree(off_us: int) -> None:
    world = World(off_us)
    clock = world.clock()
    for _ in range(2):
        world.ask(clock)
        assert clock.is_skewed() and not clock.trusted
    world.ask(clock)
    assert clock.trusted


def test_an_old_answer_from_a_cache_is_not_believed() -> None:
    world = World()
    clock = world.clock()
    for _ in range(3):
        world.ask(clock)
    world.pass_time(1000)
    clock.sample(world.true_us - 400 * DAY, world.mono_us, world.mono_us)
    assert not clock.trusted  # the wall clock and the answer disagree by more than a year
    for _ in range(3):
        world.ask(clock)
    assert clock.trusted
    assert abs(clock.now_us() - world.true_us) <= 1000


def test_an_ordinary_clock_is_trusted_at_once() -> None:
    world = World(60_000_000)
    clock = world.clock()
    assert clock.trusted
    world.ask(clock)
    assert clock.trusted and not clock.is_skewed()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Thu, 01 Jan 1970 00:00:01 GMT", 1_000_000),
        ("Fri, 15 Jan 2027 08:00:00 GMT", 1_800_000_000_000_000),
        ("yesterday", None),
        ("", None),
        ("Fri, 99 Jan 2027 08:00:00 GMT", None),
    ],
)
def test_http_dates(text: str, answer: int | None) -> None:
    assert parse_http_date(text) == answer
