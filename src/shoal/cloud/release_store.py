"""Releases as rows: reading and writing them, and what their guards ask of other tables."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from shoal.cloud import store as tables
from shoal.cloud.policy import ReleasePolicy
from shoal.cloud.release_plans import ManagedRelease
from shoal.cloud.releases import TERMINAL, Change, Release, ReleaseState
from shoal.cloud.store import Store
from shoal.core.errors import ConflictError, NotFoundError
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
        """Tell whether the newest simulation report of a release's version was good.

        A report speaks of the package, not of the release: a virtual device that
        holds the version already is not asked again by a second draft of it.
        """
        events, releases = tables.release_event, tables.release
        about = connection.execute(
            sa.select(releases.c.task, releases.c.version).where(releases.c.id == release)
        ).one()
        reports = connection.execute(
            sa.select(events.c.evidence)
            .join(releases, releases.c.id == events.c.release)
            .where(releases.c.task == about.task, releases.c.version == about.version)
            .order_by(events.c.id.desc())
        )
        return next(
            (bool(row.evidence["simulation"]) for row in reports if "simulation" in row.evidence),
            False,
        )

    # -- tasks --------------------------------------------------------------------------

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
