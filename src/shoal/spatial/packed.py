"""The packed layout: rows in Hilbert order, postings, and two implicit trees over them.

A place's row is its rank on the Hilbert curve, so 16^l successive rows are a node of
an R-tree that needs no pointers, and the rows of a node that have a word are a range
of the word's postings. Postings of a word are in the same order, so 16 successive
ones are close together as well: over those of each word with more than 16 lies a tree
of its own, whose bounds on attributes hold for the places with that word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError, IntegrityError, LimitError
from shoal.spatial import _build_kernels as building
from shoal.spatial import _call_kernels as calling
from shoal.spatial import _kernels as kernels
from shoal.spatial.columns import AttributeSpec, PlaceColumns, SearchStats
from shoal.spatial.combinations import column_count, fill_combinations
from shoal.spatial.curve import hilbert_order
from shoal.spatial.packed_query import encode_query
from shoal.spatial.packed_searcher import PackedSearcher, is_plain, make_state
from shoal.spatial.query import Answers, QueryPlan
from shoal.spatial.terms import Terms

__all__ = ["PackedLayout"]

_Arrays = dict[str, npt.NDArray[Any]]

#: Arrays by name, with their types: what a file holds, beside the dictionary's.
_TYPES: dict[str, tuple[type, ...]] = {
    "keys": (np.int64,),
    "lon32": (np.int32,),
    "lat32": (np.int32,),
    "lon64": (np.float64,),
    "lat64": (np.float64,),
    "values32": (np.float32,),
    "values64": (np.float64,),
    "lengths": (np.uint16, np.uint32),
    "post": (np.uint32,),
    "ptr": (np.uint32,),
    "boxes": (np.float32,),
    "level_start": (np.int64,),
    "node_low": (np.uint8,),
    "node_high": (np.uint8,),
    "block_boxes": (np.float32,),
    "block_low": (np.uint8,),
    "block_high": (np.uint8,),
    "tree_bits": (np.uint64,),
    "tree_rank": (np.uint32,),
    "tree_start": (np.uint32,),
}
_TERMS = "terms_"
_FAN_OUT = building.FAN_OUT


class PackedLayout:
    """Places in the packed layout; make one with :meth:`build` or :meth:`from_arrays`.

    Nothing changes after it is made, and any number of threads may search.

    Attributes
    ----------
    n : int
        Rows.
    specs : tuple of AttributeSpec
        One for each attribute, d of them.
    terms : Terms
        The words; V of them.
    lon32, lat32 : int32 [n]
        Positions in steps of 1e-7 degree, if every position is such a multiple.
    lon64, lat64 : float64 [n]
        Positions in degrees otherwise (``exact``); the other pair is empty.
    values32, values64 : float32 or float64 [d, n]
        Attributes; float64 (``wide``) only if float32 would change a value. The
        other one is empty ([d, 0]).
    lengths : uint16 or uint32 [n]
        Words of each row.
    post : uint32 [nnz], ptr : uint32 [V + 1]
        Rows with word t, ascending: ``post[ptr[t]:ptr[t + 1]]``.
    boxes : float32 [nodes, 6], level_start : int64 [levels + 1]
        Minima and maxima of x, y, z on the unit sphere, widened outward. Node i
        of level l is ``boxes[level_start[l] + i]`` and covers the rows
        ``i * 16^(l+1)`` to before ``(i + 1) * 16^(l+1)``; the last level is the root.
    node_low, node_high : uint8 [nodes, d + column_count(d)]
        Bounds of the attributes' costs (less is better) in 255ths, and of attributes
        taken together (``combinations``); only [nodes, d] in files of earlier versions.
    block_boxes, block_low, block_high
        The same of the words' own trees, one tree after the other, each level
        by level from the blocks of 16 postings up to at most 16 nodes.
    tree_bits : uint64, tree_rank : uint32 [V // 64 + 1], tree_start : uint32 [trees + 1]
        Words with a tree as bits, the number of such words before each 64, and
        the first node of each tree.
    """

    def __init__(
        self,
        arrays: Mapping[str, npt.NDArray[Any]],
        terms: Terms,
        specs: Sequence[AttributeSpec],
        *,
        exact: bool,
        wide: bool,
    ) -> None:
        self.specs = tuple(specs)
        self.terms = terms
        self.exact = exact
        self.wide = wide
        held = {name: np.ascontiguousarray(arrays[name]) for name in _TYPES}
        self.n = len(held["keys"])
        self._keys = held["keys"]
        self.lon32, self.lat32 = held["lon32"], held["lat32"]
        self.lon64, self.lat64 = held["lon64"], held["lat64"]
        self.values32, self.values64 = held["values32"], held["values64"]
        self.lengths = held["lengths"]
        self.post, self.ptr = held["post"], held["ptr"]
        self.boxes, self.level_start = held["boxes"], held["level_start"]
        self.node_low, self.node_high = held["node_low"], held["node_high"]
        self.block_boxes = held["block_boxes"]
        self.block_low, self.block_high = held["block_low"], held["block_high"]
        self.tree_bits, self.tree_rank = held["tree_bits"], held["tree_rank"]
        self.tree_start = held["tree_start"]
        self._spec_low = np.array([spec.low for spec in self.specs], dtype=np.float64)
        self._spec_span = np.array([spec.span for spec in self.specs], dtype=np.float64)
        self._spec_missing = np.array([spec.missing_code for spec in self.specs], dtype=np.int64)
        self._described = self._describe()

    # --- making ---------------------------------------------------------------------------

    @classmethod
    def build(cls, columns: PlaceColumns, specs: Sequence[AttributeSpec]) -> PackedLayout:
        """Arrange places.

        Parameters
        ----------
        columns : PlaceColumns
            The places, n of them.
        specs : sequence of AttributeSpec
            One for each row of ``columns.values``.

        Raises
        ------
        InputError
            The columns do not fit each other or the specifications.
        LimitError
            There are 2^32 places or postings, or more.
        """
        n, d = len(columns), len(specs)
        nnz = len(columns.word_ids)
        if columns.values.shape != (d, n):
            raise InputError(
                f"{d} attributes of {n} places need values of that shape",
                field="values",
                value=columns.values.shape,
            )
        if n >= 2**32 or nnz >= 2**32:
            raise LimitError("a packed layout holds fewer than 2^32 places and postings")
        order = hilbert_order(columns.lon, columns.lat)
        arrays, exact, wide = _row_arrays(columns, order)
        widest = int(np.diff(columns.word_ptr).max()) if n else 0
        arrays["lengths"] = np.empty(n, dtype=np.uint16 if widest < 2**16 else np.uint32)
        arrays["post"] = np.empty(nnz, dtype=np.uint32)
        arrays["ptr"] = np.zeros(len(columns.words) + 1, dtype=np.uint32)
        building.transpose(
            order,
            # Writable ones: for mapped arrays the kernel would be compiled again.
            np.require(columns.word_ptr, np.int64, ["C", "W"]),
            np.require(columns.word_ids, np.int32, ["C", "W"]),
            arrays["ptr"],
            arrays["post"],
            arrays["lengths"],
        )
        _add_trees(arrays, columns, specs, order)
        return cls(arrays, Terms.build(columns.words), specs, exact=exact, wide=wide)

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, npt.NDArray[Any]], meta: Mapping[str, Any]
    ) -> PackedLayout:
        """Return the layout of the arrays of :meth:`arrays`; they are not copied.

        Raises
        ------
        IntegrityError
            An array is missing, or not what was written.
        """
        try:
            specs = [AttributeSpec.model_validate(spec) for spec in meta["specs"]]
            exact, wide, n = bool(meta["exact"]), bool(meta["wide"]), int(meta["n"])
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(f"the layout's description is damaged: {error}") from None
        for name, kinds in _TYPES.items():
            if name not in arrays or arrays[name].dtype not in [np.dtype(kind) for kind in kinds]:
                raise IntegrityError(f"the layout's array {name!r} is missing or altered")
        terms = Terms.from_arrays(
            {
                name.removeprefix(_TERMS): array
                for name, array in arrays.items()
                if name.startswith(_TERMS)
            }
        )
        _check_shapes(arrays, n=n, d=len(specs), words=len(terms), exact=exact, wide=wide)
        return cls(arrays, terms, specs, exact=exact, wide=wide)

    # --- the layout protocol --------------------------------------------------------------

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.n

    @property
    def keys(self) -> npt.NDArray[np.int64]:
        """Return the key of each row, int64 [n]."""
        return self._keys

    def document_frequency(self, words: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return in how many rows each word occurs, int64; 0 for an unknown one."""
        ids = self.terms.ids(words)
        known = np.maximum(ids, 0)
        if not len(self.terms):
            return np.zeros(len(ids), dtype=np.int64)
        df = self.ptr[known + 1].astype(np.int64) - self.ptr[known]
        return np.where(ids >= 0, df, 0)

    def search(
        self,
        plan: QueryPlan,
        answers: Answers,
        live: npt.NDArray[np.uint8] | None = None,
        stats: SearchStats | None = None,
    ) -> None:
        """Offer every row that can be among the best ``plan.k`` to ``answers``.

        Parameters
        ----------
        plan : QueryPlan
            The query, without weights on time and social.
        answers : Answers
            Answers of other segments, if any; ``answers.k`` are kept.
        live : uint8 [n], optional
            1 for rows that are alive.
        stats : SearchStats, optional
            Is added to.

        Raises
        ------
        InputError
            The plan weighs time or social, or does not fit the layout.
        """
        if plan.weights[3] > 0.0 or plan.weights[4] > 0.0:
            raise InputError(
                "the time and social parts of a score need visits: use visits.search",
                field="weights",
            )
        integers, reals = encode_query(self, plan)
        if live is not None:
            if live.dtype != np.uint8 or live.shape != (self.n,):
                raise InputError(
                    f"the mask of live rows must be uint8 [{self.n}]",
                    field="live",
                    value=live.shape,
                )
            live = np.ascontiguousarray(live)
        touched = np.zeros(5, dtype=np.int64)
        integers[kernels.K] = answers.k
        state = make_state(
            (self,), integers, reals, answers, touched, plain=is_plain(plan), live=(live,)
        )
        state[calling.MODE] = calling.COMPLETE
        answers.count = calling.answer(state, 0.0, 0.0, 0, b"")
        if stats is not None:
            stats.nodes += int(touched[0])
            stats.scored += int(touched[1])
            stats.looked_at += int(touched[2])

    def searcher(self, plan: QueryPlan) -> PackedSearcher:
        """Return a prepared query: ``plan`` but for point and words, which its calls give."""
        return PackedSearcher(self, plan)

    def parts(
        self, plan: QueryPlan, rows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Return (parts [m, 5] in the order of PARTS, distance km [m], qualifies [m]) of rows.

        The time and the social part are 0: they are not known here.

        Raises
        ------
        InputError
            There is no such row.
        """
        wanted = np.ascontiguousarray(rows, dtype=np.int64)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < self.n):
            raise InputError(f"there are {self.n} rows", field="rows")
        integers, reals = encode_query(self, plan)
        out = np.zeros((len(wanted), 5))
        km = np.zeros(len(wanted))
        qualifies = np.zeros(len(wanted), dtype=np.bool_)
        kernels.parts(self._described, integers, reals, wanted, out, km, qualifies)
        return out, km, qualifies

    def positions(
        self, rows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return (lon, lat) of rows, degrees, float64 each."""
        if self.exact:
            return self.lon64[rows], self.lat64[rows]
        return self.lon32[rows] / 1e7, self.lat32[rows] / 1e7

    def columns(self) -> PlaceColumns:
        """Return the places as columns, in row order."""
        word_ptr = np.zeros(self.n + 1, dtype=np.int64)
        np.cumsum(self.lengths, dtype=np.int64, out=word_ptr[1:])
        word_ids = np.empty(len(self.post), dtype=np.int32)
        building.transpose_back(self.ptr.copy(), self.post.copy(), word_ptr, word_ids)
        if self.exact:
            lon, lat = self.lon64.copy(), self.lat64.copy()
        else:
            lon, lat = self.lon32 / 1e7, self.lat32 / 1e7
        values = self.values64 if self.wide else self.values32
        return PlaceColumns(
            keys=self._keys.copy(),
            lon=lon,
            lat=lat,
            words=self.terms.words(),
            word_ptr=word_ptr,
            word_ids=word_ids,
            values=values.astype(np.float64),
        )

    def arrays(self) -> _Arrays:
        """Return the flat arrays that a file holds, by name."""
        arrays: _Arrays = {name: getattr(self, name) for name in _TYPES}
        arrays.update({_TERMS + name: array for name, array in self.terms.arrays().items()})
        return arrays

    def meta(self) -> dict[str, object]:
        """Return what ``from_arrays`` needs beside the arrays; JSON only."""
        return {
            "layout": "packed",
            "n": self.n,
            "exact": self.exact,
            "wide": self.wide,
            "specs": [spec.model_dump(mode="json") for spec in self.specs],
        }

    # --- telling ----------------------------------------------------------------------------

    def nbytes(self) -> dict[str, int]:
        """Return the bytes of each kind of array; ``terms`` is everything that is per word."""
        terms = self.terms.nbytes()
        terms += sum(a.nbytes for a in (self.ptr, self.tree_bits, self.tree_rank, self.tree_start))
        sizes = {
            "keys": (self._keys,),
            "positions": (self.lon32, self.lat32, self.lon64, self.lat64),
            "attributes": (self.values32, self.values64),
            "lengths": (self.lengths,),
            "postings": (self.post,),
            "nodes": (self.boxes, self.level_start, self.node_low, self.node_high),
            "blocks": (self.block_boxes, self.block_low, self.block_high),
        }
        return {name: sum(a.nbytes for a in held) for name, held in sizes.items()} | {
            "terms": terms
        }

    def addresses(self) -> npt.NDArray[np.int64]:
        """Return what kernels read the layout from, int64; whoever uses it keeps the layout."""
        return self._described

    def _describe(self) -> npt.NDArray[np.int64]:
        k = kernels
        a = np.zeros(k.LAYOUT_SIZE, dtype=np.int64)
        terms = self.terms
        numbers = {
            k.N: self.n,
            k.NNZ: len(self.post),
            k.V: len(terms),
            k.D: len(self.specs),
            k.COLUMNS: self.node_low.shape[1],
            k.EXACT: self.exact,
            k.WIDE: self.wide,
            k.NODES: len(self.boxes),
            k.LEVELS: len(self.level_start) - 1,
            k.BLOCKS: len(self.block_boxes),
            k.TREES: len(self.tree_start) - 1,
            k.BITS: terms.bits,
            k.LONG: self.lengths.dtype == np.uint32,
            k.SLOTS: len(terms.table),
            k.BYTES: len(terms.blob),
        }
        held = {
            k.KEYS: self._keys,
            k.LON32: self.lon32,
            k.LAT32: self.lat32,
            k.LON64: self.lon64,
            k.LAT64: self.lat64,
            k.VALUES32: self.values32,
            k.VALUES64: self.values64,
            k.LENGTHS: self.lengths,
            k.POST: self.post,
            k.PTR: self.ptr,
            k.BOXES: self.boxes,
            k.LEVEL_START: self.level_start,
            k.NODE_LOW: self.node_low,
            k.NODE_HIGH: self.node_high,
            k.BLOCK_BOXES: self.block_boxes,
            k.BLOCK_LOW: self.block_low,
            k.BLOCK_HIGH: self.block_high,
            k.TREE_BITS: self.tree_bits,
            k.TREE_RANK: self.tree_rank,
            k.TREE_START: self.tree_start,
            k.BLOB: terms.blob,
            k.OFFSETS: terms.offsets,
            k.TABLE: terms.table,
            k.SPEC_LOW: self._spec_low,
            k.SPEC_SPAN: self._spec_span,
            k.SPEC_MISSING: self._spec_missing,
        }
        for place, value in numbers.items():
            a[place] = value
        for place, array in held.items():
            a[place] = array.ctypes.data
        return a


def _row_arrays(columns: PlaceColumns, order: npt.NDArray[np.int64]) -> tuple[_Arrays, bool, bool]:
    """Return the arrays of the rows, and whether positions and values need float64."""
    lon, lat = columns.lon[order], columns.lat[order]
    steps = [np.round(degrees * 1e7).astype(np.int32) for degrees in (lon, lat)]
    exact = not all(
        np.array_equal(step / 1e7, degrees) for step, degrees in zip(steps, (lon, lat), strict=True)
    )
    values = np.ascontiguousarray(columns.values[:, order])
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    wide = not np.array_equal(narrow, values, equal_nan=True)
    none = np.empty(0)
    d = len(values)
    return (
        {
            "keys": columns.keys[order].astype(np.int64, copy=False),
            "lon32": none.astype(np.int32) if exact else steps[0],
            "lat32": none.astype(np.int32) if exact else steps[1],
            "lon64": lon if exact else none,
            "lat64": lat if exact else none,
            "values32": np.empty((d, 0), dtype=np.float32) if wide else narrow,
            "values64": values if wide else np.empty((d, 0)),
        },
        exact,
        wide,
    )


def _add_trees(
    arrays: _Arrays,
    columns: PlaceColumns,
    specs: Sequence[AttributeSpec],
    order: npt.NDArray[np.int64],
) -> None:
    """Add both kinds of trees."""
    n, d = len(columns), len(specs)
    xyz = np.empty((n, 3))
    building.unit_vectors(columns.lon[order], columns.lat[order], xyz)
    width = d + column_count(d)
    low, high = np.empty((n, width), dtype=np.uint8), np.empty((n, width), dtype=np.uint8)
    fill_combinations(columns.values[:, order], specs, low, high)
    for j, spec in enumerate(specs):
        bounds = np.empty((2, n), dtype=np.uint8)
        values = columns.values[j][order]
        neutral = spec.missing == "neutral"
        building.cost_bounds(values, spec.low, spec.span, neutral, bounds[0], bounds[1])
        low[:, j], high[:, j] = bounds
    counts: list[int] = []
    nodes = n
    while nodes > 1 or (nodes and not counts):
        nodes = -(-nodes // _FAN_OUT)
        counts.append(nodes)
    arrays["level_start"] = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    boxes, arrays["node_low"], arrays["node_high"] = _empty_nodes(int(sum(counts)), width)
    rows = np.empty(0, dtype=np.uint32)
    building.node_bounds(
        arrays["level_start"], rows, xyz, low, high, boxes, arrays["node_low"], arrays["node_high"]
    )
    arrays["boxes"] = _widened(boxes)

    df = np.diff(arrays["ptr"])
    has_tree = df > _FAN_OUT
    words = np.flatnonzero(has_tree)
    starts = _tree_starts(df[words])
    arrays["tree_start"] = starts
    arrays["tree_bits"], arrays["tree_rank"] = _ranked_bits(has_tree)
    boxes, arrays["block_low"], arrays["block_high"] = _empty_nodes(int(starts[-1]), width)
    building.block_bounds(
        words,
        starts,
        arrays["ptr"],
        arrays["post"],
        xyz,
        low,
        high,
        boxes,
        arrays["block_low"],
        arrays["block_high"],
    )
    arrays["block_boxes"] = _widened(boxes)


def _empty_nodes(
    count: int, d: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    return (
        np.empty((count, 6)),
        np.empty((count, d), dtype=np.uint8),
        np.empty((count, d), dtype=np.uint8),
    )


def _widened(boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return boxes as float32, each side moved outward past what rounding took away."""
    narrow = boxes.astype(np.float32)
    narrow[:, :3] = np.nextafter(narrow[:, :3], np.float32(-np.inf))
    narrow[:, 3:] = np.nextafter(narrow[:, 3:], np.float32(np.inf))
    return narrow


def _tree_starts(df: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Return the first node of each tree and the number of all nodes, uint32 [trees + 1]."""
    nodes = -(-df.astype(np.int64) // _FAN_OUT)
    total = nodes.copy()
    while len(nodes) and nodes.max() > _FAN_OUT:
        nodes = np.where(nodes > _FAN_OUT, -(-nodes // _FAN_OUT), 0)
        total += nodes
    return np.concatenate([[0], np.cumsum(total)]).astype(np.uint32)


def _ranked_bits(
    flags: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
    """Return flags as bits of uint64 [V // 64 + 1], and the number of flags before each."""
    padded = np.zeros((len(flags) // 64 + 1) * 64, dtype=np.bool_)
    padded[: len(flags)] = flags
    bits = np.packbits(padded, bitorder="little").view("<u8").astype(np.uint64)
    per_group = padded.reshape(-1, 64).sum(axis=1)
    return bits, (np.cumsum(per_group) - per_group).astype(np.uint32)


def _check_shapes(
    arrays: Mapping[str, npt.NDArray[Any]],
    *,
    n: int,
    d: int,
    words: int,
    exact: bool,
    wide: bool,
) -> None:
    """Refuse arrays that kernels would read beyond their end."""
    nodes, blocks = len(arrays["boxes"]), len(arrays["block_boxes"])
    starts, levels = arrays["tree_start"], arrays["level_start"]
    # Files of earlier versions have no columns for attributes taken together.
    plain = arrays["node_low"].shape[1:] == (d,)
    width = d if plain else d + column_count(d)
    wanted = {
        "keys": (n,),
        "lon32": (0 if exact else n,),
        "lat32": (0 if exact else n,),
        "lon64": (n if exact else 0,),
        "lat64": (n if exact else 0,),
        "values32": (d, 0 if wide else n),
        "values64": (d, n if wide else 0),
        "lengths": (n,),
        "ptr": (words + 1,),
        "boxes": (nodes, 6),
        "node_low": (nodes, width),
        "node_high": (nodes, width),
        "block_boxes": (blocks, 6),
        "block_low": (blocks, width),
        "block_high": (blocks, width),
        "tree_bits": (words // 64 + 1,),
        "tree_rank": (words // 64 + 1,),
    }
    for name, shape in wanted.items():
        if arrays[name].shape != shape:
            raise IntegrityError(f"the layout's array {name!r} has the shape of another layout")
    if (
        not len(levels)
        or not len(starts)
        or int(levels[-1]) != nodes
        or int(starts[-1]) != blocks
        or int(arrays["ptr"][-1]) != len(arrays["post"])
    ):
        raise IntegrityError("the layout's arrays do not fit each other")
