"""What the platform tests share: a task that counts, a cloud, and agents that talk to it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from shoal.cloud import store as tables
from shoal.cloud.config import CloudConfig
from shoal.cloud.http import CloudServer
from shoal.cloud.policy import ReleasePolicy
from shoal.cloud.service import EVERYONE, Cloud
from shoal.device import Agent, AgentConfig, VMPool, VMPoolConfig

#: "inline" makes a debugger useful.
BACKEND = os.environ.get("SHOAL_TEST_BACKEND", "process")

TOML = """
task = "count"
label = "{label}"
[[triggers]]
name = "left"
sequence = ["page_exit@*"]
[input]
scope = "since"
events = ["click@*", "page_exit@*"]
[[outputs]]
name = "total"
kind = "result"
dtype = "json"
uplink = "now"
[[outputs]]
name = "clicks"
kind = "feature"
dtype = "f32[1]"
uplink = "soon"
[limits]
deadline_ms = 5000
"""

#: Adds up what it sees: a result that is lost or made twice shows in every later one.
GOOD = """
def run(ctx, batch):
    state = ctx.state
    for event in batch.events:
        if event.kind == 4:
            state["clicks"] = state.get("clicks", 0) + event.content["n"]
    state["visits"] = state.get("visits", 0) + 1
    ctx.features.put("clicks", "all", [float(state["clicks"])])
    ctx.emit("total", {"clicks": state["clicks"], "visits": state["visits"]})
"""

BROKEN = "def run(ctx, batch):\n    raise ValueError('broken on purpose')\n"
CRASHING = "import os\ndef run(ctx, batch):\n    os._exit(3)\n"
POISONED = """
def check(batch):
    if any(event.content.get("poison") for event in batch.events):
        raise ValueError("this event is poison")
""" + GOOD.replace("state = ctx.state", "check(batch); state = ctx.state")


def write_task(folder: Path, code: str = GOOD, label: str = "", extra: str = "") -> Path:
    folder.mkdir()
    (folder / "task.toml").write_text(TOML.format(label=label) + extra)
    (folder / "main.py").write_text(code)
    return folder


def feed(agent: Agent, visits: int, *, first: int = 0) -> None:
    """Record visits of a page: two clicks and an exit each, one second apart."""
    for number in range(first, first + visits):
        start = 1_700_000_000_000_000 + number * 1_000_000
        for part in range(2):
            agent.record(4, "detail", {"n": number + part}, ts_us=start + part)
        agent.record(5, "detail", {"visit": number}, ts_us=start + 10)


def totals(visits: int) -> list[dict[str, int]]:
    """Return what an oracle that sees every event once, in order, emits."""
    clicks, found = 0, []
    for number in range(visits):
        clicks += 2 * number + 1
        found.append({"clicks": clicks, "visits": number + 1})
    return found


class Bench:
    """A cloud, its server, and the agents opened against it."""

    def __init__(self, cloud: Cloud, server: CloudServer, folder: Path) -> None:
        self.cloud, self.server, self.folder = cloud, server, folder
        self.pool: VMPool | None = None
        self.agents: list[Agent] = []

    # -- devices ----------------------------------------------------------------------------

    def config(self, name: str = "device", **options: Any) -> AgentConfig:
        settings = {
            "data_dir": self.folder / name,
            "server_url": self.server.url,
            "check_every_s": 0.05,
            "timeout_s": 5.0,
        }
        return AgentConfig(**(settings | options))

    def agent(
        self, name: str = "device", *, clock: Callable[[], int] | None = None, **options: Any
    ):
        if self.pool is None:
            self.pool = VMPool(VMPoolConfig(backend=BACKEND, size=2))
        agent = Agent(self.config(name, **options), pool=self.pool, clock=clock).open()
        self.agents.append(agent)
        return agent

    def stop(self, agent: Agent) -> None:
        agent.close()
        self.agents.remove(agent)

    def until(
        self,
        condition: Callable[[], object],
        *,
        timeout: float = 30.0,
        agents: list[Agent] | None = None,
    ) -> None:
        """Move cloud and agents until the condition holds."""
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"not reached: {[agent.status() for agent in self.agents]}")
            busy = [agent.tick() for agent in (self.agents if agents is None else agents)]
            self.cloud.tick()
            if not any(busy):
                time.sleep(0.005)

    # -- the operator -----------------------------------------------------------------------

    def publish(self, folder: Path) -> int:
        return self.cloud.registry.publish(folder).version

    def release(self, version: int, **policy: Any) -> int:
        """Release to everyone at once, whatever the guardrails would need."""
        number = self._draft(version, policy)
        self.cloud.releases.override(number, reason="test", actor="test")
        return number

    def start(self, version: int, **policy: Any) -> int:
        """Begin a release in steps."""
        number = self._draft(version, policy)
        self.cloud.releases.start(number, actor="test")
        return number

    def _draft(self, version: int, policy: dict[str, Any]) -> int:
        chosen = ReleasePolicy(**({"simulation": "off"} | policy))
        return self.cloud.releases.create("count", version, EVERYONE, chosen, actor="test")

    # -- what arrived -------------------------------------------------------------------------

    def rows(self, table: sa.Table) -> list[Any]:
        with self.cloud.store.read() as connection:
            return list(connection.execute(sa.select(table)).all())

    def results(self, agent: Agent | None = None, version: int | None = None) -> list[Any]:
        """Return the emitted values that are in the cloud's store, in the order of their time."""
        found = sorted(self.rows(tables.result), key=lambda row: row.ts_us)
        return [
            row.value
            for row in found
            if (agent is None or row.device == agent.device)
            and (version is None or row.version == version)
        ]

    def holding(self, agent: Agent, version: int) -> str | None:
        for row in self.rows(tables.holding):
            if row.device == agent.device and row.version == version:
                return str(row.state)
        return None

    def close(self) -> None:
        for agent in self.agents:
            agent.close()
        if self.pool is not None:
            self.pool.close()


@contextmanager
def open_bench(folder: Path) -> Iterator[Bench]:
    """Open a cloud in ``folder`` and serve it on a free port."""
    config = CloudConfig(data_dir=folder / "cloud", open_enrolment=True)
    with Cloud.open(config) as cloud, CloudServer(cloud) as server:
        bench = Bench(cloud, server, folder)
        try:
            yield bench
        finally:
            bench.close()
