"""Are the answers of STSKQ any good? Real next check-ins, and friendships to come.

Two questions, on sets that stay outside the repository (``--data``, else
``SHOAL_DATA``, else ``../shared/data``; plain or ``.xz``)::

    geo/lbsn_yelp3/check_ins.txt          user, poi, unix time of a day's midnight (UTC + 8)
    geo/lbsn_yelp3/poi_coos.txt           poi, lat, lon
    geo/lbsn_yelp3/poi_categories.txt     poi, category
    geo/lbsn_yelp3/social_relations.txt   user, user
    geo/foursquare_lbsn2vec/dataset_connected_NYC.mat   friendship_old, friendship_new

**Next check-in** (yelp3, the one set with places, categories, friends and
times): check-ins before the 80 % quantile of time are the past, of which slots,
place vectors and popularity are made. A query is a later check-in: its user, the
place of his check-in before it, its weekday; the answer is where he went. Weights
are chosen on the last fifth of the past, with the rest of the past as its past,
for every form of the social part on its own.
``browse`` ranks all places; ``search`` those of one category of the answer, drawn
at random, as if it had been the query's keyword. Scores are plain NumPy with the
definitions of ``shoal.spatial.reference``; no index takes part.

Forms of the social part, c(v, o) being visits and R the relation of users:

* ``embedding``: g of the visit-weighted mean cosine, as the sheet has it and as
  ``social="embedding"`` is; places of fewer than 3 visitors are neutral;
* ``embedding_damped``: the same mean with 30 more visits of nobody, linear in the
  user's vector as well;
* ``friends``: sum of c R over friends, over all visits, as ``social="friends"`` is;
* ``friends_saturating``, ``nearest_saturating``: s / (s + 1) with s the sum of c R
  over the friends, or over the 100 nearest users;
* ``..._any``: places of any number of visitors.

Limits of the data: time has day resolution, so slots are the seven weekdays,
unsmoothed; two check-ins of one day are in the file's order; friendships carry
no date, so those made after the split are seen too.

**Friendship prediction** (NYC): vectors from the friendships before the period;
do they tell the friendships that came from pairs of strangers?

Controls: the friendship graph with its users' names shuffled.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.core.seeds import philox
from shoal.spatial.social import SocialEmbedding

__all__ = ["run"]

Array = npt.NDArray[Any]

ROOT = Path(__file__).resolve().parents[2]
EARTH_KM = 6371.0088
WEEKDAYS = 7
PRIOR_WEIGHT = 5.0
CLIP_PER_USER = 5
BOOTSTRAPS = 2000
METRICS = ("hit@10", "mrr", "ndcg@10")

#: Tried on the past: scale of the decay (km), weights of time and of the social part.
GRID = [
    (scale, w_time, w_social)
    for scale in (2.0, 8.0)
    for w_time in (0.05, 0.15)
    for w_social in (0.1, 0.3, 0.5)
]
DAMPING = 30.0
NEAREST = 100
#: Queries scored at once: three tables of this many rows stay in the cache.
BLOCK = 256
#: Form: (how visits become a table users x places, least number of visitors).
FORMS = {
    "embedding": ("mean", 3),
    "embedding_any": ("mean", 1),
    "embedding_damped": ("damped", 3),
    "friends": ("share", 3),
    "friends_saturating": ("friends", 3),
    "friends_saturating_any": ("friends", 1),
    "nearest_saturating": ("nearest", 3),
}


# --- data ---------------------------------------------------------------------------------------


def find(data: Path | None, name: str) -> Path | None:
    """Return a file of the data folder, plain or compressed, or None."""
    folder = data or Path(os.environ.get("SHOAL_DATA", ROOT.parent / "shared" / "data"))
    for base in (folder / "geo", folder):
        for suffix in ("", ".xz"):
            if (base / (name + suffix)).exists():
                return base / (name + suffix)
    return None


def read_table(path: Path) -> Array:
    """Return a tab-separated file of numbers, float64."""
    raw = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    return np.loadtxt(io.BytesIO(raw), ndmin=2)


@dataclass(frozen=True)
class Yelp:
    """Check-ins in order of time; ``category`` is a 0/1 table places x categories."""

    user: Array
    place: Array
    weekday: Array
    time: Array
    lat: Array
    lon: Array
    category: Array
    friends: Array
    n_users: int

    def cut(self, keep: Array) -> Yelp:
        """Return the same world with some of the check-ins."""
        return replace(
            self,
            user=self.user[keep],
            place=self.place[keep],
            weekday=self.weekday[keep],
            time=self.time[keep],
        )


def read_yelp(data: Path | None) -> Yelp | None:
    """Return the set, or None where a file is missing."""
    names = ("check_ins", "poi_coos", "poi_categories", "social_relations")
    paths = [find(data, f"lbsn_yelp3/{name}.txt") for name in names]
    found = [path for path in paths if path is not None]
    if len(found) < len(paths):
        return None
    visits, places, tags, friends = (read_table(path) for path in found)
    order = np.argsort(visits[:, 2], kind="stable")
    user, place = visits[order, 0].astype(int), visits[order, 1].astype(int)
    day = ((visits[order, 2] + 8 * 3600) // 86400).astype(int)
    n = int(max(places[:, 0].max(), place.max())) + 1
    lat, lon = np.full(n, np.nan), np.full(n, np.nan)
    lat[places[:, 0].astype(int)], lon[places[:, 0].astype(int)] = places[:, 1], places[:, 2]
    category = np.zeros((n, int(tags[:, 1].max()) + 1), dtype=bool)
    category[tags[:, 0].astype(int), tags[:, 1].astype(int)] = True
    n_users = int(max(user.max(), friends.max())) + 1
    return Yelp(user, place, (day + 3) % 7, day, lat, lon, category, friends.astype(int), n_users)


# --- the parts of the score, from a past --------------------------------------------------------


class World:
    """What a past says; every table as the sheet defines it.

    ``slots`` float32 [places, 7] is T(o, b), ``visits`` float32 [users, places]
    the check-ins, ``popularity`` float32 [places] their number.
    """

    def __init__(self, past: Yelp, vectors: Array) -> None:
        n = len(past.lat)
        counts = np.zeros((n, WEEKDAYS))
        np.add.at(counts, (past.place, past.weekday), 1)
        # The prior of a place: the weekdays of its categories, 1 at their busiest.
        by_category = past.category.T.astype(float) @ counts
        prior = past.category.astype(float) @ by_category + counts.sum(axis=0) * 1e-6
        prior /= prior.max(axis=1, keepdims=True)
        busiest = counts.max(axis=1, keepdims=True)
        self.slots = ((counts + PRIOR_WEIGHT * prior) / (busiest + PRIOR_WEIGHT)).astype(np.float32)
        self.visits = np.zeros((past.n_users, n), dtype=np.float32)
        np.add.at(self.visits, (past.user, past.place), 1)
        self.popularity = self.visits.sum(axis=0)
        self.friend = np.zeros((past.n_users, past.n_users), dtype=np.float32)
        self.friend[past.friends[:, 0], past.friends[:, 1]] = 1
        self.friend[past.friends[:, 1], past.friends[:, 0]] = 1
        np.fill_diagonal(self.friend, 0)
        self.vectors = vectors
        self._social: dict[str, Array] = {}

    def renamed(self, names: Array) -> World:
        """Return the same world with its users' names shuffled among their friends (control)."""
        other = object.__new__(World)
        other.__dict__ |= self.__dict__
        other.vectors = self.vectors[names]
        other.friend = self.friend[np.ix_(names, names)]
        other._social = {}
        return other

    def friends_who_went(self) -> Array:
        """Return how many friends of each user went to each place, float32 [users, places]."""
        return self.friend @ (self.visits > 0).astype(np.float32)

    def social(self, form: str) -> Array:
        """Return the social part of every user and place, float32 [users, places]."""
        how, least = FORMS[form]
        if how not in self._social:
            self._social[how] = self._parts(how)
        part = self._social[how]
        hidden = (self.visits > 0).sum(axis=0) < least
        return np.where(hidden, np.float32(0.5 if how in ("mean", "damped") else 0), part)

    def _parts(self, how: str) -> Array:
        clipped = np.minimum(self.visits, CLIP_PER_USER)
        total = clipped.sum(axis=0)
        z = self.vectors
        if how in ("mean", "damped"):
            extra = DAMPING if how == "damped" else 0.0
            mean = (clipped.T @ z) / np.maximum(total + extra, 1)[:, None]
            return np.asarray((1 + np.clip(z @ mean.T, -1, 1)) / 2, dtype=np.float32)
        relation = np.clip(z @ z.T, 0, 1)
        np.fill_diagonal(relation, 0)
        if how == "nearest":
            relation[relation < -np.sort(-relation, axis=1)[:, NEAREST - 1 : NEAREST]] = 0
        else:
            relation *= self.friend
        weighed = relation @ clipped
        part = weighed / np.maximum(total, 1) if how == "share" else weighed / (weighed + 1)
        return np.asarray(part, dtype=np.float32)


