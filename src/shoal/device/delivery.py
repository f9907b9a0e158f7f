"""Brings the files of one task version to the disk: package, models, files of this device alone.

In the order in which a device can refuse soonest: size, room, the package, whether
it can run here, and only then the models (Walle sheet 6.4, A.8).
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Generator, Iterator
from pathlib import Path

import msgspec

from shoal.core.crashpoints import crashpoint
from shoal.core.errors import NotFoundError, ShoalError, UnavailableError
from shoal.device.cloudlink import CloudLink, RefusedError
from shoal.device.compatibility import DeviceFacts
from shoal.device.packages import PackageStore
from shoal.device.trust import TrustError, TrustStore
from shoal.wire.codes import ErrorCode
from shoal.wire.enrolment import ExclusiveGrant
from shoal.wire.limits import WireLimits
from shoal.wire.notices import DesiredTask, FileRef

__all__ = ["Delivery"]


class Delivery:
    """Downloads, checks and unpacks.

    Parameters
    ----------
    packages, link : PackageStore, CloudLink
        Where files go and come from.
    facts : DeviceFacts
        What the device can do.
    device : bytes
        Its id.
    reserve_bytes : int
        Disk space that must be left free.
    chunk : int
        Bytes that one step downloads.
    limits : WireLimits
    """

    def __init__(
        self,
        packages: PackageStore,
        link: CloudLink,
        facts: DeviceFacts,
        *,
        device: bytes,
        reserve_bytes: int,
        chunk: int,
        limits: WireLimits,
    ) -> None:
        self._packages = packages
        self._link = link
        self._facts = facts
        self._device = device
        self._reserve = reserve_bytes
        self._chunk = chunk
        self._limits = limits

    def _own_files(
        self, trust: TrustStore, desired: DesiredTask, cohort: int
    ) -> tuple[list[FileRef], dict[str, list[str]]]:
        """Return the files of this device alone, checked, and where they are."""
        if not desired.exclusive:
            return [], {}
        data = self._link.exclusive(desired.task, desired.version)
        try:
            grant = msgspec.msgpack.decode(data, type=ExclusiveGrant)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise TrustError(
                f"the grant does not decode: {error}", ErrorCode.SCHEMA_MISMATCH
            ) from error
        granted = trust.exclusive(
            grant.director, cohort=cohort, device=self._device, task=desired.task
        )
        if (granted.version, granted.package.sha256) != (desired.version, desired.package.sha256):
            raise TrustError("the grant is for another version", ErrorCode.NOT_ENTITLED)
        return granted.resources, {name: [url] for name, url in grant.urls.items()}

    def bring(
        self, trust: TrustStore, desired: DesiredTask, urls: dict[str, list[str]], cohort: int
    ) -> Generator[None, None, Path]:
        """Bring all files of a task version and unpack them; return the folder.

        Parameters
        ----------
        trust : TrustStore
            Checks the grant of files for this device alone.
        desired : DesiredTask
            As the director signed it, checked.
        urls : dict
            Addresses of files by hash (hex).
        cohort : int
            The cohort set in the device's token.

        Yields
        ------
        None
            After every piece of a download.

        Raises
        ------
        TrustError
            Not what was signed, or not for this device; ``INCOMPATIBLE`` if it cannot run here.
        IntegrityError, LimitError, InputError
            The package has the right hash and the wrong form.
        UnavailableError, NotFoundError, RefusedError, OSError
            It cannot be had for the moment.
        """
        own, more = self._own_files(trust, desired, cohort)
        urls = {**urls, **more}
        files = [desired.package, *desired.resources, *own]
        largest = max(ref.size for ref in files)
        if desired.package.size > self._limits.package or largest > self._limits.resource:
            raise TrustError("larger than this device takes", ErrorCode.SIZE_EXCEEDED)
        missing = sum(ref.size for ref in files if not self._packages.content.has(ref))
        if self._packages.free_bytes() < missing + desired.package.size + self._reserve:
            raise OSError(errno.ENOSPC, "not enough room for the package")
        yield from self._fetch(desired.package, urls)
        manifest = self._packages.manifest(desired.package)
        if (manifest.task, manifest.version) != (desired.task, desired.version):
            raise TrustError(
                f"the package says that it is {manifest.task} {manifest.version}",
                ErrorCode.SCHEMA_MISMATCH,
            )
        # Before the models are downloaded, which are most of it.
        problems = self._facts.problems(manifest, self._packages.free_bytes() >> 20)
        if problems:
            raise TrustError("; ".join(problems), ErrorCode.INCOMPATIBLE)
        offered = {ref.sha256.hex(): ref for ref in desired.resources}
        for resource in manifest.resources:
            if resource.separate:
                if resource.sha256 not in offered:
                    raise TrustError(
                        f"the director does not name {resource.path}", ErrorCode.SCHEMA_MISMATCH
                    )
                yield from self._fetch(offered[resource.sha256], urls)
        for ref in own:
            yield from self._fetch(ref, urls)
        folder = self._packages.unpack(desired.package, own)
        crashpoint("sync.verified")
        return folder

    def _fetch(self, ref: FileRef, urls: dict[str, list[str]]) -> Iterator[None]:
        name = ref.sha256.hex()
        failure: ShoalError | None = None
        for address in dict.fromkeys([*urls.get(name, []), f"/v1/d/files/{name}"]):
            download = functools.partial(self._link.download, address)
            try:
                yield from self._packages.content.receive(ref, download, self._chunk)
            except (UnavailableError, NotFoundError, RefusedError, TrustError) as error:
                failure = error  # a bad mirror must not stop a good one
            else:
                return
        assert failure is not None
        raise failure
