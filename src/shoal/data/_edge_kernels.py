"""Lines of text with two ids and more: one pass over the bytes, numbers read on the way."""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["count_lines", "gather", "scan"]

_NEWLINE, _QUOTE, _MINUS, _PLUS = 10, 34, 45, 43
_HASH, _PERCENT = 35, 37


@njit(cache=True, nogil=True)
def count_lines(text):
    """Return the number of lines; the last one may lack its end."""
    count = np.int64(0)
    for i in range(len(text)):
        count += text[i] == _NEWLINE
    if len(text) and text[len(text) - 1] != _NEWLINE:
        count += 1
    return count


@njit(cache=True, nogil=True, inline="never")
def _is_blank(byte, separator):
    return (byte in (9, 11, 12, 13, 32)) and byte != separator


@njit(cache=True, nogil=True)
def scan(text, state, separator, columns, wanted, integers, drop, ids, begin, length):
    """Read lines until the end or the first wrong one; return (rows, code, detail).

    Parameters: ``state`` int64 [4] is (byte, line, rows, dropped lines) and moves on;
    ``separator`` 0 means runs of blanks; ``columns`` is how many fields a line must
    have; ``wanted`` int64 [4] the fields of source, target, value and kind (-1: none);
    with ``integers`` source and target go to ``ids`` int64 [2, rows]; all other wanted
    fields go to ``begin`` int64 and ``length`` int32 [4, rows] as stretches of ``text``.

    Codes: 0 the end; 1 another number of fields (``detail``); 2 an id is no integer
    (``detail`` says in which field); 3 an id is empty; 4 a quote that does not end.
    With ``drop`` wrong lines are counted instead.
    """
    size = len(text)
    i, line, row, dropped = state[0], state[1], state[2], state[3]
    code, detail = 0, 0
    while i < size:
        line += 1
        start = i
        while i < size and _is_blank(text[i], separator):
            i += 1
        if i >= size:
            break
        if text[i] == _NEWLINE:
            i += 1
            continue
        if text[i] == _HASH or text[i] == _PERCENT:
            while i < size and text[i] != _NEWLINE:
                i += 1
            i += 1
            continue
        field = 0
        code, detail = 0, 0
        while True:
            which = -1
            for w in range(4):
                if wanted[w] == field:
                    which = w
            quoted = separator != 0 and i < size and text[i] == _QUOTE
            if quoted:
                i += 1
            first = i
            number = integers and 0 <= which <= 1
            if number:
                negative = i < size and text[i] == _MINUS
                if i < size and (text[i] == _MINUS or text[i] == _PLUS):
                    i += 1
                digits = i
                value = np.int64(0)
                while i < size and 48 <= text[i] <= 57:
                    value = value * 10 + (text[i] - 48)
                    i += 1
                stop = i
                if i == digits or i - digits > 18:
                    code, detail = 2, field
                ids[which, row] = -value if negative else value
            # What is left of the field: nothing after a number, all of it otherwise.
            if quoted:
                while i < size and text[i] != _QUOTE and text[i] != _NEWLINE:
                    i += 1
                after = i
                if i >= size or text[i] == _NEWLINE:
                    code = 4
                else:
                    i += 1
                    if i < size and text[i] == _QUOTE:
                        code = 4
                while i < size and _is_blank(text[i], separator):
                    i += 1
                if code == 0 and i < size and text[i] != separator and text[i] != _NEWLINE:
                    code = 4
                if code == 4:
                    while i < size and text[i] != _NEWLINE:
                        i += 1
            elif separator == 0:
                while i < size and text[i] != _NEWLINE and not _is_blank(text[i], 0):
                    i += 1
                after = i
            else:
                while i < size and text[i] != _NEWLINE and text[i] != separator:
                    i += 1
                after = i
                while after > first and _is_blank(text[after - 1], separator):
                    after -= 1
            if number and after != stop and code == 0:
                code, detail = 2, field
            if which >= 0 and not number:
                if after == first and which < 2:
                    code, detail = 3, field
                begin[which, row] = first
                length[which, row] = after - first
            field += 1
            # On to the next field or the end of the line.
            while i < size and _is_blank(text[i], separator):
                i += 1
            if i >= size or text[i] == _NEWLINE:
                break
            if separator != 0:
                i += 1
                while i < size and _is_blank(text[i], separator):
                    i += 1
        i += 1
        if field != columns and code != 4:
            code, detail = 1, field
        if code == 0:
            row += 1
        elif drop:
            dropped += 1
            code = 0
        else:
            i = start
            break
    state[0], state[1], state[2], state[3] = i, line, row, dropped
    return row, code, detail


@njit(cache=True, nogil=True)
def gather(text, begin, length):
    """Return (bytes, offsets int64 [n + 1]) of stretches of the text, one after the other."""
    offsets = np.zeros(len(begin) + 1, dtype=np.int64)
    for r in range(len(begin)):
        offsets[r + 1] = offsets[r] + length[r]
    out = np.empty(offsets[len(begin)], dtype=np.uint8)
    for r in range(len(begin)):
        at = offsets[r]
        for b in range(length[r]):
            out[at + b] = text[begin[r] + b]
    return out, offsets
