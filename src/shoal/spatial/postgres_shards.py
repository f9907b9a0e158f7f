"""Shards built from Postgres: one of them again, or all of an index."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from shoal.spatial.config import SpatialKeywordIndexConfig
from shoal.spatial.index import SpatialKeywordIndex
from shoal.spatial.postgres import PlaceSource
from shoal.spatial.shards import LocalTransport, ShardHost, index_of_columns
from shoal.spatial.shardstore import ShardStore
from shoal.spatial.state import IndexState

if TYPE_CHECKING:
    from shoal.spatial.sharding import ShardedIndex

__all__ = ["rebuild_shard", "sharded_from_source"]


def rebuild_shard(
    dsn: str,
    low: int,
    high: int | None,
    *,
    schema: str = "shoal",
    config: SpatialKeywordIndexConfig | None = None,
) -> tuple[SpatialKeywordIndex, int]:
    """Build the shard of one Hilbert range from Postgres.

    Parameters
    ----------
    dsn, schema : str
        As :class:`PlaceSource`.
    low, high : int
        As :meth:`PlaceSource.read`.
    config : SpatialKeywordIndexConfig, optional
        Options of the shard.

    Returns
    -------
    SpatialKeywordIndex, int
        The shard, whose ids are the keys, and the number of the change feed
        from which :meth:`PlaceSource.catch_up` goes on.
    """
    with PlaceSource(dsn, schema=schema) as source:
        rows = source.read(low, high)
        shard = index_of_columns(rows.columns, source.specs(), config)
    return shard, rows.seq


def sharded_from_source(
    cls: type[ShardedIndex],
    source: PlaceSource,
    shards: int,
    config: SpatialKeywordIndexConfig | None,
) -> tuple[ShardedIndex, int]:
    """Build every shard from its range of the source; see ``ShardedIndex.from_postgres``."""
    meta, specs = source.meta(), source.specs()
    config = (config or SpatialKeywordIndexConfig()).model_copy(
        update={"analyzer": meta["analyzer"]}
    )
    seq, ends = int(meta["last_seq"]), source.cuts(shards)
    hosts, labels = [], []
    for low, high in zip([0, *ends], [*ends, None], strict=True):
        rows = source.read(low, high)
        hosts.append(ShardHost.of_columns(rows.columns, specs, config))
        labels.append((rows.columns.keys, rows.labels))
    store = ShardStore(
        LocalTransport(hosts),
        np.array(ends, dtype=np.uint64),
        specs,
        [host.outline() for host in hosts],
    )
    ids = source.ids()
    index = cls(store, IndexState(config, ids))
    for keys, texts in labels:
        if any(texts):
            index.labels.put(keys, texts)
    return index, source.catch_up(index, seq)
