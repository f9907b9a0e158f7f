"""Whoever waits for the compiler is told; whoever does not, or is a program, is not."""

from __future__ import annotations

import io

import pytest
from numba import njit

from shoal.cli import compiling
from shoal.cli.compiling import COMPILING, compiling_shown
from shoal.core.progress import progress


class Terminal(io.StringIO):
    """What a person looks at."""

    def isatty(self):
        return True


def wait():
    """Have numba compile something."""
    assert njit(lambda x: x + 1)(1) == 2


@pytest.mark.parametrize(("stream", "shown"), [(Terminal(), True), (io.StringIO(), False)])
def test_a_spinner_on_a_terminal_and_silence_in_a_pipe(monkeypatch, stream, shown):
    monkeypatch.setattr(compiling, "progress", lambda text: progress(text, stream=stream))
    monkeypatch.setenv("COLUMNS", "200")
    with compiling_shown():
        pass
    assert stream.getvalue() == ""
    with compiling_shown():
        wait()
    assert (COMPILING in stream.getvalue()) is shown


def test_a_bar_that_is_there_says_it():
    said = []
    with compiling_shown(said.append):
        assert said == []
        wait()
        wait()
    assert said == [COMPILING]
