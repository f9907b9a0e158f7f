"""Records that wait for their batch, and batches that wait for their acknowledgement.

Both live in the table ``outbox`` of the device's store. A row with a positive
``seq`` is a numbered batch, ready to be sent as often as it takes. A row with a
negative ``seq`` is one record that has no batch yet: every class has a range of
2**40 numbers that it fills downwards, so the oldest record of a class is the
largest number of its range, and no class makes another one slow.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, Literal

import msgspec

from shoal.core.crashpoints import crashpoint
from shoal.device.store import DeviceStore

__all__ = ["CLASSES", "Outbox", "OutboxBounds", "RecordKind", "UplinkClass"]

UplinkClass = Literal["now", "soon", "idle"]

#: Uplink classes, most urgent first.
CLASSES: Final[tuple[UplinkClass, ...]] = ("now", "soon", "idle")

_RANGE: Final = 1 << 40
_ROW: Final = 48  # what a row costs beside its body, roughly
_DROPPED: Final = "uplink.dropped"
_MAX_REASONS: Final = 32


class RecordKind(IntEnum):
    """What the body of a waiting record is; above 100, apart from ``BatchKind``."""

    RESULT = 101
    FEATURE = 102
    RUN = 103
    INSTALL = 104
    EVENT = 105


class OutboxBounds(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that may wait: all classes together, and the two that may be dropped early.

    What exceeds ``idle`` or ``soon`` drops the oldest records of that class;
    what exceeds ``total`` drops idle ones first, then soon ones, then now ones.
    """

    total: int = 64 * 1024 * 1024
    soon: int = 48 * 1024 * 1024
    idle: int = 32 * 1024 * 1024


