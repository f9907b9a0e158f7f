"""Debian's package index as a graph: who breaks, or is broken into, when a package is.

An arc runs from a dependency to its dependent: ``libc6`` influences ``bash``, since
``bash`` depends on ``libc6``. The index is read as deb-control(5) has it; the shipped
sample is the whole of bookworm main, see ``debian_bookworm/ORIGIN.md``.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shoal.core.errors import InputError, NotFoundError
from shoal.core.files import atomic_writer
from shoal.data.graphs import EdgeTable
from shoal.data.sourcefile import read_bytes

__all__ = ["HARD", "KINDS", "PackageGraph", "read_packages", "sample"]

#: Kinds of arcs, by their number.
KINDS = ("depends", "pre-depends", "recommends", "suggests")
#: Those without which a package cannot be installed.
HARD = KINDS[:2]

_FIELDS = {
    "Package", "Section", "Priority", "Installed-Size", "Provides",
    "Depends", "Pre-Depends", "Recommends", "Suggests",
}  # fmt: skip
_PRIORITIES = ("required", "important", "standard", "optional", "extra")
#: A name, without what may follow it: ``python3:any (>= 3.11) [amd64] <!nocheck>``.
_NAME = re.compile(r"\s*([a-z0-9A-Z][a-z0-9A-Z+.\-]*)(?::[a-z0-9-]+)?\s*(?:[\[(<].*)?\Z", re.DOTALL)
_SAMPLE = Path(__file__).parent / "debian_bookworm"
_SHOWN = 30


@dataclass(frozen=True, eq=False)
class PackageGraph:
    """Packages and what they need from each other.

    Attributes
    ----------
    names : list of str [n]
        Ascending.
    sections, priorities : list of str [n]
        Such as ``libs`` and ``optional``; empty where the index says none.
    installed_kib : int64 [n]
        Size when installed, KiB; 0 where the index says none.
    source, target : int64 [e]
        Rows of the dependency and of the package that depends on it.
    kinds : int64 [e]
        Numbers in :data:`KINDS`.
    unresolved : int
        Needs that no package of the index meets; they have no arc.
    repeated : int
        Further stanzas of a package that was there already; the last one counts.
    """

    names: list[str]
    sections: list[str]
    priorities: list[str]
    installed_kib: npt.NDArray[np.int64]
    source: npt.NDArray[np.int64]
    target: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.int64]
    unresolved: int = 0
    repeated: int = 0

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"<PackageGraph {len(self.names):,} packages, {len(self.source):,} arcs>"

    def table(self, kinds: Iterable[str] = HARD) -> EdgeTable:
        """Return the arcs of some kinds, the hard ones by default; every package is a node.

        ``Graph.from_table(packages.table())`` makes a graph of it: which way influence
        runs is known here.
        """
        whole = EdgeTable(
            self.source,
            self.target,
            names=self.names,
            kinds=self.kinds,
            kind_names=KINDS,
            directed=True,
            direction="forward",
        )
        return whole.of_kinds(kinds)

    def save(self, folder: str | Path) -> None:
        """Write ``packages.parquet`` and ``arcs.parquet``, small and for anyone to read."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        packages = pa.table(
            {
                "name": self.names,
                "section": pa.array(self.sections).dictionary_encode(),
                "priority": pa.array(self.priorities).dictionary_encode(),
                "installed_kib": pa.array(self.installed_kib, pa.int32()),
            }
        )
        order = np.lexsort((self.source, self.kinds, self.target))
        arcs = pa.table(
            {
                "source": pa.array(self.source[order], pa.int32()),
                "target": pa.array(self.target[order], pa.int32()),
                "kind": pa.array(self.kinds[order], pa.int8()),
            }
        )
        compact = {"compression": "zstd", "compression_level": 19, "use_dictionary": False}
        for name, table, encoding in (
            ("packages", packages, {"name": "DELTA_BYTE_ARRAY"}),
            ("arcs", arcs, {"target": "DELTA_BINARY_PACKED"}),
        ):
            options = dict(compact)
            if name == "packages":
                options["use_dictionary"] = ["section", "priority"]
            with atomic_writer(folder / f"{name}.parquet") as stream:
                pq.write_table(table, stream, column_encoding=encoding, **options)

    @classmethod
    def load(cls, folder: str | Path) -> PackageGraph:
        """Return the packages that :meth:`save` wrote.

        Raises
        ------
        NotFoundError, InputError
            A file is missing, or cannot be read.
        """
        folder = Path(folder)
        tables = []
        for name in ("packages.parquet", "arcs.parquet"):
            content = read_bytes(folder / name)
            try:
                tables.append(pq.read_table(io.BytesIO(content)))
            except (pa.ArrowInvalid, OSError) as error:
                raise InputError(f"not a readable Parquet file: {error}", source=name) from None
        packages, arcs = tables
        return cls(
            packages["name"].to_pylist(),
            packages["section"].to_pylist(),
            packages["priority"].to_pylist(),
            packages["installed_kib"].to_numpy().astype(np.int64),
            arcs["source"].to_numpy().astype(np.int64),
            arcs["target"].to_numpy().astype(np.int64),
            arcs["kind"].to_numpy().astype(np.int64),
        )


def sample() -> PackageGraph:
    """Return the package graph of Debian bookworm main, amd64, which comes with shoal."""
    return PackageGraph.load(_SAMPLE)


