"""The words of many places as one column: no Python text per word before one is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import pyarrow as pa

__all__ = ["Vocabulary"]


class Vocabulary(Sequence[str]):
    """A sequence of words over an Arrow column; equal to any sequence of the same words.

    Building an index of places with half a million words needs their bytes, but
    hardly ever the words as Python objects, which take longer to make than the
    index's own dictionary.

    Parameters
    ----------
    column : pyarrow.LargeStringArray
        The words, none of them null.
    """

    __slots__ = ("_texts", "column")

    def __init__(self, column: pa.LargeStringArray) -> None:
        self.column = column
        self._texts: list[str] | None = None

    def texts(self) -> list[str]:
        """Return the words as a list, which is kept; not to be changed."""
        if self._texts is None:
            self._texts = self.column.to_pylist()
        return self._texts

    def __len__(self) -> int:
        """Return the number of words."""
        return len(self.column)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Return a word, or some as a list."""
        return self.texts()[index]

    def __iter__(self) -> Iterator[str]:
        """Return an iterator over the words."""
        return iter(self.texts())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Vocabulary):
            return bool(self.column.equals(other.column))
        if isinstance(other, Sequence) and not isinstance(other, str):
            return len(self) == len(other) and self.texts() == list(other)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as a list's

    def __repr__(self) -> str:
        return f"Vocabulary({self.texts()!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (Vocabulary, (self.column,))
