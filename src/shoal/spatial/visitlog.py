"""The counted check-ins: by user, and by place and slot; integers only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError, IntegrityError

__all__ = ["VisitLog"]

_I8 = npt.NDArray[np.int64]


class VisitLog:
    """How often each user was at each place in each slot.

    A place is a number here: its position in ``place_keys``. What is known at
    build or compaction is sorted in flat arrays; what comes later is in
    dictionaries by user, and in rows of counts appended at the end.

    Attributes
    ----------
    slot_first, slot_stop : int64 [capacity]
        The slots of place o with their counts are ``slot_of`` and ``count_of``
        (uint8, uint32) from ``slot_first[o]`` to ``slot_stop[o]``, ascending.
    category : int64 [capacity]
        Category of each place, -1 for none.
    n_checkins : int
        Check-ins, those without a slot too.
    """

    def __init__(
        self, place_keys: _I8, category: _I8, events: tuple[_I8, _I8, _I8, _I8], slots: int
    ) -> None:
        """Take events (user, place, slot, count), sorted and each combination once."""
        self.slot_first: _I8
        self.slot_stop: _I8
        self.slots = slots
        self.place_keys = place_keys
        self.category = category
        user, self._place, self._slot, self._count = events
        self.users, first = np.unique(user, return_index=True)
        self._ptr = np.append(first, len(user)).astype(np.int64)
        self._order = np.argsort(place_keys, kind="stable")
        self._sorted = place_keys[self._order]
        self._added: dict[int, int] = {}
        self._later: dict[int, dict[tuple[int, int], int]] = {}
        self._gone: set[int] = set()
        self.n_places = len(place_keys)
        self.n_checkins = int(self._count.sum())
        self._count_slots()

    @classmethod
    def build(
        cls,
        place_keys: _I8,
        user: _I8,
        place: _I8,
        *,
        slot: npt.ArrayLike | None,
        slots: int,
        category: npt.ArrayLike | None,
    ) -> VisitLog:
        """Count check-ins; see ``VisitStore.build``."""
        n, m = len(place_keys), len(user)
        if len(np.unique(place_keys)) != n:
            raise InputError("a place's key is there twice", field="place_keys")
        when = np.full(m, -1, dtype=np.int64) if slot is None else np.asarray(slot, dtype=np.int64)
        if not len(place) == len(when) == m:
            raise InputError(
                "users, places and slots are as many",
                field="slot",
                value=(m, len(place), len(when)),
            )
        kinds = (
            np.full(n, -1, dtype=np.int64)
            if category is None
            else np.asarray(category, dtype=np.int64)
        )
        if len(kinds) != n:
            raise InputError(f"{len(kinds)} categories for {n} places", field="category")
        for name, values, bad in (
            ("user", user, user < 0),
            ("slot", when, (when < -1) | (when >= slots)),
            ("category", kinds, kinds < -1),
        ):
            if bad.any():
                row = int(np.argmax(bad))
                raise InputError("out of range", field=name, value=int(values[row]), row=row + 1)
        order = np.argsort(place_keys, kind="stable")
        at = _find(place_keys[order], order, place)
        if (at < 0).any():
            row = int(np.argmax(at < 0))
            raise InputError("no such place", field="place", value=int(place[row]), row=row + 1)
        return cls(place_keys, kinds, _count_events((user, at, when), np.ones(m, np.int64)), slots)

    # --- reading ------------------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """Return how many places the arrays have room for."""
        return len(self.slot_first)

    def find(self, keys: _I8) -> _I8:
        """Return the place of each key, -1 for those unknown."""
        found = _find(self._sorted, self._order, np.asarray(keys, dtype=np.int64))
        if self._added:
            for i in np.flatnonzero(found < 0).tolist():
                found[i] = self._added.get(int(keys[i]), -1)
        return found

    def keys_of(self, places: _I8) -> _I8:
        """Return the keys of places."""
        return self.place_keys[places]

    def slots_of(self, place: int) -> tuple[_I8, _I8]:
        """Return (slots, counts) of a place."""
        mine = slice(int(self.slot_first[place]), int(self.slot_stop[place]))
        return self.slot_of[mine].astype(np.int64), self.count_of[mine].astype(np.int64)

    def visited(self, user: int) -> tuple[_I8, _I8]:
        """Return (places, ascending, and the user's check-ins there)."""
        place, _, count = self._events_of(user)
        found, first = np.unique(place, return_index=True)
        return found, np.add.reduceat(count, first) if len(found) else count

    def pairs(self) -> tuple[_I8, _I8, _I8]:
        """Return (user, place, check-ins) of every pair, users ascending; of a fresh log."""
        user = np.repeat(self.users, np.diff(self._ptr))
        if not len(user):
            return user, self._place, self._count
        fresh = np.ones(len(user), dtype=bool)
        fresh[1:] = (np.diff(user) != 0) | (np.diff(self._place) != 0)
        first = np.flatnonzero(fresh)
        return user[first], self._place[first], np.add.reduceat(self._count, first)

    def all_pairs(self) -> tuple[_I8, _I8, _I8]:
        """Return (user, place, check-ins) of every pair, those of later check-ins too."""
        return self.pairs() if not (self._later or self._gone) else self.compacted().pairs()

    def category_counts(self) -> npt.NDArray[np.float64]:
        """Return check-ins by category and slot, float64 [categories, slots]; of a fresh log."""
        kinds = int(self.category[: self.n_places].max(initial=-1)) + 1
        place = np.repeat(
            np.arange(self.n_places), (self.slot_stop - self.slot_first)[: self.n_places]
        )
        kind = self.category[place]
        used = len(place)
        # A row more for the places without a category: they count in the prior of all.
        table = np.zeros((kinds + 1, self.slots))
        np.add.at(table, (kind, self.slot_of[:used]), self.count_of[:used])
        return table

    # --- changing -----------------------------------------------------------------------------

    def place_of(self, key: int) -> int:
        """Return the place of a key, a new one if there is none."""
        found = int(self.find(np.array([key], dtype=np.int64))[0])
        if found >= 0:
            return found
        place = self.n_places
        if place == self.capacity or place == len(self.place_keys):
            room = max(64, self.capacity)
            self.place_keys = np.concatenate([self.place_keys, np.zeros(room, np.int64)])
            self.category = np.concatenate([self.category, np.full(room, -1, np.int64)])
            self.slot_first = np.concatenate([self.slot_first, np.zeros(room, np.int64)])
            self.slot_stop = np.concatenate([self.slot_stop, np.zeros(room, np.int64)])
        self.place_keys[place] = key
        self.n_places = place + 1
        self._added[key] = place
        return place

    def add(self, user: int, place: int, slot: int, count: int) -> int:
        """Add check-ins; return how many the user had there before."""
        before = self._visits(user, place)
        later = self._later.setdefault(user, {})
        later[place, slot] = later.get((place, slot), 0) + count
        self.n_checkins += count
        if slot >= 0:
            self._change_slot(place, slot, count)
        return before

    def remove_user(self, user: int) -> None:
        """Take all check-ins of a user out."""
        places, slots, counts = self._events_of(user)
        for place, slot, count in zip(
            places.tolist(), slots.tolist(), counts.tolist(), strict=True
        ):
            self.n_checkins -= count
            if slot >= 0:
                self._change_slot(place, slot, -count)
        self._later.pop(user, None)
        self._gone.add(user)

    def compacted(self) -> VisitLog:
        """Return the same log, sorted throughout."""
        user = np.repeat(self.users, np.diff(self._ptr))
        kept = ~np.isin(user, np.array(sorted(self._gone), dtype=np.int64))
        later = [
            (who, place, slot, count)
            for who, events in self._later.items()
            for (place, slot), count in events.items()
        ]
        more = np.array(later, dtype=np.int64).reshape(-1, 4)
        columns = [
            np.concatenate([old[kept], more[:, c]])
            for c, old in enumerate((user, self._place, self._slot, self._count))
        ]
        events = _count_events((columns[0], columns[1], columns[2]), columns[3])
        n = self.n_places
        return VisitLog(self.place_keys[:n].copy(), self.category[:n].copy(), events, self.slots)

    # --- keeping ------------------------------------------------------------------------------

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the flat arrays of a fresh log, by name."""
        return {
            "place_keys": self.place_keys,
            "category": self.category.astype(np.int32),
            "users": self.users,
            "user_ptr": self._ptr,
            "event_place": self._place.astype(np.int32),
            "event_slot": self._slot.astype(np.int16),
            "event_count": self._count.astype(np.int32),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], *, slots: int) -> VisitLog:
        """Return the log of :meth:`arrays`.

        Raises
        ------
        IntegrityError
            Lengths that belong together differ, or a number is out of range.
        """
        ptr = arrays["user_ptr"].astype(np.int64)
        place, slot, count = (
            arrays[name].astype(np.int64) for name in ("event_place", "event_slot", "event_count")
        )
        keys, kinds = arrays["place_keys"].astype(np.int64), arrays["category"].astype(np.int64)
        users = arrays["users"].astype(np.int64)
        sound = (
            len(ptr) == len(users) + 1
            and ptr[0] == 0
            and bool((np.diff(ptr) > 0).all())
            and len(place) == len(slot) == len(count) == ptr[-1]
            and len(kinds) == len(keys)
            and bool(((place >= 0) & (place < len(keys))).all())
            and bool(((slot >= -1) & (slot < slots)).all())
        )
        if not sound:
            raise IntegrityError("the arrays of the check-ins do not fit together")
        return cls(keys, kinds, (np.repeat(users, np.diff(ptr)), place, slot, count), slots)

    def nbytes(self) -> int:
        """Return the bytes of the arrays."""
        held = (self._place, self._slot, self._count, self._ptr, self.users, self.place_keys)
        rows = (self.slot_first, self.slot_stop, self.slot_of, self.count_of, self.category)
        return sum(a.nbytes for a in (*held, *rows, self._order, self._sorted))

    # --- within -------------------------------------------------------------------------------

    def _count_slots(self) -> None:
        known = self._slot >= 0
        place, slot = self._place[known], self._slot[known]
        name = place * self.slots + slot
        order = np.argsort(name, kind="stable")
        name = name[order]
        unique, first = np.unique(name, return_index=True)
        counts = self._count[known][order]
        total = np.add.reduceat(counts, first) if len(first) else counts
        self.slot_of = (unique % self.slots).astype(np.uint8)
        self.count_of = total.astype(np.uint32)
        self._used = len(unique)
        edges = np.searchsorted(unique // self.slots, np.arange(self.n_places + 1))
        self.slot_first = edges[:-1].astype(np.int64)
        self.slot_stop = edges[1:].astype(np.int64)

    def _range_of(self, user: int) -> slice:
        at = int(np.searchsorted(self.users, user))
        if at == len(self.users) or self.users[at] != user or user in self._gone:
            return slice(0, 0)
        return slice(int(self._ptr[at]), int(self._ptr[at + 1]))

    def _events_of(self, user: int) -> tuple[_I8, _I8, _I8]:
        """Return (place, slot, count) of a user, by place and slot, each once."""
        mine = self._range_of(user)
        later = self._later.get(user)
        if not later:
            return self._place[mine], self._slot[mine], self._count[mine]
        more = np.array([(p, s, c) for (p, s), c in later.items()], dtype=np.int64)
        place = np.concatenate([self._place[mine], more[:, 0]])
        slot = np.concatenate([self._slot[mine], more[:, 1]])
        count = np.concatenate([self._count[mine], more[:, 2]])
        zeros = np.zeros(len(place), dtype=np.int64)
        _, place, slot, count = _count_events((zeros, place, slot), count)
        return place, slot, count

    def _visits(self, user: int, place: int) -> int:
        mine = self._range_of(user)
        places = self._place[mine]
        a, b = np.searchsorted(places, place), np.searchsorted(places, place, side="right")
        later = self._later.get(user, {})
        return int(self._count[mine][a:b].sum()) + sum(
            count for (p, _), count in later.items() if p == place
        )

    def _change_slot(self, place: int, slot: int, by: int) -> None:
        first, stop = int(self.slot_first[place]), int(self.slot_stop[place])
        at = first + int(np.searchsorted(self.slot_of[first:stop], slot))
        if at < stop and self.slot_of[at] == slot:
            self.count_of[at] = int(self.count_of[at]) + by
            return
        # No room in the middle: the row moves to the end, where there is.
        length = stop - first
        start = self._used
        if start + length + 1 > len(self.slot_of):
            room = max(1024, len(self.slot_of), length + 1)
            self.slot_of = np.concatenate([self.slot_of, np.zeros(room, np.uint8)])
            self.count_of = np.concatenate([self.count_of, np.zeros(room, np.uint32)])
        where = at - first
        for array, value in ((self.slot_of, slot), (self.count_of, by)):
            array[start : start + where] = array[first:at]
            array[start + where] = value
            array[start + where + 1 : start + length + 1] = array[at:stop]
        self._used = start + length + 1
        self.slot_first[place], self.slot_stop[place] = start, start + length + 1


def _find(ascending: _I8, order: npt.NDArray[np.intp], keys: _I8) -> _I8:
    if len(ascending) == 0:
        return np.full(len(keys), -1, dtype=np.int64)
    at = np.minimum(np.searchsorted(ascending, keys), len(ascending) - 1)
    return np.where(ascending[at] == keys, order[at], -1).astype(np.int64)


def _count_events(events: tuple[_I8, _I8, _I8], counts: _I8) -> tuple[_I8, _I8, _I8, _I8]:
    """Return (user, place, slot, count), sorted, each combination once."""
    user, place, slot = events
    if not len(user):
        return user, place, slot, counts
    # One number for the three sorts far faster than three columns, and fits: 2^63 is enough
    # for a million users at ten million places in 168 slots a thousand times over.
    wide, tall = int(slot.max()) + 2, int(place.max()) + 1
    distinct, who = np.unique(user, return_inverse=True)
    name = (who * tall + place) * wide + (slot + 1)
    order = np.argsort(name, kind="stable")
    name = name[order]
    first = np.flatnonzero(np.concatenate([[True], np.diff(name) != 0]))
    total = np.add.reduceat(counts[order], first)
    name = name[first]
    rest = name // wide
    return distinct[rest // tall], rest % tall, name % wide - 1, total
