"""Evidence: what was measured, by which command, on which data and machine.

A benchmark writes one ``evidence/<method>.json``; the catalogue reads them.
The record says enough to run it again and nothing about whose machine it was:
no host names, no absolute paths. The file's JSON Schema ships
with the package (:func:`evidence_schema`), so other tools can check it.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec

from shoal.core.errors import InputError, NotFoundError
from shoal.core.files import sha256_file, write_text

__all__ = [
    "Claim",
    "DataSource",
    "EvidenceRecord",
    "Machine",
    "Peer",
    "data_source",
    "evidence_schema",
    "library_versions",
    "read_evidence",
    "this_machine",
    "today",
    "write_evidence",
]

#: How far our figure bears out the statement.
Status = Literal["reproduced", "direction", "differs", "not attempted"]

_ABSOLUTE_PATH = re.compile(
    r"(?:^|[\s\"'=:(,])(?:/(?:[A-Za-z]+/)?(?:home|root|tmp|work|users|opt|var|mnt|srv|etc)/|[A-Za-z]:\\)",
    re.IGNORECASE,
)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Claim(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One statement, what its source reports, and what we measured.

    Attributes
    ----------
    id : str
        For example ``"walle.ipv-bytes"``.
    statement : str
        In words.
    published : str or None
        The source's figure with its unit; None where none is public.
    ours : str or None
        Our figure with its unit; None iff ``status`` is ``"not attempted"``.
    status : str
        ``"reproduced"`` (same figure within the stated tolerance),
        ``"direction"`` (same sign, other size or setting), ``"differs"``, or
        ``"not attempted"``.
    note : str
        Tolerance, limits, and what would change the verdict.
    """

    id: str
    statement: str
    status: Status
    published: str | None = None
    ours: str | None = None
    note: str = ""


class DataSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A data set by name, SHA-256 (hex), origin and licence."""

    name: str
    sha256: str
    origin: str = ""
    licence: str = ""


class Machine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The kind of machine: enough to compare figures, not enough to name it."""

    cores: int
    cpu: str
    memory_gib: float
    system: str
    python: str
    accelerator: str | None = None


class Peer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A library or method that was measured in the same run."""

    name: str
    version: str


class EvidenceRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run of one benchmark.

    Attributes
    ----------
    method : str
        Name of the method; the file is called after it.
    command : str
        The command to run it again, from the root of the checkout.
    date : str
        Day of the run, ``YYYY-MM-DD`` (UTC).
    seed : int
    machine : Machine
    versions : dict
        Library name -> version.
    claims : list of Claim
    figures : dict
        Named numbers of the run (the keys of the benchmark's last line).
    details : dict
        Anything further that JSON can say: tables, quantiles, peak memory.
    data : list of DataSource
    peers : list of Peer
    quick : bool
        Whether it was the short form of the benchmark.
    load : float or None
        Load average at the start: a busy machine bends figures.
    schema : int
        Version of this layout.
    """

    method: str
    command: str
    date: str
    seed: int
    machine: Machine
    versions: dict[str, str]
    claims: list[Claim]
    figures: dict[str, float]
    details: dict[str, Any] = {}
    data: list[DataSource] = []
    peers: list[Peer] = []
    quick: bool = False
    load: float | None = None
    schema: Literal[1] = 1


def evidence_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of an evidence file, as shipped."""
    text = resources.files("shoal.core").joinpath("evidence.schema.json").read_text("utf-8")
    schema = json.loads(text)
    assert isinstance(schema, dict)
    return schema


def generate_schema() -> dict[str, Any]:
    """Derive the JSON Schema from :class:`EvidenceRecord`.

    The shipped file is this function's output; a test keeps them equal.
    """
    schema = msgspec.json.schema(EvidenceRecord)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Evidence record of shoal",
        **schema,
    }


def this_machine(accelerator: str | None = None) -> Machine:
    """Describe the kind of machine this is: usable cores, CPU model, memory, system."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    affinity = getattr(os, "sched_getaffinity", None)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Machine(
        cores=len(affinity(0)) if affinity else os.cpu_count() or 1,
        cpu=cpu,
        memory_gib=round(memory, 1),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        accelerator=accelerator,
    )


