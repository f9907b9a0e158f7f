"""Words of a few places for the memtable, which numbers words itself.

Finding the different words of a hundred places, sorting and numbering them takes longer
than all the rest of a write. So here every word of every place is given by itself.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["read_few_words"]

#: Places from which on columns are faster.
_MOST_ROWS = 2048
#: White space of ASCII, but for the end of a line.
_SPACES = "\t\v\f\r\x1c\x1d\x1e\x1f "

_Few = tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.int32]]


def read_few_words(keywords: Any, n: int, *, exact: bool) -> _Few | None:
    """Return (words, ptr int64 [n + 1], ids int32) of a few places, or None.

    The words are not sorted and occur as often as they are given, also in one
    place; ``Memtable.append`` takes that, a layout does not.

    None is for whatever is not plain lists of words in their normal form: it has to
    be split, normalised or refused, and ``words.read_words`` knows how.

    Parameters
    ----------
    keywords : sequence of sequences of str
        Keywords of each place.
    n : int
        Places.
    exact : bool
        Whether keywords are stored as they are.
    """
    if not isinstance(keywords, (list, tuple)) or not len(keywords) == n <= _MOST_ROWS:
        return None
    if not {list, tuple}.issuperset(map(type, keywords)):
        return None
    lengths = [len(entry) for entry in keywords]
    flat: list[str] = list(itertools.chain.from_iterable(keywords))
    if not {str}.issuperset(map(type, flat)):  # NumPy's are not what a journal takes
        return None
    try:
        text = "\n".join(flat)
        text.encode()
    except UnicodeEncodeError:
        return None
    if "" in flat or not (exact or _is_normal(text, len(flat))):
        return None
    ptr = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(lengths, out=ptr[1:])
    return flat, ptr, np.arange(len(flat), dtype=np.int32)


def _is_normal(text: str, lines: int) -> bool:
    """Say whether words, one a line, are ASCII without capitals and without white space."""
    if not text.isascii() or text != text.lower() or text.count("\n") != max(0, lines - 1):
        return False
    return not any(space in text for space in _SPACES)
