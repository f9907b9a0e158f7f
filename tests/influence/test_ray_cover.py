"""Workers on Ray: the seeds of one process, also when a worker dies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.core.errors import InputError, UnavailableError
from shoal.data import graphgen
from shoal.influence import Graph, max_cover
from shoal.influence.ray_cover import TileWorker, ray_max_cover

ray = pytest.importorskip("ray", reason="Ray is not installed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Graph]:
    made = graphgen.power_law(600, 5.0, exponent=2.2, seed=4)
    graph = Graph.from_edges(made.source, made.target, directed=True, n=600)
    path = tmp_path_factory.mktemp("graph") / "saved"
    graph.save(path)
    return path, graph


@pytest.mark.parametrize("hops", [1, 2, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_tiles_together_give_the_exact_sequence(
    saved: tuple[Path, Graph], hops: int, weighted: bool
) -> None:
    path, graph = saved
    weights = np.arange(600) % 7 * 0.5 if weighted else None
    want = max_cover(graph, 25, hops, method="exact", weights=weights)
    tiles = [TileWorker(str(path), np.arange(i, 600, 3), 25, hops, weights) for i in range(3)]
    seeds: list[int] = []
    while len(seeds) < 25:
        found = [one for tile in tiles if (one := tile.best(seeds[-1:])) is not None]
        if not found:
            break
        seeds.append(max(found, key=lambda one: (one[0], -one[1]))[1])
    assert seeds == want.rows.tolist()


def test_ray_gives_what_one_process_gives(cluster: Any, saved: tuple[Path, Graph]) -> None:
    path, graph = saved
    want = max_cover(graph, 12, 2, method="exact", exclude=[3])
    got = ray_max_cover(path, 12, 2, workers=2, exclude=[3])
    assert got.seeds == want.seeds
    np.testing.assert_array_equal(got.gains, want.gains)
    assert got.covered == want.covered
    assert got.work["restarts"] == 0


def test_a_worker_that_dies_is_started_again(
    cluster: Any, saved: tuple[Path, Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    from shoal.influence import ray_cover

    path, graph = saved
    ask = ray_cover._Tiles.best

    def kill_one(self: Any, seeds: list[int]) -> Any:
        if len(seeds) == 5:
            cluster.kill(self.actors[1])
        return ask(self, seeds)

    monkeypatch.setattr(ray_cover._Tiles, "best", kill_one)
    got = ray_max_cover(path, 10, 2, workers=2)
    assert got.seeds == max_cover(graph, 10, 2, method="exact").seeds
    assert got.work["restarts"] == 1


def test_random_parts_keep_their_promise(cluster: Any, saved: tuple[Path, Graph]) -> None:
    path, graph = saved
    best = max_cover(graph, 12, 2, method="exact").covered
    found = [ray_max_cover(path, 12, 2, workers=3, mode="random", seed=s) for s in (1, 1, 2)]
    assert found[0].seeds == found[1].seeds
    for one in found:
        assert (1 - 1 / np.e) / 2 * best <= one.covered
        assert one.gains.sum() == one.covered


def test_bad_input(cluster: Any, saved: tuple[Path, Graph]) -> None:
    path, _ = saved
    with pytest.raises(InputError, match="workers"):
        ray_max_cover(path, 5, workers=0)
    with pytest.raises(InputError, match="exact or random"):
        ray_max_cover(path, 5, mode="no")  # type: ignore[arg-type]
    with pytest.raises(InputError) as caught:
        ray_max_cover(path, 601)
    assert caught.value.field == "k"


def test_ray_that_was_not_started_is_said(saved: tuple[Path, Graph]) -> None:
    if ray.is_initialized():
        ray.shutdown()
    with pytest.raises(UnavailableError, match="not started"):
        ray_max_cover(saved[0], 5)
