"""When kernels are being compiled: the wait of an installation's first call.

A kernel is compiled when it is first called and kept on disk. Nobody can tell
beforehand whether it will be found there (the cache may be of another version
of the package or another processor), but numba announces every real compilation
when it begins: :func:`compiling` passes the first one on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["compiling"]

#: numba's name of the event; a kernel that is read from disk causes none.
_COMPILE = "numba:compile"


@contextmanager
def compiling(begun: Callable[[], None]) -> Iterator[None]:
    """Call ``begun()`` once, as soon as something within has to be compiled, in any thread.

    Parameters
    ----------
    begun : callable
        Called without arguments by the thread that compiles, before it does;
        never, if every kernel is found on disk.
    """
    # Devices without numba still import this floor.
    from numba.core.event import Listener, install_listener  # noqa: PLC0415

    class First(Listener):  # type: ignore[misc]  # numba has no types
        """Hands the first beginning on."""

        waiting: Callable[[], None] | None = staticmethod(begun)

        def on_start(self, event: Any) -> None:
            first, self.waiting = self.waiting, None
            if first is not None:
                first()

        def on_end(self, event: Any) -> None:
            pass

    with install_listener(_COMPILE, First()):
        yield
