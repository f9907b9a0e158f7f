"""``shoal influence train`` and ``evaluate``: the network that learns to choose."""

from __future__ import annotations

import warnings
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
@click.option(
    "--validation",
    multiple=True,
    type=click.Path(path_type=Path),
    help="The best epoch is chosen on these; repeatable.",
)
@click.option("--epochs", type=int, help="At most; that of the form without it.")
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
    validation: tuple[Path, ...],
    epochs: int | None,
    **options: Any,
) -> None:
    """Train a network on the graphs in SOURCES and keep it in a folder.

    All files are read with the same options. Heavy-tailed graphs teach, evenly
    random ones do not. After Ctrl-C the same command goes on where it was: what was
    learned stands in OUT.checkpoint until the model is written.
    """
    from shoal.influence.fastcover import FastCover

    folder: Path = options.pop("out")
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise InputError(f"{folder} is there already", hint="choose another folder")
    graphs = [read_graph(source, dict(options))[0] for source in sources]
    graphs += _generated(generated, seed)
    if not graphs:
        raise InputError("nothing to train on", hint="name files, or --generated 4")
    watched = [read_graph(source, dict(options))[0] for source in validation]
    checkpoint = folder.with_name(f"{folder.name}.checkpoint")
    model = FastCover(hops, form=form, seed=seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        model.fit(graphs, validation=watched or None, epochs=epochs, checkpoint=checkpoint)
    notes = [str(one.message) for one in caught if one.category is RuntimeWarning]
    model.save(folder)
    checkpoint.unlink(missing_ok=True)
    said = {"folder": str(folder), "graphs": len(graphs), "hops": hops, "form": form, "seed": seed}
    out.value({**said, "training": model.training, "notes": notes})
    out.line(f"{folder}: {form} form for {hops} hops, of {len(graphs)} graphs")
    out.line(f"epoch {model.training['best_epoch']} of {model.training['epochs']} was kept")
    if not out.as_json:
        for note in notes:
            click.echo(f"note: {note}", err=True)


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
    from shoal.influence.counting import coverage
    from shoal.influence.cover import max_cover

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
