"""The dictionary that ships with shoal: small result batches, compressed by a quarter.

A batch of class *now* often holds one result, too short for zstd to find
anything in it. Both ends know dictionary 1, trained on generated batches
(:func:`training_batches`), so nothing has to be fetched; a fleet may train its
own on its traffic (:func:`shoal.wire.compression.train_dictionary`) and give it
to both ends under another id.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Final

import msgspec

from shoal.core.errors import IntegrityError
from shoal.wire.results import (
    FeatureRecord,
    InstallReport,
    InstallState,
    ResultBatch,
    ResultRecord,
    RunSummary,
)

__all__ = ["BUILT_IN", "built_in_dictionaries", "training_batches"]

#: Id of the dictionary that ships with shoal. Its bytes never change; better ones get new ids.
BUILT_IN: Final = 1

_FILE: Final = "results-1.dictionary"
_SHA256: Final = "55d86292737c4552e17efb6cf9b71cf950f769655b75e9eca4f4daef8e80b45a"


@cache
def built_in_dictionaries() -> dict[int, bytes]:
    """Return the shipped dictionaries by id, for :class:`shoal.wire.compression.BodyCodec`.

    Raises
    ------
    IntegrityError
        The installed file is not the one that was shipped.
    """
    content = resources.files("shoal.wire").joinpath(_FILE).read_bytes()
    if hashlib.sha256(content).hexdigest() != _SHA256:
        raise IntegrityError(f"{_FILE} is damaged", hint="install shoal again")
    return {BUILT_IN: content}


def training_batches(count: int, seed: int = 0) -> Iterator[bytes]:
    """Yield encoded ``ResultBatch`` bodies of a made-up fleet, one a number.

    The mix: mostly one to three results with their runs, sometimes twenty, some
    with feature vectors or an install report; two shipped tasks and forty others.
    """
    for number in range(count):
        made = random.Random(f"{seed}/{number}")  # noqa: S311 - training data, not a secret
        task, names = made.choice(
            [
                ("departure_delay", ["late"]),
                ("ipv", ["vector"]),
                (f"task_{made.randrange(40)}", ["score", "out"]),
            ]
        )
        now_us = 1_700_000_000_000_000 + made.getrandbits(48)
        version = made.randint(1, 9)
        batch = ResultBatch(1, made.randbytes(16), made.randint(1, 5000))
        results, features, runs, installs = (
            batch.results,
            batch.features,
            batch.runs,
            batch.installs,
        )
        for place in range(made.choice([1, 1, 1, 2, 3, 8, 20])):
            value: object = made.random()
            if made.random() < 0.5:
                value = {"probability": made.random(), "late": made.random() < 0.5}
            model = made.choice([None, "v1"])
            results.append(
                ResultRecord(
                    made.randbytes(16),
                    task,
                    version,
                    made.choice(names),
                    now_us + place,
                    value,
                    model,
                )
            )
            runs.append(
                RunSummary(
                    made.randbytes(16), task, version, 0,
                    made.choice(["process", "process", "inline"]),
                    made.randint(50, 900), made.randint(100, 3000), made.randint(20_000, 60_000),
                    now_us + place, made.randint(0, 9999),
                )
            )  # fmt: skip
        if made.random() < 0.3:
            vector = struct.pack("<32f", *(made.random() for _ in range(32)))
            key = str(made.getrandbits(30))
            features.append(FeatureRecord(task, version, "ipv", key, now_us, 0, "f32[32]", vector))
        if made.random() < 0.1:
            state = made.choice([InstallState.TRIAL, InstallState.GOOD])
            installs.append(InstallReport(task, version, state, 0, now_us))
        yield msgspec.msgpack.encode(batch)
