"""Edge lists: every form of text that people have, and a name and row for what is wrong."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import sys

import numpy as np
import polars as pl
import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

import shoal.data
from shoal.core.errors import InputError, NotFoundError, UnavailableError
from shoal.data import edgetext
from shoal.data.graphs import EdgeTable, read_edge_table


def write(tmp_path, text, name="edges.txt"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def arcs(table: EdgeTable) -> list[tuple]:
    pairs = zip(table.source.tolist(), table.target.tolist(), strict=True)
    if table.names is None:
        return list(pairs)
    return [(table.names[a], table.names[b]) for a, b in pairs]


@pytest.mark.parametrize(
    "text",
    [
        "0 1\n2 30\n",
        "0 1\n2 30",
        "0\t1\n2\t30\n",
        "0,1\n2,30\n",
        "0, 1\r\n2, 30\r\n",
        "0;1\n2;30\n",
        "0|1\n2|30\n",
        "  0   1  \n\n\t2 \t30\n   \n",
        "# a comment\n% another\n0 1\n# between\n2 30\n#end",
        "source,target\n0,1\n2,30\n",
        "FromNodeId\tToNodeId\n0\t1\n2\t30\n",
        "who whom\n0 1\n2 30\n",
        '"0","1"\n"2","30"\n',
        "\ufeff0 1\n2 30\n",
        "+0 1\n2 0030\n",
    ],
)
def test_forms_of_integers(tmp_path, text):
    table = read_edge_table(write(tmp_path, text))
    assert arcs(table) == [(0, 1), (2, 30)]
    assert table.source.dtype == table.target.dtype == np.int64
    assert (table.names, table.values, table.kinds, table.notes) == (None, None, None, ())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ann bob\nbob cy\n", [("ann", "bob"), ("bob", "cy")]),
        ("New York,Bonn\nBonn,Åbo\n", [("New York", "Bonn"), ("Bonn", "Åbo")]),
        ('"Doe, J",x\nx,"Roe, R"\n', [("Doe, J", "x"), ("x", "Roe, R")]),
        ("src\tdst\na b\tc\n", [("a b", "c")]),
        ("x1 2\n3 4\n", [("x1", "2"), ("3", "4")]),
        ("\ufeffann bob\n", [("ann", "bob")]),
    ],
)
def test_forms_of_text(tmp_path, text, expected):
    table = read_edge_table(write(tmp_path, text))
    assert arcs(table) == expected
    assert table.names == sorted(table.names)


def test_columns_by_number_and_by_name(tmp_path):
    path = write(tmp_path, "id,to,p,why,from\n7,2,.5,x,1\n8,3,1e-3,y,2\n9,1,2,x,3\n")
    table = read_edge_table(path, values="p", kinds=4)
    assert arcs(table) == [(1, 2), (2, 3), (3, 1)]
    assert table.values.tolist() == [0.5, 0.001, 2.0]
    assert [table.kind_names[k] for k in table.kinds] == ["x", "y", "x"]
    assert "1 further column" in table.notes[0]
    only = table.of_kinds(["x"])
    assert (arcs(only), only.values.tolist()) == ([(1, 2), (3, 1)], [0.5, 2.0])
    assert arcs(read_edge_table(path, source=2, target="id")) == [(2, 7), (3, 8), (1, 9)]
    named = write(tmp_path, "who,whom\na,b\n", "named.csv")
    assert arcs(read_edge_table(named, source="who", target="whom")) == [("a", "b")]
    assert arcs(read_edge_table(named, header=True)) == [("a", "b")]
    assert arcs(read_edge_table(named)) == [("who", "whom"), ("a", "b")]
    for wrong in ({"source": 0}, {"source": 9}, {"values": "q"}, {"source": 2, "target": 2}):
        with pytest.raises(InputError):
            read_edge_table(path, **{"target": 1, **wrong})
    with pytest.raises(InputError, match="kinds are x, y"):
        table.of_kinds(["z"])
    with pytest.raises(InputError, match="no column of kinds"):
        read_edge_table(path).of_kinds(["x"])


def test_a_third_column_is_not_read_unless_asked_for(tmp_path):
    table = read_edge_table(write(tmp_path, "1 2 0.5\n2 3 nan\n"))
    assert table.values is None
    assert "not read" in table.notes[0]


PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd.compress}


@pytest.mark.parametrize("suffix", sorted(PACKERS))
def test_packed_files_and_those_cut_short(tmp_path, suffix):
    content = b"".join(b"%d %d\n" % (i, i * i % 977) for i in range(3000))
    packed = PACKERS[suffix](content)
    table = read_edge_table(write(tmp_path, packed, f"e.txt{suffix}"))
    assert arcs(table) == [(i, i * i % 977) for i in range(3000)]
    with pytest.raises(InputError, match=f"cut.txt{suffix}.*cut short"):
        read_edge_table(write(tmp_path, packed[: len(packed) // 2], f"cut.txt{suffix}"))
    with pytest.raises(InputError, match="not a readable"):
        read_edge_table(write(tmp_path, content, f"plain.txt{suffix}"))


@pytest.mark.parametrize(
    ("text", "row", "words"),
    [
        ("0 1\n1 2\njunk line\n2 3\n", 3, "no integer id"),
        ("0 1\n1 2\n!?\n", 3, "1 columns where there should be 2"),
        ("0 1\n# c\n\n1 2 3\n", 4, "3 columns where there should be 2"),
        ("0 1\n1 2.5\n", 2, "no integer id"),
        ("0 1\n1 nan\n", 2, "no integer id"),
        ("0 1\n1 99999999999999999999\n", 2, "no integer id"),
        ("0,1\n1,\n", 2, "no integer id"),
        ("a,b\nc,\n", 2, "an id is missing"),
        ("a,b\n,c\n", 2, "an id is missing"),
        ('a,b\nc,"d\n', 2, "a quote does not end"),
        ('a,b\n"c"x,d\n', 2, "a quote"),
        ("0 1\n1 \x00\n", 2, "no integer id"),
        ("0 1\n2\n", 2, "1 columns"),
        ("7\n", 1, "two ids"),
        ("a b\nc d e\n", 2, "3 columns"),
    ],
)
def test_junk_names_file_and_row(tmp_path, text, row, words):
    path = write(tmp_path, text, "people.txt")
    with pytest.raises(InputError, match=words) as caught:
        read_edge_table(path)
    assert (caught.value.row, caught.value.source) == (row, "people.txt")


def test_bad_lines_are_left_out_and_counted(tmp_path):
    path = write(tmp_path, "0 1\njunk\n1 2\n1 x\n1 2 3\n2 3\n")
    table = read_edge_table(path, on_bad_row="drop")
    assert (arcs(table), table.dropped) == ([(0, 1), (1, 2), (2, 3)], 3)
    with pytest.raises(InputError, match="error or drop"):
        read_edge_table(path, on_bad_row="ignore")
    with pytest.raises(InputError, match="no arc"):
        read_edge_table(write(tmp_path, "a b\nc\n"), ids="integer", on_bad_row="drop")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "x", "", "1,5", "0x1p3"])
def test_values_that_are_no_numbers(tmp_path, value):
    path = write(tmp_path, f"# weights\n0;1;.5\n1;2;{value}\n")
    with pytest.raises(InputError, match="no finite number") as caught:
        read_edge_table(path, values=3)
    assert (caught.value.row, caught.value.field) == (3, "values")


@pytest.mark.parametrize("text", ["", "\n\n", "# only\n% comments\n", "source target\n"])
def test_nothing_in_it(tmp_path, text):
    with pytest.raises(InputError, match=r"empty|no arc"):
        read_edge_table(write(tmp_path, text))


def test_other_kinds_of_files(tmp_path):
    with pytest.raises(NotFoundError):
        read_edge_table(tmp_path / "none.txt")
    with pytest.raises(NotFoundError, match="folder"):
        read_edge_table(tmp_path)
    with pytest.raises(InputError, match="UTF-16"):
        read_edge_table(write(tmp_path, "1 2\n".encode("utf-16")))
    with pytest.raises(InputError, match="Matrix Market") as caught:
        read_edge_table(write(tmp_path, "%%MatrixMarket matrix coordinate\n3 3 1\n1 2 1\n"))
    assert "mmread" in caught.value.hint
    with pytest.raises(InputError, match="not UTF-8") as caught:
        read_edge_table(write(tmp_path, b"a b\nc \xff\xfe\n"))
    assert caught.value.row == 2
    with pytest.raises(InputError, match="separator"):
        read_edge_table(write(tmp_path, "1 2\n"), separator="xx")
    with pytest.raises(InputError, match="ids"):
        read_edge_table(write(tmp_path, "1 2\n"), ids="any")


def test_without_the_compiler_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "shoal.data._edge_kernels", None)
    monkeypatch.delattr(shoal.data, "_edge_kernels", raising=False)
    with pytest.raises(UnavailableError, match="numba"):
        read_edge_table(write(tmp_path, "1 2\n"))


def test_ids_as_text_where_asked(tmp_path):
    table = read_edge_table(write(tmp_path, "1 2\n007 x\n"), ids="text")
    assert arcs(table) == [("1", "2"), ("007", "x")]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(-(10**17), 10**17), st.integers(0, 99)), min_size=1),
    st.sampled_from([" ", "\t", ",", ";", "  "]),
    st.booleans(),
)
def test_the_reader_agrees_with_split(tmp_path_factory, pairs, separator, text):
    path = tmp_path_factory.mktemp("edges") / "e.txt"
    path.write_text("".join(f"{a}{separator}{b}\n" for a, b in pairs))
    table = read_edge_table(path, ids="text" if text else "auto")
    found = [tuple(map(int, arc)) for arc in arcs(table)]
    assert found == pairs


def slow_rows(content, form):
    """Read the lines after the head one by one; return arcs, or the number of the wrong line."""
    found = []
    for row, line in enumerate(content.split(b"\n"), 1):
        if row <= form.line:
            continue
        fields = line.split() if not form.separator else line.split(bytes([form.separator]))
        blanks = b" \r\v\f" if form.separator == 9 else b" \t\r\v\f"
        if not line.strip(blanks) or line.strip(blanks)[:1] in {b"#", b"%"}:
            continue
        fields = [field.strip(blanks) for field in fields]
        if len(fields) != form.columns:
            return row
        if form.integers and not all(re.fullmatch(rb"[-+]?\d{1,18}", f) for f in fields[:2]):
            return row
        if not all(fields[:2]):
            return row
        found.append(tuple(map(int, fields[:2])) if form.integers else tuple(fields[:2]))
    return found


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    st.sampled_from(["0 1\n", "a b\n", "0,1\n", "0\t1\n", "a;b;c\n", "0 1 x\n"]),
    st.lists(st.text("017 \t,;-+.ab#%\r\f\n", max_size=9)),
)
def test_the_kernel_reads_what_the_slow_reader_reads(first, rest):
    content = (first + "\n".join(rest)).encode()
    wanted = dict.fromkeys(("source", "target", "values", "kinds"))
    try:
        form = edgetext._sniff(content, "e", separator=None, ids="auto", header=False)
        expected = slow_rows(content, form)
    except InputError:
        return
    try:
        table = edgetext.parse_edges(content, "e", wanted, header=False)
    except InputError as error:
        assert error.row == expected
        return
    found = zip(table.source.tolist(), table.target.tolist(), strict=True)
    if table.names is not None:
        found = ((table.names[a].encode(), table.names[b].encode()) for a, b in found)
    assert list(found) == expected


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=60), st.sampled_from([b"a,b\n", b'"a",b\n', b"0 1\n", b""]))
def test_no_bytes_do_anything_but_an_error_or_arcs(content, first):
    wanted = dict.fromkeys(("source", "target", "values", "kinds")) | {"values": 2}
    for asked in (wanted, {**wanted, "values": None}):
        try:
            table = edgetext.parse_edges(first + content, "e", asked)
        except InputError:
            continue
        assert len(table.source) == len(table.target) > 0


def test_parquet(tmp_path):
    path = tmp_path / "e.parquet"
    frame = pl.DataFrame({"w": [1.0, 2.0], "dst": [5, 6], "src": [1, 2], "kind": ["x", "y"]})
    frame.write_parquet(path)
    table = read_edge_table(path, values="w", kinds="kind")
    assert arcs(table) == [(1, 5), (2, 6)]
    assert (table.values.tolist(), table.kind_names) == ([1.0, 2.0], ("x", "y"))
    pl.DataFrame({"u": ["b", "a"], "v": ["c", "b"]}).write_parquet(path)
    assert arcs(read_edge_table(path)) == [("b", "c"), ("a", "b")]
    for frame, words in [
        (pl.DataFrame({"u": [1, None], "v": [2, 3]}), "row 2.*'source'.*missing"),
        (pl.DataFrame({"u": [1.5], "v": [2.0]}), "integers or text"),
        (pl.DataFrame({"u": [1, 2], "v": [2, 3], "w": [1.0, float("nan")]}), "row 2.*'values'"),
        (pl.DataFrame({"u": [], "v": []}, schema={"u": pl.Int64, "v": pl.Int64}), "no arc"),
    ]:
        frame.write_parquet(path)
        with pytest.raises(InputError, match=words):
            read_edge_table(path, values="w" if "w" in frame.columns else None)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="not a readable Parquet"):
        read_edge_table(path)


GRAPHML = """<?xml version="1.0" encoding="UTF-8"?>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns">
<key id="p" for="edge" attr.name="p" attr.type="double"/>
<graph edgedefault="{}"><node id="b"/><node id="alone"/><node id="a"/>
<edge source="b" target="a"><data key="p">0.25</data></edge></graph></graphml>
"""


@pytest.mark.parametrize("sense", ["directed", "undirected"])
def test_graphml(tmp_path, sense):
    table = read_edge_table(write(tmp_path, GRAPHML.format(sense), "g.graphml"), values="p")
    assert table.names == ["b", "alone", "a"]
    assert (arcs(table), table.values.tolist()) == ([("b", "a")], [0.25])
    assert table.directed is (sense == "directed")
    packed = write(tmp_path, gzip.compress(GRAPHML.format(sense).encode()), "g.graphml.gz")
    assert arcs(read_edge_table(packed)) == [("b", "a")]
    with pytest.raises(InputError, match="no finite number"):
        read_edge_table(tmp_path / "g.graphml", values="q")
    with pytest.raises(InputError, match="not a readable GraphML"):
        read_edge_table(write(tmp_path, GRAPHML[:200], "cut.graphml"))
