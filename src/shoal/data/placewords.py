"""Kinds of places and their words: what generated places are called and when they are busy."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError
from shoal.core.seeds import philox
from shoal.data.sourcefile import read_text
from shoal.data.words import tokenize

__all__ = ["Vocabulary", "builtin_vocabulary", "busy_hours", "nsi_vocabulary", "rhythm_of"]

#: Kinds of places by when they are busy: centres (hour), widths (hours), weights, weekend factor.
_RHYTHMS: dict[str, tuple[tuple[tuple[float, float, float], ...], float]] = {
    "breakfast": (((8.5, 1.5, 1.0), (12.0, 2.0, 0.5), (16.0, 2.0, 0.4)), 1.2),
    "meals": (((12.5, 1.2, 0.9), (19.5, 1.8, 1.0)), 1.3),
    "night": (((22.5, 2.5, 1.0), (18.0, 2.0, 0.2)), 1.9),
    "shop": (((12.0, 2.5, 0.7), (17.0, 2.0, 1.0)), 1.4),
    "work": (((9.5, 1.5, 1.0), (14.5, 2.0, 0.8)), 0.2),
    "leisure": (((11.0, 2.5, 0.6), (17.5, 2.5, 1.0)), 1.7),
    "stay": (((8.0, 2.0, 0.5), (21.0, 3.0, 1.0)), 1.1),
}
#: Rhythm by a word of the kind; the first that fits, else "shop".
_BY_WORD = {
    "breakfast": ("cafe", "bakery", "coffee", "pastry", "confectionery"),
    "meals": ("restaurant", "food", "pizza", "canteen", "biergarten", "ice"),
    "night": ("bar", "pub", "nightclub", "cinema", "theatre", "casino"),
    "work": ("bank", "office", "school", "clinic", "doctors", "university", "post", "library"),
    "leisure": ("park", "museum", "gallery", "fitness", "sports", "swimming", "zoo", "leisure"),
    "stay": ("hotel", "hostel", "motel", "guest", "camp", "apartment"),
}
# fmt: off
_KINDS = """restaurant pizza|restaurant italian|restaurant sushi japanese|restaurant chinese|
restaurant indian curry|restaurant mexican tacos|restaurant thai|restaurant steak grill|
restaurant vegan|restaurant seafood fish|fast food burger|fast food kebab|fast food chicken|
cafe coffee|cafe cake|bakery bread|ice cream|bar cocktails|bar wine|pub beer|nightclub music|
cinema|theatre|museum|gallery art|library|supermarket groceries|convenience shop|clothes shop|
shoes shop|books shop|electronics shop|furniture shop|florist flowers|hairdresser|pharmacy|
bank|post office|doctors clinic|dentist|school|university|hotel|hostel|guest house|
fitness centre gym|swimming pool|sports centre tennis|park playground|zoo animals|
fuel station|car repair|bicycle shop|laundry|pet shop|toys shop|sweets confectionery|
butcher meat|greengrocer vegetables|jeweller watches""".replace("\n", "").split("|")
_TRAITS = """cheap cosy quiet terrace garden wifi delivery takeaway outdoor family parking
accessible vegetarian vegan halal organic local fresh open late breakfast lunch dinner brunch
live music view historic modern new old small big central station corner market river harbour
hill green blue red golden royal grand little happy lucky sunny best original house club studio
express city town""".split()  # noqa: SIM905
# fmt: on
_SYLLABLES = "ba be bo da de do fa fi ga go ha ka ki ko la le lo ma mi mo na ne no pa pe po ra "
_SYLLABLES += "re ri ro sa se si so ta te ti to va ve vi vo za zo lin mar ton ber vel dor kas rin"


@dataclass(frozen=True)
class Vocabulary:
    """Kinds of places, most usual first, and further words, most usual first.

    Parameters
    ----------
    kinds : list of str
        Name of each kind, as its places' category.
    kind_words : list of list of str
        The words that every place of the kind has.
    extra_words : list of str
        Words that places of any kind may have, by rank.
    """

    kinds: list[str]
    kind_words: list[list[str]]
    extra_words: list[str]

    def rhythm(self, kind: int) -> str:
        """Return the name of the rhythm in which a kind is busy."""
        return rhythm_of(self.kind_words[kind])


def rhythm_of(words: Iterable[str]) -> str:
    """Return the name of the rhythm in which places with these words are busy."""
    own = set(words)
    return next((name for name, known in _BY_WORD.items() if own & set(known)), "shop")


def builtin_vocabulary(extra: int = 5_000, *, seed: int = 0) -> Vocabulary:
    """Return the small built-in list of kinds, traits, and made-up names.

    Parameters
    ----------
    extra : int
        Number of extra words; beyond the list of traits they are made up.
    seed : int
        Of the made-up names.
    """
    kinds = [kind.strip() for kind in _KINDS]
    words = [kind.split() for kind in kinds]
    return Vocabulary(kinds, words, _extended(_TRAITS, extra, seed))


def nsi_vocabulary(path: str | Path, extra: int = 20_000, *, seed: int = 0) -> Vocabulary:
    """Return the kinds and brand names of a name-suggestion-index file.

    A kind is one of its categories of ``brands`` (``amenity/fast_food``), split
    by cuisine; kinds are ranked by their number of brands, extra words are those
    of the brand names by how often they occur.

    Parameters
    ----------
    path : path-like
        ``nsi.json`` or ``nsi.min.json``, perhaps packed (BSD-3-Clause).
    extra, seed
        As :func:`builtin_vocabulary`.

    Raises
    ------
    InputError
        The file is not of that form.
    """
    source = Path(path).name
    try:
        categories = json.loads(read_text(path))["nsi"]
        counts: dict[str, int] = {}
        names: dict[str, int] = {}
        for category, content in categories.items():
            tree, key, value = category.split("/")[:3]
            if tree != "brands" or key not in {"amenity", "shop", "tourism", "leisure"}:
                continue
            for item in content["items"]:
                tags = item.get("tags", {})
                cuisine = str(tags.get("cuisine", "")).split(";")[0]
                kind = f"{value} {cuisine}".strip()
                counts[kind] = counts.get(kind, 0) + 1
                for word in tokenize(str(tags.get("brand", item.get("displayName", "")))):
                    names[word] = names.get(word, 0) + 1
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"not a file of the name-suggestion-index: {error!r}", source=source
        ) from error
    if not counts:
        raise InputError("no brands in it", source=source)
    kinds = sorted(counts, key=lambda kind: (-counts[kind], kind))
    words = [list(dict.fromkeys(tokenize(kind))) for kind in kinds]
    ranked = sorted(names, key=lambda word: (-names[word], word))
    return Vocabulary(kinds, words, _extended(ranked, extra, seed))


def _extended(words: Sequence[str], count: int, seed: int) -> list[str]:
    """Return the first ``count`` words, made-up ones after those that are given."""
    if count < 1:
        raise InputError("at least one extra word is needed", field="extra", value=count)
    made = dict.fromkeys(words[:count])
    rng = philox(seed, "placewords")
    syllables = np.array(_SYLLABLES.split())
    length = 3
    while len(made) < count:
        drawn = rng.integers(0, len(syllables), size=(count, length))
        for row in syllables[drawn]:
            made["".join(row)] = None
            if len(made) == count:
                break
        length += 1
    return list(made)


def busy_hours(rhythm: str) -> npt.NDArray[np.float64]:
    """Return the share of a kind's visits in each hour of the week from Monday 0 h.

    Parameters
    ----------
    rhythm : str
        As :meth:`Vocabulary.rhythm` names it.

    Returns
    -------
    float64 [168]
        Sum 1. Made up: bumps on a circle of 24 hours, weekends scaled.
    """
    if rhythm not in _RHYTHMS:
        raise InputError(
            f"no such rhythm; there are {', '.join(_RHYTHMS)}", field="rhythm", value=rhythm
        )
    bumps, weekend = _RHYTHMS[rhythm]
    hour = np.arange(24.0)
    day = np.full(24, 0.02)
    for centre, width, weight in bumps:
        apart = np.abs(hour - centre)
        day += weight * np.exp(-0.5 * (np.minimum(apart, 24 - apart) / width) ** 2)
    week = np.concatenate([np.tile(day, 5), np.tile(day, 2) * weekend])
    shares: npt.NDArray[np.float64] = week / week.sum()
    return shares
