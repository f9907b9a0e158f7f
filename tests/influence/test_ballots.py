"""Votes and counts against searches from every node, and the choice against degree."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import InputError
from shoal.data.graphgen import power_law
from shoal.influence import FastCover, Graph
from shoal.influence import _ballot_kernels as kernels
from shoal.influence.ballots import BallotNet, batch_sizes, cast_votes, features, select
from shoal.influence.counting import distance_labels


def graph_of(n, seed=0, mean_degree=2.0):
    made = power_law(n, mean_degree, seed=seed)
    return Graph.from_edges(made.source, made.target, n=n, directed=True)


def votes_by_search(graph, labels, hops, strengths, allowed):
    votes = np.zeros(graph.n, dtype=np.int64)
    within = [distance_labels(graph, [u], hops) <= hops for u in range(graph.n)]
    for j in range(graph.n):
        if labels[j] > hops:
            near = [u for u in range(graph.n) if within[u][j] and allowed[u] and labels[u] != 0]
            if near:
                votes[min(near, key=lambda u: (-strengths[u], u))] += 1
    return votes


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    hops=st.integers(1, 4),
    chosen=st.integers(0, 4),
    levels=st.integers(1, 50),
)
def test_votes_go_to_the_strongest_within_reach(seed, hops, chosen, levels):
    graph = graph_of(40, seed)
    rng = np.random.default_rng(seed)
    labels = distance_labels(graph, rng.permutation(graph.n)[:chosen], hops)
    strengths = (rng.integers(-levels, levels, graph.n) / 3).astype(np.float32)
    allowed = (rng.random(graph.n) < 0.8).astype(np.uint8)
    votes = cast_votes(graph, labels, hops, strengths, allowed=allowed)
    assert votes.tolist() == votes_by_search(graph, labels, hops, strengths, allowed).tolist()


def test_one_sweep_too_few_is_seen_by_that_check():
    graph = graph_of(60, 1)
    labels = np.full(graph.n, 127, dtype=np.int8)
    strengths = np.random.default_rng(0).random(graph.n).astype(np.float32)
    allowed = np.ones(graph.n, dtype=np.uint8)
    fewer = cast_votes(graph, labels, 1, strengths)
    assert fewer.tolist() != votes_by_search(graph, labels, 2, strengths, allowed).tolist()


def walks(graph, labels, hops, start, step):
    """The recursion of reach_lanes, written from its formula."""
    now = start * (labels > hops)
    for level in range(hops - 1, -1, -1):
        after = np.zeros(graph.n)
        for w in range(graph.n):
            if labels[w] > level:
                after[w] = start[w] * (labels[w] > hops)
                for x in graph.out_ids[graph.out_ptr[w] : graph.out_ptr[w + 1]]:
                    if labels[x] > level + 1:
                        after[w] += step[x] * now[x]
        now = after
    return now


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_lanes_follow_their_recursion(hops):
    graph = graph_of(80, 3)
    labels = distance_labels(graph, [0, 5], hops)
    share = 1 / np.maximum(graph.in_degrees(), 1)
    one = np.ones(graph.n)
    lanes = kernels.reach_lanes(graph.out_ptr, graph.out_ids, graph.in_ptr, labels, np.int64(hops))
    for lane, (start, step) in enumerate(
        [(one, one), (one, np.sqrt(share)), (one, share), (share, share)]
    ):
        assert np.allclose(lanes[:, lane], walks(graph, labels, hops, start, step), rtol=1e-5)


def test_first_lane_is_the_gain_at_one_hop_and_a_bound_beyond():
    graph = graph_of(60, 4)
    for hops in (1, 2, 3):
        labels = distance_labels(graph, [7], hops)
        uncovered = labels > hops
        gains = [
            np.count_nonzero((distance_labels(graph, [v], hops) <= hops) & uncovered)
            for v in range(graph.n)
        ]
        bound = kernels.reach_lanes(
            graph.out_ptr, graph.out_ids, graph.in_ptr, labels, np.int64(hops)
        )[:, 0]
        assert (bound >= np.array(gains)).all()
        assert hops > 1 or np.array_equal(bound, gains)


def test_counts_of_walks_stop_before_infinity():
    n = 60
    pairs = [(u, v) for u in range(n) for v in range(n) if u != v]
    graph = Graph.from_edges(*zip(*pairs, strict=True), n=n, directed=True)
    labels = np.full(n, 127, dtype=np.int8)
    assert np.isfinite(features(graph, labels, 60, 1)).all()


def test_batches_grow_and_make_k():
    for k in (1, 2, 3, 7, 10, 1000):
        for passes in (1, 2, 4, 8):
            sizes = batch_sizes(k, passes)
            assert sum(sizes) == k
            assert min(sizes) >= 1


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_choice_is_distinct_allowed_and_ends_when_all_is_covered(hops):
    graph = graph_of(400, 2)
    net = BallotNet(FastCover.bundled(hops, form="improved").weights)
    allowed = np.zeros(graph.n, dtype=np.uint8)
    allowed[::2] = 1
    rows = select(graph, 50, hops, net, allowed=allowed)
    assert len(set(rows.tolist())) == len(rows)
    assert (rows % 2 == 0).all()
    everything = select(graph, graph.n, hops, net)
    assert (distance_labels(graph, everything, hops) <= hops).all()
    assert len(everything) < graph.n


def test_strengths_that_are_no_numbers_are_refused():
    graph = graph_of(20)
    labels = np.full(graph.n, 127, dtype=np.int8)
    strengths = np.zeros(graph.n, dtype=np.float32)
    strengths[3] = np.nan
    with pytest.raises(InputError, match="row 4"):
        cast_votes(graph, labels, 1, strengths)
