"""The task's source folder: what the author writes, and the fold beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

from shoal.core.files import write_text
from shoal.device.stream import ipv

__all__ = ["write_task_folder"]

_SOURCE = Path(__file__).parent / "package"
_ENTRY = 'device = "main:run"'
_RECORDS = """
[[outputs]]
name = "visit"
kind = "result"
dtype = "json"
bytes_per_day = 2000000
uplink = "idle"
"""


def write_task_folder(folder: str | Path, *, records: bool = False) -> Path:
    """Write a complete task folder that ``shoal task build`` accepts.

    The fold (:mod:`shoal.device.stream.ipv`, standard library only) is copied into
    it: a package brings all its code, so a device may be older than the task.

    Parameters
    ----------
    folder : path-like
        Where to write; made if missing, overwritten if present.
    records : bool
        Also send each visit's whole record, about 1 KB of JSON, as the result
        ``visit``; its newest ``revision`` counts. Without it only the feature
        ``ipv``, 128 bytes a visit, leaves the device.

    Returns
    -------
    Path
        The folder.
    """
    target = Path(folder)
    shutil.copytree(
        _SOURCE, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
    )
    write_text(target / "ipv.py", Path(ipv.__file__).read_text(encoding="utf-8"))
    if records:
        manifest = target / "task.toml"
        text = manifest.read_text(encoding="utf-8")
        with_records = text.replace(_ENTRY, 'device = "main:run_with_records"')
        if with_records == text:
            raise AssertionError("task.toml no longer has the entry that is replaced here")
        write_text(manifest, with_records + _RECORDS)
    return target
