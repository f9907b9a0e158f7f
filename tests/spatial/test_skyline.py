"""Skylines against the definition, and what a bound needs of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shoal.core.errors import InputError
from shoal.spatial.skyline import capped_skyline, corner, skyline

# Few different values, so that ties and repeats are common.
POINTS = st.integers(1, 4).flatmap(
    lambda d: hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 40), st.just(d)),
        elements=st.integers(0, 6).map(lambda v: v / 6),
    )
)


def dominated(values: np.ndarray, row: int) -> bool:
    return any(
        bool((other <= values[row]).all() and (other < values[row]).any()) for other in values
    )


@settings(max_examples=100, deadline=None)
@given(POINTS)
def test_skyline_is_the_rows_that_nothing_dominates(values):
    expected = [row for row in range(len(values)) if not dominated(values, row)]
    assert skyline(values).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(POINTS, st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter(values, random):
    order = np.array(random.sample(range(len(values)), len(values)))
    assert sorted(order[skyline(values[order])]) == skyline(values).tolist()


@settings(max_examples=100, deadline=None)
@given(POINTS, st.integers(1, 8), st.data())
def test_corner_below_skyline_below_minimum(values, cap, data):
    weights = np.array(
        data.draw(st.lists(st.floats(0, 1), min_size=values.shape[1], max_size=values.shape[1]))
    )
    true = (values @ weights).min()
    full = (values[skyline(values)] @ weights).min()
    capped_points = capped_skyline(values, cap)
    capped = (capped_points @ weights).min()
    low = corner(values) @ weights
    assert full == pytest.approx(true, abs=1e-12)
    assert low <= capped + 1e-12
    assert capped <= full + 1e-12
    assert len(capped_points) <= cap
    # Each row is covered by one of the points: that is what makes the bound valid.
    for row in values:
        assert (capped_points <= row).all(axis=1).any()
    assert np.array_equal(capped_points.min(axis=0), corner(values))


def test_cap_large_enough_changes_nothing():
    values = np.random.default_rng(3).random((300, 3))
    full = values[skyline(values)]
    assert 5 < len(full) < 100
    assert np.array_equal(np.unique(full, axis=0), capped_skyline(values, 1000))
    assert np.array_equal(capped_skyline(values, 1), corner(values)[None])


def test_size_on_independent_values_is_about_what_theory_says():
    # (ln n)^(d-1) / (d-1)! = 15.4 for n = 256, d = 3 (to first order).
    random = np.random.default_rng(0)
    sizes = [len(skyline(random.random((256, 3)))) for _ in range(50)]
    assert 10 < np.mean(sizes) < 25


def test_infinite_values_and_empty_shapes():
    values = np.array([[-np.inf, np.inf], [0.0, 0.0], [np.inf, -np.inf], [1.0, np.inf]])
    assert skyline(values).tolist() == [0, 1, 2]
    assert skyline(np.full((2, 2), 1e308)).tolist() == [0, 1]
    assert skyline(np.empty((0, 3))).tolist() == []
    assert skyline(np.empty((2, 0))).tolist() == [0, 1]
    assert capped_skyline(np.empty((0, 3)), 4).shape == (0, 3)


def test_bad_input():
    with pytest.raises(InputError, match="row 2"):
        skyline([[0.0, 1.0], [np.nan, 0.0]])
    with pytest.raises(InputError, match="rows and columns"):
        skyline([1.0, 2.0])
    with pytest.raises(InputError, match="at least one point"):
        capped_skyline([[1.0]], 0)
    with pytest.raises(InputError, match="no corner"):
        corner(np.empty((0, 2)))
