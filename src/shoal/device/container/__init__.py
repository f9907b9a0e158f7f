"""Runs tasks apart from the agent: resident workers, deadlines, a sandbox."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.device.container.circuit import CircuitBreaker
    from shoal.device.container.pool import VMPool, VMPoolConfig
    from shoal.device.container.requests import RunReply, RunRequest, TaskCode
    from shoal.device.container.sandbox import probe_sandbox

__all__ = [
    "CircuitBreaker",
    "RunReply",
    "RunRequest",
    "TaskCode",
    "VMPool",
    "VMPoolConfig",
    "probe_sandbox",
]

_HOMES = {
    "CircuitBreaker": "circuit",
    "RunReply": "requests",
    "RunRequest": "requests",
    "TaskCode": "requests",
    "VMPool": "pool",
    "VMPoolConfig": "pool",
    "probe_sandbox": "sandbox",
}


def __getattr__(name: str) -> Any:
    # Workers import this package too and must not load what only the pool needs.
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
