"""Words of a few places: what the memtable makes of them is what columns would have given."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from live_bench import rows_of

from shoal.core.errors import InputError
from shoal.spatial.columns import PlaceColumns
from shoal.spatial.fewwords import read_few_words
from shoal.spatial.index import SpatialKeywordIndex
from shoal.spatial.memtable import Memtable
from shoal.spatial.words import read_words


def kept(words: object, ptr: np.ndarray, ids: np.ndarray) -> dict[object, object]:
    n = len(ptr) - 1
    table = Memtable((), 64)
    added = table.append(
        PlaceColumns(
            keys=np.arange(n, dtype=np.int64),
            lon=np.zeros(n),
            lat=np.zeros(n),
            words=words,  # type: ignore[arg-type]
            word_ptr=ptr,
            word_ids=ids,
            values=np.zeros((0, n)),
        )
    )
    assert added == table.n_words
    return rows_of(table.view().columns())


WORD = st.sampled_from(["bar", "café", "Bar", " bar", "ﬁne", "a b", "x", "ü", "\x1f", "0"])


@settings(max_examples=120, deadline=None, derandomize=True)
@given(rows=st.lists(st.lists(WORD, max_size=5), min_size=1, max_size=8), exact=st.booleans())
def test_it_is_what_columns_give(rows: list[list[str]], exact: bool) -> None:
    few = read_few_words(rows, len(rows), exact=exact)
    if few is None:
        assert not exact  # only what has to be normalised is left to the columns
        return
    words, ptr, ids = read_words(rows, len(rows), "exact" if exact else "words")
    assert kept(*few) == kept(words, ptr, ids)


@pytest.mark.parametrize(
    "keywords",
    [
        None,
        ["a text"],
        [["a"], ["b"]],
        [[1]],
        [[None]],
        [[""]],
        [["\ud800"]],
        [[np.str_("a")]],
        [None],
        [{"a": 1}],
    ],
    ids=repr,
)
def test_everything_else_is_left_to_the_columns(keywords: object) -> None:
    assert read_few_words(keywords, 1, exact=True) is None


def test_a_word_twice_in_a_place_counts_once() -> None:
    with SpatialKeywordIndex.build([0.0], [0.0], keywords=[["x"]], ids=[9]) as index:
        index.upsert([1.0, 2.0], [1.0, 2.0], ids=[1, 2], keywords=[["a", "a", "b"], ["b"]])
        snapshot = index.snapshot()
        assert snapshot.document_frequency(["a", "b", "x"]).tolist() == [1, 2, 1]
        assert snapshot.n_words == 4
        assert list(index.query((0.0, 0.0), ["a", "b"]).ids) == [1]
        with pytest.raises(InputError, match="keywords"):
            index.upsert([1.0], [1.0], ids=[3], keywords=[["a", 5]])
        index.compact()
        assert index.snapshot().document_frequency(["a", "b", "x"]).tolist() == [1, 2, 1]


def test_texts_of_numpy_reach_the_journal(tmp_path: Path) -> None:
    SpatialKeywordIndex.build([0.0], [0.0], keywords=[["x"]], ids=[9]).save(tmp_path)
    with SpatialKeywordIndex.open(tmp_path) as index:
        index.upsert([1.0], [1.0], ids=[1], keywords=[list(np.array(["a", "b"]))])
    with SpatialKeywordIndex.open(tmp_path) as index:
        assert list(index.query((0.0, 0.0), ["a", "b"]).ids) == [1]
