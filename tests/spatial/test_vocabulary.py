"""Words of many places as one column: the same as counting them one by one."""

from __future__ import annotations

import itertools
import pickle

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.errors import InputError
from shoal.spatial.terms import Terms
from shoal.spatial.vocabulary import Vocabulary
from shoal.spatial.words import normalise, read_words

WORD = st.one_of(
    st.sampled_from(["", " ", "A", "a", "ﬁ", "fi", "a\0", "\0", "Straße", "STRASSE", "x\x1f", "é"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
)
ROW = st.one_of(st.none(), st.lists(st.one_of(WORD, st.none()), max_size=6))


def by_hand(rows, analyzer, change=normalise):
    """Return the vocabulary and each row's words with sets, word by word."""
    settle = change if analyzer == "words" else str
    sets = [{settle(w) for w in row or [] if w is not None} - {""} for row in rows]
    return (
        sorted(set().union(*sets), key=str.encode),
        [sorted(one, key=str.encode) for one in sets],
    )


def read(rows, analyzer):
    words, ptr, ids = read_words(rows, len(rows), analyzer)
    assert (ptr.dtype, ids.dtype) == ("int64", "int32")
    return list(words), [[words[i] for i in ids[a:b]] for a, b in itertools.pairwise(ptr)]


@given(
    rows=st.lists(ROW, max_size=8),
    analyzer=st.sampled_from(["words", "exact"]),
    arrow=st.booleans(),
)
def test_columns_are_those_of_reading_word_by_word(rows, analyzer, arrow):
    given = pa.array(rows, pa.large_list(pa.large_string())) if arrow else rows
    assert read(given, analyzer) == by_hand(rows, analyzer)


@given(rows=st.lists(st.lists(WORD, max_size=4), min_size=1, max_size=6), data=st.data())
def test_slices_and_dictionaries_of_arrow_are_read(rows, data):
    start = data.draw(st.integers(0, len(rows) - 1))
    column = pa.array(rows, type=pa.list_(pa.string())).slice(start)
    assert read(column, "words") == by_hand(rows[start:], "words")
    coded = column.cast(pa.list_(pa.dictionary(pa.int32(), pa.string())))
    assert read(coded, "words") == by_hand(rows[start:], "words")


def test_the_comparison_can_fail():
    rows = [["Café", "b"], ["CAFÉ"]]
    assert read(rows, "words") == by_hand(rows, "words")
    assert read(rows, "words") != by_hand(rows, "words", change=str.upper)


def test_what_utf8_cannot_hold_names_its_row():
    with pytest.raises(InputError) as caught:
        read_words([["a", None], ["b\ud800"]], 2, "words")
    assert caught.value.row == 2
    with pytest.raises(InputError, match="texts"):
        read_words(pa.array([[1], [2]]), 2, "words")


@given(words=st.lists(WORD, max_size=6, unique=True))
def test_a_vocabulary_is_a_sequence_of_its_words(words):
    made = Vocabulary(pa.array(words, type=pa.large_string()))
    assert (len(made), list(made), made) == (len(words), words, words)
    assert made == Vocabulary(made.column)
    assert made != [*words, "more"]
    assert made != 3
    assert made[1:] == words[1:]
    assert pickle.loads(pickle.dumps(made)) == words
    assert [made[i] for i in range(len(words))] == words
    assert repr(words) in repr(made)


@given(words=st.sets(WORD), extra=st.integers(0, 2))
def test_a_dictionary_of_a_vocabulary_is_that_of_the_list(words, extra):
    ordered = sorted(words, key=str.encode)
    column = pa.array(["~"] * extra + ordered, type=pa.large_string()).slice(extra)
    one, other = Terms.build(Vocabulary(column)).arrays(), Terms.build(ordered).arrays()
    assert {k: (v.dtype, v.tolist()) for k, v in one.items()} == {
        k: (v.dtype, v.tolist()) for k, v in other.items()
    }
