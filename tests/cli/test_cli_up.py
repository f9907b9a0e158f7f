"""``shoal up --places``: the console of the platform with a map page of an index."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from shoal.cli import cli
from shoal.spatial import SpatialKeywordIndex


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "cafes"
    SpatialKeywordIndex.build([24.9, 25.0], [60.1, 60.2], keywords=["cafe", "bar"]).save(made)
    return made


def test_the_console_shows_the_places_and_follows_their_writer(
    folder: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "shoal.cli", "up", "--devices", "0", "--port", "0"]
    command += ["--dir", str(tmp_path / "up"), "--places", str(folder)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert running.stdout is not None
        console = running.stdout.readline().split()
        places = running.stdout.readline()
        assert console[0] == "console"
        assert f"{console[1]}/places, 2 of them" in places
        with httpx.Client(base_url=console[1], timeout=20) as client:
            assert 'href="/places"' in client.get("/").text
            assert "Cafes" in client.get("/places").text
            about = client.get("/places/api/about").json()
            assert (about["title"], about["places"]) == ("cafes", 2)
            with SpatialKeywordIndex.open(folder) as writer:
                writer.upsert([24.95], [60.15], ids=[7], keywords=["cafe"])
            for _ in range(100):
                found = client.get("/places/api/search", params={"q": "cafe"}).json()["results"]
                if len(found) == 2:
                    break
                time.sleep(0.1)
            assert [place["id"] for place in found] == [0, 7]
    finally:
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 0, errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_without_an_index_is_one_line(tmp_path: Path, there: bool) -> None:
    wrong = tmp_path / "wrong"
    if there:
        wrong.mkdir()
        (wrong / "note.txt").write_text("no index")
    words = ["up", "--devices", "0", "--port", "0", "--for", "1", "--dir", str(tmp_path / "up")]
    result = CliRunner().invoke(cli, [*words, "--places", str(wrong), "--json"])
    assert result.exit_code in {2, 4}
    assert "wrong" in json.loads(result.output.strip().splitlines()[-1])["message"]
    assert not (tmp_path / "up").exists()
