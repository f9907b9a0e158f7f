"""Progress of long work: a bar on a terminal, silence when piped.

The bar goes to standard error, so ``shoal ... --json | jq`` stays clean even
on a terminal, and it disappears when the work is done.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

__all__ = ["Progress", "is_interactive", "progress", "track"]

T = TypeVar("T")


def is_interactive(stream: TextIO | None = None) -> bool:
    """Say whether ``stream`` (default: standard error) is a terminal a person looks at."""
    target = sys.stderr if stream is None else stream
    try:
        return target.isatty()
    except (AttributeError, ValueError):  # replaced or closed streams
        return False


class Progress:
    """Handle on one piece of long work; made by :func:`progress`.

    Counts even where nothing is drawn, so a caller can read ``done``.
    """

    def __init__(self, total: float | None, bar: RichProgress | None, task: TaskID | None) -> None:
        self.total = total
        self.done = 0.0
        self._bar = bar
        self._task = task

    def advance(self, amount: float = 1) -> None:
        """Add ``amount`` to the work done."""
        self.done += amount
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, amount)

    def say(self, text: str) -> None:
        """Replace the description beside the bar."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=text)


@contextmanager
def progress(
    description: str, total: float | None = None, *, stream: TextIO | None = None
) -> Iterator[Progress]:
    """Show progress of a block of work.

    Parameters
    ----------
    description : str
        What is being done.
    total : float, optional
        Amount of work; without it the bar only shows that something happens.
    stream : text file, optional
        Where to draw, standard error by default. Nothing is written unless it
        is a terminal.

    Yields
    ------
    Progress
    """
    if not is_interactive(stream):
        yield Progress(total, None, None)
        return
    from rich.console import Console  # noqa: PLC0415 - 60 ms that piped runs need not pay
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.progress import Progress as Bar  # noqa: PLC0415

    columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn()]
    if total is not None:
        columns.append(MofNCompleteColumn())
    columns.append(TimeElapsedColumn())
    console = Console(file=sys.stderr if stream is None else stream)
    with Bar(*columns, console=console, transient=True) as bar:
        yield Progress(total, bar, bar.add_task(description, total=total))


def track(
    items: Iterable[T],
    description: str,
    total: float | None = None,
    *,
    stream: TextIO | None = None,
) -> Iterator[T]:
    """Yield from ``items`` and show how far the loop has come.

    Parameters
    ----------
    items : iterable
        What to loop over.
    description : str
        What is being done.
    total : float, optional
        Number of items; taken from ``len(items)`` where there is one.
    stream : text file, optional
        As in :func:`progress`.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress(description, total, stream=stream) as handle:
        for item in items:
            yield item
            handle.advance()
