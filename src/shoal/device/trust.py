"""What a device believes: the image repository by TUF, the director by its signature.

A package is accepted only if both say the same (Walle sheet 6.5, after Uptane):
the image repository names its hash, length and the task's floor; the director
names the version for this device's group, under an epoch that never goes back.
One stolen online key alone installs nothing.

The TUF workflow is python-tuf's own client. Two things are added: expiry is
judged on the estimated *server* clock, because device clocks may be years off,
and one verified set of metadata serves many look-ups, so that sixty agents on
two cores do not verify the same signatures over and over.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from tuf.api import exceptions as tuf_errors
from tuf.api.metadata import TargetFile
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from shoal.core.errors import (
    InputError,
    IntegrityError,
    LimitError,
    NotFoundError,
    ShoalError,
    UnavailableError,
)
from shoal.core.files import fsync_folder, write_bytes
from shoal.wire.codes import ErrorCode
from shoal.wire.limits import DEFAULT_LIMITS, WireLimits
from shoal.wire.notices import DesiredTask, ReleaseNotice
from shoal.wire.signing import DirectorStatement, SignatureError, verify_statement

__all__ = ["ImageTarget", "TrustError", "TrustStore"]

_BASE = "metadata:/"
_DIRECTOR_TARGET = "director/keys.json"
_GRANT = re.compile(r"[0-9a-f]{32}/")


class TrustError(IntegrityError):
    """Something was refused; ``code`` is what the device reports."""

    def __init__(self, message: str, code: ErrorCode, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = code


@dataclass(frozen=True)
class ImageTarget:
    """What the image repository says of a task version.

    Attributes
    ----------
    sha256 : bytes
        Hash of the package, 32 bytes.
    length : int
        Size of the package in bytes.
    floor : int
        Lowest version of the task that may still run: the highest floor this
        device has ever seen for the task.
    capabilities : tuple of str
        What the device must have.
    """

    sha256: bytes
    length: int
    floor: int
    capabilities: tuple[str, ...] = ()


class _Seen(msgspec.Struct):
    """What must never go back, over restarts: epochs by cohort set, floors by task."""

    epochs: dict[str, int] = {}
    floors: dict[str, int] = {}


class _Custom(msgspec.Struct):
    floor: int = 0
    capabilities: list[str] = []
    keys: list[str] = []


class _Fetcher(FetcherInterface):
    """Hands python-tuf's downloads to the agent's ``fetch``."""

    def __init__(self, fetch: Callable[[str, int], bytes]) -> None:
        self._get = fetch

    def _fetch(self, url: str) -> Iterator[bytes]:
        raise NotImplementedError  # the updater asks for bytes with a limit, below

    def download_bytes(self, url: str, max_length: int) -> bytes:
        name = url.removeprefix(_BASE)
        try:
            data = self._get(name, max_length)
        except NotFoundError as error:
            raise tuf_errors.DownloadHTTPError(str(error), 404) from error
        except LimitError as error:
            raise tuf_errors.DownloadLengthMismatchError(str(error)) from error
        except (ShoalError, OSError) as error:
            raise tuf_errors.DownloadError(f"{name}: {error}") from error
        if len(data) > max_length:
            raise tuf_errors.DownloadLengthMismatchError(
                f"{name} has {len(data)} bytes, more than {max_length}"
            )
        return data


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Turn python-tuf's errors into ours, each with its code."""
    try:
        yield
    except tuf_errors.ExpiredMetadataError as error:
        raise TrustError(f"image metadata: {error}", ErrorCode.METADATA_EXPIRED) from error
    except tuf_errors.BadVersionNumberError as error:
        raise TrustError(
            f"image metadata goes back: {error}", ErrorCode.ROLLBACK_REFUSED
        ) from error
    except tuf_errors.LengthOrHashMismatchError as error:
        raise TrustError(f"image metadata is mixed: {error}", ErrorCode.HASH_MISMATCH) from error
    except tuf_errors.DownloadLengthMismatchError as error:
        raise TrustError(f"image metadata too large: {error}", ErrorCode.SIZE_EXCEEDED) from error
    except tuf_errors.DownloadError as error:
        raise UnavailableError(
            f"image metadata cannot be fetched: {error}", hint="it is tried again later"
        ) from error
    except (tuf_errors.RepositoryError, RecursionError) as error:
        raise TrustError(
            f"image metadata is not acceptable: {error}", ErrorCode.SIGNATURE_INVALID
        ) from error