@dataclass(frozen=True)
class Queries:
    """A later check-in each; ``keyword`` is one category of the place he went to."""

    user: Array
    origin: Array
    weekday: Array
    answer: Array
    keyword: Array

    def __len__(self) -> int:
        return len(self.user)


def make_queries(past: Yelp, later: Yelp, seed: int, limit: int) -> Queries:
    """Return a query for each later check-in of a user who was somewhere before."""
    at = np.full(past.n_users, -1)
    at[past.user] = past.place  # the last assignment wins: the latest check-in
    origin = np.empty(len(later.user), dtype=int)
    for i, (user, place) in enumerate(zip(later.user, later.place, strict=True)):
        origin[i] = at[user]
        at[user] = place
    generator = philox(seed, "keywords")
    draw = generator.random(later.category.shape[1])[None, :] * later.category[later.place]
    rows = np.flatnonzero((origin >= 0) & (draw.max(axis=1) > 0))
    if len(rows) > limit:
        # Whole users, so that the bootstrap over users stays one.
        users = philox(seed, "users").permutation(np.unique(later.user[rows]))
        rank = np.empty(past.n_users, dtype=int)
        rank[users] = np.arange(len(users))
        rows = rows[np.argsort(rank[later.user[rows]], kind="stable")][:limit]
    return Queries(
        later.user[rows],
        origin[rows],
        later.weekday[rows],
        later.place[rows],
        draw[rows].argmax(axis=1),
    )


