"""The live index: a log-structured merge tree of immutable segments below a memtable.

One writer at a time changes it (writers wait for each other); readers take the
:class:`~shoal.spatial.snapshot.Snapshot` of the moment and never wait. New rows go
to the memtable. A full one is sealed, and a thread in the background builds a
segment of it; when ``fan_in`` segments are of about one size it merges them. A row
whose place is changed or deleted dies (see ``segment``). Deaths that happen while a
segment is being built are carried over when it takes the place of its sources.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from shoal.core.errors import ConflictError, InputError
from shoal.spatial.columns import AttributeSpec, Layout, PlaceColumns
from shoal.spatial.cut import Cut
from shoal.spatial.memtable import Memtable, MemtableView
from shoal.spatial.merging import merge_columns, overdue
from shoal.spatial.segment import Segment, SegmentView, VisitParts, find_living
from shoal.spatial.snapshot import Snapshot, WordTotals

if TYPE_CHECKING:
    from shoal.spatial.durable import Companion, Durable

__all__ = ["BuildLayout", "LoadLayout", "SegmentStore", "Snapshot"]

BuildLayout = Callable[[PlaceColumns], Layout]
LoadLayout = Callable[[str, Mapping[str, npt.NDArray[Any]], Mapping[str, Any]], Layout]

#: Full memtables that may wait for the background before writers do.
_SEALED = 4


class SegmentStore:
    """Places that can be searched while they change.

    Parameters
    ----------
    specs : sequence of AttributeSpec
        The attributes.
    build_layout : callable
        Arranges columns as a layout.
    load_layout : callable
        ``load_layout(name, arrays, meta)`` gives back a layout that was kept;
        the name is ``meta()["layout"]`` of the layout, and ``"packed"`` without one.
    memtable_rows : int
        Rows of the memtable.
    fan_in : int
        Segments of one size that are merged into one.
    visits : VisitParts, optional
        What knows the time and social parts.

    Attributes
    ----------
    config : dict
        What :meth:`save` was given, after :meth:`load` and :meth:`open`.
    extra : dict
        Likewise its arrays.
    """

    def __init__(
        self,
        specs: Sequence[AttributeSpec],
        build_layout: BuildLayout,
        load_layout: LoadLayout,
        *,
        memtable_rows: int = 4096,
        fan_in: int = 8,
        visits: VisitParts | None = None,
    ) -> None:
        if memtable_rows < 1:
            raise InputError("must be at least 1", field="memtable_rows", value=memtable_rows)
        if fan_in < 2:
            raise InputError("must be at least 2", field="fan_in", value=fan_in)
        self.specs = tuple(specs)
        self.build_layout = build_layout
        self.load_layout = load_layout
        self.memtable_rows = memtable_rows
        self.fan_in = fan_in
        self.config: dict[str, Any] = {}
        self.extra: dict[str, npt.NDArray[Any]] = {}
        self._visits = visits
        # Whoever needs both takes _maintenance first.
        self._maintenance = threading.RLock()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._wanted = False
        self._error: BaseException | None = None
        self._closed = False
        self._durable: Durable | None = None
        self._memtable = Memtable(self.specs, memtable_rows)
        self._snapshot = self._empty()

    # --- reading ------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Return the index as it is now."""
        return self._snapshot

    def contains(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Say of each key whether there is such a place."""
        return self._snapshot.contains(keys)

    @property
    def visits(self) -> VisitParts | None:
        """Return what knows the time and social parts."""
        return self._visits

    @visits.setter
    def visits(self, visits: VisitParts | None) -> None:
        with self._lock:
            self._visits = visits
            self._snapshot = replace(self._snapshot, visits=visits)

    @property
    def durable(self) -> Durable | None:
        """Return the folder that this store keeps itself in, if it does."""
        return self._durable

    # --- writing ------------------------------------------------------------------------------

    def upsert(self, columns: PlaceColumns, *, note: bytes = b"") -> None:
        """Add places, replacing those whose key is there; all become visible at once.

        Parameters
        ----------
        columns : PlaceColumns
            The places, each key once.
        note : bytes
            Written to the journal with them and handed to the companion's
            ``apply("upsert", note)``, now and when the journal is replayed.

        Raises
        ------
        InputError
            A key is there twice, or the number of attributes is wrong.
        """
        self._check_columns(columns)
        if len(columns) >= self.memtable_rows:
            self._upsert_many(columns, note)
            return
        with self._lock:
            self._ready()
            self._make_room(len(columns))
            ticket = self._durable.log_upsert(columns, note) if self._durable else 0
            self.apply_upsert(columns, note)
        self._acknowledge(ticket)

    def delete(self, keys: npt.NDArray[np.int64], *, note: bytes = b"") -> int:
        """Delete places by key; return how many there were."""
        keys = np.unique(np.asarray(keys, dtype=np.int64))
        with self._lock:
            self._ready()
            ticket = self._durable.log_delete(keys, note) if self._durable else 0
            count = self.apply_delete(keys, note)
        self._acknowledge(ticket)
        return count

    def record(self, kind: str, payload: bytes) -> None:
        """Write something of the companion's to the journal and have it applied.

        The companion's ``apply(kind, payload)`` is called here, between two
        writes, and again when the journal is replayed.

        Raises
        ------
        InputError
            The store keeps no journal.
        """
        if self._durable is None:
            raise InputError("only a store that was opened on a folder keeps a journal")
        with self._lock:
            self._ready()
            ticket = self._durable.log_note(kind, payload)
            self._durable.apply(kind, payload)
        self._acknowledge(ticket)

    def flush(self) -> None:
        """Turn the recent rows into a segment, and keep it where the store has a folder."""
        with self._maintenance:
            with self._lock:
                self._ready()
            self._cycle(merge=False)
        self._wake()

    def compact(self) -> None:
        """Merge everything into one segment without dead rows."""
        with self._maintenance:
            with self._lock:
                self._ready()
            self._cycle(everything=True)

    def wait(self) -> None:
        """Wait until the background has nothing to do; raise what went wrong there."""
        with self._lock:
            while self._thread is not None:
                self._changed.wait()
            self._raise_error()

    def close(self) -> None:
        """Finish background work and release the folder; later writes are refused."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            while self._thread is not None:
                self._changed.wait()
        try:
            with self._lock:
                self._raise_error()
        finally:
            if self._durable is not None:
                self._durable.close()

    def __enter__(self) -> SegmentStore:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- keeping: see durable and storage -------------------------------------------------------

    def save(
        self,
        folder: str | os.PathLike[str],
        config: Mapping[str, Any],
        arrays: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> None:
        """Write the index to a folder, whole or not at all; what was there is replaced.

        Parameters
        ----------
        folder : path-like
            An index folder, or one that is empty or does not exist.
        config : mapping
            JSON values, handed back as ``config``.
        arrays : mapping of str to array, optional
            Handed back as ``extra``.

        Raises
        ------
        InputError
            The folder holds something else.
        ConflictError
            Another process writes there.
        """
        from shoal.spatial.durable import save_store  # noqa: PLC0415 - it imports this module

        with self._maintenance:
            with self._lock:
                self._ready()
            cut = self._cycle(merge=False)
            save_store(self, folder, cut, config, arrays or {})

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        build_layout: BuildLayout,
        load_layout: LoadLayout,
        *,
        mmap: bool = True,
        verify: bool = False,
        memtable_rows: int = 4096,
        fan_in: int = 8,
        companion: Companion | None = None,
    ) -> SegmentStore:
        """Read an index from a folder into a store of its own, which no longer touches the folder.

        Parameters
        ----------
        mmap : bool
            Map the arrays instead of reading them.
        verify : bool
            Check every byte against its checksum; sizes and headers always are.
        companion : Companion, optional
            Gets its state back, and what the journal of a folder that is, or
            was, written to says beyond it.

        Raises
        ------
        NotFoundError, InputError
            There is no such folder, or it is no index.
        IntegrityError
            A file is truncated or altered; it is named.
        """
        from shoal.spatial.durable import load_store  # noqa: PLC0415 - it imports this module

        store = cls((), build_layout, load_layout, memtable_rows=memtable_rows, fan_in=fan_in)
        load_store(store, folder, companion=companion, mmap=mmap, verify=verify)
        return store

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        build_layout: BuildLayout,
        load_layout: LoadLayout,
        *,
        specs: Sequence[AttributeSpec] | None = None,
        companion: Companion | None = None,
        durability: Literal["fsync", "os"] = "fsync",
        read_only: bool = False,
        mmap: bool = True,
        verify: bool = False,
        memtable_rows: int = 4096,
        fan_in: int = 8,
    ) -> SegmentStore:
        """Open an index that keeps itself in a folder: every acknowledged write survives a crash.

        Parameters
        ----------
        specs : sequence of AttributeSpec, optional
            Needed where the folder holds no index yet: one is made.
        companion : Companion, optional
            State beside the places (ids, visits) that shares journal and folder.
        durability : {"fsync", "os"}
            A write is acknowledged when the disk has it, or when the operating
            system has it (it then survives the process, but not a power cut).
        read_only : bool
            Read beside a writer; ``durable.refresh()`` goes to its newest state.
        mmap, verify
            As :meth:`load`.

        Raises
        ------
        ConflictError
            Another process writes there.
        NotFoundError, InputError, IntegrityError
            As :meth:`load`.
        """
        from shoal.spatial.durable import open_store  # noqa: PLC0415 - it imports this module

        store = cls(
            specs or (), build_layout, load_layout, memtable_rows=memtable_rows, fan_in=fan_in
        )
        store._durable = open_store(
            store,
            folder,
            companion=companion,
            new=specs is not None,
            durability=durability,
            read_only=read_only,
            mmap=mmap,
            verify=verify,
        )
        store._wake()
        return store

    # --- the steps of a write, also of a replayed one; the caller holds the lock -----------------

    def apply_upsert(self, columns: PlaceColumns, note: bytes = b"") -> None:
        """Put rows that fit into the memtable; for this class and the replay of a journal."""
        if note and self._durable is not None:
            self._durable.apply("upsert", note)
        rows, words = self._kill(columns.keys)
        added = self._memtable.append(columns)
        self._publish(len(columns) - rows, added - words)

    def apply_delete(self, keys: npt.NDArray[np.int64], note: bytes = b"") -> int:
        """Delete rows; for this class and the replay of a journal."""
        if note and self._durable is not None:
            self._durable.apply("delete", note)
        rows, words = self._kill(keys)
        self._publish(-rows, -words)
        return rows

    def reserve(self, rows: int) -> None:
        """Have room for rows in the memtable; a new one is started if need be."""
        if self._memtable.room < rows:
            self._start_memtable(rows)

    def _start_memtable(self, rows: int = 0) -> None:
        """Seal the memtable: what it holds waits to become a segment."""
        self._memtable = Memtable(self.specs, max(self.memtable_rows, rows))
        sealed = (view for view in self._snapshot.memory if view.rows)
        self._set(memory=(*sealed, self._memtable.view()))

    def beside(self, specs: Sequence[AttributeSpec]) -> SegmentStore:
        """Return an empty store with the options of this one, for :meth:`become`."""
        return SegmentStore(
            specs,
            self.build_layout,
            self.load_layout,
            memtable_rows=self.memtable_rows,
            fan_in=self.fan_in,
            visits=self._visits,
        )

    def adopt(self, segments: Sequence[Segment]) -> None:
        """Hold these segments; for a store that is empty."""
        views = [segment.view() for segment in segments]
        dead_words = sum(int(s.lengths[s.log(0)].sum(dtype=np.int64)) for s in segments)
        self._set(
            views,
            n_live=sum(view.n_live for view in views),
            n_words=sum(segment.n_words for segment in segments) - dead_words,
        )

    def become(self, other: SegmentStore) -> None:
        """Take over what another store holds, at once; the other is not used again."""
        self.specs = other.specs
        self._memtable = other._memtable
        self._snapshot = replace(other._snapshot, visits=self._visits)

    def _kill(self, keys: npt.NDArray[np.int64]) -> tuple[int, int]:
        """Let the rows of keys die wherever they are; return their number and their words."""
        missing: Sequence[int] = keys.tolist()
        words = 0
        for view in self._snapshot.memory:
            before = view.table.n_words
            missing = view.table.kill(missing)
            words += before - view.table.n_words
            if not missing:
                return len(keys), words
        rest = np.array(missing, dtype=np.int64)
        segments = [view.segment for view in self._snapshot.segments]
        where, rows = find_living(segments, rest)
        holders = where.tolist()
        for number in set(holders) - {-1}:
            words += segments[number].kill(rows[where == number])
        return len(keys) - holders.count(-1), words

    def _publish(self, rows: int, words: int) -> None:
        """Let readers see what was written, all of it at once."""
        now = self._snapshot
        self._snapshot = Snapshot(
            segments=tuple(
                view if view.deaths == view.segment.deaths else view.segment.view()
                for view in now.segments
            ),
            memory=tuple(view.now() for view in now.memory),
            n_live=now.n_live + rows,
            n_words=now.n_words + words,
            attributes=now.attributes,
            totals=now.totals,
            visits=now.visits,
        )

    def _set(self, segments: Sequence[SegmentView] | None = None, **changes: Any) -> None:
        """Change the snapshot; with ``segments`` the list of segments."""
        if segments is not None:
            ordered = tuple(sorted(segments, key=lambda view: -len(view.segment)))
            changes["segments"] = ordered
            changes["totals"] = WordTotals([view.segment.layout for view in ordered])
        self._snapshot = replace(self._snapshot, **changes)

    def _empty(self) -> Snapshot:
        return Snapshot(
            segments=(),
            memory=(self._memtable.view(),),
            n_live=0,
            n_words=0,
            attributes=len(self.specs),
            totals=WordTotals(()),
            visits=self._visits,
        )

    def _upsert_many(self, columns: PlaceColumns, note: bytes) -> None:
        """Build a segment of the rows at once; in a folder it is kept instead of journaled."""
        with self._maintenance:
            with self._lock:
                self._ready()
            new = Segment.of(self.build_layout(columns), columns)
            with self._lock:
                if note and self._durable is not None:
                    self._durable.apply("upsert", note)
                rows, words = self._kill(columns.keys)
                self._publish(len(columns) - rows, new.n_words - words)
                self._set([*self._snapshot.segments, new.view()])
                if self._durable is not None:
                    # No other write may come before this one is safe.
                    self._cycle(merge=False, state=bool(note))
        self._wake()

    def _make_room(self, rows: int) -> None:
        if self._memtable.room >= rows:
            return
        while len(self._snapshot.memory) > _SEALED:
            self._wake()
            self._changed.wait()
            self._ready()
        if self._memtable.room < rows:  # another writer may have been here meanwhile
            self._start_memtable()
        self._wake()

    def _acknowledge(self, ticket: int) -> None:
        if self._durable is not None:
            self._durable.sync(ticket)
            if self._durable.wants_cycle:
                self._wake()

    # --- building, in the background or for a caller who waits -----------------------------------

    def _cycle(self, *, merge: bool = True, everything: bool = False, state: bool = False) -> Cut:
        """Build a segment of the recent rows, then merge; return the last cut."""
        with self._lock:
            if self._memtable.rows:
                self._start_memtable()
            now = self._snapshot
            journal = self._durable.rotate(state=state or everything) if self._durable else 0
            cut = Cut(now.segments, now.memory[:-1], journal)
        if cut.memory:
            cut = self._build((), cut)
        if self._durable is not None:
            self._durable.keep(cut)
        while chosen := self._choose(cut.views, merge=merge, everything=everything):
            cut = self._build(chosen, cut)
            if self._durable is not None:
                self._durable.keep(cut)
        return cut

    def _choose(
        self, views: Sequence[SegmentView], *, merge: bool, everything: bool
    ) -> Sequence[SegmentView]:
        """Return the segments to merge next, none when all is well."""
        if everything:
            tidy = len(views) < 2 and not any(view.deaths for view in views)
            return () if tidy else views
        return overdue(views, self.memtable_rows, self.fan_in) if merge else ()

    def _build(self, chosen: Sequence[SegmentView], cut: Cut) -> Cut:
        """Build one segment of the chosen ones and the memtables, and put it in their place."""
        sources: list[SegmentView | MemtableView] = [*chosen, *cut.memory]
        columns = merge_columns([view.columns() for view in sources], len(self.specs))
        new = Segment.of(self.build_layout(columns), columns) if len(columns) else None
        with self._lock:
            self._exchange(chosen, cut.memory, new)
            self._changed.notify_all()
        kept = tuple(view for view in cut.views if all(view is not old for old in chosen))
        if new is not None:
            # As it was at the cut: what died since is in the journal after it.
            kept = (*kept, SegmentView(new, 0))
        return Cut(kept, (), cut.journal)

    def _exchange(
        self,
        views: Sequence[SegmentView],
        memory: Sequence[MemtableView],
        new: Segment | None,
    ) -> None:
        late = [view.segment.keys[view.segment.log(view.deaths)] for view in views]
        late += [view.table.died_since(view.deaths) for view in memory]
        if new is not None and late:
            keys = np.concatenate(late)
            rows = new.find_live(keys)
            new.kill(rows[rows >= 0])
        gone = {id(view.segment) for view in views} | {id(view.table) for view in memory}
        now = self._snapshot
        segments = [view for view in now.segments if id(view.segment) not in gone]
        if new is not None:
            segments.append(new.view())
        self._set(segments, memory=tuple(v for v in now.memory if id(v.table) not in gone))

    def _wake(self) -> None:
        """Have the background look whether there is something to do."""
        if self._durable is not None and self._durable.read_only:
            return
        with self._lock:
            self._wanted = True
            if self._thread is None and not self._closed:
                if len(self._snapshot.memory) < 2 and not self._overdue():
                    self._wanted = False
                    return
                self._thread = threading.Thread(target=self._background, name="shoal-segments")
                self._thread.start()

    def _overdue(self) -> bool:
        if self._durable is not None and self._durable.wants_cycle:
            return True
        return bool(self._choose(self._snapshot.segments, merge=True, everything=False))

    def _background(self) -> None:
        try:
            while True:
                with self._lock:
                    if not self._wanted or self._closed:
                        self._thread = None
                        self._changed.notify_all()
                        return
                    self._wanted = False
                with self._maintenance:
                    self._cycle()
        except BaseException as error:  # raised by the next call
            with self._lock:
                self._error = error
                self._thread = None
                self._changed.notify_all()

    # --- checks -------------------------------------------------------------------------------

    def _ready(self) -> None:
        if self._closed:
            raise ConflictError("the index is closed")
        if self._durable is not None:
            self._durable.check_writable()
        self._raise_error()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _check_columns(self, columns: PlaceColumns) -> None:
        if columns.values.shape != (len(self.specs), len(columns)):
            raise InputError(
                f"there are {len(self.specs)} attributes",
                field="values",
                value=columns.values.shape,
            )
        if len(columns) < 2:
            return
        ordered = np.sort(columns.keys)
        again = ordered[1:] == ordered[:-1]
        if again.any():
            key = int(ordered[1:][again][0])
            row = int(np.flatnonzero(columns.keys == key)[1])
            raise InputError("a key is there twice", field="keys", value=key, row=row + 1)
