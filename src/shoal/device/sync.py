"""Brings the device's packages to what the cloud wants, step by step (Walle sheet A.8).

wanted -> downloading -> verified -> trial -> good; or refused (with its code),
bad (failed in its trial), removed. What cannot be had for the moment stays
wanted and is tried again; what must not be had is refused, reported, and then
counts as settled, so that the device becomes quiet.
"""

from __future__ import annotations

import errno
import platform
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from shoal.core.crashpoints import crashpoint
from shoal.core.errors import (
    InputError,
    IntegrityError,
    NotFoundError,
    ShoalError,
    UnavailableError,
)
from shoal.device.cloudlink import CloudLink, RefusedError
from shoal.device.packages import InstalledTask, PackageRow, PackageStore
from shoal.device.store import DeviceStore
from shoal.device.trust import TrustError, TrustStore
from shoal.device.uplink import Uplink
from shoal.wire.codes import ErrorCode
from shoal.wire.limits import DEFAULT_LIMITS, WireLimits
from shoal.wire.notices import DesiredTask, FileRef, ReleaseNotice
from shoal.wire.profile import PROTOCOL, HeldTask, format_profile_header, profile_digest
from shoal.wire.results import InstallReport, InstallState
from shoal.wire.specs import TaskManifest

__all__ = ["DeviceFacts", "Sync"]

_SETTLED = (InstallState.TRIAL, InstallState.GOOD, InstallState.REFUSED, InstallState.BAD)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLAUSE = re.compile(r"(>=|<=|==|!=|>|<)?\s*([0-9][0-9a-zA-Z.]*)")


@dataclass(frozen=True)
class DeviceFacts:
    """What this device can do, against which packages are checked."""

    engines: Mapping[str, str]
    capabilities: frozenset[str]
    sandbox_level: int
    memory_mb: int


