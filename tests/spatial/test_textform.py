"""Queries written as text."""

from __future__ import annotations

import datetime

import pytest

from shoal.core.errors import InputError
from shoal.spatial import Gauss, Linear, Weights
from shoal.spatial.request import Query
from shoal.spatial.textform import parse_query


def test_every_option_is_read():
    query = parse_query(
        {
            "point": "24.94,60.17",
            "keywords": "pizza",
            "k": "5",
            "match": "ranked",
            "weights": "space=.5, text=.3,attributes=.2",
            "prefer": ["price:min*2", "rating:max"],
            "where": ["price<=2", "rating = 3..5", "price=1|3,noise!=4"],
            "decay": "linear:20",
            "within": "24.8,60.1,25.1,60.3",
            "max_km": "7.5",
            "without": "fast",
            "text": "bm25",
            "user": "17",
            "at": "2026-05-01T19:30+03:00",
            "social": "friends",
            "explain": True,
        }
    )
    zone = datetime.timezone(datetime.timedelta(hours=3))
    assert query == Query(
        point=(24.94, 60.17),
        keywords="pizza",
        k=5,
        match="ranked",
        weights=Weights(space=0.5, text=0.3, attributes=0.2),
        prefer={"price": ("min", 2.0), "rating": ("max", 1.0)},
        where={
            "price": [("<=", 2.0), ("in", [1.0, 3.0])],
            "rating": [("between", 3.0, 5.0)],
            "noise": [("!=", 4.0)],
        },
        decay=Linear(20),
        within=(24.8, 60.1, 25.1, 60.3),
        max_km=7.5,
        without="fast",
        text="bm25",
        user=17,
        at=datetime.datetime(2026, 5, 1, 19, 30, tzinfo=zone),
        social="friends",
        explain=True,
    )


def test_what_is_not_asked_keeps_its_default():
    assert parse_query({"point": "", "keywords": (), "where": [], "at": None}) == Query()
    assert parse_query({"at": "167"}).at == 167
    assert parse_query({"decay": "GAUSS:3"}).decay == Gauss(3)
    assert parse_query({"user": "ann"}).user == "ann"
    assert parse_query({"within": "POLYGON ((0 0, 1 0, 1 1, 0 0))"}).within.startswith("POLYGON")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"point": "1"}, "point"),
        ({"point": "a,b"}, "point"),
        ({"point": "nan,1"}, "point"),
        ({"k": "ten"}, "k"),
        ({"k": "2.5"}, "k"),
        ({"k": "inf"}, "k"),
        ({"weights": "spice=1"}, "weights"),
        ({"weights": "space"}, "weights"),
        ({"weights": "space=x"}, "weights.space"),
        ({"prefer": "price"}, "prefer"),
        ({"prefer": "price:min*x"}, "prefer.price"),
        ({"where": "price"}, "where"),
        ({"where": "price<cheap"}, "where.price"),
        ({"where": "price=1..x"}, "where.price"),
        ({"decay": "linear"}, "decay"),
        ({"decay": "square:1"}, "decay"),
        ({"at": "tonight"}, "at"),
        ({"max_km": "far"}, "max_km"),
        ({"colour": "red"}, "colour"),
    ],
    ids=range(19),
)
def test_what_cannot_be_read_names_its_field(options, field):
    with pytest.raises(InputError) as caught:
        parse_query(options)
    assert caught.value.field == field
