"""A query prepared for the packed layout: a call is one kernel that is handed an address."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError
from shoal.spatial import _block_kernels as fast
from shoal.spatial import _kernels as k
from shoal.spatial.packed_query import encode_query
from shoal.spatial.query import MATCH_ANY, MATCH_EVERYTHING, TEXT_BM25, Answers, QueryPlan

if TYPE_CHECKING:
    from shoal.spatial.packed import PackedLayout

__all__ = ["PackedSearcher", "is_plain", "make_state"]

_Floats: TypeAlias = npt.NDArray[np.float64]
_Found: TypeAlias = tuple[_Floats, _Floats, npt.NDArray[np.int64], npt.NDArray[np.int64]]


def is_plain(plan: QueryPlan) -> bool:
    """Say whether the fast searches can answer a plan, if it has words and nothing is dead."""
    return (
        plan.has_point
        and plan.filters is None
        and plan.region is None
        and not plan.without
        and plan.text_kind != TEXT_BM25
    )


def make_state(
    layout: PackedLayout,
    integers: npt.NDArray[np.int64],
    reals: npt.NDArray[np.float64],
    answers: Answers,
    stats: npt.NDArray[np.int64],
    *,
    plain: bool,
) -> npt.NDArray[np.int64]:
    """Return what the kernel reads a call from; whoever uses it keeps the arrays."""
    state = np.zeros(fast.STATE_SIZE, dtype=np.int64)
    state[fast.INTEGERS_LENGTH] = len(integers)
    state[fast.REALS_LENGTH] = len(reals)
    state[fast.PLAIN] = plain
    state[fast.COUNT] = answers.count
    places = {
        fast.LAYOUT: layout.addresses(),
        fast.INTEGERS_AT: integers,
        fast.REALS_AT: reals,
        fast.SCORES_AT: answers.scores,
        fast.KMS_AT: answers.kms,
        fast.KEYS_AT: answers.keys,
        fast.ROWS_AT: answers.rows,
        fast.STATS_AT: stats,
    }
    for place, array in places.items():
        state[place] = array.ctypes.data
    return state


class PackedSearcher:
    """A prepared query of one layout: point and words are given with each call.

    The words' weights are their idf in this layout alone, as
    ``ln(1 + (n - df + 0.5) / (df + 0.5))`` scaled to the sum 1. Unknown words
    empty the answer of ``MATCH_ALL`` and are ignored by ``MATCH_ANY``; without
    words every place matches.

    Calls reuse their memory: one thread at a time. :meth:`many` may run in any
    number of threads.

    Parameters
    ----------
    layout : PackedLayout
    plan : QueryPlan
        With ``match`` as it is for calls with words; its own words, their
        weights and its point are not used.

    Attributes
    ----------
    answers : Answers
        The answers of the latest call.

    Raises
    ------
    InputError
        The plan weighs time or social, or does not fit the layout.
    """

    __slots__ = (
        "_integers",
        "_layout",
        "_plain",
        "_reals",
        "_state",
        "_stats",
        "_work",
        "answers",
    )

    def __init__(self, layout: PackedLayout, plan: QueryPlan) -> None:
        if plan.weights[3] > 0.0 or plan.weights[4] > 0.0:
            raise InputError(
                "the time and social parts of a score need visits: use visits.search",
                field="weights",
            )
        self._layout = layout
        self._plain = is_plain(plan)
        self._integers, self._reals = encode_query(layout, plan)
        if plan.match == MATCH_EVERYTHING:
            self._integers[k.MATCH] = MATCH_ANY
        self.answers = Answers(plan.k)
        self._work = np.empty(fast.WORK_BYTES // 8 + 1, dtype=np.int64)
        self._stats = np.zeros(5, dtype=np.int64)
        self._state = make_state(
            layout, self._integers, self._reals, self.answers, self._stats, plain=self._plain
        )
        self._state[fast.WORK] = self._work.ctypes.data

    def __call__(self, lon: float, lat: float, words: Sequence[str] = ()) -> int:
        """Search at (lon, lat), degrees, for words; return the number of answers.

        Raises
        ------
        InputError
            There are more than 64 words.
        """
        given = len(words)
        if given == 1:
            text = words[0].encode()
        elif given > k.MAX_WORDS:
            raise InputError(
                f"a query has at most {k.MAX_WORDS} different keywords", field="keywords"
            )
        else:
            text = b"\xff".join([word.encode() for word in words])
        count: int = fast.answer(self._state, lon, lat, given, text)
        self.answers.count = count
        return count

    def word_ids(self, words: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the layout's id of each word, -1 for an unknown one."""
        return self._layout.terms.ids(words)

    def many(
        self,
        lon: npt.ArrayLike,
        lat: npt.ArrayLike,
        words: Sequence[Sequence[str]] | tuple[npt.NDArray[Any], npt.NDArray[Any]],
    ) -> _Found:
        """Answer many queries in one kernel call, which releases the GIL.

        Parameters
        ----------
        lon, lat : float64 [q]
            Points, degrees.
        words : sequence of q sequences of str, or (ptr [q + 1], word ids)
            Words of each query, as text or as ids of the layout's dictionary
            (-1 for an unknown word).

        Returns
        -------
        scores, kms : float64 [q, k]
        keys : int64 [q, k]
        counts : int64 [q]
            Only the first ``counts[i]`` entries of row i are answers.

        Raises
        ------
        InputError
            The lengths differ, or a query has more than 64 words.
        """
        x, y = (np.require(degrees, np.float64, ["C", "W"]) for degrees in (lon, lat))
        if isinstance(words, tuple) and len(words) == 2 and isinstance(words[0], np.ndarray):
            ptr, ids = (np.require(array, np.int64, ["C", "W"]) for array in words)
        else:
            ptr = np.zeros(len(words) + 1, dtype=np.int64)
            np.cumsum([len(entry) for entry in words], out=ptr[1:])
            ids = self._layout.terms.ids([word for entry in words for word in entry])
        if not len(x) == len(y) == len(ptr) - 1:
            raise InputError("points and words must be of one length", field="words")
        if len(ids) and (ids.min() < -1 or ids.max() >= len(self._layout.terms)):
            raise InputError("there is no such word", field="words")
        if len(x) and (ptr[0] != 0 or ptr[-1] != len(ids) or np.diff(ptr).min() < 0):
            raise InputError("the words' places do not fit the words", field="words")
        if len(x) and np.diff(ptr).max() > k.MAX_WORDS:
            raise InputError(
                f"a query has at most {k.MAX_WORDS} different keywords", field="keywords"
            )
        shape = (len(x), self.answers.k)
        scores, kms = np.zeros(shape), np.zeros(shape)
        keys, counts = np.zeros(shape, dtype=np.int64), np.zeros(len(x), dtype=np.int64)
        integers, reals = self._integers.copy(), self._reals.copy()
        work, stats = np.empty_like(self._work), np.zeros(5, dtype=np.int64)
        rows = np.empty(self.answers.k, dtype=np.int64)
        state = self._state.copy()
        state[fast.MODE] = fast.MANY
        state[fast.QUERIES] = len(x)
        places = {
            fast.INTEGERS_AT: integers,
            fast.REALS_AT: reals,
            fast.WORK: work,
            fast.STATS_AT: stats,
            fast.SCORES_AT: scores,
            fast.KMS_AT: kms,
            fast.KEYS_AT: keys,
            fast.ROWS_AT: rows,
            fast.LON_AT: x,
            fast.LAT_AT: y,
            fast.PTR_AT: ptr,
            fast.IDS_AT: ids,
            fast.COUNTS_AT: counts,
        }
        for place, array in places.items():
            state[place] = array.ctypes.data
        fast.answer(state, 0.0, 0.0, 0, b"")
        return scores, kms, keys, counts
