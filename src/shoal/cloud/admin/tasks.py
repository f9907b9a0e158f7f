"""Scenarios, tasks, versions, and publishing a task folder."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from litestar import Request, get, post, put
from litestar.params import FromPath, FromQuery, JSONBody
from litestar.types import ControllerRouterHandler

from shoal.cloud import store as tables
from shoal.cloud.admin.auth import Role, needs
from shoal.cloud.admin.models import FloorBody, ScenarioView, TaskView, VersionView
from shoal.cloud.admin.upload import unpack_folder
from shoal.core.errors import LimitError, NotFoundError

if TYPE_CHECKING:
    from shoal.cloud.service import Cloud

__all__ = ["task_routes"]

AnyRequest = Request[Any, Any, Any]


def _version_view(row: Any) -> VersionView:
    return VersionView(
        task=row.task,
        version=row.version,
        label=row.label,
        sha256=row.package_sha256.hex(),
        size=row.size,
        tag=row.tag,
        commit=row.commit,
        created_us=row.created_us,
        manifest=row.manifest,
    )


def task_routes(cloud: Cloud) -> list[ControllerRouterHandler]:
    """Return the handlers about tasks."""
    store = cloud.store
    version = tables.task_version

    @get("/scenarios", guards=[needs(Role.VIEWER)], sync_to_thread=True)
    def scenarios() -> list[ScenarioView]:
        """List the scenarios."""
        query = (
            sa.select(tables.scenario.c.name, sa.func.count(tables.task.c.id))
            .join(tables.task, tables.task.c.scenario == tables.scenario.c.name, isouter=True)
            .group_by(tables.scenario.c.name)
            .order_by(tables.scenario.c.name)
        )
        with store.read() as connection:
            return [ScenarioView(name=name, tasks=n) for name, n in connection.execute(query)]

    def views(name: str | None = None) -> list[TaskView]:
        query = sa.select(tables.task).order_by(tables.task.c.name)
        if name is not None:
            query = query.where(tables.task.c.name == name)
        with store.read() as connection:
            rows = connection.execute(query).all()
            versions: dict[str, list[int]] = {row.name: [] for row in rows}
            floors = dict.fromkeys(versions, 0)
            for row in connection.execute(
                sa.select(version.c.task, version.c.version, version.c.floor)
                .where(version.c.task.in_(list(versions)))
                .order_by(version.c.version)
            ):
                versions[row.task].append(row.version)
                floors[row.task] = max(floors[row.task], row.floor)
        return [
            TaskView(
                name=row.name,
                scenario=row.scenario,
                owner=row.owner,
                versions=versions[row.name],
                floor=floors[row.name],
            )
            for row in rows
        ]

    @get("/tasks", guards=[needs(Role.VIEWER)], sync_to_thread=True)
    def tasks() -> list[TaskView]:
        """List the tasks."""
        return views()

    def one(name: str) -> TaskView:
        found = views(name)
        if not found:
            raise NotFoundError(f"no task {name!r}")
        return found[0]

    @get("/tasks/{name:str}", guards=[needs(Role.VIEWER)], sync_to_thread=True)
    def task(name: FromPath[str]) -> TaskView:
        """Show one task."""
        return one(name)

    def version_view(name: str, number: int) -> VersionView:
        query = sa.select(version).where(version.c.task == name, version.c.version == number)
        with store.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise NotFoundError(f"no version {number} of task {name!r}")
        return _version_view(row)

    @get("/tasks/{name:str}/versions", guards=[needs(Role.VIEWER)], sync_to_thread=True)
    def versions(name: FromPath[str]) -> list[VersionView]:
        """List the versions of a task, oldest first."""
        query = sa.select(version).where(version.c.task == name).order_by(version.c.version)
        with store.read() as connection:
            return [_version_view(row) for row in connection.execute(query)]

    @get(
        "/tasks/{name:str}/versions/{number:int}",
        guards=[needs(Role.VIEWER)],
        sync_to_thread=True,
    )
    def get_version(name: FromPath[str], number: FromPath[int]) -> VersionView:
        """Show one version with its manifest."""
        return version_view(name, number)

    @put("/tasks/{name:str}/floor", guards=[needs(Role.RELEASER)], sync_to_thread=True)
    def floor(name: FromPath[str], data: JSONBody[FloorBody]) -> TaskView:
        """Raise the lowest version that devices may still run; it never falls."""
        cloud.registry.set_floor(name, data.version)
        return one(name)

    @post("/versions", guards=[needs(Role.AUTHOR)], request_max_body_size=None)
    async def publish(
        request: AnyRequest, scenario: FromQuery[str] = "default", label: FromQuery[str] = ""
    ) -> VersionView:
        """Publish a version: the body is a ZIP of the task's source folder.

        The same content again gives the version that it has already.
        """
        limit = cloud.config.limits.resource
        with tempfile.TemporaryDirectory(dir=cloud.config.data_dir, prefix=".upload-") as name:
            archive, folder = Path(name) / "upload.zip", Path(name) / "task"
            folder.mkdir()
            size = 0
            with archive.open("wb") as sink:
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > limit:
                        raise LimitError(f"more than {limit} bytes", field="body", value=size)
                    sink.write(chunk)

            def work() -> VersionView:
                unpack_folder(archive, folder, cloud.config.limits)
                made = cloud.registry.publish(folder, scenario=scenario, label=label)
                return version_view(made.task, made.version)

            view = await asyncio.to_thread(work)
        cloud.bus.publish("version", {"task": view.task, "version": view.version})
        return view

    return [scenarios, tasks, task, versions, get_version, floor, publish]
