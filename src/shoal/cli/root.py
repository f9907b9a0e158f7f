"""The root of the command line: commands that load when they are called, one error path.

``shoal --help`` imports no room of the package; a command module is imported
when its name is typed. An error that shoal raised on purpose becomes one line
and a hint on standard error, with the error's exit status; with ``--json`` it
is one JSON object. Anything else is a defect and keeps its traceback.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

import shoal
from shoal.cli.output import wants_json
from shoal.core.errors import ShoalError

__all__ = ["LazyGroup", "cli", "main"]

#: Exit status after Ctrl-C, as shells have it.
_INTERRUPTED = 130


class LazyGroup(click.Group):
    """A group whose commands live in modules that are imported on use.

    Parameters
    ----------
    lazy : mapping
        Command name -> ``"module:attribute"``, and the line for ``--help``.
    """

    def __init__(
        self, *args: Any, lazy: Mapping[str, tuple[str, str]] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = dict(lazy or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which they were declared."""
        return [*self._lazy, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        if cmd_name not in self._lazy:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = self._lazy[cmd_name][0].partition(":")
        try:
            command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            raise ShoalError(
                f"shoal {cmd_name} needs the package {error.name!r}, which is not installed",
                hint="pip install 'shoal[all]'",
            ) from error
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing their modules."""
        rows = [(name, text) for name, (_, text) in self._lazy.items()]
        for name in super().list_commands(ctx):
            command = super().get_command(ctx, name)
            if command is not None and not command.hidden:
                rows.append((name, command.get_short_help_str()))
        if not rows:
            return
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def main(self, args: Sequence[str] | None = None, *_: Any, **extra: Any) -> Any:
        """Run, and turn errors into lines and exit statuses."""
        words = list(sys.argv[1:] if args is None else args)
        extra["standalone_mode"] = False
        try:
            status = super().main(words, **extra)
        except ShoalError as error:
            _report(error.message, error.hint, type(error).__name__, error.exit_code, words)
            sys.exit(error.exit_code)
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx is not None else "shoal"
            _report(error.format_message(), f"{path} --help", "UsageError", error.exit_code, words)
            sys.exit(error.exit_code)
        except click.ClickException as error:
            _report(error.format_message(), None, type(error).__name__, error.exit_code, words)
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            click.echo("interrupted", err=True)
            sys.exit(_INTERRUPTED)
        except BrokenPipeError:
            # The reader (head, less) has left: nothing to say, and nowhere to say it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        sys.exit(status if isinstance(status, int) else 0)


def _report(
    message: str, hint: str | None, kind: str, exit_code: int, words: Sequence[str]
) -> None:
    if wants_json(words):
        problem = {"error": kind, "message": message, "hint": hint, "exit_code": exit_code}
        click.echo(json.dumps(problem, ensure_ascii=False), err=True)
        return
    click.echo(f"error: {' '.join(message.split())}", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)


def _available(commands: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Leave out commands whose module is not part of this installation."""
    return {
        name: entry
        for name, entry in commands.items()
        if importlib.util.find_spec(entry[0].partition(":")[0]) is not None
    }


@click.group(
    cls=LazyGroup,
    lazy=_available(
        {
            "task": ("shoal.cli.task:task", "Write, test, build, publish and release tasks."),
            "server": ("shoal.cli.server:server", "Run the cloud."),
            "agent": ("shoal.cli.agent:agent", "Run a device."),
            "fleet": ("shoal.cli.fleet:fleet", "Look at the fleet, or simulate one."),
            "spatial": ("shoal.cli.spatial:spatial", "Search places: build, query, bench."),
            "influence": (
                "shoal.cli.influence:influence",
                "Pick the few that reach the most: solve, train, explain, bench.",
            ),
            "up": ("shoal.cli.up:up", "Cloud, console and a small fleet on this machine."),
            "demo": ("shoal.cli.demo:demo", "Play the main job: release, results, rollback."),
        }
    ),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(shoal.__version__, "-V", "--version", prog_name="shoal")
def cli() -> None:
    """Ship machine-learning tasks to a fleet of devices and get their results back.

    Every command takes --json and then prints one JSON value.
    """


def main() -> None:
    """Entry point of the ``shoal`` command."""
    cli.main(prog_name="shoal")
