"""CPU seconds of calls, the contenders taking turns."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def in_turns(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, tuple[float, Any]]:
    """Return (median CPU seconds, last answer) of each call; each was called once before."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    answers = {name: call() for name, call in calls.items()}
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            for name, call in calls.items():
                start = time.process_time()
                answers[name] = call()
                spent[name].append(time.process_time() - start)
    finally:
        gc.enable()
    return {name: (statistics.median(spent[name]), answers[name]) for name in calls}


def once(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return (CPU seconds, answer) of one call."""
    gc.collect()
    start = time.process_time()
    answer = call()
    return time.process_time() - start, answer
