"""Time and friends through the index: asked, recorded, kept, deleted."""

from __future__ import annotations

import datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from shoal.core.errors import InputError, NotFoundError
from shoal.data.checkins import CheckinLog
from shoal.spatial import (
    Query,
    SocialEmbedding,
    SpatialKeywordIndex,
    SpatialKeywordIndexConfig,
    Weights,
    reference,
)

LAYOUTS = ("packed", "quad_cluster", "netr")
USERS = 40
MIXES = [
    Weights(space=0.4, text=0.2, time=0.2, social=0.2),
    Weights(space=1, text=1, time=1, social=1),
    Weights(space=0.1, text=0.1, time=0.1, social=0.7),
    Weights(time=1),
    Weights(social=1),
]


def made(layout="packed", *, n=300, seed=0, **options):
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 4, USERS)
    pairs = rng.integers(0, USERS, (400, 2))
    edges = pairs[(group[pairs[:, 0]] == group[pairs[:, 1]]) | (rng.random(400) < 0.1)]
    log = CheckinLog(
        rng.integers(0, USERS, 2000),
        rng.integers(0, n, 2000),
        rng.integers(0, 168, 2000),
        slots=168,
    )
    return SpatialKeywordIndex.build(
        np.round(rng.uniform(20, 24, n), 5),
        np.round(rng.uniform(58, 62, n), 5),
        keywords=[list(rng.choice(["bar", "park", "cafe"], 2, replace=False)) for _ in range(n)],
        checkins=log,
        social=SocialEmbedding.fit(edges, n_users=USERS, dim=8, progress=False),
        categories=rng.integers(0, 5, n),
        layout=layout,
        **options,
    )


@pytest.fixture(scope="module", params=LAYOUTS)
def index(request):
    return made(request.param)


def ask(**changes):
    given = {
        "point": (22.0, 60.0),
        "keywords": "bar cafe",
        "match": "ranked",
        "user": 7,
        "at": 50,
        "explain": True,
    }
    return Query(**(given | changes))


def expected(index, query):
    plan = index.plan(query).plan
    columns = index.columns()
    time, social = index._state.people.visits.parts(plan, columns.keys)
    return reference.answer(
        columns, index.attribute_specs, plan, time_part=time, social_part=social
    )


@pytest.mark.parametrize("mix", range(len(MIXES)))
@pytest.mark.parametrize("form", ["embedding", "friends"])
def test_answers_equal_the_reference(index, mix, form):
    for user in (0, 7, 23):
        query = ask(weights=MIXES[mix], user=user, social=form)
        top = index.ask(query)
        wanted = expected(index, query)
        assert top.scores == pytest.approx([score for score, _, _ in wanted], abs=1e-9)
        assert top.kms == pytest.approx([km for _, km, _ in wanted], abs=1e-6)
        shares = MIXES[mix].shares()
        names = ("space", "text", "attributes", "time", "social")
        total = sum(
            share * top.components[name]
            for name, share in zip(names, shares, strict=True)
            if share > 0
        )
        assert total == pytest.approx(top.scores)


def test_layouts_agree_to_the_last_bit():
    a, *others = (made(layout) for layout in LAYOUTS)
    for mix in MIXES:
        x = a.ask(ask(weights=mix))
        for other in others:
            y = other.ask(ask(weights=mix))
            assert x.ids == y.ids
            assert x.scores.tolist() == y.scores.tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_check_ins_count_at_once_and_a_deleted_user_leaves_no_trace(layout):
    index = made(layout)
    before = index.ask(ask(k=300))
    place = before.ids[-1]
    index.record_checkins([7, 8, 9, "new"][:3], [place] * 3, [50, 50, 51])
    after = index.ask(ask(k=300))
    wanted = expected(index, ask(k=300))
    assert after.scores == pytest.approx([score for score, _, _ in wanted], abs=1e-9)
    moved = dict(zip(after.ids, after.scores, strict=True))[place]
    assert moved > dict(zip(before.ids, before.scores, strict=True))[place]
    index.record_checkin(1000, place, 50)  # a user nobody knew
    index.delete_user(1000)
    again = index.ask(ask(k=300))
    assert again.scores.tolist() == after.scores.tolist()
    index.compact()
    wanted = expected(index, ask(k=300))
    assert index.ask(ask(k=300)).scores == pytest.approx([s for s, _, _ in wanted], abs=1e-9)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_recent_places_take_part(layout):
    index = made(layout)
    index.upsert([22.0], [60.0], ids=[5000], keywords=["bar cafe"])
    index.record_checkins([1, 2, 3], [5000] * 3, [50] * 3)
    for _ in range(2):
        top = index.ask(ask(weights=Weights(space=1, time=1)))
        assert top.ids[0] == 5000
        wanted = expected(index, ask(weights=Weights(space=1, time=1)))
        assert top.scores == pytest.approx([score for score, _, _ in wanted], abs=1e-9)
        index.flush()


def test_an_unknown_user_is_neutral(index):
    top = index.ask(ask(user=10**6))
    assert top.neutral_user
    assert set(top.components["social"]) == {0.5}
    assert not index.ask(ask()).neutral_user
    assert index.ask(ask(user=10**6, social="friends")).neutral_user


