"""Xapian: Boolean terms and an order by distance of its own.

Xapian keeps positions to a sixteenth of an arc second (about two metres), so a
few more answers than asked for are taken and put into exact order, and more of
them until the last cannot belong among the first.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np

from _qdrtree.data import word_lists
from _qdrtree.peers.base import Missing, Peer, Scored, folder_bytes, linear_scores
from _qdrtree.queries import EARTH_KM, Ask, haversine
from shoal.spatial.columns import PlaceColumns

#: Where Debian's python3-xapian lies.
_DEBIAN = Path("/usr/lib/python3/dist-packages/xapian/__init__.py")
#: No position is off by more, kilometres.
_ROUNDING_KM = 0.005


def load() -> Any:
    """Import Xapian's module, also from where Debian puts it."""
    if importlib.util.find_spec("xapian") is None:
        if not _DEBIAN.exists():
            raise Missing("Debian's python3-xapian")
        spec = importlib.util.spec_from_file_location(
            "xapian", _DEBIAN, submodule_search_locations=[str(_DEBIAN.parent)]
        )
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules["xapian"] = module
        try:
            spec.loader.exec_module(module)
        except ImportError as error:
            del sys.modules["xapian"]
            raise Missing("python3-xapian for this version of Python") from error
    return importlib.import_module("xapian")


class Xapian(Peer):
    """Terms and LatLongDistanceKeyMaker; for the blend, weights that say which words are there."""

    name = "Xapian"
    direct_below = 10_000

    def __init__(self) -> None:
        self.x = load()
        self.version = self.x.version_string()

    def build(self, places: PlaceColumns, folder: Path) -> None:
        x = self.x
        self.folder, self.lon, self.lat = folder, places.lon, places.lat
        writable = x.WritableDatabase(str(folder / "db"), x.DB_CREATE_OR_OVERWRITE)
        lon, lat = places.lon.tolist(), places.lat.tolist()
        for key, words in enumerate(word_lists(places)):
            document = x.Document()
            for word in words:
                document.add_boolean_term(word)
            document.add_value(0, x.LatLongCoord(lat[key], _wrapped(lon[key])).serialise())
            writable.add_document(document)
        writable.commit()
        writable.close()
        self.db = x.Database(str(folder / "db"))
        self.metric = x.GreatCircleMetric(EARTH_KM * 1000)

    def and_nearest(self, ask: Ask) -> list[int]:
        return self.nearest(ask, ask.words)

    def nearest(self, ask: Ask, words: tuple[str, ...]) -> list[int]:
        x = self.x
        # The key maker and the metric must live as long as the enquiry.
        maker = x.LatLongDistanceKeyMaker(0, self._at(ask), self.metric)
        enquire = x.Enquire(self.db)
        enquire.set_query(x.Query(x.Query.OP_FILTER, [x.Query(word) for word in words]))
        enquire.set_weighting_scheme(x.BoolWeight())
        enquire.set_sort_by_key(maker, False)
        wanted = ask.k + 6
        while True:
            keys = np.array([m.docid - 1 for m in enquire.get_mset(0, wanted)], dtype=np.int64)
            kms = haversine(ask.lon, ask.lat, self.lon[keys], self.lat[keys])
            order = np.lexsort((keys, kms))[: ask.k]
            if len(keys) < wanted or kms[-1] - kms[order[-1]] > 2 * _ROUNDING_KM:
                found: list[int] = keys[order].tolist()
                return found
            wanted *= 4

    def scored_all(self, ask: Ask) -> Scored:
        return self._scored(ask, self._any(ask))

    def scored_near(self, ask: Ask) -> Scored:
        x = self.x
        source = x.LatLongDistancePostingSource(
            0, self._at(ask), self.metric, ask.max_km * 1000 + 10
        )
        return self._scored(ask, x.Query(x.Query.OP_FILTER, self._any(ask), x.Query(source)))

    def nbytes(self) -> int:
        return folder_bytes(self.folder)

    def close(self) -> None:
        self.db.close()

    def _at(self, ask: Ask) -> Any:
        return self.x.LatLongCoords(self.x.LatLongCoord(ask.lat, _wrapped(ask.lon)))

    def _any(self, ask: Ask) -> Any:
        x = self.x
        return x.Query(
            x.Query.OP_OR,
            [
                x.Query(x.Query.OP_SCALE_WEIGHT, x.Query(word), float(1 << i))
                for i, word in enumerate(ask.words)
            ],
        )

    def _scored(self, ask: Ask, query: Any) -> Scored:
        x = self.x
        enquire = x.Enquire(self.db)
        enquire.set_query(query)
        enquire.set_weighting_scheme(x.CoordWeight())
        enquire.set_docid_order(x.Enquire.DONT_CARE)
        hits = [(m.docid - 1, m.weight) for m in enquire.get_mset(0, self.db.get_doccount())]
        if not hits:
            return []
        keys = np.array([key for key, _ in hits], dtype=np.int64)
        masks = np.array([weight for _, weight in hits]).astype(np.int64)
        bits = masks[:, None] >> np.arange(len(ask.words)) & 1
        kms = haversine(ask.lon, ask.lat, self.lon[keys], self.lat[keys])
        scores = linear_scores(ask, kms, bits @ np.array(ask.shares))
        best = np.lexsort((keys, kms, -scores))[: ask.k]
        return list(zip(keys[best].tolist(), scores[best].tolist(), strict=True))


def _wrapped(lon: float) -> float:
    return lon + 360.0 if lon < 0 else lon
