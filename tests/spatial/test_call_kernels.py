"""Several segments with dead rows in one call: the answers are the oracle's over the living."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from packedcases import SHAPES, expected, make_places, make_specs, plans

from shoal.core.errors import InputError
from shoal.spatial import _call_kernels as calling
from shoal.spatial.packed import PackedLayout
from shoal.spatial.packed_searcher import PackedSearcher
from shoal.spatial.query import MATCH_ALL, MATCH_ANY, MATCH_EVERYTHING, QueryPlan

CHECKS = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def chosen_rows(places, rows):
    """Return some places, with a dictionary of their own words only."""
    pieces = [places.word_ids[places.word_ptr[r] : places.word_ptr[r + 1]] for r in rows]
    flat = np.concatenate([*pieces, np.empty(0, dtype=np.int32)])
    used, ids = np.unique(flat, return_inverse=True)
    return dataclasses.replace(
        places,
        keys=places.keys[rows],
        lon=places.lon[rows],
        lat=places.lat[rows],
        words=[places.words[i] for i in used],
        word_ptr=np.concatenate([[0], np.cumsum([len(p) for p in pieces])]).astype(np.int64),
        word_ids=ids.astype(np.int32),
        values=places.values[:, rows],
    )


class World:
    """Places in several layouts, some dead, and some outside all layouts."""

    def __init__(self, places, specs, parts, *, seed, dead):
        rng = np.random.default_rng(seed)
        self.places, self.specs = places, specs
        self.part = rng.integers(0, parts + 1, len(places))  # the last part is outside
        self.part[rng.random(len(places)) < 0.5] = 0
        self.alive = rng.random(len(places)) >= dead
        self.alive[self.part == parts] = True
        self.inside = self.alive & (self.part < parts)
        self.layouts = [
            PackedLayout.build(chosen_rows(places, np.flatnonzero(self.part == i)), specs)
            for i in range(parts)
        ]
        alive = dict(zip(places.keys.tolist(), self.alive.tolist(), strict=True))
        self.live = [
            np.array([alive[key] for key in layout.keys.tolist()], dtype=np.uint8)
            for layout in self.layouts
        ]
        self.has = np.zeros((len(places), len(places.words)), dtype=bool)
        rows = np.repeat(np.arange(len(places)), np.diff(places.word_ptr))
        self.has[rows, places.word_ids] = True

    def searcher(self, plan):
        return PackedSearcher(self.layouts, plan, live=self.live, n_live=int(self.alive.sum()))

    def _holders(self, word):
        known = list(self.places.words)
        return self.has[:, known.index(word)] if word in known else np.zeros(len(self.has), bool)

    def extra(self, words):
        """Return what the layouts' counts lack: places outside, less the dead."""
        outside = ~np.isin(self.part, range(len(self.layouts)))
        return np.array(
            [
                int((self._holders(w) & outside).sum())
                - int((self._holders(w) & ~self.alive & ~outside).sum())
                for w in words
            ],
            dtype=np.int64,
        )

    def plan(self, plan, words, lon, lat):
        """Return the plan of a call, made the obvious way; None if nothing can match."""
        df = {w: int((self._holders(w) & self.alive).sum()) for w in words}
        known = [w for w in df if df[w]]
        if words and (not known or (plan.match == MATCH_ALL and len(known) < len(df))):
            return None
        counts = np.array([df[w] for w in known], dtype=float)
        idf = np.log1p((self.alive.sum() - counts + 0.5) / (counts + 0.5))
        return dataclasses.replace(
            plan,
            lon=lon,
            lat=lat,
            match=plan.match if words else MATCH_EVERYTHING,
            words=tuple(known),
            word_weights=idf / idf.sum() if known else idf,
        )

    def agrees(self, plan, got):
        if plan is None:
            return not got
        scores, kms, keys = expected(self.places, self.specs, plan, self.inside)
        known = dict(zip(keys.tolist(), zip(scores, kms, strict=True), strict=True))
        return (
            len(got) == min(plan.k, len(keys))
            and len({key for _, _, key in got}) == len(got)
            and np.allclose([score for score, _, _ in got], scores[: plan.k], rtol=0, atol=1e-11)
            and all(
                np.allclose(known.get(key, np.nan), (score, km), atol=1e-6)
                for score, km, key in got
            )
        )


@st.composite
def worlds(draw):
    d = draw(st.integers(0, 2))
    places = make_places(
        draw(st.integers(0, 50)),
        draw(st.sampled_from([1, 17, 300, 900])),
        shape=draw(st.sampled_from(SHAPES)),
        d=d,
        vocabulary=9,
        missing=draw(st.sampled_from([0.0, 0.3])),
        exact=draw(st.booleans()),
    )
    return World(
        places,
        make_specs(d),
        draw(st.integers(1, 4)),
        seed=draw(st.integers(0, 9)),
        dead=draw(st.sampled_from([0.0, 0.1, 0.6, 1.0])),
    )


@st.composite
def forms(draw, world):
    plan = draw(plans(world.places, d=len(world.specs), vocabulary=9))
    plan = dataclasses.replace(
        plan, match=plan.match or MATCH_ANY, words=(), word_weights=np.empty(0)
    )
    if draw(st.integers(0, 3)):
        plan = dataclasses.replace(
            plan, has_point=True, filters=None, region=None, without=(), text_kind=0
        )
    if draw(st.integers(0, 2)) == 0:  # AND + nearest, which has a search of its own
        plan = dataclasses.replace(
            plan, match=MATCH_ALL, weights=np.array([1.0, 0.0, 0.0, 0.0, 0.0])
        )
    return plan


