"""What commands print: text for a person, one JSON value for a program."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import click

__all__ = ["Output", "json_option", "wants_json", "when"]

P = ParamSpec("P")
R = TypeVar("R")


class Output:
    """Prints either lines and tables or, at the end, one JSON value.

    Parameters
    ----------
    as_json : bool
        With it :meth:`line` and :meth:`table` are silent, and without it
        :meth:`value` is.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def line(self, text: str = "") -> None:
        """Print a line for a person."""
        if not self.as_json:
            click.echo(text)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print rows under column heads, numbers to the right, plain enough for grep."""
        if self.as_json:
            return
        cells = [[_cell(value) for value in row] for row in rows]
        numeric = [
            bool(rows) and all(isinstance(row[i], (int, float)) for row in rows)
            for i in range(len(columns))
        ]
        widths = [
            max(len(head), *(len(row[i]) for row in cells)) if cells else len(head)
            for i, head in enumerate(columns)
        ]
        for row in [list(columns), *cells]:
            padded = (
                text.rjust(width) if right else text.ljust(width)
                for text, width, right in zip(row, widths, numeric, strict=True)
            )
            click.echo("  ".join(padded).rstrip())

    def value(self, value: object) -> None:
        """Print the command's result as one JSON value."""
        if self.as_json:
            click.echo(json.dumps(value, ensure_ascii=False, default=_plain))


def json_option(command: Callable[Concatenate[Output, P], R]) -> Callable[P, R]:
    """Give a command the option ``--json`` and an :class:`Output` as first argument."""

    @click.option("as_json", "--json", is_flag=True, help="Print one JSON value.")
    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        as_json = bool(kwargs.pop("as_json"))
        return command(Output(as_json), *args, **kwargs)

    return wrapper


def wants_json(words: Sequence[str]) -> bool:
    """Say whether ``--json`` was typed (before any ``--``)."""
    before = words[: words.index("--")] if "--" in words else words
    return "--json" in before


def when(time_us: int | None) -> str:
    """Show microseconds since 1970 (UTC) as a local time of day and date, or a dash."""
    if not time_us:
        return "-"
    moment = datetime.datetime.fromtimestamp(time_us / 1e6).astimezone()
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _plain(value: object) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    return str(value)