class Sync:
    """The device's side of releases.

    Parameters
    ----------
    store : DeviceStore
    packages : PackageStore
    trust : TrustStore
        Checks signatures; set when the device has enrolled.
    link : CloudLink
        Where notices and files come from.
    uplink : Uplink
        Takes install reports.
    facts : DeviceFacts
        What the device can do.
    clock : callable
        Server time in microseconds.
    trial_runs, trial_crashes : int
        Good runs that end a trial well, failed ones that end it badly.
    """

    def __init__(
        self,
        store: DeviceStore,
        packages: PackageStore,
        link: CloudLink,
        uplink: Uplink,
        facts: DeviceFacts,
        *,
        clock: Callable[[], int],
        trial_runs: int = 5,
        trial_crashes: int = 3,
        limits: WireLimits = DEFAULT_LIMITS,
    ) -> None:
        self._store = store
        self._packages = packages
        self._link = link
        self._uplink = uplink
        self._facts = facts
        self._clock = clock
        self._trial_runs = trial_runs
        self._trial_crashes = trial_crashes
        self._limits = limits
        self.trust: TrustStore | None = None
        #: Rises when the versions in force change; the runner follows it.
        self.generation = 0
        #: Refusals of whole notices and transient failures, by reason.
        self.counts: Counter[str] = Counter()
        #: The last reason why a notice could not be followed; empty when settled.
        self.last_error = ""
        self._desired: dict[str, int] = {}
        self._epoch = 0
        self._load_desired()
        self._recheck()

    # -- what the device says of itself ------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Epoch of the last notice that was accepted."""
        return self._epoch

    def settled(self) -> list[tuple[str, int]]:
        """Return the pairs that the profile digest speaks of."""
        states = {(row.task, row.version): row for row in self._packages.rows()}
        pairs = []
        for task, version in self._desired.items():
            row = states.get((task, version))
            if version > 0 and row is not None and row.state in _SETTLED:
                pairs.append((task, version))
        return pairs

    def header(self, cohort: int) -> str:
        """Return the ``Shoal-Profile`` header."""
        return format_profile_header(self._epoch, cohort, profile_digest(self.settled()))

    def held(self) -> list[HeldTask]:
        """Return what the full profile lists."""
        return [HeldTask(row.task, row.version, row.state) for row in self._packages.rows()]

    def installed(self) -> list[InstalledTask]:
        """Return the versions in force; one whose files are damaged is dropped and wanted again."""
        rows = {(row.task, row.version): row for row in self._packages.rows()}
        found = []
        for task, version in sorted(self._packages.active().items()):
            row = rows.get((task, version))
            if row is None:
                continue
            try:
                found.append(self._packages.load(row))
            except (IntegrityError, NotFoundError, InputError) as error:
                self.counts["damaged"] += 1
                self._drop(row, str(error))
        return found

    # -- following a notice ------------------------------------------------------------------

    def follow(self, data: bytes, *, cohort: int) -> bool:
        """Check a notice and bring the packages to it.

        Parameters
        ----------
        data : bytes
            The notice as pulled.
        cohort : int
            The cohort set in the device's token.

        Returns
        -------
        bool
            Whether everything is settled now; if not, the same notice is to be
            followed again later (what was downloaded is kept).
        """
        trust = self.trust
        if trust is None:
            raise UnavailableError("no root of trust yet", hint="the device has to enrol first")
        try:
            notice = msgspec.msgpack.decode(data, type=ReleaseNotice)
            statement = trust.director(notice, cohort=cohort)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._fail("bad_notice", f"the notice does not decode: {error}")
            return False
        except TrustError as error:
            self._fail(f"notice_{int(error.code)}", error.message)
            return False
        self.last_error = ""
        whole = True
        wanted = sorted(statement.tasks, key=lambda task: (task.priority, task.task))
        self._want({task.task: task.version for task in wanted}, statement.epoch)
        for task in list(self._packages.active()):
            if self._desired.get(task, 0) == 0:
                self._remove(task)
        for desired in wanted:
            if desired.version > 0:
                whole = self._bring(trust, desired, notice, cohort) and whole
        if whole:
            self._collect()
        return whole

    def _want(self, desired: dict[str, int], epoch: int) -> None:
        with self._store.transaction() as cursor:
            blob = msgspec.json.encode({"epoch": epoch, "tasks": desired})
            cursor.execute("INSERT OR REPLACE INTO meta VALUES ('desired', ?)", (blob,))
            crashpoint("sync.wanted.before")
        crashpoint("sync.wanted.after")
        self._desired, self._epoch = desired, epoch

    def _load_desired(self) -> None:
        blob = self._store.meta_get("desired")
        if blob:
            entry = msgspec.json.decode(blob)
            self._desired, self._epoch = dict(entry["tasks"]), int(entry["epoch"])

    def _bring(
        self, trust: TrustStore, desired: DesiredTask, notice: ReleaseNotice, cohort: int
    ) -> bool:
        """Install one desired task; returns whether it is settled."""
        row = self._packages.row(desired.task, desired.version)
        forced = desired.force and row is not None and self._epoch > row.epoch
        if row is not None and row.state in _SETTLED and not forced:
            if self._packages.is_held(row.state):
                self._switch(row)
            return True
        if desired.not_before_us > self._clock():
            self.counts["not_before"] += 1
            return False
        try:
            trust.check(desired)
            if desired.exclusive:
                grant = self._link.exclusive(desired.task, desired.version)
                granted = trust.exclusive(
                    grant, cohort=cohort, device=self._uplink.device, task=desired.task
                )
                desired = msgspec.structs.replace(
                    desired, resources=[*desired.resources, *granted.resources]
                )
            self._install(desired, notice)
        except TrustError as error:
            self._refuse(desired, error.code, error.message)
        except RefusedError as error:
            return self._later(desired, error.code, error.message)
        except (UnavailableError, NotFoundError) as error:
            code = getattr(error, "code", ErrorCode.DOWNLOAD_FAILED)
            return self._later(desired, code, error.message)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            return self._later(desired, ErrorCode.DISK_FULL, "the disk is full")
        except ShoalError as error:  # the package itself is not acceptable
            self._refuse(desired, getattr(error, "code", ErrorCode.INCOMPATIBLE), error.message)
        return True

    def _install(self, desired: DesiredTask, notice: ReleaseNotice) -> None:
        needed = desired.package.size * 2 + sum(ref.size for ref in desired.resources)
        largest = max([ref.size for ref in desired.resources], default=0)
        if desired.package.size > self._limits.package or largest > self._limits.resource:
            raise TrustError(
                "the package is larger than this device takes", ErrorCode.SIZE_EXCEEDED
            )
        if self._packages.free_bytes() < needed + (1 << 20):
            raise OSError(errno.ENOSPC, "not enough room for the package")
        self._fetch(desired.package, notice)
        manifest, folder = self._packages.unpack(desired.package)
        if (manifest.task, manifest.version) != (desired.task, desired.version):
            raise TrustError(
                f"the package says that it is {manifest.task} {manifest.version}",
                ErrorCode.HASH_MISMATCH,
            )
        self._check_compatible(manifest)
        by_hash = {ref.sha256.hex(): ref for ref in desired.resources}
        for resource in manifest.resources:
            if resource.separate:
                if resource.sha256 not in by_hash:
                    raise TrustError(
                        f"the notice does not offer {resource.path}", ErrorCode.HASH_MISMATCH
                    )
                self._fetch(by_hash[resource.sha256], notice)
        crashpoint("sync.verified")
        now = self._clock()
        with self._store.transaction() as cursor:
            self._packages.write(
                cursor,
                (desired.task, desired.version),
                sha256=desired.package.sha256,
                state=InstallState.TRIAL,
                epoch=self._epoch,
                folder=str(folder),
                at_us=now,
            )
            self._remember_good(cursor, desired.task)
            self._packages.activate(cursor, desired.task, desired.version)
            self._report(cursor, desired.task, desired.version, InstallState.TRIAL)
            crashpoint("sync.flip.before")
        crashpoint("sync.flip.after")
        self.generation += 1

    def _fetch(self, ref: FileRef, notice: ReleaseNotice) -> None:
        addresses = [*notice.urls.get(ref.sha256.hex(), []), f"/v1/d/files/{ref.sha256.hex()}"]
        failure: ShoalError | None = None
        for address in dict.fromkeys(addresses):
            try:
                self._packages.receive(ref, partial(self._link.download, address))
            except (UnavailableError, NotFoundError, TrustError) as error:
                failure = error  # a bad mirror must not stop a good one
            else:
                return
        assert failure is not None
        raise failure

    def _check_compatible(self, manifest: TaskManifest) -> None:
        requires, facts = manifest.requires, self._facts
        problems = []
        if not _fits(platform.python_version(), requires.python):
            problems.append(f"needs Python {requires.python}")
        if requires.protocol > PROTOCOL:
            problems.append(f"needs protocol {requires.protocol}")
        for name, wanted in requires.engines.items():
            have = facts.engines.get(name)
            if have is None or not _fits(have, wanted):
                problems.append(f"needs engine {name} {wanted}")
        missing = sorted(set(requires.capabilities) - facts.capabilities)
        if missing:
            problems.append(f"needs {', '.join(missing)}")
        if requires.memory_mb > facts.memory_mb:
            problems.append(f"needs {requires.memory_mb} MB of memory")
        if requires.disk_mb > self._packages.free_bytes() >> 20:
            problems.append(f"needs {requires.disk_mb} MB of disk")
        if manifest.isolation.sandbox_level > facts.sandbox_level:
            problems.append(f"needs sandbox level {manifest.isolation.sandbox_level}")
        if manifest.isolation.backend == "interpreter":
            problems.append("needs the interpreter backend")
        if problems:
            raise TrustError("; ".join(problems), ErrorCode.INCOMPATIBLE)

    # -- changes of state ----------------------------------------------------------------------

    def _switch(self, row: PackageRow) -> None:
        if self._packages.active().get(row.task) == row.version:
            return
        with self._store.transaction() as cursor:
            self._remember_good(cursor, row.task)
            self._packages.activate(cursor, row.task, row.version)
            self._report(cursor, row.task, row.version, row.state)
            crashpoint("sync.flip.before")
        crashpoint("sync.flip.after")
        self.generation += 1

    def _remove(self, task: str) -> None:
        version = self._packages.active()[task]
        with self._store.transaction() as cursor:
            self._packages.activate(cursor, task, None)
            row = self._packages.row(task, version)
            if row is not None and row.state in (InstallState.TRIAL, InstallState.GOOD):
                self._packages.set_state(cursor, task, version, InstallState.REMOVED)
            self._report(cursor, task, version, InstallState.REMOVED)
        self.generation += 1

    def _refuse(self, desired: DesiredTask, code: ErrorCode | int, message: str) -> None:
        self.counts[f"refused_{int(code)}"] += 1
        self.last_error = f"{desired.task} {desired.version}: {message}"
        with self._store.transaction() as cursor:
            self._packages.write(
                cursor,
                (desired.task, desired.version),
                sha256=desired.package.sha256,
                state=InstallState.REFUSED,
                epoch=self._epoch,
                code=int(code),
                at_us=self._clock(),
            )
            self._report(
                cursor, desired.task, desired.version, InstallState.REFUSED, int(code), message
            )

    def _later(self, desired: DesiredTask, code: int, message: str) -> bool:
        """Report that a task cannot be had for the moment; it stays wanted."""
        self.counts[f"later_{int(code)}"] += 1
        self.last_error = f"{desired.task} {desired.version}: {message}"
        said = (desired.task, desired.version, int(code))
        if self._store.meta_get("sync.said") != repr(said):
            try:
                with self._store.transaction() as cursor:
                    cursor.execute(
                        "INSERT OR REPLACE INTO meta VALUES ('sync.said', ?)", (repr(said),)
                    )
                    self._report(cursor, *said[:2], InstallState.WANTED, *(said[2], message))
            except UnavailableError:
                self.counts["report_failed"] += 1  # the disk that is full is this one
        return False

    def _drop(self, row: PackageRow, message: str) -> None:
        """Forget a version whose files are damaged, so that it is brought again."""
        self.last_error = message
        with self._store.transaction() as cursor:
            self._packages.activate(cursor, row.task, None)
            cursor.execute(
                "DELETE FROM package WHERE task=? AND version=?", (row.task, row.version)
            )
            code = int(ErrorCode.HASH_MISMATCH)
            self._report(cursor, row.task, row.version, InstallState.WANTED, code, message)
        self._packages.collect_garbage(
            other.sha256 for other in self._packages.rows() if other.sha256 != row.sha256
        )
        self.generation += 1

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
            self._report(cursor, task, version, InstallState.GOOD)
        return False

    def revert(self, task: str, version: int, message: str) -> int | None:
        """Give up a version that failed its trial and go back to the last good one.

        Returns
        -------
        int or None
            The version in force now; None if there is none to go back to.
        """
        back = self._packages.last_good(task, other_than=version)
        with self._store.transaction() as cursor:
            code = int(ErrorCode.QUARANTINED)
            self._packages.set_state(cursor, task, version, InstallState.BAD, code)
            self._packages.activate(cursor, task, back)
            self._report(cursor, task, version, InstallState.BAD, code, message)
            crashpoint("sync.revert.before")
        crashpoint("sync.revert.after")
        self.counts["reverted"] += 1
        self.generation += 1
        return back

    def _remember_good(self, cursor: sqlite3.Cursor, task: str) -> None:
        version = self._packages.active().get(task)
        row = None if version is None else self._packages.row(task, version)
        if row is not None and row.state == InstallState.GOOD:
            cursor.execute(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"lastgood.{task}", version)
            )

    def _report(
        self,
        cursor: sqlite3.Cursor,
        task: str,
        version: int,
        state: str,
        *problem: Any,
    ) -> None:
        """Queue an install report; ``problem`` is an error code and a message."""
        code, message = problem or (0, "")
        report = InstallReport(task, version, state, code, self._clock(), message[:300])
        self._uplink.put_installs(cursor, [report])

    def _fail(self, reason: str, message: str) -> None:
        self.counts[reason] += 1
        self.last_error = message

    # -- start-up and clean-up -------------------------------------------------------------------

    def _recheck(self) -> None:
        """Compare what is said to be installed with the disk: a wiped disk shows as a mismatch."""
        self.installed()

    def _collect(self) -> None:
        """Remove the files of versions that are neither in force nor the last good ones."""
        active = self._packages.active()
        keep = set()
        for row in self._packages.rows():
            in_force = active.get(row.task) == row.version
            if in_force or row.version == self._packages.last_good(row.task, other_than=-1):
                keep.add(row)
        hashes = {row.sha256 for row in keep}
        for row in keep:
            try:
                manifest = self._packages.load(row).manifest
            except ShoalError:
                continue
            hashes.update(bytes.fromhex(r.sha256) for r in manifest.resources if r.separate)
        self._packages.collect_garbage(hashes)
        with self._store.transaction() as cursor:
            for row in self._packages.rows():
                gone = row not in keep and self._packages.is_held(row.state)
                if gone and self._desired.get(row.task) != row.version:
                    self._packages.set_state(cursor, row.task, row.version, InstallState.REMOVED)


def _fits(version: str, wanted: str) -> bool:
    """Whether a version meets clauses such as ``>=1.20, <2``; nothing wanted fits always."""
    have = _parts(version)
    for clause in filter(None, (part.strip() for part in wanted.split(","))):
        match = _CLAUSE.fullmatch(clause)
        if match is None:
            return False
        operator, want = match[1] or "==", _parts(match[2])
        size = max(len(have), len(want))
        left = have + (0,) * (size - len(have))
        right = want + (0,) * (size - len(want))
        if operator == "==":
            left = left[: len(want)] + (0,) * (size - len(want))
        holds = {
            ">=": left >= right,
            "<=": left <= right,
            ">": left > right,
            "<": left < right,
            "==": left == right,
            "!=": left != right,
        }[operator]
        if not holds:
            return False
    return True


def _parts(version: str) -> tuple[int, ...]:
    parts = []
    for part in version.split("."):
        digits = re.match(r"\d+", part)
        if digits is None:
            break
        parts.append(int(digits[0]))
        if digits[0] != part:
            break
    return tuple(parts)
