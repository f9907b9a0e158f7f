"""What a caller asks: turned into a plan, or refused with the field's name."""

from __future__ import annotations

import math

import numpy as np
import pytest

from shoal.core.errors import InputError
from shoal.spatial import AttributeSpec, Linear, Saturation, Weights
from shoal.spatial.query import MATCH_ALL, MATCH_ANY, MATCH_EVERYTHING, SocialPlan
from shoal.spatial.request import Query, make_plan

SPECS = (
    AttributeSpec(name="price", low=1, high=4),
    AttributeSpec(name="rating", low=0, high=5, missing="exclude"),
)


class Counts:
    n_live = 100
    mean_words = 3.0

    def document_frequency(self, words):
        return np.array([{"pizza": 10, "steak": 40}.get(word, 0) for word in words], dtype=np.int64)


def plan(**asked):
    extra = {name: asked.pop(name) for name in ("slot", "social_plan") if name in asked}
    social = extra.pop("social_plan", None)
    return make_plan(Query(**asked), SPECS, Counts(), social=social, **extra)


def test_the_parts_a_query_names_count_the_same():
    point = (1, 2)
    assert plan(point=point, keywords=["pizza"]).weights["space"] == 1
    ranked = plan(point=point, keywords=["pizza"], match="ranked").weights
    assert (ranked["space"], ranked["text"]) == (0.5, 0.5)
    assert plan(keywords=["pizza"], match="ranked").weights["text"] == 1
    wish = plan(point=point, prefer={"price": "min"}).weights
    assert (wish["space"], wish["attributes"]) == (0.5, 0.5)
    social = SocialPlan(np.zeros(2, dtype=np.float32))
    everything = plan(point=point, at=3, slot=3, user=1, social_plan=social).weights
    assert everything["time"] == pytest.approx(1 / 3)


def test_words_are_normalised_unique_and_weighed_by_idf():
    planned = plan(point=(0, 0), keywords=["Pizza", "PIZZA", " steak ", "durian"], match="any")
    assert planned.plan.words == ("pizza", "steak")
    assert planned.unknown == ("durian",)
    assert not planned.empty
    a = math.log1p((100 - 10 + 0.5) / 10.5)
    b = math.log1p((100 - 40 + 0.5) / 40.5)
    assert planned.plan.word_weights == pytest.approx([a / (a + b), b / (a + b)])


def test_text_is_split_and_an_unknown_word_empties_only_all():
    assert plan(keywords="Pizza, steak!").plan.words == ("pizza", "steak")
    assert plan(keywords="pizza durian").empty
    assert not plan(keywords="pizza durian", match="ranked").empty
    assert plan(keywords="durian", match="any").empty


def test_match_codes():
    assert plan().plan.match == MATCH_EVERYTHING
    assert plan(keywords="pizza").plan.match == MATCH_ALL
    assert plan(keywords="pizza", match="ranked").plan.match == MATCH_ANY


def test_the_default_decay_ends_at_max_km():
    assert plan(point=(0, 0)).plan.decay_scale == 20
    assert plan(point=(0, 0), max_km=7).plan.decay_scale == 7
    asked = plan(point=(0, 0), max_km=7, decay=Saturation(2)).plan
    assert (asked.decay_kind, asked.decay_scale, asked.max_km) == (1, 2, 7)
    assert plan(point=(0, 0), max_km=math.inf, decay=Linear(3)).plan.max_km == math.inf


def test_preferences_have_shares_and_directions():
    made = plan(prefer={"price": ("min", 3), "rating": "max"}).plan
    assert made.pref_column.tolist() == [0, 1]
    assert made.pref_flip.tolist() == [0, 1]
    assert made.pref_weight.tolist() == [0.75, 0.25]


def test_conditions_become_closed_intervals():
    below = math.nextafter(2, -math.inf)
    above = math.nextafter(2, math.inf)
    forms = {
        ("<=", 2): [(-math.inf, 2)],
        ("<", 2): [(-math.inf, below)],
        (">", 2): [(above, math.inf)],
        (">=", 2): [(2, math.inf)],
        ("==", 2): [(2, 2)],
        ("!=", 2): [(-math.inf, below), (above, math.inf)],
        ("between", 1, 2): [(1, 2)],
        ("in", (1, 3)): [(1, 1), (3, 3)],
    }
    for condition, intervals in forms.items():
        made = plan(where={"price": condition}).plan.filters
        assert list(zip(made.low, made.high, strict=True)) == intervals
    both = plan(where={"price": [(">", 1), ("<", 3)], "rating": 5}).plan.filters
    assert both.column.tolist() == [0, 0, 1]
    assert both.ptr.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"k": 0}, "k"),
        ({"k": -3}, "k"),
        ({"k": True}, "k"),
        ({"k": 2.5}, "k"),
        ({"k": 10**9}, "k"),
        ({"point": (0, 91)}, "point"),
        ({"point": (48.85, 102.35)}, "point"),
        ({"point": (math.nan, 0)}, "point"),
        ({"point": (1, 2, 3)}, "point"),
        ({"point": "here"}, "point"),
        ({"match": "some"}, "match"),
        ({"text": "tfidf"}, "text"),
        ({"max_km": 3}, "max_km"),
        ({"point": (0, 0), "max_km": -1}, "max_km"),
        ({"point": (0, 0), "max_km": math.nan}, "max_km"),
        ({"weights": {"space": 1}}, "point"),
        ({"weights": {"attributes": 1}}, "weights"),
        ({"weights": {"time": 1}}, "at"),
        ({"weights": {"social": 1}}, "user"),
        ({"weights": {"space": -1}, "point": (0, 0)}, "space"),
        ({"prefer": {"noise": "min"}}, "prefer"),
        ({"prefer": {"price": "low"}}, "prefer.price"),
        ({"prefer": {"price": ("min", -1)}}, "prefer.price"),
        ({"prefer": {"price": ("min", 0)}}, "prefer"),
        ({"where": {"noise": 1}}, "where"),
        ({"where": {"price": ("~", 1)}}, "where.price"),
        ({"where": {"price": ("<", math.nan)}}, "where.price"),
        ({"where": {"price": "cheap"}}, "where.price"),
        ({"where": {"price": ("in", 3)}}, "where.price"),
        ({"keywords": [3]}, "keywords"),
        ({"keywords": [str(i) for i in range(65)]}, "keywords"),
        ({"within": (0, 1)}, "within"),
    ],
    ids=range(32),
)
def test_a_wrong_query_names_its_field(asked, field):
    with pytest.raises(InputError) as caught:
        plan(**asked)
    assert caught.value.field == field


def test_swapped_coordinates_are_said():
    with pytest.raises(InputError) as caught:
        plan(point=(48.85, 102.35))
    assert "swapped" in caught.value.hint


def test_weights_as_a_mapping_or_object_are_the_same():
    asked = {"point": (0, 0), "keywords": "pizza", "match": "ranked"}
    a = plan(**asked, weights={"space": 3, "text": 1}).plan.weights
    b = plan(**asked, weights=Weights(space=3, text=1)).plan.weights
    assert a.tolist() == b.tolist() == [0.75, 0.25, 0, 0, 0]
