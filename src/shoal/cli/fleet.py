"""``shoal fleet``: look at the fleet, let devices in, group them, or simulate a fleet."""

from __future__ import annotations

from typing import Any

import click

from shoal.cli.client import AdminClient, server_option
from shoal.cli.output import Output, json_option, when

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
    rooms = device["attributes"] or {}
    return " ".join(
        f"{room}.{name}={value}"
        for room, values in sorted(rooms.items())
        if isinstance(values, dict)
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
