"""What was withdrawn does not come back, whoever holds the director's key."""

from __future__ import annotations

from platform_bench import BROKEN, GOOD, Bench, feed

from shoal.device import Agent
from shoal.wire.codes import ErrorCode


def with_a_good_version(bench: Bench, task) -> Agent:
    """Return an agent on which version 1 has passed its trial."""
    agent = bench.agent()
    bench.release(bench.publish(task(1)))
    bench.until(lambda: agent.status()["active"] == {"count": 1})
    feed(agent, 8)
    assert agent.drain(30)
    return agent


def test_a_version_below_the_floor_is_not_revived_from_the_disk(bench: Bench, task) -> None:
    agent = with_a_good_version(bench, task)
    number = bench.release(bench.publish(task(2, code=GOOD + "# 2\n")))
    bench.until(lambda: agent.status()["active"] == {"count": 2})
    feed(agent, 8, first=8)
    assert agent.drain(30)
    # Version 1 is still on the disk as the last good one; then its floor rises.
    bench.cloud.registry.set_floor("count", 2)
    bench.cloud.releases.rollback(number, actor="test", reason="a stolen director key would do so")
    bench.until(
        lambda: any(
            (entry["version"], entry["code"]) == (1, ErrorCode.BELOW_FLOOR)
            for entry in agent.status()["packages"]
        )
    )
    assert agent.status()["active"].get("count") != 1
    results = len(bench.results(agent, version=1))
    feed(agent, 4, first=16)
    agent.drain(5)
    assert len(bench.results(agent, version=1)) == results


def test_without_a_floor_the_same_rollback_brings_it_back(bench: Bench, task) -> None:
    """The negative control of the test above."""
    agent = with_a_good_version(bench, task)
    number = bench.release(bench.publish(task(2, code=GOOD + "# 2\n")))
    bench.until(lambda: agent.status()["active"] == {"count": 2})
    bench.cloud.releases.rollback(number, actor="test", reason="test")
    bench.until(lambda: agent.status()["active"] == {"count": 1})


def test_a_failed_trial_does_not_go_back_to_what_was_withdrawn(bench: Bench, task) -> None:
    agent = with_a_good_version(bench, task)
    bench.cloud.registry.set_floor("count", 2)
    bench.release(bench.publish(task(2, code=BROKEN)))
    bench.until(lambda: agent.status()["active"] == {"count": 2})
    feed(agent, 8, first=8)
    bench.until(lambda: agent.status()["active"] == {})
