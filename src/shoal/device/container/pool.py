"""The pool of virtual machines that runs tasks; the same face over every backend."""

from __future__ import annotations

import sys
from concurrent.futures import Future
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from shoal.core.errors import UnavailableError
from shoal.device.container.requests import RunReply, RunRequest, TaskCode

__all__ = ["VMPool", "VMPoolConfig"]


class VMPoolConfig(BaseModel):
    """How tasks are run.

    Attributes
    ----------
    backend : {"auto", "process", "inline"}
        ``process``: resident worker processes in a sandbox. ``inline``: in this
        process, without isolation, for tests and debugging. ``auto``: process
        where the platform can fork, else inline.
    size : int
        Workers that run at the same time.
    resident : int
        Workers that may be alive: those that have nothing to do keep their task
        loaded until another task needs the place. At least ``size``.
    prewarm : int
        Workers that ``VMPool.prewarm`` starts ahead of the first run.
    recycle_after : int
        Runs after which a worker is replaced.
    recycle_growth_mb : int
        Growth of a worker's resident memory after which it is replaced.
    memory_limit_mb : int
        Upper bound on a task's own memory limit.
    deadline_ms : int
        Upper bound on a task's own deadline.
    grace_ms : int
        At the deadline a run is asked to stop, which says where it was; so much
        later its worker is killed.
    load_ms : int
        Time to fork a worker and load the task.
    queue_depth : int
        Runs of one task that may wait; more are refused.
    sandbox_level : int or None
        0 to 3; the highest that this machine can keep if absent.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: Literal["auto", "process", "inline"] = "auto"
    size: int = Field(default=2, ge=1, le=256)
    resident: int = Field(default=8, ge=1, le=1024)
    prewarm: int = Field(default=1, ge=0)
    recycle_after: int = Field(default=1000, ge=1)
    recycle_growth_mb: int = Field(default=128, ge=1)
    memory_limit_mb: int = Field(default=2048, ge=16)
    deadline_ms: int = Field(default=60_000, ge=1)
    grace_ms: int = Field(default=40, ge=0)
    load_ms: int = Field(default=30_000, ge=1)
    queue_depth: int = Field(default=64, ge=1)
    sandbox_level: int | None = Field(default=None, ge=0, le=3)


class Backend(Protocol):
    """What a backend must offer."""

    sandbox_level: int

    def submit(self, request: RunRequest, deadline_s: float) -> Future[RunReply]: ...

    def prewarm(self, code: TaskCode, number: int) -> None: ...

    def stats(self) -> dict[str, Any]: ...

    def close(self) -> None: ...


class VMPool:
    """Runs tasks in resident virtual machines; may be shared by agents and threads.

    Parameters
    ----------
    config : VMPoolConfig, optional
        How.

    Raises
    ------
    UnavailableError
        The backend or the sandbox level is not to be had on this machine.

    Examples
    --------
    >>> with VMPool(VMPoolConfig(size=1)) as pool:  # doctest: +SKIP
    ...     pool.submit(request).result().emits
    """

    def __init__(self, config: VMPoolConfig | None = None) -> None:
        self.config = config or VMPoolConfig()
        self.backend = self._choose()
        self._backend = self._make()
        #: The sandbox level that tasks get.
        self.sandbox_level = self._backend.sandbox_level

    def _choose(self) -> Literal["process", "inline"]:
        if self.config.backend != "auto":
            return self.config.backend
        return "process" if sys.platform == "linux" else "inline"

    def _make(self) -> Backend:
        if self.backend == "inline":
            from shoal.device.container.inline import InlineBackend  # noqa: PLC0415 - by choice

            return InlineBackend(self.config)
        if sys.platform != "linux":
            raise UnavailableError("worker processes need Linux", hint='use backend="inline"')
        from shoal.device.container.process import ProcessBackend  # noqa: PLC0415 - by choice

        return ProcessBackend(self.config)

    def submit(self, request: RunRequest, *, deadline_ms: int | None = None) -> Future[RunReply]:
        """Run a task; the reply says how it went, it is never an exception of the task.

        Parameters
        ----------
        request : RunRequest
            What to run on.
        deadline_ms : int, optional
            Instead of the task's own deadline; bounded by the pool's.

        Returns
        -------
        Future of RunReply
            Outcome 106 (rate limited) when the task's queue is full, 309
            (cancelled) when the pool closes first.
        """
        wanted = request.code.deadline_ms if deadline_ms is None else deadline_ms
        return self._backend.submit(request, min(wanted, self.config.deadline_ms) / 1000)

    def prewarm(self, code: TaskCode) -> None:
        """Start workers for a task ahead of its first run; returns at once."""
        self._backend.prewarm(code, min(self.config.prewarm, self.config.size))

    def stats(self) -> dict[str, Any]:
        """Return counts: runs, failures, workers started and ended, what waits."""
        return {
            "backend": self.backend,
            "sandbox_level": self.sandbox_level,
            **self._backend.stats(),
        }

    def close(self) -> None:
        """End every worker; what waits is answered with 309 (cancelled)."""
        self._backend.close()

    def __enter__(self) -> VMPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
