"""A query prepared for segments in the packed layout: a call is one kernel, given an address."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError
from shoal.spatial import _call_kernels as calling
from shoal.spatial import _kernels as k
from shoal.spatial import _segment_kernels as searches
from shoal.spatial.packed_query import encode_query
from shoal.spatial.query import (
    MATCH_ALL,
    MATCH_ANY,
    MATCH_EVERYTHING,
    TEXT_BM25,
    Answers,
    QueryPlan,
)

if TYPE_CHECKING:
    from shoal.spatial.packed import PackedLayout

__all__ = ["PackedSearcher", "is_plain", "make_state"]

_Floats: TypeAlias = npt.NDArray[np.float64]
_Integers: TypeAlias = npt.NDArray[np.int64]
_Found: TypeAlias = tuple[_Floats, _Floats, _Integers, _Integers]
_Mask: TypeAlias = npt.NDArray[np.uint8] | None

#: What a search works with, for each thread.
_memory = threading.local()


def is_plain(plan: QueryPlan) -> bool:
    """Say whether the fast searches can answer a plan, if it has words."""
    return (
        plan.has_point
        and plan.filters is None
        and plan.region is None
        and not plan.without
        and plan.text_kind != TEXT_BM25
    )


def make_state(
    layouts: Sequence[PackedLayout],
    integers: _Integers,
    reals: _Floats,
    answers: Answers,
    stats: _Integers,
    *,
    plain: bool,
    live: Sequence[_Mask],
) -> _Integers:
    """Return what the kernel reads a call from, in this thread; whoever uses it keeps the arrays.

    The segments' records lie behind the state's own places.
    """
    state = np.zeros(calling.STATE_SIZE + len(layouts) * calling.SEGMENT_SIZE, dtype=np.int64)
    state[calling.SEGMENTS] = len(layouts)
    state[calling.SEARCH_AT] = searches.address_of(_kind(integers, reals, plain=plain))
    state[calling.COUNT] = answers.count
    state[calling.N_LIVE] = sum(layout.n for layout in layouts)
    _set_places(
        state,
        {
            calling.INTEGERS_AT: integers,
            calling.REALS_AT: reals,
            calling.SCORES_AT: answers.scores,
            calling.KMS_AT: answers.kms,
            calling.KEYS_AT: answers.keys,
            calling.ROWS_AT: answers.rows,
            calling.STATS_AT: stats,
            calling.WORK: _work(),
        },
    )
    records = _records(state)
    for record, layout, mask in zip(records, layouts, live, strict=True):
        record[calling.SEGMENT_LAYOUT] = layout.addresses().ctypes.data
        record[calling.SEGMENT_LIVE] = 0 if mask is None else mask.ctypes.data
    return state


def _kind(integers: _Integers, reals: _Floats, *, plain: bool) -> int:
    """Return which search answers queries of this form with words."""
    if not plain or not integers[k.MATCH]:
        return searches.GENERAL
    if integers[k.MATCH] == MATCH_ALL:
        if integers[k.N_PREFER]:
            return searches.PREFERRED
        # Decays by exp are not known to be monotone to the last bit, which this one needs.
        if (
            integers[k.K] <= k.HEAPED
            and integers[k.DECAY_KIND] < 2
            and reals[k.W_ATTRIBUTES] == 0.0
        ):
            return searches.NEAREST
    return searches.PLAIN


def _work() -> _Integers:
    """Return this thread's memory for searches."""
    work: _Integers | None = getattr(_memory, "work", None)
    if work is None:
        work = _memory.work = np.zeros(searches.WORK_SIZE, dtype=np.int64)
    return work


def _records(state: _Integers) -> _Integers:
    """Return the segments' records of a state as [segments, SEGMENT_SIZE], and point to them."""
    records = state[calling.STATE_SIZE :].reshape(-1, calling.SEGMENT_SIZE)
    state[calling.SEGMENTS_AT] = state.ctypes.data + 8 * calling.STATE_SIZE
    return records


def _set_places(state: _Integers, arrays: dict[int, npt.NDArray[Any]]) -> None:
    for place, array in arrays.items():
        state[place] = array.ctypes.data


