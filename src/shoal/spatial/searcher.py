"""One form of query, asked again and again: the least work between a call and the kernel."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError
from shoal.spatial.ingest import check_positions
from shoal.spatial.livesearch import LiveSearcher
from shoal.spatial.packed_searcher import PackedSearcher
from shoal.spatial.request import Query
from shoal.spatial.words import MAX_QUERY_WORDS, analyze_each, analyze_query, normalise

if TYPE_CHECKING:
    from shoal.spatial.reader import IndexReader
    from shoal.spatial.snapshot import Snapshot

__all__ = ["Batch", "Hits", "Searcher"]


class Hits(NamedTuple):
    """Answers of a prepared query: arrays of one length, the best first."""

    ids: Any
    scores: npt.NDArray[np.float64]
    kms: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Batch:
    """Answers of many queries.

    ``ids`` is a list of lists; ``scores`` and ``kms`` are float64 [q, k], NaN
    behind the ``counts`` int64 [q] answers of each query.
    """

    ids: list[list[Any]]
    scores: npt.NDArray[np.float64]
    kms: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.counts)


class Searcher:
    """A prepared query: everything but the point and the keywords is fixed.

    Made by :meth:`SpatialKeywordIndex.searcher`. It follows the index: each call
    searches it as it is at that moment. Not for use by several threads at once;
    make one for each.
    """

    def __init__(self, index: IndexReader, query: Query) -> None:
        self._index = index
        self._query = query
        self._exact = index.config.analyzer == "exact"
        # Without keywords the text part has no weight, so such calls are planned anew.
        self._weighs_words = query.weights is None and query.match == "ranked"
        self._current = index.snapshot_source()
        self._snapshot: Snapshot | None = None
        self._live: LiveSearcher | None = None
        # What a call goes to: the live search, or what it has for a moment of rest.
        self._fast: LiveSearcher | PackedSearcher | None = None
        self._names: Any = None

    def __call__(self, lon: float, lat: float, keywords: Sequence[str] = ()) -> Hits:
        """Return the answers near (lon, lat), degrees, for keywords.

        Raises
        ------
        InputError
            The point is not finite or out of range, or a keyword is wrong.
        """
        # This is the shortest way that a query can take: every line here was timed.
        if (snapshot := self._current()) is not self._snapshot:
            self._prepare(snapshot)
        if not (-180.0 <= lon <= 180.0 and -90.0 <= lat <= 90.0):
            self._refuse(lon, lat)
        fast = self._fast
        if fast is None:
            return self._slow(lon, lat, keywords)
        if len(keywords) != 1 or self._exact or not _is_plain(keywords[0]):
            keywords = self._words(keywords)
            if not keywords and self._weighs_words:
                return self._slow(lon, lat, ())
        try:
            count = fast(lon, lat, keywords)
        except UnicodeEncodeError:  # half of a surrogate pair, which no place has
            return self._slow(lon, lat, keywords)
        if fast is self._live and fast.torn():
            count = self._again(lon, lat, keywords)
            fast = self._live
        answers = fast.answers
        keys = answers.keys[:count].copy()
        ids = keys if self._names is None else self._names(keys)
        return Hits(ids, answers.scores[:count].copy(), answers.kms[:count].copy())

    def many(
        self,
        lon: npt.NDArray[np.float64],
        lat: npt.NDArray[np.float64],
        keywords: Sequence[Sequence[str]],
        *,
        threads: int | None = None,
    ) -> Batch:
        """Return the answers of many queries, one kernel call a thread.

        Parameters
        ----------
        lon, lat : float64 [q]
            Points, degrees.
        keywords : sequence of q sequences of str
            Keywords of each query.
        threads : int, optional
            Threads to use; by default one for each core that this process may use.
        """
        x, y = check_positions(lon, lat)
        if len(keywords) != len(x):
            raise InputError(f"{len(keywords)} entries of keywords for {len(x)} points")
        if (snapshot := self._current()) is not self._snapshot:
            self._prepare(snapshot)
        words = self._batch_words(keywords)
        workers = max(1, threads or len(os.sched_getaffinity(0)))
        # More pieces than threads, so that a thread with easy queries takes another piece.
        pieces = np.array_split(np.arange(len(x)), max(1, min(len(x), 4 * workers)))
        pieces = [piece for piece in pieces if len(piece)]

        def work(piece: npt.NDArray[np.int64]) -> tuple[Any, Any, Any, Any]:
            a, b = int(piece[0]), int(piece[-1]) + 1
            if isinstance(words, tuple):
                ptr, ids = words
                mine: Any = ptr[a : b + 1] - ptr[a], ids[..., ptr[a] : ptr[b]]
            else:
                mine = words[a:b]
            return self._piece(x[a:b], y[a:b], mine)

        if workers == 1 or len(pieces) < 2:
            found = [work(piece) for piece in pieces]
        else:
            with ThreadPoolExecutor(workers) as pool:
                found = list(pool.map(work, pieces))
        return self._batch(found)

    def _piece(
        self, lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64], words: Any
    ) -> tuple[Any, Any, Any, Any]:
        if isinstance(self._fast, PackedSearcher) and not self._has_wordless(words):
            return self._fast.many(lon, lat, words)
        # All pieces are of one snapshot, and of one width.
        snapshot = self._snapshot
        assert snapshot is not None
        k = min(self._query.k, max(1, snapshot.n_live))
        scores, kms = np.full((len(lon), k), np.nan), np.full((len(lon), k), np.nan)
        keys = np.zeros((len(lon), k), dtype=np.int64)
        counts = np.zeros(len(lon), dtype=np.int64)
        live = None if self._live is None else LiveSearcher(self._live.snapshot, self._live.plan)
        for i, (x, y, entry) in enumerate(zip(lon.tolist(), lat.tolist(), words, strict=True)):
            try:
                if live is None or (self._weighs_words and not entry):
                    answers = self._index.search(self._with(x, y, entry), snapshot=snapshot)[0]
                else:
                    live(x, y, entry)
                    if live.torn():
                        live.mend(x, y, entry)
                    answers = live.answers
            except UnicodeEncodeError:
                answers = self._index.search(self._with(x, y, entry), snapshot=snapshot)[0]
            count = len(answers)
            scores[i, :count], kms[i, :count] = answers.scores[:count], answers.kms[:count]
            keys[i, :count], counts[i] = answers.keys[:count], count
        return scores, kms, keys, counts

    def _has_wordless(self, words: Any) -> bool:
        return self._weighs_words and isinstance(words, list) and not all(words)

    def _batch(self, found: list[tuple[Any, Any, Any, Any]]) -> Batch:
        if not found:
            empty = np.empty((0, self._query.k))
            return Batch([], empty, empty.copy(), np.empty(0, dtype=np.int64))
        scores, kms, keys, counts = (np.concatenate(part) for part in zip(*found, strict=True))
        behind = np.arange(scores.shape[1])[None, :] >= counts[:, None]
        scores[behind], kms[behind] = np.nan, np.nan
        if self._names is None:
            k, ids = keys.shape[1], keys.tolist()
            for i in np.flatnonzero(counts < k).tolist():
                del ids[i][counts[i] :]
        else:
            flat = self._names(keys[~behind])
            ends = np.cumsum(counts).tolist()
            ids = [flat[end - n : end] for end, n in zip(ends, counts.tolist(), strict=True)]
        return Batch(ids, scores, kms, counts)

    def _batch_words(self, keywords: Sequence[Sequence[str]]) -> Any:
        """Return the words of many queries as (ptr, ids of the layout), each looked up once.

        As texts without a fast path, with words that vanish when normalised or may be
        fewer, and where the query's weights depend on whether there are words.
        """
        analyzer = self._index.config.analyzer
        fast = self._fast
        if isinstance(fast, PackedSearcher) and not any(
            isinstance(entry, str) for entry in keywords
        ):
            flat = list(itertools.chain.from_iterable(keywords))
            distinct = list(dict.fromkeys(flat))
            plain = list(analyze_each(distinct, analyzer))
            longest = max(map(len, keywords), default=0)
            wordless = self._weighs_words and not all(keywords)
            if all(plain) and longest <= MAX_QUERY_WORDS and not wordless:
                ids = fast.word_ids(plain)
                number = {word: i for i, word in enumerate(distinct)}
                ptr = np.zeros(len(keywords) + 1, dtype=np.int64)
                np.cumsum([len(entry) for entry in keywords], out=ptr[1:])
                found = map(number.__getitem__, flat)
                # Of several segments, each its own: a row of ids for each.
                return ptr, ids[..., np.fromiter(found, dtype=np.int64, count=len(flat))]
        return [analyze_query(entry, analyzer) for entry in keywords]

    def _words(self, keywords: Sequence[str]) -> Sequence[str]:
        if isinstance(keywords, str) or len(keywords) > 8:
            return analyze_query(keywords, self._index.config.analyzer)
        words: list[Any] = list(keywords)
        for i, word in enumerate(words):
            if not _is_plain(word):
                if not isinstance(word, str):
                    return analyze_query(keywords, self._index.config.analyzer)  # names it
                if not self._exact:
                    words[i] = normalise(word)
        if len(words) > 1:
            words = list(dict.fromkeys(words))
        return words if all(words) else [word for word in words if word]

    def _prepare(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        # Ids that are their own keys need no names; a reader that is refreshed has others.
        ids = self._index.ids
        self._names = None if ids.kind == "int" else ids.names
        live = self._live
        k = min(self._query.k, max(1, snapshot.n_live))
        if live is None or live.answers.k != k or not live.follow(snapshot):
            live = self._live = self._index.prepared(self._query, snapshot)
        self._fast = live.packed if live is not None and live.pristine else live

    def _again(self, lon: float, lat: float, words: Sequence[str]) -> int:
        """Repeat a call in the midst of which the index changed; return the number of answers."""
        assert self._live is not None
        if (snapshot := self._current()) is not self._snapshot:
            live = self._live
            self._prepare(snapshot)
            # Without a fast path from here on, what was there before still answers.
            self._live = self._live or live
            if self._live is not live or live.snapshot is snapshot:
                count = self._live(lon, lat, words)
                if not self._live.torn():
                    return count
        return self._live.mend(lon, lat, words)

    def _slow(self, lon: float, lat: float, keywords: Sequence[str]) -> Hits:
        answers, _ = self._index.search(self._with(lon, lat, keywords))
        count = len(answers)
        ids = self._index.ids.names(answers.keys[:count])
        return Hits(ids, answers.scores[:count].copy(), answers.kms[:count].copy())

    def _with(self, lon: float, lat: float, keywords: Sequence[str]) -> Query:
        return self._index.replace(self._query, point=(lon, lat), keywords=tuple(keywords))

    def _refuse(self, lon: float, lat: float) -> None:
        check_positions([lon], [lat])


def _is_plain(word: str) -> bool:
    """Say whether a word is its own normal form, of the usual kind."""
    # Of the white space of ASCII only the blank is printable.
    return (
        type(word) is str
        and word.isascii()
        and word.islower()
        and word.isprintable()
        and " " not in word
    )
