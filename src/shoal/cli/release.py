"""``shoal task release``, ``status``, the operator's orders, and what came back."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from shoal.cli.client import AdminClient, server_option
from shoal.cli.output import Output, json_option, when
from shoal.cli.versions import published_versions
from shoal.core.errors import ConflictError, InputError, NotFoundError, UnavailableError

__all__ = ["COMMANDS"]

#: States that a release does not leave by itself.
_FINAL = ("rolled_back", "superseded", "aborted")
_POLL_S = 0.5


@click.command()
@click.argument("task")
@click.option("--version", type=int, help="Version to release; the newest by default.")
@click.option("--cohort", default="everyone", show_default=True, help="Who is to get it.")
@click.option(
    "--policy",
    "policy_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="TOML file with the fields of ReleasePolicy.",
)
@click.option("--steps", help="Steps in 1/10,000, for example 1000,5000,10000.")
@click.option(
    "--rule",
    type=click.Choice(["always_valid", "threshold", "versus_control"]),
    help="How the guardrails are judged.",
)
@click.option("--min-dwell", type=float, help="Shortest stay in a step, seconds.")
@click.option("--beta-device", multiple=True, help="Id of a device that gets it first; repeatable.")
@click.option("--supersede", is_flag=True, help="End another release of the task in the cohort.")
@click.option("--draft", is_flag=True, help="Only plan it; begin with `shoal task start`.")
@server_option
@json_option
def release(
    out: Output,
    *,
    task: str,
    version: int | None,
    cohort: str,
    policy_file: Path | None,
    steps: str | None,
    rule: str | None,
    min_dwell: float | None,
    beta_device: tuple[str, ...],
    supersede: bool,
    draft: bool,
    server: str,
) -> None:
    """Release a version of TASK to a cohort, in steps.

    Says beforehand if the policy cannot get through a fleet of this size.
    """
    from shoal.core.settings import read_toml

    policy: dict[str, Any] = read_toml(policy_file) if policy_file else {}
    if steps is not None:
        policy["steps"] = _steps(steps)
    if rule is not None:
        policy["rule"] = rule
    if min_dwell is not None:
        policy["min_dwell_s"] = min_dwell
    if beta_device:
        policy["beta_devices"] = list(beta_device)
    with AdminClient(server) as client:
        if version is None:
            known = published_versions(client, task)
            if not known:
                raise NotFoundError(
                    f"task {task!r} is not published", hint="shoal task publish FOLDER"
                )
            version = max(known)
        made = client.call(
            "POST",
            "/releases",
            json={"task": task, "version": version, "cohort": cohort, "policy": policy},
        )
        if not draft:
            try:
                made = client.call(
                    "POST", f"/releases/{made['id']}/start", json={"supersede": supersede}
                )
            except ConflictError as error:
                raise ConflictError(
                    f"release {made['id']} stays a draft: {error.message}",
                    hint=error.hint or "--supersede ends the other release",
                ) from error
    out.value(made)
    for warning in made["warnings"]:
        out.line(f"warning: {warning}")
    out.line(f"release {made['id']}: {task} version {version} to {cohort}, now {_stage(made)}")
    if made["waiting_for"]:
        out.line(f"waiting for {made['waiting_for']}")


def _steps(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            "expected whole numbers with commas between", field="steps", value=text
        ) from None


def _stage(found: dict[str, Any]) -> str:
    """Say where a release stands, for a person."""
    if found["state"] == "gray":
        return (
            f"gray {found['threshold'] / 100:g} % (step {found['step']} of {len(found['steps'])})"
        )
    return str(found["state"])


@click.command()
@click.argument("task", required=False)
@server_option
@json_option
def status(out: Output, task: str | None, server: str) -> None:
    """Show the releases in motion, or all releases of TASK and how the newest does."""
    with AdminClient(server) as client:
        if task is None:
            found = client.call("GET", "/releases", params={"live": True})
            detail = None
        else:
            client.call("GET", f"/tasks/{task}")
            found = client.call("GET", "/releases", params={"task": task})
            detail = _detail(client, found[0]) if found else None
        names = {cohort["id"]: cohort["name"] for cohort in client.call("GET", "/cohorts")}
    out.value({"releases": found, **(detail or {})})
    if not found:
        out.line("no release" + (f" of {task}" if task else " in motion"))
        return
    out.table(
        ["release", "task", "version", "cohort", "state", "devices", "waiting for"],
        [
            [
                r["id"],
                r["task"],
                r["version"],
                names.get(r["cohort"], r["cohort"]),
                _stage(r),
                r["eligible"],
                r["waiting_for"],
            ]
            for r in found
        ],
    )
    if detail is not None:
        _show(out, found[0], detail)


def _detail(client: AdminClient, newest: dict[str, Any]) -> dict[str, Any]:
    number = newest["id"]
    version = f"/tasks/{newest['task']}/versions/{newest['version']}"
    return {
        "coverage": client.call("GET", f"/releases/{number}/coverage"),
        "health": client.call("GET", f"{version}/health"),
        "history": client.call("GET", f"/releases/{number}/history"),
    }


def _show(out: Output, newest: dict[str, Any], detail: dict[str, Any]) -> None:
    reach, health = detail["coverage"], detail["health"]
    out.line()
    out.line(
        f"release {newest['id']}: {reach['holding']} of {reach['eligible']} devices hold version "
        f"{newest['version']}, {reach['refused']} refused it"
    )
    out.line(
        f"{health['runs']} runs on {health['devices']} devices, {health['failures']} failed; "
        f"{health['results']} results, {health['features']} features; "
        f"run time p50 {health['wall_p50_us'] / 1000:.1f} ms, "
        f"p99 {health['wall_p99_us'] / 1000:.1f} ms"
    )
    if newest["guardrails"]:
        out.line()
        columns = ["guardrail", "verdict", "devices", "failures", "limit"]
        out.table(columns, [[g.get(name) for name in columns] for g in newest["guardrails"]])
    out.line()
    fields = ("actor", "from_state", "to_state", "reason")
    out.table(
        ["at", "by", "from", "to", "reason"],
        [[when(h["at_us"]), *(h[field] for field in fields)] for h in detail["history"]],
    )


def _find(client: AdminClient, which: str) -> dict[str, Any]:
    """Return the release with this number, or the one in motion of the task with this name."""
    if which.isdigit():
        found = client.call("GET", f"/releases/{which}")
        assert isinstance(found, dict)
        return found
    client.call("GET", f"/tasks/{which}")  # a misspelt name is a better message than "no release"
    live = client.call("GET", "/releases", params={"task": which, "live": True})
    moving = [r for r in live if r["state"] != "full"] or live[:1]
    if not moving:
        raise NotFoundError(
            f"no release of {which} is in motion", hint=f"shoal task status {which}"
        )
    if len(moving) > 1:
        numbers = ", ".join(f"{r['id']} (version {r['version']}, {r['state']})" for r in moving)
        raise InputError(
            "several releases are in motion, name one by its number",
            field="which",
            value=which,
            hint=numbers,
        )
    first = moving[0]
    assert isinstance(first, dict)
    return first


def _order(name: str, text: str, *, superseding: bool = False) -> click.Command:
    """Make the command of one operator's order."""

    def run(out: Output, *, which: str, reason: str, server: str, supersede: bool = False) -> None:
        with AdminClient(server) as client:
            seen = _find(client, which)
            body: dict[str, Any] = {"reason": reason}
            if supersede:
                body["supersede"] = True
            found = client.call(
                "POST",
                f"/releases/{seen['id']}/{name}",
                json=body,
                if_match=seen["lock_version"],
            )
        out.value(found)
        out.line(
            f"release {found['id']} of {found['task']} version {found['version']}: {_stage(found)}"
        )

    run.__doc__ = text
    command: Callable[..., Any] = server_option(json_option(run))
    if superseding:
        command = click.option(
            "--supersede", is_flag=True, help="End another release of the task in the cohort."
        )(command)
    command = click.option("--reason", default="", help="Kept in the history.")(command)
    command = click.argument("which", metavar="TASK|RELEASE")(command)
    return click.command(name=name)(command)


