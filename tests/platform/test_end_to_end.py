"""A real cloud and real agents: from a task's folder to results in the cloud's store."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest
from platform_bench import BROKEN, CRASHING, GOOD, POISONED, Bench, feed, totals

from shoal.cloud import store as tables
from shoal.core.errors import ConflictError
from shoal.device import Agent, AsyncShoalTransport
from shoal.wire.codes import ErrorCode
from shoal.wire.results import InstallState


def test_publish_release_install_predict_report(bench: Bench, task) -> None:
    version = bench.publish(task(1))
    agent = bench.agent()
    bench.until(lambda: agent.status()["enrolled"])
    assert agent.status()["active"] == {}  # negative control: nothing was released yet
    bench.release(version)
    bench.until(lambda: agent.status()["active"] == {"count": version})
    feed(agent, 20)
    assert agent.drain(30)
    assert bench.results(agent) == totals(20)
    (feature,) = bench.rows(tables.feature)
    assert feature.name == "clicks" and feature.key == "all"
    assert len(bench.rows(tables.run_summary)) == 20
    bench.until(lambda: bench.holding(agent, version) == InstallState.GOOD)


def test_an_upgrade_goes_on_where_the_old_version_stood(bench: Bench, task) -> None:
    agent = bench.agent()
    bench.release(bench.publish(task(1)))
    bench.until(lambda: agent.status()["active"] == {"count": 1})
    feed(agent, 8)
    assert agent.drain(30)
    bench.release(bench.publish(task(2, code=GOOD + "# better\n")))
    bench.until(lambda: agent.status()["active"] == {"count": 2})
    feed(agent, 8, first=8)
    assert agent.drain(30)
    assert bench.results(agent) == totals(16)
    assert len(bench.results(agent, version=2)) == 8


@pytest.mark.parametrize("code", [BROKEN, CRASHING])
def test_a_broken_version_is_given_up_and_nothing_is_lost(bench: Bench, task, code: str) -> None:
    agent = bench.agent()
    bench.release(bench.publish(task(1)))
    bench.until(lambda: agent.status()["active"] == {"count": 1})
    feed(agent, 8)
    assert agent.drain(30)
    bench.release(bench.publish(task(2, code=code)))
    bench.until(lambda: agent.status()["active"] == {"count": 2})
    feed(agent, 8, first=8)
    bench.until(lambda: bench.holding(agent, 2) == InstallState.BAD)
    assert agent.status()["active"] == {"count": 1}
    assert agent.drain(30)
    # The old version has seen every event, those that the broken one had in hand included.
    assert bench.results(agent, version=1) == totals(16)
    assert bench.results(agent, version=2) == []
    bad = [row for row in bench.rows(tables.holding) if row.version == 2]
    assert [row.code for row in bad] == [ErrorCode.QUARANTINED]
    # And the cloud knows what is in force again.
    assert bench.holding(agent, 1) == InstallState.GOOD
    # It is quiet now: the version is settled, and is not tried again.
    before = dict(bench.cloud.gateway.counts)
    bench.until(lambda: bench.cloud.gateway.counts["check"] > before["check"] + 3)
    assert bench.cloud.gateway.counts["notices"] == before["notices"]


def test_the_guardrail_rolls_a_broken_version_back(bench: Bench, task) -> None:
    agents = [bench.agent(f"device-{number}") for number in range(4)]
    bench.release(bench.publish(task(1)))
    bench.until(lambda: all(a.status()["active"] == {"count": 1} for a in agents))
    for agent in agents:
        feed(agent, 8)
    bench.until(lambda: all(bench.holding(a, 1) == InstallState.GOOD for a in agents))
    number = bench.start(
        bench.publish(task(2, code=BROKEN)),
        steps=(9_999, 10_000),
        min_dwell_s=0,
        runs_per_outcome=1,
        guardrails=[{"name": "failure", "limit": 0.05}],
    )
    bench.until(lambda: any(a.status()["active"] == {"count": 2} for a in agents))
    for agent in agents:
        feed(agent, 8, first=8)
    bench.until(lambda: str(bench.cloud.releases.get(number).release.state) == "rolled_back")
    bench.until(lambda: all(a.status()["active"] == {"count": 1} for a in agents))
    for agent in agents:
        assert agent.drain(30)
        assert bench.results(agent, version=1) == totals(16)
    assert bench.results(version=2) == []


def test_a_rollback_of_a_good_version_needs_no_download(bench: Bench, task) -> None:
    agent = bench.agent()
    bench.release(bench.publish(task(1)))
    bench.until(lambda: agent.status()["active"] == {"count": 1})
    feed(agent, 8)
    assert agent.drain(30)
    number = bench.release(bench.publish(task(2, code=GOOD + "# 2\n")))
    bench.until(lambda: agent.status()["active"] == {"count": 2})
    feed(agent, 8, first=8)
    assert agent.drain(30)
    files = bench.cloud.gateway.counts["files"]
    bench.cloud.releases.rollback(number, actor="test", reason="test")
    bench.until(lambda: agent.status()["active"] == {"count": 1})
    assert bench.cloud.gateway.counts["files"] == files
    feed(agent, 4, first=16)
    assert agent.drain(30)
    # Nothing twice, nothing lost: the version that came back goes on with the stream.
    assert len(bench.results(agent)) == 20


def test_offline_for_days_and_back(bench: Bench, task) -> None:
    ahead_us = [0]
    agent = bench.agent(clock=lambda: time.time_ns() // 1000 + ahead_us[0])
    bench.release(bench.publish(task(1)))
    bench.until(lambda: agent.status()["active"] == {"count": 1})
    agent.online = False
    for day in range(5):
        ahead_us[0] = day * 86_400_000_000
        feed(agent, 10, first=day * 10)
        bench.until(lambda: agent.settled)
    bench.release(bench.publish(task(2, code=GOOD + "# 2\n")))
    assert agent.status()["active"] == {"count": 1}
    assert bench.results(agent) == []  # it was really away
    agent.online = True
    bench.until(lambda: agent.status()["active"] == {"count": 2})
    assert agent.drain(30)
    assert bench.results(agent) == totals(50)


def test_one_poison_event_does_not_stop_the_stream(bench: Bench, task) -> None:
    agent = bench.agent()
    bench.release(bench.publish(task(1, code=POISONED)))
    bench.until(lambda: agent.status()["active"] == {"count": 1})
    feed(agent, 8)
    assert agent.drain(30)
    bench.until(lambda: bench.holding(agent, 1) == InstallState.GOOD)
    agent.record(5, "detail", {"poison": True}, ts_us=1_700_000_100_000_000)
    feed(agent, 4, first=200)
    assert agent.drain(30)
    assert len(bench.results(agent)) == 12
    failed = [row for row in bench.rows(tables.run_summary) if row.outcome]
    assert [row.outcome for row in failed] == [ErrorCode.EXCEPTION] * 3
    assert "poison" in failed[0].message
    with agent.store.read() as cursor:
        kept = cursor.execute("SELECT task, attempts, code FROM quarantine").fetchall()
    assert kept == [("count", 3, ErrorCode.EXCEPTION)]


def test_two_agents_on_one_folder(bench: Bench) -> None:
    bench.agent()
    with pytest.raises(ConflictError, match="in use"):
        Agent(bench.config(), pool=bench.pool).open()


@pytest.mark.parametrize("years", [-5, 5])
def test_a_clock_years_off(bench: Bench, task, years: int) -> None:
    agent = bench.agent(clock_skew_s=years * 365 * 86_400)
    bench.release(bench.publish(task(1)))
    bench.until(lambda: agent.status()["active"] == {"count": 1})
    feed(agent, 6)
    assert agent.drain(30)
    assert bench.results(agent) == totals(6)
    assert abs(agent.status()["clock_skew_s"] - years * 365 * 86_400) < 5
    dropped = {(row.part, row.reason): row.total for row in bench.rows(tables.dropped)}
    assert any("clock_skew" in reason for _, reason in dropped)


def test_an_ordinary_request_of_the_app_brings_the_release(bench: Bench, task) -> None:
    async def shop(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"the shop's answer"})

    agent = bench.agent(check_every_s=3600.0, tunnel="http")
    bench.until(lambda: agent.status()["enrolled"])
    bench.until(lambda: bench.cloud.gateway.counts["check"] >= 1)
    bench.release(bench.publish(task(1)))
    for _ in range(50):
        agent.tick()
    assert agent.status()["active"] == {}  # negative control: by itself it asks in an hour
    wrapped = httpx.ASGITransport(bench.cloud.middleware(shop))

    async def ask() -> str:
        transport = AsyncShoalTransport(agent, wrapped, origins=["http://shop.test"])
        async with httpx.AsyncClient(transport=transport) as client:
            return (await client.get("http://shop.test/cart")).text

    assert asyncio.run(ask()) == "the shop's answer"
    bench.until(lambda: agent.status()["active"] == {"count": 1})
