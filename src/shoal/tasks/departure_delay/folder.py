"""The task's source folder: what the author writes plus the models just trained."""

from __future__ import annotations

import shutil
from pathlib import Path

from shoal.core.files import write_bytes, write_text
from shoal.data.flights import SCHEDULE, WEATHER, FlightTable, busiest_aircraft, event_stream
from shoal.tasks.departure_delay.training import TrainedModels
from shoal.tasks.recording import write_recording
from shoal.wire.events import Event, new_ulid

__all__ = ["rainy_trace", "write_broken_folder", "write_task_folder"]

_SOURCE = Path(__file__).parent / "package"


def write_task_folder(folder: str | Path, models: TrainedModels) -> Path:
    """Write a complete task folder that ``shoal task build`` accepts.

    Parameters
    ----------
    folder : path-like
        Where to write; made if missing, overwritten if present.
    models : TrainedModels
        The networks.

    Returns
    -------
    Path
        The folder.
    """
    target = Path(folder)
    shutil.copytree(
        _SOURCE, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
    )
    (target / "models").mkdir(exist_ok=True)
    write_bytes(target / "models" / "stream.onnx", models.stream)
    write_bytes(target / "models" / "schedule.onnx", models.schedule)
    return target


def write_broken_folder(folder: str | Path, models: TrainedModels) -> Path:
    """Write the same task with a mistake that passes a review and fails in the field.

    It takes the logarithm of the rain, which is fine on the wet day on which it
    was tried and fails on every dry one. The demo releases it on purpose, to
    show the rollback.
    """
    target = write_task_folder(folder, models)
    main = target / "main.py"
    code = main.read_text()
    broken = code.replace('report.get("precip", 0.0) * 10', 'math.log(report["precip"])')
    if broken == code:
        raise AssertionError("main.py no longer has the line that the demo breaks")
    write_text(main, broken)
    return target


def rainy_trace(table: FlightTable, path: str | Path, *, flights: int = 12) -> Path:
    """Write a recording of departures that were filed in the rain.

    The demo's simulation test replays it: both versions pass there.

    Parameters
    ----------
    table : FlightTable
        Departures and weather.
    path : path-like
        The recording to write.
    flights : int
        How many departures.
    """
    events: list[Event] = []
    for tailnum in busiest_aircraft(table, 20):
        stream = event_stream(table, tailnum)
        for place, event in enumerate(stream[:-1]):
            wet = event.kind == WEATHER and event.content.get("precip", 0.0) > 0
            if wet and stream[place + 1].kind == SCHEDULE:
                pair = (event, stream[place + 1])
                events.extend(
                    Event(new_ulid(e.ts_us), e.kind, e.page, e.ts_us, content=e.content)
                    for e in pair
                )
        if len(events) >= 2 * flights:
            break
    events = events[: 2 * flights]
    write_recording(path, sorted(events, key=lambda event: event.ts_us))
    return Path(path)
