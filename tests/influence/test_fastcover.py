"""FastCover from training to a file and back; bundled nets beat degree, shuffled ones lose."""

import json
import subprocess
import sys

import numpy as np
import pytest

from shoal.core.errors import InputError, IntegrityError, NotFoundError
from shoal.data.graphgen import power_law
from shoal.influence import FastCover, Graph, max_cover
from shoal.influence.counting import distance_labels

MODELS = [(form, hops) for form in ("paper", "improved") for hops in (1, 2, 3)]


def graph_of(n=3000, seed=7, *, mean_degree=3.0, directed=True):
    made = power_law(n, mean_degree, seed=seed, directed=directed)
    return Graph.from_edges(made.source, made.target, n=n, directed=directed)


def covered(graph, rows, hops):
    return np.count_nonzero(distance_labels(graph, rows, hops) <= hops)


def by_degree(graph, k):
    return np.lexsort((np.arange(graph.n), -graph.out_degrees()))[:k]


@pytest.mark.parametrize(("form", "hops"), MODELS)
def test_bundled_weights_beat_degree(form, hops):
    graph, k = graph_of(), 100
    rows = FastCover.bundled(hops, form).select(graph, k)
    greedy = max_cover(graph, k, hops, method="exact").covered
    assert covered(graph, rows, hops) > covered(graph, by_degree(graph, k), hops)
    assert covered(graph, rows, hops) >= (0.8 if form == "paper" else 0.95) * greedy


@pytest.mark.parametrize(("form", "hops"), MODELS)
def test_shuffled_weights_lose(form, hops):
    graph, k = graph_of(), 100
    model = FastCover.bundled(hops, form)
    good = covered(graph, model.select(graph, k), hops)
    rng = np.random.default_rng(3)
    worse = []
    for _ in range(5):
        shuffled = FastCover(hops, form=form)
        shuffled.weights = {
            name: rng.permutation(array.ravel()).reshape(array.shape) * rng.choice([-1, 1])
            for name, array in model.weights.items()
        }
        worse.append(covered(graph, shuffled.select(graph, k), hops))
    assert np.mean(worse) < good


@pytest.mark.parametrize("form", ["paper", "improved"])
def test_choice_of_the_paper_is_nested_and_both_keep_to_the_allowed(form):
    graph = graph_of(800)
    model = FastCover.bundled(2, form)
    long = model.select(graph, 60)
    if form == "paper":
        assert model.select(graph, 20).tolist() == long[:20].tolist()
    allowed = np.ones(graph.n, dtype=bool)
    allowed[long[:10]] = False
    assert not set(model.select(graph, 60, allowed=allowed).tolist()) & set(long[:10].tolist())


@pytest.mark.parametrize("form", ["paper", "improved"])
def test_scores_are_finite_and_rank_with_the_degree(form):
    graph = graph_of()
    scores = FastCover.bundled(1, form).score(graph)
    assert scores.shape == (graph.n,)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()
    assert np.corrcoef(scores, graph.out_degrees())[0, 1] > 0.3


@pytest.mark.parametrize("form", ["paper", "improved"])
def test_scores_that_are_no_numbers_are_never_chosen(form):
    graph = graph_of(200)
    model = FastCover.bundled(1, form)
    name = "layers.2.linear.weight" if form == "paper" else "linear"
    model.weights[name] = np.full_like(model.weights[name], np.nan)
    with pytest.raises(InputError, match="finite"):
        model.select(graph, 5)
    with pytest.raises(InputError, match="finite"):
        model.score(graph)


def test_wrong_arguments_are_named():
    graph = graph_of(50)
    model = FastCover.bundled(1)
    for make, field in (
        (lambda: FastCover(0), "hops"),
        (lambda: FastCover(1.5), "hops"),
        (lambda: FastCover(127), "hops"),
        (lambda: FastCover(1, form="best"), "form"),
        (lambda: FastCover.bundled(4), "hops"),
        (lambda: FastCover.bundled(1, "best"), "form"),
        (lambda: FastCover.bundled(1, seed=7), "seed"),
        (lambda: model.select(graph, 0), "'k'"),
        (lambda: model.select(graph, 51), "'k'"),
        (lambda: model.select(graph, True), "'k'"),
        (lambda: model.select(graph, 5, allowed=[1, 0]), "allowed"),
        (lambda: model.select(graph, 5, passes=0), "passes"),
        (lambda: FastCover(1).score(graph), "FastCover"),
        (lambda: FastCover(1).save("nowhere"), "FastCover"),
        (lambda: FastCover(1).fit([]), "graphs"),
        (lambda: FastCover(1).fit(graph), "graphs"),
        (lambda: FastCover(1).fit([graph, "graph"]), "row 2"),
        (lambda: FastCover(1).fit([Graph.from_edges([], [], n=3, directed=True)]), "no arc"),
    ):
        with pytest.raises(InputError, match=field):
            make()


@pytest.mark.parametrize(("form", "hops"), MODELS)
def test_saved_models_come_back(form, hops, tmp_path):
    graph = graph_of(500)
    model = FastCover.bundled(hops, form)
    model.save(tmp_path / "model")
    again = FastCover.load(tmp_path / "model")
    assert (again.form, again.hops, again.seed) == (form, hops, model.seed)
    assert again.training == model.training
    assert np.array_equal(again.score(graph), model.score(graph))
    again.save(tmp_path / "model")
    assert np.array_equal(FastCover.load(tmp_path / "model").score(graph), model.score(graph))


def test_damaged_and_missing_files_are_refused(tmp_path):
    with pytest.raises(NotFoundError, match="manifest"):
        FastCover.load(tmp_path)
    folder = tmp_path / "model"
    FastCover.bundled(1).save(folder)
    weights = folder / "weights.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(IntegrityError, match="altered"):
        FastCover.load(folder)
    weights.write_bytes(good)
    manifest = folder / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(json.dumps({**json.loads(text), "schema": 9}))
    with pytest.raises(IntegrityError, match="version 9"):
        FastCover.load(folder)
    manifest.write_text(text[:-9])
    with pytest.raises(IntegrityError, match="damaged"):
        FastCover.load(folder)
    manifest.write_text(text)
    weights.unlink()
    with pytest.raises(NotFoundError, match="weights"):
        FastCover.load(folder)


def test_scoring_needs_no_torch_and_training_says_what_to_install():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from shoal.core.errors import UnavailableError\n"
        "from shoal.influence import FastCover, Graph\n"
        "g = Graph.from_edges([0, 0, 1], [1, 2, 3], n=4, directed=True)\n"
        "for form in ('paper', 'improved'):\n"
        "    assert len(FastCover.bundled(1, form).select(g, 2)) >= 1\n"
        "for call in (lambda: FastCover(1).fit([g]), lambda: __import__('shoal.influence.grat')):\n"
        "    try:\n"
        "        call()\n"
        "    except UnavailableError as error:\n"
        "        assert 'torch' in error.hint\n"
        "    else:\n"
        "        raise SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
