"""What tasks declared that they send: names, kinds and bytes a day, enforced on the device.

This is the privacy rule of the platform: what may be uploaded is declared in
the manifest, signed and shown; everything else stays (Walle sheet B.6).
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable
from typing import Any, Final, Literal

import msgspec

from shoal.wire.manifest import OutputSpec

__all__ = ["Budget", "DeclaredOutputs", "OutputKind"]

OutputKind = Literal["result", "feature", "events"]

_SPENT: Final = "uplink.spent"
_DAY_US: Final = 86_400_000_000


class DeclaredOutputs:
    """The declarations in force, by (task, version). Safe for several threads."""

    def __init__(self) -> None:
        self._outputs: dict[tuple[str, int], dict[tuple[str, str], OutputSpec]] = {}
        self._lock = threading.Lock()

    def declare(self, task: str, version: int, outputs: Iterable[OutputSpec]) -> None:
        """Put the outputs of (task, version) in force, instead of earlier ones."""
        # Events have no output name of their own: the permission is the declaration.
        named: dict[tuple[str, str], OutputSpec] = {
            (output.kind, "" if output.kind == "events" else output.name): output
            for output in outputs
        }
        with self._lock:
            self._outputs[task, version] = named

    def retract(self, task: str, version: int) -> None:
        """Forget the declaration of (task, version)."""
        with self._lock:
            self._outputs.pop((task, version), None)

    def find(self, kind: OutputKind, record: Any) -> OutputSpec | None:
        """Return the declaration that lets ``record`` leave, or ``None``.

        ``record`` is a result, a feature, or (task, version, event).
        """
        if kind == "events":
            task, version, name = record[0], record[1], ""
        else:
            task, version, name = record.task, record.version, record.name
        with self._lock:
            output = self._outputs.get((task, version), {}).get((kind, name))
        if output is not None and kind == "feature" and output.dtype != record.dtype:
            return None
        return output


class Budget:
    """Bytes that each output has sent today, kept in the store's ``meta`` table.

    A day is a day of UTC by the device's clock; a clock that jumps starts a new
    day. A ``bytes_per_day`` of 0 is no limit.

    Parameters
    ----------
    cursor : sqlite3.Cursor
        Of the transaction that the records are put in.
    now_us : int
    """

    def __init__(self, cursor: sqlite3.Cursor, now_us: int) -> None:
        self._cursor = cursor
        self._day = now_us // _DAY_US
        self._spent: dict[str, int] | None = None
        self._changed = False

    def spend(self, task: str, output: OutputSpec, size: int) -> bool:
        """Take ``size`` bytes from the budget of an output; say whether there were enough."""
        if output.bytes_per_day <= 0:
            return True
        spent = self._today()
        name = f"{task}/{output.kind}/{output.name}"
        if spent.get(name, 0) + size > output.bytes_per_day:
            return False
        spent[name] = spent.get(name, 0) + size
        self._changed = True
        return True

    def save(self) -> None:
        """Write what was spent, in the same transaction."""
        if self._changed:
            self._cursor.execute(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)",
                (_SPENT, msgspec.msgpack.encode((self._day, self._spent))),
            )

    def _today(self) -> dict[str, int]:
        if self._spent is None:
            self._spent = {}
            row = self._cursor.execute("SELECT value FROM meta WHERE key = ?", (_SPENT,)).fetchone()
            if row is not None:
                day, spent = msgspec.msgpack.decode(row[0], type=tuple[int, dict[str, int]])
                if day == self._day:
                    self._spent = spent
        return self._spent
