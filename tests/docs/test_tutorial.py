"""The tutorial and the README work as they are written."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def commands(page: Path) -> list[str]:
    """Return the lines of a page's console blocks."""
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture
def fleet(tmp_path):
    """``shoal up`` on a free port, with visitors in a hurry; yields the environment."""
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    log = (tmp_path / "up.log").open("w+")
    up = subprocess.Popen(
        ["shoal", "up", "--port", "0", "--pace", "40", "--dir", str(tmp_path / "data")],
        cwd=tmp_path,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        address = None
        until = time.monotonic() + 60
        while address is None and time.monotonic() < until and up.poll() is None:
            time.sleep(0.1)
            log.seek(0)
            address = re.search(r"http://\S+", log.read())
        assert address, (tmp_path / "up.log").read_text()
        yield {**environment, "SHOAL_SERVER": address.group()}
    finally:
        up.send_signal(signal.SIGINT)
        try:
            up.wait(timeout=60)
        except subprocess.TimeoutExpired:
            up.kill()
            raise
        log.close()
    assert up.returncode == 0, (tmp_path / "up.log").read_text()


def play(page: Path, folder: Path, environment: dict[str, str], skip: set[str]) -> dict[str, str]:
    """Run a page's commands in order; return the output of each, the last one of equals."""
    outputs = {}
    for command in commands(page):
        words = command.split("#")[0].strip()
        if words in skip:
            continue
        done = subprocess.run(
            words,
            shell=True,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        outputs[words] = done.stdout
    return outputs


@pytest.mark.slow
def test_the_tutorial_as_written(tmp_path, fleet):
    folder = tmp_path / "work"
    folder.mkdir()
    outputs = play(ROOT / "docs/tutorial/first-task.md", folder, fleet, skip={"shoal up"})
    assert "2 results as expected" in outputs["shoal task test interest"]
    assert "version 2" in outputs["shoal task publish interest"]
    assert "KeyError: 'photo'" in outputs["shoal task results interest --version 2 --kind runs"]
    assert re.search(r"interest +1 +(good|trial)", outputs["shoal fleet status"])
    assert not re.search(r"interest +2 +(good|trial)", outputs["shoal fleet status"])


def test_the_tutorial_shows_what_the_template_prints(tmp_path):
    shown = (ROOT / "docs/tutorial/first-task.md").read_text(encoding="utf-8")
    block = re.search(r"```text\n(run 1.*?)```", shown, re.DOTALL).group(1)
    shoal = str(BIN / "shoal")
    subprocess.run([shoal, "task", "init", "interest"], cwd=tmp_path, check=True)
    done = subprocess.run(
        [shoal, "task", "test", "interest"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    times = re.compile(r"\d+\.\d+ ms")
    assert times.sub("T ms", done.stdout) == times.sub("T ms", block)


@pytest.mark.slow
def test_the_readme_as_written(tmp_path, fleet):
    folder = tmp_path / "work"
    folder.mkdir()
    skip = {"make demo", ". .venv/bin/activate", "shoal up"}
    outputs = play(ROOT / "README.md", folder, fleet, skip)
    assert "interest" in outputs["shoal task status interest"]
