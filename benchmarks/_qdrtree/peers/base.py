"""What a peer is: an engine that answers the benchmark's two forms of query exactly.

AND + nearest is asked of the engine in the best way it has. For the ranked form
an engine chooses between two exact ways:

- everything that has a word, scored (few candidates);
- the places within the reach of the linear decay, scored, and then, as long as
  the k-th best allows it, the nearest place of each set of words: beyond that
  reach only the words and the order by distance count, so an AND search a set
  gives the rest. It is what an engineer would build on an engine without a
  blend of its own, and far faster than scoring every candidate.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from _qdrtree.queries import EARTH_KM, Ask
from shoal.spatial.columns import PlaceColumns

__all__ = ["Missing", "Peer", "boxes", "folder_bytes", "linear_scores", "word_sets"]

#: (key of the place, score)
Scored = list[tuple[int, float]]


class Missing(Exception):  # noqa: N818 - it says what is missing
    """The engine is not installed; the text says what would have to be."""


class Peer(ABC):
    """An engine. ``build`` is called once; places are known by their keys 0 .. n - 1.

    ``name`` and ``version`` are shown; ``at_most`` is how many queries the
    engine is asked where all would take too long; ``server_clock`` is the CPU
    clock of a server process (``clock_getcpuclockid``), if there is one.
    """

    name = ""
    version = ""
    at_most: int | None = None
    server_clock: int | None = None
    #: Below so many postings in all, every place with a word is scored.
    direct_below = 1000

    @abstractmethod
    def build(self, places: PlaceColumns, folder: Path) -> None:
        """Index the places; files go to an empty folder."""

    @abstractmethod
    def and_nearest(self, ask: Ask) -> list[int]:
        """Return the keys of the nearest places that have all words, the nearest first."""

    def ranked(self, ask: Ask) -> Scored:
        """Return the best places of the ranked form, the best first."""
        if sum(ask.counts) <= self.direct_below:
            return self.scored_all(ask)
        found = dict(self.scored_near(ask))
        top = sorted(found.values(), reverse=True)[: ask.k]
        for words, share in word_sets(ask):
            if len(top) == ask.k and top[-1] >= 0.5 * share:
                break
            for key in self.nearest(ask, words):
                # Within reach: already scored, and better. A larger set came first.
                found.setdefault(key, 0.5 * share)
            top = sorted(found.values(), reverse=True)[: ask.k]
        return sorted(found.items(), key=lambda item: -item[1])[: ask.k]

    def scored_all(self, ask: Ask) -> Scored:
        """Return the best of all places with a word."""
        raise NotImplementedError

    def scored_near(self, ask: Ask) -> Scored:
        """Return the places with a word within reach of the decay, scored; the best k will do."""
        raise NotImplementedError

    def nearest(self, ask: Ask, words: tuple[str, ...]) -> list[int]:
        """Return the keys of the nearest places that have these words."""
        raise NotImplementedError

    @abstractmethod
    def nbytes(self) -> int:
        """Return the size of the index, bytes."""

    def close(self) -> None:  # noqa: B027 - most engines have nothing to release
        """Release everything."""


def word_sets(ask: Ask) -> Iterator[tuple[tuple[str, ...], float]]:
    """Yield each non-empty set of a query's words with its share, the largest share first."""
    pairs = tuple(zip(ask.words, ask.shares, strict=True))
    sets = [
        (tuple(word for word, _ in chosen), sum(share for _, share in chosen))
        for size in range(1, len(pairs) + 1)
        for chosen in itertools.combinations(pairs, size)
    ]
    yield from sorted(sets, key=lambda item: (-item[1], -len(item[0])))


def linear_scores(ask: Ask, kms: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return the ranked form's scores."""
    return 0.5 * np.maximum(0.0, 1.0 - kms / ask.max_km) + 0.5 * shares


def boxes(lon: float, lat: float, km: float) -> list[tuple[float, float, float, float]]:
    """Return one or two (west, south, east, north) that hold a circle, degrees."""
    angle = km / EARTH_KM * (1 + 1e-9) + 1e-12
    south, north = lat - math.degrees(angle), lat + math.degrees(angle)
    if south <= -90 or north >= 90:
        return [(-180.0, max(south, -90.0), 180.0, min(north, 90.0))]
    wide = math.degrees(math.asin(min(1.0, math.sin(angle) / math.cos(math.radians(lat)))))
    west, east = lon - wide - 1e-9, lon + wide + 1e-9
    if west < -180:
        return [(west + 360, south, 180.0, north), (-180.0, south, east, north)]
    if east > 180:
        return [(west, south, 180.0, north), (-180.0, south, east - 360, north)]
    return [(west, south, east, north)]


def folder_bytes(folder: Path) -> int:
    """Return the size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
