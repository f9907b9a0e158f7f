"""Settings: frozen pydantic models read from TOML and the environment.

A model derives from :class:`Settings`; :func:`load_settings` fills it from,
in rising order of precedence, its defaults, one TOML file (or one table of
it), environment variables and explicit overrides. What is wrong is said with
the file, the field and the value, and a field nobody declared is refused
rather than ignored, since it is usually a misspelt one.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from shoal.core.errors import InputError, NotFoundError

__all__ = ["Settings", "load_settings", "read_toml"]

#: Parts of field names whose values are never shown in a message.
_SECRET = ("token", "secret", "password", "private", "credential")

#: Longest list of known fields that an error message spells out.
_SHOWN_FIELDS = 12

ModelT = TypeVar("ModelT", bound=BaseModel)


class Settings(BaseModel):
    """Base of every configuration: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a TOML file.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    dict
        Its tables.

    Raises
    ------
    NotFoundError
        The file does not exist.
    InputError
        It cannot be read, is not UTF-8, or is not TOML; the message carries
        the parser's line and column.
    """
    file = Path(path)
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFoundError(f"{file} does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", source=str(file)) from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"is not valid TOML: {error}", source=str(file)) from error


def load_settings(
    model: type[ModelT],
    path: str | os.PathLike[str] | None = None,
    *,
    table: str | None = None,
    env_prefix: str | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> ModelT:
    """Fill a settings model from a file, the environment and overrides.

    Parameters
    ----------
    model : type
        A pydantic model, as a rule a :class:`Settings`.
    path : path-like, optional
        A TOML file; without one only the environment and the overrides count.
    table : str, optional
        Dotted name of the table to read; the whole file without it. A missing
        table is an empty one.
    env_prefix : str, optional
        For example ``"SHOAL_CLOUD_"``: then ``SHOAL_CLOUD_PORT`` sets ``port``
        and ``SHOAL_CLOUD_LIMITS__FRAME`` the field ``frame`` of ``limits``.
        Lists and tables are written as JSON. A variable with the prefix that
        names no field is refused, so choose a prefix nobody else uses.
    environ : mapping, optional
        Instead of ``os.environ``.
    overrides : mapping, optional
        Values that win over all others; ``None`` means "not given".
    defaults : mapping, optional
        Values for fields that the model itself gives none, or that differ here.

    Returns
    -------
    model
        The validated, frozen settings.

    Raises
    ------
    NotFoundError
        ``path`` does not exist.
    InputError
        A value is missing or wrong; names source, field and value. Values of
        fields that look like secrets are not shown.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    _merge(values, defaults or {})
    if path is not None:
        read = _table(read_toml(path), table, str(path))
        _merge(values, read)
        sources.update((field, str(path)) for field, _ in _leaves(read))
    if env_prefix is not None:
        for field, variable, value in _from_environment(model, env_prefix, environ):
            _merge(values, _nested(field, value))
            sources[".".join(field)] = f"environment variable {variable}"
    for name, value in (overrides or {}).items():
        if value is not None:
            _merge(values, _nested(name.split("."), value))
            sources[name] = "arguments"
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _input_error(model, first, sources, str(path) if path else "settings") from error


def _table(document: dict[str, Any], name: str | None, source: str) -> dict[str, Any]:
    here: Any = document
    for part in name.split(".") if name else ():
        here = here.get(part, {})
        if not isinstance(here, dict):
            raise InputError("must be a table", field=name, value=here, source=source)
    return dict(here)


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Lay ``values`` over ``into``, table by table."""
    for key, value in values.items():
        present = into.get(key)
        if isinstance(value, Mapping) and isinstance(present, dict):
            _merge(present, value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _nested(path: list[str], value: object) -> dict[str, Any]:
    for part in reversed(path):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        yield name, value
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{name}.")


def _from_environment(
    model: type[BaseModel], prefix: str, environ: Mapping[str, str] | None
) -> Iterator[tuple[list[str], str, Any]]:
    """Yield (field path, variable, value) of every variable with ``prefix``."""
    for variable, text in sorted((os.environ if environ is None else environ).items()):
        if not variable.startswith(prefix) or variable == prefix:
            continue
        path = variable[len(prefix) :].lower().split("__")
        annotation: Any = model
        for part in path:
            fields = _fields(annotation)
            if fields is None:
                annotation = Any
                break
            if part not in fields:
                raise InputError(
                    "no such setting",
                    field=".".join(path),
                    source=f"environment variable {variable}",
                    hint=_did_you_mean(part, fields),
                )
            annotation = fields[part]
        yield path, variable, _parse(text, annotation, variable)


def _fields(annotation: object) -> dict[str, Any] | None:
    """Field annotations of a (possibly optional) nested model, or None."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return {name: field.annotation for name, field in candidate.model_fields.items()}
    return None


def _parse(text: str, annotation: object, variable: str) -> object:
    """Read JSON where the field is a list, table or nested model; else the text itself.

    Below a field whose type says nothing to us, what looks like JSON is JSON.
    """
    if annotation is Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return text
    options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    for option in options or (annotation,):
        kind = get_origin(option) or option
        nested = isinstance(kind, type) and issubclass(
            kind, (list, tuple, set, frozenset, dict, Mapping, BaseModel)
        )
        if nested or (kind in (Mapping,)):
            try:
                return json.loads(text)
            except json.JSONDecodeError as error:
                raise InputError(
                    f"is not valid JSON: {error}", source=f"environment variable {variable}"
                ) from error
    return text


def _did_you_mean(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    shown = sorted(known)[:_SHOWN_FIELDS]
    return f"known: {', '.join(shown)}{' ...' if len(known) > len(shown) else ''}"


def _input_error(
    model: type[BaseModel], detail: ErrorDetails, sources: Mapping[str, str], default: str
) -> InputError:
    """Turn pydantic's first complaint into one line that names place and value."""
    location = [str(part) for part in detail["loc"]]
    field = ".".join(location)
    source = default
    for length in range(len(location), 0, -1):
        known = sources.get(".".join(location[:length]))
        if known is not None:
            source = known
            break
    value = detail.get("input")
    hint = None
    if detail["type"] == "missing":
        message, value = "is required", None
    elif detail["type"] == "extra_forbidden":
        message = "no such setting"
        owner: Any = model
        for part in location[:-1]:
            owner = (_fields(owner) or {}).get(part)
        hint = _did_you_mean(location[-1], _fields(owner) or {})
    else:
        message = detail["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
    if any(part in field.lower() for part in _SECRET):
        value = None
    return InputError(message, field=field or None, value=value, source=source, hint=hint)