class TrustStore:
    """The device's trusted metadata, kept in one folder.

    Parameters
    ----------
    folder : path-like
        Belongs to one agent. The first root ever given is pinned here; later
        roots are reached by TUF's chain of signatures only.
    root : bytes
        Root metadata from enrolment; ignored once a root is pinned.
    fetch : callable
        ``fetch(name, max_length) -> bytes`` of ``/v1/d/metadata/<name>``. It
        raises :class:`NotFoundError` for a 404 (which ends the chain of roots)
        and :class:`UnavailableError` when the server cannot be reached.
    clock : callable
        The estimated server time in microseconds since 1970 (UTC).
    refresh_every_s : float
        Verified metadata is used for this long before the cloud is asked again;
        an unknown version asks at once.
    limits : WireLimits
        Bounds on metadata and notices.

    Raises
    ------
    InputError
        No root is pinned and ``root`` is empty.
    TrustError
        The root is not valid root metadata.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        root: bytes,
        fetch: Callable[[str, int], bytes],
        clock: Callable[[], int],
        refresh_every_s: float = 300.0,
        limits: WireLimits = DEFAULT_LIMITS,
    ) -> None:
        self._folder = Path(folder)
        self._metadata = self._folder / "metadata"
        self._metadata.mkdir(parents=True, exist_ok=True)
        self._fetcher = _Fetcher(fetch)
        self._clock = clock
        self._every_us = int(refresh_every_s * 1e6)
        self._limits = limits
        self._config = UpdaterConfig(
            root_max_length=min(512_000, limits.metadata),
            timestamp_max_length=16_384,
            snapshot_max_length=limits.metadata,
            targets_max_length=limits.metadata,
        )
        self._lock = threading.RLock()
        self._updater: Updater | None = None
        self._asked_us = 0
        #: Targets that the newest metadata did not have, and when that was asked.
        self._absent: dict[str, int] = {}
        #: Damaged state files that were moved aside.
        self.damaged = 0
        #: Refreshes done, for the agent's status.
        self.refreshes = 0
        self._root = self._pin(root)
        self._seen = self._read_seen()

    # -- state that outlives the process ---------------------------------------------------

    def _pin(self, root: bytes) -> bytes:
        path = self._folder / "pinned.root.json"
        if path.exists():
            return path.read_bytes()
        if not root:
            raise InputError(
                "no root metadata to trust", field="root", hint="enrol with the cloud first"
            )
        with _refusals():
            self._new_updater(root)
        write_bytes(path, root)
        return root

    def _read_seen(self) -> _Seen:
        path = self._folder / "seen.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=_Seen)
        except FileNotFoundError:
            return _Seen()
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.damaged += 1
            path.replace(path.with_suffix(".damaged"))
            return _Seen()

    def _write_seen(self) -> None:
        write_bytes(self._folder / "seen.json", msgspec.json.encode(self._seen))

    # -- the image repository ----------------------------------------------------------------

    def _new_updater(self, root: bytes) -> Updater:
        updater = Updater(
            str(self._metadata),
            _BASE,
            fetcher=self._fetcher,
            config=self._config,
            bootstrap=root,
        )
        self._set_time(updater)
        return updater

    def _set_time(self, updater: Updater) -> None:
        # python-tuf reads the system's clock once; ours is the server's, as estimated.
        moment = datetime.fromtimestamp(self._clock() // 1_000_000, UTC)
        updater._trusted_set.reference_time = moment

    def _expired(self, updater: Updater) -> bool:
        trusted = updater._trusted_set
        return any(signed.is_expired(trusted.reference_time) for signed in trusted)

    def refresh(self) -> None:
        """Fetch and verify the newest metadata now.

        Raises
        ------
        TrustError
            What was served is not acceptable; ``code`` says why.
        UnavailableError
            The cloud cannot be reached.
        """
        with self._lock:
            before = self._stamp()
            self._asked_us = self._clock()
            with _refusals():
                updater = self._new_updater(self._root)
                updater.refresh()
            self._updater = updater
            self._absent.clear()
            self.refreshes += 1
            if self._stamp() != before:
                self._sync_files()

    def _stamp(self) -> bytes:
        with contextlib.suppress(FileNotFoundError):
            return (self._metadata / "timestamp.json").read_bytes()
        return b""

    def _sync_files(self) -> None:
        """Make durable what python-tuf wrote: it is what a rollback is measured against."""
        for name in ("timestamp.json", "snapshot.json"):
            descriptor = os.open(self._metadata / name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        fsync_folder(self._metadata)

    def _current(self) -> Updater:
        """Return verified, unexpired metadata, fresh within ``refresh_every_s``."""
        updater = self._updater
        if updater is not None:
            self._set_time(updater)
            age = self._clock() - self._asked_us
            expired = self._expired(updater)
            if 0 <= age < self._every_us and not expired:
                return updater
            if not expired:
                # Offline is no reason to forget what is still valid.
                with contextlib.suppress(UnavailableError):
                    self.refresh()
                return self._updater or updater
        self.refresh()
        assert self._updater is not None
        return self._updater

    def _find(self, path: str) -> TargetFile | None:
        before = self.refreshes
        updater = self._current()
        with _refusals():
            found = updater.get_targetinfo(path)
        if found is None and self.refreshes == before and self._may_ask_again(path):
            self.refresh()
            assert self._updater is not None
            with _refusals():
                found = self._updater.get_targetinfo(path)
            if found is None:
                self._absent[path] = self._clock()
        return found

    def _may_ask_again(self, path: str) -> bool:
        # A name that was absent a moment ago does not cost a refresh each time.
        asked = self._absent.get(path)
        return asked is None or not 0 <= self._clock() - asked < min(self._every_us, 5_000_000)

    def _custom(self, target: TargetFile) -> _Custom:
        try:
            return msgspec.convert(target.custom or {}, _Custom)
        except msgspec.ValidationError as error:
            raise TrustError(
                f"image metadata of {target.path}: {error}", ErrorCode.SCHEMA_MISMATCH
            ) from error

    def image(self, task: str, version: int) -> ImageTarget:
        """Return what the image repository says of a task version.

        Cheap: metadata verified within ``refresh_every_s`` answers from memory.

        Raises
        ------
        TrustError
            ``UNKNOWN_TASK``: no such version is signed; or the metadata is not
            acceptable (see :meth:`refresh`).
        UnavailableError
            The cloud cannot be reached and nothing valid is at hand.
        """
        with self._lock:
            found = self._find(f"task/{task}/{version}")
            if found is None:
                raise TrustError(
                    f"the image repository knows no {task} {version}", ErrorCode.UNKNOWN_TASK
                )
            custom = self._custom(found)
            digest = found.hashes.get("sha256", "")
            if len(digest) != 64:
                raise TrustError(
                    f"image metadata of {task} {version} has no SHA-256", ErrorCode.HASH_MISMATCH
                )
            if custom.floor > self._seen.floors.get(task, 0):
                self._seen.floors[task] = custom.floor
                self._write_seen()
            return ImageTarget(
                bytes.fromhex(digest),
                found.length,
                self._seen.floors.get(task, 0),
                tuple(custom.capabilities),
            )

    def floor(self, task: str) -> int:
        """Return the highest floor ever seen for a task; 0 if none."""
        with self._lock:
            return self._seen.floors.get(task, 0)

    def withdrawn(self, task: str, version: int) -> bool:
        """Whether a version that the device holds already may not run any more.

        For versions on the disk, which need no new proof of their bytes: the floor
        is looked up if it can be, and what was seen before counts in any case, so
        neither a network that is away nor one that lies stops or revives anything.
        """
        with self._lock:
            with contextlib.suppress(UnavailableError, TrustError):
                self.image(task, version)
            return version < self._seen.floors.get(task, 0)

    # -- the director --------------------------------------------------------------------------

    def _director_keys(self) -> list[bytes]:
        found = self._find(_DIRECTOR_TARGET)
        if found is None:
            raise TrustError("the image repository names no director", ErrorCode.SIGNATURE_INVALID)
        try:
            keys = [bytes.fromhex(text) for text in self._custom(found).keys]
        except ValueError:
            keys = []
        return [key for key in keys if len(key) == 32]

    def _statement(self, data: bytes) -> DirectorStatement:
        try:
            return verify_statement(data, self._director_keys(), self._clock(), limits=self._limits)
        except SignatureError as error:
            if error.code != ErrorCode.SIGNATURE_INVALID or not self._may_ask_again("director"):
                raise TrustError(error.message, error.code) from error
        # The director may have a new key: look once, and not again for a while.
        with contextlib.suppress(UnavailableError):
            self.refresh()
        self._absent["director"] = self._clock()
        try:
            return verify_statement(data, self._director_keys(), self._clock(), limits=self._limits)
        except SignatureError as error:
            raise TrustError(error.message, error.code) from error

    def director(self, notice: ReleaseNotice, *, cohort: int) -> DirectorStatement:
        """Check a notice's director metadata and return what it says.

        Parameters
        ----------
        notice : ReleaseNotice
            As pulled; only ``director`` counts, the clear fields must agree.
        cohort : int
            The cohort set in the device's newest token.

        Returns
        -------
        DirectorStatement
            Its ``tasks`` are the desired set; check each with :meth:`check`.

        Raises
        ------
        TrustError
            ``SIGNATURE_INVALID`` (also: clear fields that say something else),
            ``METADATA_EXPIRED``, ``NOT_ENTITLED`` (another cohort set),
            ``ROLLBACK_REFUSED`` (an epoch below one seen for this cohort set),
            ``SIZE_EXCEEDED``, ``SCHEMA_MISMATCH``.
        UnavailableError
            The director's keys are not known yet and the cloud is away.
        """
        with self._lock:
            statement = self._statement(notice.director)
            said = (statement.epoch, statement.cohort, statement.mask)
            if said != (notice.epoch, notice.cohort, notice.mask):
                raise TrustError(
                    "the notice is not the one that its director signed",
                    ErrorCode.SIGNATURE_INVALID,
                )
            if any(
                ref.scope == "exclusive" and _GRANT.match(ref.path)
                for task in statement.tasks
                for ref in task.resources
            ):
                raise TrustError(
                    "a grant of one device's files is not a desired set",
                    ErrorCode.SIGNATURE_INVALID,
                )
            self._check_group(statement, cohort)
            if statement.epoch > self._seen.epochs.get(str(cohort), -1):
                self._seen.epochs[str(cohort)] = statement.epoch
                self._write_seen()
            return statement

    def _check_group(self, statement: DirectorStatement, cohort: int) -> None:
        if statement.cohort != cohort:
            raise TrustError(
                f"director metadata is for cohort set {statement.cohort}, not {cohort}",
                ErrorCode.NOT_ENTITLED,
            )
        highest = self._seen.epochs.get(str(cohort), -1)
        if statement.epoch < highest:
            raise TrustError(
                f"director epoch goes back from {highest} to {statement.epoch}",
                ErrorCode.ROLLBACK_REFUSED,
            )

    def exclusive(self, data: bytes, *, cohort: int, device: bytes, task: str) -> DesiredTask:
        """Check the director's grant of one device's own files for one task.

        Raises
        ------
        TrustError
            As :meth:`director`; ``NOT_ENTITLED`` if it is another device's grant
            or another task's.
        """
        with self._lock:
            statement = self._statement(data)
            self._check_group(statement, cohort)
            prefix = f"{device.hex()}/"
            if len(statement.tasks) != 1 or statement.tasks[0].task != task:
                raise TrustError(f"the grant is not for task {task}", ErrorCode.NOT_ENTITLED)
            granted = statement.tasks[0]
            if not granted.resources or not all(
                ref.scope == "exclusive" and ref.path.startswith(prefix)
                for ref in granted.resources
            ):
                raise TrustError("the grant is for another device", ErrorCode.NOT_ENTITLED)
            return granted

    def check(self, desired: DesiredTask) -> None:
        """Make sure that image repository and director agree on a desired task.

        A desired version of 0 (hold none) needs no image.

        Raises
        ------
        TrustError
            ``HASH_MISMATCH``: another hash or length; ``BELOW_FLOOR``: the
            version was withdrawn; or what :meth:`image` raises.
        UnavailableError
            As :meth:`image`.
        """
        if desired.version == 0:
            return
        image = self.image(desired.task, desired.version)
        if (image.sha256, image.length) != (desired.package.sha256, desired.package.size):
            raise TrustError(
                f"image repository and director disagree on {desired.task} {desired.version}",
                ErrorCode.HASH_MISMATCH,
            )
        if desired.version < image.floor:
            raise TrustError(
                f"{desired.task} {desired.version} was withdrawn: the floor is {image.floor}",
                ErrorCode.BELOW_FLOOR,
            )
