"""Conditions on an event's content, compiled to closures.

Walle sheet B.2: a conjunction of plain (field, operator, value) tuples; there
is no expression parser on the device.
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
    "Test",
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
