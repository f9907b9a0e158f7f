"""Random walks: their law, their matrix, and the kernels that train on them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from shoal.core.errors import InputError
from shoal.core.seeds import philox
from shoal.spatial import _social_kernels as kernels
from shoal.spatial import randomwalks
from shoal.spatial.randomwalks import largest_window, log_walk_matrix, random_walks
from shoal.spatial.socialgraph import FriendGraph

#: A test of a law fails by chance once in a million graphs and seeds.
ERROR_RATE = 1e-6

# A square with one diagonal, a tail and a triangle at its end: every kind of step occurs.
KITE = FriendGraph.build(
    np.array([[0, 1], [1, 2], [2, 3], [3, 0], [0, 2], [3, 4], [4, 5], [5, 6], [6, 4]])
)


def step_law(graph, before, here, p, q):
    """Slow and obvious: the probability of each next user."""
    friends = graph.of(here).tolist()
    weight = {}
    for x in friends:
        if x == before:
            weight[x] = 1 / p
        elif x in graph.of(before).tolist():
            weight[x] = 1.0
        else:
            weight[x] = 1 / q
    total = sum(weight.values())
    return {x: w / total for x, w in weight.items()}


def p_value(graph, walks, p, q):
    """Chi-square over all second-order steps of the walks against the law."""
    seen: dict[tuple[int, int], dict[int, int]] = {}
    for before, here, to in np.lib.stride_tricks.sliding_window_view(walks, 3, axis=1).reshape(
        -1, 3
    ):
        if to >= 0:
            row = seen.setdefault((int(before), int(here)), {})
            row[int(to)] = row.get(int(to), 0) + 1
    statistic, freedom = 0.0, 0
    for (before, here), row in seen.items():
        law = step_law(graph, before, here, p, q)
        assert set(row) <= set(law)
        total = sum(row.values())
        if total * min(law.values()) < 5:
            continue
        statistic += sum((row.get(x, 0) - total * w) ** 2 / (total * w) for x, w in law.items())
        freedom += len(law) - 1
    assert freedom > 5
    return chi2.sf(statistic, freedom)


def kite_walks(p, q, seed=0):
    starts = np.tile(np.arange(len(KITE)), 400)
    return random_walks(KITE, starts, length=12, p=p, q=q, seed=seed)


@pytest.mark.parametrize(("p", "q"), [(1, 1), (0.25, 1), (4, 1), (1, 0.25), (1, 4), (0.3, 3)])
def test_steps_follow_the_law(p, q):
    assert p_value(KITE, kite_walks(p, q), p, q) > ERROR_RATE


@pytest.mark.parametrize(
    ("walked", "claimed"), [((1, 1), (1, 4)), ((1, 1), (4, 1)), ((1, 4), (1, 3)), ((4, 1), (1, 4))]
)
def test_a_walker_that_ignores_a_bias_is_caught(walked, claimed):
    assert p_value(KITE, kite_walks(*walked), *claimed) < ERROR_RATE


def test_the_first_step_is_uniform():
    walks = random_walks(KITE, np.zeros(3000, dtype=np.int64), length=2, p=9, q=0.1)
    counts = np.bincount(walks[:, 1], minlength=len(KITE))[KITE.of(0)]
    statistic = ((counts - 1000) ** 2 / 1000).sum()
    assert chi2.sf(statistic, 2) > ERROR_RATE


def test_hubs_with_extreme_biases_take_the_exact_table():
    # From a leaf, the hub's other leaves weigh 1/500 each: rejection nearly always gives up.
    star = FriendGraph.build(np.array([[0, leaf] for leaf in range(1, 61)]))
    starts = np.repeat(np.arange(1, 61), 100)
    walks = random_walks(star, starts, length=3, q=500)
    back = (walks[:, 2] == walks[:, 0]).mean()
    law = 1 / (1 + 59 / 500)
    assert abs(back - law) < 5 * math.sqrt(law * (1 - law) / len(walks))  # 6e-7 by chance
    assert len(np.unique(walks[walks[:, 2] != walks[:, 0], 2])) > 50


def test_a_walk_is_the_same_whatever_is_drawn_beside_it():
    starts = np.arange(7).repeat(3)
    whole = random_walks(KITE, starts, length=9, p=0.5, q=2, seed=5)
    part = random_walks(KITE, starts[10:], length=9, p=0.5, q=2, seed=5, first=10)
    assert (whole[10:] == part).all()
    assert (random_walks(KITE, starts, length=9, p=0.5, q=2, seed=6) != whole).any()


def test_who_has_no_friends_stays():
    graph = FriendGraph.build([[0, 1]], n_users=3)
    assert random_walks(graph, np.array([2, 0]), length=4).tolist() == [
        [2, -1, -1, -1],
        [0, 1, 0, 1],
    ]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [({"p": 0}, "p"), ({"q": -1}, "q"), ({"q": math.nan}, "q"), ({"length": 0}, "length")],
)
def test_wrong_walks_are_refused(wrong, field):
    with pytest.raises(InputError) as caught:
        random_walks(KITE, np.array([0]), **wrong)
    assert caught.value.field == field


def test_a_start_outside_is_refused():
    with pytest.raises(InputError, match="starts at a user"):
        random_walks(KITE, np.array([7]))


# --- the matrix of all walks --------------------------------------------------------------------


def dense_matrix(graph, window, negatives):
    """NetMF's matrix, word for word."""
    a = graph.adjacency().toarray()
    degree = a.sum(axis=1)
    inverse = np.diag([1 / x if x else 0.0 for x in degree])
    step = inverse @ a
    total = sum(np.linalg.matrix_power(step, r) for r in range(1, window + 1))
    scaled = degree.sum() / (negatives * window) * total @ inverse
    return np.log(np.maximum(scaled, 1.0))


