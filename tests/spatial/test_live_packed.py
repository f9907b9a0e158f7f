"""The live index over the packed layout: mapped files, its own lists of rows, equal bits."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from live_bench import SPECS, Model, ask, check, make_places, make_plan
from test_segments import STEPS

from shoal.spatial.columns import Layout, PlaceColumns
from shoal.spatial.layouts import load_layout
from shoal.spatial.merging import keep_rows
from shoal.spatial.packed import PackedLayout
from shoal.spatial.segments import SegmentStore


def build(columns: PlaceColumns) -> Layout:
    return PackedLayout.build(columns, SPECS)


def load(name: str, arrays: Mapping[str, Any], meta: Mapping[str, Any]) -> Layout:
    return load_layout(name, arrays, meta)


def make(rows: int = 16) -> SegmentStore:
    return SegmentStore(SPECS, build, load, memtable_rows=rows, fan_in=2)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(steps=STEPS, seed=st.integers(0, 1 << 20))
def test_any_order_of_writes_equals_a_rebuild(
    steps: list[tuple[str, list[int]]], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store, model = make(), Model()
    for number, (step, keys) in enumerate(steps):
        if step == "upsert":
            columns = make_places(keys, seed + number)
            store.upsert(columns)
            model.upsert(columns)
        elif step == "delete":
            assert store.delete(np.array(keys, dtype=np.int64)) == model.delete(keys)
        elif step == "flush":
            store.flush()
        elif step == "compact":
            store.compact()
        else:
            folder = tmp_path_factory.mktemp("kept") / "index"
            store.save(folder, {})
            store.close()
            store = SegmentStore.load(folder, build, load, memtable_rows=16, fan_in=2)
        check(store.snapshot(), model, seeds=(seed, seed + 1))
    store.close()


def test_memtable_segments_and_one_segment_give_the_same_bits() -> None:
    """The same places, spread over all kinds of sources, or in one layout."""
    columns = make_places(range(300), seed=5)
    # Two words per memtable more than its signature has bits, so that ids share bits.
    words = [*[f"w{i:03}" for i in range(120)], *columns.words]
    shift = dataclasses.replace(columns, words=sorted(words, key=str.encode))
    rank = {word: i for i, word in enumerate(shift.words)}
    ids = np.array([rank[columns.words[i]] for i in columns.word_ids], dtype=np.int32)
    columns = dataclasses.replace(shift, word_ids=ids)
    with make(4096) as recent, make(100) as spread, make() as one:
        recent.upsert(columns)
        one.upsert(columns)
        one.compact()
        for first in range(0, 300, 50):
            part = make_places(range(300), seed=5)
            keep = (part.keys >= first) & (part.keys < first + 50)
            spread.upsert(keep_rows(part, keep))
            spread.upsert(keep_rows(part, part.keys == first))  # once more: the first one dies
        snapshots = [store.snapshot() for store in (recent, spread, one)]
        assert snapshots[0].memory[0].rows == 300
        assert snapshots[2].single() is not None
        for seed in range(60):
            plan = make_plan(snapshots[2], seed, k=12)
            first_, *others = [ask(snapshot, plan) for snapshot in snapshots]
            assert all(first_ == other for other in others), seed


def test_late_deaths_are_offered_with_the_same_bits() -> None:
    with make(64) as store:
        store.upsert(make_places(range(300), seed=5))
        store.delete(np.array([299]))
        snapshot = store.snapshot()
        plans = [make_plan(snapshot, seed, k=12) for seed in range(40)]
        before = [ask(snapshot, plan) for plan in plans]
        store.delete(np.arange(0, 299, 5))
        assert [ask(snapshot, plan) for plan in plans] == before
