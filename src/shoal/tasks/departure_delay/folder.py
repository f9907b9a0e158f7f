"""The task's source folder: what the author writes plus the models just trained."""

from __future__ import annotations

import shutil
from pathlib import Path

from shoal.core.files import write_bytes, write_text
from shoal.tasks.departure_delay.training import TrainedModels

__all__ = ["write_broken_folder", "write_task_folder"]

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

    It reads the wind gusts of the report without asking whether there are any;
    most reports have none. The demo releases it on purpose, to show the rollback.
    """
    target = write_task_folder(folder, models)
    main = target / "main.py"
    code = main.read_text()
    broken = code.replace('report.get("wind_speed", 10.0) / 20', 'report["wind_gust"] / 20')
    if broken == code:
        raise AssertionError("main.py no longer has the line that the demo breaks")
    write_text(main, broken)
    return target
