"""What comes back from devices, and the stream of what happens now."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import sqlalchemy as sa
from litestar import get
from litestar.params import FromPath, FromQuery, QueryParameter
from litestar.response import ServerSentEvent
from litestar.response.sse import ServerSentEventMessage
from litestar.types import ControllerRouterHandler

from shoal.cloud import reports
from shoal.cloud import store as tables
from shoal.cloud.admin.auth import Role, needs

if TYPE_CHECKING:
    from shoal.cloud.service import Cloud

__all__ = ["result_routes"]

_Limit = Annotated[int, QueryParameter(ge=1, le=10_000)]
_ALIVE_S = 15.0


def _plain(row: Any) -> dict[str, Any]:
    """Write ids as hex; feature values travel as base64, as JSON has no bytes."""
    return {
        key: value.hex() if key in ("id", "device", "run") else value
        for key, value in row._mapping.items()
    }


def result_routes(cloud: Cloud) -> list[ControllerRouterHandler]:
    """Return the handlers about results, features and runs."""

    def rows(
        table: sa.Table, task: str | None, version: int | None, since_us: int, limit: int
    ) -> list[dict[str, Any]]:
        query = sa.select(table).where(table.c.received_us > since_us)
        if task is not None:
            query = query.where(table.c.task == task)
        if version is not None:
            query = query.where(table.c.version == version)
        with cloud.store.read() as connection:
            found = connection.execute(query.order_by(table.c.received_us).limit(limit))
            return [_plain(row) for row in found]

    @get("/results", guards=[needs(Role.VIEWER)], sync_to_thread=True)
    def results(
        task: FromQuery[str | None] = None,
        version: FromQuery[int | None] = None,
        since_us: FromQuery[int] = 0,
        limit: _Limit = 100,
    ) -> list[dict[str, Any]]:
        """List results by the time they came in; go on with the last ``received_us``."""
        return rows(tables.result, task, version, since_us, limit)

    @get("/features", guards=[needs(Role.VIEWER)], sync_to_thread=True)
    def features(
        task: FromQuery[str | None] = None,
        version: FromQuery[int | None] = None,
        since_us: FromQuery[int] = 0,
        limit: _Limit = 100,
    ) -> list[dict[str, Any]]:
        """List features by the time they came in."""
        return rows(tables.feature, task, version, since_us, limit)

    @get("/runs", guards=[needs(Role.VIEWER)], sync_to_thread=True)
    def runs(
        task: FromQuery[str | None] = None,
        version: FromQuery[int | None] = None,
        since_us: FromQuery[int] = 0,
        limit: _Limit = 100,
    ) -> list[dict[str, Any]]:
        """List run summaries by the time they came in."""
        return rows(tables.run_summary, task, version, since_us, limit)

    @get(
        "/tasks/{name:str}/versions/{number:int}/health",
        guards=[needs(Role.VIEWER)],
        sync_to_thread=True,
    )
    def health(name: FromPath[str], number: FromPath[int]) -> reports.TaskHealth:
        """Summarise runs and results of one version."""
        return reports.task_health(cloud.store, name, number)

    @get("/flow", guards=[needs(Role.VIEWER)], sync_to_thread=True)
    def flow(
        seconds: Annotated[float, QueryParameter(gt=0, le=86_400)] = 300.0,
        buckets: Annotated[int, QueryParameter(ge=1, le=1000)] = 60,
    ) -> reports.EventFlow:
        """Count what came in lately, in equal parts of time."""
        return reports.event_flow(cloud.store, seconds=seconds, buckets=buckets)

    @get("/events", guards=[needs(Role.VIEWER)], media_type="text/event-stream")
    async def events(topics: FromQuery[str] = "") -> ServerSentEvent:
        """Follow what happens (server-sent events): epoch, release, result, fleet, cohort.

        ``topics`` is a comma-separated choice; everything if empty.
        """
        return ServerSentEvent(_follow(cloud, [t for t in topics.split(",") if t]))

    return [results, features, runs, health, flow, events]


async def _follow(cloud: Cloud, topics: list[str]) -> AsyncGenerator[ServerSentEventMessage, None]:
    loop = asyncio.get_running_loop()
    wake = asyncio.Event()
    subscription = cloud.bus.subscribe(
        topics or None, notify=lambda: loop.call_soon_threadsafe(wake.set)
    )
    try:
        yield ServerSentEventMessage(comment="listening", data=None)
        while True:
            try:
                await asyncio.wait_for(wake.wait(), timeout=_ALIVE_S)
            except TimeoutError:
                yield ServerSentEventMessage(
                    comment="alive", data=None
                )  # keeps proxies from closing
                continue
            wake.clear()
            for message in subscription.drain():
                body = {"at_us": message.at_us, **message.payload}
                yield ServerSentEventMessage(
                    event=message.topic,
                    id=str(message.seq),
                    data=msgspec.json.encode(body).decode(),
                )
    finally:
        subscription.close()