class Block:
    """Some queries with the parts of the score that all systems share."""

    def __init__(self, world: World, yelp: Yelp, queries: Queries, rows: Array, search: bool):
        self.user, self.answer = queries.user[rows], queries.answer[rows]
        origin = queries.origin[rows]
        lat, lon = np.radians(yelp.lat), np.radians(yelp.lon)
        h = (
            np.sin((lat[None, :] - lat[origin, None]) / 2) ** 2
            + np.cos(lat[origin, None])
            * np.cos(lat[None, :])
            * np.sin((lon[None, :] - lon[origin, None]) / 2) ** 2
        )
        self.km = (2 * EARTH_KM * np.arcsin(np.sqrt(np.minimum(1, h)))).astype(np.float32)
        candidate = np.isfinite(yelp.lat)[None, :].repeat(len(rows), axis=0)
        if search:
            candidate &= yelp.category[:, queries.keyword[rows]].T
        self.km[~candidate] = np.inf
        self.candidate = candidate
        self.time = np.ascontiguousarray(world.slots[:, queries.weekday[rows]].T)
        self._space: dict[float, Array] = {}

    def ranks(self, score: Array) -> Array:
        """Return the rank of each answer, ordered as the index orders: score, nearness, key."""
        row = np.arange(len(score))
        mine = score[row, self.answer][:, None]
        before = ((score > mine) & self.candidate).sum(axis=1)
        # Equal scores are few, the answer's own among them: look at them one by one.
        query, place = np.nonzero((score == mine) & self.candidate)
        answer = self.answer[query]
        km, near = self.km[query, place], self.km[query, answer]
        ahead = (km < near) | ((km == near) & (place < answer))
        return np.asarray(1 + before + np.bincount(query[ahead], minlength=len(score)))

    def space(self, scale: float) -> Array:
        """Return the space part, ``exp(-d / scale)``."""
        if scale not in self._space:
            self._space[scale] = np.exp(-self.km / np.float32(scale))
        return self._space[scale]


#: A system: from a block of queries to the score of every place.
System = Callable[[Block], Array]


