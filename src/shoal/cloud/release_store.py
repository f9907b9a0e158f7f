"""Releases as rows: reading and writing them, and what their guards ask of other tables."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import sqlalchemy as sa

from shoal.cloud import store as tables
from shoal.cloud.policy import ReleasePolicy
from shoal.cloud.release_plans import VIRTUAL_COHORT, ManagedRelease
from shoal.cloud.releases import TERMINAL, Change, Release, ReleaseState
from shoal.cloud.store import Store
from shoal.core.errors import ConflictError, NotFoundError
from shoal.wire.buckets import bucket
from shoal.wire.notices import DesiredTask, FileRef
from shoal.wire.results import InstallState

__all__ = ["ReleaseStore"]

_HELD: Final = (InstallState.TRIAL, InstallState.GOOD)
#: Below this many devices a salt is chosen so that the steps have their nominal sizes.
_BALANCE_BELOW: Final = 2_000
_SALTS: Final = 64


class ReleaseStore:
    """The release rows of a store; every method works inside a given transaction."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._policies: dict[int, ReleasePolicy] = {}  # a release's policy never changes

    # -- rows -------------------------------------------------------------------------

    def _managed(self, row: Any) -> ManagedRelease:
        policy = self._policies.get(row.id)
        if policy is None:
            policy = ReleasePolicy.model_validate(row.policy)
            self._policies[row.id] = policy
        release = Release(
            id=row.id,
            task=row.task,
            version=row.version,
            cohort=row.cohort,
            steps=policy.steps,
            state=ReleaseState(row.state),
            step=row.step,
            threshold=row.threshold,
            epoch=row.epoch,
            previous=row.previous,
            started=row.started_us is not None,
        )
        return ManagedRelease(
            release=release,
            policy=policy,
            salt=row.salt,
            lock_version=row.lock_version,
            created_us=row.created_us,
            started_us=row.started_us,
            step_us=row.created_us if row.step_us is None else row.step_us,
        )

    def load(self, connection: sa.Connection, release: int) -> ManagedRelease:
        """Return one release; :class:`NotFoundError` if there is none."""
        row = connection.execute(
            sa.select(tables.release).where(tables.release.c.id == release)
        ).one_or_none()
        if row is None:
            raise NotFoundError(f"no release {release}")
        return self._managed(row)

    def all(self, connection: sa.Connection) -> list[ManagedRelease]:
        """Return every release by id."""
        rows = connection.execute(sa.select(tables.release).order_by(tables.release.c.id))
        return [self._managed(row) for row in rows]

    def open_ids(self, connection: sa.Connection) -> list[int]:
        """Return the releases that may still change, oldest first."""
        query = (
            sa.select(tables.release.c.id)
            .where(tables.release.c.state.not_in([str(state) for state in TERMINAL]))
            .order_by(tables.release.c.id)
        )
        return [row.id for row in connection.execute(query)]

    def newest_draft(self, connection: sa.Connection, task: str, version: int) -> int:
        """Return the newest draft of a version; :class:`NotFoundError` if there is none."""
        table = tables.release
        found = connection.execute(
            sa.select(sa.func.max(table.c.id)).where(
                table.c.task == task,
                table.c.version == version,
                table.c.state == str(ReleaseState.DRAFT),
            )
        ).scalar_one()
        if found is None:
            raise NotFoundError(f"no draft of task {task!r} version {version}")
        return int(found)

    def request_counts(
        self, connection: sa.Connection, cohort: int, now_us: int, limit: int = 50_000
    ) -> tuple[list[int], list[float]]:
        """Return requests and seconds of observation of devices of a cohort."""
        table = tables.device
        rows = connection.execute(
            sa.select(table.c.requests, table.c.first_seen_us)
            .where(self._eligible(connection, cohort), table.c.first_seen_us < now_us)
            .limit(limit)
        ).all()
        return [row.requests for row in rows], [(now_us - row.first_seen_us) / 1e6 for row in rows]

    def book(self, connection: sa.Connection, release: Release) -> list[ManagedRelease]:
        """Return all releases of one task in one cohort."""
        table = tables.release
        rows = connection.execute(
            sa.select(table)
            .where(table.c.task == release.task, table.c.cohort == release.cohort)
            .order_by(table.c.id)
        )
        return [self._managed(row) for row in rows]

    def insert(
        self,
        connection: sa.Connection,
        release: Release,
        policy: ReleasePolicy,
        salt: str,
        *,
        actor: str,
        now_us: int,
    ) -> int:
        """Write a new draft and the first row of its history."""
        inserted = connection.execute(
            sa.insert(tables.release).values(
                task=release.task,
                version=release.version,
                cohort=release.cohort,
                salt=salt,
                state=str(release.state),
                epoch=release.epoch,
                policy=policy.model_dump(mode="json"),
                guardrails=[g.model_dump(mode="json") for g in policy.guardrails],
                created_by=actor,
                created_us=now_us,
                step_us=now_us,
            )
        )
        number = int((inserted.inserted_primary_key or (0,))[0])
        self.add_event(
            connection,
            number,
            actor=actor,
            before="",
            after=str(release.state),
            reason="created",
            evidence={"threshold": 0, "epoch": release.epoch},
            now_us=now_us,
        )
        return number

    def write(
        self,
        connection: sa.Connection,
        change: Change,
        *,
        lock_version: int,
        salt: str | None,
        now_us: int,
    ) -> None:
        """Write a release after a change.

        Raises
        ------
        ConflictError
            Someone else has written it since ``lock_version`` was read, or
            another release of the task is in motion in the cohort.
        """
        before, after = change.before, change.after
        table = tables.release
        values: dict[str, Any] = {
            "previous": after.previous,
            "state": str(after.state),
            "step": after.step,
            "threshold": after.threshold,
            "epoch": after.epoch,
            "lock_version": lock_version + 1,
        }
        if salt is not None:
            values["salt"] = salt
        if after.started and not before.started:
            values["started_us"] = now_us
        if (after.state, after.step) != (before.state, before.step):
            values["step_us"] = now_us
        if after.state in TERMINAL:
            values["closed_us"] = now_us
        try:
            written = connection.execute(
                sa.update(table)
                .where(table.c.id == before.id, table.c.lock_version == lock_version)
                .values(**values)
            )
        except sa.exc.IntegrityError as error:
            raise ConflictError(
                f"another release of {after.task!r} is in motion in this cohort"
            ) from error
        if written.rowcount != 1:
            raise ConflictError(f"release {before.id} was changed by someone else")

    # -- history ----------------------------------------------------------------------

    def add_event(
        self,
        connection: sa.Connection,
        release: int,
        *,
        actor: str,
        before: str,
        after: str,
        reason: str,
        evidence: dict[str, Any],
        now_us: int,
    ) -> None:
        """Append one row to a release's history."""
        connection.execute(
            sa.insert(tables.release_event).values(
                release=release,
                at_us=now_us,
                actor=actor,
                from_state=before,
                to_state=after,
                reason=reason,
                evidence=evidence,
            )
        )

    def history(self, connection: sa.Connection, release: int) -> list[dict[str, Any]]:
        """Return a release's history, oldest first."""
        table = tables.release_event
        rows = connection.execute(
            sa.select(table).where(table.c.release == release).order_by(table.c.id)
        )
        return [dict(row._mapping) for row in rows]

    def simulation_passed(self, connection: sa.Connection, release: int) -> bool:
        """Tell whether the newest simulation report of a release was good."""
        newest = next(
            (
                event["evidence"]["simulation"]
                for event in reversed(self.history(connection, release))
                if "simulation" in event["evidence"]
            ),
            False,
        )
        return bool(newest)

    # -- tasks, cohorts, devices ----------------------------------------------------------

    def has_version(self, connection: sa.Connection, task: str, version: int) -> bool:
        """Tell whether a version of a task is published."""
        table = tables.task_version
        query = sa.select(table.c.id).where(table.c.task == task, table.c.version == version)
        return connection.execute(query).first() is not None

    def task_limits(self, connection: sa.Connection, task: str, version: int) -> dict[str, Any]:
        """Return the limits that a version's manifest states."""
        table = tables.task_version
        manifest = connection.execute(
            sa.select(table.c.manifest).where(table.c.task == task, table.c.version == version)
        ).scalar_one()
        return dict(manifest.get("limits") or {})

    def desired_tasks(self, connection: sa.Connection) -> dict[tuple[str, int], DesiredTask]:
        """Return what a device needs to hold each released version."""
        table, released = tables.task_version, tables.release
        rows = connection.execute(
            sa.select(
                table.c.task,
                table.c.version,
                table.c.package_sha256,
                table.c.size,
                table.c.manifest,
            ).where(
                sa.exists().where(
                    released.c.task == table.c.task, released.c.version == table.c.version
                )
            )
        )
        return {(row.task, row.version): _desired(row) for row in rows}

    def find_cohort(self, connection: sa.Connection, cohort: str | int) -> tuple[int, str]:
        """Return id and name of a cohort given by either."""
        table = tables.cohort
        where = table.c.id == cohort if isinstance(cohort, int) else table.c.name == cohort
        row = connection.execute(sa.select(table.c.id, table.c.name).where(where)).one_or_none()
        if row is None:
            raise NotFoundError(f"no cohort {cohort!r}")
        return row.id, row.name

    def cohort_epochs(self, connection: sa.Connection) -> dict[int, int]:
        """Return the epoch of the last change of each cohort."""
        rows = connection.execute(sa.select(tables.cohort.c.id, tables.cohort.c.epoch))
        return {row.id: row.epoch for row in rows}

    def virtual_cohort(self, connection: sa.Connection) -> int | None:
        """Return the id of the cohort of virtual devices, if it is defined."""
        query = sa.select(tables.cohort.c.id).where(tables.cohort.c.name == VIRTUAL_COHORT)
        return connection.execute(query).scalar_one_or_none()

    def sets(self, connection: sa.Connection) -> dict[int, list[int]]:
        """Return the cohort sets in force: number to cohort ids."""
        table = tables.cohort_set
        rows = connection.execute(
            sa.select(table.c.id, table.c.cohorts).where(table.c.digest.not_like("retired:%"))
        )
        return {row.id: list(row.cohorts) for row in rows}

    def _sets_with(self, connection: sa.Connection, cohort: int) -> list[int]:
        """Return the sets that contain a cohort, virtual devices left out."""
        virtual = self.virtual_cohort(connection)
        return [
            number
            for number, cohorts in self.sets(connection).items()
            if cohort in cohorts and virtual not in cohorts
        ]

    def _virtual_devices(self, connection: sa.Connection) -> Any | None:
        virtual = self.virtual_cohort(connection)
        if virtual is None:
            return None
        sets = [n for n, cohorts in self.sets(connection).items() if virtual in cohorts]
        table = tables.device
        return sa.and_(table.c.cohort_set.in_(sets), table.c.revoked_us.is_(None))

    def has_virtual_device(self, connection: sa.Connection) -> bool:
        """Tell whether a simulation test can be run at all."""
        where = self._virtual_devices(connection)
        if where is None:
            return False
        query = sa.select(tables.device.c.id).where(where).limit(1)
        return connection.execute(query).first() is not None

    def virtual_device_key(self, connection: sa.Connection, device: bytes) -> bytes | None:
        """Return the public key of a virtual device; ``None`` if it is not one."""
        where = self._virtual_devices(connection)
        if where is None:
            return None
        table = tables.device
        found = connection.execute(
            sa.select(table.c.public_key).where(where, table.c.id == device)
        ).scalar_one_or_none()
        return None if found is None else bytes(found)

    def device_sets(self, connection: sa.Connection, devices: Iterable[str]) -> dict[str, int]:
        """Return the cohort set of each named device that is enrolled and not revoked."""
        wanted = [bytes.fromhex(device) for device in devices]
        if not wanted:
            return {}
        table = tables.device
        rows = connection.execute(
            sa.select(table.c.id, table.c.cohort_set).where(
                table.c.id.in_(wanted),
                table.c.cohort_set.is_not(None),
                table.c.revoked_us.is_(None),
            )
        )
        return {row.id.hex(): row.cohort_set for row in rows}

    def missing_beta(self, connection: sa.Connection, m: ManagedRelease) -> list[str]:
        """Return the named devices that are not enrolled, or not in the release's cohort."""
        if not m.policy.beta_devices:
            return []
        sets = set(self._sets_with(connection, m.release.cohort))
        found = self.device_sets(connection, m.policy.beta_devices)
        return [device for device in m.policy.beta_devices if found.get(device) not in sets]

    def _eligible(self, connection: sa.Connection, cohort: int) -> Any:
        table = tables.device
        return sa.and_(
            table.c.cohort_set.in_(self._sets_with(connection, cohort)),
            table.c.revoked_us.is_(None),
        )

    def exposure(self, connection: sa.Connection, m: ManagedRelease) -> tuple[int, list[int]]:
        """Return the devices in the cohort, and how many of them each step lets in.

        The second counts the real buckets of small cohorts and the nominal share
        of large ones; named beta devices are left out of it.
        """
        where = self._eligible(connection, m.release.cohort)
        eligible = connection.execute(
            sa.select(sa.func.count()).select_from(tables.device).where(where)
        ).scalar_one()
        if eligible > _BALANCE_BELOW or not m.salt:
            counted = max(0, eligible - len(m.policy.beta_devices))
            return eligible, [counted * step // 10_000 for step in m.policy.steps]
        named = set(m.policy.beta_devices)
        found = [
            bucket(m.salt, row.id.hex())
            for row in connection.execute(sa.select(tables.device.c.id).where(where))
            if row.id.hex() not in named
        ]
        return eligible, [sum(b < step for b in found) for step in m.policy.steps]

    def choose_salt(self, connection: sa.Connection, m: ManagedRelease) -> str:
        """Draw the salt of a release's buckets.

        In a small cohort the first of some random salts under which the steps
        come closest to their nominal sizes is taken: buckets stay blind to
        everything but the device ids, and a step of 20 % of 60 devices does not
        turn out to be 5 by bad luck.
        """
        salts = [secrets.token_hex(8) for _ in range(_SALTS)]
        where = self._eligible(connection, m.release.cohort)
        query = sa.select(tables.device.c.id).where(where).limit(_BALANCE_BELOW + 1)
        named = set(m.policy.beta_devices)
        devices = [row.id.hex() for row in connection.execute(query)]
        counted = [device for device in devices if device not in named]
        if not counted or len(devices) > _BALANCE_BELOW:
            return salts[0]
        steps = np.asarray(m.policy.steps[:-1])
        nominal = steps * (len(counted) / 10_000)

        def distance(salt: str) -> float:
            buckets = np.array([bucket(salt, device) for device in counted])
            inside = (buckets[None, :] < steps[:, None]).sum(axis=1)
            return float(np.abs(inside - nominal).max())

        return min(salts, key=distance)

    # -- installations ------------------------------------------------------------------------

    def still_holding(self, connection: sa.Connection, release: Release) -> int:
        """Count devices of the cohort that report the version as installed."""
        table = tables.holding
        query = (
            sa.select(sa.func.count())
            .select_from(table.join(tables.device, tables.device.c.id == table.c.device))
            .where(
                table.c.task == release.task,
                table.c.version == release.version,
                table.c.state.in_(_HELD),
                self._eligible(connection, release.cohort),
            )
        )
        return int(connection.execute(query).scalar_one())

    def ever_installed(self, connection: sa.Connection, release: int) -> int:
        """Count devices that ever installed a release."""
        table = tables.sticky
        query = sa.select(sa.func.count()).where(table.c.release == release)
        return int(connection.execute(query.select_from(table)).scalar_one())

    def sticky(self, connection: sa.Connection, device: bytes) -> list[int]:
        """Return the releases that a device has installed."""
        table = tables.sticky
        rows = connection.execute(sa.select(table.c.release).where(table.c.device == device))
        return [row.release for row in rows]


def _desired(row: Any) -> DesiredTask:
    separate = [
        resource for resource in row.manifest.get("resources") or () if resource.get("separate")
    ]
    return DesiredTask(
        task=row.task,
        version=row.version,
        package=FileRef(
            sha256=bytes(row.package_sha256),
            size=row.size,
            path=f"{row.task}-{row.version}.shoal",
        ),
        resources=[
            FileRef(
                sha256=bytes.fromhex(resource["sha256"]),
                size=resource["size"],
                path=resource["path"],
                scope=resource.get("scope", "shared"),
            )
            for resource in separate
        ],
        exclusive=any(resource.get("scope") == "exclusive" for resource in separate),
    )
