"""Settings of one cloud."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from shoal.wire.limits import DEFAULT_LIMITS, WireLimits

__all__ = ["CloudConfig"]


def _limits(value: Any) -> Any:
    """Read limits from a TOML table; unknown names are refused like everywhere else."""
    if not isinstance(value, dict):
        return value
    unknown = sorted(set(value) - set(WireLimits.__struct_fields__))
    if unknown:
        raise ValueError(f"unknown limit {unknown[0]!r}")
    try:
        return msgspec.convert(value, WireLimits)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error


class CloudConfig(BaseModel):
    """Everything a cloud can be told; loadable from TOML.

    Attributes
    ----------
    data_dir : Path
        Folder of the database, the files, the repositories and the keys.
    database_url : str or None
        SQLAlchemy address; SQLite inside ``data_dir`` if absent.
    host, port : str, int
        Where to listen; port 0 takes any free one.
    public_url : str or None
        Address that devices reach the cloud by, written into notices; relative
        addresses are written if absent.
    open_enrolment : bool
        Whether a device may enrol without an operator's token.
    limits : WireLimits
        Sizes that are checked before anything is decoded.
    notice_ttl_s : float
        Life of the director's signature on a desired set, seconds.
    public_notices : bool
        Serve notices without a token, so that a shared cache may hold them. A
        notice then no longer stays inside its cohort; what it names still does
        not install without the signatures.
    pull_rate_limit : float
        Notices and files that may be pulled per second, over all devices; more
        are asked to come back (429). 0: no limit. Jitter follows from it.
    device_rate_limit : float
        Enrolments, profiles and uplinks of one device per second; 0: no limit.
    token_ttl_s : float
        Life of a device's token, seconds.
    offline_keys_dir : Path or None
        Folder of the image repository's offline keys; ``data_dir/keys/offline`` if
        absent. In production this is a medium that is mounted only to publish.
    admin_token : str or None
        Bearer token of the administrator; without one, only loopback may
        administer.
    tick_s : float
        Seconds between two rounds of the periodic work.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    data_dir: Path
    database_url: str | None = None
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8400
    public_url: str | None = None
    open_enrolment: bool = False
    limits: Annotated[WireLimits, BeforeValidator(_limits)] = DEFAULT_LIMITS
    notice_ttl_s: Annotated[float, Field(gt=0)] = 86_400.0
    public_notices: bool = False
    pull_rate_limit: Annotated[float, Field(ge=0)] = 0.0
    device_rate_limit: Annotated[float, Field(ge=0)] = 0.0
    token_ttl_s: Annotated[float, Field(gt=0)] = 7 * 86_400.0
    offline_keys_dir: Path | None = None
    admin_token: str | None = Field(default=None, repr=False)
    tick_s: Annotated[float, Field(gt=0)] = 1.0

    @property
    def resolved_database_url(self) -> str:
        """The database's address, with the default filled in."""
        return self.database_url or f"sqlite:///{self.data_dir.absolute() / 'cloud.db'}"

    @property
    def resolved_offline_keys_dir(self) -> Path:
        """The offline keys' folder, with the default filled in."""
        return self.offline_keys_dir or self.data_dir / "keys" / "offline"
