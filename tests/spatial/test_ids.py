"""External ids of every kind, there and back."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.errors import InputError, NotFoundError
from shoal.spatial.ids import Ids
from shoal.spatial.labels import Labels


@given(
    st.lists(st.text(min_size=1, max_size=5)),
    st.lists(st.text(min_size=1, max_size=5)),
    st.lists(st.text(min_size=1, max_size=5), max_size=4),
)
def test_texts_are_numbered_in_the_order_of_their_first_place(first, later, asked):
    ids, keys = Ids.of(first if first else ["x"])
    first = first or ["x"]
    order = list(dict.fromkeys(first))
    assert [order[key] for key in keys] == first
    added = ids.add(later)
    order += [text for text in dict.fromkeys(later) if text not in order]
    assert [order[key] for key in added] == later
    found = ids.find(asked)
    assert found.tolist() == [order.index(text) if text in order else -1 for text in asked]
    again = Ids.from_arrays("text", ids.arrays())
    assert again.names(np.arange(len(order))) == order
    assert again.find(asked).tolist() == found.tolist()
    assert again.add(["something new"])[0] == (
        order.index("something new") if "something new" in order else len(order)
    )


@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1),
    st.lists(st.integers(-(2**63), 2**63 - 1)),
)
def test_numbers_are_keys_or_numbered(first, later):
    plain, keys = Ids.of(first)
    assert keys.tolist() == first
    assert plain.names(plain.find(first)) == first
    dense, keys = Ids.of(np.array(first), dense=True)
    order = list(dict.fromkeys(first))
    assert [order[key] for key in keys] == first
    dense.add(later)
    order += [number for number in dict.fromkeys(later) if number not in order]
    again = Ids.from_arrays("int-numbered", dense.arrays())
    for ids in (dense, again):
        assert len(ids) == len(order)
        assert ids.names(ids.find(order)) == order


def test_a_journal_gives_texts_their_numbers_again():
    ids, _ = Ids.of(["a"])
    ids.put(["c", "b", "a"], [2, 4, 0])
    ids.put(["c"], [2])
    assert ids.find(["a", "b", "c", "z"]).tolist() == [0, 4, 2, -1]
    again = Ids.from_arrays("text", ids.arrays())
    for each in (ids, again):
        assert each.find(["a", "b", "c", "z"]).tolist() == [0, 4, 2, -1]
        assert each.names(np.array([0, 2, 4])) == ["a", "c", "b"]
        assert each.add(["new"]).tolist() == [5]


def test_no_ids_are_row_numbers():
    ids, keys = Ids.of(None, 3)
    assert keys.tolist() == [0, 1, 2]
    assert ids.names(keys) == [0, 1, 2]


def test_wrong_ids_are_refused():
    too_large = np.array([2**63], dtype=np.uint64)
    for wrong in (["a", 1], ["a", ""], [1.5], [None], [True, 2], [2**63], too_large):
        with pytest.raises(InputError):
            Ids.of(wrong)
    ids, _ = Ids.of(["a"])
    with pytest.raises(InputError, match="texts"):
        ids.add([3])
    with pytest.raises(NotFoundError, match="no such place"):
        ids.get("z", "place")
    numbers, _ = Ids.of([1])
    with pytest.raises(InputError, match="whole numbers"):
        numbers.find(["a"])


def test_labels_there_and_back():
    keys = np.array([7, 3, 5])
    labels = Labels.of(keys, ["sieben", None, "fünf"])
    assert labels.get(np.array([3, 5, 7, 9])) == [None, "fünf", "sieben", None]
    labels.put(np.array([3, 9]), ["drei", "neun"])
    labels.put(np.array([5]), [None])
    assert labels.get(np.array([3, 5, 7, 9])) == ["drei", None, "sieben", "neun"]
    again = Labels.from_arrays(labels.arrays())
    assert again.get(np.array([3, 5, 7, 9])) == ["drei", None, "sieben", "neun"]
    assert not Labels()
    with pytest.raises(InputError, match="labels for"):
        Labels.of(keys, ["one"])
    with pytest.raises(InputError) as caught:
        Labels.of(keys, ["a", 3, "c"])
    assert caught.value.row == 2


@pytest.mark.parametrize(
    "given",
    [
        ("b", "a", "b"),
        np.array(["b", "a", "b"]),
        np.array(["b", "a", "b"], dtype=object),
        pl.Series(["b", "a", "b"]),
        pa.array(["b", "a", "b"]),
        pa.chunked_array([["b"], ["a", "b"]]),
        pa.array(["b", "a", "b"]).dictionary_encode(),
    ],
    ids=range(7),
)
def test_texts_come_in_every_form(given):
    ids, keys = Ids.of(given)
    assert (ids.kind, keys.tolist(), keys.dtype) == ("text", [0, 1, 0], np.int64)
    assert ids.names(np.array([0, 1])) == ["b", "a"]


@pytest.mark.parametrize(
    ("given", "row"),
    [
        (["a", ""], 2),
        (["a", None], 2),
        (["a", b"b"], 2),
        (["a", 3], 2),
        (["a", "b\ud800"], 2),
        (pa.array(["a", None]), 2),
    ],
    ids=range(6),
)
def test_a_text_that_is_none_names_its_row(given, row):
    with pytest.raises(InputError) as caught:
        Ids.of(given)
    assert caught.value.row == row
