"""Relations of users: a vector per user, trained on who is friends with whom.

The user layer of NETR-Tree (Huang et al., arXiv 1908.09520). That a network
embedding measures the relation is all that is public of it; the relation of
two users is here the cosine of their vectors, cut to [0, 1].
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shoal.core.errors import ConflictError, InputError, IntegrityError, NotFoundError
from shoal.core.settings import load_settings
from shoal.spatial.ids import Ids
from shoal.spatial.socialalign import turned_to
from shoal.spatial.socialfiles import read_arrays, write_arrays
from shoal.spatial.socialgraph import FriendGraph, rows_of_ids
from shoal.spatial.socialgrowth import GrowingVectors
from shoal.spatial.socialvectors import SocialConfig, SocialReport, train_vectors, unit_rows

__all__ = ["SocialConfig", "SocialEmbedding", "SocialReport"]


class SocialEmbedding:
    """A vector per user, and the friendships it was trained on.

    Make one with :meth:`fit`, :meth:`of` or :meth:`load`. Users are rows 0 to
    n - 1 unless ``users=`` named them; then every method takes and returns
    those names, and only ``row`` and what ends in ``_rows`` speaks of rows.

    Notes
    -----
    One thread may write (``add_user``, ``add_edge``) while others read; a
    vector that is being changed may be read half-way.
    """

    def __init__(
        self,
        vectors: npt.NDArray[np.float32],
        graph: FriendGraph,
        *,
        ids: Ids | None = None,
        version: str | None = None,
        report: SocialReport | None = None,
        config: SocialConfig | None = None,
    ) -> None:
        self._grown = GrowingVectors(vectors, graph)
        self._ids = ids
        self._base, _, changes = (version or f"{_digest(self._grown.rows)}.0").rpartition(".")
        self._changes = int(changes)
        self.config = config or SocialConfig(dim=max(1, self.dim))
        self.report = report or SocialReport(users=len(self), edges=graph.edges)

    @classmethod
    def fit(
        cls,
        edges: Any,
        *,
        method: Literal["auto", "svd", "node2vec", "line"] | None = None,
        dim: int | None = None,
        seed: int | None = None,
        threads: int | None = None,
        n_users: int | None = None,
        users: Sequence[Any] | None = None,
        config: SocialConfig | None = None,
        progress: bool = True,
    ) -> SocialEmbedding:
        """Train vectors on friendships.

        Parameters
        ----------
        edges : array of int [e, 2], or pairs of external ids
            Friendships, in any direction. Loops and repeated pairs are dropped
            and counted in ``report``.
        method, dim, seed, threads : optional
            As in :class:`SocialConfig`, which they override; by default ``auto``,
            32, 0 and 1.
        n_users : int, optional
            Number of users where they are numbered; by default the largest
            number in ``edges`` plus 1.
        users : sequence of str or int, optional
            External ids, each once. Then ``edges`` are pairs of these, and row
            i belongs to ``users[i]``.
        config : SocialConfig, optional
            All other options.
        progress : bool
            Show a bar on a terminal.

        Returns
        -------
        SocialEmbedding

        Raises
        ------
        InputError
            A pair is malformed, not whole, out of range or names an unknown
            user (the row is named); an id is given twice; an option is wrong.

        Notes
        -----
        With one thread the same input gives the same bits (of one machine and
        one version of its libraries).
        """
        given = {"method": method, "dim": dim, "seed": seed, "threads": threads}
        chosen = load_settings(
            SocialConfig, overrides=(config.model_dump() if config else {}) | _not_none(given)
        )
        ids = None
        if users is not None:
            if n_users is not None and n_users != len(users):
                raise InputError("differs from the number of users", field="n_users", value=n_users)
            ids = _ids_of(users)
            edges, n_users = rows_of_ids(edges, ids), len(users)
        graph = FriendGraph.build(edges, n_users=n_users)
        began = time.process_time()
        vectors, facts = train_vectors(graph, chosen, progress=progress)
        report = _report(
            graph,
            cpu_seconds=time.process_time() - began,
            **facts,
        )
        return cls(vectors, graph, ids=ids, report=report, config=chosen)

    @classmethod
    def of(
        cls, vectors: Any, edges: Any = (), *, users: Sequence[Any] | None = None
    ) -> SocialEmbedding:
        """Take vectors that were trained elsewhere.

        Parameters
        ----------
        vectors : array of float [n, dim]
            Finite; scaled to unit length, zero rows stay zero (neutral).
        edges : as in :meth:`fit`
            Friendships, for ``friends`` and the incremental methods.
        users : sequence of str or int, optional
            As in :meth:`fit`.

        Raises
        ------
        InputError
            A vector is not finite (the row is named), or the shape is wrong.
        """
        raw = np.asarray(vectors)
        if raw.ndim != 2 or raw.shape[1] == 0 or raw.dtype.kind not in "fiu":
            raise InputError(
                "must be numbers of shape [users, dim]",
                field="vectors",
                value=f"{raw.dtype} {list(raw.shape)}",
            )
        bad = ~np.isfinite(raw).all(axis=1)
        if bad.any():
            raise InputError(
                "a vector must be finite", field="vectors", row=int(np.argmax(bad)) + 1
            )
        ids = None
        if users is not None:
            if len(users) != len(raw):
                raise InputError("one id for each vector", field="users", value=len(users))
            ids = _ids_of(users)
            edges = rows_of_ids(edges, ids)
        graph = FriendGraph.build(np.asarray(edges).reshape(-1, 2), n_users=len(raw))
        scaled = raw / np.maximum(np.abs(raw).max(axis=1, initial=0.0, keepdims=True), 1e-300)
        report = _report(graph)
        return cls(unit_rows(scaled), graph, ids=ids, report=report)

    # --- reading ----------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return the number of users."""
        return len(self._grown)

    @property
    def dim(self) -> int:
        """Return the number of numbers in a vector."""
        return int(self._grown.rows.shape[1])

    @property
    def vectors(self) -> npt.NDArray[np.float32]:
        """Return the vectors, float32 [users, dim], unit or zero rows; read-only."""
        view = self._grown.vectors
        view.flags.writeable = False
        return view

    @property
    def version(self) -> str:
        """Return the name of this state: hash of the training, a dot, number of changes since.

        What was computed from vectors (a place's mean, a copy on a phone) belongs
        to one version.
        """
        return f"{self._base}.{self._changes}"

    @property
    def graph(self) -> FriendGraph:
        """Return all friendships as rows in CSR form, those added later included."""
        return self._grown.graph()

    @property
    def has_names(self) -> bool:
        """Say whether users have external ids."""
        return self._ids is not None

    def find_rows(self, users: Any) -> npt.NDArray[np.int64]:
        """Return the row of each user, -1 for unknown ones."""
        if self._ids is not None:
            return self._ids.find(users)
        rows = np.asarray(users)
        if rows.size == 0:
            return np.empty(0, dtype=np.int64)
        if rows.ndim != 1 or rows.dtype.kind not in "iu":
            raise InputError("users are rows: whole numbers", field="user", value=users)
        return np.where((rows >= 0) & (rows < len(self)), rows, -1).astype(np.int64)

    def row(self, user: Any) -> int:
        """Return the row of a user.

        Raises
        ------
        NotFoundError
            There is no such user.
        """
        found = int(self.find_rows([user])[0])
        if found < 0:
            raise NotFoundError(f"no such user: {user!r}")
        return found

    def names(self, rows: npt.NDArray[np.int64]) -> Any:
        """Return the users of rows: external ids as a list, or the rows themselves."""
        return rows if self._ids is None else self._ids.names(rows)

    def vector(self, user: Any) -> npt.NDArray[np.float32]:
        """Return one user's vector, float32 [dim]; all zeros means neutral."""
        return np.array(self._grown.rows[self.row(user)], dtype=np.float32)

    def relation(self, one: Any, other: Any) -> float:
        """Return the relation of two users: the cosine of their vectors, cut to [0, 1].

        0 where either has no vector.
        """
        a, b = self._grown.rows[self.row(one)], self._grown.rows[self.row(other)]
        return float(np.clip(a.astype(np.float64) @ b.astype(np.float64), 0.0, 1.0))

    def nearest(self, user: Any, limit: int = 100) -> tuple[Any, npt.NDArray[np.float64]]:
        """Return the ``limit`` users most related to a user, and their relation.

        Exact: every vector is looked at. The user and those without a positive
        relation are left out, so fewer may come back, none for a neutral user.

        Returns
        -------
        users : int64 [m] or list
        relation : float64 [m]
            Falling; equal ones in the order of rows.
        """
        rows, relation = self.nearest_rows(self.row(user), limit)
        return self.names(rows), relation

    def nearest_rows(
        self, row: int, limit: int = 100
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Do as :meth:`nearest` does, with rows."""
        if limit < 1:
            raise InputError("at least one user must be asked for", field="limit", value=limit)
        return self._grown.nearest(row, limit)

    def friends(self, user: Any, limit: int | None = None) -> tuple[Any, npt.NDArray[np.float64]]:
        """Return a user's friends, the most related first, and their relation in [0, 1].

        Unlike in :meth:`nearest`, friends of relation 0 are listed too.
        """
        rows, relation = self.friend_rows(self.row(user), limit)
        return self.names(rows), relation

    def friend_rows(
        self, row: int, limit: int | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Do as :meth:`friends` does, with rows."""
        return self._grown.friends(row, limit)

    # --- changing ---------------------------------------------------------------------------

    def add_user(self, friends: Sequence[Any] = (), user: Any = None) -> Any:
        """Add a user, who gets the mean of his friends' vectors until the next training.

        Parameters
        ----------
        friends : sequence
            Users that are there already; repeated ones count once.
        user : str or int, optional
            External id, needed exactly where users have such ids.

        Returns
        -------
        The new user: his row, or his external id.

        Raises
        ------
        NotFoundError
            A friend is unknown.
        ConflictError
            The user is there already.
        """
        rows = sorted({self.row(friend) for friend in friends})
        if self._ids is None:
            if user is not None:
                raise InputError("users of this embedding have no ids", field="user", value=user)
        elif user is None:
            raise InputError("users of this embedding have ids", field="user")
        elif self._ids.find([user])[0] >= 0:
            raise ConflictError(f"there is a user {user!r} already")
        new = self._grown.add(rows)
        if self._ids is not None:
            self._ids.add([user])
        self._changes += 1
        return new if user is None else user

    def add_edge(self, one: Any, other: Any) -> bool:
        """Note a friendship, and move both ends towards each other until the next training.

        A user of ``m`` friends moves to the direction of ``m z + z_other``, as if
        his vector were the mean of his friends'. Two users without vectors stay
        neutral.

        Returns
        -------
        bool
            False, and nothing changes, where they are friends already.
        """
        u, v = self.row(one), self.row(other)
        if u == v:
            raise InputError("nobody is a friend of himself", field="other", value=other)
        joined = self._grown.join(u, v)
        self._changes += joined
        return joined

    def align(self, previous: SocialEmbedding) -> SocialEmbedding:
        """Return this embedding turned so that it fits an earlier one best.

        Training again turns all vectors; relations do not mind, but vectors kept
        elsewhere do. The rotation of the least squared difference over the users
        in common (orthogonal Procrustes, Schönemann 1966) is applied to all.
        ``report`` says how well it fits.

        Raises
        ------
        InputError
            The dimensions differ, only one of the two has external ids, or no
            user with a vector is in both.
        """
        if previous.dim != self.dim:
            raise InputError("dimensions differ", field="previous", value=previous.dim)
        if previous.has_names != self.has_names:
            raise InputError("only one of the two embeddings has ids", field="previous")
        mine = np.arange(len(self), dtype=np.int64)
        theirs = previous.find_rows(self.names(mine))
        both = theirs >= 0
        turned, told, cosine = turned_to(self.vectors, mine[both], previous.vectors[theirs[both]])
        report = dataclasses.replace(
            self.report,
            aligned_to=previous.version,
            aligned_users=told,
            aligned_cosine=cosine,
        )
        return SocialEmbedding(
            turned,
            self.graph,
            ids=None if self._ids is None else Ids.from_arrays(self._ids.kind, self._ids.arrays()),
            report=report,
            config=self.config,
        )

    # --- files ------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the embedding into a folder: arrays as safetensors, a manifest in JSON.

        The folder is made if it is missing. The manifest is replaced last, by one
        rename, so that a reader finds the old state or the new one.
        """
        graph = self.graph
        arrays: dict[str, npt.NDArray[Any]] = {
            "vectors": self._grown.vectors,
            "ptr": graph.ptr,
            "friends": graph.friends,
        }
        if self._ids is not None:
            arrays |= {f"ids.{name}": array for name, array in self._ids.arrays().items()}
        write_arrays(
            folder,
            arrays,
            {
                "version": self.version,
                "ids": None if self._ids is None else self._ids.kind,
                "config": self.config.model_dump(),
                "report": dataclasses.asdict(self.report),
            },
        )

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> SocialEmbedding:
        """Read what :meth:`save` wrote.

        Raises
        ------
        NotFoundError
            There is no embedding in the folder.
        IntegrityError
            A file is cut short, altered, or of another schema; it is named.
        """
        arrays, facts = read_arrays(folder)
        try:
            kind = facts["ids"]
            graph = FriendGraph(arrays["ptr"], arrays["friends"])
            names = {
                name.removeprefix("ids."): array
                for name, array in arrays.items()
                if name.startswith("ids.")
            }
            vectors = arrays["vectors"]
            if len(graph) != len(vectors) or not np.isfinite(vectors).all():
                raise IntegrityError(f"{folder}: vectors and friendships do not fit")
            return cls(
                vectors,
                graph,
                ids=None if kind is None else Ids.from_arrays(kind, names),
                version=facts["version"],
                report=SocialReport(**facts["report"]),
                config=SocialConfig.model_validate(facts["config"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise IntegrityError(f"{folder}: the manifest is not one of ours: {error}") from error


def _not_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _digest(vectors: npt.NDArray[np.float32]) -> str:
    return hashlib.blake2b(
        repr(vectors.shape).encode() + vectors.tobytes(), digest_size=6
    ).hexdigest()


def _ids_of(users: Sequence[Any]) -> Ids:
    ids, keys = Ids.of(users, dense=True)
    if len(ids) != len(users):
        row = int(np.argmax(keys != np.arange(len(keys))))
        raise InputError("a user is given twice", field="users", value=users[row], row=row + 1)
    return ids


def _report(graph: FriendGraph, **facts: Any) -> SocialReport:
    return SocialReport(
        users=len(graph),
        edges=graph.edges,
        edges_given=graph.given,
        self_loops=graph.self_loops,
        duplicates=graph.duplicates,
        isolated=int((graph.degree == 0).sum()),
        **facts,
    )
