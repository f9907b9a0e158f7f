"""The index: exact search over space, words, attributes, time and friends."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError, NotFoundError
from shoal.data.checkins import CheckinLog
from shoal.spatial.columns import AttributeSpec
from shoal.spatial.config import SpatialKeywordIndexConfig
from shoal.spatial.fewwords import read_few_words
from shoal.spatial.ids import Ids
from shoal.spatial.ingest import make_columns, make_specs
from shoal.spatial.labels import Labels
from shoal.spatial.layouts import LayoutBuilder, load_layout
from shoal.spatial.people import People, UserNote
from shoal.spatial.reader import IndexReader
from shoal.spatial.segments import SegmentStore
from shoal.spatial.social import SocialEmbedding
from shoal.spatial.state import IndexState

__all__ = ["SpatialKeywordIndex"]


class SpatialKeywordIndex(IndexReader):
    """Exact top-k search over places.

    Make one with :meth:`build`, :meth:`load` or :meth:`open`. Any number of
    threads may search while one writes: a search sees the index as it was when
    it began.

    The score of a place is a blend of parts in [0, 1], weighted by
    :class:`~shoal.spatial.Weights`; answers are ordered by score, then by
    nearness, then by the smaller id (text ids: the one that came first).

    Notes
    -----
    ASKQ, the query of QDR-Tree (Zang et al., DEXA 2018), is ``prefer`` with
    weights on space and attributes; STSKQ, the query of NETR-Tree (Huang et
    al., arXiv 1908.09520), is ``user`` and ``at``. The papers' exact scoring
    forms are not public: both are answered as defined here.
    """

    def __init__(self, store: SegmentStore, state: IndexState) -> None:
        super().__init__(store, state)
        self._writing = threading.RLock()

    @classmethod
    def build(
        cls,
        lon: Any,
        lat: Any,
        *,
        keywords: Any = None,
        attributes: Mapping[str, Any] | None = None,
        ids: Any = None,
        labels: Sequence[str | None] | None = None,
        attribute_specs: Sequence[AttributeSpec] = (),
        missing: Literal["worst", "neutral", "exclude"] = "worst",
        checkins: CheckinLog | None = None,
        social: SocialEmbedding | None = None,
        categories: Any = None,
        time_zones: Sequence[str | None] | None = None,
        layout: Literal["packed", "quad_cluster", "netr"] | None = None,
        analyzer: Literal["words", "exact"] | None = None,
        config: SpatialKeywordIndexConfig | None = None,
    ) -> SpatialKeywordIndex:
        """Build an index of ``n`` places in memory.

        Parameters
        ----------
        lon, lat : array of float [n]
            Positions, degrees.
        keywords : sequence of str or of sequences of str, or Arrow list array, optional
            Words of each place: a text, which the analyzer splits, or keywords.
        attributes : mapping of str to array of float [n], optional
            Numeric attributes, NaN where missing.
        ids : array of int or sequence of str, optional
            External ids, each once; by default 0 to n - 1.
        labels : sequence of str, optional
            One text a place, handed back with the answers.
        attribute_specs : sequence of AttributeSpec
            Ranges and policies of attributes; by default the range of the data.
        missing : {"worst", "neutral", "exclude"}
            Policy of attributes without a specification.
        checkins : CheckinLog, optional
            Who was where, when: the time part, and with ``social`` the social part.
        social : SocialEmbedding, optional
            Vectors and friends of the users.
        categories : sequence [n], optional
            Category of each place, for the prior of its visiting times.
        time_zones : sequence of str or None [n], optional
            Time zone of each place; by default ``config.tz`` for all.
        layout, analyzer : str, optional
            As in :class:`SpatialKeywordIndexConfig`, which they override.
        config : SpatialKeywordIndexConfig, optional
            All other options.

        Raises
        ------
        InputError
            A position, word, attribute or id is wrong; the row is named.
        """
        chosen = {
            name: value
            for name, value in (("layout", layout), ("analyzer", analyzer))
            if value is not None
        }
        config = SpatialKeywordIndexConfig.model_validate(
            (config.model_dump() if config else {}) | chosen
        )
        specs = make_specs(attributes or {}, attribute_specs, missing=missing)
        mapped, keys = Ids.of(ids, len(lon))
        _refuse_duplicates(keys, ids)
        columns = make_columns(
            lon,
            lat,
            keys=keys,
            keywords=keywords,
            attributes=attributes,
            specs=specs,
            analyzer=config.analyzer,
        )
        people = None
        if checkins is not None or social is not None:
            people = People.build(
                keys,
                mapped,
                config=config,
                checkins=checkins,
                social=social,
                categories=categories,
                time_zones=time_zones,
            )
        store = SegmentStore(
            specs,
            LayoutBuilder(config, specs),
            load_layout,
            memtable_rows=config.memtable_rows,
            fan_in=config.fan_in,
            visits=people.visits if people else None,
        )
        if len(columns):
            store.upsert(columns)
            store.flush()
        made = None if labels is None else Labels.of(keys, labels)
        return cls(store, IndexState(config, mapped, made, people))

    # --- changing -----------------------------------------------------------------------------

    def upsert(
        self,
        lon: Any,
        lat: Any,
        *,
        ids: Any,
        keywords: Any = None,
        attributes: Mapping[str, Any] | None = None,
        labels: Sequence[str | None] | None = None,
    ) -> None:
        """Add places, or replace those whose id is already there, all at once.

        Parameters
        ----------
        lon, lat, keywords, attributes, ids, labels
            As :meth:`build`. An attribute that is not given is missing.

        Raises
        ------
        InputError
            A row is wrong, or an id is there twice; nothing is changed then.
        """
        few = None
        if len(lon) < self._store.memtable_rows:
            few = read_few_words(keywords, len(lon), exact=self.config.analyzer == "exact")
        probe = make_columns(
            lon,
            lat,
            keys=np.arange(len(lon), dtype=np.int64),
            keywords=keywords if few is None else None,
            attributes=attributes,
            specs=self.attribute_specs,
            analyzer=self.config.analyzer,
        )
        if few is not None:
            words, ptr, word_ids = few
            probe = dataclasses.replace(probe, words=words, word_ptr=ptr, word_ids=word_ids)
        if len(ids) != len(probe):
            raise InputError(f"{len(ids)} ids for {len(probe)} places", field="ids")
        if labels is not None and len(labels) != len(probe):
            raise InputError(f"{len(labels)} labels for {len(probe)} places", field="labels")
        with self._writing:
            if self.ids.kind == "int":
                keys = self.ids.add(ids)  # nothing is added: they are their own keys
                _refuse_duplicates(keys, ids)
            else:
                _refuse_duplicates(Ids.of(ids)[1], ids)
                keys = self.ids.add(ids)
            note = self._state.note(keys, labels)
            if note:
                self._state.apply("upsert", note)
            self._store.upsert(dataclasses.replace(probe, keys=keys), note=note)

    def delete(self, ids: Any) -> int:
        """Delete places; return how many there were (an unknown id is no error)."""
        keys = self.ids.find(ids)
        return self._store.delete(keys if self.ids.kind == "int" else keys[keys >= 0])

    def record_checkin(self, user: Any, place: Any, time: Any = None) -> None:
        """Add a check-in; see :meth:`record_checkins`."""
        self.record_checkins([user], [place], [time])

    def record_checkins(
        self, users: Sequence[Any], places: Sequence[Any], times: Sequence[Any]
    ) -> None:
        """Add check-ins, all at once; the next query counts them.

        Parameters
        ----------
        users, places : sequence of ids [m]
            A user may be new (and neutral until the relations are trained again).
        times : sequence [m]
            Aware datetimes, slot numbers (int), seconds since 1970 (float), or
            None where it is not known.

        Raises
        ------
        NotFoundError
            There is no such place.
        InputError
            A time cannot be brought into a slot, or the index has no check-ins.
        """
        people = self._people()
        keys = self.ids.find(list(places))
        there = self._store.contains(keys)
        if not there.all():
            raise NotFoundError(f"no such place: {places[int(np.argmin(there))]!r}")
        with self._writing:
            self._note("checkin", people.note(users, keys.tolist(), times))

    def delete_user(self, user: Any) -> None:
        """Take a user's check-ins and vector out, as if there had been none.

        Raises
        ------
        NotFoundError
            There is no such user.
        """
        number = self._people().users.get(user, "user")
        with self._writing:
            self._note("delete_user", msgspec.msgpack.encode(UserNote(number)))

    def _note(self, kind: str, payload: bytes) -> None:
        if self._store.durable is not None:
            self._store.record(kind, payload)  # has it applied, and survives
        else:
            self._state.apply(kind, payload)

    def flush(self) -> None:
        """Turn the recent places into a segment."""
        self._store.flush()

    def compact(self) -> None:
        """Merge everything into one segment without deleted places, and tighten its bounds."""
        self._store.compact()
        if self._state.people is not None:
            self._state.people.visits.compact()

    def close(self) -> None:
        """Finish background work and release files."""
        self._store.close()

    def __enter__(self) -> SpatialKeywordIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- keeping ------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the index to a folder, whole or not at all; an index there is replaced.

        Raises
        ------
        InputError
            The folder holds something else.
        ConflictError
            Another process writes there.
        """
        config, arrays = self._state.state()
        self._store.save(folder, config, arrays)

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], *, mmap: bool = True, verify: bool = False
    ) -> SpatialKeywordIndex:
        """Read an index from a folder; later changes stay in memory.

        Parameters
        ----------
        folder : path-like
            What :meth:`save` wrote.
        mmap : bool
            Map the arrays instead of reading them: opening takes no time, and
            processes on one machine share the memory.
        verify : bool
            Check every byte against its checksum; sizes and headers always are.

        Raises
        ------
        NotFoundError, InputError
            There is no such folder, or it is no index.
        IntegrityError
            A file is cut short or altered; it is named.
        """
        state, builder = IndexState(), LayoutBuilder()
        store = SegmentStore.load(
            folder, builder, load_layout, mmap=mmap, verify=verify, companion=state
        )
        return cls._made(store, state, builder)

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        read_only: bool = False,
        durability: Literal["fsync", "os"] = "fsync",
        mmap: bool = True,
        verify: bool = False,
    ) -> SpatialKeywordIndex:
        """Open an index in its folder: every acknowledged change survives the process.

        Parameters
        ----------
        folder : path-like
            What :meth:`save` wrote.
        read_only : bool
            Read beside the one process that writes; :meth:`refresh` goes to its
            newest state.
        durability : {"fsync", "os"}
            A change is acknowledged when the disk has it, or when the operating
            system has it (it then survives the process, but not a power cut).
        mmap, verify : bool
            As :meth:`load`.

        Raises
        ------
        ConflictError
            Another process writes there.
        NotFoundError, InputError, IntegrityError
            As :meth:`load`.
        """
        state, builder = IndexState(), LayoutBuilder()
        store = SegmentStore.open(
            folder,
            builder,
            load_layout,
            companion=state,
            durability=durability,
            read_only=read_only,
            mmap=mmap,
            verify=verify,
        )
        return cls._made(store, state, builder)

    @classmethod
    def _made(
        cls, store: SegmentStore, state: IndexState, builder: LayoutBuilder
    ) -> SpatialKeywordIndex:
        builder.config, builder.specs = state.config, tuple(store.specs)
        store.memtable_rows, store.fan_in = state.config.memtable_rows, state.config.fan_in
        if state.people is not None:
            store.visits = state.people.visits
        return cls(store, state)

    def refresh(self) -> bool:
        """Go to the newest state that the folder's writer has written; say if there was any."""
        if self._store.durable is None:
            raise InputError("only an index that was opened on a folder is refreshed")
        changed = self._store.durable.refresh()
        if changed and self._state.people is not None:
            self._store.visits = self._state.people.visits
        return changed


def _refuse_duplicates(keys: npt.NDArray[np.int64], ids: Any) -> None:
    ordered = np.sort(keys)
    if not (ordered[1:] == ordered[:-1]).any():
        return
    _, first = np.unique(keys, return_index=True)
    again = np.ones(len(keys), dtype=bool)
    again[first] = False
    row = int(np.argmax(again))
    raise InputError(
        "an id is there twice", field="ids", value=None if ids is None else ids[row], row=row + 1
    )
