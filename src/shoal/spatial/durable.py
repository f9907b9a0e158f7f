"""A store and its folder: checkpoints, the journal beside them, and reading both back.

A checkpoint is a cut between two writes: the journal begins a new file there, so
that the bundles of the checkpoint and the journal files from its number on are
together everything that was ever acknowledged, and nothing twice. The number is in
the manifest, which is swapped last; journal files before it are removed after that.

The companion (ids, labels, visits) has state of its own beside the rows. Its changes
go through the same journal as notes, and its arrays are kept less often than rows
are, because they may be large: the manifest has a second number for the notes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from shoal.core import crashpoints
from shoal.core.errors import ConflictError, InputError, IntegrityError
from shoal.core.files import FolderLock
from shoal.spatial.columns import AttributeSpec, PlaceColumns
from shoal.spatial.cut import Cut
from shoal.spatial.journal import (
    Deleted,
    Entry,
    Journal,
    Noted,
    Torn,
    Upserted,
    cut_torn,
    journal_path,
    journals,
    read_journal,
)
from shoal.spatial.segment import Segment
from shoal.spatial.storage import (
    Bundle,
    IndexManifest,
    is_index,
    read_bundle,
    read_manifest,
    remove_unnamed,
    write_bundle,
    write_manifest,
)

if TYPE_CHECKING:
    from shoal.spatial.segments import SegmentStore

__all__ = ["Companion", "Durable", "load_store", "open_store", "save_store"]

#: Journal bytes above which a checkpoint is made, and the companion's arrays are kept.
_JOURNAL_BYTES = 64 << 20
_RETRIES = 20
_LAYOUT = "layout."
#: The layout whose meta names none.
_UNNAMED = "packed"

_Arrays = dict[str, npt.NDArray[Any]]


class Companion(Protocol):
    """State beside the places that shares their folder and journal.

    All three are called between two writes. What the companion changes outside
    of ``apply`` is not journaled.
    """

    def state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """Return the config (JSON) and the arrays to keep; they must not change later."""
        ...

    def restore(self, config: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Become what was kept; called before anything is applied, and again by a refresh."""
        ...

    def apply(self, kind: str, payload: bytes) -> None:
        """Apply a note, now or when the journal is replayed; it must not fail on what it wrote."""
        ...


