"""The dictionary against a Python dict."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import InputError, IntegrityError, NotFoundError
from shoal.spatial.terms import Terms

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=6)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.sets(TEXT, max_size=60), st.lists(TEXT, max_size=20))
def test_ids_are_ranks_and_unknown_words_are_none(words, others):
    ordered = sorted(words, key=lambda word: word.encode())
    terms = Terms.build(ordered)
    assert len(terms) == len(ordered)
    assert terms.words() == ordered
    assert [terms.word(i) for i in range(len(terms))] == ordered
    number = {word: i for i, word in enumerate(ordered)}
    asked = [*ordered, *others]
    assert terms.ids(asked).tolist() == [number.get(word, -1) for word in asked]
    again = Terms.from_arrays(terms.arrays())
    assert again.ids(asked).tolist() == terms.ids(asked).tolist()


def test_many_words():
    words = sorted(f"w{i}" for i in range(5000))
    terms = Terms.build(words)
    assert terms.ids(words).tolist() == list(range(5000))
    assert (terms.ids([f"v{i}" for i in range(5000)]) == -1).all()
    assert terms.nbytes() < 30 * 5000


def test_mapped_arrays_do():
    terms = Terms.build(["a", "b"])
    arrays = terms.arrays()
    for array in arrays.values():
        array.flags.writeable = False
    assert Terms.from_arrays(arrays).ids(["b", "c"]).tolist() == [1, -1]


@pytest.mark.parametrize("words", [["b", "a"], ["a", "a"], ["ab", "a"], ["é", "z"]])
def test_words_out_of_order_are_refused(words):
    with pytest.raises(InputError, match="sorted"):
        Terms.build(words)


@pytest.mark.parametrize("words", [["a", "\ud800"], ["a", 3]])
def test_what_is_no_text_is_refused(words):
    with pytest.raises(InputError) as error:
        Terms.build(words)
    assert error.value.row == 2


def test_a_lone_surrogate_is_no_word():
    assert Terms.build(["a"]).ids(["\ud800"]).tolist() == [-1]


def test_no_such_id():
    with pytest.raises(NotFoundError):
        Terms.build(["a"]).word(1)


def test_altered_arrays_are_refused():
    arrays = Terms.build(["a", "b"]).arrays()
    with pytest.raises(IntegrityError):
        Terms.from_arrays(arrays | {"blob": arrays["blob"][:1]})
    with pytest.raises(IntegrityError):
        Terms.from_arrays({"blob": arrays["blob"]})
    with pytest.raises(IntegrityError):
        Terms.from_arrays(arrays | {"table": arrays["table"].astype(np.int64)})
