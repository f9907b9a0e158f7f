"""Generated users, friends and check-ins: who would go where, when, and whom they know.

    check-in   P(place, slot | user) ~ exp(-d / 5 km) * popularity * busy(kind, slot)
                                       * (1 + 3 * share of friends who were there)
    friends    P(pair) ~ 1 / (d + 1 km) * (1 in the same community, else 0.1)

Distances of check-ins are taken between squares of about 3 km and end at 20 km.
The friends' term counts visits of the first fifth of the time, and acts from
then on; so what is generated can be predicted from the past, and by how much is
known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from shoal.core.errors import InputError
from shoal.core.seeds import philox
from shoal.data.checkins import CheckinLog, Friendships
from shoal.data.friendgen import generate_friends
from shoal.data.placetable import PlaceTable
from shoal.data.placewords import busy_hours, rhythm_of
from shoal.data.squares import Squares
from shoal.data.words import tokenize

__all__ = ["GeneratedVisits", "generate_visits"]

#: 2024-01-01, a Monday: the first hour of the first week.
_START = 1_704_067_200
_WEEKS, _HOURS = 52, 168
_RHYTHM_NAMES = ("breakfast", "leisure", "meals", "night", "shop", "stay", "work")
_PAST = 0.2  # share of check-ins, and of weeks, before friends' visits act


@dataclass(frozen=True, eq=False)
class GeneratedVisits:
    """Users, whom they know, and where they were.

    Parameters
    ----------
    checkins : CheckinLog
        Users 0 to n - 1, places by their ids, seconds since 1970, by time.
    friendships : Friendships
        Pairs of users.
    home_lon, home_lat : float64 [users]
        Where the users live, degrees.
    community : int64 [users]
        The users' communities.
    """

    checkins: CheckinLog
    friendships: Friendships
    home_lon: npt.NDArray[np.float64]
    home_lat: npt.NDArray[np.float64]
    community: npt.NDArray[np.int64]


def generate_visits(
    places: PlaceTable,
    *,
    users: int,
    checkins: int,
    seed: int = 0,
    reach_km: float = 5.0,
    friend_boost: float = 3.0,
    mean_friends: float = 10.0,
    communities: int = 8,
) -> GeneratedVisits:
    """Generate users, friendships and check-ins at places.

    Parameters
    ----------
    places : PlaceTable
        With ids that are whole numbers; ``category`` sets the busy hours and
        ``timezone`` the local time, where there are any.
    users, checkins : int
        How many.
    seed : int
        Any integer.
    reach_km : float
        Scale of the fall with distance from home.
    friend_boost : float
        Weight of the share of friends who were there; 0 makes friends matter
        nothing (a control that must show no social gain).
    mean_friends : float
        Mean number of friends.
    communities : int
        Number of communities.

    Raises
    ------
    InputError
        A count is not positive, or ids of places are texts.
    """
    for name, value in (("users", users), ("checkins", checkins), ("communities", communities)):
        if isinstance(value, bool) or value < 1:
            raise InputError("must be positive", field=name, value=value)
    if not (reach_km > 0 and friend_boost >= 0 and mean_friends >= 0):
        raise InputError("reach_km must be positive, friend_boost and mean_friends not negative")
    if not isinstance(places.ids, np.ndarray):
        raise InputError("ids of the places must be whole numbers", field="places")
    rng = philox(seed, "users")
    popularity = np.exp(rng.normal(0.0, 1.2, len(places)))
    near = rng.integers(0, len(places), users)  # homes are where places are
    home_lon = places.lon[near] + rng.normal(0.0, 0.005, users)
    home_lat = np.clip(places.lat[near] + rng.normal(0.0, 0.005, users), -90.0, 90.0)
    home_lon = (home_lon + 180.0) % 360.0 - 180.0
    community = rng.integers(0, communities, users)
    friendships = generate_friends(
        home_lon, home_lat, community, mean_friends=mean_friends, seed=seed
    )
    squares = Squares.of(places.lon, places.lat, popularity)
    reach = squares.reach(squares.square_of_row[near], reach_km)
    activity = np.exp(rng.normal(0.0, 0.8, users))
    past = max(1, int(checkins * _PAST)) if checkins > 1 else checkins

    def who(count: int) -> npt.NDArray[np.int64]:
        share = np.cumsum(activity)
        drawn = np.searchsorted(share, np.sort(rng.random(count)) * share[-1], side="right")
        chosen: npt.NDArray[np.int64] = np.minimum(drawn, users - 1).astype(np.int64)
        return chosen

    early = who(past)
    early_row = squares.draw(reach, early, rng)
    late = who(checkins - past)
    late_row = squares.draw(reach, late, rng)
    if friend_boost > 0 and len(friendships) and len(late):
        _follow_friends(
            _Visits(early, early_row), friendships.edges, squares, reach, boost=friend_boost,
            late=late, late_row=late_row, rng=rng,
        )  # fmt: skip
    user = np.concatenate([early, late])
    row = np.concatenate([early_row, late_row])
    times = _times(places, row, len(early), rng)
    order = np.argsort(times, kind="stable")
    log = CheckinLog(user[order], places.ids[row[order]], times[order], future="keep")
    return GeneratedVisits(log, friendships, home_lon, home_lat, community)


@dataclass(frozen=True)
class _Visits:
    user: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]


def _follow_friends(
    early: _Visits,
    edges: npt.NDArray[np.int64],
    squares: Squares,
    reach: npt.NDArray[np.float64],
    *,
    boost: float,
    late: npt.NDArray[np.int64],
    late_row: npt.NDArray[np.int64],
    rng: np.random.Generator,
) -> None:
    """Move some late check-ins to places where friends were, in place.

    base * (1 + boost * share) is a mixture of base, from which ``late_row`` was
    drawn, and of base * boost * share over the friends' places, whose mass is
    summed here for each user.
    """
    n_users, n_rows = len(squares.user_total), len(squares.square_of_row)
    visit = np.unique(early.user * n_rows + early.row)
    visit_user, visit_row = visit // n_rows, visit % n_rows
    first = np.searchsorted(visit_user, np.arange(n_users + 1))
    a = np.concatenate([edges[:, 0], edges[:, 1]])
    b = np.concatenate([edges[:, 1], edges[:, 0]])
    degree = np.bincount(a, minlength=n_users)
    counts = (first[1:] - first[:-1])[b]
    user = np.repeat(a, counts)
    at = np.arange(len(user)) - np.repeat(np.cumsum(counts) - counts, counts)
    row = visit_row[first[np.repeat(b, counts)] + at]
    close = squares.may_be_near(user, row)
    key, times_seen = np.unique(user[close] * n_rows + row[close], return_counts=True)
    user, row = key // n_rows, key % n_rows
    base = squares.base(user, row, reach)
    mass = boost * base * times_seen / np.maximum(degree[user], 1)
    total = np.bincount(user, weights=mass, minlength=n_users)
    share = np.cumsum(mass)
    before = np.concatenate([[0.0], share])[np.searchsorted(user, np.arange(n_users))]
    moved = np.flatnonzero(rng.random(len(late)) < (total / (1.0 + total))[late])
    who = late[moved]
    wanted = before[who] + rng.random(len(who)) * total[who]
    pick = np.minimum(np.searchsorted(share, wanted, side="right"), len(share) - 1)
    right = user[pick] == who  # rounding at the end of a user's own part
    late_row[moved[right]] = row[pick[right]]


def _times(
    places: PlaceTable, row: npt.NDArray[np.int64], early: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Draw the hour of the week by the place's rhythm, the week, and the minute."""
    m = len(row)
    slot = np.empty(m, dtype=np.int64)
    rhythm = _rhythms(places)[row]
    for i, name in enumerate(_RHYTHM_NAMES):
        chosen = np.flatnonzero(rhythm == i)
        share = np.cumsum(busy_hours(name))
        drawn = np.searchsorted(share, rng.random(len(chosen)) * share[-1], side="right")
        slot[chosen] = np.minimum(drawn, _HOURS - 1)
    split = max(1, round(_WEEKS * _PAST))
    week = np.concatenate([rng.integers(0, split, early), rng.integers(split, _WEEKS, m - early)])
    hour = week * _HOURS + slot
    local: npt.NDArray[np.int64] = _START + hour * 3600 + rng.integers(0, 3600, m)
    if places.timezone is None:
        return local
    zone_names = np.array([zone or "UTC" for zone in places.timezone], dtype=object)
    zones, code = np.unique(zone_names, return_inverse=True)
    offset = np.stack([_offsets(str(zone)) for zone in zones])
    return local - offset[code.ravel()[row], hour]


def _rhythms(places: PlaceTable) -> npt.NDArray[np.int64]:
    """Return the number of each place's rhythm in the order of their names."""
    if places.category is None:
        return np.full(len(places), _RHYTHM_NAMES.index("shop"), dtype=np.int64)
    known = {
        kind: _RHYTHM_NAMES.index(rhythm_of(tokenize(kind or ""))) for kind in set(places.category)
    }
    return np.array([known[kind] for kind in places.category], dtype=np.int64)


def _offsets(zone: str) -> npt.NDArray[np.int64]:
    """Return what a zone's clock is ahead of UTC in each local hour, seconds.

    An hour that the clock skips in spring takes the offset before it.
    """
    naive = pl.Series(np.arange(_WEEKS * _HOURS) * 3_600_000 + _START * 1000).cast(
        pl.Datetime("ms")
    )
    try:
        aware = naive.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
    except pl.exceptions.PolarsError:
        raise InputError("no such time zone", field="timezone", value=zone) from None
    ahead = naive.dt.epoch("s") - aware.dt.epoch("s")
    return ahead.forward_fill().fill_null(0).to_numpy().astype(np.int64)
