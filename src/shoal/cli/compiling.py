"""A line for whoever waits while kernels are being compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from shoal.core.progress import progress

__all__ = ["COMPILING", "compiling_shown"]

#: What is said.
COMPILING = "compiling, once for this installation: up to half a minute"


@contextmanager
def compiling_shown(say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Say it when something within has to be compiled; silent if all is on disk.

    Parameters
    ----------
    say : callable, optional
        Shows the line, where a bar is on the terminal already; without it a
        spinner appears on standard error, if that is a terminal, until the end
        of the block.
    """
    from shoal.core.compiling import compiling

    with ExitStack() as shown:

        def begun() -> None:
            if say is not None:
                say(COMPILING)
            else:
                shown.enter_context(progress(COMPILING))

        with compiling(begun):
            yield
