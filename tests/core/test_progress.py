"""A bar on a terminal, nothing when piped, the same items either way."""

from __future__ import annotations

import io

from shoal.core.progress import is_interactive, progress, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_piped_output_is_silent(capsys):
    pipe = io.StringIO()
    assert list(track([1, 2, 3], "counting", stream=pipe)) == [1, 2, 3]
    assert list(track(iter("ab"), "no length")) == ["a", "b"]
    assert pipe.getvalue() == ""
    assert capsys.readouterr() == ("", "")


def test_a_terminal_sees_the_description():
    terminal = Terminal()
    with progress("publishing", total=2, stream=terminal) as handle:
        handle.advance()
        handle.say("nearly there")
        handle.advance(0.5)
    assert "nearly there" in terminal.getvalue()
    assert handle.done == 1.5


def test_unknown_total_and_closed_streams():
    terminal = Terminal()
    with progress("waiting", stream=terminal) as handle:
        handle.advance()
    assert "waiting" in terminal.getvalue()
    closed = io.StringIO()
    closed.close()
    assert not is_interactive(closed)


def test_errors_pass_through():
    try:
        with progress("failing", stream=Terminal()):
            raise RuntimeError("inner")
    except RuntimeError as error:
        assert str(error) == "inner"
