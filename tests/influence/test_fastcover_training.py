"""Training: better than it began, the same again for a seed, and able to go on."""

import numpy as np
import pytest

pytest.importorskip("torch")

from shoal.core.errors import InputError, UnavailableError
from shoal.data.graphgen import power_law
from shoal.influence import FastCover, Graph, max_cover
from shoal.influence.ballot_training import BallotConfig, assignment
from shoal.influence.counting import distance_labels
from shoal.influence.training import (
    GRATConfig,
    Judge,
    degree_correlation,
    top_rows,
    train_grat,
)

SMALL = {
    "paper": GRATConfig(hidden=8, epochs=6, top=16),
    "improved": BallotConfig(hidden=4, epochs=4, steps=5, sizes=(5, 20), voters=64, seeds=50),
}


def graph_of(seed=0, n=400, *, mean_degree=4.0):
    made = power_law(n, mean_degree, seed=seed)
    return Graph.from_edges(made.source, made.target, n=n, directed=True)


def trained(form, hops=1, *, epochs=None, checkpoint=None, seed=1):
    model = FastCover(hops, form=form, seed=seed, config=SMALL[form])
    return model.fit([graph_of(0), graph_of(1)], epochs=epochs, checkpoint=checkpoint)


@pytest.mark.parametrize("form", ["paper", "improved"])
def test_same_seed_gives_the_same_weights_and_another_other_ones(form):
    first, again, other = trained(form), trained(form), trained(form, seed=2)
    for name, array in first.weights.items():
        assert np.array_equal(array, again.weights[name])
    assert any(not np.array_equal(a, other.weights[n]) for n, a in first.weights.items())


@pytest.mark.parametrize("form", ["paper", "improved"])
def test_training_that_stopped_goes_on_as_if_it_had_not(form, tmp_path, monkeypatch):
    file = tmp_path / "state"
    whole = trained(form)
    name = "training" if form == "paper" else "ballot_training"
    module = __import__(f"shoal.influence.{name}", fromlist=["_epoch"])
    real, calls = module._epoch, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(module, "_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(form, checkpoint=file)
    monkeypatch.setattr(module, "_epoch", real)
    resumed = trained(form, checkpoint=file)
    assert resumed.training == whole.training
    for key, array in whole.weights.items():
        assert np.array_equal(array, resumed.weights[key])
    with pytest.raises(InputError, match="another training"):
        trained(form, checkpoint=file, seed=9)


def test_the_papers_training_learns_to_cover():
    graph = graph_of(5, 600)
    model = FastCover(1, config=GRATConfig(epochs=12)).fit([graph_of(0), graph_of(1)])
    rows = model.select(graph, 32)
    greedy = max_cover(graph, 32, 1, method="exact").covered
    assert np.count_nonzero(distance_labels(graph, rows, 1) <= 1) > 0.8 * greedy
    assert model.training["degree_correlation"] > 0


def test_a_ranking_that_is_upside_down_is_said(monkeypatch):
    from shoal.influence import training

    monkeypatch.setattr(training, "degree_correlation", lambda scores, graph: -0.5)
    with pytest.warns(RuntimeWarning, match="against the degrees"):
        trained("paper", epochs=1)


def test_a_learning_rate_that_explodes_is_said():
    model = FastCover(1, config=GRATConfig(hidden=8, learning_rate=1e30))
    with pytest.raises(InputError, match="finite"):
        model.fit([graph_of(0)])
    with pytest.raises(InputError, match="config"):
        FastCover(1, form="improved", config=GRATConfig()).fit([graph_of(0)])


@pytest.mark.parametrize("form", ["paper", "improved"])
def test_training_starts_where_another_ended(form):
    graph = graph_of(0)
    other = trained(form)
    slow = {"learning_rate": 1e-12, "epochs": 1}
    config = type(SMALL[form])(**{**SMALL[form].model_dump(), **slow})
    model = FastCover(2, form=form, seed=5, config=config).fit([graph], start=other)
    for name, array in other.weights.items():
        assert np.allclose(model.weights[name], array, atol=1e-6)
    wrong = FastCover(1, form="paper" if form == "improved" else "improved")
    with pytest.raises(InputError, match="start"):
        wrong.fit([graph], start=other)


def test_devices_that_are_not_there_are_named():
    with pytest.raises(UnavailableError, match="nowhere"):
        FastCover(1).fit([graph_of(0)], device="nowhere")
    with pytest.raises(UnavailableError, match="nowhere"):
        FastCover.bundled(1).score(graph_of(0), device="nowhere")


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_compiled_and_torch_scores_agree(hops):
    graph = graph_of(4, 2000)
    model = FastCover.bundled(hops)
    fused, plain = model.score(graph), model.score(graph, fused=False)
    assert np.abs(fused - plain).max() <= 1e-5 * np.abs(plain).max()


def test_judge_gives_greedy_itself_one():
    graph = graph_of(3)
    for hops in (1, 2):
        rows = max_cover(graph, 20, hops, method="exact").rows
        judge = Judge([graph], hops, [5, 20])
        assert judge.ratios(0, rows) == [1.0, 1.0]
        assert judge.ratios(0, rows[::-1])[0] < 1.0


def test_assignment_names_the_first_seed_within_reach():
    graph = graph_of(2)
    rows = max_cover(graph, 10, 2, method="exact").rows
    first = assignment(graph, rows, 2)
    for place in range(len(rows) + 1):
        near = distance_labels(graph, rows[:place], 2) <= 2
        assert np.array_equal(near, (first >= 0) & (first < place))


def test_rank_correlation_and_top_rows():
    graph = graph_of(1)
    degrees = graph.out_degrees().astype(np.float64)
    assert degree_correlation(degrees**3, graph) == pytest.approx(1.0)
    assert degree_correlation(-degrees, graph) == pytest.approx(-1.0)
    assert degree_correlation(np.zeros(graph.n), graph) == 0.0
    assert top_rows(np.array([1.0, 3.0, 3.0, 2.0]), 3).tolist() == [1, 2, 3]


def test_other_nets_train_in_the_same_loop():
    from torch import nn

    class Degree(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(__import__("torch").zeros(()))

        def forward(self, arcs):
            ones = self.weight.new_ones(len(arcs.influencer))
            return self.weight * ones.new_zeros(arcs.n).index_add(0, arcs.influencer, ones)

    weights, report = train_grat(
        [graph_of(0)],
        [graph_of(1)],
        1,
        config=GRATConfig(epochs=2),
        seed=0,
        network=Degree,
    )
    assert set(weights) == {"weight"}
    assert len(report.losses) == 2


@pytest.mark.gpu
def test_training_on_the_accelerator():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs an accelerator")
    for form in ("paper", "improved"):
        model = FastCover(1, form=form, config=SMALL[form])
        model.fit([graph_of(0)], device="cuda")
        assert np.isfinite(model.score(graph_of(1))).all()
