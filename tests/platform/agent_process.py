"""An agent in a process of its own, for tests that kill it.

Arguments: server address, data folder, number of visits, version and state to reach
(``task-2:good``). Records the visits (again, after a kill: their ids make them the
same events), works until the version is in that state and everything is
acknowledged, then ends with status 0.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from shoal.device import Agent, AgentConfig, VMPool, VMPoolConfig
from shoal.wire.events import new_ulid


def record(agent: Agent, visits: int) -> None:
    for number in range(visits):
        start = 1_700_000_000_000_000 + number * 1_000_000
        for part, kind in enumerate((4, 4, 5)):
            content = {"n": number + part} if kind == 4 else {"visit": number}
            identity = new_ulid(start + part, number.to_bytes(9, "big") + bytes([part]))
            agent.record(kind, "detail", content, ts_us=start + part, event_id=identity)
    agent.log.flush()


def main(url: str, folder: str, visits: int, wanted: str) -> int:
    config = AgentConfig(data_dir=Path(folder), server_url=url, check_every_s=0.05, timeout_s=5.0)
    with VMPool(VMPoolConfig(backend="inline")) as pool, Agent(config, pool=pool) as agent:
        name, _, state = wanted.partition(":")
        recorded = False
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            states = {f"{r.task}-{r.version}": r.state for r in agent.packages.rows()}
            # A version that is to fail needs something to fail on.
            if not recorded and (state != "bad" or name in states):
                record(agent, visits)
                recorded = True
            if states.get(name) == state and agent.drain(0.5):
                return 0
            if not agent.tick():
                time.sleep(0.005)
        sys.stderr.write(f"{agent.status()}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]))
