"""``shoal task publish``, ``list`` and ``floor``: the versions that there are."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import Any

import click

from shoal.cli.client import AdminClient, server_option
from shoal.cli.output import Output, json_option
from shoal.core.errors import NotFoundError

__all__ = ["COMMANDS", "published_versions"]


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--label", default="", help="A name for people; the one of task.toml by default.")
@click.option("--scenario", default="default", show_default=True, help="Whose task it is.")
@server_option
@json_option
def publish(out: Output, folder: Path, label: str, scenario: str, server: str) -> None:
    """Publish the task FOLDER as its next version: build, tag in git, sign.

    No device gets it until it is released. The same folder again gives the
    version that it has already.
    """
    from shoal.core.progress import progress
    from shoal.wire.package import build_package

    built = build_package(folder, 1, label=label)  # what is wrong is said here, with local names
    task = built.manifest.task
    with AdminClient(server) as client, tempfile.TemporaryFile() as archive:
        _zip(folder, archive)
        size = archive.tell()
        archive.seek(0)
        known = published_versions(client, task)
        with progress(f"publishing {task}", total=size) as bar:

            def chunks() -> Any:
                while chunk := archive.read(1 << 18):
                    yield chunk
                    bar.advance(len(chunk))

            view = client.call(
                "POST",
                "/versions",
                params={"scenario": scenario, "label": label},
                content=chunks(),
                headers={"Content-Type": "application/zip", "Content-Length": str(size)},
            )
    new = view["version"] not in known
    out.value({**view, "new": new, "warnings": list(built.warnings)})
    for warning in built.warnings:
        out.line(f"warning: {warning}")
    said = "published" if new else "is published already as"
    out.line(f"{task} {said} version {view['version']}  sha256 {view['sha256']}")
    if new:
        out.line(f"next: shoal task release {task}")


def _zip(folder: Path, sink: Any) -> None:
    """Pack the source folder, hidden files and caches left out."""
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            parts = path.relative_to(folder).parts
            hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
            if path.is_file() and not hidden:
                archive.write(path, "/".join(parts))


def published_versions(client: AdminClient, task: str) -> list[int]:
    """Return the versions of a task, none if nobody published it."""
    try:
        return list(client.call("GET", f"/tasks/{task}")["versions"])
    except NotFoundError:
        return []


@click.command(name="list")
@server_option
@json_option
def list_tasks(out: Output, server: str) -> None:
    """List the published tasks."""
    with AdminClient(server) as client:
        tasks = client.call("GET", "/tasks")
    out.value(tasks)
    out.table(
        ["task", "scenario", "versions", "newest", "floor"],
        [
            [
                entry["name"],
                entry["scenario"],
                len(entry["versions"]),
                max(entry["versions"], default=None),
                entry["floor"],
            ]
            for entry in tasks
        ],
    )


@click.command()
@click.argument("task")
@click.argument("version", type=int)
@server_option
@json_option
def floor(out: Output, task: str, version: int, server: str) -> None:
    """Withdraw all versions of TASK below VERSION for good; the floor never falls."""
    with AdminClient(server) as client:
        view = client.call("PUT", f"/tasks/{task}/floor", json={"version": version})
    out.value(view)
    out.line(f"{task}: versions below {view['floor']} run nowhere again")


#: What ``shoal task`` gets from here.
COMMANDS: tuple[click.Command, ...] = (publish, list_tasks, floor)
