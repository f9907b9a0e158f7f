"""Which model a feature comes from: the cloud never mixes two in one stream.

After EdgeRec's rule (Walle sheet B.5): vectors of two encoder versions do not
compare. What a task version's manifest names as ``model_version`` is the only
one its records may carry. For a task that names none, what a device sent first
for (task, version, name) holds for that device; a fleet-wide first sender would
let one hostile device shut out all others.
"""

from __future__ import annotations

from typing import Final

import msgspec
import sqlalchemy as sa

from shoal.cloud.admission import RefusedRecord
from shoal.cloud.store import feature, task_version
from shoal.wire.codes import ErrorCode
from shoal.wire.results import FeatureRecord, ResultBatch, ResultRecord

__all__ = ["ModelVersions"]

_CACHE: Final = 65_536


class ModelVersions:
    """Judges records; used by one thread, inside its transaction."""

    def __init__(self) -> None:
        self._declared: dict[tuple[str, int], str | None] = {}
        self._unknown: set[tuple[str, int]] = set()
        self._first: dict[tuple[bytes, str, int, str], str | None] = {}

    def begin(self) -> None:
        """Start a transaction: a task that was unknown may have been published meanwhile."""
        self._unknown.clear()

    def abort(self) -> None:
        """Forget what was learned from records that were rolled back."""
        self._first.clear()

    def split(
        self, connection: sa.Connection, device: bytes, batch: ResultBatch
    ) -> tuple[ResultBatch, list[RefusedRecord]]:
        """Take the records out of a batch that are of another model than their stream."""
        refused: list[RefusedRecord] = []

        def fits(record: FeatureRecord | ResultRecord) -> bool:
            if isinstance(record, FeatureRecord):
                good = self.fits_feature(connection, device, record)
            else:
                good = self.fits_result(connection, record)
            if not good:
                reason = (
                    f"{record.task} {record.version} {record.name}: model version "
                    f"{record.model_version!r} is not the stream's"
                )
                body = msgspec.msgpack.encode(record)
                refused.append(RefusedRecord(ErrorCode.MODEL_VERSION_SKEW, reason, body))
            return good

        features = [record for record in batch.features if fits(record)]
        results = [record for record in batch.results if fits(record)]
        if refused:
            batch = msgspec.structs.replace(batch, features=features, results=results)
        return batch, refused

    def fits_result(self, connection: sa.Connection, record: ResultRecord) -> bool:
        """Say whether a result may be stored; one without a model always may."""
        expected = self._expected(connection, record.task, record.version)
        return expected is None or record.model_version in (None, expected)

    def fits_feature(self, connection: sa.Connection, device: bytes, record: FeatureRecord) -> bool:
        """Say whether a feature may be stored; a declared model is mandatory in it."""
        expected = self._expected(connection, record.task, record.version)
        if expected is not None:
            return record.model_version == expected
        key = (device, record.task, record.version, record.name)
        if key not in self._first:
            if len(self._first) >= _CACHE:
                self._first.clear()
            row = connection.execute(
                sa.select(feature.c.model_version)
                .where(
                    feature.c.device == device,
                    feature.c.task == record.task,
                    feature.c.name == record.name,
                    feature.c.version == record.version,
                )
                .limit(1)
            ).first()
            self._first[key] = record.model_version if row is None else row[0]
        return record.model_version == self._first[key]

    def _expected(self, connection: sa.Connection, task: str, version: int) -> str | None:
        pair = (task, version)
        if pair in self._declared:
            return self._declared[pair]
        if pair in self._unknown:
            return None
        row = connection.execute(
            sa.select(task_version.c.manifest).where(
                task_version.c.task == task, task_version.c.version == version
            )
        ).first()
        if row is None:
            self._unknown.add(pair)
            return None
        named = row[0].get("model_version") if isinstance(row[0], dict) else None
        self._declared[pair] = named or None
        return self._declared[pair]
