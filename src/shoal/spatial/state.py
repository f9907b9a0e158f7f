"""What an index keeps beside its places: options, external ids, labels, visits.

It shares the folder and the journal of the places (``durable.Companion``). What
changes it is written to the journal as a note and applied here, now and when the
journal is replayed. Notes name keys outright, so that replaying one twice, or
after a write that never came to be, gives the same map.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from shoal.core.errors import IntegrityError
from shoal.spatial.config import SpatialKeywordIndexConfig
from shoal.spatial.ids import Ids
from shoal.spatial.labels import Labels
from shoal.spatial.people import People

__all__ = ["IndexState", "PlaceNote"]

#: Version of what :meth:`IndexState.state` gives.
_VERSION = 1


class PlaceNote(msgspec.Struct, frozen=True, omit_defaults=True):
    """What goes into the journal with new places: their ids and labels by key."""

    keys: list[int]
    ids: list[str] | None = None
    labels: list[str | None] | None = None


class IndexState:
    """Options, ids, labels and people of an index; a companion of its store.

    Parameters
    ----------
    config : SpatialKeywordIndexConfig
    ids : Ids
    labels : Labels, optional
    people : People, optional
    """

    def __init__(
        self,
        config: SpatialKeywordIndexConfig | None = None,
        ids: Ids | None = None,
        labels: Labels | None = None,
        people: People | None = None,
    ) -> None:
        self.config = config or SpatialKeywordIndexConfig()
        self.ids = ids or Ids("int")
        self.labels = labels or Labels()
        self.people = people

    def note(self, keys: npt.NDArray[np.int64], labels: Sequence[str | None] | None) -> bytes:
        """Return what the journal must know beside new places; empty if nothing."""
        texts = self.ids.names(keys) if self.ids.kind == "text" else None
        if texts is None and labels is None:
            return b""
        given = None if labels is None else list(labels)
        return msgspec.msgpack.encode(PlaceNote(keys.tolist(), texts, given))

    def put(self, note: PlaceNote) -> None:
        """Apply a note of new places."""
        keys = np.array(note.keys, dtype=np.int64)
        if note.ids is not None:
            self.ids.put(note.ids, note.keys)
        if note.labels is not None:
            self.labels.put(keys, note.labels)

    # --- durable.Companion --------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """Return what is kept: JSON values and arrays."""
        config = {
            "version": _VERSION,
            "index": self.config.model_dump(mode="json"),
            "ids": self.ids.kind,
            "labels": bool(self.labels),
            "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        arrays = {f"ids.{name}": array for name, array in self.ids.arrays().items()}
        if self.labels:
            arrays |= {f"labels.{name}": array for name, array in self.labels.arrays().items()}
        if self.people is not None:
            config["people"], kept = self.people.state()
            arrays |= {f"people.{name}": array for name, array in kept.items()}
        return config, arrays

    def restore(self, config: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Become what was kept.

        Raises
        ------
        IntegrityError
            It was kept by a later version, or lacks something.
        """
        if config.get("version") != _VERSION:
            raise IntegrityError(
                f"the index was written in form {config.get('version')!r}, this is {_VERSION}",
                hint="build it again, or use the version that wrote it",
            )
        try:
            self.config = SpatialKeywordIndexConfig.model_validate(config["index"])
            self.ids = Ids.from_arrays(config["ids"], _below("ids.", arrays))
            self.labels = (
                Labels.from_arrays(_below("labels.", arrays)) if config["labels"] else Labels()
            )
            self.people = (
                People.restored(config["people"], _below("people.", arrays))
                if "people" in config
                else None
            )
        except (KeyError, ValueError) as error:
            raise IntegrityError(f"the index's state cannot be read: {error}") from None

    def apply(self, kind: str, payload: bytes) -> None:
        """Apply a note of the journal."""
        if kind == "upsert":
            self.put(msgspec.msgpack.decode(payload, type=PlaceNote))
        elif self.people is not None:
            self.people.apply(kind, payload)


def _below(prefix: str, arrays: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
