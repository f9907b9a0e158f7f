"""``shoal up``: cloud, console and a small fleet on one machine, to try things out."""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from shoal.cli.compiling import compiling_shown
from shoal.cli.output import Output, json_option
from shoal.core.errors import ShoalError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shoal.cloud.middleware import ASGIApp
    from shoal.cloud.service import Cloud
    from shoal.device.group import AgentGroup
    from shoal.tasks.place_search import PlaceSearch

__all__ = ["up"]

#: Seconds between two looks at what the writer of the places has written.
_REFRESH_S = 2.0
_OSES = ("linux", "android", "ios")
_CLASSES = ("small", "medium", "large")


@click.command()
@click.option("--devices", type=click.IntRange(0, 200), default=6, show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8400, show_default=True)
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".shoal"),
    show_default=True,
    help="Where cloud and devices keep their data; what is there is taken up again.",
)
@click.option(
    "--pace",
    type=click.FloatRange(0.01, 1000),
    default=2.0,
    show_default=True,
    help="Events that each device records a second.",
)
@click.option(
    "--places",
    "places_folder",
    type=click.Path(path_type=Path),
    help="Index folder of shoal spatial build, for a map page in the console.",
)
@click.option("--for", "seconds", type=click.FloatRange(0.1), help="End after so many seconds.")
@json_option
def up(
    output: Output,
    *,
    devices: int,
    port: int,
    folder: Path,
    pace: float,
    places_folder: Path | None,
    seconds: float | None,
) -> None:
    """Run a cloud, its console and a few devices with the events of a shop.

    The devices are real agents; the shop's visitors come from a generator.
    Publish and release a task to them with shoal task, and watch the console.
    """
    from shoal.cli.server import load_cloud_config
    from shoal.cloud.http import CloudServer
    from shoal.cloud.service import Cloud
    from shoal.console import create_console

    config = load_cloud_config(data_dir=folder / "cloud", port=port, tick_s=0.5)
    stop = threading.Event()
    fleet: threading.Thread | None = None
    failed: list[ShoalError] = []
    # First, so that a folder which is no index leaves no cloud behind.
    places = None if places_folder is None else _open_places(places_folder, stop)
    cloud = Cloud.open(config)
    try:
        console = cast("ASGIApp", create_console(cloud, places=places))
        with CloudServer(cloud, port=port, mounts={"/": console}) as server:
            if devices:
                token = cloud.enrolment.new_token(uses=devices, note="shoal up")
                fleet = threading.Thread(
                    target=_guarded,
                    args=(failed, stop, server.url, token, folder),
                    kwargs={"count": devices, "pace": pace},
                    name="fleet",
                    daemon=True,
                )
                fleet.start()
            output.line(f"console   {server.url}")
            if places is not None:
                output.line(f"places    {server.url}/places, {places.index.n_live:,} of them")
            output.line(f"devices   {devices}, in {folder / 'devices'}")
            output.line("Ctrl-C ends everything; the data stays.")
            _wait(stop, seconds)
            stop.set()
            if fleet is not None:
                fleet.join(timeout=30)
            output.value({"console": server.url, "devices": devices, **_numbers(cloud)})
    finally:
        stop.set()
        cloud.close()
        if places is not None:
            places.index.close()
    if failed:
        raise failed[0]


def _open_places(folder: Path, stop: threading.Event) -> PlaceSearch:
    """Open an index beside its writer, warm, and follow the writer until ``stop``."""
    from shoal.spatial import SpatialKeywordIndex
    from shoal.spatial.warmup import warm_up
    from shoal.tasks.place_search import PlaceSearch

    index = SpatialKeywordIndex.open(folder, read_only=True)
    try:
        with compiling_shown():
            warm_up(index, changes=True)
    except BaseException:  # also Ctrl-C during the half minute
        index.close()
        raise

    def follow() -> None:
        while not stop.wait(_REFRESH_S):
            try:
                index.refresh()
            except ShoalError as error:
                click.echo(f"the places could not be read anew: {error}", err=True)

    threading.Thread(target=follow, name="places", daemon=True).start()
    return PlaceSearch(index, folder.resolve().name)


def _wait(stop: threading.Event, seconds: float | None) -> None:
    try:
        # In slices: a signal that another thread receives does not end a wait of this one.
        end = math.inf if seconds is None else time.monotonic() + seconds
        while not stop.wait(min(0.5, max(0.0, end - time.monotonic()))):
            if time.monotonic() >= end:
                return
    except KeyboardInterrupt:
        click.echo("ending", err=True)


def _numbers(cloud: Cloud) -> dict[str, Any]:
    from shoal.cloud import reports

    return {"enrolled": reports.fleet_summary(cloud.store).devices}


def _guarded(
    failed: list[ShoalError], stop: threading.Event, *arguments: Any, **options: Any
) -> None:
    try:
        _run_fleet(stop, *arguments, **options)
    except ShoalError as error:
        failed.append(error)
        stop.set()


def _run_fleet(
    stop: threading.Event, url: str, token: str, folder: Path, *, count: int, pace: float
) -> None:
    from shoal.data.shop import Shop
    from shoal.device import Agent, AgentConfig, AgentGroup, VMPool, VMPoolConfig

    shop = Shop(seed=0)
    with VMPool(VMPoolConfig(size=2)) as pool:
        group = AgentGroup(
            Agent(
                AgentConfig(
                    data_dir=folder / "devices" / f"{number:03d}",
                    server_url=url,
                    enrol_token=token,
                    attributes={
                        "app": {"version": ("2.0", "2.1", "3.0")[number % 3]},
                        "device": {
                            "name": f"device-{number:03d}",
                            "os": _OSES[number % 3],
                            "class": _CLASSES[number // 3 % 3],
                        },
                    },
                    check_every_s=2.0,
                ),
                pool=pool,
            )
            for number in range(count)
        )
        with group:
            _drive(stop, group, shop, pace)


def _drive(stop: threading.Event, group: AgentGroup, shop: Any, pace: float) -> None:
    """Let every device live through the shop's sessions, one after the other."""
    queues: list[Iterator[Any]] = [iter(()) for _ in group.agents]
    # A second start on the same data goes on with other sessions.
    sessions = [int(time.time()) % 100_000 for _ in group.agents]
    due = time.monotonic()
    while not stop.is_set():
        busy = group.tick()
        if time.monotonic() >= due:
            due += 1.0 / pace
            for number, agent in enumerate(group.agents):
                event = next(queues[number], None)
                if event is None:
                    sessions[number] += 1
                    queues[number] = iter(shop.device(number + 1000 * sessions[number], 1))
                    event = next(queues[number], None)
                if event is not None:
                    agent.record(event.kind, event.page, event.content, visit=event.visit)
        elif not busy:
            group.wait(0.05)
