"""Users of an index: their check-ins, their relations, and what a query means by them."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError, NotFoundError
from shoal.data.checkins import CheckinLog
from shoal.spatial.config import SpatialKeywordIndexConfig
from shoal.spatial.ids import Ids
from shoal.spatial.query import SocialPlan
from shoal.spatial.social import SocialEmbedding
from shoal.spatial.timeslots import slot_of, slots_of_unix
from shoal.spatial.visitconfig import VisitConfig
from shoal.spatial.visits import VisitStore

__all__ = ["CheckinNote", "People", "UserNote"]


class CheckinNote(msgspec.Struct, frozen=True):
    """What goes into the journal with check-ins; a user who is new brings the id."""

    users: list[Any]
    numbers: list[int]
    places: list[int]
    slots: list[int]


class UserNote(msgspec.Struct, frozen=True):
    """What goes into the journal when a user is deleted."""

    number: int


class People:
    """Users, numbered; their check-ins, vectors and friends.

    Parameters
    ----------
    visits : VisitStore
        Check-ins by the users' numbers and the places' keys.
    users : Ids
        External ids of users; the numbers of those with a vector come first.
    friends : (int64 [U + 1], int64 [e])
        CSR of each user's friends.
    tz : str or None
        Zone of places, to bring times into slots.
    """

    def __init__(
        self,
        visits: VisitStore,
        users: Ids,
        friends: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
        tz: str | None,
    ) -> None:
        self.visits = visits
        self.users = users
        self.friend_ptr, self.friend_ids = friends
        self.tz = tz

    @classmethod
    def build(
        cls,
        keys: npt.NDArray[np.int64],
        place_ids: Ids,
        *,
        config: SpatialKeywordIndexConfig,
        checkins: CheckinLog | None = None,
        social: SocialEmbedding | None = None,
        categories: Any = None,
        time_zones: Sequence[str | None] | None = None,
    ) -> People:
        """Gather the users of some places.

        Parameters
        ----------
        keys : int64 [n]
            The places.
        place_ids : Ids
            Their external ids, which the check-ins use.
        config : SpatialKeywordIndexConfig
            Slots, smoothing, privacy.
        checkins : CheckinLog, optional
            Who was where, when.
        social : SocialEmbedding, optional
            The users' vectors and friends.
        categories : sequence [n], optional
            Category of each place (texts or whole numbers), for the prior of its times.
        time_zones : sequence of str or None [n], optional
            Zone of each place; by default ``config.tz`` for all. The times of a
            place without one count for no slot.

        Raises
        ------
        InputError
            A check-in's place is unknown, times need a zone, or lengths differ.
        """
        vectors, friends, names = _relations(social)
        users, _ = Ids.of(names, dense=True)
        user = place = slot = np.empty(0, dtype=np.int64)
        if checkins is not None and len(checkins):
            place = place_ids.find(checkins.poi)
            known = np.isin(place, keys)
            if not known.all():
                row = int(np.argmax(~known))
                raise InputError(
                    "a check-in at a place that is not there",
                    field="checkins.poi",
                    value=checkins.poi[row],
                    row=row + 1,
                )
            if not len(users):
                users, user = Ids.of(checkins.user, dense=True)
            else:
                user = users.add(checkins.user)
            slot = _slots(checkins, place, keys, config, time_zones)
        visits = VisitStore.build(
            keys,
            user=user,
            place=place,
            slot=slot,
            user_vectors=vectors,
            category=_numbered(categories, len(keys)),
            config=VisitConfig(
                time_slots=config.time_slots,
                smoothing_hours=config.smoothing_hours,
                prior_weight=config.prior_weight,
                clip_per_user=config.clip_per_user,
                min_visitors=config.min_visitors,
            ),
        )
        return cls(visits, users, friends, config.tz)

    # --- what a query means ---------------------------------------------------------------------

    def slot(self, at: int | datetime.datetime | None) -> int:
        """Return the slot of a query's time, -1 for none.

        An aware time is read in the zone of the index where it has one, and
        otherwise as the clock it shows.

        Raises
        ------
        InputError
            The time is naive and the index has no zone, or a slot is out of range.
        """
        if at is None:
            return -1
        slots = self.visits.config.time_slots
        if isinstance(at, datetime.datetime):
            return slot_of(at, slots=slots, tz=self.tz)
        if isinstance(at, bool) or not isinstance(at, (int, np.integer)):
            raise InputError("a time is an aware datetime or a slot number", field="at", value=at)
        if not 0 <= at < slots:
            raise InputError(f"a slot is a number from 0 to {slots - 1}", field="at", value=at)
        return int(at)

    def relations(self, user: Any, form: Literal["embedding", "friends"]) -> SocialPlan | None:
        """Return what a query's user means; None without one.

        An unknown user, and one without relations, is neutral: every place has
        the same social part, and the plan's ``known`` is False.

        Raises
        ------
        InputError
            A vector has the wrong length or is not finite, or the form is unknown.
        """
        if user is None:
            return None
        if form not in {"embedding", "friends"}:
            raise InputError('social is "embedding" or "friends"', field="social", value=form)
        dim = self.visits.dim
        if isinstance(user, (np.ndarray, list, tuple)):
            if form == "friends":
                raise InputError("friends are those of a user, not of a vector", field="user")
            return _plan_of_vector(np.asarray(user), dim)
        number = int(self.users.find([user])[0])
        if form == "embedding":
            vector = self.visits.user_vector(number).astype(np.float32)
            return SocialPlan(vector, known=bool(vector.any()))
        rows = self.friends_of(number)
        mine = self.visits.user_vector(number).astype(np.float64)
        theirs = self.visits.user_vectors[rows].astype(np.float64)
        relation = np.clip(theirs @ mine, 0.0, 1.0) if len(rows) else np.empty(0)
        return SocialPlan(
            np.zeros(dim, dtype=np.float32),
            friends=True,
            users=rows,
            relation=relation,
            known=bool(len(rows)),
        )

    def friends_of(self, number: int) -> npt.NDArray[np.int64]:
        """Return the numbers of a user's friends, ascending."""
        if not 0 <= number < len(self.friend_ptr) - 1:
            return np.empty(0, dtype=np.int64)
        found = self.friend_ids[self.friend_ptr[number] : self.friend_ptr[number + 1]]
        return np.sort(found)

    def friends_at(self, user: Any, key: int) -> list[Any]:
        """Return the user's friends who were at a place."""
        rows = self.friends_of(self.users.get(user, "user"))
        there = []
        for row in rows.tolist():
            try:
                if key in self.visits.places_of(row):
                    there.append(row)
            except NotFoundError:
                continue
        return self.users.names(np.array(there, dtype=np.int64))

    # --- changing -----------------------------------------------------------------------------

    def note(self, users: Sequence[Any], places: Sequence[int], times: Any) -> bytes:
        """Check some check-ins and return the note that :meth:`apply` takes."""
        if not len(users) == len(places) == len(times):
            raise InputError(
                f"{len(users)} users, {len(places)} places and {len(times)} times", field="time"
            )
        slots = [self._slot_of(time) for time in times]
        numbers = self.users.add(list(users))
        return msgspec.msgpack.encode(
            CheckinNote(list(users), numbers.tolist(), list(places), slots)
        )

    def apply(self, kind: str, payload: bytes) -> None:
        """Apply a note of the journal: check-ins, or a deleted user."""
        if kind == "checkin":
            note = msgspec.msgpack.decode(payload, type=CheckinNote)
            self.users.put(note.users, note.numbers)
            self.visits.record_many(note.numbers, note.places, note.slots)
        elif kind == "delete_user":
            self.visits.delete_user(msgspec.msgpack.decode(payload, type=UserNote).number)

    def _slot_of(self, time: Any) -> int:
        if time is None:
            return -1
        if isinstance(time, (float, np.floating)):
            return slot_of(float(time), slots=self.visits.config.time_slots, tz=self.tz)
        return self.slot(time)

    # --- keeping ------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """Return what is kept: JSON values and arrays."""
        meta = {"visits": self.visits.meta(), "users": self.users.kind, "tz": self.tz}
        arrays = {f"visits.{name}": array for name, array in self.visits.arrays().items()}
        arrays |= {f"users.{name}": array for name, array in self.users.arrays().items()}
        return meta, arrays | {"friend_ptr": self.friend_ptr, "friend_ids": self.friend_ids}

    @classmethod
    def restored(cls, meta: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> People:
        """Return the people that :meth:`state` came from."""

        def below(prefix: str) -> dict[str, npt.NDArray[Any]]:
            return {
                name.removeprefix(prefix): array
                for name, array in arrays.items()
                if name.startswith(prefix)
            }

        return cls(
            VisitStore.from_arrays(below("visits."), meta["visits"]),
            Ids.from_arrays(meta["users"], below("users.")),
            (arrays["friend_ptr"], arrays["friend_ids"]),
            meta["tz"],
        )


def _relations(
    social: SocialEmbedding | None,
) -> tuple[
    npt.NDArray[np.float32] | None, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]], Any
]:
    """Return the vectors, the friends as CSR and the ids of an embedding's users."""
    empty = np.zeros(1, dtype=np.int64), np.empty(0, dtype=np.int64)
    if social is None:
        return None, empty, []
    n, graph = len(social), social.graph
    friends = graph.ptr.astype(np.int64), graph.friends.astype(np.int64)
    return social.vectors.copy(), friends, social.names(np.arange(n, dtype=np.int64))


