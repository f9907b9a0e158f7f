"""Writes the reference of the command line from the commands themselves."""

import click

from shoal.cli import cli

MARKER = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace the marker by a section for every command (called by mkdocs)."""
    if MARKER not in markdown:
        return markdown
    return markdown.replace(MARKER, "\n".join(_sections(cli, "shoal", None)))


def _sections(command: click.Command, path: str, parent: click.Context | None) -> list[str]:
    context = click.Context(command, info_name=path.rpartition(" ")[2], parent=parent)
    context.max_content_width = context.terminal_width = 96
    lines = [f"## `{path}`", "", "```text", command.get_help(context), "```", ""]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None and not inner.hidden:
                lines += _sections(inner, f"{path} {name}", context)
    return lines
