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

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import numpy as np
import numpy.typing as npt
from pydantic import Field

from shoal.core.errors import InputError, IntegrityError, NotFoundError
from shoal.core.settings import Settings
from shoal.spatial import _visit_values as kernels
from shoal.spatial.columns import Layout, SearchStats
from shoal.spatial.planner import Planner
from shoal.spatial.query import Answers, QueryPlan, SocialPlan
from shoal.spatial.timeslots import category_priors, circular_gaussian
from shoal.spatial.visitcolumns import VisitColumns
from shoal.spatial.visitlog import VisitLog
from shoal.spatial.visitsearch import search, search_all

if TYPE_CHECKING:
    from shoal.spatial.packed import PackedLayout

__all__ = ["VisitColumns", "VisitConfig", "VisitStore", "search"]

_T = TypeVar("_T")
_CACHED = 64
_NO_SLOT = -1


class VisitConfig(Settings):
    """What a visit counts for.

    With c(o, b) the check-ins of place o in slot b, g a circular Gaussian of sum
    1 and m the weight of the prior, the time part is ::

        T(o, b) = (sum_b' g(b - b') c(o, b') + m prior(b)) / (N(o) + m)

    where N(o) is the largest of the smoothed counts (``normaliser="max"``: is
    this the place's busy time?) or the number of check-ins (``"total"``: how
    likely is this time?). ``prior`` is that of the place's category. A place of
    which nothing is known has 0.

    With c(v, o) the visits of user v, at most ``clip_per_user``, and z_v the
    user's vector, the social part for user u is g(x) of ::

        x = <z_u, P(o)>,    P(o) = sum_v c(v, o) z_v / sum_v c(v, o)

    and P(o) = 0 for a place with fewer than ``min_visitors`` visitors, which
    hides them. For the sparse form x is the same mean over the relations of the
    related users alone, and the social part is x itself.

    Parameters
    ----------
    time_slots : {24, 168}
        Hours of the day, or of the week.
    smoothing_hours : float
        Standard deviation of g; 0 is no smoothing.
    prior_weight : float
        m, in check-ins.
    normaliser : {"max", "total"}
        As above.
    clip_per_user : int
        Check-ins of one user at one place that count for the social part.
    min_visitors : int
        Distinct visitors below which a place's social part is neutral.
    social_map : {"half", "positive"}
        g(x) = (1 + x) / 2, or max(0, x). Neutral is 1/2, or 0.
    """

    time_slots: Literal[24, 168] = 168
    smoothing_hours: float = Field(default=1.0, ge=0.0, le=12.0)
    prior_weight: float = Field(default=5.0, ge=0.0)
    normaliser: Literal["max", "total"] = "max"
    clip_per_user: int = Field(default=5, ge=1)
    min_visitors: int = Field(default=3, ge=1)
    social_map: Literal["half", "positive"] = "half"