def _slots(
    checkins: CheckinLog,
    place: npt.NDArray[np.int64],
    keys: npt.NDArray[np.int64],
    config: SpatialKeywordIndexConfig,
    time_zones: Sequence[str | None] | None,
) -> npt.NDArray[np.int64]:
    if checkins.slots is not None:
        if checkins.slots != config.time_slots:
            raise InputError(
                f"the check-ins are in {checkins.slots} slots, the index in {config.time_slots}",
                field="time_slots",
            )
        return checkins.time
    if time_zones is None:
        if config.tz is None:
            raise InputError(
                "times of check-ins need the time zone of the places",
                field="tz",
                hint='give the index a tz, such as "Europe/Helsinki", or time_zones a place',
            )
        return slots_of_unix(checkins.time, [config.tz], slots=config.time_slots)
    if len(time_zones) != len(keys):
        raise InputError(f"{len(time_zones)} time zones for {len(keys)} places", field="time_zones")
    zones = list(dict.fromkeys(zone for zone in time_zones if zone is not None))
    number: dict[str | None, int] = {zone: i for i, zone in enumerate(zones)}
    of_place = np.array([number.get(zone, -1) for zone in time_zones], dtype=np.int64)
    order = np.argsort(keys, kind="stable")
    row = order[np.searchsorted(keys[order], place)]
    return slots_of_unix(checkins.time, zones, of_place[row], slots=config.time_slots)


def _numbered(categories: Any, n: int) -> npt.NDArray[np.int32] | None:
    if categories is None:
        return None
    if len(categories) != n:
        raise InputError(f"{len(categories)} categories for {n} places", field="categories")
    number: dict[Any, int] = {}
    return np.array(
        [-1 if c is None else number.setdefault(c, len(number)) for c in list(categories)],
        dtype=np.int32,
    )


def _plan_of_vector(vector: npt.NDArray[Any], dim: int) -> SocialPlan:
    if vector.shape != (dim,):
        raise InputError(
            f"a user's vector has {dim} numbers here", field="user", value=list(vector.shape)
        )
    raw = vector.astype(np.float64)
    if not np.isfinite(raw).all():
        raise InputError("a user's vector must be finite", field="user")
    length = float(np.linalg.norm(raw))
    # Made a little shorter than 1, so that rounding to float32 cannot make it longer.
    unit = raw / (length * (1.0 + 1e-6)) if length > 1.0 else raw
    return SocialPlan(unit.astype(np.float32), known=length > 0)
