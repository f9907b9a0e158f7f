"""The messages and formats that cloud and device share."""

from shoal.wire.buckets import BUCKETS, bucket
from shoal.wire.codes import HTTP_STATUS, ErrorCode
from shoal.wire.events import Event, EventBatch, EventKind, new_ulid
from shoal.wire.limits import DEFAULT_LIMITS, WireLimits
from shoal.wire.notices import DesiredTask, FileRef, ReleaseNotice
from shoal.wire.package import BuiltPackage, TaskPackage, build_package
from shoal.wire.profile import HeldTask, TaskProfile, profile_digest
from shoal.wire.results import (
    FeatureRecord,
    InstallReport,
    InstallState,
    ResultBatch,
    ResultRecord,
    RunSummary,
)
from shoal.wire.specs import TaskManifest, TriggerSpec

__all__ = [
    "BUCKETS",
    "DEFAULT_LIMITS",
    "HTTP_STATUS",
    "BuiltPackage",
    "DesiredTask",
    "ErrorCode",
    "Event",
    "EventBatch",
    "EventKind",
    "FeatureRecord",
    "FileRef",
    "HeldTask",
    "InstallReport",
    "InstallState",
    "ReleaseNotice",
    "ResultBatch",
    "ResultRecord",
    "RunSummary",
    "TaskManifest",
    "TaskPackage",
    "TaskProfile",
    "TriggerSpec",
    "WireLimits",
    "bucket",
    "build_package",
    "new_ulid",
    "profile_digest",
]
