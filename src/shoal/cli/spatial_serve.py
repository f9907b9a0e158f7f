"""``shoal spatial serve``: the map page and the JSON interface of one index."""

from __future__ import annotations

import socket
from pathlib import Path

import click

from shoal.cli.compiling import compiling_shown
from shoal.cli.output import Output, json_option
from shoal.core.errors import UnavailableError

__all__ = ["serve"]


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8410, show_default=True, help="Port; 0 takes a free one.")
@click.option("--title", default="places", show_default=True, help="What the places are.")
@json_option
def serve(out: Output, /, folder: Path, *, host: str, port: int, title: str) -> None:
    """Serve the index in FOLDER: a map page, and JSON under /places/api.

    It is opened for reading, so another process may go on writing to it; what
    that one has written is seen after at most two seconds. Whoever reaches the
    address may search. Ctrl-C ends it. It says that it is ready once a query of
    each kind has been asked: the first ever on a machine is compiled first.
    """
    import asyncio

    import uvicorn

    from shoal.console import create_place_console
    from shoal.spatial import SpatialKeywordIndex
    from shoal.spatial.warmup import warm_up
    from shoal.tasks.place_search import PlaceSearch, follow

    with SpatialKeywordIndex.open(folder, read_only=True) as index:
        listener = _listen(host, port)
        with compiling_shown():
            warm_up(index, changes=True)
        address = f"http://{_written(host)}:{listener.getsockname()[1]}/places"
        app = create_place_console(PlaceSearch(index, title))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        out.value({"address": address, "places": len(index)})
        out.line(f"{len(index):,} {title} at {address} (Ctrl-C ends it)")

        async def run() -> None:
            following = asyncio.create_task(follow(index))
            try:
                await server.serve(sockets=[listener])
            finally:
                following.cancel()

        try:
            asyncio.run(run())
        except KeyboardInterrupt:
            click.echo("ended", err=True)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise UnavailableError(
            f"cannot listen on {host}:{port}: {error}", hint="choose another --port"
        ) from None
    listener.listen(128)
    return listener


def _written(host: str) -> str:
    return f"[{host}]" if ":" in host else host
