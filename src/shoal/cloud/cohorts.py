"""Cohorts: named groups of devices, and the combinations that devices fall into.

A predicate is evaluated only when a device's attributes change, and cached by
their digest. The set of cohorts that a device is in has a small number, which
its token carries; a plan speaks of that number (Walle sheet A.3).
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from shoal.cloud import store as tables
from shoal.cloud.predicates import Predicate, PredicateError
from shoal.cloud.store import Store
from shoal.core.errors import InputError, NotFoundError

__all__ = ["Cohort", "CohortBook"]

_CACHE = 100_000


@dataclass(frozen=True, slots=True)
class Cohort:
    """A named group of devices.

    Attributes
    ----------
    id : int
        Row in the database.
    name : str
        Unique.
    predicate : str
        CEL expression over ``app``, ``device``, ``user`` and ``agent``.
    epoch : int
        Global epoch of its last change.
    """

    id: int
    name: str
    predicate: str
    epoch: int


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class CohortBook:
    """All cohorts of a cloud.

    Parameters
    ----------
    store : Store
        The database.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        # Guards memory only: nobody who holds it waits for the database, because
        # whoever writes to the database may come here.
        self._lock = threading.RLock()
        self._cohorts: dict[int, Cohort] = {}
        self._predicates: dict[int, Predicate] = {}
        self._cache: OrderedDict[str, int] = OrderedDict()
        #: How often a cohort's predicate failed on a device's attributes, by name.
        self.errors: Counter[str] = Counter()
        #: The last failure of each, in words.
        self.last_error: dict[str, str] = {}
        self.reload()

    def reload(self) -> None:
        """Read the cohorts again, after another process has changed them."""
        with self._store.read() as connection:
            rows = connection.execute(sa.select(tables.cohort).order_by(tables.cohort.c.id)).all()
        cohorts = {row.id: Cohort(row.id, row.name, row.predicate, row.epoch) for row in rows}
        predicates = {number: Predicate(cohort.predicate) for number, cohort in cohorts.items()}
        with self._lock:
            self._cohorts, self._predicates = cohorts, predicates
            self._cache.clear()

    def all(self) -> list[Cohort]:
        """Return every cohort by id."""
        with self._lock:
            return list(self._cohorts.values())

    def get(self, name: str | int) -> Cohort:
        """Return a cohort by name or id; :class:`NotFoundError` if there is none."""
        with self._lock:
            for cohort in self._cohorts.values():
                if name in (cohort.id, cohort.name):
                    return cohort
        raise NotFoundError(f"no cohort {name!r}")

    def define(self, name: str, predicate: str) -> Cohort:
        """Make a cohort, or give an existing one another predicate.

        Cohort sets that this splits are retired: their devices are told to send
        their profile and get a token with their new set. Sets whose devices stay
        together keep their number, and their devices notice nothing.

        Raises
        ------
        InputError
            The name is empty or too long, or the predicate does not compile.
        """
        if not 0 < len(name) <= 64 or not name.isprintable():
            raise InputError("a name has 1 to 64 printable characters", field="name", value=name)
        compiled = Predicate(predicate)
        sha = hashlib.sha256(predicate.encode()).hexdigest()
        with self._store.begin() as connection:
            row = connection.execute(
                sa.select(tables.cohort).where(tables.cohort.c.name == name)
            ).one_or_none()
            if row is not None and row.predicate_sha == sha:
                return Cohort(row.id, row.name, row.predicate, row.epoch)
            epoch = self._store.bump_epoch(connection)
            values = {"predicate": predicate, "predicate_sha": sha, "epoch": epoch}
            if row is None:
                inserted = connection.execute(
                    sa.insert(tables.cohort).values(
                        name=name, created_us=time.time_ns() // 1000, **values
                    )
                )
                number = int((inserted.inserted_primary_key or (0,))[0])
            else:
                number = row.id
                connection.execute(
                    sa.update(tables.cohort).where(tables.cohort.c.id == number).values(values)
                )
            cohort = Cohort(number, name, predicate, epoch)
            with self._lock:
                before = self._cohorts, self._predicates
                self._cohorts = {**self._cohorts, number: cohort}
                self._predicates = {**self._predicates, number: compiled}
                self._cache.clear()
            try:
                self._reassign(connection)
            except BaseException:
                with self._lock:
                    self._cohorts, self._predicates = before
                    self._cache.clear()
                raise
        return cohort

    def matching(self, attributes: dict[str, dict[str, Any]]) -> list[int]:
        """Return the sorted ids of the cohorts that a device with ``attributes`` is in.

        A predicate that fails or gives no boolean counts as "not in"; the failure
        is counted in :attr:`errors`.
        """
        with self._lock:
            predicates = list(self._predicates.items())
        found = []
        for number, predicate in predicates:
            try:
                if predicate(attributes):
                    found.append(number)
            except PredicateError as error:
                name = self._cohorts[number].name
                self.errors[name] += 1
                self.last_error[name] = error.message
        return sorted(found)

    def cohort_set(
        self, attributes: dict[str, dict[str, Any]], *, device: bytes | None = None
    ) -> int:
        """Return the number (at least 1) of the combination of cohorts of a device.

        Parameters
        ----------
        attributes : dict
            The maps ``app``, ``device``, ``user`` and ``agent``.
        device : bytes, optional
            The device id, which predicates see as ``device.id`` in hex.
        """
        if device is not None and self._names_device():
            named = {**attributes.get("device", {}), "id": device.hex()}
            attributes = {**attributes, "device": named}
        key = _digest(attributes)
        with self._lock:
            number = self._cache.get(key)
            if number is not None:
                self._cache.move_to_end(key)
                return number
        # Inside a transaction, so that no definition comes between the evaluation,
        # the set's number and the cache.
        with self._store.begin():
            number = self._set_number(self.matching(attributes))
            with self._lock:
                self._cache[key] = number
                if len(self._cache) > _CACHE:
                    self._cache.popitem(last=False)
        return number

    def _names_device(self) -> bool:
        with self._lock:
            return any(predicate.names_device for predicate in self._predicates.values())

    def _set_number(self, cohorts: list[int]) -> int:
        digest = _digest(cohorts)
        query = sa.select(tables.cohort_set.c.id).where(tables.cohort_set.c.digest == digest)
        with self._store.read() as connection:
            found = connection.execute(query).scalar_one_or_none()
        if found is not None:
            return int(found)
        with self._store.begin() as connection:
            connection.execute(
                self._store.insert_ignore(tables.cohort_set),
                {"cohorts": cohorts, "digest": digest, "created_us": time.time_ns() // 1000},
            )
            return int(connection.execute(query).scalar_one())

    def sets(self) -> dict[int, list[int]]:
        """Return the cohort sets in force: number to sorted cohort ids."""
        query = sa.select(tables.cohort_set.c.id, tables.cohort_set.c.cohorts).where(
            tables.cohort_set.c.digest.not_like("retired:%")
        )
        with self._store.read() as connection:
            return {row.id: list(row.cohorts) for row in connection.execute(query)}

    def _reassign(self, connection: sa.Connection) -> None:
        """Put every known device into its set under the present predicates."""
        device = tables.device
        query = sa.select(device.c.id, device.c.attributes, device.c.cohort_set)
        moved: dict[int, dict[bytes, tuple[int, ...]]] = {}
        stays: dict[int, set[tuple[int, ...]]] = {}
        memory: dict[str, tuple[int, ...]] = {}
        names_device = self._names_device()
        for row in connection.execute(query).all():
            attributes = row.attributes
            if names_device:
                named = {**attributes.get("device", {}), "id": row.id.hex()}
                attributes = {**attributes, "device": named}
            key = _digest(attributes)
            if key not in memory:
                memory[key] = tuple(self.matching(attributes))
            moved.setdefault(row.cohort_set or 0, {})[row.id] = memory[key]
            stays.setdefault(row.cohort_set or 0, set()).add(memory[key])
        present = {
            row.id: tuple(row.cohorts)
            for row in connection.execute(
                sa.select(tables.cohort_set).where(tables.cohort_set.c.digest.not_like("retired:%"))
            )
        }
        for number, cohorts in present.items():
            if stays.get(number, {cohorts}) != {cohorts}:
                connection.execute(
                    sa.update(tables.cohort_set)
                    .where(tables.cohort_set.c.id == number)
                    .values(digest=f"retired:{number}")
                )
        for number, devices in moved.items():
            if stays[number] == {present.get(number)}:
                continue
            for identity, cohorts in devices.items():
                connection.execute(
                    sa.update(device)
                    .where(device.c.id == identity)
                    .values(cohort_set=self._set_number(list(cohorts)))
                )
