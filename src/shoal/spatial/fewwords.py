"""Words of a few places: read without a column, whose making would take longer than they do."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MOST_ROWS", "read_few_words"]

#: Places from which on columns are faster.
MOST_ROWS = 2048

_Few = tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.int32]]


def read_few_words(keywords: Any, n: int, *, exact: bool) -> _Few | None:
    """Return the words of a few places as ``words.read_words`` does, or None.

    None is for whatever is not plain lists of words in their normal form: it has to
    be split, normalised or refused, and ``read_words`` knows how.

    Parameters
    ----------
    keywords : sequence of sequences of str
        Keywords of each place.
    n : int
        Places.
    exact : bool
        Whether keywords are stored as they are.
    """
    if not isinstance(keywords, (list, tuple)) or not len(keywords) == n <= MOST_ROWS:
        return None
    if not all(map(_is_list, map(type, keywords))):
        return None
    lengths = [len(entry) for entry in keywords]
    flat: Sequence[Any] = list(itertools.chain.from_iterable(keywords))
    try:
        number = dict.fromkeys(flat)
        text = "\n".join(number)
        text.encode()
    except (TypeError, UnicodeEncodeError):
        return None
    if "" in number or not (exact or _is_normal(text, len(number))):
        return None
    words = sorted(number)  # code points are in the order of their UTF-8 bytes
    for i, word in enumerate(words):
        number[word] = i
    ids = np.fromiter(map(number.__getitem__, flat), dtype=np.int64, count=len(flat))
    ptr = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(lengths, out=ptr[1:])
    # Row and word in one number: sorting brings a row's words into order.
    pairs = ids + np.repeat(np.arange(n, dtype=np.int64) << 32, lengths)
    pairs.sort()
    again = pairs[1:] == pairs[:-1]
    if again.any():
        pairs = pairs[np.append(True, ~again)]
        np.cumsum(np.bincount(pairs >> 32, minlength=n), out=ptr[1:])
    return words, ptr, (pairs & 0xFFFFFFFF).astype(np.int32)


def _is_list(kind: type) -> bool:
    return kind is list or kind is tuple


def _is_normal(text: str, lines: int) -> bool:
    """Say whether words, one a line, are ASCII without capitals and without any white space."""
    return text.isascii() and text == text.lower() and len(text.split()) == lines
