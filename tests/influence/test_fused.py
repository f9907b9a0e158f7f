"""The fused forward pass against the plain one, with logits as large as trained nets have."""

import numpy as np
import pytest

from shoal.core.errors import InputError
from shoal.data.graphgen import power_law
from shoal.influence import Graph
from shoal.influence.fused import forward, fused_forward, layer_count, plain_forward, vote


def graph_of(n, seed=0, *, directed=True):
    made = power_law(n, 4.0, seed=seed, directed=directed)
    return Graph.from_edges(made.source, made.target, n=n, directed=directed)


def weights_of(layers=3, hidden=32, *, seed=0, attention=1.0, variant="GRAT"):
    """Weights as PyTorch draws them, without it; ``attention`` makes its logits larger."""
    rng = np.random.default_rng(seed)
    weights = {}
    for layer in range(layers):
        out = 1 if layer == layers - 1 else hidden
        read = hidden if variant == "GRAT" else out
        bound = 1 / np.sqrt(hidden)
        drawn = {
            "linear.weight": rng.uniform(-bound, bound, (out, hidden)),
            "attention.weight": attention * rng.uniform(-bound, bound, (1, 2 * read)),
        }
        if variant == "GRAT":
            drawn["linear.bias"] = rng.uniform(-bound, bound, out)
            drawn["attention.bias"] = rng.uniform(-bound, bound, 1)
        for name, array in drawn.items():
            weights[f"layers.{layer}.{name}"] = array.astype(np.float32)
    return weights


@pytest.mark.parametrize("directed", [True, False])
@pytest.mark.parametrize("attention", [0.0, 1.0, 30.0, 1000.0, -1000.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fused_equals_plain(attention, seed, directed):
    graph = graph_of(3000, seed, directed=directed)
    weights = weights_of(seed=seed, attention=attention)
    plain = plain_forward(weights, graph)
    fused = fused_forward(weights, graph)
    assert np.isfinite(fused).all()
    # An attention logit in the thousands leaves float32 four digits after the point.
    tolerance = 1e-5 if abs(attention) <= 30 else 5e-5
    assert np.abs(fused - plain).max() <= tolerance * np.abs(plain).max()


def test_one_wrong_weight_is_seen_by_that_check():
    graph = graph_of(3000)
    weights = weights_of()
    plain = plain_forward(weights, graph)
    weights["layers.1.attention.weight"] = weights["layers.1.attention.weight"][:, ::-1].copy()
    fused = fused_forward(weights, graph)
    assert np.abs(fused - plain).max() > 1e-4 * np.abs(plain).max()


def test_hidden_widths_that_are_no_multiple_of_four():
    graph = graph_of(500)
    for hidden in (1, 7, 30):
        weights = weights_of(hidden=hidden)
        assert np.allclose(fused_forward(weights, graph), plain_forward(weights, graph), atol=1e-5)


def test_other_nets_take_the_plain_form():
    graph = graph_of(200)
    for layers, variant in ((2, "GRAT"), (4, "GRAT"), (3, "GRATV")):
        weights = weights_of(layers, 8, variant=variant)
        assert layer_count(weights) == layers
        assert fused_forward(weights, graph) is None
        assert np.isfinite(forward(weights, graph)).all()
    with pytest.raises(InputError, match="weights"):
        forward({"layers.0.linear.weight": np.ones((2, 2), np.float32)}, graph)


def test_graphs_without_arcs_and_without_nodes():
    weights = weights_of()
    empty = Graph.from_edges([], [], n=4, directed=True)
    assert np.allclose(fused_forward(weights, empty), plain_forward(weights, empty), atol=1e-6)
    assert len(fused_forward(weights, Graph.from_edges([], [], n=0, directed=True))) == 0


def test_vote_is_each_nodes_unit_split():
    graph = graph_of(300)
    source = np.repeat(np.arange(graph.n), graph.out_degrees())
    expected = np.bincount(source, 1 / graph.in_degrees()[graph.out_ids], graph.n)
    assert np.allclose(vote(graph), expected, rtol=1e-6)
    assert np.isclose(vote(graph).sum(), np.count_nonzero(graph.in_degrees()))


@pytest.mark.parametrize("variant", ["GRAT", "GRATV"])
def test_plain_equals_torch(variant):
    torch = pytest.importorskip("torch")
    from shoal.influence.grat import GRAT, arcs_of

    graph = graph_of(400)
    net = GRAT(3, 8, variant=variant).double()
    weights = {name: t.numpy() for name, t in net.state_dict().items()}
    with torch.no_grad():
        scores = net(arcs_of(graph)).numpy()
    assert np.allclose(plain_forward(weights, graph), scores, atol=1e-12)
