"""How far a task is shut in, by level, and what this machine can do.

0 nothing · 1 resource limits, clean environment, closed descriptors ·
2 and no new privileges, Landlock (package and libraries to read, one scratch
folder to write, no TCP) · 3 and a seccomp allow-list (no sockets, no processes).
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

from shoal.device.container import landlock, seccomp

__all__ = ["enter", "library_paths", "probe_sandbox"]

_DEVICES = ("/dev/null", "/dev/urandom", "/dev/zero")
_KERNEL_FACTS = (
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/self/status",
    "/proc/self/statm",
    "/sys/devices/system",
)
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")


def probe_sandbox() -> int:
    """Return the highest level that this machine can keep (0 to 3)."""
    if sys.platform != "linux":
        return 0
    if landlock.abi() < 1:
        return 1
    return 3 if seccomp.available() else 2


def library_paths() -> list[str]:
    """Return the folders that Python and its libraries are read from."""
    paths = {sys.prefix, sys.base_prefix, sys.exec_prefix, *_LIBRARIES}
    paths.update(entry for entry in sys.path if entry and os.path.isdir(entry))  # noqa: PTH112
    return sorted(str(Path(path).resolve()) for path in paths if Path(path).exists())


def enter(
    level: int, *, read: list[str], scratch: str, memory_bytes: int, output_bytes: int
) -> None:
    """Shut this process in, for good.

    Parameters
    ----------
    level : int
        0 to 3; must not exceed :func:`probe_sandbox`.
    read : list of str
        Paths that the task may read, besides the libraries.
    scratch : str
        The one folder that it may write.
    memory_bytes : int
        How much address space it may add to what the process has now.
    output_bytes : int
        Largest file that it may write.

    Raises
    ------
    OSError
        The kernel refused; the process must end.
    """
    if level < 1:
        return
    _limit(resource.RLIMIT_AS, _address_space() + memory_bytes)
    _limit(resource.RLIMIT_FSIZE, output_bytes)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, 64)
    if os.geteuid() != 0:  # root is not counted, and level 3 forbids forking anyway
        _limit(resource.RLIMIT_NPROC, 0)
    os.environ.clear()
    os.environ.update(PATH="/nonexistent", HOME=scratch, TMPDIR=scratch, LC_ALL="C.UTF-8")
    os.chdir(scratch)
    if level >= 2:
        landlock.restrict([*library_paths(), *_DEVICES, *_KERNEL_FACTS, *read], [scratch])
    if level >= 3:
        seccomp.apply()


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    wanted = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (wanted, wanted))


def _address_space() -> int:
    """Return the address space of this process in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")
