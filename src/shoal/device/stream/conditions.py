"""Conditions on an event's content, compiled to closures and grouped by field.

Walle sheet B.2: a conjunction of plain (field, operator, value) tuples; there
is no expression parser on the device. However many conditions ask one field,
its value is looked up once per event: :class:`FieldCodes` maps a value to the
number of the set of conditions that it meets.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from shoal.core.errors import InputError

__all__ = [
    "MISSING",
    "OPERATORS",
    "Check",
    "FieldCodes",
    "compile_condition",
    "compile_test",
    "condition_key",
    "find",
]

#: Operators that a condition may use.
OPERATORS = ("==", "!=", "<", "<=", ">", ">=", "in", "exists")

Check = Callable[[Mapping[str, Any]], bool]
Test = Callable[[Any], bool]

#: Stands for the value of a field that is not there.
MISSING: Any = object()

# Values of one field that are remembered; the others are tested anew each time.
_MAX_VALUES = 4096

_ORDER: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def find(content: Mapping[str, Any], field: str) -> Any:
    """Return the field's value; ``a.b`` is the key "a.b", or else "b" inside "a"."""
    value: Any = content.get(field, MISSING)
    if value is not MISSING or "." not in field:
        return value
    value = content
    for part in field.split("."):
        if not isinstance(value, Mapping):
            return MISSING
        value = value.get(part, MISSING)
        if value is MISSING:
            return MISSING
    return value


def compile_test(op: str, value: Any) -> Test:
    """Return a function that says whether a field's value meets ``op value``.

    :data:`MISSING` meets only ``exists`` with ``False``; values that cannot be
    compared (a string with a number) do not meet an order.

    Raises
    ------
    InputError
        Unknown operator, or ``in`` without a list.
    """
    if op == "exists":
        wanted = bool(value)
        return lambda found: (found is not MISSING) == wanted
    if op == "==":
        return lambda found: bool(found == value)
    if op == "!=":
        return lambda found: found is not MISSING and bool(found != value)
    if op == "in":
        if not isinstance(value, list | tuple):
            raise InputError("wants a list", field="where.value", value=value)
        allowed = tuple(value)
        return lambda found: found in allowed
    if op not in _ORDER:
        raise InputError("unknown operator", field="where.op", value=op, hint=" ".join(OPERATORS))
    order = _ORDER[op]

    def ordered(found: Any) -> bool:
        try:
            return bool(order(found, value))
        except TypeError:
            return False

    return ordered


def compile_condition(field: str, op: str, value: Any) -> Check:
    """Return a function that says whether an event's content meets the condition.

    Raises
    ------
    InputError
        As :func:`compile_test`, and for an empty field.
    """
    if not field:
        raise InputError("must not be empty", field="where.field", value=field)
    test = compile_test(op, value)
    return lambda content: test(find(content, field))


def condition_key(field: str, op: str, value: Any) -> bytes:
    """Return bytes that are equal for equal conditions (for sharing trie nodes)."""
    return msgspec.json.encode([field, op, value], order="deterministic")


class FieldCodes(dict[Any, int]):
    """Maps a field's value to the number of the set of conditions that it meets.

    A dictionary of the values seen so far (4,096 at most), so that a value seen
    before costs one look-up, however many conditions there are.

    Parameters
    ----------
    tests : dict
        Condition number to its test.

    Attributes
    ----------
    met : list of frozenset
        By code: the numbers of the conditions that hold.
    """

    __slots__ = ("_codes", "_tests", "met")

    def __init__(self, tests: Mapping[int, Test]) -> None:
        super().__init__()
        self._tests = list(tests.items())
        self._codes: dict[frozenset[int], int] = {}
        self.met: list[frozenset[int]] = []

    def code(self, value: Any) -> int:
        """Return the code of ``value`` without remembering the value."""
        met = frozenset(number for number, test in self._tests if test(value))
        code = self._codes.get(met)
        if code is None:
            code = self._codes[met] = len(self.met)
            self.met.append(met)
        return code

    def __missing__(self, value: Any) -> int:
        code = self.code(value)
        if len(self) < _MAX_VALUES:
            self[value] = code
        return code
