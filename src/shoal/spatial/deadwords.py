"""The words of a segment's dead rows, counted so that no query counts them again.

A document frequency is exact over the living, but postings still have the dead. So
whoever asks takes off how many dead rows have the word. Here that is an array with a
count for each word, as of some number of deaths, and the words of the rows that died
after it, one after the other: a short stretch that a kernel looks through. Both are
only ever replaced or added to, so a moment is (array, stretch, its length), and a
reader of an older moment is not disturbed by the writer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shoal.spatial import _build_kernels as building
from shoal.spatial import _memtable_kernels as kernels
from shoal.spatial.columns import Layout

__all__ = ["DeadWords", "DeadWordsView"]

#: Half of the words of dead rows behind the counts, above which new counts are made.
_STRETCH = 2048

_Ids = npt.NDArray[np.int32]


class DeadWordsView(NamedTuple):
    """Dead rows with each word at one moment: ``counts[id]`` and the ids ``recent[:stop]``.

    ``places`` are the addresses of the two.
    """

    counts: _Ids
    recent: _Ids
    stop: int
    places: tuple[int, int]


class DeadWords:
    """Counts of the words of the first ``deaths`` rows in a log of deaths.

    Parameters
    ----------
    layout : Layout
        The segment's rows.
    lengths : uint16 or uint32 [n]
        Number of words of each row.
    log : uint32 [deaths]
        Rows that are dead.

    Attributes
    ----------
    deaths : int
        How many rows are counted.
    """

    def __init__(
        self, layout: Layout, lengths: npt.NDArray[Any], log: npt.NDArray[np.uint32]
    ) -> None:
        self._terms = getattr(layout, "terms", None)
        self._numbers: dict[str, int] = {}
        self._ptr = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, dtype=np.int64, out=self._ptr[1:])
        post, ptr = getattr(layout, "post", None), getattr(layout, "ptr", None)
        if self._terms is not None and post is not None and ptr is not None:
            words = len(self._terms)
            self._ids = np.empty(int(self._ptr[-1]), dtype=np.int32)
            # Copied: a mapped array, which cannot be written to, would be compiled for again.
            building.transpose_back(ptr.copy(), post.copy(), self._ptr, self._ids)
        else:
            columns = layout.columns()
            words = len(columns.words)
            self._terms = None
            self._numbers = {word: i for i, word in enumerate(columns.words)}
            self._ids = columns.word_ids.astype(np.int32)
        self._counts = np.zeros(words, dtype=np.int32)
        rows = log.astype(np.int64)
        dead = np.empty(int((self._ptr[rows + 1] - self._ptr[rows]).sum()), dtype=np.int32)
        kernels.gather_words(rows, self._ptr, self._ids, dead)
        kernels.count_ids(dead, self._counts)
        self._recent = np.empty(2 * _STRETCH, dtype=np.int32)
        self._stop = 0
        self._places = (self._counts.ctypes.data, self._recent.ctypes.data)
        self.deaths = len(log)

    def bury(self, rows: npt.NDArray[np.int64], live: npt.NDArray[np.uint8]) -> int:
        """Count the rows, and take them out of the mask; return how many words they have.

        For the one writer, in the order of the log.
        """
        size = int(kernels.bury(rows, live, self._ptr, self._ids, self._recent, self._stop))
        if self._stop + size > len(self._recent):
            counts = self._counts.copy()
            kernels.count_ids(self._recent[: self._stop], counts)
            self._counts, self._stop = counts, 0
            self._recent = np.empty(max(size, 2 * _STRETCH), dtype=np.int32)
            self._places = (counts.ctypes.data, self._recent.ctypes.data)
            kernels.bury(rows, live, self._ptr, self._ids, self._recent, 0)
        self._stop += size
        self.deaths += len(rows)
        return size

    def view(self) -> DeadWordsView:
        """Return the counts as they are now. For the one writer."""
        return DeadWordsView(self._counts, self._recent, self._stop, self._places)

    def ids(self, words: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the id of each word, -1 for one that no row has."""
        if self._terms is not None:
            found: npt.NDArray[np.int64] = self._terms.ids(words)
            return found
        return np.array([self._numbers.get(word, -1) for word in words], dtype=np.int64)

    def frequency(self, words: Sequence[str], view: DeadWordsView) -> npt.NDArray[np.int64]:
        """Return in how many dead rows of a view each word occurs."""
        out = np.zeros(len(words), dtype=np.int64)
        kernels.count_words_in(self.ids(words), view.counts, view.recent, view.stop, out)
        return out
