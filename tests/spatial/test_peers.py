"""The benchmark's peers answer what the brute force answers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("numba")
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

from shoal.spatial import reference  # noqa: E402

pytestmark = pytest.mark.peer

PEERS = (
    ("sqlite", "SqliteFts5"),
    ("sqlite", "SqliteRtree"),
    ("duckdb", "DuckDb"),
    ("tantivy", "Tantivy"),
    ("xapian", "Xapian"),
)


@pytest.fixture(scope="module")
def parts() -> Iterator[tuple[ModuleType, ModuleType]]:
    """Return the benchmark's modules of data and queries."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield import_module("_qdrtree.data"), import_module("_qdrtree.queries")
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.mark.parametrize(("module", "name"), PEERS)
def test_peer_answers_as_the_brute_force(
    parts: tuple[ModuleType, ModuleType], module: str, name: str, tmp_path: Path
) -> None:
    data, queries = parts
    if module in ("duckdb", "tantivy"):
        pytest.importorskip(module)
    base = import_module("_qdrtree.peers.base")
    try:
        peer = getattr(import_module(f"_qdrtree.peers.{module}"), name)()
    except base.Missing as missing:
        pytest.skip(str(missing))
    # Small thresholds, so that 300 places take every branch of a peer.
    for option in ("text_first", "read_all", "direct_below"):
        if getattr(peer, option, 10**9) < 10**9:
            setattr(peer, option, 12)
    places = data.generated(300, seed=5, attributes=0, categories=8).columns
    asks = queries.make_asks(places, 60, seed=3)
    peer.build(places, tmp_path)
    try:
        for ask in asks:
            want = reference.answer(places, (), queries.and_plan(ask))
            keys = np.array(peer.and_nearest(ask), dtype=np.int64)
            kms = queries.haversine(ask.lon, ask.lat, places.lon[keys], places.lat[keys])
            np.testing.assert_allclose(np.sort(kms), [km for _, km, _ in want], rtol=0, atol=1e-6)
            best = reference.answer(places, (), queries.ranked_plan(ask))
            scores = sorted((score for _, score in peer.ranked(ask)), reverse=True)
            np.testing.assert_allclose(scores, [s for s, _, _ in best], rtol=0, atol=1e-9)
    finally:
        peer.close()


def test_cells_around_a_point_hold_the_circle(parts: tuple[ModuleType, ModuleType]) -> None:
    pytest.importorskip("tantivy")
    queries = parts[1]
    tantivy = import_module("_qdrtree.peers.tantivy")
    rng = np.random.default_rng(1)
    lon = np.concatenate([rng.uniform(-180, 180, 4000), [180.0, -180.0, 0.0]])
    lat = np.concatenate([rng.uniform(-90, 90, 4000), [10.0, 10.0, 90.0]])
    held = tantivy.cells_of(lon, lat)
    for at_lon, at_lat in ((0.0, 0.0), (179.9, 12.0), (-179.99, -60.0), (40.0, 89.5), (7.0, -90.0)):
        for km in (30.0, 300.0, 3000.0):
            cells = tantivy.cells_around(at_lon, at_lat, km)
            inside = queries.haversine(at_lon, at_lat, lon, lat) <= km
            assert np.isin(held[inside], cells).any(axis=1).all()
