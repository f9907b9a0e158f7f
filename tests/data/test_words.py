"""Words of a text in any script."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.data.words import fold, tokenize


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("Pizza & Steak, 24h", ["pizza", "steak", "24h"]),
        ("Café CAFE\u0301 ｃａｆé", ["café", "café", "café"]),
        ("fast_food ice-cream", ["fast", "food", "ice", "cream"]),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("हिन्दी भोजन", ["हिन्दी", "भोजन"]),
        ("ภาษาไทย", ["ภาษาไทย"]),
        ("می\u200cخواهم", ["میخواهم"]),
        ("東京 ラーメン", ["東京", "ラーメン"]),
        ("\u00b4a 1\ufe0f\u20e3", ["a", "1"]),
    ],
)
def test_words_of_known_texts(text: str, words: list[str]) -> None:
    assert tokenize(text) == words


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40))
def test_words_are_fixed_points(text: str) -> None:
    for word in tokenize(text):
        assert tokenize(word) == [word]
        assert fold(word) == word
        assert unicodedata.normalize("NFKC", word).casefold() == word


def test_every_code_point_is_stable() -> None:
    for code in range(0x20000):
        if not 0xD800 <= code < 0xE000:
            for word in tokenize(f"a{chr(code)}b"):
                assert unicodedata.normalize("NFKC", word).casefold() == word, hex(code)


def test_negative_control_plain_word_characters_would_cut_syllables() -> None:
    import re

    assert re.findall(r"\w+", "हिन्दी") != tokenize("हिन्दी")
