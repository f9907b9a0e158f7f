"""``shoal demo``: the main job, end to end, on this machine."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click
import msgspec

from shoal.cli.output import Output, json_option
from shoal.core.errors import ShoalError

if TYPE_CHECKING:
    from shoal.cloud.middleware import ASGIApp
    from shoal.tasks.departure_delay.demo import DemoReport

__all__ = ["demo"]


@click.command()
@click.option("--once", is_flag=True, help="End by itself instead of keeping the console open.")
@click.option("--aircraft", type=click.IntRange(40, 300), default=60, show_default=True)
@click.option("--processes", type=click.IntRange(1, 16), default=3, show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of the console.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path),
    help="Keep the data here; a temporary folder, removed at the end, if absent.",
)
@json_option
def demo(
    output: Output,
    *,
    once: bool,
    aircraft: int,
    processes: int,
    port: int,
    seed: int,
    folder: Path | None,
) -> None:
    """Release a signed task to a fleet of real agents and bring its results back.

    Sixty aircraft replay their departures of 2013; a task that predicts late
    departures is released in gray steps, then a version that fails is released
    on purpose and rolled back by its guardrail.
    """
    from shoal.console import create_console
    from shoal.tasks.departure_delay.demo import Demo, DemoConfig

    place = folder or Path(tempfile.mkdtemp(prefix="shoal-demo-"))
    if folder is not None and folder.exists() and any(folder.iterdir()):
        raise ShoalError(f"{folder} is not empty", hint="name a new folder, or remove this one")
    config = DemoConfig(
        folder=str(place), aircraft=aircraft, processes=processes, port=port, seed=seed
    )
    start = time.monotonic()

    def say(text: str) -> None:
        click.echo(f"{time.monotonic() - start:6.1f} s  {text}", err=True)

    play = Demo(config, say=say, mount=lambda cloud: cast("ASGIApp", create_console(cloud)))
    try:
        report = play.run()
        output.value({**msgspec.to_builtins(report), "passed": report.passed})
        if not output.as_json:
            _table(report)
        if not once:
            click.echo(f"\nThe console is at {play.url} - Ctrl-C ends the demo.", err=True)
            _wait()
    finally:
        play.close()
        if folder is None:
            shutil.rmtree(place, ignore_errors=True)
    if not report.passed:
        failed = ", ".join(name for name, held in report.checks.items() if not held)
        raise ShoalError(f"the demo ran, but did not hold: {failed}")


def _wait() -> None:
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        click.echo("ending", err=True)


def _table(report: DemoReport) -> None:
    """Print the report as a table for a person."""
    from rich.console import Console
    from rich.table import Table

    def seconds(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f} s"

    table = Table(title="What happened", show_header=False, title_justify="left")
    table.add_column(style="dim")
    table.add_column()
    rows = [
        ("aircraft, of which in the cohort", f"{report.aircraft}, {report.eligible}"),
        (
            "version 1 on 50 / 95 / 100 % of the reachable devices",
            " / ".join(map(seconds, (report.time_to_50, report.time_to_95, report.time_to_100))),
        ),
        (
            "runs on the devices",
            f"{report.runs:,} ({report.failed_runs_good_version} of version 1 failed, "
            f"{report.failed_runs_broken_version} of version 2)",
        ),
        ("devices that got the broken version 2", f"{report.broken_devices}"),
        (
            "rollback, from its first gray step on: decided / done",
            f"{seconds(report.rollback_decided_s)} / {seconds(report.rollback_done_s)}",
        ),
        (
            "time of a run on the device, p50 / p99",
            f"{report.latency_p50_ms:.2f} / {report.latency_p99_ms:.2f} ms",
        ),
        (
            "raw events / results and features sent",
            f"{report.raw_bytes:,} / {report.feature_bytes:,} bytes "
            f"({report.feature_bytes / max(report.raw_bytes, 1):.0%})",
        ),
        (
            "predictions, of which on held-out weeks",
            f"{report.predictions:,}, {report.held_out:,}",
        ),
        (
            "AUC on held-out weeks: schedule alone / with stream features",
            f"{report.auc_schedule:.4f} / {report.auc_stream:.4f}",
        ),
        (
            "the same computed offline",
            f"{report.auc_offline_schedule:.4f} / {report.auc_offline_stream:.4f} "
            f"(largest difference of a prediction {report.largest_difference:.1g})",
        ),
        ("all of it took", f"{report.seconds:.0f} s"),
    ]
    for name, value in rows:
        table.add_row(name, value)
    for name, held in report.checks.items():
        table.add_row(name, "yes" if held else "[bold red]NO[/]")
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 110).print(table)
