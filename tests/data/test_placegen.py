"""Generated places, friends and check-ins: the laws they follow, and that seeds fix them."""

from __future__ import annotations

import json
import zoneinfo
from pathlib import Path

import numpy as np
import pytest

from shoal.core.errors import InputError
from shoal.data.checkins import CheckinLog
from shoal.data.friendgen import generate_friends
from shoal.data.placegen import generate_places, generated_centres, geonames_centres
from shoal.data.placewords import builtin_vocabulary, busy_hours, nsi_vocabulary
from shoal.data.squares import Squares
from shoal.data.visitgen import generate_visits


def test_places_are_fixed_by_their_seed() -> None:
    one, same, other = (generate_places(500, seed=seed) for seed in (1, 1, 2))
    for name in ("lon", "lat"):
        assert np.array_equal(getattr(one, name), getattr(same, name))
        assert not np.array_equal(getattr(one, name), getattr(other, name))
    assert one.keyword_lists() == same.keyword_lists()
    for name, values in one.attributes.items():
        assert np.array_equal(values, same.attributes[name])


@pytest.mark.parametrize("centres", [None, generated_centres(50)], ids=["geonames", "generated"])
def test_places_are_in_range_and_lossless(centres) -> None:
    table = generate_places(5_000, seed=3, centres=centres)
    assert np.abs(table.lon).max() <= 180
    assert np.abs(table.lat).max() <= 90
    assert np.array_equal(np.round(table.lon * 1e7) / 1e7, table.lon)
    for values in table.attributes.values():
        assert values.min() >= 0
        assert values.max() <= 1
        assert np.array_equal(values.astype(np.float32), values)
    for zone in set(table.timezone):
        zoneinfo.ZoneInfo(zone)
    for words in table.keyword_lists():
        assert len(words) == len(set(words)) >= 1


def test_words_follow_zipf() -> None:
    vocabulary = builtin_vocabulary(400)
    table = generate_places(60_000, vocabulary=vocabulary, seed=5)
    kinds = dict.fromkeys(vocabulary.kinds, 0)
    for kind in table.category:
        kinds[kind] += 1
    counts = list(kinds.values())
    harmonic = sum(1 / rank for rank in range(1, len(counts) + 1))
    for rank in (1, 2, 5, 20):
        expected = 60_000 / rank / harmonic
        assert counts[rank - 1] == pytest.approx(expected, abs=5 * expected**0.5)
    own = [set(kind.split()) for kind in table.category]
    assert all(kind <= set(words) for kind, words in zip(own, table.keyword_lists(), strict=True))
    extra = [len(set(w) - k) for k, w in zip(own, table.keyword_lists(), strict=True)]
    assert 0 < np.mean(extra) < 1.5
    assert max(extra) <= 3


def test_both_cases_of_attributes() -> None:
    def correlation(case):
        table = generate_places(20_000, attributes=case, seed=7)
        return np.corrcoef([table.attributes[name] for name in ("price", "noise", "rating")])

    related, independent = correlation("correlated"), correlation("independent")
    assert related[0, 1] == pytest.approx(0.5, abs=0.08)
    # 5 standard deviations of a correlation of 20,000 independent pairs.
    assert abs(related[0, 2]) < 0.036
    assert np.abs(independent - np.eye(3)).max() < 0.036
    assert generate_places(10, attributes="none").attributes == {}


def test_centres_are_weighted_by_population(tmp_path: Path) -> None:
    centres = geonames_centres()
    assert len(centres.timezone) == len(centres.lon) == 4000
    table = generate_places(20_000, seed=1, jitter_km=(0.0, 0.0))
    heavy = int(np.argmax(centres.weight))
    expected = 20_000 * centres.weight[heavy] / centres.weight.sum()
    at = np.isclose(table.lon, centres.lon[heavy]) & np.isclose(table.lat, centres.lat[heavy])
    assert at.sum() == pytest.approx(expected, abs=5 * expected**0.5)