def library_versions(*names: str) -> dict[str, str]:
    """Return installed versions by distribution name; missing ones say ``"not installed"``."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def data_source(
    name: str, *paths: str | os.PathLike[str], origin: str = "", licence: str = ""
) -> DataSource:
    """Describe a data set by the SHA-256 of its files.

    One file: its own digest. Several: the digest over their digests in the
    order of their names, so the same set gives the same value anywhere.
    """
    if not paths:
        raise InputError("a data source needs at least one file", field="paths", source=name)
    files = sorted((Path(path) for path in paths), key=lambda path: path.name)
    digests = [sha256_file(path) for path in files]
    digest = digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()
    return DataSource(name=name, sha256=digest.hex(), origin=origin, licence=licence)


def today() -> str:
    """Return today's date in UTC as ``YYYY-MM-DD``."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def write_evidence(path: str | os.PathLike[str], record: EvidenceRecord) -> None:
    """Check a record and write it, whole or not at all.

    Parameters
    ----------
    path : path-like
        As a rule ``evidence/<method>.json``. Its folder must exist.
    record : EvidenceRecord

    Raises
    ------
    InputError
        A claim's status does not fit its figure, an id appears twice, a date
        or checksum is malformed, a number is not finite, or the record names
        this host or an absolute path.
    """
    _check(record, source=str(path))
    for field, text in _strings(msgspec.to_builtins(record)):
        found = _private(text)
        if found:
            raise InputError(f"must not carry {found}", field=field, value=text, source=str(path))
    text = json.dumps(msgspec.to_builtins(record), indent=2, sort_keys=True, ensure_ascii=False)
    write_text(path, text + "\n")


def read_evidence(path: str | os.PathLike[str]) -> EvidenceRecord:
    """Read and check an evidence file.

    Raises
    ------
    NotFoundError
        The file does not exist.
    InputError
        It is not JSON or not an evidence record; names the field.
    """
    file = Path(path)
    try:
        record = msgspec.json.decode(file.read_bytes(), type=EvidenceRecord)
    except FileNotFoundError as error:
        raise NotFoundError(f"{file} does not exist") from error
    except msgspec.DecodeError as error:  # ValidationError is one
        raise InputError(str(error), source=str(file)) from error
    _check(record, source=str(file))
    return record


def _check(record: EvidenceRecord, *, source: str) -> None:
    try:  # construction does not validate; a round trip does
        plain = msgspec.to_builtins(record)
        msgspec.convert(plain, EvidenceRecord)
        json.dumps(plain, allow_nan=False)
    except (msgspec.ValidationError, TypeError, ValueError) as error:
        raise InputError(str(error), source=source) from error
    if not _DATE.fullmatch(record.date):
        raise InputError("must be YYYY-MM-DD", field="date", value=record.date, source=source)
    for entry in record.data:
        if not _SHA256.fullmatch(entry.sha256):
            raise InputError(
                "must be 64 hexadecimal digits",
                field=f"data.{entry.name}.sha256",
                value=entry.sha256,
                source=source,
            )
    _check_claims(record.claims, source=source)


def _check_claims(claims: Iterable[Claim], *, source: str) -> None:
    seen = set()
    for row, claim in enumerate(claims, start=1):
        if claim.id in seen:
            raise InputError("appears twice", field="id", value=claim.id, row=row, source=source)
        seen.add(claim.id)
        if (claim.ours is None) != (claim.status == "not attempted"):
            raise InputError(
                f"status {claim.status!r} does not fit a claim "
                f"{'without' if claim.ours is None else 'with'} a figure of ours",
                field=f"claims.{claim.id}.status",
                row=row,
                source=source,
            )
        if claim.status == "reproduced" and claim.published is None:
            raise InputError(
                "there is no published figure to reproduce; use 'direction'",
                field=f"claims.{claim.id}.status",
                row=row,
                source=source,
            )


def _strings(value: object, field: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield field, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            name = f"{field}.{key}" if field else str(key)
            yield name, str(key)
            yield from _strings(inner, name)
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _strings(inner, f"{field}[{index}]")


def _private(text: str) -> str | None:
    """Say what in ``text`` points at this machine, if anything does."""
    if _ABSOLUTE_PATH.search(text) or str(Path.cwd()) in text:
        return "an absolute path"
    host = socket.gethostname()
    # A host called "walle" cannot be told from the word; "build-07" can.
    if re.search(r"[\d.-]", host) and re.search(rf"\b{re.escape(host)}\b", text):
        return "the name of this host"
    return None
