"""What a run leaves: results, features, raw events, its summary; written in the runner's commit."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from shoal.core.errors import InputError
from shoal.device.container.requests import RunReply
from shoal.device.jobs import Job, derive_id
from shoal.device.stream.features import FeatureStore
from shoal.device.uplink import Uplink
from shoal.wire.results import FeatureRecord, ResultRecord, RunSummary
from shoal.wire.specs import TaskManifest

__all__ = ["Finished", "RunOutputs", "decode_feature", "encode_feature"]


@dataclass
class Finished:
    """A run that is over and not durable yet.

    Attributes
    ----------
    job, reply : Job, RunReply
    state : bytes or None
        The task's state after it.
    at : float
        When it ended, on a steady clock.
    skipped : bool
        It failed at every try: the stream goes on without it.
    """

    job: Job
    reply: RunReply
    state: bytes | None
    at: float
    skipped: bool = False


class RunOutputs:
    """Writes what runs of one task version have made, inside the caller's transaction.

    Parameters
    ----------
    manifest : TaskManifest
    features, uplink : FeatureStore, Uplink
        Where outputs go.
    counts : Counter
        ``refused_feature``: values that are not what they were declared as.
    """

    def __init__(
        self,
        manifest: TaskManifest,
        features: FeatureStore,
        uplink: Uplink,
        counts: Counter[str],
    ) -> None:
        self._task, self._version = manifest.task, manifest.version
        self._model = manifest.model_version
        self._raw = any(output.kind == "events" for output in manifest.outputs)
        self._features, self._uplink, self._counts = features, uplink, counts

    def write(self, cursor: sqlite3.Cursor, finished: Sequence[Finished], now_us: int) -> None:
        """Store and queue the outputs of runs, and set aside those that were skipped."""
        results: list[ResultRecord] = []
        features: list[FeatureRecord] = []
        for entry in finished:
            if entry.skipped:
                self._set_aside(cursor, entry, now_us)
                continue
            for number, (name, value, ts_us) in enumerate(entry.reply.emits):
                # The same run repeated after a crash gives the same ids.
                identity = derive_id(entry.job.run, b"result", number)
                results.append(
                    ResultRecord(
                        identity, self._task, self._version, name, ts_us, value, self._model
                    )
                )
            features += self._put_features(cursor, entry.reply)
            if self._raw:
                self._uplink.put_events(cursor, self._task, self._version, entry.job.events)
        self._features.flush()
        self._uplink.put_results(cursor, results)
        self._uplink.put_features(cursor, features)

    def _put_features(self, cursor: sqlite3.Cursor, reply: RunReply) -> list[FeatureRecord]:
        put = []
        for name, key, dtype, value, ts_us in reply.features:
            try:
                record = self._features.put(
                    self._task,
                    name,
                    key,
                    encode_feature(dtype, value),
                    ts_us=ts_us,
                    version=self._version,
                    dtype=dtype,
                    model_version=self._model,
                )
            except InputError:  # the run was fine; a value that is not what it says stays
                self._counts["refused_feature"] += 1
                self._uplink.count_dropped(cursor, "refused_feature")
            else:
                put.append(record)
        return put

    def write_runs(self, cursor: sqlite3.Cursor, summaries: Sequence[RunSummary]) -> None:
        """Note runs in the device's own book, and queue their summaries."""
        cursor.executemany(
            "INSERT INTO run (id, task, version, started_us, cpu_us, wall_us, peak_kb, backend,"
            " outcome) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    s.run, s.task, s.version, s.ts_us, s.cpu_us, s.wall_us, s.peak_kb,
                    s.backend, s.outcome,
                )
                for s in summaries
            ],
        )  # fmt: skip
        self._uplink.put_runs(cursor, summaries)

    def _set_aside(self, cursor: sqlite3.Cursor, entry: Finished, now_us: int) -> None:
        """Keep in mind which event the stream went on without."""
        job = entry.job
        last = job.events[-1].id if job.events else job.run
        note = f"{len(job.events)} events: {entry.reply.message}"
        cursor.execute(
            "INSERT OR REPLACE INTO quarantine (task, event, version, seq, attempts, code, at_us,"
            " message) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self._task, last, self._version, job.seq, job.attempts, entry.reply.outcome,
                now_us, note[:500],
            ),
        )  # fmt: skip


def encode_feature(dtype: str, value: Any) -> bytes:
    """Write a feature's value in its dtype: little-endian float32, JSON or msgpack.

    Raises
    ------
    InputError
        The value does not fit the dtype.
    """
    try:
        if dtype.startswith("f32["):
            return struct.pack(f"<{len(value)}f", *value)
        if dtype == "json":
            return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        return msgspec.msgpack.encode(value)
    except (struct.error, OverflowError, TypeError, ValueError) as error:
        raise InputError(f"is not {dtype}: {error}", field="feature") from error


def decode_feature(dtype: str, value: bytes) -> Any:
    """Read a feature's value."""
    if dtype.startswith("f32["):
        return list(struct.unpack(f"<{len(value) // 4}f", value))
    if dtype == "json":
        return json.loads(value)
    return msgspec.msgpack.decode(value)
