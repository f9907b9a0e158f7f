"""Publishing and releasing against a real cloud."""

from __future__ import annotations

import os

import pytest
from click.testing import CliRunner

from shoal.cli import cli


@pytest.fixture
def published(shoal):
    shoal("task", "init", "interest")
    return shoal("task", "publish", "interest")


def test_publishing_twice_is_one_version(shoal, published):
    assert published["new"]
    assert published["version"] == 1
    again = shoal("task", "publish", "interest")
    assert (again["new"], again["version"], again["sha256"]) == (False, 1, published["sha256"])


def test_a_changed_folder_is_a_new_version(shoal, published, tmp_path):
    main = tmp_path / "work/interest/main.py"
    main.write_text(main.read_text().replace("+ 1", "+ 2"))
    second = shoal("task", "publish", "interest", "--label", "twice")
    assert (second["version"], second["label"]) == (2, "twice")
    assert shoal("task", "list")[0]["versions"] == [1, 2]


def test_caches_and_hidden_files_do_not_travel(shoal, published, tmp_path):
    folder = tmp_path / "work/interest"
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__/main.pyc").write_bytes(b"\0")
    (folder / ".secret").write_text("x")
    assert shoal("task", "publish", "interest")["version"] == 1


def test_release_goes_to_everyone_by_default_and_warns(shoal, published):
    made = shoal("task", "release", "interest")
    assert made["state"] == "gray"
    assert any(line.startswith("cannot") for line in made["warnings"])
    assert shoal("task", "status")["releases"][0]["id"] == made["id"]


def test_orders_by_task_name_and_by_number(shoal, published):
    made = shoal("task", "release", "interest", "--draft", "--steps", "5000,10000")
    assert made["steps"] == [5000, 10000]
    number = str(made["id"])
    assert shoal("task", "start", number)["state"] == "gray"
    assert shoal("task", "pause", "interest", "--reason", "lunch")["state"] == "paused"
    assert shoal("task", "resume", "interest")["state"] == "gray"
    assert shoal("task", "rollback", number)["state"] in ("rolling_back", "rolled_back")
    history = shoal("task", "status", "interest")["history"]
    assert "lunch" in [entry["reason"] for entry in history]


def test_policy_from_a_file_and_options_over_it(shoal, published, tmp_path):
    policy = tmp_path / "work/policy.toml"
    policy.write_text('steps = [1, 10000]\nalpha = 0.05\nrule = "always_valid"\n')
    made = shoal("task", "release", "interest", "--policy", "policy.toml", "--rule", "threshold")
    assert made["steps"] == [1, 10000]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--steps", "5000,100"], 2, "rise"),
        (["--steps", "half"], 2, "whole numbers"),
        (["--cohort", "nobody"], 4, "nobody"),
        (["--version", "7"], 4, "no version 7"),
        (["--beta-device", "xyz"], 2, "beta_devices"),
        (["--policy", "none.toml"], 4, "none.toml"),
    ],
)
def test_wrong_releases_are_refused_with_the_reason(shoal, published, words, code, said):
    assert said in shoal("task", "release", "interest", *words, fails=code)["message"]
    assert shoal("task", "status", "interest")["releases"] == []


def test_two_operators_at_once(shoal, published):
    """The second order names a state that is no longer there."""
    made = shoal("task", "release", "interest")
    from shoal.cli.client import AdminClient
    from shoal.core.errors import ConflictError

    with AdminClient(os.environ["SHOAL_SERVER"]) as client:
        shoal("task", "pause", "interest")
        with pytest.raises(ConflictError):
            client.call("POST", f"/releases/{made['id']}/resume", if_match=made["lock_version"])
        client.call("POST", f"/releases/{made['id']}/resume")  # without it, the last one wins


def test_wait_ends_when_the_state_cannot_come(shoal, published):
    shoal("task", "release", "interest")
    assert shoal("task", "wait", "interest", "gray")["state"] == "gray"
    late = shoal("task", "wait", "interest", "full", "--timeout", "0", fails=6)
    assert "waits for" in late["hint"]
    number = str(shoal("task", "rollback", "interest")["id"])
    shoal("task", "wait", number, "rolled_back", "--timeout", "20")
    assert "ended as" in shoal("task", "wait", number, "full", fails=5)["message"]


def test_floor_only_rises(shoal, published):
    assert shoal("task", "floor", "interest", "1")["floor"] == 1
    assert shoal("task", "floor", "interest", "9", fails=2)["error"] == "InputError"


def test_names_that_do_not_exist(shoal, published):
    assert shoal("task", "status", "intrest", fails=4)["message"] == "no task 'intrest'"
    assert "in motion" in shoal("task", "pause", "interest", fails=4)["message"]
    assert shoal("task", "release", "other", fails=4)["hint"] == "shoal task publish FOLDER"


def test_what_a_person_sees(text, published):
    assert "now gray 0.1 %" in text("task", "release", "interest")
    shown = text("task", "status", "interest")
    assert "guardrail" in shown
    assert "created" in shown
    assert "interest" in text("task", "list")
    assert "received" in text("task", "results", "interest")


def test_no_server_is_one_line_and_a_hint():
    result = CliRunner().invoke(cli, ["task", "list", "--server", "http://127.0.0.1:9"])
    assert result.exit_code == 6
    assert result.stderr.startswith("error: no cloud answers at http://127.0.0.1:9")
    assert "shoal server run" in result.stderr


@pytest.mark.parametrize("address", ["", "nowhere", "ftp://127.0.0.1"])
def test_addresses_that_are_none(address):
    result = CliRunner().invoke(cli, ["task", "list", "--server", address])
    assert result.exit_code == 2
    assert "field 'server'" in result.stderr
