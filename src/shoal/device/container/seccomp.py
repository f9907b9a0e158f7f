"""A seccomp allow-list for task workers, assembled here as classic BPF.

A worker computes, reads its package and answers on one descriptor; it needs no
sockets, processes or mounts. A system call that is not on the list fails with
``EPERM``, so that the task gets an exception and its VM lives on.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

__all__ = ["apply", "available"]

_PR_SET_SECCOMP, _PR_GET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 21, 38
_MODE_FILTER = 2
_LD_WORD, _JUMP_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_DENY = 0x00050000 | errno.EPERM
_NO_SUCH_CALL = 0x00050000 | errno.ENOSYS
_CLONE_THREAD = 0x00010000

# Offsets in struct seccomp_data: number, architecture, and the low words of arguments 0 and 2.
_NUMBER, _ARCHITECTURE, _ARGUMENT_0, _ARGUMENT_2 = 0, 4, 16, 32

# AUDIT_ARCH value, call numbers that are always allowed, and the three judged by arguments.
# ruff: noqa: RUF005 - sums of short tuples keep the names beside the numbers
_X86_64 = (
    0xC000003E,
    # read write close stat fstat lstat poll lseek mmap mprotect munmap brk
    (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)
    # rt_sigaction rt_sigprocmask rt_sigreturn pread64 pwrite64 readv writev access
    + (13, 14, 15, 17, 18, 19, 20, 21)
    # select sched_yield mremap msync mincore madvise dup dup2 nanosleep getitimer setitimer getpid
    + (23, 24, 25, 26, 27, 28, 32, 33, 35, 36, 38, 39)
    # exit uname fcntl fsync fdatasync truncate ftruncate getdents getcwd chdir rename mkdir rmdir
    + (60, 63, 72, 74, 75, 76, 77, 78, 79, 80, 82, 83, 84)
    # unlink readlink gettimeofday getrlimit getrusage sysinfo times getuid getgid geteuid getegid
    + (87, 89, 96, 97, 98, 99, 100, 102, 104, 107, 108)
    # sigaltstack statfs fstatfs sched_getparam sched_getscheduler gettid time futex
    + (131, 137, 138, 143, 145, 186, 201, 202)
    # sched_getaffinity getdents64 set_tid_address restart_syscall clock_gettime clock_getres
    + (204, 217, 218, 219, 228, 229)
    # clock_nanosleep exit_group openat mkdirat newfstatat unlinkat renameat readlinkat faccessat
    + (230, 231, 257, 258, 262, 263, 264, 267, 269)
    # pselect6 ppoll set_robust_list dup3 getcpu getrandom membarrier statx rseq close_range
    + (270, 271, 273, 292, 309, 318, 324, 332, 334, 436)
    # openat2 faccessat2
    + (437, 439),
    56,  # clone
    435,  # clone3
    302,  # prlimit64
)
_AARCH64 = (
    0xC00000B7,
    # getcwd dup dup3 fcntl mkdirat unlinkat renameat statfs fstatfs truncate ftruncate faccessat
    (17, 23, 24, 25, 34, 35, 38, 43, 44, 45, 46, 48)
    # chdir openat close getdents64 lseek read write readv writev pread64 pwrite64 pselect6 ppoll
    + (49, 56, 57, 61, 62, 63, 64, 65, 66, 67, 68, 72, 73)
    # readlinkat newfstatat fstat fsync fdatasync exit exit_group set_tid_address futex
    + (78, 79, 80, 82, 83, 93, 94, 96, 98)
    # set_robust_list nanosleep getitimer setitimer clock_gettime clock_getres clock_nanosleep
    + (99, 101, 102, 103, 113, 114, 115)
    # sched_getscheduler sched_getparam sched_getaffinity sched_yield restart_syscall sigaltstack
    + (120, 121, 123, 124, 128, 132)
    # rt_sigaction rt_sigprocmask rt_sigreturn times uname getrlimit getrusage getcpu gettimeofday
    + (134, 135, 139, 153, 160, 163, 165, 168, 169)
    # getpid getuid geteuid getgid getegid gettid sysinfo brk munmap mremap mmap mprotect
    + (172, 174, 175, 176, 177, 178, 179, 214, 215, 216, 222, 226)
    # msync mincore madvise renameat2 getrandom membarrier statx rseq close_range openat2 faccessat2
    + (227, 232, 233, 276, 278, 283, 291, 293, 436, 437, 439),
    220,
    435,
    261,
)
_TABLES = {"x86_64": _X86_64, "aarch64": _AARCH64}

_libc = ctypes.CDLL(None, use_errno=True)


def available() -> bool:
    """Say whether this kernel filters system calls and the machine's calls are known here."""
    return platform.machine() in _TABLES and _libc.prctl(_PR_GET_SECCOMP, 0, 0, 0, 0) >= 0


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _program(machine: str) -> bytes:
    """Return the filter for a machine as packed instructions."""
    architecture, allowed, clone, clone3, prlimit = _TABLES[machine]
    program = [
        _instruction(_LD_WORD, _ARCHITECTURE),
        _instruction(_JUMP_EQUAL, architecture, 1, 0),
        _instruction(_RETURN, _KILL),
        _instruction(_LD_WORD, _NUMBER),
    ]
    for number in allowed:
        program += [_instruction(_JUMP_EQUAL, number, 0, 1), _instruction(_RETURN, _ALLOW)]
    program += [
        # The C library falls back from clone3, whose flags a filter cannot see, to clone.
        _instruction(_JUMP_EQUAL, clone3, 0, 1),
        _instruction(_RETURN, _NO_SUCH_CALL),
        # A thread, yes; a process, no.
        _instruction(_JUMP_EQUAL, clone, 0, 4),
        _instruction(_LD_WORD, _ARGUMENT_0),
        _instruction(_JUMP_SET, _CLONE_THREAD, 0, 1),
        _instruction(_RETURN, _ALLOW),
        _instruction(_RETURN, _DENY),
        # Reading a limit, yes; setting one (third argument, both words of it), no.
        _instruction(_JUMP_EQUAL, prlimit, 0, 5),
        _instruction(_LD_WORD, _ARGUMENT_2),
        _instruction(_JUMP_EQUAL, 0, 0, 3),
        _instruction(_LD_WORD, _ARGUMENT_2 + 4),
        _instruction(_JUMP_EQUAL, 0, 0, 1),
        _instruction(_RETURN, _ALLOW),
        _instruction(_RETURN, _DENY),
    ]
    return b"".join(program)


def apply() -> None:
    """Filter the system calls of this process and its children from now on.

    Raises
    ------
    OSError
        The kernel refused, or the machine's calls are not known here.
    """
    machine = platform.machine()
    if machine not in _TABLES:
        raise OSError(f"no list of system calls for {machine}")
    program = _program(machine)
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs was refused")
    if _libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.c_char_p(header), 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
