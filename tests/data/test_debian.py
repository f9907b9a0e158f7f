"""Debian's package index: needs, alternatives and virtual packages as apt would take them."""

from __future__ import annotations

import gzip
import lzma

import numpy as np
import pyarrow as pa
import pytest

from shoal.core.errors import InputError, NotFoundError
from shoal.data import debian

INDEX = """\
Package: app
Version: 1.0
Installed-Size: 120
Section: games
Priority: optional
Depends: libc (>= 2.34), python:any (>= 3.11), mta | exim,
 awk, app-data [amd64] <!nocheck>, libc
Pre-Depends: dpkg (>= 1.15.6~)
Recommends: extra, nothing-like-it | libc
Suggests: gone
Description: a game
 : with : odd lines
Tag: role::program

Package: libc
Section: libs
Priority: required

Package: python
Depends: libc
Pre-Depends: libc

Package: exim
Provides: mta (= 1), mail
Priority: extra
Depends: libc

Package: postfix
Provides: mta
Priority: optional

Package: mawk
Provides: awk
Depends: awk

Package: gawk
Provides: awk
Priority: required


Package: dpkg
Package-Type: deb

Package: extra

Package: app-data
Installed-Size: many
"""


def arcs(graph, kinds=debian.KINDS):
    table = graph.table(kinds)
    ends = zip(table.source, table.target, table.kinds, strict=True)
    return {(graph.names[a], graph.names[b], debian.KINDS[k]) for a, b, k in ends}


@pytest.fixture
def index(tmp_path):
    path = tmp_path / "Packages"
    path.write_text(INDEX)
    return path


def test_arcs_run_from_the_dependency_to_its_dependent(index):
    graph = debian.read_packages(index)
    assert graph.names == sorted(graph.names)
    assert arcs(graph) == {
        ("libc", "app", "depends"),
        ("python", "app", "depends"),
        ("postfix", "app", "depends"),  # provides mta, and has the higher priority
        ("gawk", "app", "depends"),
        ("app-data", "app", "depends"),
        ("dpkg", "app", "pre-depends"),
        ("extra", "app", "recommends"),
        ("libc", "python", "pre-depends"),  # the harder of two
        ("libc", "exim", "depends"),
        ("gawk", "mawk", "depends"),
    }
    assert graph.unresolved == 1
    row = graph.names.index("app")
    assert (graph.sections[row], graph.priorities[row]) == ("games", "optional")
    assert graph.installed_kib[row] == 120
    assert graph.installed_kib[graph.names.index("app-data")] == 0
    assert ("extra", "app", "recommends") not in arcs(graph, debian.HARD)


def test_all_alternatives(index):
    graph = debian.read_packages(index, alternatives="all")
    more = arcs(graph) - arcs(debian.read_packages(index))
    assert more == {("exim", "app", "depends"), ("mawk", "app", "depends")}
    with pytest.raises(InputError, match="first or all"):
        debian.read_packages(index, alternatives="some")


def test_direction_negative_control(index):
    """Turned round, the graph says something else: what few packages depend on."""
    from shoal.influence import Graph

    packages = debian.read_packages(index)
    graph = Graph.from_table(packages.table())
    libc, app = graph.rows(["libc", "app"])
    assert graph.n == len(packages)
    assert graph.out_degrees()[libc] == 3
    assert graph.out_degrees()[app] == 0
    turned = Graph.from_table(packages.table(), direction="backward")
    assert turned.out_degrees()[libc] == 0
    assert turned.digest() == graph.reversed().digest() != graph.digest()


def test_packed_files_and_folders(tmp_path, index):
    whole = arcs(debian.read_packages(index))
    content = INDEX.encode()
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "lz4") as stream:
        stream.write(content)
    packed = {
        ".gz": gzip.compress(content),
        ".xz": lzma.compress(content),
        ".lz4": sink.getvalue().to_pybytes(),
    }
    for suffix, raw in packed.items():
        path = tmp_path / f"x_Packages{suffix}"
        path.write_bytes(raw)
        assert arcs(debian.read_packages(path)) == whole
        path.write_bytes(raw[: len(raw) // 2])
        with pytest.raises(InputError, match=path.name):
            debian.read_packages(path)
        path.unlink()
    lists = tmp_path / "lists"
    lists.mkdir()
    with pytest.raises(NotFoundError, match="no Packages file"):
        debian.read_packages(lists)
    (lists / "a_Packages").write_text("Package: one\nDepends: two\n")
    (lists / "b_Packages.gz").write_bytes(gzip.compress(b"Package: two\n\nPackage: one\n"))
    graph = debian.read_packages(lists)
    assert (graph.names, graph.repeated, len(graph.source)) == (["one", "two"], 1, 0)


@pytest.mark.parametrize(
    ("text", "row", "words"),
    [
        ("Package: a\n\nVersion: 1\n", 3, "without 'Package'"),
        ("Package: a\nnonsense\n", 2, "no 'Field: value'"),
        (" Package: a\n", 1, "goes on"),
        ("\n\n", None, "no package"),
        ("", None, "empty"),
    ],
)
def test_what_is_no_index(tmp_path, text, row, words):
    path = tmp_path / "Packages"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        debian.read_packages(path)
    assert caught.value.row == row


def test_not_utf8(tmp_path):
    path = tmp_path / "Packages"
    path.write_bytes(b"Package: a\nMaintainer: \xff\n")
    with pytest.raises(InputError, match=r"row 2.*UTF-8"):
        debian.read_packages(path)


def test_saved_and_loaded(tmp_path, index):
    graph = debian.read_packages(index)
    graph.save(tmp_path / "kept")
    again = debian.PackageGraph.load(tmp_path / "kept")
    assert (again.names, again.sections, again.priorities) == (
        graph.names,
        graph.sections,
        graph.priorities,
    )
    assert np.array_equal(again.installed_kib, graph.installed_kib)
    assert arcs(again) == arcs(graph)
    (tmp_path / "kept" / "arcs.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="Parquet"):
        debian.PackageGraph.load(tmp_path / "kept")
    with pytest.raises(NotFoundError):
        debian.PackageGraph.load(tmp_path)


def test_the_sample_is_the_whole_of_bookworm_main():
    graph = debian.sample()
    assert (len(graph), len(graph.source)) == (63_436, 314_339)
    assert np.bincount(graph.kinds).tolist() == [263_229, 962, 27_966, 22_182]
    libc, bash = graph.names.index("libc6"), graph.names.index("bash")
    hard = set(zip(graph.table().source.tolist(), graph.table().target.tolist(), strict=True))
    assert (libc, bash) in hard
    assert (bash, libc) not in hard
    assert graph.names == sorted(set(graph.names))
    assert graph.priorities[bash] == "required"
    size = sum(path.stat().st_size for path in debian._SAMPLE.iterdir())
    assert size < 1_500_000
    assert (debian._SAMPLE / "ORIGIN.md").is_file()
