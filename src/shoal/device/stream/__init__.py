"""Events to features on the device: log, triggers, visits, stream functions, features."""

from shoal.device.stream.features import FeatureFold, FeatureStore
from shoal.device.stream.log import EventLog
from shoal.device.stream.triggers import Firing, Trigger, TriggerEngine
from shoal.device.stream.visits import Visit, VisitTracker

__all__ = [
    "EventLog",
    "FeatureFold",
    "FeatureStore",
    "Firing",
    "Trigger",
    "TriggerEngine",
    "Visit",
    "VisitTracker",
]
