"""A graph as a folder: arrays that are mapped, and a manifest with counts and checksums.

The arrays file is named by its checksum, and the manifest that names it is swapped by
one rename: a reader sees the old graph or the new one, never half of each. Whoever has
mapped the old arrays keeps reading them.
"""

from __future__ import annotations

import hashlib
import itertools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError, IntegrityError, NotFoundError
from shoal.core.files import fsync_folder, sha256_file, write_bytes
from shoal.data.arrayfile import ArrayFile, Arrays, read_arrays, write_arrays

if TYPE_CHECKING:
    from shoal.influence.graph import Graph

__all__ = ["SCHEMA", "graph_digest", "load_graph", "save_graph"]

#: Version of the folder's form; another one is refused.
SCHEMA = 1
_FORMAT = "shoal.influence.graph"
_MANIFEST = "manifest.json"


class _Manifest(msgspec.Struct, frozen=True, kw_only=True):
    format: str
    schema: int
    nodes: int
    arcs: int
    directed: bool
    names: Literal["rows", "integers", "text"]
    values: bool
    report: dict[str, int]
    graph_sha256: str
    file: str
    arrays: ArrayFile


class _Signed(msgspec.Struct, frozen=True):
    graph: msgspec.Raw
    sha256: str


def graph_digest(graph: Graph) -> str:
    """Return the SHA-256 of a graph's arcs and values; names do not count."""
    digest = hashlib.sha256(f"{graph.n} {graph.m} {int(graph.directed)}".encode())
    for array in (graph.out_ptr, graph.out_ids, graph.values):
        if array is not None:
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()