def blend(table: Array, weights: tuple[float, float, float], drop: str = "") -> System:
    """Return w_space * exp(-d / scale) + w_time * T + w_social * S, without one part."""
    scale, w_time, w_social = weights

    def score(block: Block) -> Array:
        out = np.zeros(block.km.shape, dtype=np.float32)
        if drop != "space":
            out += np.float32(1 - w_time - w_social) * block.space(scale)
        if drop != "time":
            out += np.float32(w_time) * block.time
        if drop != "social":
            out += np.float32(w_social) * table[block.user]
        return out

    return score


def popular_near(world: World, radius: float) -> System:
    """Baseline: places within a radius by check-ins, then the others by nearness."""
    return lambda block: np.where(block.km <= radius, world.popularity[None, :] + 1, 0)


def friends_near(count: Array, weight: float) -> System:
    """Baseline: how many friends went there (saturating), and nearness."""
    part = np.float32(weight) * (count / (count + 1))
    return lambda block: np.float32(1 - weight) * block.space(8.0) + part[block.user]


def rank_all(
    systems: dict[str, System], world: World, yelp: Yelp, queries: Queries, *, search: bool
) -> dict[str, Array]:
    """Return every system's rank of every answer."""
    found: dict[str, list[Array]] = {name: [] for name in systems}
    for at in range(0, len(queries), BLOCK):
        rows = np.arange(at, min(at + BLOCK, len(queries)))
        block = Block(world, yelp, queries, rows, search)
        for name, system in systems.items():
            found[name].append(block.ranks(system(block)))
    return {name: np.concatenate(parts) for name, parts in found.items()}


# --- figures ------------------------------------------------------------------------------------


def metrics_of(ranks: Array) -> dict[str, Array]:
    """Return the metrics of each query."""
    inside = ranks <= 10
    return {
        "hit@10": inside.astype(float),
        "mrr": 1 / ranks,
        "ndcg@10": np.where(inside, 1 / np.log2(ranks + 1.0), 0.0),
    }


def interval(values: Array, user: Array, seed: int) -> list[float]:
    """Return mean and 95 % interval of per-query values, by a bootstrap over users."""
    _, code = np.unique(user, return_inverse=True)
    total, size = np.bincount(code, values), np.bincount(code)
    picks = philox(seed, "bootstrap").integers(0, len(size), (BOOTSTRAPS, len(size)))
    means = total[picks].sum(axis=1) / size[picks].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return [round(float(v), 5) for v in (values.mean(), low, high)]


def next_checkins(yelp: Yelp, seed: int, *, quick: bool) -> dict[str, Any]:
    """Return the figures of next check-ins."""
    edge = np.quantile(yelp.time, 0.8)
    past, later = yelp.cut(yelp.time <= edge), yelp.cut(yelp.time > edge)
    inner = np.quantile(past.time, 0.8)
    earlier, held = past.cut(past.time <= inner), past.cut(past.time > inner)
    vectors = SocialEmbedding.fit(yelp.friends, n_users=yelp.n_users, progress=False).vectors
    before, now = World(earlier, vectors), World(past, vectors)
    tuning = make_queries(earlier, held, seed, 300 if quick else 1000)
    queries = make_queries(past, later, seed, 700 if quick else 5000)
    went = now.friends_who_went()[queries.user, queries.answer] > 0
    blind = [
        now.renamed(philox(seed, "shuffle", i).permutation(yelp.n_users))
        for i in range(1 if quick else 2)
    ]
    out: dict[str, Any] = {
        "past": len(past.user),
        "later": len(later.user),
        "queries": len(queries),
        "users": len(np.unique(queries.user)),
        "places": int(np.isfinite(yelp.lat).sum()),
        "places_of_3_visitors": int(((now.visits > 0).sum(axis=0) >= 3).sum()),
        "a_friend_went_before": round(float(went.mean()), 4),
    }
    for mode in ("browse", "search"):
        out[mode] = _evaluate(
            (before, now),
            blind,
            yelp,
            (tuning, queries),
            search=mode == "search",
            seed=seed,
        )
    return out


