"""The fleet's commands against a real cloud."""

from __future__ import annotations

import pytest

from shoal.cloud.config import CloudConfig
from shoal.cloud.http import CloudServer
from shoal.cloud.service import Cloud


def test_an_empty_fleet(shoal, text):
    assert shoal("fleet", "status")["devices"] == 0
    assert shoal("fleet", "devices") == []
    assert "0 devices" in text("fleet", "status")


def test_cohorts_are_made_changed_and_listed(shoal, text):
    shoal("fleet", "cohort", "phones", 'device.os == "android"')
    shoal("fleet", "cohort", "phones", 'device.os == "ios"')
    predicates = {row["name"]: row["predicate"] for row in shoal("fleet", "cohorts")}
    assert predicates["phones"] == 'device.os == "ios"'
    assert "phones" in text("fleet", "cohorts")


@pytest.mark.parametrize(
    ("name", "predicate", "said"),
    [
        ("phones", "device.os ==", "predicate"),
        ("everyone", "true", "built in"),
        ("", "true", "name"),
    ],
)
def test_wrong_cohorts_are_refused(shoal, name, predicate, said):
    assert said in shoal("fleet", "cohort", name, predicate, fails=2)["message"]


def test_enrolment_tokens_are_all_different(shoal):
    first = shoal("fleet", "token", "--uses", "3", "--note", "lab")["token"]
    assert len(first) > 20
    assert first != shoal("fleet", "token")["token"]


def test_devices_that_do_not_exist(shoal):
    assert shoal("fleet", "device", "abc", fails=2)["error"] == "InputError"
    assert shoal("fleet", "device", "00" * 16, fails=4)["error"] == "NotFoundError"
    assert shoal("fleet", "revoke", "00" * 16, fails=4)["error"] == "NotFoundError"


def test_an_administrators_token_is_asked_for(tmp_path, shoal, monkeypatch):
    config = CloudConfig(data_dir=tmp_path / "closed", port=0, admin_token="open sesame")
    config.data_dir.mkdir()
    with Cloud.open(config) as cloud, CloudServer(cloud) as server:
        monkeypatch.setenv("SHOAL_SERVER", server.url)
        refused = shoal("fleet", "status", fails=1)
        assert "SHOAL_ADMIN_TOKEN" in refused["hint"]
        monkeypatch.setenv("SHOAL_ADMIN_TOKEN", "wrong")
        shoal("fleet", "status", fails=1)
        monkeypatch.setenv("SHOAL_ADMIN_TOKEN", "open sesame")
        assert shoal("fleet", "status")["devices"] == 0


def test_a_simulated_fleet(shoal, text, tmp_path):
    words = ("fleet", "simulate", "--devices", "3000", "--hours", "0.1", "--seed", "5")
    report = shoal(*words, "--out", str(tmp_path / "report"))
    assert report["devices"] == report["eligible"] == 3000
    assert report["outside_received"] == 0
    assert report["coverage_gap"] < 2 * report["dkw_band"]
    assert (tmp_path / "report/coverage.parquet").stat().st_size > 0
    again = shoal(*words)
    measured = ("check_us", "wall_s", "cpu_s", "peak_mib")
    assert {k: v for k, v in report.items() if k not in measured} == {
        k: v for k, v in again.items() if k not in measured
    }
    assert "devices reached" in text(*words)


def test_a_simulated_fleet_stops_a_harmful_release(shoal, tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text(
        "steps = [2000, 10000]\nmin_dwell_s = 60\n[[guardrails]]\n"
        'name = "failure"\nkind = "failure"\nlimit = 0.05\n'
    )
    report = shoal(
        *("fleet", "simulate", "--devices", "3000", "--hours", "1", "--policy", str(policy)),
        *("--failure-rate", "0.5"),
    )
    assert report["state"] in ("rolling_back", "rolled_back")
    assert 0 < report["harmed_devices"] < 500


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--devices", "0"], "field 'devices'"),
        (["--predicate", "device.os =="], "predicate"),
        (["--failure-rate", "2"], "failure_rate"),
        (["--beta", "3"], "policy"),
    ],
)
def test_wrong_simulations_are_refused(shoal, words, said):
    assert said in shoal("fleet", "simulate", *words, fails=2)["message"]