def save_graph(graph: Graph, folder: str | Path) -> None:
    """See :meth:`Graph.save`."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file", hint="choose a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / _MANIFEST).is_file():
        raise InputError(f"{folder} is there and is no graph", hint="choose another folder")
    kind, arrays = _name_arrays(graph)
    arrays |= {"out_ptr": graph.out_ptr, "out_ids": graph.out_ids}
    if graph.in_ids is not graph.out_ids:  # an undirected graph is its own reverse
        arrays |= {"in_ptr": graph.in_ptr, "in_ids": graph.in_ids}
    if graph.values is not None:
        arrays["values"] = np.asarray(graph.values)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".graph.", suffix=".part", dir=folder) as part:
        made = Path(part) / "arrays"
        file = write_arrays(made, arrays)
        name = f"arrays-{file.sha256[:16]}.safetensors"
        made.replace(folder / name)
    report = graph.report
    manifest = _Manifest(
        format=_FORMAT,
        schema=SCHEMA,
        nodes=graph.n,
        arcs=graph.m,
        directed=graph.directed,
        names=kind,
        values=graph.values is not None,
        report={
            "lines": report.lines,
            "self_loops": report.self_loops,
            "duplicates": report.duplicates,
            "isolated": report.isolated,
        },
        graph_sha256=graph_digest(graph),
        file=name,
        arrays=file,
    )
    body = msgspec.json.encode(manifest)
    signed = _Signed(msgspec.Raw(body), hashlib.sha256(body).hexdigest())
    write_bytes(folder / _MANIFEST, msgspec.json.encode(signed))
    for old in folder.glob("arrays-*.safetensors"):
        if old.name != name:
            old.unlink(missing_ok=True)
    fsync_folder(folder)


def load_graph(
    cls: type[Graph], folder: str | Path, *, mmap: bool = True, verify: bool = True
) -> Graph:
    """See :meth:`Graph.load`."""
    folder = Path(folder)
    manifest = _read_manifest(folder)
    path = folder / manifest.file
    if not path.is_file():
        raise IntegrityError(f"{path} is missing")
    arrays = read_arrays(path, manifest.arrays, mmap=mmap, copy_on_write=True)
    if verify and sha256_file(path).hex() != manifest.arrays.sha256:
        raise IntegrityError(f"{path} was altered: it has another checksum")
    _check(arrays, manifest, path)
    from shoal.influence.graph import GraphReport  # noqa: PLC0415 - it imports this module

    out_ptr, out_ids = arrays["out_ptr"], arrays["out_ids"]
    return cls(
        out_ptr,
        out_ids,
        arrays.get("in_ptr", out_ptr),
        arrays.get("in_ids", out_ids),
        directed=manifest.directed,
        values=arrays.get("values"),
        names=_names_of(arrays, manifest.names),
        report=GraphReport(**manifest.report),
    )


def _read_manifest(folder: Path) -> _Manifest:
    path = folder / _MANIFEST
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"{folder} holds no graph: there is no {_MANIFEST}") from None
    try:
        signed = msgspec.json.decode(raw, type=_Signed)
        body = bytes(signed.graph)
        if hashlib.sha256(body).hexdigest() != signed.sha256:
            raise IntegrityError(f"{path} was altered: it has another checksum")
        head = msgspec.json.decode(body)
        if not isinstance(head, dict) or head.get("format") != _FORMAT:
            raise IntegrityError(f"{path} is of another kind")
        if head.get("schema") != SCHEMA:
            raise IntegrityError(
                f"{path} has form {head.get('schema')}, this shoal reads {SCHEMA}",
                hint="save the graph again with this version",
            )
        manifest = msgspec.convert(head, _Manifest)
    except msgspec.MsgspecError as error:
        raise IntegrityError(f"{path} is no manifest: {error}") from None
    if Path(manifest.file).name != manifest.file:
        raise IntegrityError(f"{path} names a file outside its folder")
    return manifest


def _check(arrays: Arrays, manifest: _Manifest, path: Path) -> None:
    """Refuse arrays that do not fit each other: compiled code would read past their ends."""
    senses = ["out", *(["in"] if "in_ptr" in arrays or manifest.directed else [])]
    for sense in senses:
        ptr, ids = arrays.get(f"{sense}_ptr"), arrays.get(f"{sense}_ids")
        fits = (
            ptr is not None
            and ids is not None
            and ptr.dtype == np.int64
            and ids.dtype == np.int32
            and ptr.shape == (manifest.nodes + 1,)
            and ids.shape == (manifest.arcs,)
            and ptr[0] == 0
            and ptr[-1] == manifest.arcs
            and bool((ptr[1:] >= ptr[:-1]).all())
            and (not len(ids) or (int(ids.min()) >= 0 and int(ids.max()) < manifest.nodes))
        )
        if not fits:
            raise IntegrityError(f"{path}: its {sense}-arcs are no rows of {manifest.nodes} nodes")
    values = arrays.get("values")
    if (values is not None) != manifest.values or (
        values is not None and (values.dtype != np.float64 or values.shape != (manifest.arcs,))
    ):
        raise IntegrityError(f"{path}: the values do not fit the arcs")


# --- names ------------------------------------------------------------------------------------


def _name_arrays(graph: Graph) -> tuple[Literal["rows", "integers", "text"], Arrays]:
    if graph.names is None:
        return "rows", {}
    names = graph.names.tolist() if isinstance(graph.names, np.ndarray) else list(graph.names)
    if all(isinstance(name, int) and not isinstance(name, bool) for name in names):
        try:
            return "integers", {"names": np.array(names, dtype=np.int64)}
        except OverflowError:
            raise InputError("integers above 2**63 cannot be kept", field="names") from None
    for row, name in enumerate(names):
        if not isinstance(name, str):
            raise InputError(
                "only integers or text can be kept", field="names", value=name, row=row + 1
            )
    parts = [name.encode("utf-8", "surrogatepass") for name in names]
    starts = np.zeros(len(parts) + 1, dtype=np.int64)
    np.cumsum([len(part) for part in parts], out=starts[1:])
    text = np.frombuffer(b"".join(parts), dtype=np.uint8)
    return "text", {"name_starts": starts, "name_text": text}


def _names_of(arrays: Arrays, kind: str) -> list[str] | npt.NDArray[Any] | None:
    if kind == "rows":
        return None
    if kind == "integers":
        return arrays["names"]
    raw = arrays["name_text"].tobytes()
    starts = arrays["name_starts"].tolist()
    return [raw[a:b].decode("utf-8", "surrogatepass") for a, b in itertools.pairwise(starts)]
