"""What waits for one version of one task, and how far ahead its workers are fed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from shoal.device.container.requests import TaskCode
from shoal.device.container.slots import Job, Slot

__all__ = ["Lane", "Lanes"]

#: Work, in microseconds, that may lie ahead of a worker: enough to keep it busy
#: while the pool's thread waits for the interpreter, too little to matter to balance.
_AHEAD_US = 4000.0
_MOST_AHEAD = 256
#: Lanes above which unused ones are forgotten.
_MANY_LANES = 256
#: Backlog, in microseconds, that is worth another worker.
_WORTH_A_WORKER_US = 3000.0


class Lane:
    """The queue and the workers of one version of one task.

    Attributes
    ----------
    queue : deque of Job
        Not given to a worker yet.
    slots : list of Slot
        Its workers that take orders.
    run_us : float
        Recent length of a run; 0 while unknown.
    """

    __slots__ = ("code", "queue", "run_us", "slots")

    def __init__(self, code: TaskCode) -> None:
        self.code = code
        self.queue: deque[Job] = deque()
        self.slots: list[Slot] = []
        self.run_us = 0.0

    def note(self, wall_us: int) -> None:
        """Take note of the length of a run."""
        before = self.run_us
        self.run_us = before + (wall_us + 5.0 - before) * 0.1 if before else wall_us + 5.0

    def depth(self) -> int:
        """Return how many runs a worker may have, the running one included."""
        if not self.run_us:
            return 1
        return min(_MOST_AHEAD, 1 + int(_AHEAD_US / self.run_us))

    def wants_worker(self) -> bool:
        """Say whether what waits is worth one more worker."""
        if not self.slots or not self.run_us:
            return True
        return len(self.queue) * self.run_us > _WORTH_A_WORKER_US

    def idle(self) -> Slot | None:
        """Return a worker with nothing to do."""
        for slot in self.slots:
            if not slot.jobs:
                return slot
        return None

    def least_busy(self, most: int) -> Slot | None:
        """Return the worker with the fewest runs, if it has fewer than ``most``."""
        best: Slot | None = None
        for slot in self.slots:
            if len(slot.jobs) < most and slot.ready and not slot.phase:
                most, best = len(slot.jobs), slot
        return best

    def describe(self) -> dict[str, Any]:
        """Return counts for the pool's statistics."""
        return {
            "task": self.code.task,
            "version": self.code.version,
            "waiting": len(self.queue),
            "workers": len(self.slots),
            "run_us": round(self.run_us),
        }


class Lanes:
    """Every lane, and the turns of those in which something waits.

    Attributes
    ----------
    hungry : dict of int to Lane
        Lanes with a queue, in the order of their turns.
    """

    def __init__(self) -> None:
        self._lanes: dict[Any, Lane] = {}
        self.hungry: dict[int, Lane] = {}

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._lanes.values())

    def of(self, code: TaskCode) -> Lane:
        """Return the lane of a version of a task."""
        lane = self._lanes.get(code.key)
        if lane is None:
            if len(self._lanes) >= _MANY_LANES:  # versions come and go
                kept = {key: old for key, old in self._lanes.items() if old.queue or old.slots}
                self._lanes = kept
            lane = self._lanes[code.key] = Lane(code)
        return lane

    def push(self, job: Job) -> None:
        """A run waits, behind the others."""
        queue = job.lane.queue
        queue.append(job)
        if len(queue) == 1:
            self.hungry[id(job.lane)] = job.lane

    def push_front(self, lane: Lane, jobs: list[Job]) -> None:
        """Runs wait again, before the others and in their order."""
        lane.queue.extendleft(reversed(jobs))
        if lane.queue:
            self.hungry[id(lane)] = lane

    def take_all(self, lane: Lane) -> list[Job]:
        """Empty a lane and return what waited in it."""
        jobs = list(lane.queue)
        lane.queue.clear()
        self.fed(lane)
        return jobs

    def fed(self, lane: Lane) -> None:
        """Nothing waits in a lane any more."""
        self.hungry.pop(id(lane), None)

    def had_its_turn(self, lane: Lane) -> None:
        """A lane got a worker: it stands behind the others that wait."""
        self.hungry[id(lane)] = self.hungry.pop(id(lane))

    def others_wait(self, lane: Lane) -> bool:
        """Say whether something waits in another lane."""
        return len(self.hungry) > (id(lane) in self.hungry)

    def waiting(self) -> int:
        """Return how many runs wait."""
        return sum(len(lane.queue) for lane in self._lanes.values())
