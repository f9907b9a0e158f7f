"""Keywords: how they are normalised, and how the words of many places become columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shoal.core.errors import InputError
from shoal.data.words import fold, tokenize
from shoal.spatial.vocabulary import Vocabulary

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
WordColumns: TypeAlias = tuple[Vocabulary, npt.NDArray[np.int64], npt.NDArray[np.int32]]

#: Bytes that a normalised word may have anywhere: ASCII, no capital, nothing that is stripped.
_SETTLED = np.zeros(256, dtype=np.bool_)
_SETTLED[[i for i in range(128) if chr(i).lower() == chr(i) and not chr(i).isspace()]] = True


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
        nothing = Vocabulary(pa.array([], type=pa.large_string()))
        return nothing, np.zeros(n + 1, dtype=np.int64), np.empty(0, dtype=np.int32)
    entries = _list_array(keywords, analyzer)
    if len(entries) != n:
        raise InputError(
            f"there are {len(entries)} entries of keywords for {n} places", field="keywords"
        )
    lengths = entries.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    words, ids = _numbered(_text_column(entries.flatten()), analyzer)
    ptr = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(lengths, dtype=np.int64, out=ptr[1:])
    # Row and word in one number: sorting brings a row's words into order.
    pairs = np.repeat(np.arange(n, dtype=np.int64) << 32, lengths)
    used = ids >= 0
    kept = bool(used.all())
    if kept:
        pairs |= ids
    else:
        pairs = pairs[used] | ids[used]
    pairs.sort(kind="stable")  # rows are in order already, which this sort makes use of
    if len(pairs):
        first = np.concatenate([[True], pairs[1:] != pairs[:-1]])
        if not first.all():
            kept = False
            pairs = pairs[first]
    if not kept:
        np.cumsum(np.bincount(pairs >> 32, minlength=n), out=ptr[1:])
    return words, ptr, (pairs & 0xFFFFFFFF).astype(np.int32)


def _numbered(flat: Any, analyzer: Analyzer) -> tuple[Vocabulary, npt.NDArray[np.int32]]:
    """Return the sorted vocabulary of a column of texts, and each text's number in it, or -1.

    Each different text is normalised once.
    """
    encoded = flat.dictionary_encode()
    ids = encoded.indices
    ids = (ids.fill_null(-1) if ids.null_count else ids).to_numpy(zero_copy_only=False)
    forms = encoded.dictionary if analyzer == "exact" else _normalised(encoded.dictionary)
    number = None
    if forms is not encoded.dictionary:
        merged = forms.dictionary_encode()
        forms, number = merged.dictionary, merged.indices.to_numpy()
    order = pc.sort_indices(forms)  # by bytes
    words = forms.take(order)
    empty = int(len(words) > 0 and words[0].as_py() == "")
    # The last entry is for the index -1 of no text.
    rank = np.full(len(words) + 1, -1, dtype=np.int32)
    rank[order.to_numpy()] = np.arange(len(words), dtype=np.int32) - empty
    if number is not None:
        rank = rank[np.append(number, -1)]
    return Vocabulary(words.slice(empty)), rank[ids]


def _normalised(texts: Any) -> Any:
    """Return a column of texts with each normalised; the column itself if none changes."""
    _, places, content = texts.buffers()
    if not len(texts) or content is None:
        return texts
    stop = texts.offset + len(texts) + 1
    ends = np.frombuffer(places, dtype=np.int64, count=stop)[texts.offset :]
    unsettled = np.zeros(int(ends[-1]) + 1, dtype=np.int64)
    np.cumsum(~_SETTLED[np.frombuffer(content, dtype=np.uint8)[: ends[-1]]], out=unsettled[1:])
    doubtful = unsettled[ends[1:]] > unsettled[ends[:-1]]
    if not doubtful.any():
        return texts
    before = texts.filter(pa.array(doubtful))
    after = pa.array([normalise(text) for text in before.to_pylist()], type=pa.large_string())
    if after.equals(before):
        return texts
    return pc.replace_with_mask(texts, pa.array(doubtful), after)


def _text_column(flat: Any) -> Any:
    if isinstance(flat, pa.ChunkedArray):
        flat = flat.combine_chunks()
    kind = flat.type.value_type if pa.types.is_dictionary(flat.type) else flat.type
    if not (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    ):
        raise InputError("keywords are texts", field="keywords", value=str(kind))
    return flat if flat.type == pa.large_string() else flat.cast(pa.large_string())


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
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, UnicodeEncodeError):
        row = next(i for i, entry in enumerate(entries) if not _is_words(entry))
        raise InputError(
            "keywords are a text or a list of texts",
            field="keywords",
            value=entries[row],
            row=row + 1,
        ) from None


def _is_words(entry: object) -> bool:
    return entry is None or (isinstance(entry, Iterable) and all(_is_word(word) for word in entry))


def _is_word(word: object) -> bool:
    """Say whether something is a text that UTF-8 can hold, or None."""
    if word is None:
        return True
    try:
        return isinstance(word, str) and word.encode() is not None
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
