"""Many agents in one process, driven by one loop and sharing one pool."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from shoal.device.agent import Agent

__all__ = ["AgentGroup"]

_log = logging.getLogger(__name__)


class AgentGroup:
    """Drives agents in turn, so that their runs overlap in the pool.

    Requests to the cloud are made by a few threads of the group, one at a time
    for each agent: a server that does not answer holds up nobody's predictions.

    Parameters
    ----------
    agents : iterable of Agent
        Not opened yet, if :meth:`open` is to be called.
    talkers : int
        Threads that talk to the cloud.

    Attributes
    ----------
    counts : Counter
        Defects that stopped a step of one agent, by error class. (What a device
        must live with is in the agent's own counts.)
    """

    def __init__(self, agents: Iterable[Agent], *, talkers: int = 4) -> None:
        self.agents: Sequence[Agent] = list(agents)
        self.counts: Counter[str] = Counter()
        self._wake = threading.Event()
        self._talkers = ThreadPoolExecutor(
            max(1, min(talkers, len(self.agents))), thread_name_prefix="talk"
        )
        self._talks: dict[int, Future[bool]] = {}
        for agent in self.agents:
            agent.on_wake(self._wake.set)

    def open(self) -> AgentGroup:
        """Open every agent; if one fails, those opened before are closed again."""
        opened: list[Agent] = []
        try:
            for agent in self.agents:
                agent.open()
                opened.append(agent)
        except BaseException:
            for agent in opened:
                agent.close()
            raise
        return self

    def tick(self) -> bool:
        """Give each agent one step; returns whether any did something."""
        busy = False
        for number, agent in enumerate(self.agents):
            try:
                busy = agent.tick(network=False) or busy
                busy = self._talk(number, agent) or busy
            except Exception as error:
                # A defect of one agent must not stop the others.
                self.counts[type(error).__name__] += 1
                _log.exception("an agent's step failed")
        return busy

    def _talk(self, number: int, agent: Agent) -> bool:
        """Take what an agent's last request gave, and let it make the next one."""
        done = False
        talk = self._talks.get(number)
        if talk is not None:
            if not talk.done():
                return False
            del self._talks[number]
            done = talk.result()
        if agent.talk_is_due:
            future = self._talkers.submit(agent.talk)
            future.add_done_callback(lambda _: self._wake.set())
            self._talks[number] = future
        return done

    def wait(self, timeout: float) -> None:
        """Sleep until an agent has something to do, at most ``timeout`` seconds."""
        self._wake.wait(timeout)
        self._wake.clear()

    def run(self, stop: threading.Event, *, pause_s: float = 0.05) -> None:
        """Work until ``stop`` is set."""
        while not stop.is_set():
            if not self.tick():
                self.wait(pause_s)
        self._hang_up()

    def drain(self, timeout: float) -> bool:
        """Work until every agent has dealt with its events and all is acknowledged."""
        deadline = time.monotonic() + timeout
        waiting = list(self.agents)
        while time.monotonic() < deadline:
            busy = self.tick()
            waiting = [a for a in waiting if not a.settled or a.uplink.has_work]
            if not waiting:
                # One that was done may have got something new meanwhile.
                waiting = [a for a in self.agents if not a.settled or a.uplink.has_work]
                if not waiting:
                    return True
            if not busy:
                self.wait(0.01)
        return False

    def _hang_up(self) -> None:
        """Wait for the requests under way."""
        for talk in list(self._talks.values()):
            talk.exception()
        self._talks.clear()

    def close(self) -> None:
        """Close every agent."""
        self._hang_up()
        self._talkers.shutdown()
        for agent in self.agents:
            agent.close()

    def __enter__(self) -> AgentGroup:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()
