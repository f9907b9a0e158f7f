"""``shoal spatial``: ask an index of places and measure it, beside building and serving one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from shoal.cli.compiling import compiling_shown
from shoal.cli.output import Output, json_option
from shoal.cli.spatial_build import build
from shoal.cli.spatial_serve import serve
from shoal.core.errors import InputError, ShoalError

if TYPE_CHECKING:
    from shoal.spatial import SpatialKeywordIndex, TopK

__all__ = ["spatial"]

_F = TypeVar("_F", bound=Callable[..., Any])


@click.group()
def spatial() -> None:
    """Search places by where they are, what they are and what they are like."""


spatial.add_command(build)
spatial.add_command(serve)


def _query_options(command: _F) -> _F:
    """Give a command the options that say what kind of answers are wanted."""
    for option in reversed(
        [
            click.option("--match", type=click.Choice(["all", "any", "ranked"]), default="all"),
            click.option("--k", default=10, show_default=True, help="Answers wanted."),
            click.option("--max-km", type=float, help="Farther places are no answers."),
            click.option("--within", help="WEST,SOUTH,EAST,NORTH, WKT, GeoJSON, or a file of it."),
            click.option("--prefer", multiple=True, metavar="NAME:min|max[*SHARE]"),
            click.option("--where", multiple=True, metavar="'NAME<=NUMBER'"),
            click.option("--weights", multiple=True, metavar="PART=NUMBER,..."),
            click.option("--decay", metavar="FORM:KM", help="linear, saturation, exp or gauss."),
            click.option("--without", multiple=True, help="Words that no answer may have."),
            click.option("--text", type=click.Choice(["coverage", "bm25"]), default="coverage"),
            click.option("--when", help="A slot, or a time such as 2026-05-01T19:30+03:00."),
            click.option("--user", help="Whose relations count."),
            click.option("--social", type=click.Choice(["embedding", "friends"])),
        ]
    ):
        command = option(command)
    return command


def _asked(options: dict[str, Any]) -> Any:
    """Return the query of the options, reading an area from a file where one is named."""
    from shoal.spatial.textform import parse_query

    area = options.get("within")
    if area and _is_file(area):
        options["within"] = Path(area).read_text(encoding="utf-8")
    options["at"] = options.pop("when", None)
    for name in ("keywords", "without"):
        if name in options:
            options[name] = " ".join(options[name])
    return parse_query(options)


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a name: the area itself
        return False


@spatial.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--at", "point", metavar="LON,LAT", help="Where; longitude first.")
@click.option("--keywords", multiple=True, help="What; several words or several times.")
@_query_options
@click.option("--explain", is_flag=True, help="Show the parts of each score.")
@click.option("--why", metavar="ID", help="Say why a place is, or is not, among the answers.")
@json_option
def query(out: Output, /, folder: Path, *, why: str | None, **options: Any) -> None:
    """Ask the index in FOLDER.

    For example: shoal spatial query places --at 24.94,60.17 --keywords pizza
    --prefer price:min --where "rating>=3" --weights space=.5,attributes=.5
    """
    from shoal.spatial import SpatialKeywordIndex

    asked = _asked(options)
    with SpatialKeywordIndex.load(folder) as index:
        if why is not None:
            _explain(out, index, asked, why)
            return
        started = time.perf_counter()
        with compiling_shown():
            top = index.ask(asked)
        seconds = time.perf_counter() - started
    out.value({**_answers(top), "seconds": round(seconds, 6)})
    _show(out, top)


def _explain(out: Output, index: SpatialKeywordIndex, asked: Any, why: str) -> None:
    wanted: int | str = why
    if index.ids.kind != "text" and why.lstrip("-").isdecimal():
        wanted = int(why)
    with compiling_shown():
        found = index.explain(asked, wanted)
    out.value(found.as_dict())
    place = f"number {found.rank}" if found.rank is not None else "not among the answers"
    out.line(f"{found.id}: {place}, score {found.score:.4f}, {found.km:.3f} km")
    for reason in found.reasons:
        out.line(f"  {reason}")
    out.table(
        ["part", "value", "weight"],
        [[part, value, found.weights.get(part, 0.0)] for part, value in found.parts.items()],
    )


def _answers(top: TopK) -> dict[str, Any]:
    return {
        "answers": [
            {
                "id": place.id,
                "label": place.label,
                "score": place.score,
                "km": place.km,
                **({} if place.parts is None else {"parts": place.parts}),
            }
            for place in top
        ],
        "unknown_keywords": list(top.unknown_keywords),
        "stats": {
            "nodes": top.stats.nodes,
            "scored": top.stats.scored,
            "looked_at": top.stats.looked_at,
            **top.stats.more,
        },
    }


def _show(out: Output, top: TopK) -> None:
    if top.unknown_keywords:
        out.line(f"no place has: {', '.join(top.unknown_keywords)}")
    if not len(top):
        out.line("no answers")
        return
    labelled = top.labels is not None
    parts = list(top.components or {})
    head = ["#", "id", *(["name"] if labelled else []), "km", "score", *parts]
    rows = [
        [
            rank,
            place.id,
            *([place.label] if labelled else []),
            f"{place.km:.3f}",
            f"{place.score:.4f}",
            *(f"{(place.parts or {})[part]:.4f}" for part in parts),
        ]
        for rank, place in enumerate(top, 1)
    ]
    out.table(head, rows)


@spatial.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--queries", default=300, show_default=True, help="Random queries.")
@click.option("--check", default=50, show_default=True, help="How many to check in full.")
@click.option("--seed", default=0, show_default=True)
@_query_options
@json_option
def bench(
    out: Output, /, folder: Path, *, queries: int, check: int, seed: int, **options: Any
) -> None:
    """Time random queries on the index in FOLDER and check answers against a full scan.

    Points and keywords are drawn from the places; the options say the rest.
    The last line is one JSON value. CPU time of this thread, after a first pass
    that compiles; a second pass runs in another order.
    """
    from shoal.cli.spatial_bench import measure
    from shoal.spatial import SpatialKeywordIndex

    if queries < 1 or check < 0:
        raise InputError("needs at least one query", field="queries", value=queries)
    asked = _asked(options)
    with SpatialKeywordIndex.load(folder) as index, compiling_shown():
        report = measure(index, asked, queries=queries, check=check, seed=seed)
    out.line(f"{report['places']:,} places, {queries} queries, k = {asked.k}, {asked.match}")
    out.table(
        ["microseconds", "p50", "p90", "p99", "mean"],
        [
            [name, *(f"{report[key][column]:.1f}" for column in ("p50", "p90", "p99", "mean"))]
            for name, key in (("CPU", "cpu_us"), ("wall", "wall_us"))
        ],
    )
    wrong = report["checked"]["wrong"]
    out.line(f"checked {report['checked']['queries']} against a full scan: {wrong} wrong")
    click.echo(json.dumps(report, ensure_ascii=False))
    if wrong:
        raise ShoalError(f"{wrong} answers differ from the full scan; this is a defect")