def _evaluate(
    worlds: tuple[World, World],
    shuffled: list[World],
    yelp: Yelp,
    asked: tuple[Queries, Queries],
    *,
    search: bool,
    seed: int,
) -> dict[str, Any]:
    before, now = worlds
    tuning, queries = asked
    weights, radius, share = _tuned(before, yelp, tuning, search=search)
    systems: dict[str, System] = {
        "space_only": lambda block: -block.km,
        "popular_near_me": popular_near(now, radius),
        "friends_count": friends_near(now.friends_who_went(), share),
    }
    for form, chosen in weights.items():
        table = now.social(form)
        systems[f"{form}"] = blend(table, chosen)
        systems[f"{form}/social"] = blend(table, chosen, "social")
        if form in ("embedding", "friends_saturating"):
            systems[f"{form}/space"] = blend(table, chosen, "space")
            systems[f"{form}/time"] = blend(table, chosen, "time")
        for i, one in enumerate(shuffled):
            systems[f"{form}/shuffled {i}"] = blend(one.social(form), chosen)
    ranks = rank_all(systems, now, yelp, queries, search=search)
    found = {name: metrics_of(one) for name, one in ranks.items()}

    def versus(one: str, other: str) -> dict[str, list[float]]:
        return {m: interval(found[one][m] - found[other][m], queries.user, seed) for m in METRICS}

    baselines = ("space_only", "popular_near_me", "friends_count")
    result: dict[str, Any] = {
        "popular_radius_km": radius,
        "friends_count_weight": share,
        "systems": {
            name: {m: interval(found[name][m], queries.user, seed) for m in METRICS}
            for name in (*baselines, *weights)
        },
        "forms": {},
    }
    for form, (scale, w_time, w_social) in weights.items():
        blind = {
            m: np.mean([found[f"{form}/shuffled {i}"][m] for i in range(len(shuffled))], axis=0)
            for m in METRICS
        }
        found[f"{form}/blind"] = blind
        gains = {"social": versus(form, f"{form}/social")}
        for part in ("space", "time"):
            if f"{form}/{part}" in found:
                gains[part] = versus(form, f"{form}/{part}")
        result["forms"][form] = {
            "weights": {
                "decay_km": scale,
                "space": round(1 - w_time - w_social, 3),
                "time": w_time,
                "social": w_social,
            },
            "gain_of": gains,
            "gain_of_social_shuffled": versus(f"{form}/blind", f"{form}/social"),
            "over_shuffled": versus(form, f"{form}/blind"),
            "over": {name: versus(form, name) for name in baselines},
        }
    return result


def _tuned(
    before: World, yelp: Yelp, tuning: Queries, *, search: bool
) -> tuple[dict[str, tuple[float, float, float]], float, float]:
    """Choose, by the mean reciprocal rank on the past, what each system leaves open."""
    radii, shares = (1.0, 3.0, 10.0), (0.2, 0.5, 0.8)
    count = before.friends_who_went()
    systems: dict[str, System] = {f"radius {r}": popular_near(before, r) for r in radii}
    systems |= {f"share {s}": friends_near(count, s) for s in shares}
    for form in FORMS:
        table = before.social(form)
        systems |= {f"{form} {i}": blend(table, weights) for i, weights in enumerate(GRID)}
    ranks = rank_all(systems, before, yelp, tuning, search=search)
    mrr = {name: float((1 / one).mean()) for name, one in ranks.items()}
    best = {
        form: GRID[max(range(len(GRID)), key=lambda i, form=form: mrr[f"{form} {i}"])]
        for form in FORMS
    }
    radius = max(radii, key=lambda r: mrr[f"radius {r}"])
    return best, radius, max(shares, key=lambda s: mrr[f"share {s}"])


# --- friendships to come ------------------------------------------------------------------------


def area(friends: Array, strangers: Array) -> float:
    """Return the chance that a friendship scores above a pair of strangers; ties count half."""
    values = np.concatenate([friends, strangers])
    _, code, size = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(size) - (size - 1) / 2  # mean rank of equal values
    n, m = len(friends), len(strangers)
    return float((middle[code[:n]].sum() - n * (n + 1) / 2) / (n * m))


