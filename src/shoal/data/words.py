"""The default analyzer: from a text to its words.

Text is normalised (NFKC) and case-folded, so that ``Café``, ``CAFÉ`` and
``ｃａｆé`` are one word; then every run of letters, digits and their combining
marks is a word, in any script. Everything else separates, also ``_``, ``-``
and apostrophes (OpenStreetMap writes ``fast_food``). There is no stemming, no
list of stop words and no segmentation of scripts that write without spaces.
"""

from __future__ import annotations

import functools
import re
import sys
import unicodedata

__all__ = ["fold", "tokenize"]

_ASCII_WORD = re.compile(r"[0-9a-z]+")
# Shown as nothing, or only choosing how the neighbour is drawn: soft hyphen,
# zero-width (non-)joiner, word joiner, byte order mark, variation selectors.
_INVISIBLE = re.compile("[\u00ad\u200c\u200d\u2060\ufeff\ufe00-\ufe0f]")


@functools.cache
def _word() -> re.Pattern[str]:
    r"""Return the pattern of a word: a letter or digit, then those and combining marks.

    Python's ``\w`` leaves out the vowel signs of Devanagari, Thai and others,
    which would cut words of those scripts into syllables.
    """
    marks = []
    start = None
    for code in range(0x300, sys.maxunicode + 2):
        is_mark = code <= sys.maxunicode and unicodedata.category(chr(code)) in {"Mn", "Mc"}
        if is_mark and start is None:
            start = code
        elif not is_mark and start is not None:
            marks.append(f"\\U{start:08x}-\\U{code - 1:08x}")
            start = None
        if code == 0x20000:
            break  # ideographs and private use above; no marks but variation selectors
    return re.compile(rf"[^\W_](?:[^\W_]|[{''.join(marks)}])*")


def fold(text: str) -> str:
    """Return a text normalised (NFKC) and case-folded, a fixed point of both.

    One pass of each is not always one: folding can leave a sequence that
    normalisation composes again.
    """
    if text.isascii():
        return text.lower()
    text = _INVISIBLE.sub("", text)
    for _ in range(4):
        text = unicodedata.normalize("NFKC", text).casefold()
        if unicodedata.is_normalized("NFKC", text):
            break
    return text


def tokenize(text: str) -> list[str]:
    """Return the words of a text in their order, repeated ones too.

    Parameters
    ----------
    text : str
        Any text; ``""`` has no words.

    Returns
    -------
    list of str
        NFKC-normalised and case-folded words.
    """
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    return _word().findall(fold(text))
