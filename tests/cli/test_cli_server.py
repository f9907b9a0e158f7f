"""``shoal server``: one line when something is in the way, and a restore that works."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from shoal.cli import cli

SERVER = [sys.executable, "-m", "shoal.cli", "server", "run"]


@contextmanager
def running(folder: Path, *words: str):
    """Run ``shoal server run`` on a free port; yields its address."""
    server = subprocess.Popen(
        [*SERVER, "--data-dir", str(folder), "--port", "0", "--json", *words],
        env={**os.environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = server.stdout.readline()
    try:
        yield json.loads(line)["address"] if line else None
    finally:
        server.send_signal(signal.SIGTERM)
        _, errors = server.communicate(timeout=60)
    assert server.returncode == 0 or not line, errors
    if not line:
        raise RuntimeError(errors)


def call(address: str, *words: str):
    result = CliRunner().invoke(cli, [*words, "--server", address, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(folder: Path, *words: str, environment: dict[str, str] | None = None) -> str:
    """Run a server that must not start; return the one line that it says."""
    done = subprocess.run(
        [*SERVER, "--data-dir", str(folder), *words],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    first, *hints = [line for line in done.stderr.splitlines() if line]
    assert all(line.startswith("hint: ") for line in hints)
    return first


def test_it_serves_and_stops(tmp_path):
    with running(tmp_path / "cloud", "--no-console") as address:
        assert call(address, "fleet", "status")["devices"] == 0
    assert (tmp_path / "cloud/cloud.db").exists()


def test_a_port_in_use_is_one_line(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"port {port}" in refused(tmp_path / "cloud", "--port", port)


def test_two_clouds_on_one_folder(tmp_path):
    with running(tmp_path / "cloud", "--no-console"):
        assert "in use by" in refused(tmp_path / "cloud", "--port", "0")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("SHOAL_CLOUD_PORT", "99999", "SHOAL_CLOUD_PORT"),
        ("SHOAL_CLOUD_PROT", "1", "no such setting"),
        ("SHOAL_CLOUD_LIMITS__FRAMES", "1", "limits"),
    ],
)
def test_wrong_settings_are_one_line(tmp_path, name, value, said):
    assert said in refused(tmp_path / "cloud", environment={name: value})


def test_backup_restore_and_reindex(tmp_path, monkeypatch):
    """As docs/how-to/backup-and-restore.md says."""
    monkeypatch.chdir(tmp_path)
    folder, copy = tmp_path / "cloud", tmp_path / "copy"
    CliRunner().invoke(cli, ["task", "init", "interest"])
    with running(folder, "--no-console") as address:
        call(address, "task", "publish", "interest")
    shutil.copytree(folder, copy, symlinks=True)
    with running(folder, "--no-console") as address:
        call(address, "task", "release", "interest")
        call(address, "task", "rollback", "interest")
        epoch = call(address, "fleet", "status")["cloud"]["epoch"]
    # The database is lost; what was signed since the copy is known.
    newest = (folder / "keys/director.epoch").read_bytes()
    shutil.rmtree(folder)
    shutil.copytree(copy, folder, symlinks=True)
    (folder / "keys/director.epoch").write_bytes(newest)
    assert "epoch 6 was signed already" in refused(folder, "--port", "0")
    with running(folder, "--no-console", "--recover") as address:
        assert call(address, "fleet", "status")["cloud"]["epoch"] > epoch
        assert call(address, "task", "list")[0]["versions"] == [1]
    done = CliRunner().invoke(cli, ["server", "reindex", "--data-dir", str(folder), "--json"])
    assert json.loads(done.stdout) == {"tasks": {"interest": 1}}