GRAPHS = st.integers(2, 12).flatmap(
    lambda n: st.sets(st.sampled_from(list(itertools.combinations(range(n), 2))), min_size=1).map(
        lambda pairs: FriendGraph.build(np.array(sorted(pairs)), n_users=n)
    )
)


@given(graph=GRAPHS, window=st.integers(1, 4), negatives=st.sampled_from([0.5, 1.0, 5.0]))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_matrix_is_that_of_the_formula(graph, window, negatives):
    got = log_walk_matrix(graph, window=window, negatives=negatives).toarray()
    np.testing.assert_allclose(got, dense_matrix(graph, window, negatives), atol=1e-12)
    np.testing.assert_allclose(got, got.T, atol=1e-12)


def test_blocks_of_rows_change_nothing(monkeypatch):
    pairs = philox(0, "graph").integers(0, 60, (200, 2))
    graph = FriendGraph.build(pairs, n_users=60)
    whole = log_walk_matrix(graph).toarray()
    monkeypatch.setattr(randomwalks, "_BLOCK_PRODUCTS", 100)
    assert (log_walk_matrix(graph).toarray() == whole).all()


def test_no_user_no_matrix():
    assert log_walk_matrix(FriendGraph.empty()).shape == (0, 0)
    assert log_walk_matrix(FriendGraph.empty(3)).nnz == 0


def test_the_window_shrinks_before_the_memory_ends():
    star = FriendGraph.build(np.array([[0, leaf] for leaf in range(1, 1001)]))
    # Two steps from a leaf reach all leaves: a million entries.
    assert largest_window(star, 3, budget=1e7) == 3
    assert largest_window(star, 3, budget=1.5e6) == 2
    assert largest_window(star, 3, budget=1e5) == 1


# --- alias tables, skip-gram, LINE ---------------------------------------------------------------


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40).filter(lambda w: sum(w) > 1e-3))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_an_alias_table_holds_the_weights(weights):
    w = np.array(weights)
    accept, other = np.empty(len(w)), np.empty(len(w), dtype=np.int64)
    kernels.alias_table(w, accept, other)
    held = accept / len(w)
    np.add.at(held, other, (1 - accept) / len(w))
    np.testing.assert_allclose(held, w / w.sum(), atol=1e-9)