class PackedSearcher:
    """A prepared query of one or more layouts: point and words are given with each call.

    The words' weights are their idf in all layouts together, as
    ``ln(1 + (n - df + 0.5) / (df + 0.5))`` scaled to the sum 1. Unknown words
    empty the answer of ``MATCH_ALL`` and are ignored by ``MATCH_ANY``; without
    words every place matches.

    Calls reuse their memory: one thread at a time. :meth:`many` may run in any
    number of threads.

    Parameters
    ----------
    layouts : PackedLayout or sequence of PackedLayout
        Of the same attributes, with different keys; the largest first.
    plan : QueryPlan
        With ``match`` as it is for calls with words; its own words, their
        weights and its point are not used.
    live : sequence of (uint8 [n] or None), optional
        For each layout 1 for its living rows, or None if all are alive.
    n_live : int, optional
        Living places, those outside the layouts too; by default all rows.

    Attributes
    ----------
    answers : Answers
        The answers of the latest call. With several layouts ``rows`` tell nothing.
    word_weights : float64 [64]
        For each word of the latest call its weight, 0 if it does not count.

    Raises
    ------
    InputError
        The plan weighs time or social, or does not fit the layouts; the layouts
        or masks do not fit each other.
    """

    __slots__ = (
        "_extra",
        "_integers",
        "_layouts",
        "_live",
        "_plain",
        "_reals",
        "_state",
        "_stats",
        "_without",
        "_work",
        "answers",
        "word_weights",
    )

    def __init__(
        self,
        layouts: PackedLayout | Sequence[PackedLayout],
        plan: QueryPlan,
        *,
        live: Sequence[_Mask] | None = None,
        n_live: int | None = None,
    ) -> None:
        if plan.weights[3] > 0.0 or plan.weights[4] > 0.0:
            raise InputError(
                "the time and social parts of a score need visits: use visits.search",
                field="weights",
            )
        self._layouts = tuple(layouts) if isinstance(layouts, Sequence) else (layouts,)
        if not self._layouts or any(x.specs != self._layouts[0].specs for x in self._layouts):
            raise InputError("layouts that are searched together have the same attributes")
        self._plain = is_plain(plan)
        self._integers, self._reals = encode_query(self._layouts[0], plan)
        if plan.match == MATCH_EVERYTHING:
            self._integers[k.MATCH] = MATCH_ANY
        self.answers = Answers(plan.k)
        self.word_weights = np.zeros(k.MAX_WORDS)
        self._extra = np.zeros(k.MAX_WORDS, dtype=np.int64)
        self._work = np.zeros(searches.WORK_SIZE, dtype=np.int64)
        self._stats = np.zeros(5, dtype=np.int64)
        self._state = make_state(
            self._layouts,
            self._integers,
            self._reals,
            self.answers,
            self._stats,
            plain=self._plain,
            live=[None] * len(self._layouts),
        )
        _set_places(self._state, {calling.WORK: self._work, calling.WEIGHTS_AT: self.word_weights})
        self._without = [layout.terms.ids(plan.without) for layout in self._layouts]
        for record, ids in zip(_records(self._state), self._without, strict=True):
            record[calling.SEGMENT_WITHOUT] = ids.ctypes.data
        self.follow(live or [None] * len(self._layouts), n_live)

    def follow(self, live: Sequence[_Mask], n_live: int | None = None) -> None:
        """Go on with other deaths: masks and number of living places as for the constructor.

        A mask that is changed in place need not be given again.

        Raises
        ------
        InputError
            A mask is not contiguous uint8 of its layout's length.
        """
        if len(live) != len(self._layouts):
            raise InputError(f"{len(live)} masks for {len(self._layouts)} layouts", field="live")
        for layout, mask in zip(self._layouts, live, strict=True):
            if mask is not None and not (
                mask.dtype == np.uint8 and mask.shape == (layout.n,) and mask.flags.c_contiguous
            ):
                raise InputError(f"a mask of live rows must be uint8 [{layout.n}]", field="live")
        for record, mask in zip(_records(self._state), live, strict=True):
            record[calling.SEGMENT_LIVE] = 0 if mask is None else mask.ctypes.data
        self._live = tuple(live)
        every = sum(layout.n for layout in self._layouts)
        self._state[calling.N_LIVE] = every if n_live is None else n_live

    def __call__(
        self,
        lon: float,
        lat: float,
        words: Sequence[str] = (),
        extra: Sequence[int] | _Integers | None = None,
    ) -> int:
        """Search at (lon, lat), degrees, for words; return the number of answers.

        Parameters
        ----------
        lon, lat : float
            The point.
        words : sequence of str
            At most 64.
        extra : int64 [words], optional
            Is added to the number of the layouts' rows with each word: places
            outside the layouts, less the dead rows. Weights depend on it, and
            whether a word is known; where text has no weight, dead rows need not
            be counted.

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
        count: int
        if extra is None:
            count = calling.answer(self._state, lon, lat, given, text)
        else:
            self._extra[:given] = extra
            self._state[calling.EXTRA_AT] = self._extra.ctypes.data
            count = calling.answer(self._state, lon, lat, given, text)
            self._state[calling.EXTRA_AT] = 0
        if count < 0:
            self._state[calling.GENERAL_AT] = searches.address_of(searches.GENERAL)
            return self(lon, lat, words, extra)
        self.answers.count = count
        return count

    def word_ids(self, words: Sequence[str]) -> _Integers:
        """Return the id of each word, -1 for an unknown one: int64 [words].

        With several layouts int64 [layouts, words], a row for each.
        """
        if len(self._layouts) == 1:
            return self._layouts[0].terms.ids(words)
        return np.stack([layout.terms.ids(words) for layout in self._layouts])

    def many(
        self,
        lon: npt.ArrayLike,
        lat: npt.ArrayLike,
        words: Sequence[Sequence[str]] | tuple[npt.NDArray[Any], npt.NDArray[Any]],
        *,
        extra: _Integers | None = None,
    ) -> _Found:
        """Answer many queries in one kernel call, which releases the GIL.

        Parameters
        ----------
        lon, lat : float64 [q]
            Points, degrees.
        words : sequence of q sequences of str, or (ptr [q + 1], word ids)
            Words of each query, as text or as ids of :meth:`word_ids`; of several
            layouts [layouts, words].
        extra : int64 [words], optional
            As for a call, for all queries' words one after the other.

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
            ids = self.word_ids([word for entry in words for word in entry])
        ids = ids.reshape(len(self._layouts), -1)
        if not len(x) == len(y) == len(ptr) - 1:
            raise InputError("points and words must be of one length", field="words")
        for layout, known in zip(self._layouts, ids, strict=True):
            if len(known) and (known.min() < -1 or known.max() >= len(layout.terms)):
                raise InputError("there is no such word", field="words")
        if len(x) and (ptr[0] != 0 or ptr[-1] != ids.shape[1] or np.diff(ptr).min() < 0):
            raise InputError("the words' places do not fit the words", field="words")
        if len(x) and np.diff(ptr).max() > k.MAX_WORDS:
            raise InputError(
                f"a query has at most {k.MAX_WORDS} different keywords", field="keywords"
            )
        if extra is not None:
            extra = np.require(extra, np.int64, ["C", "W"])
            if extra.shape != (ids.shape[1],):
                raise InputError("there must be an extra count for each word", field="extra")
        shape = (len(x), self.answers.k)
        scores, kms = np.zeros(shape), np.zeros(shape)
        keys, counts = np.zeros(shape, dtype=np.int64), np.zeros(len(x), dtype=np.int64)
        integers, reals = self._integers.copy(), self._reals.copy()
        stats = np.zeros(5, dtype=np.int64)
        rows = np.empty(self.answers.k, dtype=np.int64)
        state = self._state.copy()
        _records(state)
        state[calling.MODE] = calling.MANY
        state[calling.QUERIES] = len(x)
        state[calling.IDS_LENGTH] = ids.shape[1]
        state[calling.WEIGHTS_AT] = 0
        _set_places(
            state,
            {
                calling.INTEGERS_AT: integers,
                calling.REALS_AT: reals,
                calling.WORK: _work(),
                calling.STATS_AT: stats,
                calling.SCORES_AT: scores,
                calling.KMS_AT: kms,
                calling.KEYS_AT: keys,
                calling.ROWS_AT: rows,
                calling.LON_AT: x,
                calling.LAT_AT: y,
                calling.PTR_AT: ptr,
                calling.IDS_AT: ids,
                calling.COUNTS_AT: counts,
            },
        )
        if extra is not None:
            state[calling.EXTRA_AT] = extra.ctypes.data
        if len(ptr) > 1 and not np.diff(ptr).all():
            state[calling.GENERAL_AT] = searches.address_of(searches.GENERAL)
        calling.answer(state, 0.0, 0.0, 0, b"")
        return scores, kms, keys, counts
