"""``shoal influence``: who to pick so that the most are reached, with a proof, and why."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from shoal.cli.compiling import compiling_shown
from shoal.cli.influence_graph import (
    graph_options,
    name_of,
    names_of_file,
    node_numbers,
    read_graph,
)
from shoal.cli.influence_train import evaluate, train
from shoal.cli.output import Output, json_option
from shoal.core.errors import InputError

if TYPE_CHECKING:
    from shoal.influence.graph import Graph
    from shoal.influence.results import CoverResult

__all__ = ["influence"]

_F = TypeVar("_F", bound=Callable[..., Any])
_METHODS = ["auto", "exact", "lazy", "sketch", "grat", "degree", "vote"]


@click.group()
def influence() -> None:
    """Pick the few nodes of a graph that reach the most others within some hops."""


influence.add_command(train)
influence.add_command(evaluate)


def _solver_options(command: _F) -> _F:
    """Give a command the options that say what is asked of the solver."""
    for option in reversed(
        [
            click.option("-k", "k", type=int, help="How many nodes to pick, at most."),
            click.option(
                "--hops", type=int, default=1, show_default=True, help="How far they reach."
            ),
            click.option("--budget", type=float, help="What the picks may cost; needs --costs."),
            click.option("--target", type=float, help="Share to reach, such as 0.9."),
            click.option("--table", type=click.Path(path_type=Path), help="File about the nodes."),
            click.option("--weights", metavar="COLUMN", help="What each node counts."),
            click.option("--costs", metavar="COLUMN", help="What picking each node costs."),
            click.option(
                "--candidates", type=click.Path(path_type=Path), help="Pick of these; one a line."
            ),
            click.option("--exclude", type=click.Path(path_type=Path), help="Pick none of these."),
            click.option(
                "--method", type=click.Choice(_METHODS), default="auto", show_default=True
            ),
            click.option("--refine", type=click.Choice(["swap"]), help="Better the pick by swaps."),
            click.option(
                "--certificate",
                type=click.Choice(["online", "lagrangian"]),
                help="Prove how far from the best possible the pick can be.",
            ),
            click.option("--time-limit", type=float, metavar="SECONDS", help="Then what is there."),
            click.option("--seed", type=int, default=0, show_default=True),
        ]
    ):
        command = option(command)
    return command


@influence.command()
@click.argument("source", type=click.Path(path_type=Path))
@graph_options
@_solver_options
@click.option("--out", type=click.Path(path_type=Path), help="Write the picks: .csv or .json.")
@click.option("--show", default=20, show_default=True, help="Picks to print.")
@json_option
def solve(out: Output, /, source: Path, **options: Any) -> None:
    """Pick nodes of the graph in SOURCE.

    SOURCE is an edge list (text, packed or not, or Parquet), GraphML, a folder that
    shoal saved, or "sample": the package graph of Debian, which comes with shoal. For
    example: shoal influence solve sample -k 50 --hops 2 --certificate lagrangian

    "exact" is the exact greedy choice, not the optimum; a certificate says how far
    from the optimum it can be at most.
    """
    target, show = options.pop("out"), options.pop("show")
    if target is not None and target.suffix not in {".csv", ".json"}:
        raise InputError("must end in .csv or .json", field="out", value=str(target))
    graph, result, notes = _solved(source, options)
    if target is not None:
        _write(target, result)
    out.value({**result.to_json(), **_about(graph), "read": notes})
    _say(out, graph, result, notes, show)


@influence.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("nodes", nargs=-1)
@graph_options
@_solver_options
@json_option
def explain(out: Output, /, source: Path, nodes: tuple[str, ...], **options: Any) -> None:
    """Solve, and say whom the picked NODES reach, and whom nobody else reaches.

    Without NODES the first three picks are explained.
    """
    graph, result, _ = _solved(source, options)
    wanted = [name_of(graph, text) for text in nodes] or result.seeds[:3]
    found = [result.explain(node) for node in wanted]
    out.value([_plain(one) for one in found])
    for one in found:
        out.line(str(one))


@influence.command()
@click.argument("source", type=click.Path(path_type=Path))
@graph_options
@click.option("-k", "k", type=int, default=50, show_default=True)
@click.option("--hops", type=int, multiple=True, help="Repeatable; 1 and 2 without it.")
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice([*_METHODS, "improved"]),
    help="Repeatable; all of them without it.",
)
@click.option("--no-certificate", is_flag=True, help="Leave the bound out; it takes longest.")
@click.option("--seed", type=int, default=0, show_default=True)
@json_option
def bench(
    out: Output,
    /,
    source: Path,
    *,
    k: int,
    hops: tuple[int, ...],
    methods: tuple[str, ...],
    no_certificate: bool,
    seed: int,
    **options: Any,
) -> None:
    """Compare the methods on the graph in SOURCE.

    Prints what each covers, its ratio to the exact greedy and to a proven bound, and
    its processor time without reading the graph. "grat" is FastCover as published,
    "improved" is our form of it.
    """
    from shoal.cli.influence_bench import compare
    from shoal.core.progress import progress

    graph, notes = read_graph(source, options)
    with progress("comparing") as bar, compiling_shown(bar.say):
        rows = compare(
            graph,
            k,
            hops or (1, 2),
            methods or (*_METHODS, "improved"),
            certificate=not no_certificate,
            seed=seed,
            say=bar.say,
        )
    out.value({**_about(graph), "k": k, "read": notes, "methods": rows})
    out.line(_headline(graph))
    heads = ["hops", "method", "covered", "share", "to greedy", "certified", "cpu s", "note"]
    names = ["hops", "method", "covered", "share", "greedy_ratio", "certified", "cpu", "note"]
    out.table(heads, [[_round(row[name]) for name in names] for row in rows])


def _solved(source: Path, options: dict[str, Any]) -> tuple[Graph, CoverResult, list[str]]:
    from shoal.core.progress import progress

    with progress("reading the graph", 2) as bar, compiling_shown(bar.say):
        graph, notes = read_graph(source, options)
        columns = {name: options.pop(name) for name in ("weights", "costs")}
        numbers: dict[str, Any] = node_numbers(graph, source, options.pop("table"), columns)
        named: dict[str, Any] = {
            name: names_of_file(graph, options.pop(name)) for name in ("candidates", "exclude")
        }
        bar.advance()
        bar.say(f"choosing among {graph.n:,} nodes")
        from shoal.influence.cover import max_cover

        result = max_cover(
            graph, options.pop("k"), options.pop("hops"), **numbers, **named, **options
        )
        bar.advance()
    return graph, result, notes


def _about(graph: Graph) -> dict[str, Any]:
    return {"nodes": graph.n, "arcs": graph.m, "directed": graph.directed}


def _headline(graph: Graph) -> str:
    sense = "directed" if graph.directed else "both ways"
    return f"{graph.n:,} nodes, {graph.m:,} arcs ({sense})"


def _say(out: Output, graph: Graph, result: CoverResult, notes: list[str], show: int) -> None:
    share = result.covered / result.total if result.total else 0.0
    out.line(_headline(graph))
    out.line(
        f"{len(result.seeds):,} picks reach {result.covered:,.6g} of {result.total:,.6g} "
        f"({share:.2%}) within {result.hops} hop{'s' if result.hops > 1 else ''}, "
        f"by {result.method}, {result.timings['cpu']:.3g} s of processor"
    )
    if result.ratio is not None:
        proof = "proven" if result.bound_kind == "proven" else "by a sample, not proven"
        least = math.floor(result.ratio * 1e4) / 1e4  # never more than is proven
        out.line(f"at least {least:.2%} of the best possible ({proof})")
    curve = result.curve()
    out.table(
        ["pick", "node", "adds", "reached"],
        [
            [
                place,
                str(node),
                _round(float(result.gains[place - 1])),
                _percent(curve[place], result),
            ]
            for place, node in enumerate(result.seeds[:show], 1)
        ],
    )
    if len(result.seeds) > show:
        out.line(f"and {len(result.seeds) - show:,} more; --show or --out give all")
    if not out.as_json:
        for note in (*notes, *result.notes):
            click.echo(f"note: {note}", err=True)


def _percent(value: float, result: CoverResult) -> str:
    return f"{value / result.total:.2%}" if result.total else "-"


def _write(path: Path, result: CoverResult) -> None:
    import csv
    import io

    from shoal.core.files import write_text

    if path.suffix == ".json":
        write_text(path, json.dumps(result.to_json(), ensure_ascii=False, indent=1) + "\n")
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["pick", "node", "gain", "covered"])
    covered = 0.0
    for place, (node, gain) in enumerate(zip(result.seeds, result.gains, strict=True), 1):
        covered += float(gain)
        writer.writerow([place, node, f"{gain:.17g}", f"{covered:.17g}"])
    write_text(path, text.getvalue())


def _round(value: Any) -> Any:
    if isinstance(value, float):
        return int(value) if value.is_integer() else round(value, 4)
    return value


def _plain(found: Any) -> Any:
    import dataclasses

    if hasattr(found, "to_json"):
        return found.to_json()
    return dataclasses.asdict(found) if dataclasses.is_dataclass(found) else found  # type: ignore[arg-type]