class Outbox:
    """Waiting records by class, bounded, with a count of everything dropped.

    Parameters
    ----------
    store : DeviceStore
    bounds : OutboxBounds
    """

    def __init__(self, store: DeviceStore, bounds: OutboxBounds) -> None:
        self.store = store
        self.bounds = bounds
        self._bytes: dict[UplinkClass, int] | None = None

    # -- in -------------------------------------------------------------------------------

    def add(
        self,
        cursor: sqlite3.Cursor,
        uplink: UplinkClass,
        kind: RecordKind,
        bodies: list[bytes],
        now_us: int,
    ) -> None:
        """Append records inside the caller's transaction; drop old ones past the bounds."""
        sizes = self._sizes(cursor)
        self.store.on_rollback(self.forget)
        low, high = _span(uplink)
        newest = cursor.execute(
            "SELECT min(seq) FROM outbox WHERE seq BETWEEN ? AND ?", (low, high)
        ).fetchone()[0]
        first = high if newest is None else int(newest) - 1
        cursor.executemany(
            "INSERT INTO outbox (seq, class, kind, body, created_us) VALUES (?, ?, ?, ?, ?)",
            ((first - place, uplink, int(kind), body, now_us) for place, body in enumerate(bodies)),
        )
        sizes[uplink] += sum(map(len, bodies)) + _ROW * len(bodies)
        self._enforce(cursor, sizes)
        crashpoint("uplink.put")

    def _enforce(self, cursor: sqlite3.Cursor, sizes: dict[UplinkClass, int]) -> None:
        bounds = self.bounds
        self._drop(cursor, sizes, "idle", sizes["idle"] - bounds.idle)
        self._drop(cursor, sizes, "soon", sizes["soon"] - bounds.soon)
        for uplink in reversed(CLASSES):
            self._drop(cursor, sizes, uplink, sum(sizes.values()) - bounds.total)

    def _drop(
        self,
        cursor: sqlite3.Cursor,
        sizes: dict[UplinkClass, int],
        uplink: UplinkClass,
        excess: int,
    ) -> None:
        if excess <= 0 or not sizes[uplink]:
            return
        low, high = _span(uplink)
        last, number, freed = 0, 0, 0
        for seq, length in cursor.execute(
            "SELECT seq, length(body) FROM outbox WHERE seq BETWEEN ? AND ? ORDER BY seq DESC",
            (low, high),
        ):
            last, number, freed = seq, number + 1, freed + length + _ROW
            if freed >= excess:
                break
        cursor.execute("DELETE FROM outbox WHERE seq BETWEEN ? AND ?", (last, high))
        sizes[uplink] -= freed
        self.count(cursor, f"outbox_{uplink}", number)

    # -- out ------------------------------------------------------------------------------

    def oldest(self, cursor: sqlite3.Cursor, uplink: UplinkClass) -> tuple[int, int, int] | None:
        """Return (oldest seq, newest seq, creation time of the oldest), or ``None``."""
        low, high = _span(uplink)
        row = cursor.execute(
            "SELECT seq, created_us FROM outbox WHERE seq BETWEEN ? AND ?"
            " ORDER BY seq DESC LIMIT 1",
            (low, high),
        ).fetchone()
        if row is None:
            return None
        newest = cursor.execute(
            "SELECT min(seq) FROM outbox WHERE seq BETWEEN ? AND ?", (low, high)
        ).fetchone()[0]
        return int(row[0]), int(newest), int(row[1])

    def scan(
        self, cursor: sqlite3.Cursor, uplink: UplinkClass, newest: int
    ) -> Iterator[tuple[int, RecordKind, bytes]]:
        """Yield (seq, kind, body) of a class, oldest first, up to and with ``newest``."""
        _, high = _span(uplink)
        for seq, kind, body in cursor.execute(
            "SELECT seq, kind, body FROM outbox WHERE seq BETWEEN ? AND ? ORDER BY seq DESC",
            (newest, high),
        ):
            yield seq, RecordKind(kind), body

    def remove(
        self, cursor: sqlite3.Cursor, uplink: UplinkClass, rows: list[tuple[int, int]]
    ) -> None:
        """Delete records, given as (seq, length of the body)."""
        sizes = self._sizes(cursor)
        self.store.on_rollback(self.forget)
        cursor.executemany("DELETE FROM outbox WHERE seq = ?", ((seq,) for seq, _ in rows))
        sizes[uplink] -= sum(length + _ROW for _, length in rows)

    # -- numbers --------------------------------------------------------------------------

    def waiting_bytes(self, cursor: sqlite3.Cursor, uplink: UplinkClass) -> int:
        """Return the bytes that wait in a class."""
        return self._sizes(cursor)[uplink]

    def waiting(self, cursor: sqlite3.Cursor) -> int:
        """Return the number of records without a batch."""
        return int(cursor.execute("SELECT count(*) FROM outbox WHERE seq < 0").fetchone()[0])

    def forget(self) -> None:
        """Read the sizes again from the table at the next use."""
        self._bytes = None

    def _sizes(self, cursor: sqlite3.Cursor) -> dict[UplinkClass, int]:
        if self._bytes is None:
            sizes: dict[UplinkClass, int] = {}
            for uplink in CLASSES:
                row = cursor.execute(
                    "SELECT coalesce(sum(length(body) + ?), 0) FROM outbox"
                    " WHERE seq BETWEEN ? AND ?",
                    (_ROW, *_span(uplink)),
                ).fetchone()
                sizes[uplink] = int(row[0])
            self._bytes = sizes
        return self._bytes

    # -- what was dropped -----------------------------------------------------------------

    def count(self, cursor: sqlite3.Cursor, reason: str, number: int = 1) -> None:
        """Count dropped things; the count travels in the next batch of results."""
        if number <= 0:
            return
        counts = self.dropped(cursor)
        if reason not in counts and len(counts) >= _MAX_REASONS:
            reason = "other"
        counts[reason] = counts.get(reason, 0) + number
        cursor.execute(
            "INSERT OR REPLACE INTO meta VALUES (?, ?)", (_DROPPED, msgspec.msgpack.encode(counts))
        )

    def dropped(self, cursor: sqlite3.Cursor) -> dict[str, int]:
        """Return the counts that have not travelled yet."""
        row = cursor.execute("SELECT value FROM meta WHERE key = ?", (_DROPPED,)).fetchone()
        return {} if row is None else msgspec.msgpack.decode(row[0], type=dict[str, int])

    def take_dropped(self, cursor: sqlite3.Cursor) -> dict[str, int]:
        """Return the counts and start again from nothing."""
        counts = self.dropped(cursor)
        if counts:
            cursor.execute("DELETE FROM meta WHERE key = ?", (_DROPPED,))
        return counts


def _span(uplink: UplinkClass) -> tuple[int, int]:
    """Return the lowest and the highest ``seq`` of a class."""
    high = -CLASSES.index(uplink) * _RANGE - 1
    return high - _RANGE + 2, high
