"""Many agents in one process, driven by one loop and sharing one pool."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence

from shoal.device.agent import Agent

__all__ = ["AgentGroup"]


class AgentGroup:
    """Drives agents in turn, so that their runs overlap in the pool.

    Parameters
    ----------
    agents : iterable of Agent
        Not opened yet.
    """

    def __init__(self, agents: Iterable[Agent]) -> None:
        self.agents: Sequence[Agent] = list(agents)
        self._wake = threading.Event()

    def open(self) -> AgentGroup:
        """Open every agent; if one fails, those opened before are closed again."""
        opened: list[Agent] = []
        try:
            for agent in self.agents:
                agent.open()
                agent.on_wake(self._wake.set)
                opened.append(agent)
        except BaseException:
            for agent in opened:
                agent.close()
            raise
        return self

    def tick(self) -> bool:
        """Give each agent one step; returns whether any did something."""
        busy = False
        for agent in self.agents:
            busy = agent.tick() or busy
        return busy

    def wait(self, timeout: float) -> None:
        """Sleep until an agent has something to do, at most ``timeout`` seconds."""
        self._wake.wait(timeout)
        self._wake.clear()

    def run(self, stop: threading.Event) -> None:
        """Work until ``stop`` is set."""
        while not stop.is_set():
            if not self.tick():
                self.wait(0.05)

    def drain(self, timeout: float) -> bool:
        """Work until every agent has dealt with its events and all is acknowledged."""
        deadline = time.monotonic() + timeout
        open_agents = list(self.agents)
        while time.monotonic() < deadline:
            busy = self.tick()
            open_agents = [a for a in open_agents if not a.settled or a.uplink.has_work]
            if not open_agents:
                # One that was done may have got something new meanwhile.
                open_agents = [a for a in self.agents if not a.settled or a.uplink.has_work]
                if not open_agents:
                    return True
            if not busy:
                self.wait(0.01)
        return False

    def close(self) -> None:
        """Close every agent."""
        for agent in self.agents:
            agent.close()

    def __enter__(self) -> AgentGroup:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()
