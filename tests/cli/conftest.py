"""A real cloud on a free port, and the command line pointed at it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from shoal.cli import cli
from shoal.cloud.config import CloudConfig
from shoal.cloud.http import CloudServer
from shoal.cloud.service import Cloud


@pytest.fixture
def cloud(tmp_path):
    config = CloudConfig(data_dir=tmp_path / "cloud", port=0, open_enrolment=True, tick_s=0.1)
    config.data_dir.mkdir()
    with Cloud.open(config) as cloud:
        yield cloud


@pytest.fixture
def server(cloud):
    with CloudServer(cloud) as server:
        yield server


@pytest.fixture
def shoal(server, tmp_path, monkeypatch):
    """Run a command in an empty folder; the server's address comes from the environment."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SHOAL_SERVER", server.url)
    monkeypatch.delenv("SHOAL_ADMIN_TOKEN", raising=False)

    def run(*words: str, fails: int | None = None):
        """Return the JSON of a command, or the error's JSON if it must fail."""
        result = CliRunner().invoke(cli, [*words, "--json"])
        if fails is None:
            assert result.exit_code == 0, result.output
            return json.loads(result.stdout)
        assert result.exit_code == fails, result.output
        return json.loads(result.stderr)

    return run


@pytest.fixture
def text(shoal):
    """Run a command and return what a person would see."""

    def run(*words: str) -> str:
        result = CliRunner().invoke(cli, list(words))
        assert result.exit_code == 0, result.output
        return result.output

    return run
