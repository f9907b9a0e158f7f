"""The device's end: events, tasks in containers, releases, uplink.

Names load when first used, so that importing the package costs nothing and a
worker process loads only what it runs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.device.agent import Agent
    from shoal.device.config import AgentConfig
    from shoal.device.container import RunReply, RunRequest, TaskCode, VMPool, VMPoolConfig
    from shoal.device.engine import Engine, load_engine
    from shoal.device.group import AgentGroup
    from shoal.device.store import DeviceStore
    from shoal.device.stream.features import FeatureStore
    from shoal.device.stream.log import EventLog
    from shoal.device.stream.operators import Stream
    from shoal.device.stream.triggers import Trigger, TriggerEngine
    from shoal.device.transport import AsyncShoalTransport, ShoalTransport
    from shoal.device.tunnel import Tunnel
    from shoal.device.uplink import Uplink

_HOMES = {
    "Agent": "agent",
    "AgentConfig": "config",
    "AgentGroup": "group",
    "AsyncShoalTransport": "transport",
    "DeviceStore": "store",
    "Engine": "engine",
    "EventLog": "stream.log",
    "FeatureStore": "stream.features",
    "RunReply": "container",
    "RunRequest": "container",
    "ShoalTransport": "transport",
    "Stream": "stream.operators",
    "TaskCode": "container",
    "Trigger": "stream.triggers",
    "TriggerEngine": "stream.triggers",
    "Tunnel": "tunnel",
    "Uplink": "uplink",
    "VMPool": "container",
    "VMPoolConfig": "container",
    "load_engine": "engine",
}

__all__ = [
    "Agent",
    "AgentConfig",
    "AgentGroup",
    "AsyncShoalTransport",
    "DeviceStore",
    "Engine",
    "EventLog",
    "FeatureStore",
    "RunReply",
    "RunRequest",
    "ShoalTransport",
    "Stream",
    "TaskCode",
    "Trigger",
    "TriggerEngine",
    "Tunnel",
    "Uplink",
    "VMPool",
    "VMPoolConfig",
    "load_engine",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
