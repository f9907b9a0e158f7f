"""A cloud without wires for tests of Sync: signatures, downloads and their faults."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from shoal.core.errors import NotFoundError, UnavailableError
from shoal.device.cloudlink import RefusedError
from shoal.device.compatibility import DeviceFacts
from shoal.device.packages import PackageStore
from shoal.device.store import DeviceStore
from shoal.device.sync import Sync
from shoal.device.trust import TrustError
from shoal.device.uplink import Uplink
from shoal.wire.codes import ErrorCode
from shoal.wire.enrolment import ExclusiveGrant
from shoal.wire.notices import DesiredTask, FileRef, ReleaseNotice
from shoal.wire.package import build_package
from shoal.wire.signing import DirectorStatement

DEVICE = bytes(range(16))
CODE = "def run(ctx, batch):\n    ctx.emit('seen', len(batch))\n"
TOML = """
task = "{task}"
[[triggers]]
name = "left"
sequence = ["page_exit@*"]
[[outputs]]
name = "seen"
"""


class FakeTrust:
    """Believes the clear fields of a notice, unless told otherwise."""

    def __init__(self) -> None:
        self.refusals: dict[tuple[str, int], ErrorCode] = {}
        self.notice_refusal: ErrorCode | None = None
        self.floors: dict[str, int] = {}

    def floor(self, task: str) -> int:
        return self.floors.get(task, 0)

    def refresh(self) -> None:
        raise UnavailableError("not needed: what was seen counts")

    def withdrawn(self, task: str, version: int) -> bool:
        return version < self.floor(task)

    def director(self, notice: ReleaseNotice, *, cohort: int) -> DirectorStatement:
        if self.notice_refusal is not None:
            raise TrustError("refused by the test", self.notice_refusal)
        return DirectorStatement(
            epoch=notice.epoch,
            cohort=cohort,
            mask=notice.mask,
            expires_us=notice.expires_us,
            tasks=notice.tasks,
        )

    def check(self, desired: DesiredTask) -> None:
        code = self.refusals.get((desired.task, desired.version))
        if code is not None:
            raise TrustError("refused by the test", code)

    def exclusive(self, data: bytes, *, cohort: int, device: bytes, task: str) -> DesiredTask:
        granted = msgspec.msgpack.decode(data, type=DesiredTask)
        assert (device, task) == (DEVICE, granted.task)
        return granted


class FakeLink:
    """Files by hash; ``faults`` says what the next download of a file does."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = {}
        self.served: list[tuple[str, int]] = []
        self.grants: dict[tuple[str, int], bytes] = {}

    def download(self, address: str, offset: int = 0) -> Iterator[bytes]:
        name = address.rpartition("/")[2]
        self.served.append((name, offset))
        faults = self.faults.get(name, [])
        fault = faults.pop(0) if faults else ""
        if fault == "away":
            raise UnavailableError("the cloud is away")
        if fault == "busy":
            raise RefusedError(ErrorCode.RATE_LIMITED, "too many", 5.0)
        if name not in self.files:
            raise NotFoundError(f"no file {name}")
        data = self.files[name][offset:]
        if fault == "broken":
            yield data[: len(data) // 2]
            raise UnavailableError("the connection broke off")
        if fault == "truncated":  # closed early, as if it were all
            data = data[: len(data) // 2]
        elif fault == "foreign":
            data = bytes(len(data))
        elif fault == "endless":
            data += bytes(10_000)
        for start in range(0, len(data), 1000):
            yield data[start : start + 1000]

    def exclusive(self, task: str, version: int) -> bytes:
        return self.grants[task, version]


class SyncBench:
    """A device's Sync against the fakes; ``reopen`` is a restart."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.options = options
        self.trust, self.link = FakeTrust(), FakeLink()
        self.facts = DeviceFacts(engines={"onnx": "1.20.1"}, sandbox_level=3, memory_mb=4096)
        self.now_us = 1_800_000_000_000_000
        self.epoch = 0
        self.number = 0
        self.open()

    def open(self) -> None:
        self.store = DeviceStore(self.folder / "device")
        self.uplink = Uplink(self.store, DEVICE)
        self.packages = PackageStore(self.folder / "device", self.store)
        self.sync = Sync(
            self.store, self.packages, self.link, self.uplink, self.facts,  # type: ignore[arg-type]
            clock=lambda: self.now_us, **({"reserve_bytes": 0} | self.options),
        )  # fmt: skip
        self.sync.trust = self.trust  # type: ignore[assignment]

    def reopen(self) -> None:
        self.store.close()
        self.open()

    # -- the cloud's side ---------------------------------------------------------------------

    def build(
        self, version: int, task: str = "count", code: str = CODE, extra: str = "", **files: bytes
    ) -> DesiredTask:
        """Build a version, put its files where they can be downloaded, and name it."""
        self.number += 1
        source = self.folder / f"source-{self.number}"
        source.mkdir()
        (source / "task.toml").write_text(TOML.format(task=task) + extra)
        (source / "main.py").write_text(code)
        for name, data in files.items():
            (source / f"{name}.bin").write_bytes(data)
        built = build_package(source, version)
        refs = []
        for resource, path in built.separate:
            data = path.read_bytes()
            self.link.files[resource.sha256] = data
            refs.append(FileRef(sha256=bytes.fromhex(resource.sha256), size=len(data), path="m"))
        return DesiredTask(
            task=task,
            version=version,
            package=self.offer(built.bytes, f"{task}-{version}.shoal"),
            resources=refs,
        )

    def offer(self, data: bytes, path: str, scope: str = "shared") -> FileRef:
        digest = hashlib.sha256(data).digest()
        self.link.files[digest.hex()] = data
        return FileRef(sha256=digest, size=len(data), path=path, scope=scope)

    def grant(self, desired: DesiredTask, **files: bytes) -> DesiredTask:
        """Give the device files of its own for a version; return the desired task."""
        refs = [
            self.offer(data, f"{DEVICE.hex()}/{name}.key", "exclusive")
            for name, data in files.items()
        ]
        granted = msgspec.structs.replace(desired, resources=refs, exclusive=True)
        self.link.grants[desired.task, desired.version] = msgspec.msgpack.encode(
            ExclusiveGrant(director=msgspec.msgpack.encode(granted), urls={})
        )
        return msgspec.structs.replace(desired, exclusive=True)

    def notice(self, *tasks: DesiredTask, epoch: int | None = None, jitter_s: float = 0.0) -> bytes:
        self.epoch = self.epoch + 1 if epoch is None else epoch
        return msgspec.msgpack.encode(
            ReleaseNotice(
                epoch=self.epoch, cohort=1, mask=0, expires_us=self.now_us + 10**12,
                director=b"", tasks=list(tasks), jitter_s=jitter_s,
            )
        )  # fmt: skip

    def follow(self, *tasks: DesiredTask, epoch: int | None = None) -> bool:
        return self.sync.follow(self.notice(*tasks, epoch=epoch), cohort=1)

    # -- what the device did ------------------------------------------------------------------

    def state(self, version: int, task: str = "count") -> tuple[str, int] | None:
        row = self.packages.row(task, version)
        return None if row is None else (row.state, row.code)

    def active(self) -> dict[str, int]:
        return self.packages.active()

    def runs(self, version: int, good: int = 0, failed: int = 0, task: str = "count") -> bool:
        with self.store.transaction() as cursor:
            return self.sync.versions.record_runs(cursor, task, version, good, failed)

    def reports(self) -> list[tuple[int, str, int]]:
        """Return what was reported upwards so far: (version, state, code)."""
        from shoal.device.outbox import RecordKind
        from shoal.wire.results import InstallReport

        with self.store.read() as cursor:
            rows = cursor.execute(
                "SELECT body FROM outbox WHERE kind=? ORDER BY seq DESC", (int(RecordKind.INSTALL),)
            ).fetchall()
        found = [msgspec.msgpack.decode(body, type=InstallReport) for (body,) in rows]
        return [(report.version, report.state, report.code) for report in found]
