"""Explanations against plain sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import NotFoundError
from shoal.influence.counting import distance_labels
from shoal.influence.cover import max_cover
from shoal.influence.explaining import explain, who_covers
from shoal.influence.graph import Graph


@settings(max_examples=80)
@given(st.data())
def test_numbers_are_those_of_sets(data):
    n = data.draw(st.integers(2, 10))
    node = st.integers(0, n - 1)
    a, b = (
        np.array(data.draw(st.lists(st.tuples(node, node), max_size=25)), dtype=np.int64)
        .reshape(-1, 2)
        .T
    )
    graph = Graph.from_edges(a, b, directed=True, n=n)
    hops = data.draw(st.integers(1, 3))
    weights = data.draw(
        st.none() | st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=n, max_size=n)
    )
    result = max_cover(graph, data.draw(st.integers(1, n)), hops, weights=weights)
    weight = np.ones(n) if weights is None else np.array(weights)
    sets = [
        set(np.flatnonzero(distance_labels(graph, [v], hops) <= hops).tolist()) for v in range(n)
    ]
    for v in range(n):
        found = explain(result, v)
        others = [s for s in result.seeds if s != v]
        rest = set().union(*(sets[s] for s in others)) if others else set()
        assert found.is_seed == (v in result.seeds)
        assert found.ball == pytest.approx(sum(weight[j] for j in sets[v]))
        alone = sorted(sets[v] - rest)
        assert found.alone == pytest.approx(sum(weight[j] for j in alone))
        assert (found.alone_count, found.alone_sample) == (len(alone), tuple(alone[:10]))
        assert found.alone + found.shared == pytest.approx(found.ball)
        assert str(v) in str(found)
        if found.is_seed:
            assert result.seeds[found.turn - 1] == v
            assert found.gain == result.gains[found.turn - 1]
            gains = {
                u: sum(weight[j] for j in sets[u] - rest) for u in range(n) if u not in result.seeds
            }
            if gains and max(gains.values()) > 0:
                assert found.replacement_gain == pytest.approx(max(gains.values()))
                assert gains[found.replacement] == pytest.approx(found.replacement_gain)
            else:
                assert found.replacement is None
        else:
            assert found.gain == found.alone and found.turn is None
        covering = who_covers(result, v)
        assert {s for s, _ in covering} == {s for s in result.seeds if v in sets[s]}
        assert [d for _, d in covering] == sorted(d for _, d in covering)


def test_a_node_in_the_shade_of_a_seed():
    graph = Graph.from_edges(
        ["hub"] * 4 + ["next"] * 2, ["a", "b", "c", "d", "a", "e"], directed=True
    )
    result = max_cover(graph, 1)
    shade = result.explain("next")
    assert (shade.gain, shade.shared, shade.shared_with) == (2.0, 1.0, (("hub", 1),))
    assert "would add 2" in str(shade)
    hub = result.explain("hub")
    assert (hub.turn, hub.alone, hub.replacement, hub.replacement_gain) == (1, 5.0, "next", 3.0)
    assert who_covers(result, "a") == (("hub", 1),)
    assert who_covers(result, "e") == ()
    with pytest.raises(NotFoundError, match="nobody"):
        result.explain("nobody")
