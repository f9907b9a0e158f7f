"""Dead letters: what could not be taken, kept for people to look at and to replay."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from shoal.cloud.admission import RefusedRecord
from shoal.cloud.store import dead_letter
from shoal.wire.codes import ErrorCode
from shoal.wire.frames import Batch

__all__ = ["MAX_OF_DEVICE", "DeadLetters"]

#: Letters kept of one device; one device must not be able to fill the disk with nonsense.
MAX_OF_DEVICE: Final = 256


class DeadLetters:
    """Collects the dead letters of a transaction.

    A refused batch is kept as its compressed body. Refused records of a batch
    are kept as the msgpack list of (reason, record), one letter for each code.
    """

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._counts: Counter[str] = Counter()

    def add_batch(self, device: bytes, frame: Batch, code: ErrorCode, now_us: int) -> None:
        """Keep a whole batch."""
        self._counts[f"batch_{code.name.lower()}"] += 1
        self._add(device, frame.seq, code, frame.body, now_us)

    def add_records(
        self, device: bytes, seq: int, refused: list[RefusedRecord], now_us: int
    ) -> None:
        """Keep the refused records of a batch."""
        by_code: dict[int, list[RefusedRecord]] = {}
        for record in refused:
            by_code.setdefault(record.code, []).append(record)
        for code, records in by_code.items():
            body = msgspec.msgpack.encode([(r.reason, msgspec.Raw(r.body)) for r in records])
            self._counts[f"record_{ErrorCode(code).name.lower()}"] += len(records)
            self._add(device, seq, code, body, now_us)

    def _add(self, device: bytes, seq: int, code: int, body: bytes, now_us: int) -> None:
        self._rows.append(
            {"device": device, "seq": seq, "code": int(code), "body": body, "at_us": now_us}
        )

    def write(self, connection: sa.Connection) -> Counter[str]:
        """Write the letters; return counts by reason, those past the bound included."""
        kept: Counter[bytes] = Counter()
        for device in {row["device"] for row in self._rows}:
            query = sa.select(sa.func.count()).where(dead_letter.c.device == device)
            kept[device] = int(connection.execute(query).scalar_one())
        rows = []
        for row in self._rows:
            kept[row["device"]] += 1
            if kept[row["device"]] <= MAX_OF_DEVICE:
                rows.append(row)
            else:
                self._counts["dead_letter_overflow"] += 1
        if rows:
            connection.execute(sa.insert(dead_letter), rows)
        return self._counts
