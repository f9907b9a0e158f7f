"""Weights, decays and the shared kernels against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import InputError
from shoal.spatial import Exp, Gauss, Linear, Saturation, Weights, _score
from shoal.spatial.scoring import make_decay

LON = st.floats(-180, 180)
LAT = st.floats(-90, 90)


def test_weights_are_shares():
    shares = Weights(space=2, text=1, social=1).shares()
    assert shares.tolist() == [0.5, 0.25, 0, 0, 0.25]


def test_huge_weights_do_not_overflow():
    assert Weights(space=1.7e308, text=1.7e308).shares()[:2].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    "parts", [{"space": -1}, {"text": math.nan}, {"time": math.inf}, {}, {"space": "much"}]
)
def test_wrong_weights_are_refused(parts):
    with pytest.raises(InputError):
        Weights(**parts)


def test_an_unknown_part_is_named():
    with pytest.raises(InputError, match="parts are space") as caught:
        Weights.of({"spice": 1})
    assert caught.value.value == "spice"


@pytest.mark.parametrize("decay", [Linear, Saturation, Exp, Gauss])
@pytest.mark.parametrize("scale", [0, -1, math.nan, math.inf])
def test_a_decay_needs_a_positive_scale(decay, scale):
    with pytest.raises(InputError):
        decay(scale)


def test_decays_at_known_distances():
    def at(decay, km):
        return _score.decay_of(decay.kind, decay.scale, km)

    assert at(Linear(20), 5) == 0.75
    assert at(Linear(20), 21) == 0
    assert at(Saturation(5), 5) == 0.5
    assert at(Exp(4), 4) == pytest.approx(math.exp(-1))
    assert at(Gauss(3), 3) == pytest.approx(math.exp(-0.5))
    for name, km in (("linear", 2), ("gauss", 3), ("exp", 4), ("saturation", 5)):
        assert make_decay(name, km).scale == km
    with pytest.raises(InputError, match="no such decay"):
        make_decay("square", 1)


@given(st.sampled_from([Linear, Saturation, Exp, Gauss]), st.floats(0.01, 1e5), st.data())
def test_a_decay_never_rises(decay, scale, data):
    near = data.draw(st.floats(0, 20020))
    far = data.draw(st.floats(near, 20040))
    made = decay(scale)
    a = _score.decay_of(made.kind, made.scale, near)
    b = _score.decay_of(made.kind, made.scale, far)
    assert 0 <= b <= a <= 1


def test_known_distances():
    def km(a, b):
        return _score.distance_km(a[0], a[1], math.cos(math.radians(a[1])), b[0], b[1])

    quarter = math.pi / 2 * _score.EARTH_KM
    assert km((0, 0), (90, 0)) == pytest.approx(quarter)
    assert km((17, 90), (-100, 0)) == pytest.approx(quarter)
    assert km((179.5, 0), (-179.5, 0)) == pytest.approx(math.radians(1) * _score.EARTH_KM)
    assert km((0, 90), (123, 90)) == pytest.approx(0, abs=1e-9)
    # Paris to New York is 5,837 km on the sphere, as tables of cities have it.
    assert km((2.3522, 48.8566), (-74.0060, 40.7128)) == pytest.approx(5837, abs=1.5)


@settings(max_examples=300)
@given(LON, LAT, LON, LAT)
def test_the_chord_bounds_the_distance_from_both_sides(lon, lat, lon2, lat2):
    km = _score.distance_km(lon, lat, math.cos(math.radians(lat)), lon2, lat2)
    a, b = _score.unit_vector(lon, lat), _score.unit_vector(lon2, lat2)
    chord2 = sum((p - q) ** 2 for p, q in zip(a, b, strict=True))
    assert _score.km_of_chord2(chord2) <= km
    # The other side, so that the bound above is known to be no idle one.
    longest = (2.0 * math.sin(0.5 * min(math.pi, km / _score.EARTH_KM))) ** 2
    assert longest * (1 + 1e-9) + 1e-15 >= chord2 * (1 - 1e-7) - 1e-12


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 9)), max_size=30))
def test_offer_keeps_the_best_in_order(rows):
    k = 5
    rows = list(dict.fromkeys(rows))
    scores, kms = np.empty(k), np.empty(k)
    keys, where = np.empty(k, dtype=np.int64), np.empty(k, dtype=np.int64)
    count = 0
    for row, (score, km, key) in enumerate(rows):
        count = _score.offer(scores, kms, keys, where, count, k, float(score), float(km), key, row)
    best = sorted(rows, key=lambda r: (-r[0], r[1], r[2]))[:k]
    found = list(zip(scores[:count], kms[:count], keys[:count], strict=True))
    assert found == best
    assert [rows[i] for i in where[:count]] == best


def test_attribute_costs():
    cost = _score.attribute_cost
    assert cost(3.0, 1.0, 4.0, False, 0) == 0.5
    assert cost(3.0, 1.0, 4.0, True, 0) == 0.5
    assert cost(9.0, 1.0, 4.0, False, 0) == 1.0
    assert cost(9.0, 1.0, 4.0, True, 0) == 0.0
    assert [cost(math.nan, 0.0, 1.0, flip, m) for m in (0, 1, 2) for flip in (False, True)] == [
        1.0,
        1.0,
        0.5,
        0.5,
        -1.0,
        -1.0,
    ]
