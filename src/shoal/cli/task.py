"""``shoal task``: from a folder to a released task."""

from __future__ import annotations

import shutil
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import click

from shoal.cli import release, versions
from shoal.cli.output import Output, json_option
from shoal.core.errors import ConflictError

__all__ = ["task"]


@click.group()
def task() -> None:
    """Write, test, build, publish and release tasks."""


@task.command()
@click.argument("name")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to write; a new folder called NAME by default.",
)
@json_option
def init(out: Output, name: str, folder: Path | None) -> None:
    """Write a small task NAME that works, to be changed.

    It holds task.toml (what the task is), main.py (what it does), and
    tests/events.jsonl with tests/expected.jsonl (what it should make of what).
    """
    from shoal.wire.manifest import check_task_name

    check_task_name(name)
    target = folder if folder is not None else Path(name)
    if target.exists() and any(target.iterdir()):
        raise ConflictError(f"{target} is not empty", hint="choose another with --folder")
    template = resources.files("shoal.cli").joinpath("template")
    written = _copy(template, target, {"@TASK@": name})
    out.value({"task": name, "folder": str(target), "files": written})
    out.line(f"wrote {target}: {', '.join(written)}")
    out.line(f"next: shoal task test {target}")


def _copy(source: Traversable, target: Path, words: dict[str, str], prefix: str = "") -> list[str]:
    """Copy the template, replacing ``words`` in the files' text; return relative names."""
    from shoal.core.files import write_text

    target.mkdir(parents=True, exist_ok=True)
    written = []
    for entry in sorted(source.iterdir(), key=lambda entry: entry.name):
        if entry.name == "__pycache__":
            continue
        if entry.is_dir():
            written += _copy(entry, target / entry.name, words, f"{prefix}{entry.name}/")
            continue
        text = entry.read_text(encoding="utf-8")
        for word, replacement in words.items():
            text = text.replace(word, replacement)
        write_text(target / entry.name, text)
        written.append(f"{prefix}{entry.name}")
    return written


@task.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--version", default=1, show_default=True, help="Version to build as.")
@click.option(
    "--out",
    "into",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Folder for the package; the present one by default.",
)
@json_option
def build(out: Output, folder: Path, version: int, into: Path) -> None:
    """Build the package of a task FOLDER: the same bytes whenever the folder is the same.

    Publishing builds by itself; this is for looking at a package, or for
    carrying one by hand.
    """
    from shoal.core.files import atomic_writer, write_bytes
    from shoal.wire.package import build_package

    built = build_package(folder, version)
    into.mkdir(parents=True, exist_ok=True)
    path = into / f"{built.manifest.task}-{version}.shoal"
    write_bytes(path, built.bytes)
    separate = []
    for resource, source in built.separate:
        place = into / resource.sha256
        with source.open("rb") as stream, atomic_writer(place) as copy:
            shutil.copyfileobj(stream, copy)
        separate.append((resource, place))
    out.value(
        {
            "task": built.manifest.task,
            "version": version,
            "path": str(path),
            "sha256": built.sha256.hex(),
            "size": len(built.bytes),
            "separate": [
                {"name": item.name, "sha256": item.sha256, "size": item.size, "path": str(place)}
                for item, place in separate
            ],
            "warnings": list(built.warnings),
        }
    )
    out.line(f"{path}  {len(built.bytes):,} bytes  sha256 {built.sha256.hex()}")
    for item, place in separate:
        out.line(f"{place}  {item.size:,} bytes  separate: {item.name}")
    for warning in built.warnings:
        out.line(f"warning: {warning}")


for _command in (*versions.COMMANDS, *release.COMMANDS):
    task.add_command(_command)
