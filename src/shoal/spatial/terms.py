"""The dictionary of an index's words: flat arrays, no Python object per word."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal.core.errors import InputError, IntegrityError, LimitError, NotFoundError
from shoal.spatial import _build_kernels as kernels
from shoal.spatial.vocabulary import Vocabulary

__all__ = ["Terms"]


class Terms:
    """An immutable dictionary of words; a word's id is its rank in the order of UTF-8 bytes.

    Make one with :meth:`build` or :meth:`from_arrays`.

    Attributes
    ----------
    blob : uint8 [bytes]
        The words one after the other, UTF-8.
    offsets : uint32 [V + 1]
        Word ``i`` is ``blob[offsets[i]:offsets[i + 1]]``.
    table : uint32 [slots]
        Open hash table, about 1.5 slots a word. The low ``bits`` bits of a slot
        are a word's id, the others the low bits of its hash, so that nearly
        every probe that meets another word ends without touching the blob;
        all ones: empty.
    bits : int
        As above: bits of the number of words.
    """

    __slots__ = ("_addresses", "bits", "blob", "offsets", "table")

    def __init__(
        self,
        blob: npt.NDArray[np.uint8],
        offsets: npt.NDArray[np.uint32],
        table: npt.NDArray[np.uint32],
    ) -> None:
        self.blob = np.ascontiguousarray(blob)
        self.offsets = np.ascontiguousarray(offsets)
        self.table = np.ascontiguousarray(table)
        self.bits = max(1, (len(offsets) - 1).bit_length())
        self._addresses: npt.NDArray[np.int64] | None = None

    @classmethod
    def build(cls, words_sorted: Sequence[str]) -> Terms:
        """Return the dictionary of words, each given once, sorted by their UTF-8 bytes.

        Raises
        ------
        InputError
            A word is not text that UTF-8 can hold, or the order is wrong.
        LimitError
            There are 2^31 words or 4 GiB of text, or more.
        """
        offsets, blob = _encode(words_sorted)
        if len(words_sorted) >= 2**31 or int(offsets[-1]) >= 2**32:
            raise LimitError("an index holds fewer than 2^31 words and 4 GiB of their text")
        short = offsets.astype(np.uint32)
        wrong = int(kernels.first_unsorted(blob, short)) if len(words_sorted) else -1
        if wrong >= 0:
            raise InputError(
                "words must be sorted by their UTF-8 bytes, each once",
                field="words",
                value=words_sorted[wrong],
            )
        table = np.full(len(words_sorted) + len(words_sorted) // 2 + 2, 0xFFFFFFFF, dtype=np.uint32)
        terms = cls(blob, short, table)
        if len(words_sorted):  # the first call of a kernel loads numba's own, most of a second
            kernels.fill_table(blob, short, table, terms.bits)
        return terms

    def __len__(self) -> int:
        """Return the number of words."""
        return len(self.offsets) - 1

    def word(self, i: int) -> str:
        """Return the word of an id.

        Raises
        ------
        NotFoundError
            There is no such id.
        """
        if not 0 <= i < len(self):
            raise NotFoundError(f"no word has the id {i}; there are {len(self)}")
        return bytes(self.blob[int(self.offsets[i]) : int(self.offsets[i + 1])]).decode()

    def words(self) -> list[str]:
        """Return all words in the order of their ids."""
        wide = np.ascontiguousarray(self.offsets, dtype=np.int64)
        buffers = [None, pa.py_buffer(wide), pa.py_buffer(np.ascontiguousarray(self.blob))]
        words: list[str] = pa.LargeStringArray.from_buffers(
            len(self), buffers[1], buffers[2]
        ).to_pylist()
        return words

    def ids(self, words: Iterable[str]) -> npt.NDArray[np.int64]:
        """Return the id of each word, int64; -1 for an unknown one."""
        wanted = list(words)
        found = np.full(len(wanted), -1, dtype=np.int64)
        if wanted and len(self):
            text = [word.encode(errors="surrogatepass") for word in wanted]
            ends = np.zeros(len(text) + 1, dtype=np.uint32)
            np.cumsum([len(word) for word in text], out=ends[1:])
            blob = np.frombuffer(bytearray(b"".join(text) or b"\0"), dtype=np.uint8)
            kernels.find_words(blob, ends, self.addresses(), self.bits, found)
        return found

    def addresses(self) -> npt.NDArray[np.int64]:
        """Return address and length of blob, offsets and table, int64 [6], for kernels.

        Whoever uses them keeps the dictionary alive.
        """
        if self._addresses is None:
            pairs = [(a.ctypes.data, len(a)) for a in (self.blob, self.offsets, self.table)]
            self._addresses = np.array(pairs, dtype=np.int64).ravel()
        return self._addresses

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the flat arrays that a file holds, by name."""
        return {"blob": self.blob, "offsets": self.offsets, "table": self.table}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Terms:
        """Return the dictionary of the arrays of :meth:`arrays`; they are not copied.

        Raises
        ------
        IntegrityError
            An array is missing or of another type than was written.
        """
        wanted = {"blob": np.uint8, "offsets": np.uint32, "table": np.uint32}
        for name, kind in wanted.items():
            if name not in arrays or arrays[name].dtype != kind or arrays[name].ndim != 1:
                raise IntegrityError(f"the dictionary's array {name!r} is missing or altered")
        if not len(arrays["offsets"]) or int(arrays["offsets"][-1]) != len(arrays["blob"]):
            raise IntegrityError("the dictionary's offsets do not fit its text")
        return cls(arrays["blob"], arrays["offsets"], arrays["table"])

    def nbytes(self) -> int:
        """Return the bytes of the arrays."""
        return self.blob.nbytes + self.offsets.nbytes + self.table.nbytes


def _encode(words: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Return (offsets int64 [V + 1], text uint8) of words."""
    try:
        column = (
            words.column
            if isinstance(words, Vocabulary)
            else pa.array(words, type=pa.large_string())
        )
    except (UnicodeEncodeError, pa.ArrowException, TypeError):
        for i, word in enumerate(words):
            try:
                word.encode()
            except (AttributeError, UnicodeEncodeError):
                raise InputError(
                    "a word must be text that UTF-8 can hold",
                    field="words",
                    value=repr(word),
                    row=i + 1,
                ) from None
        raise
    _, places, text = column.buffers()
    if places is None or not len(column):
        return np.zeros(1, dtype=np.int64), np.empty(0, dtype=np.uint8)
    stop = column.offset + len(column) + 1
    offsets = np.frombuffer(places, dtype=np.int64, count=stop)[column.offset :]
    first, stop = int(offsets[0]), int(offsets[-1])
    if text is None or first == stop:
        return offsets - first, np.empty(0, dtype=np.uint8)
    return offsets - first, np.frombuffer(text, dtype=np.uint8)[first:stop].copy()