def test_a_vector_may_stand_for_a_user(index):
    vector = index._state.people.visits.user_vector(7)
    by_vector = index.ask(ask(user=vector))
    assert by_vector.ids == index.ask(ask()).ids
    with pytest.raises(InputError, match="has 8 numbers"):
        index.ask(ask(user=np.ones(3)))
    with pytest.raises(InputError, match="finite"):
        index.ask(ask(user=np.full(8, np.nan)))
    with pytest.raises(InputError, match="not of a vector"):
        index.ask(ask(user=vector, social="friends"))


def test_times_become_slots():
    index = made(n=20)
    wednesday = datetime.datetime(2026, 11, 25, 2, 30, tzinfo=datetime.UTC)
    assert index.plan(ask(at=wednesday)).plan.slot == 2 * 24 + 2
    assert index.plan(ask(at=167)).plan.slot == 167
    zoned = made(n=20, config=SpatialKeywordIndexConfig(tz="Europe/Helsinki"))
    assert zoned.plan(ask(at=wednesday)).plan.slot == 2 * 24 + 4
    assert zoned.plan(ask(at=datetime.datetime(2026, 11, 25, 2, 30))).plan.slot == 50
    for wrong in (168, -1, 2.5, "noon", datetime.datetime(2026, 1, 1)):
        with pytest.raises(InputError):
            index.ask(ask(at=wrong))


def test_times_of_check_ins_are_local_to_the_place():
    noon = datetime.datetime(2026, 7, 6, 12, tzinfo=ZoneInfo("Asia/Tokyo"))
    log = CheckinLog([1, 1], ["t", "l"], [noon, noon], future="keep")
    index = SpatialKeywordIndex.build(
        [139.7, -0.1],
        [35.7, 51.5],
        ids=["t", "l"],
        checkins=log,
        time_zones=["Asia/Tokyo", "Europe/London"],
    )
    visits = index._state.people.visits
    assert np.flatnonzero(visits.counts(0)).tolist() == [12]
    assert np.flatnonzero(visits.counts(1)).tolist() == [4]
    with pytest.raises(InputError, match="time zone"):
        SpatialKeywordIndex.build([0, 1], [0, 1], ids=["t", "l"], checkins=log)


def test_few_visitors_are_hidden():
    log = CheckinLog([0, 1, 0, 1, 2], [0, 0, 1, 1, 1], [0] * 5, slots=168)
    social = SocialEmbedding.of(np.eye(3), [[0, 1], [1, 2]])
    index = SpatialKeywordIndex.build([0, 1], [0, 0], checkins=log, social=social)
    top = index.query((0, 0), user=0, weights={"social": 1}, explain=True)
    parts = dict(zip(top.ids, top.components["social"], strict=True))
    assert parts[0] == 0.5
    assert parts[1] > 0.5
    assert index.friends_at(0, 1) == [1]
    assert index.friends_at(2, 0) == [1]


def test_wrong_check_ins_change_nothing(index):
    before = index._state.people.visits.n_checkins
    with pytest.raises(NotFoundError, match="no such place"):
        index.record_checkin(1, 10**6, 5)
    with pytest.raises(InputError):
        index.record_checkins([1, 2], [0, 1], [5, 999])
    with pytest.raises(InputError):
        index.record_checkins([1], [0, 1], [5, 5])
    with pytest.raises(NotFoundError, match="no such user"):
        index.delete_user(10**9)
    assert index._state.people.visits.n_checkins == before
    bare = SpatialKeywordIndex.build([0], [0])
    for change in (
        lambda: bare.record_checkin(1, 0, 5),
        lambda: bare.query((0, 0), user=1),
        lambda: bare.query((0, 0), at=1),
    ):
        with pytest.raises(InputError, match="no check-ins"):
            change()
    with pytest.raises(InputError, match="not there"):
        SpatialKeywordIndex.build([0], [0], checkins=CheckinLog([1], [9], [0], slots=168))
    with pytest.raises(InputError, match="24 slots"):
        SpatialKeywordIndex.build([0], [0], checkins=CheckinLog([1], [0], [0], slots=24))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_keeps_people(layout, tmp_path):
    index = made(layout)
    index.save(tmp_path / "index")
    wanted = index.ask(ask())
    assert SpatialKeywordIndex.load(tmp_path / "index").ask(ask()).scores.tolist() == (
        wanted.scores.tolist()
    )
    with SpatialKeywordIndex.open(tmp_path / "index") as opened:
        opened.record_checkins([7, 555], [wanted.ids[3]] * 2, [50, 50])
        opened.delete_user(23)
        later = opened.ask(ask())
    with SpatialKeywordIndex.open(tmp_path / "index") as again:
        found = again.ask(ask())
        assert found.ids == later.ids
        assert again._state.people.visits.n_checkins == opened._state.people.visits.n_checkins
        assert again.ask(ask(user=23)).neutral_user
        assert again.friends_at(7, wanted.ids[3]) is not None
