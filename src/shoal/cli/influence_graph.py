"""What the commands of ``shoal influence`` share: the graph of a file, and numbers of its nodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from shoal.core.errors import InputError, NotFoundError

if TYPE_CHECKING:
    from shoal.influence.graph import Graph

__all__ = ["SAMPLE", "graph_options", "name_of", "names_of_file", "node_numbers", "read_graph"]

_F = TypeVar("_F", bound=Callable[..., Any])

#: Stands for the shipped graph, unless there is such a file.
SAMPLE = "sample"
_HARD = ("depends", "pre-depends")


def graph_options(command: _F) -> _F:
    """Give a command the options that say how a file's arcs are meant."""
    for option in reversed(
        [
            click.option(
                "--directed/--undirected",
                default=None,
                help="Whether arcs have a direction. Asked for, never guessed.",
            ),
            click.option(
                "--direction",
                type=click.Choice(["forward", "backward"]),
                help="Of a line 'u v': forward, u influences v; backward, v influences u "
                "(u depends on v, follows v, cites v).",
            ),
            click.option("--from-column", metavar="COLUMN", help="By name, or number from 1."),
            click.option("--to-column", metavar="COLUMN", help="By name, or number from 1."),
            click.option("--kinds", metavar="COLUMN", help="Column of the kinds of arcs."),
            click.option("--only", multiple=True, metavar="KIND", help="Keep these; repeatable."),
            click.option("--separator", help="Between columns; seen from the file otherwise."),
            click.option("--text-ids", is_flag=True, help="Ids are names, though they are digits."),
            click.option("--drop-bad-rows", is_flag=True, help="Leave out and count bad lines."),
        ]
    ):
        command = option(command)
    return command


def read_graph(source: Path, options: dict[str, Any]) -> tuple[Graph, list[str]]:
    """Return the graph of a file, of a saved folder or of the sample, and what to say of it.

    Takes its own options out of ``options``.
    """
    from shoal.influence.graph import Graph

    asked = {name: options.pop(name) for name in _OPTIONS}
    if str(source) == SAMPLE and not source.exists():
        from shoal.data.debian import sample

        table = sample().table(asked["only"] or _HARD)
        return Graph.from_table(table, directed=asked["directed"], direction=asked["direction"]), []
    if source.is_dir():
        return Graph.load(source), []
    from shoal.data.graphs import read_edge_table

    if not source.exists():
        raise NotFoundError(
            f"{source} is not there", hint=f"'{SAMPLE}' is Debian's package graph, which is shipped"
        )
    table = read_edge_table(
        source,
        source=_column(asked["from_column"]),
        target=_column(asked["to_column"]),
        kinds=_column(asked["kinds"]),
        separator=asked["separator"],
        ids="text" if asked["text_ids"] else "auto",
        on_bad_row="drop" if asked["drop_bad_rows"] else "error",
    )
    notes = [f"{table.dropped} lines could not be read and were left out"] if table.dropped else []
    notes += table.notes
    if asked["only"]:
        table = table.of_kinds(asked["only"])
    directed = table.directed if asked["directed"] is None else asked["directed"]
    if directed is None:
        raise InputError(
            "say whether the arcs have a direction",
            field="directed",
            hint="--undirected, or --directed with --direction forward or backward",
        )
    if directed and asked["direction"] is None:
        raise InputError(
            "say which end of a line influences the other",
            field="direction",
            hint="--direction forward: in a line 'u v' u influences v; backward: v influences u",
        )
    graph = Graph.from_table(table, directed=directed, direction=asked["direction"])
    return graph, notes + _cleaned(graph)


_OPTIONS = (
    "directed",
    "direction",
    "from_column",
    "to_column",
    "kinds",
    "only",
    "separator",
    "text_ids",
    "drop_bad_rows",
)


def _column(text: str | None) -> int | str | None:
    return int(text) if text is not None and text.isdecimal() else text


