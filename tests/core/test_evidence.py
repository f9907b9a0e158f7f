"""Evidence files hold to their schema, their claims to logic, and both keep the machine private."""

from __future__ import annotations

import hashlib
import json
import socket

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.errors import InputError, NotFoundError
from shoal.core.evidence import (
    Claim,
    DataSource,
    EvidenceRecord,
    Machine,
    Peer,
    data_source,
    evidence_schema,
    generate_schema,
    library_versions,
    read_evidence,
    this_machine,
    today,
    write_evidence,
)

MACHINE = Machine(cores=2, cpu="Example", memory_gib=8.0, system="Linux x86_64", python="3.11.7")


def record(**changes) -> EvidenceRecord:
    base = EvidenceRecord(
        method="walle",
        command="python benchmarks/walle.py --quick",
        date="2026-08-01",
        seed=0,
        machine=MACHINE,
        versions={"numpy": "2.4.6"},
        claims=[
            Claim(id="walle.trie", statement="cheap triggers", ours="21x", status="direction"),
            Claim(id="walle.reach", statement="minutes", status="not attempted"),
        ],
        figures={"trigger_ratio": 21.0},
        data=[DataSource(name="shop", sha256="0" * 64)],
        peers=[Peer(name="scan", version="1")],
    )
    return msgspec.structs.replace(base, **changes)


def test_round_trip_and_json_schema(tmp_path):
    path = tmp_path / "walle.json"
    write_evidence(path, record())
    assert read_evidence(path) == record()
    jsonschema.validate(
        json.loads(path.read_text()), evidence_schema(), cls=jsonschema.Draft202012Validator
    )


def test_the_shipped_schema_is_the_derived_one():
    assert evidence_schema() == generate_schema()


def test_negative_control_the_schema_refuses():
    plain = msgspec.to_builtins(record())
    for broken in (
        {**plain, "surprise": 1},
        {**plain, "schema": 2},
        {**plain, "claims": [{**plain["claims"][0], "status": "great"}]},
        {key: value for key, value in plain.items() if key != "command"},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, evidence_schema())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"date": "1 August"}, "YYYY-MM-DD"),
        ({"data": [DataSource(name="x", sha256="abc")]}, "64 hexadecimal"),
        ({"figures": {"ratio": float("nan")}}, "not JSON compliant"),
        ({"figures": {"ratio": "fast"}}, "float"),
        ({"command": "python /home/ann/bench.py"}, "absolute path"),
        ({"details": {"log": ["see /tmp/out.txt"]}}, "absolute path"),
        ({"details": {"log": "C:\\Users\\ann"}}, "absolute path"),
        ({"claims": [Claim(id="a", statement="s", status="reproduced")]}, "without a figure"),
        ({"claims": [Claim(id="a", statement="s", status="direction")]}, "without a figure"),
        (
            {"claims": [Claim(id="a", statement="s", ours="1", status="not attempted")]},
            "with a figure",
        ),
        (
            {"claims": [Claim(id="a", statement="s", ours="1", status="reproduced")]},
            "no published figure",
        ),
        ({"claims": [Claim(id="a", statement="s", status="not attempted")] * 2}, "twice"),
        ({"claims": [Claim(id="a", statement="s", ours="1", status="fine")]}, "Invalid enum"),
    ],
)
def test_bad_records_are_refused_and_nothing_is_written(tmp_path, changes, said):
    path = tmp_path / "bad.json"
    with pytest.raises(InputError, match=said):
        write_evidence(path, record(**changes))
    assert not path.exists()


def test_host_names_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "build-07")
    with pytest.raises(InputError, match="name of this host"):
        write_evidence(tmp_path / "a.json", record(details={"where": "ran on build-07."}))
    monkeypatch.setattr(socket, "gethostname", lambda: "walle")  # an ordinary word
    write_evidence(tmp_path / "a.json", record())


def test_urls_and_ratios_are_not_taken_for_paths(tmp_path):
    details = {"origin": "https://example.org/data/home/", "unit": "events/s", "part": "a/b"}
    write_evidence(tmp_path / "a.json", record(details=details))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_record_or_an_input_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("evidence") / "x.json"
    path.write_bytes(data)
    with pytest.raises(InputError):
        read_evidence(path)


def test_missing_file(tmp_path):
    with pytest.raises(NotFoundError):
        read_evidence(tmp_path / "none.json")


def test_this_machine_can_be_written_here(tmp_path):
    write_evidence(tmp_path / "a.json", record(machine=this_machine(), date=today()))
    assert read_evidence(tmp_path / "a.json").machine.cores >= 1


def test_data_source_does_not_depend_on_order_or_place(tmp_path):
    one, two = tmp_path / "a.csv", tmp_path / "b.csv"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    assert data_source("one", one).sha256 == hashlib.sha256(b"1").hexdigest()
    assert data_source("both", one, two) == data_source("both", two, one)
    assert data_source("both", one, two).sha256 != data_source("one", one).sha256
    with pytest.raises(InputError):
        data_source("none")


def test_versions_name_what_is_missing():
    assert library_versions("numpy", "no-such-library-x")["no-such-library-x"] == "not installed"
