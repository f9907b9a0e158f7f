"""Predicates on a device's attributes, in CEL (the Common Expression Language).

A predicate sees the maps ``app``, ``device``, ``user`` and ``agent``, and three
functions beside CEL's own::

    version_at_least(app.version, "2.10")     numbers compared as numbers
    bucket("salt", device.id) < 2500          the buckets that releases use
    device.id == "0123…"                      one device

``agent`` is what the platform knows: ``version``, ``protocol``, ``python``,
``platform``, ``engines``, ``capabilities``, ``sandbox_level`` and ``virtual``.
"""

from __future__ import annotations

import re
import threading
from typing import Any

from shoal.core.errors import InputError
from shoal.wire.buckets import bucket
from shoal.wire.profile import TaskProfile

__all__ = ["Predicate", "PredicateError", "attributes_of"]

_MAPS = ("app", "device", "user", "agent")
_MAX_LENGTH = 4096


class PredicateError(InputError):
    """A predicate failed on some device, or gave something other than true or false."""


def attributes_of(profile: TaskProfile) -> dict[str, dict[str, Any]]:
    """Return the four maps that predicates see for a device's profile."""
    return {
        "app": profile.attributes.get("app", {}),
        "device": profile.attributes.get("device", {}),
        "user": profile.attributes.get("user", {}),
        "agent": {
            "version": profile.agent,
            "protocol": profile.protocol,
            "python": profile.python,
            "platform": profile.platform,
            "engines": dict(sorted(profile.engines.items())),
            "capabilities": sorted(profile.capabilities),
            "sandbox_level": profile.sandbox_level,
            "virtual": "virtual" in profile.capabilities,
        },
    }


def _version_key(text: str) -> list[tuple[int, int, str]]:
    """Split a version so that numbers compare as numbers and come after words."""
    return [
        (1, int(part), "") if part.isdigit() else (0, 0, part)
        for part in re.findall(r"\d+|[a-z]+", text.lower())[:16]
        if len(part) <= 18
    ]


def version_at_least(version: str, least: str) -> bool:
    """Say whether a dotted version is ``least`` or newer (``2.10`` is newer than ``2.9``).

    Missing parts count as zero; a word (``2.1rc``) is older than a number or nothing.
    """
    left, right = _version_key(version), _version_key(least)
    width = max(len(left), len(right))
    zero = (1, 0, "")
    return left + [zero] * (width - len(left)) >= right + [zero] * (width - len(right))


class Predicate:
    """A compiled CEL expression.

    Parameters
    ----------
    source : str
        The expression.

    Raises
    ------
    InputError
        It is not a CEL expression, or names a variable that does not exist.
    """

    def __init__(self, source: str) -> None:
        import celpy  # noqa: PLC0415 - 0.2 s that only a cloud with cohorts pays
        from celpy import celtypes  # noqa: PLC0415

        if not source.strip() or len(source) > _MAX_LENGTH:
            raise InputError(
                f"a predicate has 1 to {_MAX_LENGTH} characters", field="predicate", value=source
            )
        functions = {
            "version_at_least": lambda version, least: celtypes.BoolType(
                version_at_least(str(version), str(least))
            ),
            "bucket": lambda salt, device: celtypes.IntType(bucket(str(salt), str(device))),
        }
        try:
            environment = celpy.Environment()
            self._program = environment.program(environment.compile(source), functions=functions)
        except celpy.CELParseError as error:
            raise InputError(
                "not a CEL expression",
                field="predicate",
                value=source,
                hint='for example: device.os == "android" && version_at_least(app.version, "2.0")',
            ) from error
        self.source = source
        #: Whether it looks at a single device's id, so that devices differ by it.
        self.names_device = re.search(r"\bdevice\s*(\.\s*id\b|\[)", source) is not None
        self._lock = threading.Lock()  # celpy keeps its evaluation state in the program

    def __call__(self, attributes: dict[str, dict[str, Any]]) -> bool:
        """Evaluate on the maps of one device.

        Raises
        ------
        PredicateError
            It failed (a missing attribute, mixed types) or gave no boolean.
        """
        import celpy  # noqa: PLC0415
        from celpy import celtypes  # noqa: PLC0415

        try:
            maps = {name: celpy.json_to_cel(attributes.get(name, {})) for name in _MAPS}
            with self._lock:
                answer = self._program.evaluate(maps)
        except (celpy.CELEvalError, ValueError, TypeError, RecursionError, OverflowError) as error:
            reason = error.args[0] if error.args else type(error).__name__
            raise PredicateError(str(reason), field="predicate", value=self.source) from error
        if not isinstance(answer, celtypes.BoolType):
            raise PredicateError(
                f"gave {type(answer).__name__}, not true or false",
                field="predicate",
                value=self.source,
            )
        return bool(answer)
