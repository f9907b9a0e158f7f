"""A few dozen aircraft in one process: real agents, each fed its own departures.

Run as ``python -m shoal.tasks.departure_delay.fleet`` with a JSON description
(:class:`FleetSpec`) as the first line of standard input. Every later line is
an order, every line of standard output an answer, both one JSON object:

``{"feed_until_us": t}``  append every event up to ``t``, then keep working
``{"drain": seconds}``    work until all is predicted and acknowledged
``{"stop": true}``        close the agents and end
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from shoal.data.flights import FlightEvent, event_stream, load_flights
from shoal.device import Agent, AgentConfig, AgentGroup, VMPool, VMPoolConfig
from shoal.wire.events import Event, EventBatch

__all__ = ["AircraftSpec", "FleetSpec", "main"]


class AircraftSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One aircraft: who it is, and how its box behaves.

    ``clock_skew_s`` is how far its clock is off; before ``online_from_us`` of
    the replayed time it has no connection.
    """

    tailnum: str
    attributes: dict[str, dict[str, Any]]
    clock_skew_s: float = 0.0
    online_from_us: int = 0


class FleetSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What one process of the fleet drives."""

    server_url: str
    folder: str
    enrol_token: str
    aircraft: list[AircraftSpec]
    workers: int = 1
    check_every_s: float = 0.5


class _Aircraft:
    """An agent and the events that it has yet to see."""

    def __init__(self, spec: AircraftSpec, agent: Agent, events: list[FlightEvent]) -> None:
        self.spec = spec
        self.agent = agent
        self._events = events
        self._next = 0
        self.raw_bytes = 0

    def feed(self, until_us: int) -> int:
        """Append the events up to ``until_us`` and count what sending them raw would take."""
        first = self._next
        recorded: list[Event] = []
        while self._next < len(self._events) and self._events[self._next].ts_us <= until_us:
            event = self._events[self._next]
            recorded.append(
                self.agent.record(event.kind, event.page, event.content, ts_us=event.ts_us)
            )
            self._next += 1
        if recorded:
            batch = EventBatch(1, bytes(16), "departure_delay", 1, 0, 0, 0, recorded)
            self.raw_bytes += len(msgspec.msgpack.encode(batch))
        return self._next - first


def _orders(stream: Iterator[str]) -> queue.SimpleQueue[dict[str, Any]]:
    """Read orders in the background; a closed pipe means stop."""
    orders: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def read() -> None:
        for line in stream:
            orders.put(json.loads(line))
        orders.put({"stop": True})

    threading.Thread(target=read, name="orders", daemon=True).start()
    return orders


def _answer(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Drive the aircraft of one process until told to stop."""
    spec = msgspec.json.decode(sys.stdin.readline(), type=FleetSpec)
    orders = _orders(iter(sys.stdin.readline, ""))
    table = load_flights()
    pool = VMPool(VMPoolConfig(size=spec.workers, prewarm=spec.workers, deadline_ms=5000))
    aircraft = []
    for one in spec.aircraft:
        config = AgentConfig(
            data_dir=Path(spec.folder) / one.tailnum,
            server_url=spec.server_url,
            enrol_token=spec.enrol_token,
            attributes=one.attributes,
            check_every_s=spec.check_every_s,
            clock_skew_s=one.clock_skew_s,
        )
        aircraft.append(_Aircraft(one, Agent(config, pool=pool), event_stream(table, one.tailnum)))
    group = AgentGroup([plane.agent for plane in aircraft])
    group.open()
    _answer(ready=len(aircraft))
    try:
        _work(group, aircraft, orders)
    finally:
        group.close()
        pool.close()


def _work(
    group: AgentGroup, aircraft: list[_Aircraft], orders: queue.SimpleQueue[dict[str, Any]]
) -> None:
    while True:
        busy = group.tick()
        try:
            order = orders.get(timeout=0.0 if busy else 0.02)
        except queue.Empty:
            continue
        if "feed_until_us" in order:
            until = int(order["feed_until_us"])
            fed = 0
            for plane in aircraft:
                plane.agent.online = plane.spec.online_from_us <= until
                fed += plane.feed(until)
            _answer(fed=fed, until_us=until)
        elif "drain" in order:
            start = time.monotonic()
            done = group.drain(float(order["drain"]))
            _answer(
                drained=done,
                seconds=time.monotonic() - start,
                raw_bytes=sum(plane.raw_bytes for plane in aircraft),
                status={plane.spec.tailnum: plane.agent.status() for plane in aircraft},
            )
        elif "stop" in order:
            return


if __name__ == "__main__":
    main()
