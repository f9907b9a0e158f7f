"""What a task manifest is made of: structs, and the small grammars inside them.

Reading, writing and checking whole manifests is in :mod:`shoal.wire.manifest`.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from shoal.core.errors import InputError
from shoal.wire.events import EventKind

__all__ = [
    "MANIFEST_SCHEMA",
    "Condition",
    "DeterminismSpec",
    "InputSpec",
    "IsolationSpec",
    "LimitSpec",
    "OutputSpec",
    "ProvenanceSpec",
    "RequiresSpec",
    "ResourceSpec",
    "TaskManifest",
    "TriggerSpec",
    "check_member_path",
    "check_task_name",
    "parse_pattern",
]

#: Schema number that this release writes.
MANIFEST_SCHEMA = 1

_TASK_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
_KIND_NAMES = {kind.name.lower(): int(kind) for kind in EventKind}

Operator = Literal["==", "!=", "<", "<=", ">", ">=", "in", "exists"]


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """One condition on the content of the event that matches step ``step`` (from 0).

    ``op`` ``"in"`` wants a list as ``value``; ``"exists"`` wants ``true`` (the
    default) or ``false``. An event without the field meets no condition but
    ``exists = false``.
    """

    step: int = 0
    field: str
    op: Operator
    value: Any = True


class TriggerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """When a task wakes (Walle sheet B.2).

    Attributes
    ----------
    name : str
        Unique within the task.
    sequence : list of str
        ``kind@page`` patterns: kind is the name of an :class:`EventKind` in
        lower case, a number, or ``*``; page is a name or ``*``.
    mode : {"strict", "relaxed"}
        Whether other events may lie between two steps.
    within_ms : int
        Longest time from the first to the last step; 0 = no limit. With
        ``not_followed_by``: how long to wait for the event that must not come.
    where : list of Condition
        All must hold.
    not_followed_by : str or None
        Fire only if no event of this pattern follows within ``within_ms``.
    count : int
        Fire at every ``count``-th completion of the sequence ...
    without : str or None
        ... with no event of this pattern among them (it resets the count).
    cooldown_ms : int
        After firing, do not fire again for this long.
    """

    name: str
    sequence: list[str]
    mode: Literal["strict", "relaxed"] = "strict"
    within_ms: int = 0
    where: list[Condition] = []
    not_followed_by: str | None = None
    count: int = 1
    without: str | None = None
    cooldown_ms: int = 0


class InputSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Which events a run gets.

    ``scope`` ``"since"``: every readable event since the task's last committed
    run, up to and including the one that fired, each exactly once and in order;
    ``"visit"``: the events of the page visit that has just closed; ``"event"``:
    only the events that matched. ``events`` are the patterns that the task may
    read at all, ``features`` the names of its own features that a run gets back
    (the newest 100 keys of each).
    """

    scope: Literal["since", "visit", "event"] = "event"
    events: list[str] = msgspec.field(default_factory=lambda: ["*@*"])
    max_events: int = 1000
    features: list[str] = []


class OutputSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One output that the task may emit; anything undeclared is refused."""

    name: str
    dtype: str = "json"
    kind: Literal["result", "feature", "events"] = "result"
    bytes_per_day: int = 0
    uplink: Literal["now", "soon", "idle"] = "soon"


class ResourceSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One file of the task.

    ``sha256`` (lower-case hex) and ``size`` (bytes) are filled in by building.
    A ``separate`` file does not travel inside the package: it is downloaded by
    its own hash, so two versions, or two tasks, share it.
    """

    name: str
    path: str
    sha256: str = ""
    size: int = 0
    scope: Literal["shared", "exclusive"] = "shared"
    kind: Literal["model", "data", "code"] = "data"
    separate: bool = False


class RequiresSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a device must have, or it refuses the task as incompatible."""

    python: str = ">=3.11"
    protocol: int = 1
    engines: dict[str, str] = {}
    memory_mb: int = 0
    disk_mb: int = 0
    capabilities: list[str] = []


class LimitSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What one run may use; ``runs_per_hour`` 0 = no limit."""

    deadline_ms: int = 300
    memory_mb: int = 256
    runs_per_hour: int = 0
    output_kb: int = 64


class IsolationSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The wanted container backend and the least sandbox level (0 to 3)."""

    backend: Literal["process", "interpreter", "inline"] = "process"
    sandbox_level: int = 0


class DeterminismSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the same package and events give the same bytes."""

    seed: int = 0
    uses_clock: bool = False


class ProvenanceSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Where the package comes from; filled in by the builder."""

    commit: str = ""
    tag: str = ""
    builder: str = ""


class TaskManifest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about one version of a task; ``version`` 0 = not built yet."""

    schema: int = MANIFEST_SCHEMA
    task: str
    version: int = 0
    label: str = ""
    entry: dict[str, str] = msgspec.field(default_factory=lambda: {"device": "main:run"})
    triggers: list[TriggerSpec] = []
    input: InputSpec = InputSpec()
    outputs: list[OutputSpec] = []
    resources: list[ResourceSpec] = []
    requires: RequiresSpec = RequiresSpec()
    limits: LimitSpec = LimitSpec()
    isolation: IsolationSpec = IsolationSpec()
    model_version: str | None = None
    determinism: DeterminismSpec = DeterminismSpec()
    provenance: ProvenanceSpec = ProvenanceSpec()


def check_task_name(name: str) -> str:
    """Return ``name`` if it is a task name, else raise :class:`InputError`."""
    if not _TASK_NAME.fullmatch(name):
        raise InputError(
            "a task name is a lower-case letter and up to 63 of a-z 0-9 _ . -",
            field="task",
            value=name,
        )
    return name


def check_member_path(path: str, *, field: str = "path", row: int | None = None) -> str:
    """Return ``path`` if it stays inside the folder it is unpacked into.

    It must be relative, with ``/`` between its parts, none of them empty, ``.``
    or ``..``, without characters that mean something to a file system.

    Raises
    ------
    InputError
        Otherwise; ``row`` names the member.
    """
    parts = path.split("/")
    if (
        not path
        or len(path.encode(errors="replace")) > 240
        or any(part in {"", ".", ".."} or part != part.strip() for part in parts)
        or any(not char.isprintable() or char in '\\:*?"<>|' for char in path)
    ):
        raise InputError(
            "expected a plain relative path that does not climb out of its folder",
            field=field,
            value=path,
            row=row,
        )
    return path


def parse_pattern(text: str) -> tuple[int | None, str | None]:
    """Read a ``kind@page`` pattern.

    Returns
    -------
    tuple of (kind, page)
        ``None`` stands for ``*``.

    Raises
    ------
    InputError
        No ``@``, an unknown kind name, or an empty page.
    """
    kind, at, page = text.partition("@")
    if not at or not page:
        raise InputError("expected kind@page", field="pattern", value=text)
    wanted_page = None if page == "*" else page
    if kind == "*":
        return None, wanted_page
    if kind in _KIND_NAMES:
        return _KIND_NAMES[kind], wanted_page
    if kind.isascii() and kind.isdigit():
        return int(kind), wanted_page
    raise InputError(
        "unknown event kind",
        field="pattern",
        value=text,
        hint=f"a number, * or one of {', '.join(_KIND_NAMES)}",
    )
