"""Places where a test may kill the process: before and after every durable write.

``SHOAL_CRASH_AT=<name>:<n>`` makes the n-th passage of the point ``name`` send
SIGKILL to its own process, which no handler and no ``finally`` sees: what a
power switch does to a program. Without the variable a point costs one call of
an empty function. The variable is read once, when the process starts.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

from shoal.core.errors import InputError

__all__ = ["VARIABLE", "crashpoint"]

#: Name of the environment variable that arms one point.
VARIABLE = "SHOAL_CRASH_AT"


def _parse(text: str) -> tuple[str, int]:
    name, _, number = text.rpartition(":")
    if not name or not number.isdigit() or int(number) < 1:
        raise InputError("expected <name>:<n> with n >= 1", field=VARIABLE, value=text)
    return name, int(number)


_armed = _parse(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None
_passed: Counter[str] = Counter()


def _point(name: str) -> None:
    assert _armed is not None
    _passed[name] += 1
    if (name, _passed[name]) == _armed:
        os.kill(os.getpid(), signal.SIGKILL)


def _nothing(_name: str) -> None:
    pass


#: Call as ``crashpoint("<part>.<moment>")`` right before or after a durable write.
crashpoint = _nothing if _armed is None else _point
