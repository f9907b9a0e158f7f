"""Commands and code in the documentation exist as they are written."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest

from shoal.cli import cli
from shoal.cloud.policy import ReleasePolicy
from shoal.device.config import AgentConfig
from shoal.wire.manifest import read_task_toml

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("docs/**/*.md"), ROOT / "README.md"])


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def shoal_commands() -> list[str]:
    found = {
        line.split(" #")[0].strip()
        for page in PAGES
        for block in blocks(page, "console")
        for line in block.splitlines()
        if line.startswith("shoal ")
    }
    return sorted(found)


def parse(command: str) -> None:
    """Let click read a command line without running it."""
    words = shlex.split(command)[1:]
    group: click.Command = cli
    context = click.Context(cli, info_name="shoal")
    while isinstance(group, click.Group):
        name, *words = words
        inner = group.get_command(context, name)
        assert inner is not None, f"no command {name!r}"
        group, context = inner, click.Context(inner, info_name=name, parent=context)
    group.make_context(group.name, words)


@pytest.mark.parametrize("command", shoal_commands())
def test_commands_exist_with_their_options(command):
    parse(command)


@pytest.mark.parametrize("command", ["shoal task ship x", "shoal task publish --fast x"])
def test_negative_control_other_commands_are_refused(command):
    with pytest.raises((AssertionError, click.UsageError)):
        parse(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_compiles_and_its_imports_exist(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                module = importlib.import_module(node.module)
                for name in node.names:
                    assert hasattr(module, name.name), f"{node.module} has no {name.name}"


def test_policies_and_settings_are_valid():
    for page in PAGES:
        for block in blocks(page, "toml"):
            document = tomllib.loads(block)
            if block.startswith("# policy.toml"):
                ReleasePolicy.model_validate(document)
            elif block.startswith("# agent.toml"):
                AgentConfig.model_validate(document)


def test_the_parts_of_a_manifest_are_a_manifest(tmp_path):
    page = ROOT / "docs/how-to/write-a-task.md"
    parts = 'task = "all"\n' + "\n".join(blocks(page, "toml"))
    (tmp_path / "task.toml").write_text(parts)
    manifest = read_task_toml(tmp_path)
    assert manifest.triggers[0].where[0].op == "in"
    assert manifest.isolation.sandbox_level == 2
