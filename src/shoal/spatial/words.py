"""Keywords: how they are normalised, and how the words of many places become columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal.core.errors import InputError
from shoal.data.words import fold, tokenize

__all__ = [
    "MAX_QUERY_WORDS",
    "Analyzer",
    "WordColumns",
    "analyze_each",
    "analyze_query",
    "normalise",
    "read_words",
]

#: ``words``: text is split into words, words are NFKC-normalised and case-folded;
#: ``exact``: every keyword is taken as it is, text is one keyword.
Analyzer: TypeAlias = Literal["words", "exact"]

#: Most distinct words of one query.
MAX_QUERY_WORDS = 64

#: (vocabulary sorted by UTF-8 bytes, ptr int64 [n + 1], ids int32 ascending in each row)
WordColumns: TypeAlias = tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.int32]]


def normalise(word: str) -> str:
    """Return a keyword in the form in which it is stored and looked up."""
    return fold(word).strip()


def analyze_query(keywords: str | Sequence[str] | None, analyzer: Analyzer) -> tuple[str, ...]:
    """Return a query's words, each once, in the order given.

    Parameters
    ----------
    keywords : str or sequence of str
        A text (split by the analyzer) or keywords (normalised, not split).
    analyzer : {"words", "exact"}
        The index's analyzer.

    Raises
    ------
    InputError
        A keyword is no text, or there are more than 64.
    """
    if keywords is None:
        return ()
    if isinstance(keywords, str):
        found: Iterable[str] = tokenize(keywords) if analyzer == "words" else (keywords,)
    else:
        found = analyze_each(keywords, analyzer)
    words = tuple(dict.fromkeys(word for word in found if word))
    if len(words) > MAX_QUERY_WORDS:
        raise InputError(
            f"a query has at most {MAX_QUERY_WORDS} different keywords",
            field="keywords",
            value=len(words),
        )
    return words


def analyze_each(keywords: Sequence[str], analyzer: Analyzer) -> Sequence[str]:
    """Return keywords in the form in which they are stored, one for one.

    Raises
    ------
    InputError
        A keyword is no text.
    """
    for word in keywords:
        if not isinstance(word, str):
            raise InputError("a keyword must be text", field="keywords", value=word)
    return keywords if analyzer == "exact" else list(map(normalise, keywords))


def read_words(keywords: Any, n: int, analyzer: Analyzer) -> WordColumns:
    """Return the words of ``n`` places as a vocabulary and CSR columns.

    Parameters
    ----------
    keywords : sequence of str, sequence of sequences, pyarrow list array, or None
        One entry a place: a text, which the analyzer splits, or its keywords;
        None for a place without any.
    n : int
        Places.
    analyzer : {"words", "exact"}
        How they are read.

    Raises
    ------
    InputError
        The number of entries is not ``n``, or an entry is neither.
    """
    if keywords is None:
        return [], np.zeros(n + 1, dtype=np.int64), np.empty(0, dtype=np.int32)
    entries = _list_array(keywords, analyzer)
    if len(entries) != n:
        raise InputError(
            f"there are {len(entries)} entries of keywords for {n} places", field="keywords"
        )
    lengths = entries.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = entries.flatten()
    if isinstance(flat, pa.ChunkedArray):
        flat = flat.combine_chunks()
    encoded = flat.dictionary_encode()
    raw: list[str] = encoded.dictionary.to_pylist()
    change: Callable[[str], str] = normalise if analyzer == "words" else str
    changed = [change(word) for word in raw]
    # Python's order of code points is the order of the UTF-8 bytes.
    words = sorted(set(changed) - {""})
    number = {word: i for i, word in enumerate(words)}
    new_id = np.array([number.get(word, -1) for word in changed], dtype=np.int64)
    indices = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    ids = np.where(indices >= 0, new_id[indices] if len(new_id) else -1, -1)
    rows = np.repeat(np.arange(n, dtype=np.int64), lengths)
    kept = ids >= 0
    pairs = np.sort((rows[kept] << 32) | ids[kept])
    if len(pairs):
        pairs = pairs[np.concatenate([[True], pairs[1:] != pairs[:-1]])]
    ptr = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(np.bincount(pairs >> 32, minlength=n), out=ptr[1:])
    return words, ptr, (pairs & 0xFFFFFFFF).astype(np.int32)


def _list_array(keywords: Any, analyzer: Analyzer) -> Any:
    if isinstance(keywords, pa.ChunkedArray):
        keywords = keywords.combine_chunks()
    if isinstance(keywords, pa.Array):
        if pa.types.is_list(keywords.type) or pa.types.is_large_list(keywords.type):
            return keywords
        keywords = keywords.to_pylist()
    if isinstance(keywords, str):
        raise InputError("keywords need one entry a place, not one text", field="keywords")
    entries = list(keywords)
    if any(isinstance(entry, str) for entry in entries):
        split: Callable[[str], list[str]] = (
            (lambda text: list(tokenize(text))) if analyzer == "words" else (lambda text: [text])
        )
        entries = [split(entry) if isinstance(entry, str) else entry for entry in entries]
    try:
        return pa.array(entries, type=pa.large_list(pa.large_string()))
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError):
        row = next(i for i, entry in enumerate(entries) if not _is_words(entry))
        raise InputError(
            "keywords are a text or a list of texts",
            field="keywords",
            value=entries[row],
            row=row + 1,
        ) from None


def _is_words(entry: object) -> bool:
    return entry is None or (
        isinstance(entry, Iterable) and all(isinstance(word, str) for word in entry)
    )
