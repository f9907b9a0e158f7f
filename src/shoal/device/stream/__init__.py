"""Events to features on the device: log, triggers, visits, stream functions, features."""

from shoal.device.stream.features import FeatureFold, FeatureStore
from shoal.device.stream.ipv import IpvFold, encode_record, ipv_vector
from shoal.device.stream.log import EventLog
from shoal.device.stream.operators import Sliding, Stream, Tumbling
from shoal.device.stream.triggers import Firing, Trigger, TriggerEngine
from shoal.device.stream.visits import Visit, VisitTracker

__all__ = [
    "EventLog",
    "FeatureFold",
    "FeatureStore",
    "Firing",
    "IpvFold",
    "Sliding",
    "Stream",
    "Trigger",
    "TriggerEngine",
    "Tumbling",
    "Visit",
    "VisitTracker",
    "encode_record",
    "ipv_vector",
]
