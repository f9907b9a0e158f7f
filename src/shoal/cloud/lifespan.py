"""Starting and stopping several ASGI applications as one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any

from shoal.cloud.middleware import ASGIApp, Message

__all__ = ["Lifespans"]


class Lifespans:
    """Runs the lifespan protocol of each application it is given.

    An application without lifespan support (it raises, or returns at once) is
    left alone, as the ASGI specification asks of servers.

    Parameters
    ----------
    apps : iterable of ASGI applications
        Started in this order, stopped in the reverse one.
    """

    def __init__(self, apps: Iterable[ASGIApp]) -> None:
        self._lives = [_Life(app) for app in apps]

    async def startup(self) -> None:
        """Start every application; ``RuntimeError`` if one says that it failed."""
        for place, life in enumerate(self._lives):
            try:
                await life.start()
            except RuntimeError:
                for started in reversed(self._lives[:place]):
                    await started.stop()
                raise

    async def shutdown(self) -> None:
        """Stop every application."""
        for life in reversed(self._lives):
            await life.stop()


class _Life:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._started: asyncio.Future[str] | None = None
        self._stopped: asyncio.Future[str] | None = None
        self._task: asyncio.Task[None] | None = None
        self._alive = False

    async def _run(self) -> None:
        scope: dict[str, Any] = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": {},
        }
        try:
            await self._app(scope, self._inbox.get, self._send)
        except Exception:
            self._alive = False
        finally:
            for waiting in (self._started, self._stopped):
                if waiting is not None and not waiting.done():
                    waiting.set_result("")

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        waiting = self._started if kind.startswith("lifespan.startup") else self._stopped
        if waiting is not None and not waiting.done():
            self._alive = kind == "lifespan.startup.complete"
            failed = kind.endswith(".failed")
            waiting.set_result(message.get("message") or "failed" if failed else "")

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._started, self._stopped = loop.create_future(), loop.create_future()
        self._task = asyncio.create_task(self._run())
        await self._inbox.put({"type": "lifespan.startup"})
        if reason := await self._started:
            raise RuntimeError(f"an application did not start: {reason}")

    async def stop(self) -> None:
        if self._task is None:
            return
        if self._alive and self._stopped is not None:
            await self._inbox.put({"type": "lifespan.shutdown"})
            await self._stopped
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
