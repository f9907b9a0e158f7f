"""Crash points: nothing without the variable, SIGKILL at the n-th passage with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

_LOOP = """
from shoal.core.crashpoints import crashpoint
for number in range(5):
    crashpoint("other.point")
    crashpoint("the.point")
    print(number, flush=True)
"""


def _run(armed: str | None) -> subprocess.CompletedProcess[str]:
    environ = {key: value for key, value in os.environ.items() if key != "SHOAL_CRASH_AT"}
    if armed is not None:
        environ["SHOAL_CRASH_AT"] = armed
    return subprocess.run(
        [sys.executable, "-c", _LOOP], env=environ, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("armed", [None, "", "never.passed:1", "the.point:6"])
def test_nothing_happens_unless_the_point_is_reached(armed: str | None) -> None:
    done = _run(armed)
    assert (done.returncode, done.stdout.split()) == (0, list("01234"))


@pytest.mark.parametrize("n", [1, 3, 5])
def test_the_nth_passage_kills_the_process(n: int) -> None:
    done = _run(f"the.point:{n}")
    assert done.returncode == -signal.SIGKILL
    assert len(done.stdout.split()) == n - 1


@pytest.mark.parametrize("armed", ["the.point", "the.point:0", ":3", "the.point:x"])
def test_a_misspelt_variable_is_an_error(armed: str) -> None:
    done = _run(armed)
    assert done.returncode == 1
    assert "expected <name>:<n>" in done.stderr
