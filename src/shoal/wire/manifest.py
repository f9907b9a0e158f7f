"""The task manifest: what a task is, what wakes it, what it reads, makes and needs.

The author writes ``task.toml``; building fills in version, hashes and sizes and
puts the result as ``manifest.json`` first into the package (Walle sheet 6.4).
Unknown fields are refused while building and in a manifest of our own schema;
a manifest of a higher schema may have fields that this release ignores.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from shoal.core.errors import InputError, LimitError, NotFoundError
from shoal.wire.limits import DEFAULT_LIMITS, WireLimits
from shoal.wire.specs import (
    MANIFEST_SCHEMA,
    Condition,
    DeterminismSpec,
    InputSpec,
    IsolationSpec,
    LimitSpec,
    OutputSpec,
    ProvenanceSpec,
    RequiresSpec,
    ResourceSpec,
    TaskManifest,
    TriggerSpec,
    check_member_path,
    check_task_name,
    parse_pattern,
)

__all__ = [
    "MANIFEST_SCHEMA",
    "Condition",
    "DeterminismSpec",
    "InputSpec",
    "IsolationSpec",
    "LimitSpec",
    "OutputSpec",
    "ProvenanceSpec",
    "RequiresSpec",
    "ResourceSpec",
    "TaskManifest",
    "TriggerSpec",
    "check_manifest",
    "check_member_path",
    "check_task_name",
    "decode_manifest",
    "encode_manifest",
    "parse_pattern",
    "read_task_toml",
]

_ENTRY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def read_task_toml(path: str | Path) -> TaskManifest:
    """Read the author's ``task.toml`` (or the folder that holds it).

    Parameters
    ----------
    path : path-like
        The file, or a task folder.

    Returns
    -------
    TaskManifest
        With ``version`` 0 and resources as declared, not yet hashed.

    Raises
    ------
    NotFoundError
        There is no such file.
    InputError
        Not TOML, an unknown field, or a value out of range; names the field.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "task.toml"
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFoundError(
            f"no task.toml at {file}", hint="make one with `shoal task init`"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError("not UTF-8", source=file.name) from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"not TOML: {error}", source=file.name) from error
    for name in ("version", "provenance", "schema"):
        if name in data:
            raise InputError("is filled in by building, not by hand", field=name, source=file.name)
    _check_shape(data, DEFAULT_LIMITS, file.name)
    manifest = _convert(data, source=file.name, strict=True)
    check_manifest(manifest, source=file.name)
    return manifest