class Durable:
    """The folder of an open store.

    Attributes
    ----------
    folder : Path
    read_only : bool
    torn : Torn or None
        What the crash of an earlier process left at the end of its journal, and
        was dropped; nobody was told that it is safe.
    replayed : int
        Journal entries that were applied when it was opened.
    """

    def __init__(
        self,
        store: SegmentStore,
        folder: Path,
        companion: Companion | None,
        *,
        lock: FolderLock | None,
        mmap: bool,
        verify: bool,
    ) -> None:
        self.folder = folder
        self.read_only = lock is None
        self.torn: Torn | None = None
        self.replayed = 0
        self._store = store
        self._companion = companion
        self._lock = lock
        self._mmap, self._verify = mmap, verify
        self._journal: Journal | None = None
        self._manifest: IndexManifest | None = None
        self._pending: tuple[dict[str, Any], _Arrays] | None = None
        self._has_notes = False
        self._notes_from = 0
        self._note_bytes = 0
        self._layouts: dict[Bundle, Segment] = {}
        self._seen = (0, 0, 0)

    # --- writing: the store calls these with its lock held, but for sync ------------------------

    @property
    def manifest(self) -> IndexManifest:
        """Return the manifest of the last checkpoint."""
        assert self._manifest is not None
        return self._manifest

    @property
    def wants_cycle(self) -> bool:
        """Say whether the journal is so long that a checkpoint is due."""
        return self._journal is not None and self._journal.bytes > _JOURNAL_BYTES

    def check_writable(self) -> None:
        """Raise ConflictError if the folder was opened for reading."""
        if self.read_only:
            raise ConflictError("the index was opened for reading only")

    def log_upsert(self, columns: PlaceColumns, note: bytes) -> int:
        """Write places to the journal; return the ticket."""
        return self._log(Upserted.of(columns, note), len(note))

    def log_delete(self, keys: npt.NDArray[np.int64], note: bytes) -> int:
        """Write deleted keys to the journal; return the ticket."""
        return self._log(Deleted(keys.astype("<i8").tobytes(), note), len(note))

    def log_note(self, kind: str, payload: bytes) -> int:
        """Write a note to the journal; return the ticket."""
        return self._log(Noted(kind, payload), len(payload) + 1)

    def _log(self, entry: Upserted | Deleted | Noted, note_bytes: int) -> int:
        assert self._journal is not None
        ticket = self._journal.append(entry)
        if note_bytes:
            self._has_notes = True
            self._note_bytes += note_bytes
        return ticket

    def apply(self, kind: str, payload: bytes) -> None:
        """Hand a note to the companion."""
        if self._companion is not None:
            self._companion.apply(kind, payload)

    def sync(self, ticket: int) -> None:
        """Wait until a write is safe."""
        assert self._journal is not None
        self._journal.sync(ticket)

    def rotate(self, *, state: bool) -> int:
        """Cut: later writes go to a new file, whose number is returned.

        With ``state``, or when many bytes of notes have come together, the
        companion's state at the cut is taken to be kept with it.
        """
        journal = self._journal
        assert journal is not None
        if not journal.empty:
            journal.rotate()
        if self._companion is not None and (state or self._note_bytes > _JOURNAL_BYTES):
            self._pending = self._companion.state()
            self._has_notes, self._note_bytes = False, 0
            self._notes_from = journal.number
        elif not self._has_notes:
            self._notes_from = journal.number
        return journal.number

    def keep(self, cut: Cut) -> None:
        """Make a cut the state of the folder, and remove what it no longer needs."""
        assert self._journal is not None
        before = self.manifest
        after = write_checkpoint(
            self.folder,
            before,
            cut,
            state=self._pending,
            notes=self._notes_from,
            specs=self._store.specs,
        )
        if after is before:
            return
        self._manifest, self._pending = after, None
        remove_unnamed(self.folder, after.names())
        self._journal.remove_before(min(after.journal, after.notes))

    def close(self) -> None:
        """Close the journal and release the folder."""
        if self._journal is not None:
            self._journal.close()
        if self._lock is not None:
            self._lock.close()

    # --- reading back -------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Go to the newest state that the writer of the folder has written; say if there was any.

        Raises
        ------
        ConflictError
            The folder was opened for writing: its state is the newest.
        """
        if not self.read_only:
            raise ConflictError("only an index that was opened for reading is refreshed")
        if self._look() == self._seen:
            return False
        with self._store._lock:
            self.restore()
        return True

    def restore(self) -> None:
        """Read checkpoint and journal into the store; beside a writer, until they fit."""
        for attempt in range(_RETRIES):
            seen = self._look()
            try:
                self._restore_once()
            except (FileNotFoundError, IntegrityError):
                # A writer may have gone on and removed what the manifest named a moment ago.
                if not self.read_only or attempt == _RETRIES - 1 or self._look() == seen:
                    raise
                time.sleep(0.01 * attempt)
            else:
                self._seen = seen
                return

    def _look(self) -> tuple[int, int, int]:
        """Return what changes with every write: generation, last journal file, its bytes."""
        generation = read_manifest(self.folder).generation
        numbers = journals(self.folder)
        if not numbers:
            return generation, 0, 0
        try:
            return generation, numbers[-1], journal_path(self.folder, numbers[-1]).stat().st_size
        except FileNotFoundError:
            return generation, numbers[-1], 0

    def _restore_once(self) -> None:
        manifest = read_manifest(self.folder)
        store = self._store
        specs = [AttributeSpec.model_validate(spec) for spec in manifest.specs]
        deaths: _Arrays = {}
        if manifest.deaths is not None:
            deaths, _ = self._read(manifest.deaths)
        extra: _Arrays = {}
        if manifest.state is not None:
            extra, _ = self._read(manifest.state)
        known, self._layouts = self._layouts, {}
        segments = []
        for bundle in manifest.segments:
            old = known.get(bundle)
            if old is None:
                arrays, meta = self._read(bundle)
                segment = _segment(store, self.folder / bundle.name, arrays, meta)
            else:
                segment = Segment(old.layout, old.lengths, old.order, n_words=old.n_words)
            segment.names[_name_of(self.folder)] = bundle
            if bundle.name in deaths:
                dead = _rows(deaths[bundle.name], len(segment), self.folder / bundle.name)
                segment.kill(dead, count=False)
            segments.append(segment)
            self._layouts[bundle] = segment
        entries = _entries(self.folder, manifest)
        if self._companion is not None:
            self._companion.restore(manifest.config, extra)
        # In a store of its own, so that readers see the old state until all of the new is there.
        fresh = store.beside(specs)
        fresh.adopt(segments)
        self._replay(fresh, manifest, entries)
        store.become(fresh)
        store.config, store.extra = manifest.config, extra
        self._manifest = manifest

    def _replay(
        self, store: SegmentStore, manifest: IndexManifest, entries: list[tuple[int, Entry | Torn]]
    ) -> None:
        self.torn, self._has_notes, self._note_bytes, self.replayed = None, False, 0, 0
        for number, entry in entries:
            if isinstance(entry, Torn):
                self.torn = entry
                continue
            self.replayed += 1
            if number >= manifest.notes:
                self._replay_note(entry)
            if number < manifest.journal:
                continue
            if isinstance(entry, Upserted):
                columns = entry.columns(len(store.specs))
                store.reserve(len(columns))
                store.apply_upsert(columns)
            elif isinstance(entry, Deleted):
                store.apply_delete(np.frombuffer(entry.keys, dtype="<i8").astype(np.int64))

    def _replay_note(self, entry: Entry) -> None:
        if isinstance(entry, Noted):
            kind, note = entry.kind, entry.payload
        else:
            kind, note = "upsert" if isinstance(entry, Upserted) else "delete", entry.note
            if not note:
                return
        self._has_notes = True
        self._note_bytes += len(note) + 1
        self.apply(kind, note)

    def _read(self, bundle: Bundle) -> tuple[_Arrays, dict[str, Any]]:
        return read_bundle(self.folder, bundle, mmap=self._mmap, verify=self._verify)

    def begin(self, durability: Literal["fsync", "os"]) -> None:
        """Start writing where the restored journal ends."""
        if self.torn is not None:
            cut_torn(self.torn)
        remove_unnamed(self.folder, self.manifest.names())
        numbers = journals(self.folder)
        self._layouts = {}
        self._notes_from = self.manifest.notes
        self._journal = Journal(self.folder, numbers[-1] if numbers else 1, durability)
        self._journal.remove_before(min(self.manifest.journal, self.manifest.notes))


def write_checkpoint(
    folder: Path,
    before: IndexManifest,
    cut: Cut,
    *,
    state: tuple[Mapping[str, Any], Mapping[str, npt.NDArray[Any]]] | None,
    notes: int,
    specs: tuple[AttributeSpec, ...],
) -> IndexManifest:
    """Write what a folder lacks of a cut and swap its manifest; return the new manifest.

    Nothing is written, and ``before`` returned, where they are the same.
    """
    generation = before.generation + 1
    here, held = _name_of(folder), set(before.segments)
    bundles, deaths = [], {}
    for i, view in enumerate(cut.views):
        segment = view.segment
        bundle = segment.names.get(here)
        if bundle is None or bundle not in held:
            bundle = write_bundle(
                folder, f"segment-{generation:06d}-{i}", _arrays_of(segment), _meta_of(segment)
            )
            segment.names[here] = bundle
        bundles.append(bundle)
        if view.deaths:
            deaths[bundle.name] = segment.log(0, view.deaths)
    changed = bundles != before.segments or state is not None
    if not changed and (cut.journal, notes) == (before.journal, before.notes):
        return before
    death_bundle = state_bundle = None
    if deaths:
        death_bundle = write_bundle(folder, f"deaths-{generation:06d}", deaths, {})
    config = before.config
    if state is None:
        state_bundle = before.state
    else:
        config = dict(state[0])
        if state[1]:
            state_bundle = write_bundle(folder, f"state-{generation:06d}", state[1], {})
    after = IndexManifest(
        generation=generation,
        specs=[spec.model_dump() for spec in specs],
        config=config,
        segments=bundles,
        deaths=death_bundle,
        state=state_bundle,
        journal=cut.journal,
        notes=notes,
    )
    write_manifest(folder, after)
    return after


def save_store(
    store: SegmentStore,
    folder: str | os.PathLike[str],
    cut: Cut,
    config: Mapping[str, Any],
    arrays: Mapping[str, npt.NDArray[Any]],
) -> None:
    """Write a cut of a store to a folder; see :meth:`SegmentStore.save`."""
    path = Path(folder)
    durable = store.durable
    if durable is not None and durable.folder.resolve() == path.resolve():
        raise ConflictError(
            "an open index keeps itself in its folder",
            hint="flush() it, or save to another folder",
        )
    _refuse_other(path)
    with FolderLock(path, "an index that is being saved"):
        before = read_manifest(path) if is_index(path) else _nothing(store.specs)
        # The journal of an index that was there belongs to none of these rows: go on after it.
        old = journals(path)
        number = old[-1] + 1 if old else 0
        if number:
            Journal(path, number, "os").close()
        after = write_checkpoint(
            path,
            before,
            replace(cut, journal=number),
            state=(config, arrays),
            notes=number,
            specs=store.specs,
        )
        crashpoints.crashpoint("spatial.saved")
        for stale in old:
            journal_path(path, stale).unlink()
        remove_unnamed(path, after.names())


def load_store(
    store: SegmentStore,
    folder: str | os.PathLike[str],
    *,
    companion: Companion | None,
    mmap: bool,
    verify: bool,
) -> None:
    """Read a folder into a store that is not tied to it; see :meth:`SegmentStore.load`."""
    Durable(store, Path(folder), companion, lock=None, mmap=mmap, verify=verify).restore()


def open_store(
    store: SegmentStore,
    folder: str | os.PathLike[str],
    *,
    companion: Companion | None,
    new: bool,
    durability: Literal["fsync", "os"],
    read_only: bool,
    mmap: bool,
    verify: bool,
) -> Durable:
    """Tie a store to a folder; see :meth:`SegmentStore.open`."""
    path = Path(folder)
    if durability not in {"fsync", "os"}:
        raise InputError('durability is "fsync" or "os"', field="durability", value=durability)
    if read_only:
        durable = Durable(store, path, companion, lock=None, mmap=mmap, verify=verify)
        durable.restore()
        return durable
    if not is_index(path):
        if not new:
            read_manifest(path)  # says what is wrong
        _refuse_other(path)
    lock = FolderLock(path, "an open index")
    try:
        if not is_index(path):
            state = companion.state() if companion is not None else ({}, {})
            nothing = _nothing(store.specs)
            write_checkpoint(path, nothing, Cut(()), state=state, notes=0, specs=store.specs)
        durable = Durable(store, path, companion, lock=lock, mmap=mmap, verify=verify)
        durable.restore()
        durable.begin(durability)
    except BaseException:
        lock.close()
        raise
    return durable


def _nothing(specs: tuple[AttributeSpec, ...]) -> IndexManifest:
    return IndexManifest(
        generation=0, specs=[spec.model_dump() for spec in specs], config={}, segments=[]
    )


def _refuse_other(path: Path) -> None:
    """Raise if a folder holds anything but an index (or what is left of one that never was)."""
    if not path.exists() or is_index(path):
        return
    if not path.is_dir():
        raise InputError("is no folder", source=str(path))
    strange = [item.name for item in path.iterdir() if not item.name.startswith(".")]
    strange = [name for name in strange if not name.startswith(("segment-", "deaths-", "state-"))]
    if strange:
        raise InputError(
            f"holds no index but other files ({sorted(strange)[0]})",
            source=str(path),
            hint="choose an empty folder",
        )


def _name_of(folder: Path) -> str:
    return str(folder.resolve())


def _arrays_of(segment: Segment) -> _Arrays:
    arrays = {_LAYOUT + name: array for name, array in segment.layout.arrays().items()}
    arrays["order"] = segment.order
    if segment.lengths is not getattr(segment.layout, "lengths", None):
        arrays["lengths"] = segment.lengths
    return arrays


def _meta_of(segment: Segment) -> dict[str, Any]:
    return {
        "layout": segment.layout.meta(),
        "rows": len(segment),
        "n_words": segment.n_words,
    }


def _segment(store: SegmentStore, path: Path, arrays: _Arrays, meta: dict[str, Any]) -> Segment:
    try:
        layout_meta = meta["layout"]
        inner = {
            name.removeprefix(_LAYOUT): array
            for name, array in arrays.items()
            if name.startswith(_LAYOUT)
        }
        layout = store.load_layout(str(layout_meta.get("layout", _UNNAMED)), inner, layout_meta)
        own = getattr(layout, "lengths", None)
        lengths = arrays["lengths"] if own is None else own
        order = arrays["order"]
        rows, n_words = int(meta["rows"]), int(meta["n_words"])
    except (KeyError, AttributeError) as error:
        raise IntegrityError(f"{path} lacks {error}") from None
    except IntegrityError as error:
        raise IntegrityError(f"{path}: {error.message}", hint=error.hint) from error
    if not len(layout) == len(lengths) == len(order) == rows:
        raise IntegrityError(f"{path} has arrays of different numbers of rows")
    return Segment(layout, lengths, order, n_words=n_words)


def _rows(dead: npt.NDArray[Any], n: int, path: Path) -> npt.NDArray[np.int64]:
    rows = dead.astype(np.int64)
    if len(rows) and (int(rows.max()) >= n or len(np.unique(rows)) != len(rows)):
        raise IntegrityError(f"{path}: the list of its dead rows does not fit")
    return rows


def _entries(folder: Path, manifest: IndexManifest) -> list[tuple[int, Entry | Torn]]:
    """Return the journal entries that are not in the checkpoint, each with its file's number."""
    numbers = journals(folder)
    needed = min(manifest.journal, manifest.notes)
    wanted = [number for number in numbers if number >= needed]
    if needed and (not wanted or wanted[0] != needed):
        raise IntegrityError(f"{journal_path(folder, needed)} is missing")
    found: list[tuple[int, Entry | Torn]] = []
    for number in wanted:
        if number != wanted[0] and number - 1 not in wanted:
            raise IntegrityError(f"{journal_path(folder, number - 1)} is missing")
        path = journal_path(folder, number)
        found += [
            (number, entry) for entry in read_journal(path, number, last=number == wanted[-1])
        ]
    return found
