"""The fleet: devices, locking out, letting in, operators and keys."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

from litestar import Request, get, post, put
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from litestar.types import ControllerRouterHandler

from shoal.cloud.admin.auth import AdminAuth, Role, needs
from shoal.cloud.admin.models import EnrolmentTokenBody, OperatorBody
from shoal.cloud.fleet import FleetDevice
from shoal.core.errors import InputError

if TYPE_CHECKING:
    from shoal.cloud.service import Cloud

__all__ = ["fleet_routes"]

AnyRequest = Request[Any, Any, Any]
_Limit = Annotated[int, QueryParameter(ge=1, le=1000)]


def _device(text: str) -> bytes:
    try:
        device = bytes.fromhex(text)
    except ValueError:
        device = b""
    if len(device) != 16:
        raise InputError("a device id has 32 hex digits", field="device", value=text)
    return device


def fleet_routes(cloud: Cloud) -> list[ControllerRouterHandler]:
    """Return the handlers about devices."""

    @get("/fleet", guards=[needs(Role.VIEWER)], sync_to_thread=True)
    def fleet() -> dict[str, Any]:
        """Return totals: devices, by cohort set, holdings by task, version and state."""
        return cloud.fleet.counts()

    @get("/fleet/devices", guards=[needs(Role.VIEWER)], sync_to_thread=True)
    def devices(
        after: FromQuery[str] = "",
        limit: _Limit = 100,
        cohort_set: FromQuery[int | None] = None,
        task: FromQuery[str | None] = None,
    ) -> list[FleetDevice]:
        """List devices by id, a page at a time: ``after`` is the last id of the page before."""
        return cloud.fleet.devices(
            after=_device(after) if after else b"", limit=limit, cohort_set=cohort_set, task=task
        )

    @get("/fleet/devices/{device:str}", guards=[needs(Role.VIEWER)], sync_to_thread=True)
    def device(device: FromPath[str]) -> FleetDevice:
        """Show one device and what it holds."""
        return cloud.fleet.get(_device(device))

    @post(
        "/fleet/devices/{device:str}/revoke",
        guards=[needs(Role.ADMIN)],
        sync_to_thread=True,
        status_code=200,
    )
    def revoke(device: FromPath[str]) -> FleetDevice:
        """Lock a device out: its token is worth nothing from now on."""
        cloud.fleet.revoke(_device(device), time.time_ns() // 1000)
        cloud.bus.publish("fleet", {"device": device, "revoked": True})
        return cloud.fleet.get(_device(device))

    @post(
        "/fleet/devices/{device:str}/restore",
        guards=[needs(Role.ADMIN)],
        sync_to_thread=True,
        status_code=200,
    )
    def restore(device: FromPath[str]) -> FleetDevice:
        """Let a revoked device in again."""
        cloud.fleet.restore(_device(device))
        cloud.bus.publish("fleet", {"device": device, "revoked": False})
        return cloud.fleet.get(_device(device))

    @put(
        "/fleet/devices/{device:str}/exclusive/{task:str}/{version:int}",
        guards=[needs(Role.RELEASER)],
        request_max_body_size=cloud.config.limits.package,
    )
    async def exclusive(
        request: AnyRequest,
        device: FromPath[str],
        task: FromPath[str],
        version: FromPath[int],
        path: FromQuery[str],
    ) -> dict[str, Any]:
        """Give a device a file of its own for one version of a task (the body)."""
        data = await request.body()
        ref = cloud.exclusive.put(_device(device), task, version, path, data)
        return {"sha256": ref.sha256.hex(), "size": ref.size, "path": ref.path}

    @post("/fleet/enrolment-tokens", guards=[needs(Role.ADMIN)], sync_to_thread=True)
    def enrolment_token(data: JSONBody[EnrolmentTokenBody]) -> dict[str, str]:
        """Make a token with which devices may enrol; it is shown this once."""
        token = cloud.enrolment.new_token(uses=data.uses, ttl_s=data.ttl_s, note=data.note)
        return {"token": token}

    @post("/fleet/rotate-keys", guards=[needs(Role.ADMIN)], sync_to_thread=True)
    def rotate() -> dict[str, str]:
        """Sign device tokens with a new key; the key before it stays valid."""
        cloud.tokens.rotate()
        return {"status": "rotated"}

    @post("/operators", guards=[needs(Role.ADMIN)], sync_to_thread=True)
    def operator(request: AnyRequest, data: JSONBody[OperatorBody]) -> dict[str, str]:
        """Make an operator, or give one a new token; it is shown this once."""
        if data.role.upper() not in Role.__members__:
            raise InputError("viewer, author, releaser or admin", field="role", value=data.role)
        auth: AdminAuth = request.app.state.auth
        return {"name": data.name, "token": auth.add_operator(data.name, Role[data.role.upper()])}

    @get("/status", guards=[needs(Role.VIEWER)], sync_to_thread=True)
    def status() -> dict[str, Any]:
        """Return epoch, plans, keys and the counts of the gateway."""
        return {
            "epoch": cloud.plans.epoch,
            "plans": len(cloud.plans.cohorts()),
            "built_us": cloud.plans.built_us,
            "director_key": cloud.director.key_id,
            "gateway": dict(sorted(cloud.gateway.counts.items())),
            "cohort_errors": dict(cloud.cohorts.errors),
            "tick_errors": dict(cloud.tick_errors),
        }

    return [
        fleet,
        devices,
        device,
        revoke,
        restore,
        exclusive,
        enrolment_token,
        rotate,
        operator,
        status,
    ]
