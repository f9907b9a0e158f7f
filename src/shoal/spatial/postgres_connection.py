"""Connections to one schema of a Postgres database, run by a thread of their own."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from shoal.core.errors import ConflictError, InputError, NotFoundError, UnavailableError

__all__ = ["Connections"]

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_T = TypeVar("_T")


class Connections:
    """A pool of connections and the event loop that they live in.

    Coroutines of :meth:`one` and :meth:`fetch` are for that loop alone:
    :meth:`run` gives it one from any thread and waits. Parameters and errors
    are those of :class:`~shoal.spatial.postgres.PlaceSource`.
    """

    def __init__(self, dsn: str, schema: str, timeout_s: float) -> None:
        if not _NAME.fullmatch(schema):
            raise InputError(
                "a schema's name has lower-case letters, digits and underscores",
                field="schema",
                value=schema,
            )
        self.asyncpg = _import_asyncpg()
        self.schema = schema
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="shoal-postgres", daemon=True
        )
        self._thread.start()
        self._pool: Any = None
        try:
            self._pool = self.run(self._open(dsn, timeout_s))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connections."""
        if self._loop.is_closed():
            return
        if self._pool is not None:
            self.run(self._pool.close())
            self._pool = None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Return what a coroutine gives, which runs in the loop of the connections."""
        future: Future[_T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result()

    async def _open(self, dsn: str, timeout_s: float) -> Any:
        try:
            return await self.asyncpg.create_pool(
                dsn, min_size=1, max_size=4, timeout=timeout_s, command_timeout=None
            )
        except (OSError, TimeoutError, self.asyncpg.PostgresError) as error:
            raise UnavailableError(f"Postgres does not answer: {error}") from error
        except (ValueError, self.asyncpg.InterfaceError) as error:
            raise InputError(f"no address of a database: {error}", field="dsn") from error

    @asynccontextmanager
    async def one(self) -> AsyncIterator[Any]:
        """Lend a connection; what the database says against a statement becomes our error."""
        pg = self.asyncpg
        try:
            async with self._pool.acquire() as connection:
                yield connection
        except (pg.UndefinedTableError, pg.InvalidSchemaNameError) as error:
            raise NotFoundError(
                f"schema {self.schema} has no places", hint="create() makes the tables"
            ) from error
        except pg.UniqueViolationError as error:
            raise ConflictError(f"an external id belongs to another place: {error}") from error
        except (pg.CharacterNotInRepertoireError, pg.UntranslatableCharacterError) as error:
            raise InputError(f"Postgres cannot store a word, id or label: {error}") from error
        except (OSError, pg.PostgresConnectionError, pg.CannotConnectNowError) as error:
            raise UnavailableError(f"Postgres does not answer: {error}") from error

    def sql(self, text: str) -> str:
        """Return a statement with the schema's name in the places of ``{s}``."""
        return text.replace("{s}", self.schema)

    async def fetch(self, text: str, *args: Any) -> list[Any]:
        """Return all rows of a statement."""
        async with self.one() as connection:
            return list(await connection.fetch(self.sql(text), *args))


def _import_asyncpg() -> Any:
    try:
        import asyncpg  # noqa: PLC0415 - only where used
    except ImportError as error:
        raise UnavailableError(
            "asyncpg is not installed", hint="pip install 'shoal[spatial-scale]'"
        ) from error
    return asyncpg
