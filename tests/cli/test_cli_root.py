"""The root of the command line: quick, one error path, JSON for programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

import shoal
from shoal.cli import cli
from shoal.cli.output import Output, wants_json, when
from shoal.cli.root import LazyGroup
from shoal.core.errors import IntegrityError


@pytest.fixture
def broken_group():
    """A group with one command for each way to end."""

    @click.group(cls=LazyGroup, lazy={"gone": ("no_such_package_x.module:command", "Missing.")})
    def group():
        """Test."""

    @group.command()
    @click.option("--json", "as_json", is_flag=True)
    def known(as_json):
        raise IntegrityError("bytes are\nnot what they were", hint="download again")

    @group.command()
    def defect():
        raise ZeroDivisionError("a defect")

    @group.command()
    def interrupted():
        raise KeyboardInterrupt

    @group.command()
    @click.argument("number", type=int)
    def fine(number):
        click.echo(number)

    return group


def test_help_and_version_import_no_room():
    code = (
        "import sys, shoal.cli\n"
        "try: shoal.cli.cli.main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "rooms = {name.split('.')[1] for name in sys.modules if name.startswith('shoal.')}\n"
        "assert rooms <= {'cli', 'core'}, rooms\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "task" in done.stdout
    version = CliRunner().invoke(cli, ["--version"])
    assert shoal.__version__ in version.output
    assert version.exit_code == 0


def test_known_errors_are_one_line_a_hint_and_their_exit_status(broken_group):
    result = CliRunner().invoke(broken_group, ["known"])
    assert result.exit_code == 3
    assert result.stderr == "error: bytes are not what they were\nhint: download again\n"
    assert result.stdout == ""


def test_known_errors_in_json(broken_group):
    result = CliRunner().invoke(broken_group, ["known", "--json"])
    assert json.loads(result.stderr) == {
        "error": "IntegrityError",
        "message": "bytes are\nnot what they were",
        "hint": "download again",
        "exit_code": 3,
    }


@pytest.mark.parametrize(
    ("words", "said", "hint"),
    [
        (["nothing"], "No such command 'nothing'", "--help"),
        (["fine", "x"], "'x' is not a valid integer", "fine --help"),
        (["fine"], "Missing argument", "fine --help"),
        (["fine", "1", "--what"], "No such option '--what'", "fine --help"),
    ],
)
def test_wrong_use_is_one_line_and_exit_status_2(broken_group, words, said, hint):
    result = CliRunner().invoke(broken_group, words)
    assert result.exit_code == 2
    first, second = result.stderr.splitlines()
    assert said in first
    assert hint in second


def test_negative_control_defects_keep_their_traceback(broken_group):
    result = CliRunner().invoke(broken_group, ["defect"])
    assert isinstance(result.exception, ZeroDivisionError)


def test_interrupts_and_missing_packages(broken_group):
    assert CliRunner().invoke(broken_group, ["interrupted"]).exit_code == 130
    result = CliRunner().invoke(broken_group, ["gone"])
    assert result.exit_code == 1
    assert "no_such_package_x" in result.stderr
    assert "pip install" in result.stderr


def test_a_closed_pipe_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "shoal.cli", "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert "Traceback" not in done.stderr


def test_tables_align_and_json_silences_them(capsys):
    Output(as_json=False).table(["task", "n"], [["ipv", 10], ["a", None], ["b", 2.5]])
    assert capsys.readouterr().out.splitlines() == ["task  n", "ipv   10", "a     -", "b     2.5"]
    Output(as_json=False).table(["n"], [[1], [10]])
    assert capsys.readouterr().out.splitlines() == [" n", " 1", "10"]
    out = Output(as_json=True)
    out.line("text")
    out.table(["a"], [[1]])
    out.value({"id": b"\x01"})
    assert capsys.readouterr().out == '{"id": "01"}\n'


def test_json_is_looked_for_before_the_separator_only():
    assert wants_json(["task", "--json"])
    assert not wants_json(["task", "--", "--json"])


def test_times():
    assert when(None) == "-"
    assert len(when(1_767_225_600_000_000)) == len("2026-01-01 00:00:00")
