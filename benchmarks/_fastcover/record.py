"""The evidence of a full run: claims of the sheet beside what was measured."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

from _fastcover.data import GraphSet
from shoal.core.evidence import (
    Claim,
    EvidenceRecord,
    Peer,
    data_source,
    library_versions,
    this_machine,
    today,
    write_evidence,
)

_ORIGIN = (
    "pqros/fastCover, JuliaGraphs/SNAPDatasets.jl and networkit/networkit, which re-ship graphs of "
    "SNAP (Leskovec and Krevl 2014) and the Network Repository (Rossi and Ahmed 2015)"
)


def write(
    found: dict[str, Any],
    figures: dict[str, Any],
    sets: list[GraphSet],
    run: tuple[int, float],
    path: Path,
) -> None:
    """Write ``evidence/fastcover.json``; ``run`` is (seed, load before it)."""
    seed, load = run
    record = EvidenceRecord(
        method="fastcover",
        command=f"python benchmarks/fastcover.py --seed {seed}",
        date=today(),
        seed=seed,
        machine=this_machine(),
        versions=library_versions("shoal", "numpy", "numba", "scipy", "torch"),
        claims=_claims(found, figures),
        figures={key: float(value) for key, value in figures.items()},
        details=found,
        data=[
            data_source(one.name, *one.files, origin=_ORIGIN, licence="MIT repositories; cite SNAP")
            for one in sets
            if one.files
        ],
        peers=[
            Peer(name=name, version=importlib.metadata.version(name))
            for name in ("networkit", "pynetim")
            if _installed(name)
        ],
        load=load,
    )
    write_evidence(path, record)
    print(f"wrote evidence/{path.name}")


def _claims(found: dict[str, Any], figures: dict[str, Any]) -> list[Claim]:
    quality = found["quality"]
    big = found["big"]["edges.txt"]
    nanoseconds = ", ".join(
        f"{row['ns_per_arc']} ns at {row['arcs']:,} arcs" for row in found["forward"]["rows"]
    )
    return [
        Claim(
            id="fastcover.quality",
            statement="quality better than or comparable to concurrent algorithms",
            status="direction",
            ours=f"one pass of the published form covers {quality['onepass_paper_mean']:.3f} of "
            "what exact greedy covers (mean over unseen graphs, hops, k and three training "
            f"seeds; least {quality['onepass_paper_min']:.3f}); degree "
            f"{quality['degree_mean']:.3f}, vote {quality['vote_mean']:.3f}; "
            f"{len(quality['losses'])} losses to a heuristic, all listed",
            note="The paper's tables are not public. Never above greedy; above the heuristics in "
            "the mean.",
        ),
        Claim(
            id="fastcover.speed",
            statement="speed-up of over 1000 times",
            published="more than 1000 times",
            status="differs",
            ours="our exact solver against the published baseline's style (closure in Python, "
            f"heap): {figures['closure_ratio']:.0f} times at the least; at one hop exact greedy "
            "is cheaper than the network's own pass",
            note="The published figure is against a closure built in Python.",
        ),
        Claim(
            id="fastcover.linear",
            statement="time quasi-linear in the size of the graph",
            status="direction",
            ours=nanoseconds,
            note="Fused forward pass; the rest is the memory's.",
        ),
        Claim(
            id="fastcover.one-pass",
            statement="the whole seed set from one forward pass",
            status="reproduced",
            ours="nested best k of one ranking",
            note="By construction.",
        ),
        Claim(
            id="fastcover.improved",
            statement="one pass, trained better and aware of overlap, reaches 0.95 of greedy",
            status="direction" if quality["onepass_mean"] >= 0.95 else "differs",
            ours=f"mean {quality['onepass_mean']:.3f}, least {quality['onepass_min']:.3f}",
            note="Our claim, not the paper's.",
        ),
        Claim(
            id="fastcover.optimum",
            statement="greedy is within a few per cent of the optimum",
            status="direction",
            ours=f"proven at one hop: at least {quality['certified_min']:.3f} of the optimum with "
            f"exchanges, median {quality['certified_median']:.4f}",
            note="Our claim: a Lagrangian bound, so the true gap is smaller.",
        ),
        Claim(
            id="fastcover.networkit",
            statement="exact greedy at one hop, 30 times less CPU than NetworKit's GroupDegree",
            status="direction" if figures.get("networkit_ratio", 0) >= 30 else "differs",
            ours=_figure(figures, "networkit_ratio", "times at the least")
            + _figure(figures, "networkit_coverage", "of its coverage at the least"),
            note="Our claim, not the paper's.",
        ),
        Claim(
            id="fastcover.celf",
            statement="two and three hops, ten times less CPU than CELF at equal coverage",
            status="direction" if figures["celf_ratio"] >= 10 else "differs",
            ours=_figure(figures, "celf_ratio", "times at the least")
            + _figure(figures, "celf_coverage", "of its coverage at the least"),
            note="Our claim. CELF is ours too, compiled, with the same search.",
        ),
        Claim(
            id="fastcover.cascade",
            statement="weighted cascade, ten times less CPU than pynetim at its spread or more",
            status="direction" if figures.get("ic_ratio", 0) >= 10 else "differs",
            ours=_figure(figures, "ic_ratio", "times at the least"),
            note="Our claim. Each peer is answered by the loosest of our settings that reaches its "
            "spread, by one estimator for all.",
        ),
        Claim(
            id="fastcover.big",
            statement="ten million arcs: load and a thousand seeds at two hops within 30 s",
            status="direction" if big["wall_s"] < 30 else "differs",
            ours=f"{big['wall_s']} s wall from an edge list, {big['peak_gib']} GiB",
            note="Two cores. R-MAT, scale 20.",
        ),
    ]


def _figure(figures: dict[str, Any], name: str, unit: str) -> str:
    return f"{figures[name]:.4g} {unit}. " if name in figures else "peer not installed. "


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
