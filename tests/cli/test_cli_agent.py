"""``shoal agent run`` against a real cloud."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text(
        "".join(
            json.dumps({"kind": kind, "page": "detail", "at_ms": at}) + "\n"
            for at, kind in ((0, "page_enter"), (10, "click"), (2000, "page_exit"))
        )
    )
    return str(path)


def release_to_all(shoal, cloud) -> None:
    shoal("task", "init", "interest")
    shoal("task", "publish", "interest")
    made = shoal("task", "release", "interest", "--draft")
    shoal("task", "override", str(made["id"]), "--reason", "test")


def test_replay_enrol_install_run_send(shoal, cloud, recording):
    release_to_all(shoal, cloud)
    words = ("agent", "run", "--for", "3", "--attribute", "app.version=2.1", "--replay", recording)
    state = shoal(*words)
    assert state["drained"]
    assert state["events"] == 3
    (device,) = shoal("fleet", "devices")
    assert device["attributes"]["app"] == {"version": "2.1"}
    assert device["holdings"][0]["task"] == "interest"
    (result,) = shoal("task", "results", "interest")
    assert result["value"] == {"page": "detail", "dwell_s": 2.0, "clicks": 1}
    # The same recording again is the same events: nothing is stored twice.
    assert shoal(*words)["events"] == 3
    assert len(shoal("task", "results", "interest")) == 1


def test_a_virtual_device_passes_a_draft_that_runs_and_holds_one_that_does_not(
    shoal, cloud, recording, tmp_path
):
    shoal("task", "init", "interest")
    shoal("task", "publish", "interest")
    policy = tmp_path / "policy.toml"
    policy.write_text('simulation = "required"\n')
    virtual = ("agent", "run", "--virtual", "--replay", recording, "--for", "3")
    shoal("task", "release", "interest", "--draft", "--policy", str(policy))
    shoal(*virtual)
    first = shoal("task", "status", "interest")["releases"][0]
    assert first["state"] == "simulated"
    shoal("task", "abort", str(first["id"]))
    main = tmp_path / "work/interest/main.py"
    main.write_text(main.read_text().replace("1_000_000", "0"))
    shoal("task", "publish", "interest")
    shoal("task", "release", "interest", "--draft", "--policy", str(policy))
    shoal(*virtual)
    assert shoal("task", "status", "interest")["releases"][0]["state"] == "draft"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--attribute", "version=2"], 2, "attribute"),
        (["--attribute", "app.version"], 2, "ROOM.NAME=VALUE"),
        (["--server", "nowhere"], 2, "server_url"),
        (["--replay", "none.jsonl"], 4, "none.jsonl"),
        (["--virtual"], 2, "recordings"),
        (["--config", "none.toml"], 4, "none.toml"),
    ],
)
def test_wrong_settings_are_one_line(shoal, words, code, said):
    assert said in shoal("agent", "run", "--for", "0", *words, fails=code)["message"]


def start(tmp_path: Path, url: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "shoal.cli", "agent", "run", "--server", url],
        cwd=tmp_path,
        env={**os.environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_sigterm_ends_it_and_a_second_agent_is_refused(server, shoal, tmp_path):
    agent = start(tmp_path, server.url)
    try:
        assert "device " in agent.stdout.readline()
        second = start(tmp_path, server.url)
        _, said = second.communicate(timeout=60)
        assert second.returncode == 5
        assert "in use by" in said
        assert len(said.splitlines()) == 2
        until = time.monotonic() + 20
        while not shoal("fleet", "devices") and time.monotonic() < until:
            time.sleep(0.1)
    finally:
        agent.send_signal(signal.SIGTERM)
        out, errors = agent.communicate(timeout=60)
    assert agent.returncode == 0, errors
    assert out.endswith("stopped\n")
