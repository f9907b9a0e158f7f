"""A process that writes to an index folder and is killed: once for each line it is given.

Reads ``<folder> <point> <n> <durability>`` lines, forks for each, and lets the child
run the same writes until the n-th passage of the point kills it. The child appends
a line to ``<folder>.log`` when it begins a write and when it was acknowledged. Prints
``<status>`` of each child. Forking spares each of them the start of Python.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from live_bench import SPECS, build_plain, load_plain, make_places

from shoal.core import crashpoints
from shoal.spatial.segments import SegmentStore

STEPS = 26


class Counter:
    """A companion that counts what it was told, by kind."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def state(self):  # type: ignore[no-untyped-def]
        text = "\n".join(self.told).encode()
        return {"name": "counter"}, {"told": np.frombuffer(text, dtype=np.uint8)}

    def restore(self, config, arrays):  # type: ignore[no-untyped-def]
        text = bytes(arrays["told"]).decode() if "told" in arrays else ""
        self.told = text.split("\n") if text else []

    def apply(self, kind: str, payload: bytes) -> None:
        self.told.append(f"{kind}:{payload.decode()}")


def step(store: SegmentStore, number: int) -> None:
    """One write; the model in the test applies the same."""
    if number % 13 == 12:
        store.compact()
    elif number % 7 == 6:
        store.flush()
    elif number % 5 == 4:
        store.delete(np.arange(number % 4, 40, 4), note=b"%d" % number)
    elif number % 6 == 5:
        store.record("checkin", b"%d" % number)
    elif number % 8 == 7:
        store.upsert(make_places(range(5, 25), seed=number))  # more than the memtable holds
    else:
        store.upsert(make_places(range(number % 9, 30, 5), seed=number), note=b"%d" % number)


def work(folder: Path, durability: str) -> None:
    log = os.open(f"{folder}.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    store = SegmentStore.open(
        folder,
        build_plain,
        load_plain,
        specs=SPECS,
        companion=Counter(),
        durability=durability,  # type: ignore[arg-type]
        memtable_rows=12,
        fan_in=2,
    )
    for number in range(STEPS):
        os.write(log, b"begin %d\n" % number)
        step(store, number)
        os.write(log, b"done %d\n" % number)
    store.wait()
    store.close()


def main() -> None:
    for line in sys.stdin:
        folder, point, n, durability = line.split()
        child = os.fork()
        if child == 0:
            try:
                crashpoints._armed = (point, int(n))
                crashpoints._passed.clear()
                crashpoints.crashpoint = crashpoints._point
                work(Path(folder), durability)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
