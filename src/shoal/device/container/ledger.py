"""What has become of runs: replies for their callers, and the pool's counts."""

from __future__ import annotations

import signal
from collections import Counter
from concurrent.futures import Future

from shoal.device.container.messages import NO_MEMORY, SANDBOX_REFUSED
from shoal.device.container.requests import RunReply, TaskCode
from shoal.device.container.slots import Job
from shoal.wire.codes import ErrorCode

__all__ = ["Ledger", "cause_of"]


class Ledger:
    """Finished runs and counts.

    Attributes
    ----------
    done : list of (Future, RunReply)
        Finished since somebody last took them out and told the callers.
    counts, outcomes : Counter
        Events of the pool by name, and failed runs by outcome.
    """

    def __init__(self) -> None:
        self.done: list[tuple[Future[RunReply], RunReply]] = []
        self.counts: Counter[str] = Counter()
        self.outcomes: Counter[int] = Counter()

    def finish(self, job: Job, reply: RunReply) -> None:
        """A worker has answered."""
        if (reply.emits or reply.features) and not _is_declared(reply, job.lane.code):
            # The runtime in the worker refuses these; who gets here has tampered with it.
            self.counts["undeclared"] += 1
            text = "the task sent an output that it did not declare"
            self.answer(job, ErrorCode.SANDBOX_VIOLATION, text)
            return
        self.counts["runs"] += 1
        if reply.outcome:
            self.counts["failures"] += 1
            self.outcomes[reply.outcome] += 1
        self.done.append((job.future, reply))

    def answer(self, job: Job, outcome: int, message: str) -> None:
        """The pool answers instead of a worker."""
        self.counts["runs"] += 1
        self.counts["failures"] += 1
        self.outcomes[int(outcome)] += 1
        reply = RunReply(job.run, int(outcome), message=message, backend="process")
        self.done.append((job.future, reply))


def _is_declared(reply: RunReply, code: TaskCode) -> bool:
    declared = code.outputs
    return all(entry[0] in declared for entry in reply.emits) and all(
        entry[0] in declared for entry in reply.features
    )


def cause_of(status: int | None) -> tuple[int, str]:
    """Return outcome and message for the exit status of a worker that died on a run."""
    if status in {NO_MEMORY, -signal.SIGKILL}:
        return ErrorCode.MEMORY, "the worker ran out of memory or was killed by the system"
    if status == SANDBOX_REFUSED:
        return ErrorCode.SANDBOX_VIOLATION, "the sandbox could not be entered"
    if status == -signal.SIGSYS:
        return ErrorCode.SANDBOX_VIOLATION, "the task made a system call that is forbidden"
    if status is not None and status < 0:
        return ErrorCode.VM_CRASHED, f"the worker died of {signal.Signals(-status).name}"
    if status is None:
        return ErrorCode.VM_CRASHED, "the worker ended, nobody knows how"
    return ErrorCode.VM_CRASHED, f"the worker ended itself with status {status}"
