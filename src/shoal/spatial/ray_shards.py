"""Shards in Ray actors: how they are started, asked, and started again after a death.

An actor that was started from a saved folder maps its files; when it dies, a
new one is started from them, and the changes since the save, which are kept
here, are done again. A shard that was built in memory has no such folder until
the index is saved: its death is an error that names it.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.core.errors import UnavailableError
from shoal.spatial.columns import AttributeSpec, PlaceColumns
from shoal.spatial.config import SpatialKeywordIndexConfig
from shoal.spatial.index import SpatialKeywordIndex
from shoal.spatial.outline import Outline
from shoal.spatial.shardfolder import read_folder
from shoal.spatial.shards import Call, ShardHost
from shoal.spatial.shardstore import ShardStore, hilbert_cuts, part_columns

if TYPE_CHECKING:
    from shoal.spatial.sharding import ShardedIndex

__all__ = ["RayTransport", "start_on_ray"]

#: Changed places that are kept for a shard's restart; beyond it the index must be saved first.
_REPLAY_ROWS = 200_000
#: Queries that one actor answers at the same time; kernels release the GIL.
_CONCURRENCY = 4
_DEFAULT_SHARDS = 4


@dataclasses.dataclass(slots=True)
class _Origin:
    """What a shard can be started again from."""

    folder: str | None = None
    outline: Outline | None = None
    epoch: int = 0
    changes: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)
    rows: int = 0


class RayTransport:
    """Shards behind Ray actors.

    Parameters
    ----------
    actors : sequence of actor handles
        One a shard.
    origins : sequence of _Origin
        What each is started again from.
    timeout_s : float
        Longest wait for an answer of a shard.
    options : mapping
        Options of the actors, as ``ray.remote`` takes them.

    Attributes
    ----------
    restarts : int
        Actors that were started again.
    """

    #: After the first shard all others that may matter are asked at once: two rounds in all.
    width = 1_000_000

    def __init__(
        self,
        actors: Sequence[Any],
        origins: Sequence[_Origin],
        *,
        timeout_s: float,
        options: Mapping[str, Any],
    ) -> None:
        self.actors = list(actors)
        self.restarts = 0
        self._origins = list(origins)
        self._timeout_s = timeout_s
        self._options = dict(options)
        self._ray = _import_ray()
        self._lock = threading.Lock()

    @classmethod
    def of_folders(
        cls,
        folders: Sequence[Path],
        outlines: Sequence[Outline],
        *,
        timeout_s: float,
        options: Mapping[str, Any],
    ) -> RayTransport:
        """Start an actor for each saved shard; the files are mapped there."""
        origins = [
            _Origin(str(folder), outline) for folder, outline in zip(folders, outlines, strict=True)
        ]
        actors = [_start(options, "of_folder", o.folder, o.outline, epoch=0) for o in origins]
        made = cls(actors, origins, timeout_s=timeout_s, options=options)
        made.outlines()
        return made

    @classmethod
    def of_parts(
        cls,
        parts: Sequence[PlaceColumns],
        specs: Sequence[AttributeSpec],
        config: SpatialKeywordIndexConfig,
        *,
        epoch: int = 0,
        timeout_s: float,
        options: Mapping[str, Any],
    ) -> RayTransport:
        """Start an actor for the places of each shard; they go through the object store."""
        ray = _import_ray()
        actors = [
            _start(options, "of_columns", ray.put(part), tuple(specs), config, epoch=epoch)
            for part in parts
        ]
        origins = [_Origin(epoch=epoch) for _ in parts]
        return cls(actors, origins, timeout_s=timeout_s, options=options)

    def __len__(self) -> int:
        return len(self.actors)

    def outlines(self) -> list[Outline]:
        """Return what the shards publish, waiting until all have started.

        Raises
        ------
        UnavailableError
            A shard did not start.
        """
        found = self.call([Call(shard, "outline") for shard in range(len(self))])
        for result in found:
            if isinstance(result, UnavailableError):
                raise result
        return found

    def call(self, calls: Sequence[Call]) -> list[Any]:
        """Return the result of each call; all are under way before the first is waited for."""
        sent = [(call, self.actors[call.shard]) for call in calls]
        references = [actor.call.remote(call.method, call.args) for call, actor in sent]
        return [
            self._result(call, actor, reference)
            for (call, actor), reference in zip(sent, references, strict=True)
        ]

    def saved(self, folders: Sequence[Path], outlines: Sequence[Outline], epoch: int) -> None:
        """Take note of what the shards can be started again from."""
        with self._lock:
            self._origins = [
                _Origin(str(folder), outline, epoch)
                for folder, outline in zip(folders, outlines, strict=True)
            ]

    def rebuilt(
        self,
        parts: Sequence[PlaceColumns],
        specs: Sequence[AttributeSpec],
        config: SpatialKeywordIndexConfig,
        epoch: int,
    ) -> tuple[RayTransport, list[Outline]]:
        """Return new actors; the present ones end when nothing refers to them any more."""
        made = RayTransport.of_parts(
            parts, specs, config, epoch=epoch, timeout_s=self._timeout_s, options=self._options
        )
        return made, made.outlines()

    def close(self) -> None:
        """End the actors."""
        for actor in self.actors:
            self._ray.kill(actor)

    def _result(self, call: Call, actor: Any, reference: Any) -> Any:
        try:
            result = self._wait(call, actor, reference)
        except UnavailableError as error:
            return error
        if call.method == "apply":
            self._note(call)
        return result

    def _wait(self, call: Call, actor: Any, reference: Any) -> Any:
        errors = self._ray.exceptions
        for last in (False, True):
            try:
                return self._ray.get(reference, timeout=self._timeout_s)
            except errors.GetTimeoutError:
                raise UnavailableError(
                    f"shard {call.shard} did not answer within {self._timeout_s:g} s"
                ) from None
            except errors.RayActorError as error:
                if last:
                    raise UnavailableError(f"shard {call.shard} died again: {error}") from error
                actor = self._restart(call.shard, actor)
                reference = actor.call.remote(call.method, call.args)
        raise AssertionError  # the loop has ended by return or raise

    def _restart(self, shard: int, dead: Any) -> Any:
        """Return the living actor of a shard, starting it if no one has yet."""
        with self._lock:
            if self.actors[shard] is not dead:
                return self.actors[shard]
            origin = self._origins[shard]
            if origin.folder is None:
                raise UnavailableError(
                    f"shard {shard} died, and there is nothing to start it again from",
                    hint="save() the index after building it and after many changes",
                )
            actor = _start(
                self._options, "of_folder", origin.folder, origin.outline, epoch=origin.epoch
            )
            try:
                for change in origin.changes:
                    self._ray.get(actor.call.remote("apply", change), timeout=self._timeout_s)
            except (self._ray.exceptions.RayError, OSError) as error:
                raise UnavailableError(f"shard {shard} could not be restarted: {error}") from error
            self.actors[shard] = actor
            self.restarts += 1
            return actor

    def _note(self, call: Call) -> None:
        """Keep a change for a restart."""
        with self._lock:
            origin = self._origins[call.shard]
            if origin.folder is None:
                return
            _, columns, deleted = call.args
            origin.changes.append(call.args)
            origin.rows += len(deleted) + (0 if columns is None else len(columns))
            if origin.rows > _REPLAY_ROWS:
                self._origins[call.shard] = _Origin()


class _ShardActor:
    """The process of one shard."""

    def __init__(self, how: str, args: tuple[Any, ...], epoch: int, *columns: Any) -> None:
        if columns:
            # What comes from the object store is read-only, for which numba compiles anew.
            args = (_writable(columns[0]), *args)
        self._host: ShardHost = getattr(ShardHost, how)(*args, epoch=epoch)

    def call(self, method: str, args: tuple[Any, ...]) -> Any:
        """Return what a method of the shard returns."""
        return getattr(self._host, method)(*args)


def _writable(columns: PlaceColumns) -> PlaceColumns:
    return PlaceColumns(
        keys=columns.keys.copy(),
        lon=columns.lon.copy(),
        lat=columns.lat.copy(),
        words=columns.words,
        word_ptr=columns.word_ptr.copy(),
        word_ids=columns.word_ids.copy(),
        values=columns.values.copy(),
    )


def _start(options: Mapping[str, Any], how: str, *args: Any, epoch: int) -> Any:
    ray = _import_ray()
    actor = ray.remote(_ShardActor).options(**({"max_concurrency": _CONCURRENCY} | dict(options)))
    if how == "of_columns":
        columns, *rest = args
        return actor.remote(how, tuple(rest), epoch, columns)
    return actor.remote(how, args, epoch)


def start_on_ray(
    cls: type[ShardedIndex],
    source: str | os.PathLike[str] | SpatialKeywordIndex,
    *,
    shards: int | None,
    timeout_s: float,
    actor_options: Mapping[str, Any],
) -> ShardedIndex:
    """Put one Ray actor behind each shard.

    Parameters
    ----------
    source : path or SpatialKeywordIndex
        The folder of a saved sharded index, which every node must reach by this
        path: actors map their files. Or an index: its places go to the actors
        through Ray's object store.
    shards : int, optional
        For an index that is not sharded yet; by default 4.
    timeout_s : float
        Longest wait for an answer of a shard.
    actor_options : mapping
        Options of the actors (``num_cpus``, ``resources``, ...).

    Raises
    ------
    UnavailableError
        Ray is not installed or not started, or a shard did not start.
    """
    ray = _import_ray()
    if not ray.is_initialized():
        raise UnavailableError("Ray is not started", hint="ray.init() starts or joins a cluster")
    if isinstance(source, (str, os.PathLike)):
        kept = read_folder(Path(source))
        transport = RayTransport.of_folders(
            kept.shards, kept.outlines, timeout_s=timeout_s, options=actor_options
        )
        store = ShardStore(transport, kept.cuts, kept.specs, kept.outlines)
        return cls(store, kept.state)
    columns = source.columns()
    cuts = getattr(source, "cuts", None)
    if cuts is None or shards is not None:
        cuts = hilbert_cuts(columns.lon, columns.lat, _DEFAULT_SHARDS if shards is None else shards)
    transport = RayTransport.of_parts(
        part_columns(columns, cuts),
        source.attribute_specs,
        source.config,
        timeout_s=timeout_s,
        options=actor_options,
    )
    store = ShardStore(transport, cuts, source.attribute_specs, transport.outlines())
    return cls(store, source._state)


def _import_ray() -> Any:
    try:
        import ray  # noqa: PLC0415 - optional, and only where used
    except ImportError as error:
        raise UnavailableError(
            "Ray is not installed", hint="pip install 'shoal[spatial-scale]'"
        ) from error
    return ray
