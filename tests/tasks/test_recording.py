"""Recordings are read exactly, written back exactly, and refused by line and field."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.errors import InputError, NotFoundError
from shoal.tasks.recording import RECORDING_START_US, read_recording, write_recording
from shoal.wire.events import Event


def recording(tmp_path, *lines):
    path = tmp_path / "events.jsonl"
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    )
    return path


def test_names_numbers_and_relative_times(tmp_path):
    path = recording(
        tmp_path,
        {"kind": "page_enter", "page": "detail", "at_ms": 0, "visit": "one"},
        "",
        {"kind": 64, "page": "gate", "at_ms": 1.5, "content": {"delay": 7}},
        {"kind": 4, "page": "detail", "ts_us": 12, "visit": "one", "id": "ab" * 16},
    )
    enter, own, click = read_recording(path)
    assert (enter.kind, enter.page, enter.ts_us) == (1, "detail", RECORDING_START_US)
    assert (own.kind, own.ts_us, own.content) == (64, RECORDING_START_US + 1500, {"delay": 7})
    assert (click.ts_us, click.id) == (12, b"\xab" * 16)
    assert enter.visit == click.visit
    assert own.visit is None


def test_ids_are_stable_and_different(tmp_path):
    line = {"kind": 4, "page": "a", "at_ms": 0}
    path = recording(tmp_path, line, line)
    first = [event.id for event in read_recording(path)]
    assert first == [event.id for event in read_recording(path)]
    assert len(set(first)) == 2


@given(
    st.lists(
        st.builds(
            Event,
            id=st.binary(min_size=16, max_size=16),
            kind=st.integers(0, 255),
            page=st.text(min_size=1, max_size=8).filter(lambda text: text.isprintable()),
            ts_us=st.integers(0, 1 << 52),
            visit=st.none() | st.binary(min_size=16, max_size=16),
            content=st.dictionaries(st.text(max_size=4), st.integers(-9, 9), max_size=3),
        ),
        max_size=5,
    )
)
def test_written_recordings_read_back_equal(tmp_path_factory, events):
    path = tmp_path_factory.mktemp("recording") / "events.jsonl"
    assert write_recording(path, events) == len(events)
    assert list(read_recording(path)) == events


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "row 2: not JSON"),
        ("[]", "expected an object"),
        ({"kind": "tap", "page": "a", "at_ms": 0}, "row 2, field 'kind'"),
        ({"kind": True, "page": "a", "at_ms": 0}, "field 'kind'"),
        ({"kind": 300, "page": "a", "at_ms": 0}, "field 'kind'"),
        ({"kind": 4, "page": "", "at_ms": 0}, "field 'page'"),
        ({"kind": 4, "page": "a"}, "either at_ms or ts_us"),
        ({"kind": 4, "page": "a", "at_ms": 0, "ts_us": 0}, "either at_ms or ts_us"),
        ({"kind": 4, "page": "a", "at_ms": "soon"}, "field 'at_ms'"),
        ('{"kind": 4, "page": "a", "at_ms": 1e300}', "out of range"),
        ({"kind": 4, "page": "a", "ts_us": -1}, "out of range"),
        ({"kind": 4, "page": "a", "at_ms": 0, "content": []}, "field 'content'"),
        ({"kind": 4, "page": "a", "at_ms": 0, "visit": 7}, "field 'visit'"),
        ({"kind": 4, "page": "a", "at_ms": 0, "id": "xyz"}, "field 'id'"),
        ({"kind": 4, "page": "a", "at_ms": 0, "time": 1}, "field 'time': unknown field"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, said):
    path = recording(tmp_path, {"kind": 4, "page": "a", "at_ms": 0}, line)
    with pytest.raises(InputError, match=said) as caught:
        list(read_recording(path))
    assert caught.value.source == "events.jsonl"


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(NotFoundError):
        list(read_recording(tmp_path / "none.jsonl"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        list(read_recording(tmp_path / "binary"))