@click.command()
@click.argument("which", metavar="TASK|RELEASE")
@click.argument("state")
@click.option("--timeout", default=600.0, show_default=True, help="Give up after, seconds.")
@server_option
@json_option
def wait(out: Output, *, which: str, state: str, timeout: float, server: str) -> None:
    """Wait until a release is in STATE, for example full or rolled_back."""
    from shoal.core.progress import progress

    until = time.monotonic() + timeout
    with AdminClient(server) as client, progress(f"waiting for {state}") as bar:
        number = _find(client, which)["id"]
        while True:
            found = client.call("GET", f"/releases/{number}")
            bar.say(f"{found['task']} version {found['version']}: {_stage(found)}")
            if found["state"] == state:
                break
            if found["state"] in _FINAL:
                raise ConflictError(f"release {number} ended as {found['state']}")
            if time.monotonic() > until:
                raise UnavailableError(
                    f"release {number} is {_stage(found)} after {timeout:g} s",
                    hint=f"it waits for {found['waiting_for'] or 'nothing'}",
                )
            time.sleep(_POLL_S)
    out.value(found)
    out.line(f"release {number} of {found['task']} version {found['version']}: {_stage(found)}")


@click.command()
@click.argument("task")
@click.option("--version", type=int, help="Only of this version.")
@click.option(
    "--kind",
    type=click.Choice(["results", "features", "runs"]),
    default="results",
    show_default=True,
)
@click.option("--limit", default=20, show_default=True, help="How many, oldest first.")
@click.option("--since-us", default=0, help="Only what came in after, microseconds since 1970.")
@server_option
@json_option
def results(
    out: Output,
    *,
    task: str,
    version: int | None,
    kind: str,
    limit: int,
    since_us: int,
    server: str,
) -> None:
    """Show what came back from devices for TASK."""
    params: dict[str, Any] = {"task": task, "limit": limit, "since_us": since_us}
    if version is not None:
        params["version"] = version
    with AdminClient(server) as client:
        rows = client.call("GET", f"/{kind}", params=params)
    out.value(rows)
    shown = {
        "results": ["version", "name", "value"],
        "features": ["version", "name", "key", "dtype"],
        "runs": ["version", "outcome", "wall_us", "peak_kb", "message"],
    }[kind]
    out.table(
        ["received", "device", *shown],
        [
            [when(row["received_us"]), row["device"], *(row.get(name) for name in shown)]
            for row in rows
        ],
    )


#: What ``shoal task`` gets from here.
COMMANDS: tuple[click.Command, ...] = (
    release,
    status,
    _order("start", "Begin a draft.", superseding=True),
    _order("advance", "Go to the next state although its guard does not hold yet."),
    _order("pause", "Hold a release where it is; devices keep what they have."),
    _order("resume", "Go on after a pause."),
    _order("rollback", "Send the devices back to the version before."),
    _order("abort", "Give up a release before its first gray step."),
    _order("override", "Skip straight to the whole cohort; needs a reason.", superseding=True),
    wait,
    results,
)
