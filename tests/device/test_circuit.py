"""The circuit breaker: opens on failures and crashes, rests, tries again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.device.container import CircuitBreaker
from shoal.wire.codes import ErrorCode

BAD, CRASH = int(ErrorCode.EXCEPTION), int(ErrorCode.VM_CRASHED)


def feed(breaker: CircuitBreaker, outcomes: list[int], now: float = 0.0) -> None:
    for outcome in outcomes:
        breaker.record(outcome, now)


def test_five_failures_in_twenty_runs_open_it() -> None:
    breaker = CircuitBreaker()
    feed(breaker, [BAD, 0, 0, 0] * 4)
    assert breaker.state(0.0) == "closed"
    feed(breaker, [BAD])
    assert breaker.state(0.0) == "open"
    assert not breaker.allows(59.9)


def test_four_failures_in_twenty_runs_never_do() -> None:
    """The negative control: the window forgets."""
    breaker = CircuitBreaker()
    feed(breaker, [BAD, 0, 0, 0, 0] * 200)
    assert breaker.state(0.0) == "closed"


def test_three_crashes_in_a_row_open_it() -> None:
    breaker = CircuitBreaker()
    feed(breaker, [CRASH, CRASH, 0, CRASH, CRASH])
    assert breaker.state(0.0) == "closed"
    breaker = CircuitBreaker()
    feed(breaker, [0, CRASH, CRASH, CRASH])
    assert breaker.state(0.0) == "open"


def test_rests_double_up_to_an_hour_and_start_again_after_good_runs() -> None:
    breaker = CircuitBreaker()
    feed(breaker, [CRASH] * 3)
    now, rests = 0.0, []
    for _ in range(9):
        until = next(
            seconds for seconds in range(1, 4000) if breaker.state(now + seconds) == "half-open"
        )
        rests.append(until)
        now += until
        assert breaker.allows(now)
        breaker.record(BAD, now)  # the trial fails
        assert breaker.state(now) == "open"
    assert rests == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    now += 3600
    assert breaker.allows(now)
    feed(breaker, [0, 0], now)
    assert breaker.state(now) == "half-open"
    feed(breaker, [0], now)
    assert breaker.state(now) == "closed"
    feed(breaker, [CRASH] * 3, now)
    assert not breaker.allows(now + 59)
    assert breaker.allows(now + 61)


@pytest.mark.parametrize(
    "outcome", [ErrorCode.CANCELLED, ErrorCode.CIRCUIT_OPEN, ErrorCode.RATE_LIMITED]
)
def test_what_is_not_the_tasks_fault_does_not_count(outcome: ErrorCode) -> None:
    breaker = CircuitBreaker()
    feed(breaker, [int(outcome)] * 100)
    assert breaker.state(0.0) == "closed"


@given(st.lists(st.sampled_from([0, 0, 0, BAD, CRASH]), max_size=120))
def test_it_opens_exactly_when_the_rules_say(outcomes: list[int]) -> None:
    breaker = CircuitBreaker()
    for place, outcome in enumerate(outcomes):
        breaker.record(outcome, 0.0)
        seen = outcomes[: place + 1]
        failures = sum(one != 0 for one in seen[-20:])
        crashes = len(seen) >= 3 and all(one == CRASH for one in seen[-3:])
        if failures >= 5 or crashes:
            assert breaker.state(0.0) == "open"
            return
        assert breaker.state(0.0) == "closed"