def read_packages(
    paths: str | Path | Sequence[str | Path],
    *,
    alternatives: Literal["first", "all"] = "first",
) -> PackageGraph:
    """Read ``Packages`` indices of Debian and its kin.

    Parameters
    ----------
    paths : path-like or sequence of them
        Files as an archive has them (plain, .gz, .xz, .bz2, .zst) or as apt keeps them
        (.lz4), or a folder, such as ``/var/lib/apt/lists``, of which every file of
        that kind is read.
    alternatives : {"first", "all"}
        Where a package needs ``a | b``, or a virtual package that several provide.
        First: one arc, from what apt would take: the first alternative that the
        index can meet, and for a virtual one its provider of the highest priority,
        then by name. All: an arc from every one that would do; influence is then
        overstated, since any single one suffices.

    Notes
    -----
    Versions, architectures and build profiles in a need are not looked at. A package
    that provides what it needs itself has no arc for it.

    Raises
    ------
    NotFoundError
        There is no such file, or no index in the folder.
    InputError
        A stanza has no name or no readable line; the message names file and row.
    """
    if alternatives not in {"first", "all"}:
        raise InputError("must be first or all", field="alternatives", value=alternatives)
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    stanzas: dict[str, dict[str, str]] = {}
    repeated = 0
    for path in _files(given):
        for fields in _stanzas(_text(path), path.name):
            repeated += fields["Package"] in stanzas
            stanzas[fields["Package"]] = fields
    if not stanzas:
        raise InputError("no package in it", source=", ".join(str(path) for path in given))
    return _resolve(stanzas, repeated, every=alternatives == "all")


def _files(given: Sequence[str | Path]) -> list[Path]:
    found: list[Path] = []
    for entry in map(Path, given):
        if not entry.is_dir():
            found.append(entry)
            continue
        inside = sorted(path for path in entry.glob("*Packages*") if path.is_file())
        if not inside:
            raise NotFoundError(f"{entry} holds no Packages file", hint="run apt-get update")
        found += inside
    return found


def _text(path: Path) -> str:
    content = read_bytes(path)
    if path.suffix.lower() == ".lz4":
        try:
            with pa.input_stream(io.BytesIO(content), compression="lz4") as stream:
                content = stream.read()
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"not a readable .lz4 file: {error}", source=path.name) from None
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        raise InputError("is not UTF-8", row=row, source=path.name) from None


def _stanzas(text: str, name: str) -> Iterator[dict[str, str]]:
    """Yield the fields that matter of each paragraph."""
    fields: dict[str, str] = {}
    start, key = 1, ""
    for row, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            if fields:
                yield _named(fields, start, name)
            fields, key = {}, ""
        elif line[0] in " \t":
            if key in _FIELDS:
                fields[key] += " " + line.strip()
            elif not key:
                raise InputError("a line goes on where none began", row=row, source=name)
        else:
            key, colon, value = line.partition(":")
            if not colon:
                raise InputError("is no 'Field: value'", row=row, source=name, value=line[:_SHOWN])
            if not fields:
                start = row
            fields[key if key in _FIELDS else ""] = value.strip()
    if fields:
        yield _named(fields, start, name)


def _named(fields: dict[str, str], row: int, name: str) -> dict[str, str]:
    if not fields.get("Package"):
        raise InputError("a paragraph without 'Package'", row=row, source=name)
    return fields


def _resolve(stanzas: dict[str, dict[str, str]], repeated: int, *, every: bool) -> PackageGraph:
    names = sorted(stanzas)
    row_of = {name: row for row, name in enumerate(names)}
    priorities = [stanzas[name].get("Priority", "") for name in names]
    rank = {priority: number for number, priority in enumerate(_PRIORITIES)}
    providers: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        for group in _needs(stanzas[name].get("Provides", "")):
            providers.setdefault(group[0], []).append(row)
    for rows in providers.values():
        rows.sort(key=lambda row: (rank.get(priorities[row], len(rank)), row))

    def met_by(wanted: str) -> list[int]:
        """Return the package of that name, or else those that provide it."""
        return [row_of[wanted]] if wanted in row_of else providers.get(wanted, [])

    arcs: dict[tuple[int, int], int] = {}
    unresolved = 0
    for kind, field in enumerate(("Depends", "Pre-Depends", "Recommends", "Suggests")):
        for row, name in enumerate(names):
            for group in _needs(stanzas[name].get(field, "")):
                meeting = [found for wanted in group for found in met_by(wanted)]
                unresolved += not meeting
                for found in meeting if every else meeting[:1]:
                    # One arc for each pair, of its hardest kind.
                    if found != row and (kind == 1 or (found, row) not in arcs):
                        arcs[found, row] = kind
    ends = np.array(list(arcs), dtype=np.int64).reshape(-1, 2)
    kinds = np.fromiter(arcs.values(), dtype=np.int64, count=len(arcs))
    order = np.lexsort((ends[:, 0], ends[:, 1]))
    return PackageGraph(
        names,
        [stanzas[name].get("Section", "") for name in names],
        priorities,
        np.array([_kib(stanzas[name].get("Installed-Size", "")) for name in names], dtype=np.int64),
        ends[order, 0],
        ends[order, 1],
        kinds[order],
        unresolved=unresolved,
        repeated=repeated,
    )


def _needs(text: str) -> Iterator[list[str]]:
    """Yield the alternatives of each need."""
    for group in text.split(",") if text else ():
        matches = (_NAME.match(one) for one in group.split("|"))
        names = [match.group(1) for match in matches if match is not None]
        if names:
            yield names


def _kib(text: str) -> int:
    return int(text) if text.isdecimal() else 0
