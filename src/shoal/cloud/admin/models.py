"""Bodies of the admin interface; unknown fields are refused."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = [
    "ActionBody",
    "CohortBody",
    "CohortView",
    "EnrolmentTokenBody",
    "FloorBody",
    "OperatorBody",
    "ReleaseBody",
    "ScenarioView",
    "TaskView",
    "VersionView",
]


class CohortBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A cohort to make or change: its name and its CEL predicate."""

    name: str
    predicate: str


class CohortView(msgspec.Struct, frozen=True, kw_only=True):
    """A cohort, its devices, and how often its predicate failed."""

    id: int
    name: str
    predicate: str
    epoch: int
    devices: int
    errors: int
    last_error: str


class ReleaseBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A release to create; ``policy`` as in ``ReleasePolicy``, defaults where absent."""

    task: str
    version: int
    cohort: str | int = "everyone"
    policy: dict[str, Any] = {}


class ActionBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Why an operator acts; ``supersede`` ends another release of the task in the cohort."""

    reason: str = ""
    supersede: bool = False


class FloorBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The lowest version that devices may still run; it only rises."""

    version: int


class EnrolmentTokenBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """For how many devices and how long (seconds) an enrolment token is good."""

    uses: int = 1
    ttl_s: float = 86_400.0
    note: str = ""


class OperatorBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """An operator: viewer, author, releaser or admin."""

    name: str
    role: str


class ScenarioView(msgspec.Struct, frozen=True, kw_only=True):
    """A scenario and its number of tasks."""

    name: str
    tasks: int


class TaskView(msgspec.Struct, frozen=True, kw_only=True):
    """A task and its versions, oldest first."""

    name: str
    scenario: str
    owner: str
    versions: list[int]
    floor: int


class VersionView(msgspec.Struct, frozen=True, kw_only=True):
    """One published version; ``sha256`` in hex, ``size`` in bytes."""

    task: str
    version: int
    label: str
    sha256: str
    size: int
    tag: str
    commit: str
    created_us: int
    manifest: dict[str, Any]