def test_brands_as_words(tmp_path: Path) -> None:
    item = {"displayName": "Burger Örli", "tags": {"brand": "Burger Örli", "cuisine": "burger"}}
    content = {
        "nsi": {
            "brands/amenity/fast_food": {"items": [item, item]},
            "brands/shop/shoes": {"items": [{"displayName": "Sole", "tags": {}}]},
            "transit/route/bus": {"items": [item]},
        }
    }
    path = tmp_path / "nsi.json"
    path.write_text(json.dumps(content))
    vocabulary = nsi_vocabulary(path, extra=5)
    assert vocabulary.kinds == ["fast_food burger", "shoes"]
    assert vocabulary.kind_words == [["fast", "food", "burger"], ["shoes"]]
    assert vocabulary.extra_words[:3] == ["burger", "örli", "sole"]
    assert len(vocabulary.extra_words) == 5
    assert vocabulary.rhythm(0) == "meals"
    assert len(generate_places(20, vocabulary=path)) == 20
    for text in ('{"nsi": {}}', "{}", "no json"):
        path.write_text(text)
        with pytest.raises(InputError):
            nsi_vocabulary(path)


@pytest.mark.parametrize(
    "options",
    [{"n": 0}, {"n": True}, {"attributes": "some"}, {"jitter_km": (5.0, 1.0)}],
    ids=["none", "bool", "case", "jitter"],
)
def test_bad_options_of_places(options) -> None:
    with pytest.raises(InputError):
        generate_places(**{"n": 10, **options})
    with pytest.raises(InputError):
        generated_centres(0)
    with pytest.raises(InputError):
        builtin_vocabulary(0)


def test_busy_hours_are_shares() -> None:
    for rhythm in ("meals", "night", "work"):
        week = busy_hours(rhythm)
        assert week.shape == (168,)
        assert week.sum() == pytest.approx(1.0)
    assert busy_hours("work")[:120].sum() > 0.85
    assert busy_hours("night")[22] > 5 * busy_hours("night")[10]
    with pytest.raises(InputError):
        busy_hours("lunch")


@pytest.fixture(scope="module")
def town():
    """Places of 3 cities, and visits with and without the pull of friends."""
    centres = generated_centres(3, seed=1)
    places = generate_places(3_000, seed=2, centres=centres)
    both = [
        generate_visits(places, users=600, checkins=60_000, seed=4, friend_boost=boost)
        for boost in (3.0, 0.0)
    ]
    return places, *both


def test_visits_are_fixed_by_their_seed(town) -> None:
    places, visits, _ = town
    again = generate_visits(places, users=600, checkins=60_000, seed=4)
    assert np.array_equal(visits.checkins.poi, again.checkins.poi)
    assert np.array_equal(visits.checkins.time, again.checkins.time)
    assert np.array_equal(visits.friendships.edges, again.friendships.edges)
    log = visits.checkins
    assert isinstance(log, CheckinLog)
    assert len(log) == 60_000
    assert (np.diff(log.time) >= 0).all()
    assert log.user.min() >= 0
    assert log.user.max() < 600
    assert set(log.poi.tolist()) <= set(places.ids.tolist())


def test_people_go_where_it_is_near(town) -> None:
    places, visits, _ = town
    log = visits.checkins
    north = (visits.home_lat[log.user] - places.lat[log.poi]) * 111.2
    east = (visits.home_lon[log.user] - places.lon[log.poi]) * 111.2
    east = (east + 180 * 111.2) % (360 * 111.2) - 180 * 111.2
    km = np.hypot(north, east * np.cos(np.radians(places.lat[log.poi])))
    assert np.median(km) < 8
    assert km.max() < 30


def share_of_friends_before(places, visits) -> float:
    """Return the mean share of friends who were at a late check-in's place early."""
    log, n = visits.checkins, len(visits.home_lat)
    split = np.searchsorted(log.time, 1_704_067_200 + 10 * 168 * 3600)
    seen = {(u, p) for u, p in zip(log.user[:split].tolist(), log.poi[:split].tolist())}  # noqa: B905
    friends: list[list[int]] = [[] for _ in range(n)]
    for a, b in visits.friendships.edges.tolist():
        friends[a].append(b)
        friends[b].append(a)
    late = zip(log.user[split::7].tolist(), log.poi[split::7].tolist(), strict=True)
    shares = [
        sum((f, p) in seen for f in friends[u]) / len(friends[u]) for u, p in late if friends[u]
    ]
    return float(np.mean(shares))


