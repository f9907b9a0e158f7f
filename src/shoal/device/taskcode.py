"""An installed task in the form in which a container runs it."""

from __future__ import annotations

from collections.abc import Mapping

from shoal.device.container.requests import TaskCode
from shoal.device.packages import InstalledTask

__all__ = ["task_code"]


def task_code(task: InstalledTask, engine: str, engines: Mapping[str, str]) -> TaskCode:
    """Return an installed task in the form that the pool runs.

    Parameters
    ----------
    task : InstalledTask
    engine : str
        Engine of a task that names none.
    engines : mapping of str to str
        Engines that this device has, with their versions.
    """
    manifest = task.manifest
    wanted = [name for name in manifest.requires.engines if name in engines]
    return TaskCode(
        task=manifest.task,
        version=manifest.version,
        folder=task.folder,
        entry=manifest.entry.get("device", "main:run"),
        digest=task.digest,
        models={
            resource.name: task.folder / resource.path
            for resource in manifest.resources
            if resource.kind == "model"
        },
        engine=wanted[0] if wanted else engine,
        outputs={
            output.name: (output.kind, output.dtype)
            for output in manifest.outputs
            if output.kind != "events"
        },
        deadline_ms=manifest.limits.deadline_ms,
        memory_mb=manifest.limits.memory_mb,
        output_kb=manifest.limits.output_kb,
        sandbox_level=manifest.isolation.sandbox_level,
        seed=manifest.determinism.seed,
    )
