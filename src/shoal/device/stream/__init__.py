"""Events to features on the device: log, triggers, visits, stream functions, features."""

from shoal.device.stream.log import EventLog
from shoal.device.stream.triggers import Firing, Trigger, TriggerEngine

__all__ = [
    "EventLog",
    "Firing",
    "Trigger",
    "TriggerEngine",
]
