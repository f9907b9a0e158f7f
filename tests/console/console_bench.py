"""A real cloud with a fleet, releases and results, for the tests of the console."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from shoal.cloud import store as tables
from shoal.cloud.policy import Guardrail, ReleasePolicy
from shoal.cloud.service import EVERYONE, Cloud
from shoal.wire.frames import Ack, Batch, BatchKind, Codec, Nack
from shoal.wire.results import (
    FeatureRecord,
    InstallReport,
    ResultBatch,
    ResultRecord,
    RunSummary,
)

TASK = "cart-intent"
_TOML = """
task = "{task}"
label = {label}
[[triggers]]
name = "left"
sequence = ["page_exit@*"]
[input]
scope = "event"
events = ["page_exit@*"]
[[outputs]]
name = "score"
kind = "result"
dtype = "json"
uplink = "now"
"""
POLICY = ReleasePolicy(
    steps=(5_000, 10_000),
    rule="always_valid",
    guardrails=(
        Guardrail(name="failure", limit=0.1),
        Guardrail(name="slow", kind="latency", limit=0.2, budget=200),
    ),
    runs_per_outcome=1,
    simulation="off",
    min_dwell_s=3_600,
)


def now_us() -> int:
    return time.time_ns() // 1000


class ConsoleBench:
    """Fills a cloud the way devices and operators do: by its own doors."""

    def __init__(self, cloud: Cloud, folder: Path) -> None:
        self.cloud, self.folder = cloud, folder
        self.devices: list[bytes] = []
        self.seqs: dict[bytes, int] = {}

    # -- what operators do --------------------------------------------------------------

    def publish(self, number: int, *, task: str = TASK, label: str = "") -> int:
        folder = self.folder / f"{task}-{number}"
        folder.mkdir()
        (folder / "task.toml").write_text(_TOML.format(task=task, label=json.dumps(label)))
        (folder / "main.py").write_text(f"def run(ctx, batch):\n    ctx.emit('score', {number})\n")
        return self.cloud.registry.publish(folder, label=label).version

    def release(self, version: int, policy: ReleasePolicy = POLICY, *, task: str = TASK) -> int:
        """Make a draft and start it."""
        number = self.cloud.releases.create(task, version, EVERYONE, policy, actor="rosa")
        self.cloud.releases.start(number, actor="rosa", reason="for everyone")
        self.cloud.tick()
        return number

    # -- what devices do ----------------------------------------------------------------

    def enrol(self, number: int, *, seen_us: int | None = None, **more: Any) -> list[bytes]:
        """Write rows of devices; ``more`` are attributes of the device."""
        at = now_us() if seen_us is None else seen_us
        rows = []
        for _ in range(number):
            place = len(self.devices) + len(rows)
            attributes = {
                "app": {"version": ("4.2.0", "4.1.3")[place % 5 == 0]},
                "device": {
                    "name": f"phone {place}",
                    "os": ("android 15", "android 14", "ios 18")[place % 3],
                    "class": ("high", "middle", "low")[place % 4 % 3],
                    **more,
                },
            }
            rows.append(
                {
                    "id": hashlib.blake2b(b"console %d" % place, digest_size=16).digest(),
                    "first_seen_us": at,
                    "last_seen_us": at,
                    "enrolled_us": at,
                    "attributes": attributes,
                    "cohort_set": self.cloud.cohorts.cohort_set({"agent": {"virtual": False}}),
                    "agent": "shoal 1.0",
                    "platform": "linux-aarch64",
                    "public_key": os.urandom(32),
                }
            )
        with self.cloud.store.begin() as connection:
            connection.execute(sa.insert(tables.device), rows)
        fresh = [row["id"] for row in rows]
        self.devices += fresh
        self.cloud.fleet.reload()
        self.cloud.publish()
        return fresh

    def send(self, device: bytes, *, at_us: int | None = None, **parts: Any) -> Ack | Nack:
        """Send one batch through the ingest."""
        self.seqs[device] = self.seqs.get(device, 0) + 1
        batch = ResultBatch(schema=1, device=device, seq=self.seqs[device], **parts)
        body = msgspec.msgpack.encode(batch)
        frame = Batch(batch.seq, BatchKind.RESULTS, Codec.RAW, 0, body)
        return self.cloud.ingest.accept(device, frame, now_us() if at_us is None else at_us)

    def send_nonsense(self, device: bytes) -> Ack | Nack:
        """Send a batch that becomes a dead letter."""
        self.seqs[device] = self.seqs.get(device, 0) + 1
        frame = Batch(self.seqs[device], BatchKind.RESULTS, Codec.RAW, 0, b"\xc1 nonsense")
        return self.cloud.ingest.accept(device, frame, now_us())

    def run(
        self,
        device: bytes,
        version: int,
        *,
        task: str = TASK,
        outcome: int = 0,
        value: Any = None,
        state: str = "good",
        at_us: int | None = None,
        wall_us: int = 40_000,
        message: str = "",
        dropped: dict[str, int] | None = None,
    ) -> None:
        """Let a device install a version, run it once and tell."""
        at = now_us() if at_us is None else at_us
        answer = self.send(
            device,
            at_us=at,
            installs=[InstallReport(task, version, state, outcome, at, message)],
            runs=[
                RunSummary(
                    os.urandom(16), task, version, outcome, "process", wall_us // 2, wall_us,
                    20_000, at, wall_us + 3_000, message,
                )
            ],
            results=[]
            if outcome
            else [ResultRecord(os.urandom(16), task, version, "score", at, value)],
            features=[]
            if outcome
            else [
                FeatureRecord(
                    task, version, "ipv", str(self.seqs.get(device)), at, 1, "json", b"1"
                )
            ],
            dropped=dropped or {},
        )  # fmt: skip
        assert isinstance(answer, Ack), answer

    def fill(self) -> tuple[int, int]:
        """Make a lively fleet of 60; return the ids of a rolled-out and of a gray release."""
        self.enrol(60)
        first = self.release(self.publish(1, label="first model"))
        self.cloud.releases.override(first, actor="rosa", reason="nothing was there before")
        for device in self.devices[:40]:
            self.run(device, 1, value={"score": 0.42, "label": "buy"})
        second = self.release(self.publish(2, label="smaller model"))
        for place, device in enumerate(self.devices[:30]):
            self.run(
                device,
                2,
                value={"score": place / 30},
                outcome=302 if place == 7 else 0,
                wall_us=20_000 + 1_000 * place,
                message="the model wants 4 inputs, got 3" if place == 7 else "",
                dropped={"idle": 3} if place == 3 else None,
            )
        refusal = InstallReport(TASK, 2, "refused", 206, now_us(), "needs engine onnx 2")
        self.send(self.devices[31], installs=[refusal])
        self.send_nonsense(self.devices[0])
        self.cloud.tick()
        return first, second
