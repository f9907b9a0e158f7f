"""PostgreSQL with PostGIS: GIN over the words, GiST with nearest-neighbour order over places.

The server is the benchmark's own: a cluster in a temporary folder, a Unix
socket, an account without privileges. What is measured is the CPU time of the
session's server process, read from its CPU clock (``clock_getcpuclockid``: the
clock of process p is ``~p << 3 | 2``), in nanoseconds. The client's own CPU is
left out, in the peer's favour.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from _qdrtree.data import word_lists
from _qdrtree.peers.base import Missing, Peer, Scored
from _qdrtree.queries import EARTH_KM, Ask
from shoal.spatial.columns import PlaceColumns

try:
    import asyncpg
except ImportError:  # an optional peer
    asyncpg = None

#: One session, no surprises: no parallel workers, no compilation, no writes to wait for.
_SETTINGS = {
    "listen_addresses": "",
    "shared_buffers": "512MB",
    "work_mem": "64MB",
    "maintenance_work_mem": "512MB",
    "max_parallel_workers_per_gather": "0",
    "max_parallel_maintenance_workers": "0",
    "jit": "off",
    "autovacuum": "off",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "effective_cache_size": "4GB",
    "random_page_cost": "1.1",
    "enable_seqscan": "off",
    # Each statement below has one good plan, so it is planned once.
    "plan_cache_mode": "force_generic_plan",
}
#: PostGIS measures on a sphere of the mean of WGS 84's axes, (2a + b) / 3.
_ITS_EARTH_M = (2 * 6378137.0 + 6356752.314245179) / 3
#: Metres of PostGIS to kilometres of ours.
_KM = EARTH_KM / _ITS_EARTH_M

_TEXT_FIRST = (
    "WITH c AS MATERIALIZED (SELECT id, at FROM place WHERE words @> $1) "
    "SELECT id FROM c ORDER BY at <-> $2, id LIMIT $3"
)
# coalesce() keeps the GIN index out: walk outward from the point, look at the words.
_SPACE_FIRST = (
    "SELECT id FROM place WHERE coalesce(words @> $1, false) "
    "AND ST_DWithin(at, $2, $4, false) ORDER BY at <-> $2 LIMIT $3"
)
_SCORE = (
    "SELECT id, 0.5 * greatest(0, 1 - km / $3) + 0.5 * w AS score FROM ("
    f"SELECT id, (at <-> $2) * {_KM!r}::float8 AS km, "
    "(SELECT sum(s) FROM unnest($1::text[], $4::float8[]) AS q(t, s) WHERE t = ANY (words)) AS w "
    "FROM c) scored ORDER BY score DESC, km, id LIMIT $5"
)
_SCORE_ALL = (
    "WITH c AS MATERIALIZED (SELECT id, at, words FROM place WHERE words && $1::text[]) " + _SCORE
)
_SCORE_NEAR = (
    "WITH c AS MATERIALIZED (SELECT id, at, words FROM place "
    "WHERE ST_DWithin(at, $2, $3 * 1000 + 10, false) AND coalesce(words && $1::text[], false)) "
    + _SCORE
)


def find_programs() -> Path:
    """Return the folder of Postgres's programs."""
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not folders:
        raise Missing("PostgreSQL with PostGIS")
    return folders[-1].parent