@CHECKS
@given(st.data())
def test_segments_and_deaths_are_the_oracles(data):
    world = data.draw(worlds())
    plan = data.draw(forms(world))
    searcher = world.searcher(plan)
    names = st.sampled_from([*world.places.words, "nothing", "é"])
    asked = data.draw(
        st.lists(
            st.tuples(
                st.lists(names, max_size=4, unique=True), st.sampled_from([0.0, 24.9, -180.0])
            ),
            min_size=1,
            max_size=4,
        )
    )
    lon, lat = np.array([x for _, x in asked]), np.full(len(asked), 60.2)
    words = [entry for entry, _ in asked]
    extra = np.concatenate([world.extra(entry) for entry in words])
    scores, kms, keys, counts = searcher.many(lon, lat, words, extra=extra)
    for i, entry in enumerate(words):
        count = searcher(float(lon[i]), 60.2, entry, world.extra(entry))
        got = searcher.answers.results()
        wanted = world.plan(plan, entry, float(lon[i]), 60.2)
        assert count == len(got)
        assert world.agrees(wanted, got)
        assert counts[i] == count
        batch = zip(scores[i].tolist(), kms[i].tolist(), keys[i].tolist(), strict=True)
        assert list(batch)[:count] == got
        if wanted is not None and plan.weights[1] > 0 and entry:
            known = dict(zip(wanted.words, wanted.word_weights, strict=True))
            shares = searcher.word_weights[: len(entry)]
            assert np.allclose(shares, [known.get(word, 0.0) for word in entry], atol=1e-12)


def make_world(parts=3, dead=0.3, n=2000):
    return World(make_places(5, n), make_specs(2), parts, seed=1, dead=dead)


NEAREST = QueryPlan(
    k=10, has_point=True, match=MATCH_ALL, weights=np.array([1.0, 0.0, 0.0, 0.0, 0.0])
)
RANKED = dataclasses.replace(
    NEAREST, match=MATCH_ANY, weights=np.array([0.5, 0.5, 0.0, 0.0, 0.0]), decay_scale=9e3
)


@pytest.mark.parametrize("plan", [NEAREST, RANKED], ids=["nearest", "ranked"])
def test_a_forgotten_mask_is_noticed(plan):
    """Negative control: with a mask that says all are alive the comparison fails."""
    world = make_world()
    searcher = world.searcher(plan)
    words = ["w00", "w01"]
    searcher(24.9, 60.2, words, world.extra(words))
    wanted = world.plan(plan, words, 24.9, 60.2)
    assert world.agrees(wanted, searcher.answers.results())
    searcher.follow([None] * 3, int(world.alive.sum()))
    searcher(24.9, 60.2, words, world.extra(words))
    assert not world.agrees(wanted, searcher.answers.results())
    searcher.follow(world.live, int(world.alive.sum()))
    searcher(24.9, 60.2, words, world.extra(words))
    assert world.agrees(wanted, searcher.answers.results())


def test_a_forgotten_count_is_noticed():
    """Negative control: weights by the segments' own postings are not those of the living."""
    world = make_world(dead=0.6)
    searcher = world.searcher(RANKED)
    words = ["w02", "w03"]
    searcher(24.9, 60.2, words)
    assert not world.agrees(world.plan(RANKED, words, 24.9, 60.2), searcher.answers.results())


def test_a_mask_may_change_in_place():
    world = make_world(parts=1, dead=0.0)
    live = np.ones(world.layouts[0].n, dtype=np.uint8)
    searcher = PackedSearcher(world.layouts, NEAREST, live=[live])
    searcher(24.9, 60.2, ["w00"])
    first = int(searcher.answers.rows[0])
    key = int(searcher.answers.keys[0])
    live[first] = 0
    searcher(24.9, 60.2, ["w00"])
    assert key not in searcher.answers.keys[:10]


def test_a_word_of_no_segment_but_of_others_counts():
    """A word that only places outside have empties AND here, yet is known and has a weight."""
    world = make_world()
    searcher = world.searcher(RANKED)
    searcher(0.0, 0.0, ["w01", "elsewhere"], [0, 1])
    assert searcher.word_weights[1] > searcher.word_weights[0] > 0.0
    searcher = world.searcher(NEAREST)
    assert searcher(0.0, 0.0, ["elsewhere"], [1]) == 0


def test_earlier_answers_stay():
    """Answers found elsewhere are the threshold, and part of what is returned."""
    world = make_world(parts=2, dead=0.0)
    one, both = (PackedSearcher(world.layouts[: i + 1], NEAREST) for i in range(2))
    both(24.9, 60.2, ["w00"])
    wanted = both.answers.results()
    one(24.9, 60.2, ["w00"])
    other = PackedSearcher(world.layouts[1], NEAREST)
    count = len(one.answers)
    for name in ("scores", "kms", "keys"):
        getattr(other.answers, name)[:count] = getattr(one.answers, name)[:count]
    other._state[calling.COUNT] = count
    other(24.9, 60.2, ["w00"])
    assert other.answers.results() == wanted


def test_what_does_not_fit_is_refused():
    world = make_world()
    with pytest.raises(InputError, match="same attributes"):
        PackedSearcher([], NEAREST)
    other = PackedLayout.build(make_places(1, 20, d=0), ())
    with pytest.raises(InputError, match="same attributes"):
        PackedSearcher([world.layouts[0], other], NEAREST)
    searcher = world.searcher(NEAREST)
    with pytest.raises(InputError, match="masks"):
        searcher.follow([None])
    with pytest.raises(InputError, match="uint8"):
        searcher.follow([None, None, np.ones(3, dtype=np.uint8)])
    with pytest.raises(InputError, match="extra"):
        searcher.many([0.0], [0.0], [["w00"]], extra=np.zeros(2, dtype=np.int64))
