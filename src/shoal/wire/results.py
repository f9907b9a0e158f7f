"""What comes back from devices: features, results, run summaries, install reports."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = [
    "FeatureRecord",
    "InstallReport",
    "InstallState",
    "ResultBatch",
    "ResultRecord",
    "RunSummary",
]


class FeatureRecord(msgspec.Struct, frozen=True, array_like=True):
    """One feature value.

    Attributes
    ----------
    task, version : str, int
        Who made it.
    name, key : str
        Which feature of which entity (for example an item or a visit id).
    ts_us : int
        Event time it speaks of, microseconds since 1970 (UTC).
    revision : int
        Rises when a late event changed a value already sent.
    dtype : str
        ``"f32[32]"`` (little-endian), ``"json"`` (UTF-8) or ``"msgpack"``.
    value : bytes
        The value in that form.
    model_version : str or None
        Version of the model that made it, when one did.
    """

    task: str
    version: int
    name: str
    key: str
    ts_us: int
    revision: int
    dtype: str
    value: bytes
    model_version: str | None = None


class ResultRecord(msgspec.Struct, frozen=True, array_like=True):
    """One declared output that a task emitted.

    ``id`` is 16 bytes and derives from (device, task, version, run, position), so a
    run that is repeated after a crash repeats its ids and is stored once.
    """

    id: bytes
    task: str
    version: int
    name: str
    ts_us: int
    value: Any
    model_version: str | None = None


class RunSummary(msgspec.Struct, frozen=True, array_like=True):
    """How one run of a task went; ``outcome`` is 0 or an :class:`~shoal.wire.ErrorCode`."""

    run: bytes
    task: str
    version: int
    outcome: int
    backend: str
    cpu_us: int
    wall_us: int
    peak_kb: int
    ts_us: int = 0
    latency_us: int = 0
    message: str = ""


class InstallState:
    """States of a package on a device, as reported."""

    WANTED = "wanted"
    DOWNLOADING = "downloading"
    VERIFIED = "verified"
    TRIAL = "trial"
    GOOD = "good"
    REFUSED = "refused"
    BAD = "bad"
    REMOVED = "removed"


class InstallReport(msgspec.Struct, frozen=True, array_like=True):
    """A device says what became of (task, version); ``code`` is 0 or an error code."""

    task: str
    version: int
    state: str
    code: int
    ts_us: int = 0
    message: str = ""


class ResultBatch(msgspec.Struct, frozen=True, array_like=True):
    """Everything one uplink batch carries besides raw events."""

    schema: int
    device: bytes
    seq: int
    results: list[ResultRecord] = []
    features: list[FeatureRecord] = []
    runs: list[RunSummary] = []
    installs: list[InstallReport] = []
    dropped: dict[str, int] = {}
