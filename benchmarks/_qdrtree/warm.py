"""Compiling the kernels ahead of the measurement, in processes of their own.

A kernel is compiled once and kept in a cache on disk; on a fresh checkout that
takes most of a minute on one core. :func:`start` uses the cores that the main
process leaves idle while it reads data and builds the peers.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

PARTS = ("packed", "quad_cluster", "visits", "netr")


def start(*parts: str) -> Callable[[], None]:
    """Begin to compile the kernels of ``parts``; the result waits until that is done."""
    children = [
        subprocess.Popen([sys.executable, Path(__file__), part], stdout=subprocess.DEVNULL)
        for part in parts
    ]

    def wait() -> None:
        for part, child in zip(parts, children, strict=True):
            if child.wait() != 0:
                print(f"compiling ahead failed for {part}; it is done where it is needed")

    return wait


def compile_layout(layout: str) -> None:
    """Build a small index and ask it every form of query."""
    from _qdrtree import ours, queries
    from _qdrtree.data import generated

    places = generated(300, 0)
    index = ours.build(places, layout)
    ask = queries.make_asks(places.columns, 1, 0)[0]
    for options in (ours.AND, ours.RANKED, {"match": "all", "prefer": {"a0": "min"}}):
        ours.asker(index, options)(ask)
        ours.query_asker(index, options)(ask)
        ours.in_kernel(index, options, [ask])


def compile_visits(layout: str) -> None:
    """Build a small index with check-ins and ask it."""
    from _netrtree import data, ours

    if layout == "netr" and ours.netr_missing():
        return
    places = data.generated(300, 50, 2000, 0)
    vectors = places.vectors
    assert vectors is not None
    index = ours.Ours(layout, places, vectors, None)
    for ask in data.make_asks(places, 4, 0):
        index.search(index.plan(ask, data.MIXES[0]))


def main() -> None:
    """Compile the part named by the only argument."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    part = sys.argv[1]
    if part in ("packed", "quad_cluster"):
        compile_layout(part)
    else:
        compile_visits("packed" if part == "visits" else part)


if __name__ == "__main__":
    main()
