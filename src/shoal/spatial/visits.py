"""Check-ins: who visited which place and when, exactly, and open to change at any time.

The store keeps integers alone: how often each user was at each place in each
slot, and from these each place's counts by slot and the sum of its visitors'
vectors in fixed point. All values of the time and social parts follow from the
integers, so they do not depend on the order in which check-ins came, and a user
who is deleted leaves no trace.

One thread at a time writes (a lock sees to it); readers never wait for long: they
search, look whether a write came in between, and search again if so.

Source: the time and social parts of NETR-Tree (Huang et al., arXiv 1908.09520).
The paper's exact forms are not public; those here are ours, as documented.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError, IntegrityError, NotFoundError
from shoal.spatial.columns import Layout, SearchStats
from shoal.spatial.heldcolumns import HeldColumns
from shoal.spatial.planner import Planner
from shoal.spatial.query import Answers, QueryPlan, SocialPlan
from shoal.spatial.relatedvisits import RelatedVisits
from shoal.spatial.visitcolumns import VisitColumns
from shoal.spatial.visitconfig import VisitConfig, check_slot, check_user, checked_vectors
from shoal.spatial.visitepoch import Epoch
from shoal.spatial.visitlog import VisitLog
from shoal.spatial.visitsearch import search_layout
from shoal.spatial.visitsums import VisitSums, padded
from shoal.spatial.visittimes import VisitTimes

__all__ = ["VisitStore"]

_NO_SLOT = -1


class VisitStore:
    """Check-ins of users at places; make one with :meth:`build` or :meth:`from_arrays`.

    Attributes
    ----------
    config : VisitConfig
        What a visit counts for.
    user_vectors : float32 [U, dim]
        A vector of length at most 1 for each user; a user beyond has none.
    """

    def __init__(
        self,
        log: VisitLog,
        user_vectors: npt.NDArray[np.float32],
        config: VisitConfig,
        planner: Planner | None = None,
    ) -> None:
        self.config = config
        self.planner = planner or Planner()
        self.user_vectors = user_vectors
        self.log = log
        self._epoch = Epoch()
        self._columns = HeldColumns()
        self._related = RelatedVisits(config)
        self._times = VisitTimes(log, config)
        self._sums = VisitSums(log, user_vectors, config)

    # --- making -----------------------------------------------------------------------------

    @classmethod
    def build(
        cls,
        place_keys: npt.ArrayLike,
        *,
        user: npt.ArrayLike = (),
        place: npt.ArrayLike = (),
        slot: npt.ArrayLike | None = None,
        user_vectors: npt.ArrayLike | None = None,
        category: npt.ArrayLike | None = None,
        config: VisitConfig | None = None,
        planner: Planner | None = None,
    ) -> VisitStore:
        """Gather check-ins.

        Parameters
        ----------
        place_keys : int64 [n]
            Keys of the places, each once.
        user, place : int64 [m]
            Who was where: a number of at least 0, and a key.
        slot : int [m], optional
            In which slot, -1 where that is not known.
        user_vectors : float32 [U, dim], optional
            The users' vectors, of length 1, or 0 for a user without relations.
        category : int32 [n], optional
            Category of each place for the prior of its times, -1 for none.
        config : VisitConfig, optional
            What a visit counts for.
        planner : Planner, optional
            When a search scans.

        Raises
        ------
        InputError
            A key is there twice or a check-in's is unknown, a user or slot is out
            of range, or a vector is not finite or longer than 1; the row is named.
        """
        config = config or VisitConfig()
        vectors = checked_vectors(user_vectors)
        log = VisitLog.build(
            np.asarray(place_keys, dtype=np.int64),
            np.asarray(user, dtype=np.int64),
            np.asarray(place, dtype=np.int64),
            slot=slot,
            slots=config.time_slots,
            category=category,
        )
        return cls(log, vectors, config, planner)

    def _derive(self) -> None:
        """Compute from the log what follows from it."""
        self._times.renew(self.log)
        self._sums = VisitSums(self.log, self.user_vectors, self.config)

    # --- asking -----------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Return a number that grows with every change; odd while one is under way."""
        return self._epoch.number

    @property
    def dim(self) -> int:
        """Return the number of coordinates of a user's vector."""
        return int(self.user_vectors.shape[1])

    @property
    def n_checkins(self) -> int:
        """Return the number of check-ins."""
        return self.log.n_checkins

    def user_vector(self, user: int) -> npt.NDArray[np.float32]:
        """Return a user's vector, all zeros for a user without one."""
        if 0 <= user < len(self.user_vectors):
            mine: npt.NDArray[np.float32] = self.user_vectors[user]
            return mine
        return np.zeros(self.dim, dtype=np.float32)

    def counts(self, key: int) -> npt.NDArray[np.int64]:
        """Return the check-ins of a place in each slot, int64 [slots]."""
        place = int(self.log.find(np.array([key], dtype=np.int64))[0])
        found = np.zeros(self.config.time_slots, dtype=np.int64)
        if place >= 0:
            slots, counts = self.log.slots_of(place)
            found[slots] = counts
        return found

    def visitors(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return how many distinct users visited each place."""
        places = self.log.find(keys)
        found = np.zeros(len(places), dtype=np.int64)
        found[places >= 0] = self._sums.visitors[places[places >= 0]]
        return found

    def place_vectors(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return P(o) of each place, float32 [m, dim]."""

        def make() -> npt.NDArray[np.float32]:
            places = self.log.find(keys)
            blocks = self._sums.blocks(places)
            dim = padded(self.dim)
            rows = blocks.reshape(-1, dim, 16).transpose(0, 2, 1).reshape(-1, dim)
            return rows[: len(keys), : self.dim].copy()

        return self._epoch.steady(make)

    def time_part(self, keys: npt.NDArray[np.int64], slot: int) -> npt.NDArray[np.float64]:
        """Return the time part of each place at a slot, float64 [m]; 0 for slot -1."""
        check_slot(slot, self.config.time_slots)
        out = np.zeros(len(keys))
        if slot < 0:
            return out

        def make() -> npt.NDArray[np.float64]:
            self._times.at(self.log, self.log.find(keys), slot, out)
            return out

        return self._epoch.steady(make)

    def social_part(
        self, keys: npt.NDArray[np.int64], social: SocialPlan
    ) -> npt.NDArray[np.float64]:
        """Return the social part of each place for a user, float64 [m]."""

        def make() -> npt.NDArray[np.float64]:
            places = self.log.find(keys)
            out = np.zeros(len(keys))
            if social.friends:
                at, shares = self.related(social)
                if len(at):
                    where = np.minimum(np.searchsorted(at, places), len(at) - 1)
                    hit = at[where] == places
                    out[hit] = np.minimum(1.0, shares[where[hit]])
                return out
            self._sums.socials(
                places, self.query_vector(social)[: self.dim], self.form(social), out
            )
            return out

        return self._epoch.steady(make)

    def parts(
        self, plan: QueryPlan, keys: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return the time part and the social part (float64 [m] each) of places.

        A part that the plan gives no weight is 0.
        """
        keys = np.ascontiguousarray(keys, dtype=np.int64)
        time = social = np.zeros(len(keys))
        if plan.weights[3] > 0:
            time = self.time_part(keys, plan.slot)
        if plan.weights[4] > 0 and plan.social is not None:
            social = self.social_part(keys, plan.social)
        return time, social

    def form(self, social: SocialPlan | None) -> int:
        """Return the kernels' code of the social part's form."""
        if social is not None and social.friends:
            return 2
        return 0 if self.config.social_map == "half" else 1

    def query_vector(self, social: SocialPlan | None) -> npt.NDArray[np.float64]:
        """Return the user's vector of a plan, float64, padded with zeros to a multiple of 4.

        Raises
        ------
        InputError
            It has another number of coordinates than the vectors here, or is not finite.
        """
        vector = np.zeros(padded(self.dim))
        if social is None or social.friends:
            return vector
        if social.vector.shape != (self.dim,):
            raise InputError(
                f"the user's vector has {social.vector.shape} coordinates, those here {self.dim}",
                field="user",
                hint="use the embedding that the index was built with",
            )
        if not np.isfinite(social.vector).all():
            raise InputError("the user's vector is not finite", field="user")
        vector[: self.dim] = social.vector
        return vector

    def related(self, social: SocialPlan) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return (places, ascending, and the share of their visits) that related users visited.

        A share is the sum of ``relation[v] * c(v, o)`` over the related users, in
        their order, over the sum of c(v, o) over all visitors. Places with fewer
        than ``min_visitors`` visitors are left out.
        """
        return self._related.of(social, self.log, self._sums, self._epoch.number)

    def columns(self, keys: npt.NDArray[np.int64], *, bounds: bool = True) -> VisitColumns:
        """Return the values of places as columns, with the bounds of a 16-ary tree over them."""
        with self._epoch.lock:
            log, n = self.log, len(keys)
            places = log.find(keys)
            times = np.zeros((self.config.time_slots, padded(n, 16)), dtype=np.float32)
            self._times.fill(self.log, places, times)
            return VisitColumns(
                np.ascontiguousarray(keys, dtype=np.int64),
                times,
                self._sums.blocks(places),
                padded(self.dim),
                bounds=bounds,
            )

    def columns_of(self, layout: Layout) -> VisitColumns:
        """Return the columns of a layout's rows; kept, and kept up to date, while it lives."""
        return self._columns.of(layout, self._make_columns, self._epoch.lock)

    def _make_columns(self, layout: Layout) -> VisitColumns:
        make = getattr(layout, "visit_columns", None)
        columns: VisitColumns = make(self) if make else self.columns(layout.keys)
        return columns

    def search(
        self,
        layout: Layout,
        plan: QueryPlan,
        answers: Answers,
        live: npt.NDArray[np.uint8] | None = None,
        stats: SearchStats | None = None,
    ) -> None:
        """Search one layout with all five parts, as ``layout.search`` does with three.

        The packed layout and ``netr`` are searched under bounds; of any other
        all rows are scored.
        """
        count = answers.count
        saved = (
            [a[:count].copy() for a in (answers.scores, answers.kms, answers.keys, answers.rows)]
            if count
            else []
        )

        def attempt() -> None:
            answers.count = count
            for now, then in zip(
                (answers.scores, answers.kms, answers.keys, answers.rows), saved, strict=False
            ):
                now[:count] = then
            search_layout(self, layout, plan, answers, live=live, stats=stats)

        self._epoch.steady(attempt)

    # --- changing -----------------------------------------------------------------------------

    def record(self, user: int, place_key: int, slot: int = _NO_SLOT) -> None:
        """Add one check-in; see :meth:`record_many`."""
        self.record_many([user], [place_key], [slot])

    def record_many(
        self, users: Sequence[int], place_keys: Sequence[int], slots: Sequence[int] | None = None
    ) -> None:
        """Add check-ins, all at once; answers stay exact, bounds get a little looser.

        Parameters
        ----------
        users, place_keys : sequence of int [m]
            Who was where; a place that has not been here before is added.
        slots : sequence of int [m], optional
            When, -1 where that is not known.

        Raises
        ------
        InputError
            A user or a slot is out of range; nothing is changed then.
        """
        slots = [_NO_SLOT] * len(users) if slots is None else slots
        events = list(zip(users, place_keys, slots, strict=True))
        for row, (user, _, slot) in enumerate(events, start=1):
            check_user(user, row)
            check_slot(slot, self.config.time_slots, row)
        with self._epoch.writing():
            touched: dict[int, list[int]] = {}
            for user, key, slot in events:
                place = self.log.place_of(int(key))
                self._sums.grow(self.log.capacity)
                before = self.log.add(int(user), place, int(slot), 1)
                known = user < len(self.user_vectors)
                self._sums.add(place, before, self.user_vectors[user] if known else None)
                touched.setdefault(place, []).append(int(user))
            self._refresh(touched)

    def delete_user(self, user: int) -> int:
        """Take a user's check-ins out, as if there had been none; return how many there were.

        The user's vector is set to 0: nothing of the user is left.
        """
        with self._epoch.writing():
            places, visits = self.log.visited(user)
            self._sums.take_out(places, visits, self.user_vector(user))
            self.log.remove_user(user)
            if 0 <= user < len(self.user_vectors):
                vectors = self.user_vectors.copy()
                vectors[user] = 0
                self.user_vectors = vectors
            self._refresh(dict.fromkeys(places.tolist(), ()))
            return int(visits.sum())

    def compact(self) -> None:
        """Draw the bounds in again, renew the categories' priors, and tidy the memory up."""
        with self._epoch.writing():
            self.log = self.log.compacted()
            self._derive()
            self._columns.clear()

    def set_user_vectors(self, user_vectors: npt.ArrayLike) -> None:
        """Replace the users' vectors (a new version of the embedding)."""
        vectors = checked_vectors(user_vectors)
        with self._epoch.writing():
            self.user_vectors = vectors
            self._derive()
            self._columns.clear()

    def _refresh(self, touched: Mapping[int, Sequence[int]]) -> None:
        """Bring the columns up to date with places that have changed, by those who came."""
        places = np.array(sorted(touched), dtype=np.int64)
        held = self._columns.all()
        if not held or not len(places):
            return
        times = np.zeros((self.config.time_slots, padded(len(places), 16)), dtype=np.float32)
        self._times.fill(self.log, places, times)
        blocks = self._sums.blocks(places).reshape(-1, padded(self.dim), 16)
        keys = self.log.keys_of(places)
        for columns in held:
            for i, row in enumerate(columns.rows_of(keys).tolist()):
                if row >= 0:
                    columns.change(
                        row,
                        times[:, i].copy(),
                        blocks[i >> 4, :, i & 15].copy(),
                        touched[int(places[i])],
                    )

    # --- keeping ------------------------------------------------------------------------------

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the flat arrays that a file holds, by name."""
        with self._epoch.lock:
            return {**self.log.compacted().arrays(), "user_vectors": self.user_vectors}

    def meta(self) -> dict[str, object]:
        """Return what :meth:`from_arrays` needs beside the arrays; JSON only."""
        return {"version": 1, "config": self.config.model_dump()}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, npt.NDArray[Any]], meta: Mapping[str, Any]
    ) -> VisitStore:
        """Return the store that :meth:`arrays` and :meth:`meta` came from.

        Raises
        ------
        IntegrityError
            The version is unknown, an array is missing, or lengths differ.
        """
        if meta.get("version") != 1:
            raise IntegrityError(f"no check-ins of version 1: {meta.get('version')!r}")
        try:
            config = VisitConfig.model_validate(meta["config"])
            log = VisitLog.from_arrays(arrays, slots=config.time_slots)
            return cls(log, checked_vectors(arrays["user_vectors"]), config)
        except KeyError as error:
            raise IntegrityError(f"check-ins without {error.args[0]!r}") from None

    def nbytes(self) -> dict[str, int]:
        """Return the bytes of the log, the sums, the vectors and the columns, and their total."""
        found = {
            "log": self.log.nbytes(),
            "sums": self._sums.nbytes(),
            "user_vectors": self.user_vectors.nbytes,
            "columns": sum(c.nbytes()["total"] for c in self._columns.all()),
        }
        return {**found, "total": sum(found.values())}

    def places_of(self, user: int) -> npt.NDArray[np.int64]:
        """Return the keys of the places that a user visited.

        Raises
        ------
        NotFoundError
            The user has no check-in.
        """
        places, _ = self.log.visited(user)
        if not len(places):
            raise NotFoundError(f"user {user} has no check-in")
        return self.log.keys_of(places)
