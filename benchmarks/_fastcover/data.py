"""The graphs: real ones from a folder, generated ones always.

A folder of graphs holds, for each graph, a folder ``<name>/edges.txt.gz`` (or
``edges.txt``; one arc ``u v`` a line, u influences v) with an optional ``meta.json``
that says ``directed``; or it holds edge lists themselves (``<name>.txt``, ``.csv``,
``.tsv``, each also ``.gz``), which are taken as directed. In ``SHOAL_DATA`` the
folder is ``graph``.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from shoal.data import graphgen
from shoal.influence import Graph

#: The network learned from these: their ratios are shown, and are in no mean.
TRAINING = ("soc-wiki-elec", "soc-anybeat", "soc-advogato", "soc-sign-bitcoinotc")
#: Its checkpoints were chosen on these: shown, and in no mean.
VALIDATION = ("soc-gplus", "soc-epinions")
#: Nearly a training graph (the same votes, gathered twice): shown, and in no mean.
NEARLY_SEEN = ("wiki-Vote",)
_ENDINGS = (".txt", ".csv", ".tsv", ".edges")


@dataclass(frozen=True)
class GraphSet:
    """One graph and where it is from."""

    name: str
    graph: Graph
    role: str
    files: tuple[Path, ...] = ()
    notes: list[str] = field(default_factory=list)


def load(folder: Path | None, quick: bool, seed: int) -> list[GraphSet]:
    """Return the graphs of a run, small ones first."""
    given = folder is not None
    place = folder if given else _shoal_data()
    sets = [_read(path) for path in _found(place)] if place is not None else []
    if given and not sets:
        raise SystemExit(f"{folder}: no graph here (see the top of _fastcover/data.py)")
    if not sets:
        print("left out: real graphs (set SHOAL_DATA, or give --data)", flush=True)
    if quick and not given:
        wanted = ("soc-epinions", "ca-HepPh", "email-Enron", "soc-Slashdot0902")
        sets = [one for one in sets if one.name in wanted]
    if not given:
        sets += generated(quick, seed)
    for one in sets:
        report = one.graph.report
        print(
            f"{one.name}: {one.graph.n:,} nodes, {one.graph.m:,} arcs, {one.role}"
            f" ({report.self_loops} loops and {report.duplicates} doubles left out)",
            flush=True,
        )
    return sorted(sets, key=lambda one: one.graph.m)


def generated(quick: bool, seed: int) -> list[GraphSet]:
    """Return graphs made here, with seeds that no training used."""
    made = {
        "rmat16": graphgen.rmat(16, 600_000, seed=seed + 9001),
        "power-law": graphgen.power_law(20_000, 6.0, exponent=2.2, seed=seed + 9002),
    }
    if not quick:
        made |= {
            "rmat17": graphgen.rmat(17, 1_000_000, seed=seed + 9003),
            "barabasi-albert": graphgen.barabasi_albert(30_000, 4, seed=seed + 9004),
            "small-world": graphgen.watts_strogatz(20_000, 8, 0.1, seed=seed + 9005),
            "blocks": graphgen.stochastic_blocks([4000] * 5, 0.002, 0.0001, seed=seed + 9006),
        }
    return [
        GraphSet(
            name,
            Graph.from_edges(one.source, one.target, directed=one.directed, n=one.n),
            "generated",
        )
        for name, one in made.items()
    ]


def role_of(name: str) -> str:
    """Say what the learned methods knew of a graph."""
    if name in TRAINING:
        return "training"
    if name in VALIDATION:
        return "validation"
    return "nearly seen" if name in NEARLY_SEEN else "unseen"


def _shoal_data() -> Path | None:
    root = os.environ.get("SHOAL_DATA")
    path = Path(root) / "graph" if root else None
    return path if path is not None and path.is_dir() else None


def _found(folder: Path) -> list[Path]:
    paths = []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            paths += [
                path / name for name in ("edges.txt.gz", "edges.txt") if (path / name).is_file()
            ][:1]
        elif path.name.removesuffix(".gz").endswith(_ENDINGS):
            paths.append(path)
    return paths


def _read(path: Path) -> GraphSet:
    whole = path.name.startswith("edges.txt")
    name = path.parent.name if whole else path.name.removesuffix(".gz").rsplit(".", 1)[0]
    meta_path = path.parent / "meta.json"
    meta = json.loads(meta_path.read_text()) if whole and meta_path.is_file() else {}
    if "directed" not in meta:
        print(f"{name}: nothing says whether it is directed; taken as directed", flush=True)
    graph = Graph.read_edgelist(
        path, directed=bool(meta.get("directed", True)), direction="forward"
    )
    return GraphSet(name, graph, role_of(name), (path,))
