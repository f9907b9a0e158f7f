"""``shoal fleet``: look at the fleet, let devices in, group them, or simulate a fleet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shoal.cli.client import AdminClient, server_option
from shoal.cli.output import Output, json_option, when
from shoal.core.errors import InputError

if TYPE_CHECKING:
    from shoal.cloud.fleet_report import FleetReport

__all__ = ["fleet"]


@click.group()
def fleet() -> None:
    """Look at the fleet, let devices in, group them, or simulate a fleet."""


@fleet.command()
@server_option
@json_option
def status(out: Output, server: str) -> None:
    """Count the devices and what they hold."""
    with AdminClient(server) as client:
        counts = client.call("GET", "/fleet")
        cloud = client.call("GET", "/status")
    out.value({**counts, "cloud": cloud})
    out.line(
        f"{counts['devices']} devices, {counts['revoked']} locked out; "
        f"epoch {cloud['epoch']}, {cloud['plans']} cohort sets with a plan"
    )
    if counts["holdings"]:
        out.line()
        columns = ["task", "version", "state", "devices"]
        out.table(columns, [[row[name] for name in columns] for row in counts["holdings"]])


@fleet.command()
@click.option("--task", help="Only devices that hold some version of this task.")
@click.option("--after", default="", help="Last id of the page before.")
@click.option("--limit", default=50, show_default=True, help="Length of a page.")
@server_option
@json_option
def devices(out: Output, *, task: str | None, after: str, limit: int, server: str) -> None:
    """List devices, a page at a time."""
    params: dict[str, Any] = {"after": after, "limit": limit}
    if task is not None:
        params["task"] = task
    with AdminClient(server) as client:
        rows = client.call("GET", "/fleet/devices", params=params)
    out.value(rows)
    out.table(
        ["device", "last seen", "attributes", "holds"],
        [[d["device"], when(d["last_seen_us"]), _attributes(d), _holds(d)] for d in rows],
    )


def _attributes(device: dict[str, Any]) -> str:
    """Show what app, device and user say; what the agent knows of itself is in the JSON."""
    rooms = device["attributes"] or {}
    return " ".join(
        f"{room}.{name}={value}"
        for room, values in sorted(rooms.items())
        if isinstance(values, dict) and room != "agent"
        for name, value in sorted(values.items())
    )


def _holds(device: dict[str, Any]) -> str:
    return " ".join(f"{h['task']}:{h['version']}({h['state']})" for h in device["holdings"])


@fleet.command()
@click.argument("device")
@server_option
@json_option
def device(out: Output, device: str, server: str) -> None:
    """Show one device and what it holds."""
    with AdminClient(server) as client:
        found = client.call("GET", f"/fleet/devices/{device}")
    out.value(found)
    for name, text in (
        ("device", found["device"] + (" (locked out)" if found["revoked"] else "")),
        ("first seen", when(found["first_seen_us"])),
        ("last seen", when(found["last_seen_us"])),
        ("agent", f"{found['agent']} on {found['platform']}"),
        ("attributes", _attributes(found)),
        ("requests", found["requests"]),
    ):
        out.line(f"{name:<11} {text}")
    if found["holdings"]:
        out.line()
        columns = ["task", "version", "state", "code", "message"]
        out.table(columns, [[row[name] for name in columns] for row in found["holdings"]])


@fleet.command()
@click.option("--uses", default=1, show_default=True, help="For how many devices.")
@click.option("--hours", default=24.0, show_default=True, help="For how long.")
@click.option("--note", default="", help="What it is for.")
@server_option
@json_option
def token(out: Output, *, uses: int, hours: float, note: str, server: str) -> None:
    """Make a token with which devices may enrol; it is shown this once."""
    with AdminClient(server) as client:
        made = client.call(
            "POST",
            "/fleet/enrolment-tokens",
            json={"uses": uses, "ttl_s": hours * 3600, "note": note},
        )
    out.value(made)
    out.line(made["token"])


@fleet.command()
@click.argument("device")
@server_option
@json_option
def revoke(out: Output, device: str, server: str) -> None:
    """Lock a device out: from now on its token is worth nothing."""
    with AdminClient(server) as client:
        found = client.call("POST", f"/fleet/devices/{device}/revoke")
    out.value(found)
    out.line(f"{device} is locked out; `shoal fleet restore` lets it in again")


@fleet.command()
@click.argument("device")
@server_option
@json_option
def restore(out: Output, device: str, server: str) -> None:
    """Let a device that was locked out in again."""
    with AdminClient(server) as client:
        found = client.call("POST", f"/fleet/devices/{device}/restore")
    out.value(found)
    out.line(f"{device} may speak again")


@fleet.command()
@server_option
@json_option
def cohorts(out: Output, server: str) -> None:
    """List the cohorts, their devices, and how often a predicate failed."""
    with AdminClient(server) as client:
        rows = client.call("GET", "/cohorts")
    out.value(rows)
    columns = ["name", "devices", "errors", "predicate", "last_error"]
    out.table(
        ["cohort", "devices", "errors", "predicate", "last error"],
        [[row[name] for name in columns] for row in rows],
    )


@fleet.command()
@click.argument("name")
@click.argument("predicate")
@server_option
@json_option
def cohort(out: Output, name: str, predicate: str, server: str) -> None:
    """Make a cohort NAME of the devices for which PREDICATE (CEL) is true, or change it.

    Variables: app, device, user, agent; for example
    'device.os == "android" && app.version.startsWith("2.")'.
    """
    with AdminClient(server) as client:
        made = client.call("PUT", "/cohorts", json={"name": name, "predicate": predicate})
    out.value(made)
    out.line(f"cohort {made['name']}: {made['devices']} devices")
    if made["errors"]:
        out.line(f"warning: failed on {made['errors']} devices, last: {made['last_error']}")


@fleet.command()
@click.option("--devices", type=int, help="Size of the fleet; 1,000,000 by default.")
@click.option("--hours", type=float, help="Simulated time; 1 by default.")
@click.option("--predicate", help="The release's cohort in CEL; all devices by default.")
@click.option("--failure-rate", type=float, help="Share of devices on which the version fails.")
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="TOML file with the fields of FleetConfig.",
)
@click.option(
    "--policy",
    "policy_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="TOML file with the fields of ReleasePolicy; without it the release is full at once.",
)
@click.option("--beta", default=0, show_default=True, help="Devices named for the beta step.")
@click.option("--seed", default=0, show_default=True, help="The same seed, the same fleet.")
@click.option(
    "--out",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the report in Parquet and JSON.",
)
@json_option
def simulate(
    out: Output,
    *,
    devices: int | None,
    hours: float | None,
    predicate: str | None,
    failure_rate: float | None,
    config_file: Path | None,
    policy_file: Path | None,
    beta: int,
    seed: int,
    folder: Path | None,
) -> None:
    """Simulate a release to a large fleet; every request passes the real plan table.

    Needs no server.
    """
    from shoal.cloud.policy import ReleasePolicy
    from shoal.cloud.simulate import FleetConfig, FleetSimulation
    from shoal.core.progress import progress
    from shoal.core.settings import load_settings

    config = load_settings(
        FleetConfig,
        config_file,
        overrides={
            "devices": devices,
            "horizon_s": None if hours is None else hours * 3600,
            "predicate": predicate,
            "failure_rate": None if failure_rate is None else {"*": failure_rate},
        },
    )
    policy = load_settings(ReleasePolicy, policy_file) if policy_file else None
    if beta and policy is None:
        raise InputError("beta devices need a policy", field="beta", value=beta, hint="--policy")
    with progress(f"simulating {config.devices:,} devices", total=100) as bar:
        report = FleetSimulation(config, seed).run(
            policy, beta=beta, progress=lambda share: bar.advance(100 * share - bar.done)
        )
    out.value(report.summary())
    if folder is not None:
        for path in report.save(folder):
            out.line(f"wrote {path}")
    _show_simulation(out, report)


def _show_simulation(out: Output, report: FleetReport) -> None:
    """Print what a simulated release came to."""
    out.line(
        f"{report.devices:,} devices, {report.eligible:,} in the cohort; the release ended as "
        f"{report.state}"
    )
    rows: list[list[object]] = [
        [f"reached {share} of the cohort", "not in time" if at is None else f"{at:,.0f} s"]
        for share, at in report.time_to_s.items()
    ]
    rows += [
        ["devices reached", f"{report.reached_devices:,}"],
        ["devices that installed", f"{report.installed_devices:,}"],
        ["devices harmed", f"{report.harmed_devices:,}"],
        ["largest distance to the best possible reach", f"{report.coverage_gap:.4f}"],
        ["distance that chance alone explains (99 %)", f"{report.dkw_band:.4f}"],
        ["notices to devices outside the cohort", f"{report.outside_received:,}"],
        ["requests, pulls", f"{report.requests:,}, {report.pulls:,}"],
        ["CPU of one check", f"{report.check_us:.2f} us"],
        ["this took", f"{report.wall_s:.1f} s, {report.peak_mib:,.0f} MiB"],
    ]
    if report.first_bad_to_reverted_s is not None:
        rows.insert(
            -3, ["first harm until 99 % were back", f"{report.first_bad_to_reverted_s:,.0f} s"]
        )
    for name, value in rows:
        out.line(f"{name:<46} {value}")
