"""The departure task: device code against the offline computation, and what it learns."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import polars as pl
import pytest

from shoal.core.errors import InputError
from shoal.data.flights import FlightTable, busiest_aircraft, event_stream, load_flights
from shoal.tasks.departure_delay import (
    TrainedModels,
    auc,
    matrix,
    offline_features,
    rainy_trace,
    train,
    write_broken_folder,
    write_task_folder,
)
from shoal.tasks.departure_delay.features import LEG_COLUMNS, SCHEDULE_COLUMNS, STREAM_COLUMNS
from shoal.tasks.departure_delay.training import network_to_onnx
from shoal.tasks.recording import read_recording


@pytest.fixture(scope="module")
def table() -> FlightTable:
    return load_flights()


@pytest.fixture(scope="module")
def features(table: FlightTable) -> pl.DataFrame:
    return offline_features(table)


@pytest.fixture(scope="module")
def models(features: pl.DataFrame) -> TrainedModels:
    return train(features)


class RecordingContext:
    """What a task sees, without a container: enough to run ``main.py`` by hand."""

    def __init__(self, folder: Path) -> None:
        self.state: dict[str, Any] = {}
        self.emitted: list[dict[str, Any]] = []
        self.inputs: list[list[float]] = []
        self.legs: dict[str, list[float]] = {}
        self.features = SimpleNamespace(put=lambda _, key, value: self.legs.update({key: value}))
        self.sessions = {
            name: onnxruntime.InferenceSession(folder / "models" / f"{name}.onnx")
            for name in ("stream", "schedule")
        }

    def model(self, name: str) -> SimpleNamespace:
        def run(feeds: dict[str, list[list[float]]]) -> dict[str, Any]:
            if name == "stream":
                self.inputs.append(feeds["x"][0])
            x = np.asarray(feeds["x"], dtype=np.float32)
            return {"p": self.sessions[name].run(None, {"x": x})[0].tolist()}

        return SimpleNamespace(run=run)

    def emit(self, name: str, value: dict[str, Any]) -> None:
        assert name == "risk"
        self.emitted.append(value)


def load_main(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("departure_main", folder / "main.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_device_code_equals_the_offline_joins(
    table: FlightTable, features: pl.DataFrame, models: TrainedModels, tmp_path: Path
) -> None:
    folder = write_task_folder(tmp_path / "task", models)
    main = load_main(folder)
    for tailnum in busiest_aircraft(table, 12, per_carrier=2):
        context = RecordingContext(folder)
        main.run(context, SimpleNamespace(events=event_stream(table, tailnum)))
        rows = features.filter(pl.col("tailnum") == tailnum)
        assert [entry["departure"] for entry in context.emitted] == rows["departure"].to_list()
        expected = matrix(rows, STREAM_COLUMNS)
        np.testing.assert_array_equal(np.asarray(context.inputs, dtype=np.float32), expected)
        session = context.sessions["stream"]
        p = session.run(None, {"x": expected})[0][:, 0]
        np.testing.assert_allclose([entry["p"] for entry in context.emitted], p, atol=1e-6)
        assert list(context.legs) == rows["departure"].to_list()


def test_split_into_runs_changes_nothing(
    table: FlightTable, models: TrainedModels, tmp_path: Path
) -> None:
    folder = write_task_folder(tmp_path / "task", models)
    main = load_main(folder)
    events = event_stream(table, "N725MQ")[:200]
    whole, split = RecordingContext(folder), RecordingContext(folder)
    main.run(whole, SimpleNamespace(events=events))
    for event in events:
        main.run(split, SimpleNamespace(events=[event]))
    assert whole.emitted == split.emitted
    assert whole.state == split.state


def test_the_stream_helps_on_weeks_never_seen(
    features: pl.DataFrame, models: TrainedModels
) -> None:
    held_out = features.filter((pl.col("week") >= 26) & pl.col("late").is_not_null())
    labels = held_out["late"].to_numpy()
    scores = {
        name: onnxruntime.InferenceSession(blob).run(None, {"x": matrix(held_out, columns)})[0]
        for name, blob, columns in (
            ("stream", models.stream, STREAM_COLUMNS),
            ("schedule", models.schedule, SCHEDULE_COLUMNS),
        )
    }
    with_stream, without = auc(labels, scores["stream"]), auc(labels, scores["schedule"])
    assert with_stream > without + 0.03
    shuffled = np.random.default_rng(0).permutation(labels)  # negative control
    assert abs(auc(shuffled, scores["stream"]) - 0.5) < 0.02


def test_no_input_looks_ahead(table: FlightTable) -> None:
    """Changing what happens after a departure was filed must not change its inputs."""
    rows = table.departures.filter(pl.col("tailnum") == "N725MQ")
    cut = rows["scheduled"][200]
    changed = rows.with_columns(
        dep_delay=pl.when(pl.col("scheduled") >= cut).then(240).otherwise("dep_delay"),
        arr_delay=pl.when(pl.col("scheduled") >= cut).then(240).otherwise("arr_delay"),
    )
    before = offline_features(FlightTable(rows, table.weather))
    after = offline_features(FlightTable(changed, table.weather))
    up_to = pl.col("scheduled") <= cut
    inputs = list(STREAM_COLUMNS)
    assert before.filter(up_to).select(inputs).equals(after.filter(up_to).select(inputs))
    later = pl.col("scheduled") > cut
    legs = list(LEG_COLUMNS)
    assert not before.filter(later).select(legs).equals(after.filter(later).select(legs))


def test_training_is_reproducible(features: pl.DataFrame) -> None:
    part = features.filter(pl.col("week") < 4)
    first, again = train(part, before_week=4), train(part, before_week=4)
    assert first == again
    assert train(part, before_week=4, seed=1).stream != first.stream


def test_broken_version_fails_on_real_reports(
    table: FlightTable, models: TrainedModels, tmp_path: Path
) -> None:
    folder = write_broken_folder(tmp_path / "task", models)
    wet = list(read_recording(rainy_trace(table, tmp_path / "rain.jsonl")))
    context = RecordingContext(folder)
    load_main(folder).run(context, SimpleNamespace(events=wet))
    assert len(context.emitted) == 12  # passes on the rainy trace that it was tried on
    with pytest.raises(ValueError, match="math domain"):
        load_main(folder).run(context, SimpleNamespace(events=event_stream(table, "N725MQ")))


def test_onnx_writer_equals_numpy() -> None:
    rng = np.random.default_rng(3)
    weights = [rng.normal(size=(5, 4)), rng.normal(size=(4, 1))]
    biases = [rng.normal(size=4), rng.normal(size=1)]
    x = rng.normal(size=(7, 5)).astype(np.float32)
    hidden = np.maximum(x @ weights[0] + biases[0], 0)
    expected = 1 / (1 + np.exp(-(hidden @ weights[1] + biases[1])))
    session = onnxruntime.InferenceSession(network_to_onnx(weights, biases, "tiny"))
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, atol=1e-5)


def test_undefined_questions_are_refused(features: pl.DataFrame) -> None:
    with pytest.raises(InputError, match="one class"):
        auc(np.zeros(3, dtype=np.int8), np.zeros(3, dtype=np.float32))
    with pytest.raises(InputError, match="before_week"):
        train(features, before_week=0)
