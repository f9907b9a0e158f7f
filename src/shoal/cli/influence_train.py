"""``shoal influence train`` and ``evaluate``: the network that learns to choose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shoal.cli.influence_graph import graph_options, read_graph
from shoal.cli.output import Output, json_option
from shoal.core.errors import InputError

if TYPE_CHECKING:
    from shoal.influence.fastcover import FastCover
    from shoal.influence.graph import Graph

__all__ = ["evaluate", "train"]

_FORMS = click.Choice(["paper", "improved"])


@click.command()
@click.argument("sources", nargs=-1, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the model.")
@graph_options
@click.option("--hops", type=int, default=1, show_default=True)
@click.option("--form", type=_FORMS, default="paper", show_default=True, help="Of the network.")
@click.option("--seed", type=int, default=42, show_default=True)
@click.option(
    "--generated", type=int, default=0, help="Train on this many generated graphs as well."
)
@json_option
def train(
    out: Output,
    /,
    sources: tuple[Path, ...],
    *,
    hops: int,
    form: Any,
    seed: int,
    generated: int,
    **options: Any,
) -> None:
    """Train a network on the graphs in SOURCES and keep it in a folder.

    All SOURCES are read with the same options. Heavy-tailed graphs teach, evenly
    random ones do not. Ctrl-C keeps nothing new and leaves a model that is there.
    """
    from shoal.influence.fastcover import FastCover

    folder: Path = options.pop("out")
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise InputError(f"{folder} is there already", hint="choose another folder")
    graphs = [read_graph(source, dict(options))[0] for source in sources]
    graphs += _generated(generated, seed)
    if not graphs:
        raise InputError("nothing to train on", hint="name files, or --generated 4")
    model = FastCover(hops, form=form, seed=seed).fit(graphs)
    model.save(folder)
    said = {"folder": str(folder), "graphs": len(graphs), "hops": hops, "form": form, "seed": seed}
    out.value(said)
    out.line(f"{folder}: {form} form for {hops} hops, of {len(graphs)} graphs")


@click.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", type=click.Path(path_type=Path), help="Folder; the shipped one without.")
@graph_options
@click.option("--hops", type=int, default=1, show_default=True)
@click.option("--form", type=_FORMS, default="paper", show_default=True, help="Of the shipped one.")
@click.option("-k", "sizes", type=int, multiple=True, help="Repeatable; 10, 50, 200, 1000.")
@json_option
def evaluate(
    out: Output,
    /,
    sources: tuple[Path, ...],
    *,
    model: Path | None,
    hops: int,
    form: Any,
    sizes: tuple[int, ...],
    **options: Any,
) -> None:
    """Compare what a network picks with the exact greedy and with degree and vote.

    Prints shares of the exact greedy's coverage, above 1 where one beats it.
    """
    from shoal.influence.fastcover import FastCover

    if model is None:
        net: FastCover = FastCover.bundled(hops, form=form)
    else:
        net = FastCover.load(model)
    if net.hops != hops:
        raise InputError(f"the network is for {net.hops} hops", field="hops", value=hops)
    rows = []
    for source in sources:
        graph, _ = read_graph(source, dict(options))
        rows += _compared(source, graph, net, hops, sizes or (10, 50, 200, 1000))
    out.value(rows)
    heads = ["graph", "k", "greedy covers", "network", "degree", "vote"]
    names = ["graph", "k", "greedy", "network", "degree", "vote"]
    out.table(heads, [[row[name] for name in names] for row in rows])


def _compared(
    source: Path, graph: Graph, net: FastCover, hops: int, sizes: tuple[int, ...]
) -> list[dict[str, Any]]:
    from shoal.influence.cover import max_cover
    from shoal.influence.coverage import coverage

    fitting = sorted({min(size, graph.n) for size in sizes})
    most = fitting[-1]
    chosen = {
        "greedy": max_cover(graph, most, hops, method="exact").seeds,
        "degree": max_cover(graph, most, hops, method="degree").seeds,
        "vote": max_cover(graph, most, hops, method="vote").seeds,
    }
    rows = []
    for k in fitting:
        greedy = coverage(graph, chosen["greedy"][:k], hops)
        # Its passes look at k, so a shorter answer is no part of a longer one.
        picked = graph.labels(net.select(graph, k))
        row: dict[str, Any] = {"graph": source.name, "hops": hops, "k": k, "greedy": greedy}
        row["network"] = round(coverage(graph, picked, hops) / greedy, 4)
        for name in ("degree", "vote"):
            row[name] = round(coverage(graph, chosen[name][:k], hops) / greedy, 4)
        rows.append(row)
    return rows


def _generated(count: int, seed: int) -> list[Graph]:
    from shoal.data.graphgen import power_law
    from shoal.influence.graph import Graph

    made = []
    for number in range(count):
        arcs = power_law(4000 + 2000 * (number % 3), 6.0 + number % 4, seed=seed + number)
        made.append(Graph.from_edges(arcs.source, arcs.target, directed=True, n=arcs.n))
    return made
