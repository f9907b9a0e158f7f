"""``shoal agent``: run a device."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shoal.cli.client import DEFAULT_SERVER
from shoal.cli.output import Output, json_option
from shoal.core.errors import InputError

if TYPE_CHECKING:
    from shoal.device.agent import Agent
    from shoal.device.config import AgentConfig

__all__ = ["agent"]

#: Where an agent keeps its things unless it is told otherwise.
_DATA_DIR = Path(".shoal") / "agent"
_ROOMS = ("app", "device", "user")
_PAUSE_S = 0.05
_DRAIN_S = 30.0


@click.group()
def agent() -> None:
    """Run a device."""


@agent.command()
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="TOML file with the fields of AgentConfig.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"The device's own folder; {_DATA_DIR} by default.",
)
@click.option(
    "--server",
    envvar="SHOAL_SERVER",
    help=f"Address of the cloud (or SHOAL_SERVER); {DEFAULT_SERVER} by default.",
)
@click.option("--token", help="The operator's token for the first enrolment.")
@click.option(
    "--attribute",
    "attributes",
    multiple=True,
    metavar="ROOM.NAME=VALUE",
    help="What cohorts ask about, for example app.version=2.1; repeatable.",
)
@click.option(
    "--virtual", is_flag=True, help="Test drafts on the recordings, as the cloud's own device."
)
@click.option(
    "--replay",
    type=click.Path(path_type=Path, dir_okay=False),
    multiple=True,
    metavar="FILE",
    help="Recording to play into the event log; with --virtual one device each.",
)
@click.option(
    "--for",
    "seconds",
    type=click.FloatRange(min=0),
    help="End after so long, when all is sent; otherwise run until interrupted.",
)
@click.option("--verbose", "-v", is_flag=True, help="Log more than warnings.")
@json_option
def run(
    out: Output,
    *,
    config_file: Path | None,
    data_dir: Path | None,
    server: str | None,
    token: str | None,
    attributes: tuple[str, ...],
    virtual: bool,
    replay: tuple[Path, ...],
    seconds: float | None,
    verbose: bool,
) -> None:
    """Run an agent until it is interrupted.

    It enrols, installs what it is to have, runs it on its events, and sends
    the results. It needs the cloud only to hear of changes and to send.
    """
    from shoal.core.settings import load_settings
    from shoal.device.agent import Agent
    from shoal.device.config import AgentConfig

    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    config = load_settings(
        AgentConfig,
        config_file,
        env_prefix="SHOAL_AGENT_",
        overrides={
            "data_dir": data_dir,
            "server_url": server,
            "enrol_token": token,
            "virtual": virtual or None,
            **_attributes(attributes),
        },
        defaults={"data_dir": _DATA_DIR, "server_url": DEFAULT_SERVER},
    )
    if config.virtual:
        _run_virtual(out, config, replay, seconds)
        return
    with Agent(config) as device:
        out.line(
            f"device {device.device.hex()}, data in {config.data_dir}, cloud {config.server_url}"
        )
        _play(device, replay)
        _until_stopped(device.tick, seconds)
        sent = device.drain(_DRAIN_S) if seconds is not None else False
        state = device.status()
    out.value({**state, "drained": sent})
    out.line("stopped")


def _attributes(given: tuple[str, ...]) -> dict[str, Any]:
    """Read ``room.name=value`` words into overrides of the settings."""
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        room, dot, key = name.partition(".")
        if not equals or not dot or not key or room not in _ROOMS:
            raise InputError(
                "expected ROOM.NAME=VALUE",
                field="attribute",
                value=text,
                hint=f"ROOM is one of {', '.join(_ROOMS)}",
            )
        found[f"attributes.{room}.{key}"] = value
    return found


def _play(device: Agent, recordings: tuple[Path, ...]) -> None:
    from shoal.tasks.recording import read_recording

    for path in recordings:
        for event in read_recording(path):
            device.record(
                event.kind,
                event.page,
                event.content,
                ts_us=event.ts_us,
                visit=event.visit,
                event_id=event.id,
            )


def _run_virtual(
    out: Output, config: AgentConfig, recordings: tuple[Path, ...], seconds: float | None
) -> None:
    from shoal.device.agent import Agent
    from shoal.device.container import VMPool, VMPoolConfig
    from shoal.tasks.simulate import VirtualDevice

    with (
        VMPool(VMPoolConfig(sandbox_level=config.sandbox_level)) as pool,
        Agent(config, pool=pool) as device,
    ):
        tester = VirtualDevice(device, recordings, pool)
        out.line(
            f"virtual device {device.device.hex()}, {len(recordings)} recordings, "
            f"cloud {config.server_url}"
        )
        _until_stopped(tester.tick, seconds)
        state = device.status()
    out.value(state)
    out.line("stopped")


def _until_stopped(tick: Callable[[], bool], seconds: float | None) -> None:
    """Call ``tick`` until the time is over or the process is asked to end."""
    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGINT, signal.SIGTERM)
        if threading.current_thread() is threading.main_thread()
    }
    until = None if seconds is None else time.monotonic() + seconds
    try:
        while not stop.is_set() and (until is None or time.monotonic() < until):
            if not tick():
                stop.wait(_PAUSE_S)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