class VisitStore:
    """Check-ins of users at places; make one with :meth:`build` or :meth:`from_arrays`.

    Attributes
    ----------
    config : VisitConfig
        What a visit counts for.
    user_vectors : float32 [U, dim]
        A vector of length at most 1 for each user; a user beyond has none.
    epoch : int
        Grows with every change; odd while one is under way.
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
        self.epoch = 0
        self.log = log
        self._lock = threading.RLock()
        self._columns: dict[int, tuple[weakref.ref[Layout], VisitColumns]] = {}
        self._related: OrderedDict[Any, Any] = OrderedDict()
        self._smoothing = circular_gaussian(config.time_slots, config.smoothing_hours)
        self._mode = (float(config.prior_weight), config.normaliser == "total")
        self._derive()

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
        vectors = _checked_vectors(user_vectors)
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
        log, config = self.log, self.config
        self._priors = category_priors(
            log.category_counts(), config.smoothing_hours, normaliser=config.normaliser
        )
        dim = self.user_vectors.shape[1]
        n = log.capacity
        self._sums = np.zeros((n, dim), dtype=np.int64)
        self._counts = np.zeros(n, dtype=np.int64)
        self._visitors = np.zeros(n, dtype=np.int64)
        users, places, visits = log.pairs()
        clipped = np.minimum(visits, config.clip_per_user)
        step = 1 << 16
        for first in range(0, max(1, len(self.user_vectors)), step):
            last = first + step >= len(self.user_vectors)
            mine = slice(
                int(np.searchsorted(users, first)),
                len(users) if last else int(np.searchsorted(users, first + step)),
            )
            fixed = _fixed_point(self.user_vectors[first : first + step])
            rows = users[mine] - first
            rows[rows >= len(fixed)] = -1
            kernels.add_visits(
                rows, places[mine], clipped[mine], fixed, self._sums, self._counts, self._visitors
            )

    # --- asking -----------------------------------------------------------------------------

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
        found[places >= 0] = self._visitors[places[places >= 0]]
        return found

    def place_vectors(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return P(o) of each place, float32 [m, dim]."""

        def make() -> npt.NDArray[np.float32]:
            places = self.log.find(keys)
            blocks = self._blocks(places)
            dim = _padded(self.dim)
            rows = blocks.reshape(-1, dim, 16).transpose(0, 2, 1).reshape(-1, dim)
            return rows[: len(keys), : self.dim].copy()

        return self._steady(make)

    def time_part(self, keys: npt.NDArray[np.int64], slot: int) -> npt.NDArray[np.float64]:
        """Return the time part of each place at a slot, float64 [m]; 0 for slot -1."""
        _check_slot(slot, self.config.time_slots)
        out = np.zeros(len(keys))
        if slot < 0:
            return out

        def make() -> npt.NDArray[np.float64]:
            log = self.log
            kernels.times_at(
                log.find(keys),
                log.slot_first,
                log.slot_stop,
                log.slot_of,
                log.count_of,
                self._smoothing,
                self._priors,
                log.category,
                self._mode,
                slot,
                out,
            )
            return out

        return self._steady(make)

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
            kernels.socials_of(
                places,
                self._sums,
                self._counts,
                self._visitors,
                self.config.min_visitors,
                self.query_vector(social)[: self.dim],
                self.form(social),
                out,
            )
            return out

        return self._steady(make)

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
        vector = np.zeros(_padded(self.dim))
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
        name = (self.epoch, social.users.tobytes(), social.relation.tobytes())
        known = self._related.get(name)
        if known is not None:
            found: tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]] = known
            return found
        places, sums = [], []
        for user, relation in zip(social.users.tolist(), social.relation.tolist(), strict=True):
            at, visits = self.log.visited(user)
            places.append(at)
            sums.append(relation * np.minimum(visits, self.config.clip_per_user))
        at, inverse = np.unique(np.concatenate([_NO_PLACES, *places]), return_inverse=True)
        # bincount adds in the order given: users ascending, so no sum depends on anything else.
        total = np.bincount(inverse, weights=np.concatenate([_NO_SUMS, *sums]), minlength=len(at))
        shown = (self._visitors[at] >= self.config.min_visitors) & (self._counts[at] > 0)
        at = at[shown]
        found = at, total[shown] / self._counts[at]
        self._related[name] = found
        if len(self._related) > _CACHED:
            self._related.popitem(last=False)
        return found

    def columns(self, keys: npt.NDArray[np.int64], *, bounds: bool = True) -> VisitColumns:
        """Return the values of places as columns, with the bounds of a 16-ary tree over them."""
        with self._lock:
            log, n = self.log, len(keys)
            places = log.find(keys)
            times = np.zeros((self.config.time_slots, _padded(n, 16)), dtype=np.float32)
            self._fill_times(places, times)
            return VisitColumns(
                np.ascontiguousarray(keys, dtype=np.int64),
                times,
                self._blocks(places),
                _padded(self.dim),
                bounds=bounds,
            )

    def columns_of(self, layout: Layout) -> VisitColumns:
        """Return the columns of a layout's rows; kept, and kept up to date, while it lives."""
        known = self._columns.get(id(layout))
        if known is not None and known[0]() is layout:
            return known[1]
        with self._lock:
            known = self._columns.get(id(layout))
            if known is not None and known[0]() is layout:
                return known[1]
            make = getattr(layout, "visit_columns", None)
            columns: VisitColumns = make(self) if make else self.columns(layout.keys)
            name = id(layout)
            table = self._columns

            def forget(_: object) -> None:
                table.pop(name, None)

            table[name] = (weakref.ref(layout, forget), columns)
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
            self._search(layout, plan, answers, live, stats)

        self._steady(attempt)

    def _search(
        self,
        layout: Layout,
        plan: QueryPlan,
        answers: Answers,
        live: npt.NDArray[np.uint8] | None,
        stats: SearchStats | None,
    ) -> None:
        own = getattr(layout, "search_visits", None)
        if own is not None:
            own(self, plan, answers, live=live, stats=stats)
        elif hasattr(layout, "level_start"):
            search(
                cast("PackedLayout", layout),
                self.columns_of(layout),
                plan,
                answers,
                live,
                stats=stats,
                store=self,
            )
        else:
            search_all(self, layout, plan, answers, live=live, stats=stats)

    def _steady(self, work: Callable[[], _T]) -> _T:
        """Return what ``work`` reads at one moment, without keeping the writer waiting."""
        for _ in range(4):
            before = self.epoch
            if before % 2 == 0:
                found = work()
                if self.epoch == before:
                    return found
            else:
                with self._lock:  # wait for the writer
                    pass
        with self._lock:
            return work()

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
            _check_user(user, row)
            _check_slot(slot, self.config.time_slots, row)
        with self._writing():
            touched: dict[int, list[int]] = {}
            for user, key, slot in events:
                place = self.log.place_of(int(key))
                self._grow()
                before = self.log.add(int(user), place, int(slot), 1)
                if before < self.config.clip_per_user:
                    self._counts[place] += 1
                    if user < len(self.user_vectors):
                        self._sums[place] += _fixed_point(self.user_vectors[user])
                if before == 0:
                    self._visitors[place] += 1
                touched.setdefault(place, []).append(int(user))
            self._refresh(touched)

    def delete_user(self, user: int) -> int:
        """Take a user's check-ins out, as if there had been none; return how many there were.

        The user's vector is set to 0: nothing of the user is left.
        """
        with self._writing():
            places, visits = self.log.visited(user)
            vector = _fixed_point(self.user_vector(user))
            clipped = np.minimum(visits, self.config.clip_per_user)
            self._sums[places] -= clipped[:, None] * vector
            self._counts[places] -= clipped
            self._visitors[places] -= 1
            self.log.remove_user(user)
            if 0 <= user < len(self.user_vectors):
                vectors = self.user_vectors.copy()
                vectors[user] = 0
                self.user_vectors = vectors
            self._refresh(dict.fromkeys(places.tolist(), ()))
            return int(visits.sum())

    def compact(self) -> None:
        """Draw the bounds in again, renew the categories' priors, and tidy the memory up."""
        with self._writing():
            self.log = self.log.compacted()
            self._derive()
            self._columns = {}

    def set_user_vectors(self, user_vectors: npt.ArrayLike) -> None:
        """Replace the users' vectors (a new version of the embedding)."""
        vectors = _checked_vectors(user_vectors)
        with self._writing():
            self.user_vectors = vectors
            self._derive()
            self._columns = {}

    def _writing(self) -> _Writing:
        return _Writing(self)

    def _grow(self) -> None:
        missing = self.log.capacity - len(self._counts)
        if missing > 0:
            self._sums = np.concatenate([self._sums, np.zeros((missing, self.dim), np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(missing, np.int64)])
            self._visitors = np.concatenate([self._visitors, np.zeros(missing, np.int64)])

    def _refresh(self, touched: Mapping[int, Sequence[int]]) -> None:
        """Bring the columns up to date with places that have changed, by those who came."""
        places = np.array(sorted(touched), dtype=np.int64)
        held = [columns for _, columns in list(self._columns.values())]
        if not held or not len(places):
            return
        times = np.zeros((self.config.time_slots, _padded(len(places), 16)), dtype=np.float32)
        self._fill_times(places, times)
        blocks = self._blocks(places).reshape(-1, _padded(self.dim), 16)
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

    def _fill_times(self, places: npt.NDArray[np.int64], out: npt.NDArray[np.float32]) -> None:
        log = self.log
        kernels.time_rows(
            places,
            log.slot_first,
            log.slot_stop,
            log.slot_of,
            log.count_of,
            self._smoothing,
            self._priors,
            log.category,
            self._mode,
            out,
        )

    def _blocks(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        dim = _padded(self.dim)
        blocks = np.zeros(_padded(len(places), 16) * dim, dtype=np.float32)
        kernels.vector_blocks(
            places,
            self._sums,
            self._counts,
            self._visitors,
            self.config.min_visitors,
            dim,
            blocks,
        )
        return blocks

    # --- keeping ------------------------------------------------------------------------------

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the flat arrays that a file holds, by name."""
        with self._lock:
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
            return cls(log, _checked_vectors(arrays["user_vectors"]), config)
        except KeyError as error:
            raise IntegrityError(f"check-ins without {error.args[0]!r}") from None

    def nbytes(self) -> dict[str, int]:
        """Return the bytes of the log, the sums, the vectors and the columns, and their total."""
        found = {
            "log": self.log.nbytes(),
            "sums": self._sums.nbytes + self._counts.nbytes + self._visitors.nbytes,
            "user_vectors": self.user_vectors.nbytes,
            "columns": sum(c.nbytes()["total"] for _, c in list(self._columns.values())),
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


class _Writing:
    """The lock of the writer, and the epoch around a change."""

    def __init__(self, store: VisitStore) -> None:
        self._store = store

    def __enter__(self) -> None:
        self._store._lock.acquire()
        self._store.epoch += 1

    def __exit__(self, *_: object) -> None:
        self._store.epoch += 1
        self._store._lock.release()


_NO_PLACES = np.empty(0, dtype=np.int64)
_NO_SUMS = np.empty(0, dtype=np.float64)


def _padded(count: int, to: int = 4) -> int:
    return max(to, -(-count // to) * to)


def _fixed_point(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    fixed: npt.NDArray[np.int64] = np.rint(vectors.astype(np.float64) * kernels.FIXED).astype(
        np.int64
    )
    return fixed


def _checked_vectors(user_vectors: npt.ArrayLike | None) -> npt.NDArray[np.float32]:
    if user_vectors is None:
        return np.zeros((0, 4), dtype=np.float32)
    vectors = np.ascontiguousarray(user_vectors, dtype=np.float32)
    if vectors.ndim != 2 or vectors.shape[1] == 0:
        raise InputError(
            "the users' vectors are one row each", field="user_vectors", value=vectors.shape
        )
    length = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    wrong = ~(length <= 1.0 + 1e-5)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(
            "a user's vector must be finite and of length 1 or 0",
            field="user_vectors",
            value=float(length[row]),
            row=row + 1,
        )
    return vectors


def _check_slot(slot: int, slots: int, row: int | None = None) -> None:
    if not -1 <= slot < slots:
        raise InputError(f"a slot lies in 0 .. {slots - 1}", field="slot", value=slot, row=row)


def _check_user(user: int, row: int | None = None) -> None:
    if user < 0:
        raise InputError("a user's number is at least 0", field="user", value=user, row=row)
