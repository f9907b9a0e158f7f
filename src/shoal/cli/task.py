"""``shoal task``: from a folder to a released task."""

from __future__ import annotations

import dataclasses
import difflib
import json
import shutil
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import click

from shoal.cli import release, versions
from shoal.cli.output import Output, json_option
from shoal.core.errors import ConflictError, InputError, NotFoundError, ShoalError

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


@task.command(name="test")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--events",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Recording to play; tests/events.jsonl of the folder by default.",
)
@click.option(
    "--expected",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Results that must come out; tests/expected.jsonl of the folder by default.",
)
@click.option("--update", is_flag=True, help="Write what came out as what must come out.")
@click.option(
    "--inline", is_flag=True, help="Run in this process, for a debugger; nothing is isolated."
)
@json_option
def run_test(
    out: Output,
    *,
    folder: Path,
    events: Path | None,
    expected: Path | None,
    update: bool,
    inline: bool,
) -> None:
    """Play a recording to the task FOLDER and compare what it emits.

    The device's own event log, triggers and worker processes are used. Fails
    if a run fails, or if the results are not the expected ones.
    """
    from shoal.tasks.playback import play_task
    from shoal.tasks.recording import read_recording

    recording = events if events is not None else folder / "tests" / "events.jsonl"
    wanted = expected if expected is not None else folder / "tests" / "expected.jsonl"
    played = play_task(folder, read_recording(recording), backend="inline" if inline else "auto")
    if update and not played.failures:
        _write_results(wanted, played.emitted)
    differences = _differences(wanted, played.emitted)
    out.value({**dataclasses.asdict(played), "differences": differences})
    for number, run in enumerate(played.runs, start=1):
        out.line(f"run {number}: {run.outcome}, {run.wall_us / 1000:.2f} ms")
        for name, value in run.emits:
            out.line(f"  {name}: {json.dumps(value, ensure_ascii=False)}")
        for name, key, value in run.features:
            out.line(f"  feature {name}[{key}]: {json.dumps(value, ensure_ascii=False)}")
        for line in run.log:
            out.line(f"  log: {line}")
        if run.message:
            out.line(f"  {run.message}")
    if played.stopped:
        out.line("it failed too often and was not run on the rest")
    for reason, count in played.dropped.items():
        out.line(f"warning: {count} outputs would not leave the device: {reason}")
    for warning in played.warnings:
        out.line(f"warning: {warning}")
    for difference in differences:
        out.line(difference)
    if played.failures:
        first = played.failures[0]
        raise ShoalError(
            f"{len(played.failures)} of {len(played.runs)} runs failed: {first.outcome}"
            + (f" ({first.message})" if first.message else "")
        )
    if differences:
        raise ShoalError(
            f"what came out is not what {wanted} expects",
            hint="if the new results are right, write them with --update",
        )
    count = len(played.emitted)
    out.line(f"{played.events} events, {len(played.runs)} runs, {count} results as expected")


def _write_results(path: Path, results: list[dict[str, Any]]) -> None:
    from shoal.core.files import write_text

    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(f"{json.dumps(one, ensure_ascii=False)}\n" for one in results))


def _differences(path: Path, results: list[dict[str, Any]]) -> list[str]:
    """Say line by line how the results differ from an expectation, as a diff does."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFoundError(
            f"nothing is expected: {path} does not exist",
            hint="write it from what comes out with --update",
        ) from None
    wanted = []
    for row, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                wanted.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise InputError(f"not JSON: {error}", row=row, source=path.name) from error
    if wanted == results:
        return []
    return [
        line
        for line in difflib.ndiff(
            [json.dumps(one, ensure_ascii=False, sort_keys=True) for one in wanted],
            [json.dumps(one, ensure_ascii=False, sort_keys=True) for one in results],
        )
        if line[0] in "+-"
    ]


for _command in (*versions.COMMANDS, *release.COMMANDS):
    task.add_command(_command)
