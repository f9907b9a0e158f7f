"""Make the weights that come with the package: both forms of FastCover, one to three hops.

    python benchmarks/train_fastcover.py --data FOLDER [--form improved] [--hops 2] [--seed 43]

FOLDER holds <name>/edges.txt.gz and <name>/meta.json (SHOAL_DATA/graph without it). The
paper form learns from the paper's four training graphs and is judged on two of its
validation graphs. The improved form learns from three generated graphs too, and is
judged on three others; at three hops it starts from the weights for two, which rank
better there than what imitation finds by itself. No other graph is touched. The same
seed gives the same weights on the same machine. After Ctrl-C the same command goes on
from the last epoch.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shoal.data.graphgen import power_law, rmat
from shoal.influence import FastCover, Graph
from shoal.influence.fastcover import BUNDLED_HOPS, FORMS

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "src" / "shoal" / "influence" / "weights"
TRAINING = ("soc-wiki-elec", "soc-anybeat", "soc-advogato", "soc-sign-bitcoinotc")
VALIDATION = ("soc-gplus", "soc-epinions")


def read(folder: Path, name: str) -> tuple[Graph, str]:
    """Return a graph and the checksum of its file."""
    raw = (folder / name / "edges.txt.gz").read_bytes()
    meta = json.loads((folder / name / "meta.json").read_text())
    pairs = np.loadtxt(gzip.decompress(raw).splitlines(), dtype=np.int64, usecols=(0, 1))
    graph = Graph.from_edges(pairs[:, 0], pairs[:, 1], n=meta["nodes"], directed=meta["directed"])
    return graph, hashlib.sha256(raw).hexdigest()


def generated(number: int) -> Graph:
    """Return one of three kinds of heavy-tailed graphs."""
    kind, seed = number % 3, 100 + number
    if kind == 0:
        made = power_law(6000, 8.0, exponent=2.3, directed=True, seed=seed)
    elif kind == 1:
        made = power_law(6000, 6.0, exponent=2.6, directed=False, seed=seed)
    else:
        made = rmat(13, 24_000, seed=seed)
    return Graph.from_edges(made.source, made.target, n=made.n, directed=made.directed)


def main() -> None:
    """Train what was asked for and write it where the package finds it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = Path(os.environ.get("SHOAL_DATA", "shared/data")) / "graph"
    parser.add_argument("--data", type=Path, default=data)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--form", choices=FORMS, action="append")
    parser.add_argument("--hops", type=int, choices=BUNDLED_HOPS, action="append")
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--epochs", type=int)
    chosen = parser.parse_args()
    torch.set_num_threads(1)  # sums in one order, whatever the machine
    graphs = {name: read(chosen.data, name) for name in TRAINING + VALIDATION}
    extra = [generated(number) for number in range(6)]
    for form in chosen.form or FORMS:
        for hops in chosen.hops or BUNDLED_HOPS:
            for seed in chosen.seed or FastCover.bundled_seeds(form):
                train(graphs, extra, chosen, (form, hops, seed))


def train(
    graphs: dict[str, tuple[Graph, str]],
    extra: list[Graph],
    chosen: argparse.Namespace,
    which: tuple[str, int, int],
) -> None:
    """Train one model and save it with what it came from."""
    form, hops, seed = which
    learn = [graphs[name][0] for name in TRAINING]
    watch = [graphs[name][0] for name in VALIDATION]
    if form == "improved":
        learn, watch = learn + extra[:3], watch + extra[3:]
    before = None
    if form == "improved" and hops == 3:
        before = FastCover.load(chosen.out / f"{form}-2-seed{seed}")
    target = chosen.out / f"{form}-{hops}-seed{seed}"
    checkpoint = chosen.out / f"{form}-{hops}-seed{seed}.checkpoint"
    chosen.out.mkdir(parents=True, exist_ok=True)
    start = time.process_time()
    print(f"{form}, {hops} hops, seed {seed} ...", flush=True)
    try:
        model = FastCover(hops, form=form, seed=seed).fit(
            learn,
            validation=watch,
            epochs=chosen.epochs,
            device=chosen.device,
            checkpoint=checkpoint,
            start=before,
        )
    except KeyboardInterrupt:
        raise SystemExit(f"interrupted; the same command goes on from {checkpoint}") from None
    if before is not None:
        model.training["start"] = "the model for 2 hops"
    model.training |= sources(graphs, form, which)
    model.save(target)
    checkpoint.unlink()
    t = model.training
    print(
        f"  {time.process_time() - start:.1f} s cpu, {t['epochs']} epochs, best {t['best_epoch']}, "
        f"ratio {max([t['start_ratio'], *t['ratios']]):.4f} (start {t['start_ratio']:.4f}), "
        f"correlation with degree {t['degree_correlation']:.3f}",
        flush=True,
    )


def sources(
    graphs: dict[str, tuple[Graph, str]], form: str, which: tuple[str, int, int]
) -> dict[str, Any]:
    """Return what the manifest says of the data and the command."""
    return {
        "graphs": {name: graphs[name][1] for name in TRAINING},
        "validation": {name: graphs[name][1] for name in VALIDATION},
        "generated": "power_law, power_law, rmat; seeds 100 to 105" if form == "improved" else "",
        "command": "python benchmarks/train_fastcover.py "
        f"--form {which[0]} --hops {which[1]} --seed {which[2]}",
        "torch": str(torch.__version__),
    }


if __name__ == "__main__":
    main()
