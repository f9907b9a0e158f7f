"""Conditions on an event's content, compiled to closures and indexed by equal values.

Walle sheet B.2: a conjunction of plain (field, operator, value) tuples; there
is no expression parser on the device. Equality is by far the commonest
condition, so conditions that ask the same field for different values become
one dictionary look-up instead of one test each.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from shoal.core.errors import InputError

__all__ = ["OPERATORS", "Check", "GuardTable", "Guarded", "compile_condition", "condition_key"]

#: Operators that a condition may use.
OPERATORS = ("==", "!=", "<", "<=", ">", ">=", "in", "exists")

Check = Callable[[Mapping[str, Any]], bool]
T = TypeVar("T")

_MISSING = object()
_ORDER: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def _find(content: Mapping[str, Any], field: str, path: list[str]) -> Any:
    """Return the field's value; ``a.b`` is the key "a.b", or else "b" inside "a"."""
    value: Any = content.get(field, _MISSING)
    if value is not _MISSING or len(path) == 1:
        return value
    value = content
    for part in path:
        if not isinstance(value, Mapping):
            return _MISSING
        value = value.get(part, _MISSING)
        if value is _MISSING:
            return _MISSING
    return value


def compile_condition(field: str, op: str, value: Any) -> Check:
    """Return a function that says whether an event's content meets the condition.

    A missing field meets only ``exists`` with ``False``; values that cannot be
    compared (a string with a number) do not meet an order.

    Raises
    ------
    InputError
        Unknown operator, an empty field, or ``in`` without a list.
    """
    if not field:
        raise InputError("must not be empty", field="where.field", value=field)
    if op not in OPERATORS:
        raise InputError("unknown operator", field="where.op", value=op, hint=" ".join(OPERATORS))
    path = field.split(".")
    if op == "exists":
        wanted = bool(value)
        return lambda content: (_find(content, field, path) is not _MISSING) == wanted
    if op == "==":
        return lambda content: bool(_find(content, field, path) == value)
    if op == "!=":

        def differs(content: Mapping[str, Any]) -> bool:
            found = _find(content, field, path)
            return found is not _MISSING and bool(found != value)

        return differs
    if op == "in":
        if not isinstance(value, list | tuple):
            raise InputError("wants a list", field="where.value", value=value)
        allowed = tuple(value)
        return lambda content: _find(content, field, path) in allowed
    order = _ORDER[op]

    def ordered(content: Mapping[str, Any]) -> bool:
        found = _find(content, field, path)
        if found is _MISSING:
            return False
        try:
            return bool(order(found, value))
        except TypeError:
            return False

    return ordered


def condition_key(field: str, op: str, value: Any) -> bytes:
    """Return bytes that are equal for equal conditions (for sharing trie nodes)."""
    return msgspec.json.encode([field, op, value], order="deterministic")


class Guarded(NamedTuple, Generic[T]):
    """``target`` counts only if every condition (field, op, value) holds."""

    conditions: tuple[tuple[str, str, Any], ...]
    checks: tuple[Check, ...]
    target: T


class GuardTable(Generic[T]):
    """Finds the targets whose conditions an event's content meets.

    Parameters
    ----------
    guarded : iterable of Guarded
        In the order in which hits are wanted within one field or list.
    """

    __slots__ = ("_indexed", "_others")

    def __init__(self, guarded: Iterable[Guarded[T]]) -> None:
        indexed: dict[str, dict[Any, list[tuple[tuple[Check, ...], T]]]] = {}
        others: list[tuple[tuple[Check, ...], T]] = []
        for item in guarded:
            for place, (field, op, value) in enumerate(item.conditions):
                # None stays out: get() below cannot tell it from a missing field.
                if op == "==" and "." not in field and isinstance(value, str | int | float):
                    rest = item.checks[:place] + item.checks[place + 1 :]
                    bucket = indexed.setdefault(field, {}).setdefault(value, [])
                    bucket.append((rest, item.target))
                    break
            else:
                others.append((item.checks, item.target))
        self._indexed = list(indexed.items())
        self._others = others

    def hits(self, content: Mapping[str, Any]) -> list[T]:
        """Return the targets whose conditions all hold."""
        found: list[T] = []
        for field, by_value in self._indexed:
            try:
                bucket = by_value.get(content.get(field))
            except TypeError:  # a list or a map equals no plain value
                continue
            if bucket is not None:
                for checks, target in bucket:
                    for check in checks:
                        if not check(content):
                            break
                    else:
                        found.append(target)
        for checks, target in self._others:
            for check in checks:
                if not check(content):
                    break
            else:
                found.append(target)
        return found