class Server:
    """A cluster of its own in a temporary folder; ``stop`` removes it."""

    def __init__(self) -> None:
        programs = find_programs()
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))
        self.user: dict[str, Any] = {}
        if os.geteuid() == 0:  # Postgres refuses to run as root
            try:
                account = pwd.getpwnam("postgres")
            except KeyError:
                raise Missing("an account called postgres, as this runs as root") from None
            os.chown(self.folder, account.pw_uid, account.pw_gid)
            self.user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        cluster = self.folder / "data"
        subprocess.run(
            [
                programs / "initdb",
                "-D",
                cluster,
                "-U",
                "shoal",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C",
                "--no-sync",
            ],
            check=True,
            capture_output=True,
            cwd=self.folder,
            **self.user,
        )
        options = [x for name, value in _SETTINGS.items() for x in ("-c", f"{name}={value}")]
        self.log = (self.folder / "log").open("wb")
        self.process = subprocess.Popen(
            [programs / "postgres", "-D", cluster, "-k", self.folder, *options],
            cwd=self.folder,
            stdout=self.log,
            stderr=self.log,
            **self.user,
        )

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class PostGis(Peer):
    """Statements planned once: text first for rare words, else outward from the point."""

    name = "PostgreSQL + PostGIS"
    #: Below so many places with the rarest word, the GIN index comes first.
    text_first = 6000
    #: How far the walk outward goes before the GIN index is asked after all, metres.
    reach_m = 200_000.0

    def __init__(self) -> None:
        if asyncpg is None:
            raise Missing("the package asyncpg")
        self.loop = asyncio.new_event_loop()
        self.server = Server()
        try:
            self._do(self._connect())
        except BaseException:
            self.close()
            raise

    def build(self, places: PlaceColumns, folder: Path) -> None:
        del folder  # the server has its own, which its account may write to
        self._do(self._build(places))

    def and_nearest(self, ask: Ask) -> list[int]:
        return self.nearest(ask, ask.words)

    def nearest(self, ask: Ask, words: tuple[str, ...]) -> list[int]:
        counts = dict(zip(ask.words, ask.counts, strict=True))
        terms, at = list(words), _hex(ask)
        if min(counts[word] for word in words) >= self.text_first:
            rows = self._do(self.space_first_statement.fetch(terms, at, ask.k, self.reach_m))
            if len(rows) == ask.k:
                return [row[0] for row in rows]
        rows = self._do(self.text_first_statement.fetch(terms, at, ask.k))
        return [row[0] for row in rows]

    def scored_all(self, ask: Ask) -> Scored:
        return self._scored(self.all_statement, ask)

    def scored_near(self, ask: Ask) -> Scored:
        return self._scored(self.near_statement, ask)

    def nbytes(self) -> int:
        size: int = self._do(self.db.fetchval("SELECT pg_total_relation_size('place')"))
        return size

    def close(self) -> None:
        if getattr(self, "db", None) is not None:
            self._do(self.db.close())
        self.server.stop()
        self.loop.close()

    def _do(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def _scored(self, statement: Any, ask: Ask) -> Scored:
        rows = self._do(
            statement.fetch(list(ask.words), _hex(ask), ask.max_km, list(ask.shares), ask.k)
        )
        return [(row[0], row[1]) for row in rows]

    async def _connect(self) -> None:
        for _ in range(200):
            try:
                self.db = await asyncpg.connect(
                    host=str(self.server.folder), user="shoal", database="postgres"
                )
                break
            except (OSError, asyncpg.CannotConnectNowError):
                if self.server.process.poll() is not None:
                    raise Missing("a PostgreSQL server that starts") from None
                await asyncio.sleep(0.05)
        else:
            raise Missing("a PostgreSQL server that answers")
        try:
            await self.db.execute("CREATE EXTENSION postgis")
        except asyncpg.PostgresError:
            raise Missing("PostGIS") from None
        await self.db.set_type_codec(
            "geography", schema="public", encoder=str, decoder=str, format="text"
        )
        version = await self.db.fetchval("SHOW server_version")
        postgis = await self.db.fetchval("SELECT postgis_lib_version()")
        self.version = f"{version.split()[0]} + {postgis}"
        pid = await self.db.fetchval("SELECT pg_backend_pid()")
        self.server_clock = (~pid << 3) | 2

    async def _build(self, places: PlaceColumns) -> None:
        db = self.db
        await db.execute(
            "CREATE TEMP TABLE incoming (id int, lon float8, lat float8, words text[])"
        )
        lon, lat = places.lon.tolist(), places.lat.tolist()
        await db.copy_records_to_table(
            "incoming",
            records=((i, lon[i], lat[i], words) for i, words in enumerate(word_lists(places))),
        )
        await db.execute(
            "CREATE TABLE place AS SELECT id, words, "
            "ST_SetSRID(ST_MakePoint(lon, lat), 4326)::geography AS at FROM incoming "
            "ORDER BY ST_SetSRID(ST_MakePoint(lon, lat), 4326)"  # PostGIS orders by Hilbert curve
        )
        await db.execute("DROP TABLE incoming")
        await db.execute("CREATE INDEX ON place USING gin (words) WITH (fastupdate = off)")
        await db.execute("CREATE INDEX ON place USING gist (at)")
        await db.execute("VACUUM ANALYZE place")
        self.text_first_statement = await db.prepare(_TEXT_FIRST)
        self.space_first_statement = await db.prepare(_SPACE_FIRST)
        self.all_statement = await db.prepare(_SCORE_ALL)
        self.near_statement = await db.prepare(_SCORE_NEAR)


def _hex(ask: Ask) -> str:
    """Return the query's point as EWKB, hexadecimal."""
    return struct.pack("<BIIdd", 1, 0x20000001, 4326, ask.lon, ask.lat).hex()
