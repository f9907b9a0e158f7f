"""Settings of one agent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from shoal.core.settings import Settings

__all__ = ["AgentConfig"]

_GROUPS = ("app", "device", "user")


class AgentConfig(Settings):
    """Everything an agent can be told; loadable from TOML.

    Attributes
    ----------
    data_dir : Path
        The agent's own folder: database, identity, packages. One agent a folder.
    server_url : str
        Address of the cloud, ``https://host:port``.
    enrol_token : str
        The operator's one-time token; empty where enrolment is open.
    attributes : dict
        What cohort predicates see: the maps ``app``, ``device`` and ``user``.
    check_every_s : float
        How often to ask the cloud by itself. An app whose own requests carry the
        check (:class:`~shoal.device.transport.ShoalTransport`) sets it high.
    tunnel : {"websocket", "http", "off"}
        How results travel up.
    virtual : bool
        A device of the cohort ``virtual``: it runs drafts before real devices do.
    backend : {"auto", "process", "inline"}
        Container of the agent's own pool, if it is not given one.
    workers : int
        Workers of that pool.
    sandbox_level : int or None
        Sandbox of that pool; the highest that the machine keeps if absent.
    log_days, log_megabytes : float
        How long, and how much of, the event log is kept.
    disk_megabytes : float or None
        Most that the database may take; no limit if absent.
    reserve_megabytes : float
        Disk space that an install must leave free.
    trial_runs, trial_crashes : int
        Good runs after which a version on trial is good, and failed ones after
        which it is bad and the last good one comes back.
    attempts : int
        Tries of one run before its events are set aside.
    engine : str
        Tensor engine of tasks that name none.
    timeout_s : float
        Longest wait for the cloud in one request.
    download_chunk : int
        Bytes that are downloaded in one step, so that a large model does not
        hold up everything else.
    ca_file : Path or None
        Certificates to trust instead of the system's.
    clock_skew_s : float
        Added to the device's wall clock (demonstrations, tests).
    """

    data_dir: Path
    server_url: str
    enrol_token: str = Field(default="", repr=False)
    attributes: dict[str, dict[str, Any]] = Field(default_factory=dict)
    check_every_s: Annotated[float, Field(gt=0)] = 60.0
    tunnel: Literal["websocket", "http", "off"] = "websocket"
    virtual: bool = False
    backend: Literal["auto", "process", "inline"] = "auto"
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    sandbox_level: Annotated[int, Field(ge=0, le=3)] | None = None
    log_days: Annotated[float, Field(gt=0)] = 7.0
    log_megabytes: Annotated[float, Field(gt=0)] = 64.0
    disk_megabytes: Annotated[float, Field(gt=0)] | None = None
    reserve_megabytes: Annotated[float, Field(ge=0)] = 16.0
    trial_runs: Annotated[int, Field(ge=1)] = 5
    trial_crashes: Annotated[int, Field(ge=1)] = 3
    attempts: Annotated[int, Field(ge=1)] = 3
    engine: str = "onnx"
    timeout_s: Annotated[float, Field(gt=0)] = 10.0
    download_chunk: Annotated[int, Field(ge=4096)] = 1 << 20
    ca_file: Path | None = None
    clock_skew_s: float = 0.0

    @field_validator("data_dir")
    @classmethod
    def _is_absolute(cls, value: Path) -> Path:
        return value.absolute()  # workers run in a folder of their own

    @field_validator("server_url")
    @classmethod
    def _is_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected http://host[:port] or https://host[:port]")
        return value.rstrip("/")

    @field_validator("attributes")
    @classmethod
    def _has_known_groups(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        unknown = sorted(set(value) - set(_GROUPS))
        if unknown:
            raise ValueError(f"unknown group {unknown[0]!r}, known: {', '.join(_GROUPS)}")
        return value