def friendships(path: Path, seed: int, *, quick: bool) -> dict[str, Any]:
    """Return how well vectors from old friendships tell new ones from pairs of strangers."""
    from scipy.io import loadmat

    raw = loadmat(path, variable_names=["friendship_old", "friendship_new"])
    old, new = (np.sort(raw[f"friendship_{age}"].astype(int) - 1, axis=1) for age in ("old", "new"))
    n = int(max(old.max(), new.max())) + 1
    known = np.unique(old[:, 0] * n + old[:, 1])
    later = np.unique(new[:, 0] * n + new[:, 1])
    to_come = np.column_stack(np.divmod(later[~np.isin(later, known)], n))
    mixer = philox(seed, "alike")
    drawn = np.sort(philox(seed, "strangers").integers(0, n, (60_000, 2)), axis=1)
    code = drawn[:, 0] * n + drawn[:, 1]
    strangers = drawn[(drawn[:, 0] != drawn[:, 1]) & ~np.isin(code, np.union1d(known, later))]

    # Strangers with the degrees of the friends to come: who is popular no longer helps.
    swapped = np.column_stack(
        [
            np.tile(to_come[:, 0], 10),
            np.concatenate([mixer.permutation(to_come[:, 1]) for _ in range(10)]),
        ]
    )
    swapped.sort(axis=1)
    code = swapped[:, 0] * n + swapped[:, 1]
    alike = swapped[(swapped[:, 0] != swapped[:, 1]) & ~np.isin(code, np.union1d(known, later))]

    def areas(score: Callable[[Array], Array]) -> tuple[float, float]:
        mine = score(to_come)
        return round(area(mine, score(strangers)), 4), round(area(mine, score(alike)), 4)

    def areas_of(made: SocialEmbedding) -> tuple[float, float]:
        z = made.vectors
        return areas(lambda pairs: np.einsum("ij,ij->i", z[pairs[:, 0]], z[pairs[:, 1]]))

    adjacency = np.zeros((n, n), dtype=np.float32)
    adjacency[old[:, 0], old[:, 1]] = adjacency[old[:, 1], old[:, 0]] = 1
    degree = adjacency.sum(axis=0)
    common = (adjacency / np.log(np.maximum(degree, 2))) @ adjacency  # Adamic and Adar
    out: dict[str, Any] = {
        "users": n,
        "old": len(known),
        "to_come": len(to_come),
        "strangers": len(strangers),
        "auc": {},
        "auc_of_equal_degrees": {},
        "auc_shuffled": {},
        "cpu_s": {},
    }
    for name, table in (("adamic_adar", common), ("degree_product", np.outer(degree, degree))):
        out["auc"][name], out["auc_of_equal_degrees"][name] = areas(
            lambda pairs, table=table: table[pairs[:, 0], pairs[:, 1]]
        )
    names = philox(seed, "names").permutation(n)
    for method in ("svd", "line") if quick else ("svd", "node2vec", "line"):
        made, blind = (
            SocialEmbedding.fit(
                edges,
                n_users=n,
                method=method,
                seed=seed,
                progress=False,  # type: ignore[arg-type]
            )
            for edges in (old, names[old])
        )
        out["auc"][method], out["auc_of_equal_degrees"][method] = areas_of(made)
        out["auc_shuffled"][method] = areas_of(blind)[0]
        out["cpu_s"][method] = round(made.report.cpu_seconds, 2)
    return out


# --- both ---------------------------------------------------------------------------------------


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:
    """Return all figures.

    ``skipped`` names what was missing; ``next_checkin`` and ``friendship`` are
    there as far as their data were. An interval is [mean, low, high], 95 %.
    """
    began = time.process_time()
    out: dict[str, Any] = {"skipped": []}
    yelp = read_yelp(data)
    if yelp is None:
        out["skipped"].append("lbsn_yelp3 is not in the data folder: no next check-ins")
    else:
        out["next_checkin"] = next_checkins(yelp, seed, quick=quick)
    path = find(data, "foursquare_lbsn2vec/dataset_connected_NYC.mat")
    if path is None:
        out["skipped"].append("foursquare_lbsn2vec is not in the data folder: no friendships")
    else:
        out["friendship"] = friendships(path, seed, quick=quick)
    out["cpu_s"] = round(time.process_time() - began, 2)
    return out


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    print(json.dumps(run(options.quick, options.seed, options.data), indent=1))


if __name__ == "__main__":
    main()
