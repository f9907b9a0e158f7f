"""Which version of each task is in force, and how one gets there and goes again.

Every change is one transaction that flips a row, hands the place in the event
log on, and queues the report about it: a ``kill -9`` leaves the old state or the
new one, and the cloud hears of what is (Walle sheet A.8).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from shoal.core.crashpoints import crashpoint
from shoal.device.packages import PackageRow, PackageStore
from shoal.device.store import DeviceStore
from shoal.device.uplink import Uplink
from shoal.wire.codes import ErrorCode
from shoal.wire.results import InstallReport, InstallState

__all__ = ["Versions"]


class Versions:
    """The versions in force of one device.

    Parameters
    ----------
    store, packages : DeviceStore, PackageStore
    uplink : Uplink
        Takes the reports.
    clock : callable
        Server time in microseconds.
    trial_runs, trial_crashes : int
        Good runs that end a trial well, failed ones that end it badly.

    Attributes
    ----------
    generation : int
        Rises when the versions in force change.
    """

    def __init__(
        self,
        store: DeviceStore,
        packages: PackageStore,
        uplink: Uplink,
        *,
        clock: Callable[[], int],
        trial_runs: int,
        trial_crashes: int,
    ) -> None:
        self._store = store
        self._packages = packages
        self._uplink = uplink
        self._clock = clock
        self._trial_runs = trial_runs
        self._trial_crashes = trial_crashes
        self.generation = 0

    def install(self, row: tuple[str, int], *, sha256: bytes, epoch: int, folder: str) -> None:
        """Put a version in force whose files are on the disk and checked; its trial begins."""
        with self._store.transaction() as cursor:
            self._packages.write(
                cursor,
                row,
                sha256=sha256,
                state=InstallState.TRIAL,
                epoch=epoch,
                folder=folder,
                at_us=self._clock(),
            )
            self.put_in_force(cursor, *row, InstallState.TRIAL)
            crashpoint("sync.flip.before")
        crashpoint("sync.flip.after")
        self.generation += 1

    def put_in_force(
        self, cursor: sqlite3.Cursor, task: str, version: int | None, state: str
    ) -> None:
        """Flip the pointer and report it, inside the caller's transaction."""
        previous = self._packages.active().get(task)
        row = None if previous is None else self._packages.row(task, previous)
        if row is not None and row.state == InstallState.GOOD and previous != version:
            cursor.execute(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"lastgood.{task}", previous)
            )
        self._packages.activate(cursor, task, version)
        if version is not None:
            self.report(cursor, task, version, state)

    def switch(self, row: PackageRow) -> None:
        """Put a version in force that is on the disk already."""
        if self._packages.active().get(row.task) == row.version:
            return
        with self._store.transaction() as cursor:
            self.put_in_force(cursor, row.task, row.version, row.state)
            crashpoint("sync.flip.before")
        crashpoint("sync.flip.after")
        self.generation += 1

    def remove(self, task: str) -> None:
        """Put no version of a task in force any more, and report it."""
        version = self._packages.active()[task]
        with self._store.transaction() as cursor:
            self._packages.activate(cursor, task, None)
            row = self._packages.row(task, version)
            if row is not None and self._packages.is_held(row.state):
                self._packages.set_state(cursor, task, version, InstallState.REMOVED)
            self.report(cursor, task, version, InstallState.REMOVED)
            crashpoint("sync.removed.before")
        crashpoint("sync.removed.after")
        self.generation += 1

    def drop(self, row: PackageRow, message: str) -> None:
        """Forget a version whose files are damaged, so that it is brought again."""
        with self._store.transaction() as cursor:
            # Its place in the log stays: it comes back as the same version.
            cursor.execute("DELETE FROM meta WHERE key=?", (f"active.{row.task}",))
            cursor.execute(
                "DELETE FROM package WHERE task=? AND version=?", (row.task, row.version)
            )
            code = int(ErrorCode.HASH_MISMATCH)
            self.report(
                cursor, row.task, row.version, InstallState.WANTED, code=code, message=message
            )
        self._packages.discard(row)
        self.generation += 1

    # -- trials --------------------------------------------------------------------------------

    def record_runs(
        self, cursor: sqlite3.Cursor, task: str, version: int, good: int, failed: int
    ) -> bool:
        """Take note of runs inside the runner's transaction.

        Returns
        -------
        bool
            Whether the version has just failed its trial. The caller then calls
            :meth:`revert` once its transaction is over.
        """
        runs, failures, state = self._packages.count_runs(cursor, task, version, good, failed)
        if state != InstallState.TRIAL:
            return False
        if failures >= self._trial_crashes:
            return True
        if runs >= self._trial_runs:
            self._packages.set_state(cursor, task, version, InstallState.GOOD)
            self._packages.forget_kept_place(cursor, task)
            self.report(cursor, task, version, InstallState.GOOD)
        return False

    def revert(self, task: str, version: int, message: str, *, floor: int = 0) -> int | None:
        """Give up a version that failed its trial and go back to the last good one.

        Parameters
        ----------
        task, version : str, int
        message : str
            Why, for the report.
        floor : int
            Versions below it were withdrawn and do not come back.

        Returns
        -------
        int or None
            The version in force now; None if there is none to go back to.
        """
        back = self._packages.last_good(task, other_than=version, floor=floor)
        with self._store.transaction() as cursor:
            code = int(ErrorCode.QUARANTINED)
            self._packages.set_state(cursor, task, version, InstallState.BAD, code)
            self._packages.activate(cursor, task, back)
            self.report(cursor, task, version, InstallState.BAD, code=code, message=message)
            if back is not None:  # the cloud must know what is in force again
                self.report(cursor, task, back, InstallState.GOOD)
            crashpoint("sync.revert.before")
        crashpoint("sync.revert.after")
        self.generation += 1
        return back

    def report(
        self,
        cursor: sqlite3.Cursor,
        task: str,
        version: int,
        state: str,
        *,
        code: int = 0,
        message: str = "",
    ) -> None:
        """Queue an install report inside the caller's transaction."""
        report = InstallReport(task, version, state, code, self._clock(), message[:300])
        self._uplink.put_installs(cursor, [report])

    def collect(self) -> None:
        """Remove the files of versions that are neither in force nor the last good ones."""
        active = self._packages.active()
        rows = self._packages.rows()
        keep = [
            row
            for row in rows
            if active.get(row.task) == row.version
            or row.version == self._packages.last_good(row.task, other_than=0)
        ]
        self._packages.collect_garbage(keep)
        with self._store.transaction() as cursor:
            for row in rows:
                if row not in keep and self._packages.is_held(row.state):
                    self._packages.set_state(cursor, row.task, row.version, InstallState.REMOVED)
