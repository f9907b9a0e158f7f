"""The director: signs what each group of devices should hold, and writes its notices.

It is the online half of the two signatures that a device demands. The epoch that
it last signed is kept in a signed file beside its key, so that a database which
was restored from an old copy is noticed before any device is told to go back
(Walle sheet 6.5, A.9).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from shoal.cloud.plans import CohortPlan
from shoal.core.errors import ConflictError, IntegrityError, LimitError, NotFoundError
from shoal.core.files import write_bytes
from shoal.wire.limits import DEFAULT_LIMITS, WireLimits
from shoal.wire.notices import DesiredTask, FileRef, ReleaseNotice
from shoal.wire.signing import (
    DirectorStatement,
    PrivateKey,
    generate_key,
    key_id,
    load_key,
    public_bytes,
    save_key,
    sign_statement,
    verify_statement,
)

__all__ = ["FILES_PATH", "Director"]

#: Path below which the gateway serves files by their hash.
FILES_PATH: Final = "/v1/d/files/"

#: The epoch file does not speak of time, so it never expires.
_NEVER: Final = (1 << 62) - 1


class Director:
    """Signs statements and makes notices with one online ed25519 key.

    Parameters
    ----------
    key : PrivateKey
        The director's key.
    ttl_s : float
        Life of a signature, seconds.
    base_url : str
        Put before the path of files; empty for addresses relative to the cloud.
    pull_rate : float
        Pulls per second that the gateway allows; jitter spreads a cohort over
        it. 0: no jitter.
    devices : callable, optional
        Number of devices in a cohort set, for the jitter.
    limits : WireLimits
        Bound on the size of a notice.
    clock : callable, optional
        Microseconds since 1970 (UTC).
    """

    def __init__(
        self,
        key: PrivateKey,
        *,
        ttl_s: float = 86_400.0,
        base_url: str = "",
        pull_rate: float = 0.0,
        devices: Callable[[int], int] | None = None,
        limits: WireLimits = DEFAULT_LIMITS,
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._key = key
        self._ttl_us = int(ttl_s * 1e6)
        self._base_url = base_url.rstrip("/")
        self._pull_rate = pull_rate
        self._devices = devices
        self._limits = limits
        self._clock = clock

    @staticmethod
    def open_key(path: Path) -> PrivateKey:
        """Read the director's key, or make it (mode 0600) at the first start."""
        try:
            return load_key(path)
        except NotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            key = generate_key()
            save_key(key, path)
            return key

    @property
    def public_key(self) -> bytes:
        """Raw ed25519 public key, 32 bytes."""
        return public_bytes(self._key)

    @property
    def key_id(self) -> str:
        """Id of the key, as signatures name it."""
        return key_id(self._key)

    def statement(self, plan: CohortPlan, mask: int, tasks: list[DesiredTask]) -> DirectorStatement:
        """Return the unsigned statement of a (cohort set, mask), good from now on."""
        return DirectorStatement(
            epoch=plan.epoch,
            cohort=plan.cohort,
            mask=mask,
            expires_us=self._clock() + self._ttl_us,
            tasks=tasks,
        )

    def notice(self, plan: CohortPlan, mask: int, tasks: list[DesiredTask]) -> tuple[bytes, int]:
        """Return the encoded ``ReleaseNotice`` and when it expires (a ``NoticeMaker``).

        Raises
        ------
        LimitError
            More tasks than fit into a notice.
        """
        statement = self.statement(plan, mask, tasks)
        notice = ReleaseNotice(
            epoch=plan.epoch,
            cohort=plan.cohort,
            mask=mask,
            expires_us=statement.expires_us,
            director=sign_statement(statement, self._key),
            tasks=tasks,
            urls=self._urls(tasks),
            jitter_s=self._jitter(plan.cohort),
        )
        data = msgspec.msgpack.encode(notice)
        if len(data) > self._limits.notice:
            # What is signed says it all: the rest only saves the device a look-up.
            data = msgspec.msgpack.encode(msgspec.structs.replace(notice, tasks=[], urls={}))
        if len(data) > self._limits.notice:
            raise LimitError(
                f"a notice has at most {self._limits.notice} bytes",
                field="tasks",
                value=len(tasks),
                hint="withdraw tasks from this cohort, or split it",
            )
        return data, statement.expires_us

    def exclusive(self, device: bytes, cohort: int, epoch: int, task: DesiredTask) -> bytes:
        """Sign the exclusive files of one device for one task.

        The paths of the files begin with the device id in hex, and the device
        checks that they do: a statement for another device does not fit.
        """
        prefix = f"{device.hex()}/"
        for ref in task.resources:
            if ref.scope != "exclusive" or not ref.path.startswith(prefix):
                raise IntegrityError(f"file {ref.path!r} is not exclusive to {device.hex()}")
        statement = DirectorStatement(
            epoch=epoch,
            cohort=cohort,
            mask=0,
            expires_us=self._clock() + self._ttl_us,
            tasks=[msgspec.structs.replace(task, exclusive=True)],
        )
        return sign_statement(statement, self._key)

    def _urls(self, tasks: list[DesiredTask]) -> dict[str, list[str]]:
        files: dict[str, FileRef] = {}
        for task in tasks:
            if task.version > 0:
                for ref in (task.package, *task.resources):
                    files[ref.sha256.hex()] = ref
        return {
            name: [f"{self._base_url}{FILES_PATH}{name}"]
            for name, ref in sorted(files.items())
            if ref.scope == "shared"
        }

    def _jitter(self, cohort: int) -> float:
        if self._pull_rate == 0 or self._devices is None:
            return 0.0
        return self._devices(cohort) / self._pull_rate

    def check_epoch(self, epoch: int, path: Path) -> int:
        """Compare the database's epoch with the last one signed, and note a newer one.

        Returns
        -------
        int
            The highest epoch ever signed.

        Raises
        ------
        ConflictError
            The database lies behind: it was restored from an old copy.
        IntegrityError
            The file was not signed by this director.
        """
        try:
            signed = path.read_bytes()
        except FileNotFoundError:
            highest = -1
        else:
            highest = verify_statement(signed, [self.public_key], 0).epoch
        if epoch < highest:
            raise ConflictError(
                f"the database is at epoch {epoch}, but epoch {highest} was signed already",
                hint="restore a newer copy, or start once with recover=True to go on above it",
            )
        if epoch > highest:
            self._note_epoch(epoch, path)
        return max(epoch, highest)

    def signed_epoch(self, path: Path) -> int:
        """Return the highest epoch that was ever signed; 0 before the first."""
        if not path.exists():
            return 0
        return verify_statement(path.read_bytes(), [self.public_key], 0).epoch

    def _note_epoch(self, epoch: int, path: Path) -> None:
        statement = DirectorStatement(epoch=epoch, cohort=0, mask=0, expires_us=_NEVER)
        write_bytes(path, sign_statement(statement, self._key))
