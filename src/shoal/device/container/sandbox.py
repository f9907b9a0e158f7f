"""How far a task is shut in, by level, and what this machine can do.

0 nothing · 1 resource limits, clean environment, closed descriptors ·
2 and no new privileges, no capabilities, Landlock (package and libraries to
read, one scratch folder to write, no TCP) · 3 and a seccomp allow-list (no
sockets, no processes). Walle sheet C.1.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys
from pathlib import Path

from shoal.device.container import landlock, seccomp

__all__ = ["enter", "library_paths", "probe_sandbox"]

#: The folder that holds ``shoal/device``; a worker may load more of its own code.
_PACKAGE = Path(__file__).resolve().parent.parent
_libc = ctypes.CDLL(None, use_errno=True)
_CAPABILITY_VERSION_3 = 0x20080522
_PR_CAPBSET_DROP = 24

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
    # Not sys.path as it is: a program's own folder may be on it, and with it its data.
    packages = [entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
    paths = {*_python_folders(), *packages, *_LIBRARIES, str(_PACKAGE)}
    return sorted(str(Path(path).resolve()) for path in paths if Path(path).exists())


def _python_folders() -> list[str]:
    name = f"lib/python{sys.version_info.major}.{sys.version_info.minor}"
    return [f"{prefix}/{name}" for prefix in (sys.prefix, sys.base_prefix, sys.base_exec_prefix)]


def enter(
    level: int,
    *,
    read: list[str],
    scratch: str,
    memory_bytes: int,
    file_bytes: int,
    threads: int = 1,
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
    file_bytes : int
        Largest file that it may write.
    threads : int
        Threads that the task was granted.

    Raises
    ------
    OSError
        The kernel refused; the process must end.
    """
    if level < 1:
        return
    _limit(resource.RLIMIT_AS, _address_space() + memory_bytes)
    _limit(resource.RLIMIT_FSIZE, file_bytes)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, 64)
    if level < 3 and threads <= 1:
        # No processes. The kernel counts threads too, and does not count root's; level 3
        # forbids processes to everyone and leaves threads alone.
        _limit(resource.RLIMIT_NPROC, 0)
    os.environ.clear()
    os.environ.update(PATH="/nonexistent", HOME=scratch, TMPDIR=scratch, LC_ALL="C.UTF-8")
    os.chdir(scratch)
    if level >= 2:
        _drop_capabilities()
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


def _drop_capabilities() -> None:
    """Give up every capability: a worker of root may not lift its own limits again."""
    for number in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) != 0:
            break  # not ours to drop, or past the last one of this kernel
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
    nothing = ctypes.create_string_buffer(24)
    if _libc.capset(header, nothing) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