class SlowStream:
    """SplitMix64 in Python's own integers."""

    MASK = 2**64 - 1
    GOLDEN = 0x9E3779B97F4A7C15

    def __init__(self, seed, number):
        self.state = self.mix((seed + self.GOLDEN * (number + 1)) & self.MASK)

    def mix(self, x):
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & self.MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & self.MASK
        return x ^ (x >> 31)

    def bits(self):
        self.state = (self.state + self.GOLDEN) & self.MASK
        return self.mix(self.state)

    def below(self, n):
        return ((self.bits() >> 32) * n) >> 32

    def unit(self):
        return (self.bits() >> 11) * 2.0**-53


def slow_learn(source, u, target, v, *, table, negatives, rate, stream):
    accept, other = table
    step = np.zeros(source.shape[1])
    for n in range(negatives + 1):
        t, goal = v, 1.0
        if n:
            i = stream.below(len(accept))
            t = i if stream.unit() < accept[i] else int(other[i])
            goal = 0.0
            if t == v:
                continue
        g = (goal - 1 / (1 + math.exp(-float(source[u] @ target[t])))) * rate
        step += g * target[t]
        target[t] += g * source[u]
    source[u] += step


def slow_skip_gram(walks, first, centre, context, *, table, window, negatives, rate, fall, seed):
    for i, one in enumerate(walks.tolist()):
        stream = SlowStream(seed, first + i)
        for a, u in enumerate(one):
            if u < 0:
                break
            reach = 1 + stream.below(window)
            for b in range(max(0, a - reach), min(len(one), a + reach + 1)):
                v = one[b]
                if b != a and v >= 0 and v != u:
                    now = max(rate - fall * i, rate * 1e-4)
                    slow_learn(
                        centre,
                        u,
                        context,
                        v,
                        table=table,
                        negatives=negatives,
                        rate=now,
                        stream=stream,
                    )


def noise_of(graph):
    accept, other = np.empty(len(graph)), np.empty(len(graph), dtype=np.int64)
    kernels.alias_table(graph.degree**0.75, accept, other)
    return accept, other


def start_vectors(dim, name):
    return philox(0, name).standard_normal((len(KITE), dim)) * 0.3


@pytest.mark.parametrize("dim", [3, 8, 13])
def test_skip_gram_is_the_slow_one(dim):
    walks = random_walks(KITE, np.array([0, 4, 6]), length=8)
    walks[1, 6:] = -1
    slow = [start_vectors(dim, "centre"), start_vectors(dim, "context")]
    fast = [array.astype(np.float32) for array in slow]
    table = noise_of(KITE)
    slow_skip_gram(
        walks, 7, *slow, table=table, window=3, negatives=2, rate=0.1, fall=0.01, seed=99
    )
    kernels.train_skip_gram(walks, 7, *fast, *table, 3, 2, 0.1, 0.01, np.uint64(99))
    for got, wanted in zip(fast, slow, strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-6)


@pytest.mark.parametrize("second", [False, True])
def test_line_is_the_slow_one(second):
    ends, others = KITE.pairs().T.astype(np.int32)
    ends, others = np.ascontiguousarray(ends), np.ascontiguousarray(others)
    source, target = start_vectors(8, "source"), start_vectors(8, "target")
    fast = source.astype(np.float32)
    fast_target = target.astype(np.float32) if second else fast
    if not second:
        target = source
    table = noise_of(KITE)
    stream = SlowStream(3, 5)
    for i in range(50):
        bits = stream.bits()
        edge = ((bits >> 32) * len(ends)) >> 32
        u, v = int(ends[edge]), int(others[edge])
        if bits & 1:
            u, v = v, u
        slow_learn(
            source, u, target, v, table=table, negatives=4, rate=0.2 - 0.001 * i, stream=stream
        )
    kernels.train_line(ends, others, 5, 50, fast, fast_target, *table, 4, 0.2, 0.001, np.uint64(3))
    np.testing.assert_allclose(fast, source, atol=2e-6)
    np.testing.assert_allclose(fast_target, target, atol=2e-6)