def test_friends_pull_and_negative_control_without_the_pull(town) -> None:
    places, with_pull, without = town
    assert share_of_friends_before(places, with_pull) > 1.15 * share_of_friends_before(
        places, without
    )


def test_hours_are_local_and_fit_the_kind(town) -> None:
    places, visits, _ = town
    log = visits.checkins
    night = np.array([kind.startswith(("nightclub", "bar")) for kind in places.category])
    work = np.array([kind in {"bank", "post office", "dentist"} for kind in places.category])
    zones = np.array(places.timezone)[log.poi]
    hours = np.empty(len(log), dtype=int)
    for zone in set(zones.tolist()):
        ahead = zoneinfo.ZoneInfo(zone)
        import datetime

        offset = datetime.datetime(2024, 6, 1, tzinfo=ahead).utcoffset().total_seconds()
        chosen = zones == zone
        hours[chosen] = (log.time[chosen] + offset) // 3600 % 24
    at_night = (hours >= 20) | (hours < 2)
    assert at_night[night[log.poi]].mean() > 0.5
    assert at_night[work[log.poi]].mean() < 0.15


def test_the_law_of_squares_is_what_is_drawn() -> None:
    rng = np.random.default_rng(0)
    lon, lat = rng.normal(25, 0.05, 40), rng.normal(60, 0.03, 40)
    squares = Squares.of(lon, lat, np.exp(rng.normal(0, 1, 40)))
    home = np.array([squares.square_of_row[0]])
    reach = squares.reach(home, 5.0)
    users = np.zeros(40_000, dtype=np.int64)
    drawn = np.bincount(squares.draw(reach, users, rng), minlength=40) / 40_000
    chance = squares.base(np.zeros(40, dtype=np.int64), np.arange(40), reach)
    inside = squares.may_be_near(np.zeros(40, dtype=np.int64), np.arange(40))
    assert drawn[~inside].sum() == 0
    chance = np.where(inside, chance, 0)
    assert chance.sum() == pytest.approx(1.0)
    assert np.abs(drawn - chance).max() < 5 * np.sqrt(0.25 / 40_000)


def test_friends_follow_distance_and_community() -> None:
    rng = np.random.default_rng(1)
    lon, lat = rng.uniform(0, 4, 1500), rng.uniform(40, 43, 1500)
    community = rng.integers(0, 4, 1500)
    made = generate_friends(lon, lat, community, mean_friends=12, seed=2)
    a, b = made.edges.T
    assert len(made) == 9_000
    assert (a < b).all()
    assert len(np.unique(a * 1500 + b)) == len(a)

    def km(a, b):
        east = (lon[a] - lon[b]) * np.cos(np.radians(41.5))
        return np.hypot(lat[a] - lat[b], east) * 111.2

    first, second = np.triu_indices(1500, 1)
    weight = 1 / (km(first, second) + 1) * np.where(community[first] == community[second], 1, 0.1)
    same = (weight * (community[first] == community[second])).sum() / weight.sum()
    assert (community[a] == community[b]).mean() == pytest.approx(same, abs=0.05)
    near = (weight * (km(first, second) < 40)).sum() / weight.sum()
    assert (km(a, b) < 40).mean() == pytest.approx(near, abs=0.06)


def test_small_and_bad_populations() -> None:
    places = generate_places(3, seed=0)
    visits = generate_visits(places, users=1, checkins=1)
    assert len(visits.checkins) == 1
    assert len(visits.friendships) == 0
    assert len(generate_visits(places, users=2, checkins=5, communities=1).checkins) == 5
    for options in ({"users": 0}, {"checkins": 0}, {"reach_km": 0.0}, {"mean_friends": -1.0}):
        with pytest.raises(InputError):
            generate_visits(places, **{"users": 2, "checkins": 2, **options})
