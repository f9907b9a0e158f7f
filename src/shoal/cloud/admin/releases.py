"""Cohorts and releases: defining, creating, and the operators' orders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import sqlalchemy as sa
from litestar import Request, Response, get, post, put
from litestar.params import FromPath, FromQuery, HeaderParameter, JSONBody
from litestar.types import ControllerRouterHandler

from shoal.cloud import reports
from shoal.cloud import store as tables
from shoal.cloud.admin.auth import Role, needs
from shoal.cloud.admin.conditions import PreconditionError, expected_version
from shoal.cloud.admin.models import ActionBody, CohortBody, CohortView, ReleaseBody
from shoal.core.errors import ConflictError, InputError, NotFoundError

if TYPE_CHECKING:
    from shoal.cloud.service import Cloud

__all__ = ["release_routes"]

AnyRequest = Request[Any, Any, Any]
_ACTIONS = ("start", "advance", "override", "pause", "resume", "rollback", "abort")
_SUPERSEDING = ("start", "override")


def release_routes(cloud: Cloud) -> list[ControllerRouterHandler]:
    """Return the handlers about cohorts and releases."""

    def cohort_views() -> list[CohortView]:
        sets = cloud.cohorts.sets()
        query = sa.select(tables.device.c.cohort_set, sa.func.count()).group_by(
            tables.device.c.cohort_set
        )
        with cloud.store.read() as connection:
            devices = {row[0]: int(row[1]) for row in connection.execute(query)}
        return [
            CohortView(
                id=cohort.id,
                name=cohort.name,
                predicate=cohort.predicate,
                epoch=cohort.epoch,
                devices=sum(devices.get(n, 0) for n, inside in sets.items() if cohort.id in inside),
                errors=cloud.cohorts.errors[cohort.name],
                last_error=cloud.cohorts.last_error.get(cohort.name, ""),
            )
            for cohort in cloud.cohorts.all()
        ]

    @get("/cohorts", guards=[needs(Role.VIEWER)], sync_to_thread=True)
    def cohorts() -> list[CohortView]:
        """List the cohorts with the number of their devices."""
        return cohort_views()

    @put("/cohorts", guards=[needs(Role.RELEASER)], sync_to_thread=True)
    def define(data: JSONBody[CohortBody]) -> CohortView:
        """Make a cohort, or give it another predicate."""
        made = cloud.define_cohort(data.name, data.predicate)
        return next(view for view in cohort_views() if view.id == made.id)

    def answer(release: int, status: int = 200) -> Response[dict[str, Any]]:
        found = cloud.releases.status(release)
        return Response(found, status_code=status, headers={"ETag": f'"{found["lock_version"]}"'})

    @get("/releases", guards=[needs(Role.VIEWER)], sync_to_thread=True)
    def releases(
        task: FromQuery[str | None] = None,
        cohort: FromQuery[str | None] = None,
        live: FromQuery[bool] = False,
    ) -> list[dict[str, Any]]:
        """List releases, newest first."""
        number = None if cohort is None else cloud.cohorts.get(cohort).id
        found = cloud.releases.list(task=task, cohort=number, live=live)
        return [cloud.releases.status(m.release.id) for m in found]

    @post("/releases", guards=[needs(Role.RELEASER)], sync_to_thread=True)
    def create(request: AnyRequest, data: JSONBody[ReleaseBody]) -> Response[dict[str, Any]]:
        """Create a draft; virtual devices test it at once."""
        number = cloud.releases.create(
            data.task, data.version, data.cohort, data.policy, actor=request.state.actor
        )
        cloud.bus.publish("release", {"release": number, "action": "create"})
        return answer(number, 201)

    @get("/releases/{release:int}", guards=[needs(Role.VIEWER)], sync_to_thread=True)
    def release(release: FromPath[int]) -> Response[dict[str, Any]]:
        """Show where a release stands; the ETag is for ``If-Match``."""
        return answer(release)

    @get("/releases/{release:int}/history", guards=[needs(Role.VIEWER)], sync_to_thread=True)
    def history(release: FromPath[int]) -> list[dict[str, Any]]:
        """Return the append-only history of a release, oldest first."""
        return cloud.releases.history(release)

    @get("/releases/{release:int}/coverage", guards=[needs(Role.VIEWER)], sync_to_thread=True)
    def coverage(release: FromPath[int]) -> reports.Coverage:
        """Measure how far a release has come."""
        return reports.coverage(cloud.store, release)

    @post(
        "/releases/{release:int}/{action:str}", guards=[needs(Role.RELEASER)], sync_to_thread=True
    )
    def act(
        request: AnyRequest,
        release: FromPath[int],
        action: FromPath[str],
        data: JSONBody[ActionBody | None] = None,
        if_match: Annotated[str | None, HeaderParameter(name="If-Match")] = None,
    ) -> Response[dict[str, Any]]:
        """Start, advance, override, pause, resume, roll back or abort a release.

        With ``If-Match``, only if nobody has changed it since (else 412).
        """
        if action not in _ACTIONS:
            raise NotFoundError(f"no action {action!r}", hint=f"one of {', '.join(_ACTIONS)}")
        body = data or ActionBody()
        if body.supersede and action not in _SUPERSEDING:
            raise InputError("only a start or an override supersedes", field="supersede")
        lock_version = expected_version(if_match)
        further: dict[str, Any] = {"supersede": True} if body.supersede else {}
        try:
            getattr(cloud.releases, action)(
                release, request.state.actor, body.reason, lock_version=lock_version, **further
            )
        except ConflictError as error:
            if (
                lock_version is not None
                and cloud.releases.get(release).lock_version != lock_version
            ):
                raise PreconditionError(error.message, hint=error.hint) from error
            raise
        cloud.bus.publish("release", {"release": release, "action": action})
        return answer(release)

    return [cohorts, define, releases, create, release, history, coverage, act]
