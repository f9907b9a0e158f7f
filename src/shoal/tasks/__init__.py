"""Tasks: what is shipped to devices, and what tries a task before it is shipped.

``departure_delay`` and ``ipv`` are first-party tasks: each writes a folder that
:func:`build_package` builds. ``recording`` reads and writes recorded events; with
them :func:`play_task` runs a folder for its author to look at, :func:`simulate_task`
judges an installed version, and a :class:`VirtualDevice` judges every draft that a
cloud offers.

The names below load when they are first used, because they bring the device's end.

Examples
--------
>>> from shoal.tasks import play_task
>>> play_task("interest", events).emitted  # doctest: +SKIP
[{'visit': {'page': 'detail', 'dwell_s': 21.5, 'clicks': 2}}]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.tasks.playback import play_task
    from shoal.tasks.simulate import SimulationOutcome, VirtualDevice, simulate_task
    from shoal.wire.package import build_package

_HOMES = {
    "SimulationOutcome": "shoal.tasks.simulate",
    "VirtualDevice": "shoal.tasks.simulate",
    "build_package": "shoal.wire.package",
    "play_task": "shoal.tasks.playback",
    "simulate_task": "shoal.tasks.simulate",
}

__all__ = ["SimulationOutcome", "VirtualDevice", "build_package", "play_task", "simulate_task"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
