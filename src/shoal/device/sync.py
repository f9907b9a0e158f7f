"""Brings the device's packages to what the cloud wants, step by step (Walle sheet A.8).

wanted -> downloading -> verified -> trial -> good; or refused (with its code),
bad (failed in its trial), removed. What cannot be had for the moment stays
wanted and is tried again; what must not be had is refused, reported, and then
counts as settled, so that the device becomes quiet.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

import msgspec

from shoal.core.crashpoints import crashpoint
from shoal.core.errors import (
    InputError,
    IntegrityError,
    LimitError,
    NotFoundError,
    ShoalError,
    UnavailableError,
)
from shoal.device.cloudlink import CloudLink, RefusedError
from shoal.device.compatibility import DeviceFacts
from shoal.device.delivery import Delivery
from shoal.device.packages import InstalledTask, PackageRow, PackageStore
from shoal.device.store import DeviceStore
from shoal.device.trust import TrustError, TrustStore
from shoal.device.uplink import Uplink
from shoal.device.versions import Versions
from shoal.wire.codes import ErrorCode
from shoal.wire.limits import DEFAULT_LIMITS, WireLimits
from shoal.wire.notices import DesiredTask, ReleaseNotice
from shoal.wire.profile import HeldTask, format_profile_header, profile_digest
from shoal.wire.results import InstallState

__all__ = ["Sync"]

_SETTLED: Final = frozenset(
    {InstallState.TRIAL, InstallState.GOOD, InstallState.REFUSED, InstallState.BAD}
)
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: Refusals that may be over soon: metadata that is signed again, an image that follows.
_PASSING: Final = frozenset(
    {
        ErrorCode.METADATA_EXPIRED,
        ErrorCode.UNKNOWN_TASK,
        ErrorCode.SIGNATURE_INVALID,
        ErrorCode.CLOCK_SKEW,
    }
)
#: Bad bytes may come from a cache or a bad line: so many tries before they are believed.
_MAX_BAD_DOWNLOADS: Final = 3


class Sync:
    """The device's side of releases.

    Parameters
    ----------
    store, packages : DeviceStore, PackageStore
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
    reserve_bytes : int
        Disk space that an install must leave free.
    chunk : int
        Bytes that one step downloads.

    Attributes
    ----------
    trust : TrustStore or None
        Checks signatures; set when the device has enrolled.
    versions : Versions
        Which versions are in force.
    counts : Counter
        Refusals and failures by reason.
    last_error : str
        Why the last notice could not be followed; empty when it was.
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
        reserve_bytes: int = 16_000_000,
        chunk: int = 1 << 20,
        limits: WireLimits = DEFAULT_LIMITS,
    ) -> None:
        self._store = store
        self._packages = packages
        self._uplink = uplink
        self._facts = facts
        self._clock = clock
        self._delivery = Delivery(
            packages,
            link,
            facts,
            device=uplink.device,
            reserve_bytes=reserve_bytes,
            chunk=chunk,
            limits=limits,
        )
        self.trust: TrustStore | None = None
        self.versions = Versions(
            store,
            packages,
            uplink,
            clock=clock,
            trial_runs=trial_runs,
            trial_crashes=trial_crashes,
        )
        self.counts: Counter[str] = Counter()
        self.last_error = ""
        self._work: Iterator[None] | None = None
        self._whole = True
        #: Files of these versions have been compared with their hashes since the start.
        self._checked: set[tuple[str, int]] = set()
        #: What was reported as "not now", and downloads that were not what was signed.
        self._told: set[tuple[str, int, int]] = set()
        self._bad_downloads: Counter[tuple[str, int]] = Counter()
        self._desired: dict[str, int] = {}
        self._epoch = 0
        self._load_desired()
        self._reconsider()
        self.installed()  # a wiped or damaged disk shows as a mismatch from the start

    # -- what the device says of itself ------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Epoch of the last notice that was accepted."""
        return self._epoch

    @property
    def generation(self) -> int:
        """Rises when the versions in force change; the agent follows it."""
        return self.versions.generation

    @property
    def working(self) -> bool:
        """Whether a notice is being followed; call :meth:`work`."""
        return self._work is not None

    def settled(self) -> list[tuple[str, int]]:
        """Return the pairs that the profile digest speaks of (Walle sheet 6.3)."""
        active = self._packages.active()
        states = {(row.task, row.version): row.state for row in self._packages.rows()}
        pairs = []
        for task, version in self._desired.items():
            state = states.get((task, version), "")
            held = self._packages.is_held(state) and active.get(task) == version
            if version > 0 and (held or state in (InstallState.REFUSED, InstallState.BAD)):
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
        for key in sorted(self._packages.active().items()):
            row = rows.get(key)
            if row is None:
                continue  # the database was replaced: it shows as a mismatch
            try:
                found.append(self._packages.load(row, thorough=key not in self._checked))
                self._checked.add(key)
            except (IntegrityError, NotFoundError, InputError) as error:
                self.counts["damaged"] += 1
                self.last_error = error.message
                self.versions.drop(row, error.message)
        return found

    # -- following a notice ------------------------------------------------------------------

    def follow(self, data: bytes, *, cohort: int) -> bool:
        """Accept a notice and do all of its work at once; see :meth:`accept`, :meth:`work`."""
        if self.accept(data, cohort=cohort) is None:
            return False
        while self.working:
            self.work()
        return self._whole

    def accept(self, data: bytes, *, cohort: int) -> float | None:
        """Check a notice and, if it is acceptable, begin to follow it.

        Parameters
        ----------
        data : bytes
            The notice as pulled.
        cohort : int
            The cohort set in the device's token.

        Returns
        -------
        float or None
            The notice's jitter in seconds; ``None`` if it was refused.

        Raises
        ------
        UnavailableError
            The device has not enrolled, or the keys to check with cannot be had.
        """
        trust = self.trust
        if trust is None:
            raise UnavailableError("no root of trust yet", hint="the device has to enrol first")
        try:
            notice = msgspec.msgpack.decode(data, type=ReleaseNotice)
            statement = trust.director(notice, cohort=cohort)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._fail("bad_notice", f"the notice does not decode: {error}")
            return None
        except TrustError as error:
            self._fail(f"notice_{int(error.code)}", error.message)
            return None
        self.last_error = ""
        if statement.epoch != self._epoch:
            self._told.clear()
            self._bad_downloads.clear()
        wanted = sorted(statement.tasks, key=lambda task: (task.priority, task.task))
        self._want({task.task: task.version for task in wanted}, statement.epoch)
        self._whole = True
        self._work = self._follow(trust, wanted, notice, cohort)
        return max(notice.jitter_s, 0.0)

    def work(self) -> bool | None:
        """Do one bounded piece of work: a request, or so many bytes of a download.

        Returns
        -------
        bool or None
            ``None`` while there is more; else whether everything is settled. If
            not, the notice is to be followed again later; what was downloaded is kept.
        """
        if self._work is None:
            return self._whole
        try:
            next(self._work)
        except StopIteration:
            self._work = None
            return self._whole
        except BaseException:
            self._work = None
            raise
        return None

    def _follow(
        self, trust: TrustStore, wanted: list[DesiredTask], notice: ReleaseNotice, cohort: int
    ) -> Iterator[None]:
        for task in list(self._packages.active()):
            if self._desired.get(task, 0) == 0:
                self.versions.remove(task)
        for desired in wanted:
            if desired.version > 0:
                yield from self._bring(trust, desired, notice, cohort)
        if self._whole:
            self.versions.collect()

    def _bring(
        self, trust: TrustStore, desired: DesiredTask, notice: ReleaseNotice, cohort: int
    ) -> Iterator[None]:
        """Install one desired task, or say why not."""
        row = self._packages.row(desired.task, desired.version)
        newer = row is not None and self._epoch > row.epoch
        again = newer and row is not None and self._may_try_again(row, desired)
        if row is not None and row.state in _SETTLED and not again:
            if self._packages.is_held(row.state):
                if self._packages.active().get(row.task) != row.version:
                    # A switch is rare, and the floor may have risen since the last look.
                    with suppress(ShoalError):  # away or refused: what was seen counts
                        trust.refresh()
                if trust.withdrawn(desired.task, desired.version):
                    self._withdraw(desired)
                else:
                    self.versions.switch(row)
            return
        if desired.not_before_us > self._clock():
            self.counts["not_before"] += 1
            self._whole = False
            return
        try:
            trust.check(desired)
            folder = yield from self._delivery.bring(trust, desired, notice.urls, cohort)
            key = (desired.task, desired.version)
            self._checked.discard(key)
            self.versions.install(
                key, sha256=desired.package.sha256, epoch=self._epoch, folder=folder.name
            )
        except TrustError as error:
            self._untrusted(desired, error)
        except RefusedError as error:
            self._later(desired, error.code, error.message)
        except (UnavailableError, NotFoundError) as error:
            code = getattr(error, "code", ErrorCode.DOWNLOAD_FAILED)
            self._later(desired, code, error.message)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            self._later(desired, ErrorCode.DISK_FULL, "no room on the disk")
        except ShoalError as error:  # the package itself is not acceptable
            self._refuse(desired, _code_of(error), error.message)

    @staticmethod
    def _may_try_again(row: PackageRow, desired: DesiredTask) -> bool:
        """Whether a newer notice is a reason to look again at what was turned down."""
        if row.state == InstallState.BAD:
            return desired.force
        # What this device cannot run it cannot run under a higher epoch either.
        refused = row.state == InstallState.REFUSED
        return refused and (desired.force or row.code != ErrorCode.INCOMPATIBLE)

    def revert(self, task: str, version: int, message: str) -> int | None:
        """Give up a version that failed its trial; see :meth:`Versions.revert`."""
        floor = 0 if self.trust is None else self.trust.floor(task)
        self.counts["reverted"] += 1
        return self.versions.revert(task, version, message, floor=floor)

    # -- what cannot be installed --------------------------------------------------------------

    def _untrusted(self, desired: DesiredTask, error: TrustError) -> None:
        key = (desired.task, desired.version)
        if error.code in (ErrorCode.HASH_MISMATCH, ErrorCode.SIZE_EXCEEDED):
            self._bad_downloads[key] += 1
            if self._bad_downloads[key] < _MAX_BAD_DOWNLOADS:
                self._later(desired, error.code, error.message)
                return
        if error.code in _PASSING:
            self._later(desired, error.code, error.message)
        else:
            self._refuse(desired, error.code, error.message)

    def _withdraw(self, desired: DesiredTask) -> None:
        """Give up a version on the disk that lies below the task's floor, whoever asks for it.

        The floor is signed by the image role: a stolen director key must not
        bring back what was withdrawn (Walle sheet 6.5).
        """
        if self._packages.active().get(desired.task) == desired.version:
            self.versions.remove(desired.task)
        self._refuse(desired, ErrorCode.BELOW_FLOOR, "the version was withdrawn")

    def _refuse(self, desired: DesiredTask, code: ErrorCode | int, message: str) -> None:
        self._fail(f"refused_{int(code)}", f"{desired.task} {desired.version}: {message}")
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
            self.versions.report(
                cursor,
                desired.task,
                desired.version,
                InstallState.REFUSED,
                code=int(code),
                message=message,
            )

    def _later(self, desired: DesiredTask, code: int, message: str) -> None:
        """Report, once a reason, that a task cannot be had for the moment; it stays wanted."""
        self._whole = False
        self._fail(f"later_{int(code)}", f"{desired.task} {desired.version}: {message}")
        said = (desired.task, desired.version, int(code))
        if said in self._told:
            return
        try:
            with self._store.transaction() as cursor:
                self.versions.report(
                    cursor, *said[:2], InstallState.WANTED, code=int(code), message=message
                )
        except UnavailableError:
            self.counts["report_failed"] += 1  # the disk that is full is this one
        else:
            self._told.add(said)

    def _fail(self, reason: str, message: str) -> None:
        self.counts[reason] += 1
        self.last_error = message

    # -- changes of state ----------------------------------------------------------------------

    def _want(self, desired: dict[str, int], epoch: int) -> None:
        if (desired, epoch) != (self._desired, self._epoch):
            blob = msgspec.json.encode({"epoch": epoch, "tasks": desired})
            with self._store.transaction() as cursor:
                cursor.execute("INSERT OR REPLACE INTO meta VALUES ('desired', ?)", (blob,))
                crashpoint("sync.wanted.before")
            crashpoint("sync.wanted.after")
        self._desired, self._epoch = desired, epoch

    def _load_desired(self) -> None:
        blob = self._store.meta_get("desired")
        if blob:
            entry = msgspec.json.decode(blob)
            self._desired, self._epoch = dict(entry["tasks"]), int(entry["epoch"])

    def _reconsider(self) -> None:
        """Forget what was refused as incompatible if the device has changed since."""
        digest = self._facts.digest()
        if self._store.meta_get("sync.facts") == digest:
            return
        with self._store.transaction() as cursor:
            cursor.execute(
                "DELETE FROM package WHERE state=? AND code=?",
                (InstallState.REFUSED, int(ErrorCode.INCOMPATIBLE)),
            )
            cursor.execute("INSERT OR REPLACE INTO meta VALUES ('sync.facts', ?)", (digest,))


def _code_of(error: ShoalError) -> ErrorCode:
    """Return what is reported of a package that has the right hash and the wrong form."""
    code = getattr(error, "code", None)
    if isinstance(code, ErrorCode):
        return code
    if isinstance(error, LimitError):
        return ErrorCode.SIZE_EXCEEDED
    return (
        ErrorCode.HASH_MISMATCH if isinstance(error, IntegrityError) else ErrorCode.SCHEMA_MISMATCH
    )
