"""The shipped dictionary: fixed for ever, and worth its bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.core.errors import IntegrityError
from shoal.wire import dictionary
from shoal.wire.compression import BodyCodec
from shoal.wire.dictionary import BUILT_IN, built_in_dictionaries, training_batches
from shoal.wire.frames import Batch, BatchKind, Codec


def test_small_batches_of_another_fleet_shrink() -> None:
    codec = BodyCodec(built_in_dictionaries())
    unseen = [raw for raw in training_batches(600, seed=99) if len(raw) < 260]
    assert len(unseen) > 100
    plain = with_dictionary = total = 0
    for raw in unseen:
        packed = codec.pack(raw, Codec.ZSTD_DICTIONARY, BUILT_IN)
        assert codec.unpack(Batch(1, BatchKind.RESULTS, *packed)) == raw
        total += len(raw)
        plain += len(codec.pack(raw)[2])
        with_dictionary += len(packed[2])
    assert with_dictionary < 0.85 * total
    assert with_dictionary < 0.85 * plain


def test_training_data_is_the_same_on_every_machine() -> None:
    assert list(training_batches(5)) == list(training_batches(5))
    assert list(training_batches(5)) != list(training_batches(5, seed=1))


def test_a_damaged_file_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "results-1.dictionary").write_bytes(b"other")
    monkeypatch.setattr(dictionary.resources, "files", lambda _package: tmp_path)
    built_in_dictionaries.cache_clear()
    with pytest.raises(IntegrityError, match="damaged"):
        built_in_dictionaries()
    built_in_dictionaries.cache_clear()
