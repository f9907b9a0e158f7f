"""Rows of a database gathered into columns, piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.spatial.columns import PlaceColumns
from shoal.spatial.merging import keep_rows

__all__ = ["PlaceRows", "RowCollector"]


@dataclass(frozen=True, slots=True)
class PlaceRows:
    """Places with what only people read.

    ``columns`` are the places; ``ids`` and ``labels`` hold one text or None a
    row; ``seq`` is the number of the change feed that they are of.
    """

    columns: PlaceColumns
    ids: list[str | None]
    labels: list[str | None]
    seq: int

    def keep(self, rows: npt.NDArray[np.bool_]) -> PlaceRows:
        """Return the rows where ``rows`` (bool [n]) says so."""
        return PlaceRows(
            keep_rows(self.columns, rows),
            list(compress(self.ids, rows)),
            list(compress(self.labels, rows)),
            self.seq,
        )


class RowCollector:
    """Columns that grow by pieces: numbers go into arrays at once, words into numbers.

    Parameters
    ----------
    width : int
        Attributes of a place.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._number: dict[str, int] = {}
        self._pieces: list[tuple[npt.NDArray[Any], ...]] = []
        self._ids: list[str | None] = []
        self._labels: list[str | None] = []

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add rows with key, id, label, lon, lat, words and attributes."""
        records = list(records)
        number = self._number
        word_ids: list[int] = []
        lengths = []
        for record in records:
            words = set(record["words"])
            word_ids.extend([number.setdefault(word, len(number)) for word in words])
            lengths.append(len(words))
        values = np.full((self._width, len(records)), np.nan)
        for i, record in enumerate(records):
            given = record["attributes"][: self._width]
            values[: len(given), i] = [np.nan if v is None else v for v in given]
        self._pieces.append(
            (
                np.array([record["key"] for record in records], dtype=np.int64),
                np.array([record["lon"] for record in records], dtype=np.float64),
                np.array([record["lat"] for record in records], dtype=np.float64),
                np.array(lengths, dtype=np.int64),
                np.array(word_ids, dtype=np.int64),
                values,
            )
        )
        self._ids.extend(record["id"] for record in records)
        self._labels.extend(record["label"] for record in records)

    def rows(self, seq: int) -> PlaceRows:
        """Return everything added."""
        if not self._pieces:
            self.add([])
        keys, lon, lat, lengths, provisional = (
            np.concatenate([piece[i] for piece in self._pieces]) for i in range(5)
        )
        values = np.concatenate([piece[5] for piece in self._pieces], axis=1)
        words = sorted(self._number)  # the order of code points is that of the UTF-8 bytes
        rank = np.empty(len(words), dtype=np.int64)
        for i, word in enumerate(words):
            rank[self._number[word]] = i
        rows = np.repeat(np.arange(len(keys)), lengths)
        word_ids = rank[provisional]
        word_ids = word_ids[np.lexsort((word_ids, rows))]
        ptr = np.zeros(len(keys) + 1, dtype=np.int64)
        np.cumsum(lengths, out=ptr[1:])
        columns = PlaceColumns(
            keys=keys,
            lon=lon,
            lat=lat,
            words=words,
            word_ptr=ptr,
            word_ids=word_ids.astype(np.int32),
            values=values,
        )
        return PlaceRows(columns, self._ids, self._labels, seq)
