"""GRAT against its formulas written out densely, and the loss against a dense one."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from shoal.core.errors import InputError  # noqa: E402
from shoal.data.graphgen import power_law  # noqa: E402
from shoal.influence import GRAT, Graph, GRATConv  # noqa: E402
from shoal.influence.counting import distance_labels  # noqa: E402
from shoal.influence.grat import Arcs, arcs_of, reversed_softmax  # noqa: E402
from shoal.influence.losses import closure_of, cover_loss, log_missed  # noqa: E402


def graph_of(n=30, seed=0, *, mean_degree=3.0):
    made = power_law(n, mean_degree, seed=seed)
    return Graph.from_edges(made.source, made.target, n=n, directed=True)


def dense_layer(conv, h, graph):
    """The layer as the paper writes it, node by node."""
    n, relu = graph.n, torch.relu
    a, bias = conv.attention.weight[0], conv.attention.bias
    half = len(a) // 2
    adjacency = np.zeros((n, n), dtype=bool)
    adjacency[np.repeat(np.arange(n), graph.out_degrees()), graph.out_ids] = True
    plain = conv.variant == "GRAT"
    read = h if plain else h @ conv.linear.weight.T
    alpha = torch.zeros(n, n, dtype=h.dtype)
    for v in range(n):
        influencers = np.flatnonzero(adjacency[:, v])
        if len(influencers):
            logits = [a[:half] @ read[v] + a[half:] @ read[u] for u in influencers]
            logits = torch.stack(logits)
            logits = relu(logits + bias) if plain else torch.nn.functional.leaky_relu(logits)
            alpha = alpha.index_put(
                (torch.tensor(influencers), torch.tensor(v)), torch.softmax(logits, 0)
            )
    out = alpha @ read
    return (out @ conv.linear.weight.T + conv.linear.bias if plain else out), alpha


@pytest.mark.parametrize("variant", ["GRAT", "GRATV"])
def test_layer_and_its_gradients_equal_the_formula(variant):
    graph = graph_of()
    torch.manual_seed(1)
    conv = GRATConv(5, 4, variant=variant).double()
    h = torch.randn(graph.n, 5, dtype=torch.float64, requires_grad=True)
    ours = conv(h, arcs_of(graph))
    dense, _ = dense_layer(conv, h, graph)
    assert torch.allclose(ours, dense, atol=1e-12)
    probe = torch.randn_like(ours)
    names = [h, *conv.parameters()]
    for a, b in zip(
        torch.autograd.grad((ours * probe).sum(), names),
        torch.autograd.grad((dense * probe).sum(), names),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-10)


def attention_sums(weigh, graph):
    torch.manual_seed(2)
    conv = GRATConv(4, 4).double()
    arcs = arcs_of(graph)
    h = torch.randn(graph.n, 4, dtype=torch.float64)
    alpha = weigh(conv, h, arcs)
    return torch.zeros(graph.n, dtype=torch.float64).index_add(0, arcs.influenced, alpha)


def test_every_node_splits_one_unit_among_its_influencers():
    graph = graph_of(80)
    sums = attention_sums(lambda conv, h, arcs: conv.weigh(h, arcs), graph)
    influenced = torch.from_numpy(graph.in_degrees() > 0)
    assert torch.allclose(sums[influenced], torch.ones(1, dtype=torch.float64))
    assert (sums[~influenced] == 0).all()


def test_plain_attention_fails_that_check():
    graph = graph_of(80)

    def at_the_receiver(conv, h, arcs):
        turned = Arcs(arcs.n, influencer=arcs.influenced, influenced=arcs.influencer)
        return reversed_softmax(torch.zeros(len(arcs.influencer), dtype=torch.float64), turned)

    sums = attention_sums(at_the_receiver, graph)
    influenced = torch.from_numpy(graph.in_degrees() > 0)
    assert not torch.allclose(sums[influenced], torch.ones(1, dtype=torch.float64), atol=0.1)


def test_large_logits_stay_finite_and_without_the_shift_do_not():
    graph = graph_of(50)
    arcs = arcs_of(graph)
    logits = torch.linspace(300, 2000, len(arcs.influencer))
    alpha = reversed_softmax(logits, arcs)
    assert torch.isfinite(alpha).all()
    weight = torch.exp(logits)  # what the official code does
    total = weight.new_zeros(graph.n).index_add(0, arcs.influenced, weight)
    assert not torch.isfinite(weight / total[arcs.influenced]).all()


def test_nodes_in_another_order_have_the_same_scores():
    graph = graph_of(60, seed=3)
    torch.manual_seed(4)
    net = GRAT(3, 8).double()
    order = np.random.default_rng(0).permutation(graph.n)
    source = np.repeat(np.arange(graph.n), graph.out_degrees())
    moved = Graph.from_edges(order[source], order[graph.out_ids], n=graph.n, directed=True)
    assert torch.allclose(net(arcs_of(graph)), net(arcs_of(moved))[order], atol=1e-12)


def test_isolated_nodes_and_graphs_without_arcs_are_finite():
    graph = Graph.from_edges([0], [1], n=5, directed=True)
    empty = Graph.from_edges([], [], n=3, directed=True)
    for variant in ("GRAT", "GRATV"):
        net = GRAT(3, 8, variant=variant)
        assert torch.isfinite(net(arcs_of(graph))).all()
        assert torch.isfinite(net(arcs_of(empty))).all()


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_loss_and_gradient_equal_the_dense_formula(hops):
    graph = graph_of(40, seed=5, mean_degree=1.5)
    logits = torch.randn(graph.n, dtype=torch.float64, requires_grad=True)
    within = np.array([distance_labels(graph, [i], hops) <= hops for i in range(graph.n)])
    p = torch.sigmoid(logits)
    miss = torch.where(torch.from_numpy(within), 1 - p[:, None], 1.0).prod(0)
    dense = miss.sum() + 0.7 * p.sum()
    ours = cover_loss(logits, closure_of(graph, hops), size_weight=0.7)
    assert torch.allclose(ours, dense, atol=1e-12)
    a = torch.autograd.grad(ours, logits)[0]
    assert torch.allclose(a, torch.autograd.grad(dense, logits)[0], atol=1e-12)


def test_loss_is_finite_where_the_sigmoid_is_one():
    graph = graph_of(40)
    closure = closure_of(graph, 1)
    logits = torch.full((graph.n,), 200.0)
    assert torch.isfinite(log_missed(logits, closure)).all()
    assert torch.isfinite(cover_loss(logits, closure))
    assert not torch.isfinite(torch.log(1 - torch.sigmoid(logits))).all()  # the naive form


def test_wrong_arguments_are_named():
    with pytest.raises(InputError, match="variant"):
        GRATConv(2, 2, variant="GAT")
    with pytest.raises(InputError, match="layers"):
        GRAT(0)
    with pytest.raises(InputError, match="hops"):
        closure_of(graph_of(), 0)


@pytest.mark.gpu
def test_the_accelerator_gives_the_same_scores():
    if not torch.cuda.is_available():
        pytest.skip("needs an accelerator")
    graph = graph_of(2000)
    torch.manual_seed(0)
    net = GRAT()
    here = net(arcs_of(graph))
    there = net.to("cuda")(arcs_of(graph, device="cuda")).cpu()
    assert torch.allclose(here, there, rtol=1e-4, atol=1e-5)