def _cleaned(graph: Graph) -> list[str]:
    report = graph.report
    named = (
        ("arcs from a node to itself", report.self_loops),
        ("repeated arcs", report.duplicates),
    )
    return [f"{count:,} {what} left out" for what, count in named if count]


def names_of_file(graph: Graph, path: Path | None) -> list[Any] | None:
    """Return the nodes that a file names, one a line."""
    if path is None:
        return None
    from shoal.data.sourcefile import read_text

    lines = read_text(path).splitlines()
    rows = [(row, line.strip()) for row, line in enumerate(lines, 1)]
    return [_name(graph, text, path, row) for row, text in rows if text and text[0] != "#"]


def name_of(graph: Graph, text: str) -> Any:
    """Return what a word on the command line names."""
    return _name(graph, text, None, None)


def _name(graph: Graph, text: str, path: Path | None, row: int | None) -> Any:
    if _has_texts(graph):
        return text
    try:
        return int(text)
    except ValueError:
        raise InputError(
            "nodes of this graph are integers",
            value=text,
            row=row,
            source=None if path is None else path.name,
        ) from None


def _has_texts(graph: Graph) -> bool:
    return graph.names is not None and graph.n > 0 and isinstance(graph.labels([0])[0], str)


def node_numbers(
    graph: Graph, source: Path, table: Path | None, columns: dict[str, str | None]
) -> dict[str, dict[Any, float] | None]:
    """Return columns of a table of nodes as numbers by name.

    Parameters
    ----------
    graph : Graph
    source : path
        What the graph was read from; the sample brings its own table.
    table : path, optional
        CSV, TSV or Parquet; its column ``name``, ``node`` or ``id``, or else its first
        one, names the nodes.
    columns : dict
        Which column is wanted for what; None for nothing.
    """
    wanted = {role: column for role, column in columns.items() if column is not None}
    if not wanted:
        return dict.fromkeys(columns)
    frame = _sample_table() if table is None and str(source) == SAMPLE else _table(table)
    keys = [name for name in ("name", "node", "id") if name in frame.columns]
    key = frame[keys[0] if keys else frame.columns[0]]
    where = table.name if table is not None else SAMPLE
    names = [_name(graph, str(text), Path(where), row) for row, text in enumerate(key, 1)]
    found: dict[str, dict[Any, float] | None] = dict.fromkeys(columns)
    in_graph = set(graph.labels(range(graph.n)))
    for role, column in wanted.items():
        if column not in frame.columns:
            listed = ", ".join(frame.columns)
            raise InputError(f"no column {column!r}: there are {listed}", field=role, source=where)
        numbers = _numbers(frame[column], role, where)
        pairs = zip(names, numbers, strict=True)
        found[role] = {name: number for name, number in pairs if name in in_graph}
    return found


def _numbers(column: Any, role: str, where: str) -> list[float]:
    made = []
    for row, value in enumerate(column, 1):
        try:
            made.append(float(value))
        except (TypeError, ValueError):
            raise InputError(
                "is no number", field=role, value=value, row=row, source=where
            ) from None
    return made


def _table(path: Path | None) -> Any:
    import io

    import polars as pl

    from shoal.data.sourcefile import bare_suffix, read_bytes

    if path is None:
        raise InputError("say which file has the columns", field="table", hint="--table FILE")
    content = io.BytesIO(read_bytes(path))
    try:
        if bare_suffix(path) in {".parquet", ".pq"}:
            return pl.read_parquet(content)
        separator = "\t" if bare_suffix(path) in {".tsv", ".txt"} else ","
        return pl.read_csv(content, separator=separator, infer_schema_length=10_000)
    except (pl.exceptions.PolarsError, OSError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"not a readable table: {first}", source=path.name) from None


def _sample_table() -> Any:
    import polars as pl

    from shoal.data.debian import sample

    packages = sample()
    # Packages that install nothing have size 0, which is no cost.
    size = packages.installed_kib.clip(1)
    return pl.DataFrame({"name": packages.names, "installed_kib": size})
