"""Generated graphs: the models' known laws, the same bits again, and what is refused."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from shoal.core.errors import InputError, LimitError
from shoal.data import graphgen

MADE = {
    "rmat": lambda seed: graphgen.rmat(10, 5000, seed=seed),
    "barabasi_albert": lambda seed: graphgen.barabasi_albert(2000, 3, seed=seed),
    "power_law": lambda seed: graphgen.power_law(2000, 4.0, seed=seed),
    "erdos_renyi": lambda seed: graphgen.erdos_renyi(500, 0.02, seed=seed),
    "watts_strogatz": lambda seed: graphgen.watts_strogatz(500, 6, 0.1, seed=seed),
    "stochastic_blocks": lambda seed: graphgen.stochastic_blocks(
        [100, 200], [[0.1, 0.01], [0.02, 0.05]], seed=seed
    ),
}


def digest(graph) -> str:
    return hashlib.sha256(graph.source.tobytes() + graph.target.tobytes()).hexdigest()


@pytest.mark.parametrize("name", sorted(MADE))
def test_the_same_seed_gives_the_same_bits_and_another_does_not(name):
    first, again, other = MADE[name](7), MADE[name](7), MADE[name](8)
    assert digest(first) == digest(again) != digest(other)
    assert first.source.dtype == first.target.dtype == np.int64
    assert len(first) == len(first.target) > 0
    for ids in (first.source, first.target):
        assert ids.min() >= 0
        assert ids.max() < first.n


def gini(degrees) -> float:
    ordered = np.sort(degrees).astype(float)
    ranks = np.arange(1, len(ordered) + 1)
    return float((2 * ranks - len(ordered) - 1) @ ordered / (len(ordered) * ordered.sum()))


def test_heavy_tails_and_their_negative_control():
    def unequal(graph):
        return gini(np.bincount(graph.source, minlength=graph.n))

    flat = unequal(graphgen.erdos_renyi(2000, 0.004))
    assert flat < 0.3
    for graph in (
        graphgen.rmat(11, 8000),
        graphgen.power_law(2000, 4.0, exponent=2.1),
        graphgen.barabasi_albert(2000, 4, directed=True),
    ):
        assert unequal(graph) > flat + 0.1


def test_rmat_quadrants():
    graph = graphgen.rmat(8, 200_000, shuffle=False)
    quadrant = 2 * (graph.source >> 7) + (graph.target >> 7)
    share = np.bincount(quadrant, minlength=4) / len(graph)
    # Four standard deviations of a share of 200,000 are below .0045.
    assert np.abs(share - [0.57, 0.19, 0.19, 0.05]).max() < 0.0045


def test_preferential_attachment_by_the_slow_way():
    n, links = 60, 2
    graph = graphgen.barabasi_albert(n, links, seed=5)
    assert (graph.source <= graph.target).all()
    # The same draws, resolved one by one as the published algorithm does.
    from shoal.core.seeds import philox

    draws = philox(5, "barabasi_albert").random(n * links)
    places: list[int] = []
    for i in range(n * links):
        places.append(i // links)
        places.append(places[int(draws[i] * (2 * i + 1))])
    assert graph.source.tolist() == places[1::2]
    assert graph.target.tolist() == places[0::2]


@pytest.mark.parametrize("directed", [True, False])
@pytest.mark.parametrize("p", [0.0, 0.03, 0.6, 1.0])
def test_erdos_renyi_counts_each_pair_once(directed, p):
    n = 120
    graph = graphgen.erdos_renyi(n, p, directed=directed, seed=3)
    pairs = n * (n - 1) if directed else n * (n - 1) // 2
    assert abs(len(graph) - p * pairs) <= 5 * np.sqrt(pairs * p * (1 - p)) + 1e-9
    assert (graph.source != graph.target).all()
    assert len(np.unique(graph.source * n + graph.target)) == len(graph)
    if not directed:
        assert (graph.source < graph.target).all()


def test_erdos_renyi_hits_all_pairs_alike():
    hits = np.zeros((6, 6))
    for seed in range(2000):
        graph = graphgen.erdos_renyi(6, 0.3, directed=False, seed=seed)
        hits[graph.source, graph.target] += 1
    each = hits[np.triu_indices(6, 1)]
    # 15 binomials of 2,000 draws: 5 standard deviations, a false alarm below 1e-5.
    assert np.abs(each - 600).max() < 5 * np.sqrt(2000 * 0.3 * 0.7)


def test_watts_strogatz_is_a_ring_without_rewiring():
    ring = graphgen.watts_strogatz(10, 4, 0.0)
    distance = (ring.target - ring.source) % 10
    assert sorted(distance.tolist()) == [1] * 10 + [2] * 10
    moved = graphgen.watts_strogatz(1000, 4, 1.0)
    assert (moved.source != moved.target).all()
    assert np.mean((moved.target - moved.source) % 1000 <= 2) < 0.02


def test_blocks_have_their_densities():
    graph = graphgen.stochastic_blocks([200, 300], [[0.2, 0.0], [0.05, 1.0]], seed=1)
    block = (graph.source >= 200) * 2 + (graph.target >= 200)
    count = np.bincount(block, minlength=4)
    assert count[1] == 0
    assert count[3] == 300 * 299
    assert abs(count[0] - 0.2 * 200 * 199) < 5 * np.sqrt(200 * 199 * 0.16)
    single = graphgen.stochastic_blocks([1], [[1.0]])
    assert len(single) == 0
    mixed = graphgen.stochastic_blocks([50, 50], [[0.5, 0], [0, 0.5]], directed=False, shuffle=True)
    assert np.mean((mixed.source < 50) == (mixed.target < 50)) < 0.7


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: graphgen.rmat(0, 5), "scale"),
        (lambda: graphgen.rmat(31, 5), "scale"),
        (lambda: graphgen.rmat(4, -1), "arcs"),
        (lambda: graphgen.rmat(4, 5, probabilities=(0.5, 0.5, 0.5, 0.5)), "probabilities"),
        (lambda: graphgen.barabasi_albert(5, 0), "links"),
        (lambda: graphgen.power_law(5, 0.0), "mean_degree"),
        (lambda: graphgen.power_law(5, 1.0, exponent=1.0), "exponent"),
        (lambda: graphgen.power_law(5, 1.0, correlation=float("nan")), "correlation"),
        (lambda: graphgen.erdos_renyi(5, 1.5), "p"),
        (lambda: graphgen.erdos_renyi(True, 0.5), "n"),
        (lambda: graphgen.watts_strogatz(10, 3, 0.1), "neighbours"),
        (lambda: graphgen.watts_strogatz(10, 10, 0.1), "neighbours"),
        (lambda: graphgen.stochastic_blocks([3, 3], [[0.1]]), "p"),
        (lambda: graphgen.stochastic_blocks([3], [[float("nan")]]), "p"),
        (lambda: graphgen.stochastic_blocks([2, 2], [[0, 1], [0, 0]], directed=False), "p"),
    ],
)
def test_wrong_parameters_are_named(make, field):
    with pytest.raises(InputError) as caught:
        make()
    assert caught.value.field == field


def test_too_many_pairs():
    with pytest.raises(LimitError):
        graphgen.erdos_renyi(2**27, 1e-15)
