"""Pictures: written whole, the same bytes each time, without global state."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from shoal.core.errors import InputError, LimitError, NotFoundError
from shoal.influence.cover import max_cover
from shoal.influence.graph import Graph
from shoal.influence.pictures import draw_comparison, draw_curve, draw_reach, save_picture


@pytest.fixture(scope="module")
def graph() -> Graph:
    rng = np.random.default_rng(0)
    return Graph.from_edges(
        (300 * rng.random(900) ** 3).astype(int), rng.integers(0, 300, 900), directed=True, n=300
    )


def texts(figure) -> str:
    return " | ".join(text.get_text() for axes in figure.axes for text in axes.texts)


def test_the_curve_says_what_is_covered_and_what_is_proven(graph, tmp_path):
    result = max_cover(graph, 20, certificate="lagrangian")
    figure = draw_curve(result)
    line = figure.axes[0].lines[0]
    np.testing.assert_allclose(line.get_ydata(), result.curve() / 300)
    assert f"{result.covered / 300:.2%} covered" in texts(figure)
    assert "(proven)" in texts(figure)
    assert "no choice" not in texts(draw_curve(max_cover(graph, 20)))
    for name in ("a.png", "a.svg"):
        save_picture(draw_curve(result), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()
    save_picture(draw_curve(result), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with pytest.raises(InputError, match=r"\.png or \.svg"):
        save_picture(figure, tmp_path / "a.gif")
    assert not (tmp_path / "a.gif").exists()


def test_methods_stand_side_by_side(graph):
    results = {name: max_cover(graph, 15, method=name) for name in ("exact", "degree", "vote")}
    figure = draw_comparison(results)
    assert len(figure.axes[0].lines) == 3
    assert all(name in texts(figure) for name in results)
    with pytest.raises(InputError, match="comparable"):
        draw_comparison({**results, "far": max_cover(graph, 15, 2)})
    with pytest.raises(InputError, match="at least one"):
        draw_comparison({})


def test_the_reach_of_a_seed(graph, tmp_path):
    result = max_cover(graph, 5)
    figure = draw_reach(result, result.seeds[4])
    shown = sum(len(part.get_offsets()) for part in figure.axes[0].collections) - 1
    assert shown == np.diff(graph.out_ptr)[result.rows[4]] + 1
    save_picture(figure, tmp_path / "reach.svg")
    with pytest.raises(NotFoundError):
        draw_reach(result, 999)
    star = Graph.from_edges([0] * 500, range(1, 501), directed=True)
    with pytest.raises(LimitError, match="501"):
        draw_reach(max_cover(star, 1), 0)


def test_no_window_and_nothing_global():
    # In a process of its own: other tests of a run may have loaded pyplot.
    program = (
        "import sys\n"
        "from shoal.influence import Graph, max_cover\n"
        "from shoal.influence.pictures import draw_curve\n"
        "draw_curve(max_cover(Graph.from_edges([0, 1], [1, 2], directed=True), 2))\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_empty_answer_has_no_curve():
    empty = max_cover(Graph.from_edges([], [], directed=True, n=2), 1, weights=[0, 0])
    with pytest.raises(InputError, match="no seeds"):
        draw_curve(empty)
