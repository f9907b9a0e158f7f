"""The fleet: which devices there are, what they hold, who is locked out."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import sqlalchemy as sa

from shoal.cloud import store as tables
from shoal.cloud.predicates import attributes_of
from shoal.cloud.store import Store
from shoal.core.errors import NotFoundError
from shoal.wire.profile import TaskProfile
from shoal.wire.results import InstallState, ResultBatch

__all__ = ["Fleet", "FleetDevice"]

_RUNNING = (InstallState.TRIAL, InstallState.GOOD)
#: State of a package that a device keeps only to fall back on.
KEPT = "kept"


class FleetDevice(msgspec.Struct, frozen=True, kw_only=True):
    """One device as the cloud knows it; times in microseconds since 1970 (UTC)."""

    device: str
    first_seen_us: int
    last_seen_us: int
    cohort_set: int
    agent: str
    platform: str
    attributes: dict[str, Any]
    requests: int
    revoked: bool
    holdings: list[dict[str, Any]]


class Fleet:
    """Devices and their holdings.

    What every request changes (when a device was last seen) is kept in memory
    and written by :meth:`flush`; a crash loses at most one flush interval of it.

    Parameters
    ----------
    store : Store
        The database.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: dict[bytes, list[int]] = {}
        self._lock = threading.Lock()
        #: Ids of revoked devices; replaced as a whole, so the gateway reads it without a lock.
        self.revoked: frozenset[bytes] = frozenset()
        self.reload()

    def reload(self) -> None:
        """Read the revocations again, after another process has changed them."""
        query = sa.select(tables.device.c.id).where(tables.device.c.revoked_us.is_not(None))
        with self._store.read() as connection:
            self.revoked = frozenset(connection.execute(query).scalars())

    def saw(self, device: bytes, now_us: int) -> None:
        """Note a request of a device; the hot path, so nothing but a dictionary entry."""
        entry = self._seen.get(device)
        if entry is None:
            self._seen[device] = [1, now_us]
        else:
            entry[0] += 1
            entry[1] = now_us

    def flush(self) -> int:
        """Write the requests noted since the last flush; return for how many devices."""
        with self._lock:
            seen, self._seen = self._seen, {}
            if not seen:
                return 0
            device = tables.device
            with self._store.begin() as connection:
                connection.execute(
                    sa.update(device)
                    .where(device.c.id == sa.bindparam("b_id"))
                    .values(
                        last_seen_us=sa.bindparam("b_at"),
                        requests=device.c.requests + sa.bindparam("b_count"),
                    ),
                    [
                        {"b_id": identity, "b_at": at, "b_count": count}
                        for identity, (count, at) in seen.items()
                    ],
                )
            return len(seen)

    def write_profile(
        self,
        connection: sa.Connection,
        profile: TaskProfile,
        cohort_set: int,
        now_us: int,
        *,
        public_key: bytes | None = None,
        enrolled_us: int | None = None,
    ) -> bool:
        """Store what a device says about itself; with a key, make it known first.

        Returns
        -------
        bool
            ``False`` if the device is not known and no key was given.
        """
        device, holding = tables.device, tables.holding
        values = {
            "last_seen_us": now_us,
            "attributes": attributes_of(profile),
            "cohort_set": cohort_set,
            "agent": profile.agent,
            "protocol": profile.protocol,
            "platform": profile.platform,
            "profile": {
                "python": profile.python,
                "disk_free_mb": profile.disk_free_mb,
                "sandbox_level": profile.sandbox_level,
            },
        }
        if public_key is None:
            done = connection.execute(
                sa.update(device).where(device.c.id == profile.device).values(values)
            )
            if done.rowcount == 0:
                return False
        else:
            row = {
                "id": profile.device,
                "first_seen_us": now_us,
                "enrolled_us": enrolled_us or 0,
                "public_key": public_key,
                **values,
            }
            connection.execute(
                self._store.upsert(device, ["id"], [*values, "public_key", "enrolled_us"]), row
            )
        # The profile is the whole truth about holdings; reports refine it afterwards.
        connection.execute(sa.delete(holding).where(holding.c.device == profile.device))
        if profile.held:
            connection.execute(
                self._store.upsert(holding, ["device", "task", "version"], ["state"]),
                [
                    {
                        "device": profile.device,
                        "task": held.task,
                        "version": held.version,
                        "state": held.state,
                        "reported_us": now_us,
                    }
                    for held in profile.held
                ],
            )
        return True

    def on_results(self, device: bytes, batch: ResultBatch, now_us: int) -> None:
        """Take the install reports and drop counts of an uplink batch.

        A later report about a (task, version) overwrites an earlier one. When a
        version starts to run, the others of its task are noted as kept.
        """
        if not batch.installs and not batch.dropped:
            return
        holding = tables.holding
        with self._store.begin() as connection:
            for report in batch.installs:
                mine = sa.and_(holding.c.device == device, holding.c.task == report.task)
                if report.state == InstallState.REMOVED:
                    connection.execute(
                        sa.delete(holding).where(mine, holding.c.version == report.version)
                    )
                    continue
                connection.execute(
                    self._store.upsert(
                        holding,
                        ["device", "task", "version"],
                        ["state", "code", "message", "reported_us"],
                    ),
                    {
                        "device": device,
                        "task": report.task,
                        "version": report.version,
                        "state": report.state,
                        "code": report.code,
                        "message": report.message,
                        "reported_us": now_us,
                    },
                )
                if report.state in _RUNNING:
                    connection.execute(
                        sa.update(holding)
                        .where(mine, holding.c.version != report.version)
                        .where(holding.c.state.in_(_RUNNING))
                        .values(state=KEPT, reported_us=now_us)
                    )
            for reason, number in batch.dropped.items():
                self._store.count_dropped("device", reason, number)

    def revoke(self, device: bytes, now_us: int) -> None:
        """Lock a device out; :class:`NotFoundError` if it is not known."""
        self._set_revoked(device, now_us)

    def restore(self, device: bytes) -> None:
        """Let a revoked device in again; :class:`NotFoundError` if it is not known."""
        self._set_revoked(device, None)

    def _set_revoked(self, device: bytes, at_us: int | None) -> None:
        with self._store.begin() as connection:
            done = connection.execute(
                sa.update(tables.device)
                .where(tables.device.c.id == device)
                .values(revoked_us=at_us)
            )
            if done.rowcount == 0:
                raise NotFoundError(f"no device {device.hex()}")
        self.reload()

    def get(self, device: bytes) -> FleetDevice:
        """Return one device; :class:`NotFoundError` if it is not known."""
        found = self._select(tables.device.c.id == device, 1)
        if not found:
            raise NotFoundError(f"no device {device.hex()}")
        return found[0]

    def devices(
        self,
        *,
        after: bytes = b"",
        limit: int = 100,
        cohort_set: int | None = None,
        task: str | None = None,
    ) -> list[FleetDevice]:
        """Return devices by id, a page at a time.

        Parameters
        ----------
        after : bytes
            Last id of the page before.
        limit : int
            Longest page.
        cohort_set : int, optional
            Only devices of this set.
        task : str, optional
            Only devices that hold some version of this task.
        """
        condition = tables.device.c.id > after
        if cohort_set is not None:
            condition = sa.and_(condition, tables.device.c.cohort_set == cohort_set)
        if task is not None:
            holders = sa.select(tables.holding.c.device).where(tables.holding.c.task == task)
            condition = sa.and_(condition, tables.device.c.id.in_(holders))
        return self._select(condition, limit)

    def _select(self, condition: sa.ColumnElement[bool], limit: int) -> list[FleetDevice]:
        device, holding = tables.device, tables.holding
        with self._store.read() as connection:
            rows = connection.execute(
                sa.select(device).where(condition).order_by(device.c.id).limit(limit)
            ).all()
            held: dict[bytes, list[dict[str, Any]]] = {row.id: [] for row in rows}
            for row in connection.execute(
                sa.select(holding)
                .where(holding.c.device.in_(list(held)))
                .order_by(holding.c.task, holding.c.version)
            ):
                held[row.device].append(
                    {
                        "task": row.task,
                        "version": row.version,
                        "state": row.state,
                        "code": row.code,
                        "message": row.message,
                        "reported_us": row.reported_us,
                    }
                )
        return [
            FleetDevice(
                device=row.id.hex(),
                first_seen_us=row.first_seen_us,
                last_seen_us=max(row.last_seen_us, self._seen.get(row.id, (0, 0))[1]),
                cohort_set=row.cohort_set or 0,
                agent=row.agent,
                platform=row.platform,
                attributes=row.attributes,
                requests=row.requests + self._seen.get(row.id, (0, 0))[0],
                revoked=row.revoked_us is not None,
                holdings=held[row.id],
            )
            for row in rows
        ]

    def counts(self) -> dict[str, Any]:
        """Return totals: devices, revoked, by cohort set, and holdings by task, version, state."""
        device, holding = tables.device, tables.holding
        with self._store.read() as connection:
            by_set = connection.execute(
                sa.select(device.c.cohort_set, sa.func.count()).group_by(device.c.cohort_set)
            ).all()
            held = connection.execute(
                sa.select(holding.c.task, holding.c.version, holding.c.state, sa.func.count())
                .group_by(holding.c.task, holding.c.version, holding.c.state)
                .order_by(holding.c.task, holding.c.version, holding.c.state)
            ).all()
        return {
            "devices": sum(count for _, count in by_set),
            "revoked": len(self.revoked),
            "by_cohort_set": {str(number or 0): count for number, count in by_set},
            "holdings": [
                {"task": name, "version": version, "state": state, "devices": count}
                for name, version, state, count in held
            ],
        }
