"""Raw columns: checked, and refused with the row."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from shoal.core.errors import InputError
from shoal.spatial import AttributeSpec
from shoal.spatial.ingest import check_positions, make_columns, make_specs, read_values
from shoal.spatial.words import read_words

KEYS = np.arange(3, dtype=np.int64)


@pytest.mark.parametrize(
    ("lon", "lat", "row", "message"),
    [
        ([0, math.nan], [0, 0], 2, "finite"),
        ([0, 0], [0, math.inf], 2, "finite"),
        ([0, 181], [0, 0], 2, "out of range"),
        ([0, 1, 2], [0, 0, -90.1], 3, "out of range"),
        ([0, None], [0, 0], 2, "finite"),
        ([0, "east"], [0, 0], 2, "not a number"),
    ],
    ids=range(6),
)
def test_a_wrong_position_names_its_row(lon, lat, row, message):
    with pytest.raises(InputError, match=message) as caught:
        check_positions(lon, lat)
    assert caught.value.row == row


def test_swapped_columns_are_said():
    with pytest.raises(InputError) as caught:
        check_positions([48.85, 35.7], [102.35, 139.7])
    assert "swapped" in caught.value.hint


def test_lengths_must_agree():
    with pytest.raises(InputError):
        check_positions([0], [0, 1])
    with pytest.raises(InputError, match="2 values for 3"):
        read_values({"a": [1, 2]}, make_specs({"a": [1, 2]}), 3)
    with pytest.raises(InputError, match="entries of keywords"):
        read_words([["a"]], 3, "words")


def test_columns_of_every_library_are_read():
    for lon in ([1.0, 2.0], (1, 2), np.array([1, 2]), pl.Series([1.0, 2.0]), pa.array([1.0, 2.0])):
        x, _ = check_positions(lon, [0, 0])
        assert x.tolist() == [1, 2]
        assert x.dtype == np.float64


def test_ranges_come_from_the_data_unless_given():
    given = AttributeSpec(name="b", low=0, high=10, missing="neutral")
    specs = make_specs({"a": [3, math.nan, 7], "b": [1, 2, 3], "c": [5, 5, 5]}, [given])
    assert (specs[0].low, specs[0].high) == (3, 7)
    assert specs[1] is given
    assert specs[2].high > specs[2].low == 5
    with pytest.raises(InputError, match="not there"):
        make_specs({"a": [1]}, [given])
    with pytest.raises(InputError):
        AttributeSpec(name="x", low=1, high=1)


def test_attributes_are_checked():
    specs = make_specs({"a": [1, 2, 3]})
    assert np.isnan(read_values(None, specs, 2)).all()
    with pytest.raises(InputError, match="no such attribute"):
        read_values({"b": [1, 2, 3]}, specs, 3)
    with pytest.raises(InputError, match="finite") as caught:
        read_values({"a": [1, -math.inf, 3]}, specs, 3)
    assert caught.value.row == 2


def test_words_are_normalised_sorted_and_unique_in_a_place():
    words, ptr, ids = read_words(
        ["Straße STRASSE, Café!", None, ["New York", "new york ", "", "ﬁsh"]], 3, "words"
    )
    assert words == sorted(words, key=str.encode)
    rows = [[words[i] for i in ids[ptr[r] : ptr[r + 1]]] for r in range(3)]
    assert [sorted(row) for row in rows] == [["café", "strasse"], [], ["fish", "new york"]]


def test_exact_words_are_left_alone():
    words, _, _ = read_words([["A b", "a b"], ["A b"], []], 3, "exact")
    assert words == ["A b", "a b"]


@pytest.mark.parametrize(
    "keywords",
    [pa.array([["a", "b"], None, ["b"]]), [("a", "b"), (), ["b"]], [["b", "a"], [], "b"]],
)
def test_every_form_of_keywords_is_read(keywords):
    words, ptr, ids = read_words(keywords, 3, "words")
    assert words == ["a", "b"]
    assert ptr.tolist() == [0, 2, 2, 3]
    assert ids.tolist() == [0, 1, 1]


def test_a_keyword_that_is_no_text_names_its_row():
    with pytest.raises(InputError) as caught:
        read_words([["a"], ["b", 3], []], 3, "words")
    assert caught.value.row == 2
    with pytest.raises(InputError, match="not one text"):
        read_words("pizza", 3, "words")


def test_make_columns_puts_it_together():
    columns = make_columns(
        [1, 2, 3],
        [4, 5, 6],
        keys=KEYS,
        keywords=["a b", "b", ""],
        attributes={"price": [1, None, 3]},
        specs=make_specs({"price": [1, None, 3]}),
    )
    assert len(columns) == 3
    assert columns.values[0, 0] == 1
    assert math.isnan(columns.values[0, 1])
    with pytest.raises(InputError, match="ids for"):
        make_columns([1], [1], keys=KEYS)
