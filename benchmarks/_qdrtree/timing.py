"""CPU time of single queries: one cold, shuffled pass, the engines taking turns."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from _qdrtree.queries import Ask
from shoal.core.seeds import philox

#: More than the last level of the caches of the usual machine.
FLUSH_BYTES = 64 << 20
#: Most repeats of a query in one measurement of the kernel.
MOST_REPEATS = 512


@dataclass(frozen=True)
class Engine:
    """What is asked: ``call(ask)``; ``clock`` is a server's CPU clock, else this process's."""

    name: str
    call: Callable[[Ask], Any]
    clock: int | None = None
    at_most: int | None = None


@dataclass
class Timed:
    """One engine's answers and CPU times (microseconds), in the order of the queries.

    Times are NaN, answers None, where the engine was not asked.
    """

    us: np.ndarray
    answers: list[Any]

    def quantiles(self) -> dict[str, float]:
        us = self.us[~np.isnan(self.us)]
        return {
            "p50_us": round(float(np.percentile(us, 50)), 2),
            "p99_us": round(float(np.percentile(us, 99)), 2),
            "mean_us": round(float(us.mean()), 2),
            "queries": len(us),
        }


def one_cold_pass(
    engines: Sequence[Engine],
    asks: Sequence[Ask],
    warm_up: Sequence[Ask],
    *,
    rounds: int,
    seed: int,
) -> dict[str, Timed]:
    """Ask every engine every query once.

    The (shuffled) queries are cut into ``rounds`` pieces; the engines answer one
    piece after the other in changing order, and before each turn the caches are
    flushed. Other queries warm each engine up first: compilation, planning,
    pages of files. The cost of reading a clock is taken off.
    """
    rng = philox(seed, 31)
    buffer = np.zeros(FLUSH_BYTES, dtype=np.uint8)
    found = {e.name: Timed(np.full(len(asks), np.nan), [None] * len(asks)) for e in engines}
    for engine in engines:
        for ask in warm_up:
            engine.call(ask)
    cost = {engine.name: clock_cost(clock_of(engine)) for engine in engines}
    gc.collect()
    gc.disable()
    try:
        for piece in np.array_split(np.arange(len(asks)), rounds):
            for number in rng.permutation(len(engines)).tolist():
                engine = engines[number]
                clock, timed = clock_of(engine), found[engine.name]
                buffer += 1
                for i in piece.tolist():
                    if engine.at_most is not None and i >= engine.at_most:
                        continue
                    ask = asks[i]
                    start = clock()
                    answer = engine.call(ask)
                    spent = clock() - start
                    timed.us[i] = max(0.0, spent / 1e3 - cost[engine.name])
                    timed.answers[i] = answer
    finally:
        gc.enable()
    return found


def clock_of(engine: Engine) -> Callable[[], int]:
    """Return the clock that counts an engine's CPU time, nanoseconds."""
    clock = engine.clock
    if clock is None:
        return time.process_time_ns
    return lambda: time.clock_gettime_ns(clock)


def clock_cost(clock: Callable[[], int]) -> float:
    """Return what two readings of a clock differ by when nothing lies between, microseconds."""
    differences = []
    for _ in range(999):
        start = clock()
        differences.append(clock() - start)
    return statistics.median(differences) / 1e3


def kernel_us(call: Callable[[int], Any], least_ns: int = 1_000_000) -> float:
    """Return the CPU time of one answer of ``call(repeats)``, microseconds.

    ``repeats`` grows until the call takes a millisecond, so that what surrounds the
    kernel (some 60 microseconds) hardly counts.
    """
    repeats = 8
    while True:
        start = time.thread_time_ns()
        call(repeats)
        spent = time.thread_time_ns() - start
        if spent >= least_ns or repeats >= MOST_REPEATS:
            return spent / repeats / 1e3
        repeats *= 4
