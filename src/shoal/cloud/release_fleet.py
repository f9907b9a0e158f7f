"""What releases ask about the fleet: who is in a cohort, who is named, who holds what."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import sqlalchemy as sa

from shoal.cloud import store as tables
from shoal.cloud.release_plans import VIRTUAL_COHORT, ManagedRelease
from shoal.cloud.releases import Release
from shoal.core.errors import NotFoundError
from shoal.wire.buckets import bucket
from shoal.wire.results import InstallState

__all__ = ["ReleaseFleet"]

_HELD: Final = (InstallState.TRIAL, InstallState.GOOD)
#: Below this many devices a salt is chosen so that the steps have their nominal sizes.
_BALANCE_BELOW: Final = 2_000
#: Buckets worked out while choosing; small cohorts, where luck matters, try most salts.
_TRIALS: Final = 40_000


class ReleaseFleet:
    """Questions about cohorts and devices; every method reads inside a given transaction."""

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
        where = self._eligible(connection, m.release.cohort)
        query = sa.select(tables.device.c.id).where(where).limit(_BALANCE_BELOW + 1)
        named = set(m.policy.beta_devices)
        devices = [row.id.hex() for row in connection.execute(query)]
        counted = [device for device in devices if device not in named]
        if not counted or len(devices) > _BALANCE_BELOW:
            return secrets.token_hex(8)
        steps = np.asarray(m.policy.steps[:-1])
        nominal = steps * (len(counted) / 10_000)

        def distance(salt: str) -> float:
            buckets = np.array([bucket(salt, device) for device in counted])
            inside = (buckets[None, :] < steps[:, None]).sum(axis=1)
            return float(np.abs(inside - nominal).max())

        number = max(16, min(256, _TRIALS // len(counted)))
        return min((secrets.token_hex(8) for _ in range(number)), key=distance)

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