def encode_manifest(manifest: TaskManifest) -> bytes:
    """Return the manifest as JSON, the same bytes for equal manifests."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=1)


def decode_manifest(data: bytes, limits: WireLimits = DEFAULT_LIMITS) -> TaskManifest:
    """Read ``manifest.json``.

    Raises
    ------
    LimitError
        Longer than ``limits.metadata``, nested deeper than ``limits.nesting``, or
        with text longer than ``limits.string``.
    InputError
        Not JSON, a wrong type, an unknown field in a manifest of our schema or
        below, or a value out of range.
    """
    source = "manifest.json"
    if len(data) > limits.metadata:
        raise LimitError("manifest too large", source=source, value=len(data))
    try:
        raw = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"not JSON: {error}", source=source) from error
    except RecursionError as error:
        raise LimitError("nested too deep", source=source) from error
    if not isinstance(raw, dict):
        raise InputError("expected an object", source=source)
    _check_shape(raw, limits, source)
    schema = raw.get("schema", 0)
    if not isinstance(schema, int) or schema < 1:
        raise InputError("expected an integer of at least 1", field="schema", value=schema)
    manifest = _convert(raw, source=source, strict=schema <= MANIFEST_SCHEMA)
    check_manifest(manifest, source=source, limits=limits)
    return manifest


def _check_shape(raw: dict[str, Any], limits: WireLimits, source: str) -> None:
    """Refuse what is nested too deep or has overlong text, whatever the schema says."""
    waiting: list[tuple[Any, str, int]] = [(raw, "", 0)]
    while waiting:
        value, place, depth = waiting.pop()
        if depth > limits.nesting:
            raise LimitError(
                "nested too deep", field=place[:80], source=source, value=limits.nesting
            )
        if isinstance(value, str) and len(value) > limits.string:
            raise LimitError(
                f"longer than {limits.string} characters", field=place, source=source, value=value
            )
        if isinstance(value, dict):
            for name, item in value.items():
                waiting.append((name, f"{place}.<name>".lstrip("."), depth))
                waiting.append((item, f"{place}.{name}".lstrip("."), depth + 1))
        elif isinstance(value, list):
            waiting += [(item, f"{place}[{at}]", depth + 1) for at, item in enumerate(value)]


def _convert(data: dict[str, Any], *, source: str, strict: bool) -> TaskManifest:
    if strict:
        _refuse_unknown(data, TaskManifest, "", source)
    try:
        return msgspec.convert(data, TaskManifest)
    except msgspec.ValidationError as error:
        # msgspec says: "Expected `int`, got `str` - at `$.limits.deadline_ms`"
        message, _, place = str(error).partition(" - at `$")
        field = place.rstrip("`").lstrip(".") or None
        raise InputError(message, field=field, source=source) from error


_NESTED: dict[str, type[msgspec.Struct]] = {
    "triggers": TriggerSpec,
    "input": InputSpec,
    "outputs": OutputSpec,
    "resources": ResourceSpec,
    "requires": RequiresSpec,
    "limits": LimitSpec,
    "isolation": IsolationSpec,
    "determinism": DeterminismSpec,
    "provenance": ProvenanceSpec,
    "where": Condition,
}


def _refuse_unknown(
    data: dict[str, Any], kind: type[msgspec.Struct], place: str, source: str
) -> None:
    known = kind.__struct_fields__
    for name, value in data.items():
        here = f"{place}.{name}" if place else name
        if name not in known:
            raise InputError(
                "unknown field", field=here, source=source, hint=f"known: {', '.join(known)}"
            )
        nested = _NESTED.get(name)
        if nested is None or (name == "where" and kind is not TriggerSpec):
            continue
        if isinstance(value, dict):
            _refuse_unknown(value, nested, here, source)
        elif isinstance(value, list):
            for position, item in enumerate(value):
                if isinstance(item, dict):
                    _refuse_unknown(item, nested, f"{here}[{position}]", source)


def check_manifest(
    manifest: TaskManifest, *, source: str = "manifest", limits: WireLimits = DEFAULT_LIMITS
) -> None:
    """Check everything that types alone do not say.

    Raises
    ------
    InputError
        Names the field.
    """

    def need(condition: bool, message: str, field: str, value: object) -> None:
        if not condition:
            raise InputError(message, field=field, value=value, source=source)

    check_task_name(manifest.task)
    need(0 <= manifest.version < 2**63, "out of range", "version", manifest.version)
    need("device" in manifest.entry, "names no device entry", "entry", manifest.entry)
    for side, entry in manifest.entry.items():
        need(side in {"device", "cloud"}, "expected device or cloud", "entry", side)
        need(bool(_ENTRY.fullmatch(entry)), "expected module:function", f"entry.{side}", entry)
    for position, trigger in enumerate(manifest.triggers):
        _check_trigger(trigger, f"triggers[{position}]", source)
    _unique([trigger.name for trigger in manifest.triggers], "triggers", source)
    for pattern in manifest.input.events:
        _check_pattern(pattern, "input.events", source)
    need(bool(manifest.input.events), "names no events", "input.events", manifest.input.events)
    need(
        1 <= manifest.input.max_events <= 100_000,
        "must lie in [1, 100000]",
        "input.max_events",
        manifest.input.max_events,
    )
    for position, output in enumerate(manifest.outputs):
        need(bool(output.name), "must not be empty", f"outputs[{position}].name", output.name)
        need(
            output.bytes_per_day >= 0,
            "must not be negative",
            f"outputs[{position}].bytes_per_day",
            output.bytes_per_day,
        )
    _unique([output.name for output in manifest.outputs], "outputs", source)
    for position, resource in enumerate(manifest.resources):
        _check_resource(resource, f"resources[{position}]", manifest.version > 0, source, limits)
    _unique([resource.name for resource in manifest.resources], "resources", source)
    _unique([resource.path.casefold() for resource in manifest.resources], "resources", source)
    need(
        0 <= manifest.isolation.sandbox_level <= 3,
        "must lie in [0, 3]",
        "isolation.sandbox_level",
        manifest.isolation.sandbox_level,
    )
    spec = manifest.limits
    for field, value, low, high in (
        ("limits.deadline_ms", spec.deadline_ms, 1, 3_600_000),
        ("limits.memory_mb", spec.memory_mb, 1, 1 << 20),
        ("limits.runs_per_hour", spec.runs_per_hour, 0, 10_000_000),
        ("limits.output_kb", spec.output_kb, 1, 1 << 20),
        ("requires.memory_mb", manifest.requires.memory_mb, 0, 1 << 30),
        ("requires.disk_mb", manifest.requires.disk_mb, 0, 1 << 30),
        ("requires.protocol", manifest.requires.protocol, 1, 1 << 30),
    ):
        need(low <= value <= high, f"must lie in [{low}, {high}]", field, value)


def _unique(names: list[str], field: str, source: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError("appears twice", field=field, value=name, source=source)
        seen.add(name)


def _check_pattern(pattern: str, field: str, source: str) -> None:
    try:
        parse_pattern(pattern)
    except InputError as error:
        raise InputError(
            "expected kind@page with a known kind",
            field=field,
            value=pattern,
            source=source,
            hint=error.hint,
        ) from error


def _check_trigger(trigger: TriggerSpec, place: str, source: str) -> None:
    def need(condition: bool, message: str, field: str, value: object) -> None:
        if not condition:
            raise InputError(message, field=f"{place}.{field}", value=value, source=source)

    need(bool(trigger.name), "must not be empty", "name", trigger.name)
    need(1 <= len(trigger.sequence) <= 32, "needs 1 to 32 steps", "sequence", trigger.sequence)
    for pattern in trigger.sequence:
        _check_pattern(pattern, f"{place}.sequence", source)
    for field, extra in (
        ("not_followed_by", trigger.not_followed_by),
        ("without", trigger.without),
    ):
        if extra is not None:
            _check_pattern(extra, f"{place}.{field}", source)
    need(trigger.within_ms >= 0, "must not be negative", "within_ms", trigger.within_ms)
    need(trigger.cooldown_ms >= 0, "must not be negative", "cooldown_ms", trigger.cooldown_ms)
    need(trigger.count >= 1, "must be at least 1", "count", trigger.count)
    need(
        trigger.not_followed_by is None or trigger.within_ms > 0,
        "not_followed_by needs a time to wait",
        "within_ms",
        trigger.within_ms,
    )
    for position, condition in enumerate(trigger.where):
        field = f"where[{position}]"
        need(
            0 <= condition.step < len(trigger.sequence),
            "is not a step of the sequence (from 0)",
            f"{field}.step",
            condition.step,
        )
        need(bool(condition.field), "must not be empty", f"{field}.field", condition.field)
        if condition.op == "in":
            need(
                isinstance(condition.value, list), "wants a list", f"{field}.value", condition.value
            )
        if condition.op == "exists":
            need(
                isinstance(condition.value, bool),
                "wants true or false",
                f"{field}.value",
                condition.value,
            )


def _check_resource(
    resource: ResourceSpec, place: str, built: bool, source: str, limits: WireLimits
) -> None:
    if not resource.name:
        raise InputError("must not be empty", field=f"{place}.name", source=source)
    check_member_path(resource.path, field=f"{place}.path")
    if not built:
        return
    if not _SHA256.fullmatch(resource.sha256):
        raise InputError(
            "expected 64 lower-case hex digits",
            field=f"{place}.sha256",
            value=resource.sha256,
            source=source,
        )
    allowed = limits.resource if resource.separate else limits.package
    if not 0 <= resource.size <= allowed:
        raise LimitError(
            f"must lie in [0, {allowed}]", field=f"{place}.size", value=resource.size, source=source
        )
