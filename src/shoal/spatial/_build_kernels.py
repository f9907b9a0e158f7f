"""Kernels that build the packed layout: curve, dictionary, postings, boxes; arrays by address."""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = [
    "FAN_OUT",
    "block_bounds",
    "cost_bounds",
    "fill_table",
    "find_word",
    "find_words",
    "first_unsorted",
    "hilbert_keys",
    "load_f4",
    "load_f8",
    "load_i8",
    "load_u1",
    "load_u2",
    "load_u4",
    "load_u8",
    "node_bounds",
    "prefetch",
    "store_f8",
    "store_i8",
    "transpose",
    "transpose_back",
    "unit_vectors",
    "view_f4x2",
    "view_f8",
    "view_f8x2",
    "view_i4",
    "view_i8",
    "view_i8x2",
    "view_u1",
    "view_u4",
    "view_u8",
]

#: Children of a node; rows of a leaf; postings of a block.
FAN_OUT = 16

_RAD = math.pi / 180.0
_CELLS = 2.0**26
_EMPTY = 0xFFFFFFFF


# --- arrays by address -----------------------------------------------------------------------
# Handing thirty arrays to a kernel costs more than a search does, and a mapped (read-only)
# array would be compiled for again. So kernels take addresses; who calls keeps the arrays.


@intrinsic
def _pointer(typingctx, address):
    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), codegen


def _loader(kind, result):
    """Return the intrinsic that reads entry ``i`` of the array of ``kind`` at an address."""

    @intrinsic
    def load(typingctx, address, i):
        def codegen(context, builder, signature, arguments):
            entry = context.get_data_type(kind)
            first = builder.inttoptr(arguments[0], entry.as_pointer())
            value = builder.load(builder.gep(first, [arguments[1]]))
            return context.cast(builder, value, kind, result)

        return result(types.int64, types.int64), codegen

    return load


load_u1 = _loader(types.uint8, types.int64)
load_u2 = _loader(types.uint16, types.int64)
load_u4 = _loader(types.uint32, types.int64)
load_u8 = _loader(types.uint64, types.uint64)
load_i8 = _loader(types.int64, types.int64)
load_f4 = _loader(types.float32, types.float64)
load_f8 = _loader(types.float64, types.float64)


def _storer(kind):
    """Return the intrinsic that sets entry ``i`` of the array of ``kind`` at an address."""

    @intrinsic
    def store(typingctx, address, i, value):
        def codegen(context, builder, signature, arguments):
            entry = context.get_data_type(kind)
            first = builder.inttoptr(arguments[0], entry.as_pointer())
            builder.store(arguments[2], builder.gep(first, [arguments[1]]))
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, kind), codegen

    return store


store_i8 = _storer(types.int64)
store_f8 = _storer(types.float64)


@intrinsic
def prefetch(typingctx, address):
    """Ask for the cache line at an address without waiting for it."""

    def codegen(context, builder, signature, arguments):
        line = builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [line.type, number, number, number])
        hint = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(hint, [line, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@njit(error_model="numpy")
def view_u1(address, n):
    """Return the uint8 array of ``n`` entries at an address."""
    return carray(_pointer(address), (n,), np.uint8)


@njit(error_model="numpy")
def view_u4(address, n):
    """Return the uint32 array of ``n`` entries at an address."""
    return carray(_pointer(address), (n,), np.uint32)


@njit(error_model="numpy")
def view_i4(address, n):
    """Return the int32 array of ``n`` entries at an address."""
    return carray(_pointer(address), (n,), np.int32)


@njit(error_model="numpy")
def view_f8(address, n):
    """Return the float64 array of ``n`` entries at an address."""
    return carray(_pointer(address), (n,), np.float64)


@njit(error_model="numpy")
def view_u8(address, n):
    """Return the uint64 array of ``n`` entries at an address."""
    return carray(_pointer(address), (n,), np.uint64)


@njit(error_model="numpy")
def view_i8(address, n):
    """Return the int64 array of ``n`` entries at an address."""
    return carray(_pointer(address), (n,), np.int64)


@njit(error_model="numpy")
def view_i8x2(address, n, m):
    """Return the int64 array [n, m] at an address."""
    return carray(_pointer(address), (n, m), np.int64)


@njit(error_model="numpy")
def view_f4x2(address, n, m):
    """Return the float32 array [n, m] at an address."""
    return carray(_pointer(address), (n, m), np.float32)


@njit(error_model="numpy")
def view_f8x2(address, n, m):
    """Return the float64 array [n, m] at an address."""
    return carray(_pointer(address), (n, m), np.float64)


# --- curve -----------------------------------------------------------------------------------


@njit(cache=True, nogil=True, error_model="numpy")
def hilbert_keys(lon, lat, out):
    """Set ``out`` (uint64 [n]) to the place of each position on the curve of ``curve``."""
    scale = _CELLS / 360.0
    top = np.int64(_CELLS) - 1
    for i in range(len(out)):
        x = min(top, max(np.int64(0), np.int64((lon[i] + 180.0) * scale)))
        y = min(top, max(np.int64(0), np.int64((lat[i] + 90.0) * scale)))
        place = np.int64(0)
        side = np.int64(1) << 25
        while side > 0:
            right = 1 if x & side else 0
            up = 1 if y & side else 0
            place = (place << 2) | ((3 * right) ^ up)
            if up == 0:
                if right == 1:
                    x = (side - 1) - (x & (side - 1))
                    y = (side - 1) - (y & (side - 1))
                x, y = y, x
            side >>= 1
        out[i] = place


# --- dictionary ------------------------------------------------------------------------------


@njit(cache=True, nogil=True, error_model="numpy")
def first_unsorted(blob, offsets):
    """Return the first word that is not behind its predecessor, -1 if all are."""
    for i in range(1, len(offsets) - 1):
        a, a_stop = np.int64(offsets[i - 1]), np.int64(offsets[i])
        b, b_stop = a_stop, np.int64(offsets[i + 1])
        while a < a_stop and b < b_stop and blob[a] == blob[b]:
            a += 1
            b += 1
        if b == b_stop or (a < a_stop and blob[a] > blob[b]):
            return i
    return -1


@njit(error_model="numpy")
def _hash(blob, start, stop):
    # FNV-1a, with a finish that brings the upper bits to use.
    code = np.uint64(14695981039346656037)
    for i in range(start, stop):
        code = (code ^ np.uint64(blob[i])) * np.uint64(1099511628211)
    code ^= code >> np.uint64(32)
    code *= np.uint64(0x9E3779B97F4A7C15)
    return code ^ (code >> np.uint64(29))


@njit(error_model="numpy")
def _slot(code, slots):
    return np.int64(((code >> np.uint64(32)) * np.uint64(slots)) >> np.uint64(32))


@njit(cache=True, nogil=True, error_model="numpy")
def fill_table(blob, offsets, table, bits):
    """Fill the hash table of ``terms.Terms``, all entries of which are empty."""
    slots = len(table)
    for word in range(len(offsets) - 1):
        code = _hash(blob, np.int64(offsets[word]), np.int64(offsets[word + 1]))
        mark = ((code & np.uint64(_EMPTY)) << np.uint64(bits)) & np.uint64(_EMPTY)
        slot = _slot(code, slots)
        while table[slot] != _EMPTY:
            slot += 1
            if slot == slots:
                slot = 0
        table[slot] = np.uint32(mark | np.uint64(word))


@njit(error_model="numpy")
def find_word(text, start, stop, blob, offsets, table, slots, bits):
    """Return the id of the word ``text[start:stop]``, -1 if there is none.

    ``blob``, ``offsets`` and ``table`` are the addresses of the dictionary's arrays.
    """
    code = _hash(text, start, stop)
    mark = ((code & np.uint64(_EMPTY)) << np.uint64(bits)) & np.uint64(_EMPTY)
    mask = (np.uint64(1) << np.uint64(bits)) - np.uint64(1)
    slot = _slot(code, slots)
    while True:
        entry = np.uint64(load_u4(table, slot))
        if entry == np.uint64(_EMPTY):
            return np.int64(-1)
        if (entry & ~mask) == mark:
            word = np.int64(entry & mask)
            first = load_u4(offsets, word)
            if load_u4(offsets, word + 1) - first == stop - start:
                same = True
                for i in range(stop - start):
                    if load_u1(blob, first + i) != text[start + i]:
                        same = False
                        break
                if same:
                    return word
        slot += 1
        if slot == slots:
            slot = 0


@njit(cache=True, nogil=True, error_model="numpy")
def find_words(text, ends, addresses, bits, out):
    """Set ``out[i]`` to the id of the word ``text[ends[i]:ends[i + 1]]``.

    ``addresses`` int64 [6]: address and length of blob, offsets and table.
    """
    blob, offsets, table, slots = addresses[0], addresses[2], addresses[4], addresses[5]
    for i in range(len(out)):
        out[i] = find_word(
            text, np.int64(ends[i]), np.int64(ends[i + 1]), blob, offsets, table, slots, bits
        )


# --- postings --------------------------------------------------------------------------------


@njit(cache=True, nogil=True, error_model="numpy")
def transpose(order, word_ptr, word_ids, ptr, post, lengths):
    """Turn places -> words into word -> rows, row ``r`` being the place ``order[r]``.

    ``ptr`` is uint32 [V + 1] and holds 0; ``post`` uint32 [nnz] and ``lengths`` are filled.
    """
    words = len(ptr) - 1
    for i in range(len(word_ids)):
        ptr[word_ids[i] + 1] += np.uint32(1)
    for word in range(words):
        ptr[word + 1] += ptr[word]
    place = ptr[:words].copy()
    for row in range(len(order)):
        first, stop = word_ptr[order[row]], word_ptr[order[row] + 1]
        lengths[row] = stop - first
        for i in range(first, stop):
            word = word_ids[i]
            post[place[word]] = row
            place[word] += np.uint32(1)


@njit(cache=True, nogil=True, error_model="numpy")
def transpose_back(ptr, post, word_ptr, word_ids):
    """Turn word -> rows into rows -> words; ``word_ptr`` int64 [n + 1] is given."""
    place = word_ptr[:-1].copy()
    for word in range(len(ptr) - 1):
        for i in range(np.int64(ptr[word]), np.int64(ptr[word + 1])):
            row = post[i]
            word_ids[place[row]] = word
            place[row] += 1


# --- bounds ----------------------------------------------------------------------------------


@njit(cache=True, nogil=True, error_model="numpy")
def unit_vectors(lon, lat, out):
    """Set ``out`` (float64 [n, 3]) to the points of the unit sphere."""
    for i in range(len(lon)):
        cos_lat = math.cos(lat[i] * _RAD)
        out[i, 0] = cos_lat * math.cos(lon[i] * _RAD)
        out[i, 1] = cos_lat * math.sin(lon[i] * _RAD)
        out[i, 2] = math.sin(lat[i] * _RAD)


@njit(cache=True, nogil=True, error_model="numpy")
def cost_bounds(values, low, span, neutral, out_low, out_high):
    """Set bounds of one attribute's cost (lower is better) in 255ths, row by row.

    ``out_low[r] / 255.0 <= cost <= out_high[r] / 255.0`` holds in float64. A row
    without a value gets the bounds 255 and 0, which change no node's, unless
    the policy is ``neutral``: then it has the cost 1/2.
    """
    for row in range(len(values)):
        value = values[row]
        if math.isnan(value):
            out_low[row] = 127 if neutral else 255
            out_high[row] = 128 if neutral else 0
            continue
        cost = min(1.0, max(0.0, (value - low) / span))
        below = np.int64(math.floor(cost * 255.0))
        while below > 0 and below / 255.0 > cost:
            below -= 1
        above = np.int64(math.ceil(cost * 255.0))
        while above < 255 and above / 255.0 < cost:
            above += 1
        out_low[row] = below
        out_high[row] = above


@njit(error_model="numpy")
def _gather(rows, first, stop, implicit, xyz, low, high, node, boxes, node_low, node_high):
    """Set a node's bounds from rows ``first .. stop``, or from ``rows[first:stop]``."""
    for axis in range(3):
        boxes[node, axis] = 2.0
        boxes[node, axis + 3] = -2.0
    for j in range(low.shape[1]):
        node_low[node, j] = 255
        node_high[node, j] = 0
    for i in range(first, stop):
        row = np.int64(i) if implicit else np.int64(rows[i])
        for axis in range(3):
            boxes[node, axis] = min(boxes[node, axis], xyz[row, axis])
            boxes[node, axis + 3] = max(boxes[node, axis + 3], xyz[row, axis])
        for j in range(low.shape[1]):
            node_low[node, j] = min(node_low[node, j], low[row, j])
            node_high[node, j] = max(node_high[node, j], high[row, j])


@njit(error_model="numpy")
def _merge(first, stop, node, boxes, node_low, node_high):
    """Set a node's bounds from those of the nodes ``first .. stop``."""
    for axis in range(3):
        boxes[node, axis] = 2.0
        boxes[node, axis + 3] = -2.0
    for j in range(node_low.shape[1]):
        node_low[node, j] = 255
        node_high[node, j] = 0
    for child in range(first, stop):
        for axis in range(3):
            boxes[node, axis] = min(boxes[node, axis], boxes[child, axis])
            boxes[node, axis + 3] = max(boxes[node, axis + 3], boxes[child, axis + 3])
        for j in range(node_low.shape[1]):
            node_low[node, j] = min(node_low[node, j], node_low[child, j])
            node_high[node, j] = max(node_high[node, j], node_high[child, j])


@njit(cache=True, nogil=True, error_model="numpy")
def node_bounds(level_start, rows, xyz, low, high, boxes, node_low, node_high):
    """Fill the tree over all rows; ``rows`` is an empty uint32 array (rows are themselves)."""
    n = len(xyz)
    for level in range(len(level_start) - 1):
        start, count = level_start[level], level_start[level + 1] - level_start[level]
        for i in range(count):
            if level == 0:
                stop = min(n, (i + 1) * FAN_OUT)
                _gather(
                    rows,
                    i * FAN_OUT,
                    stop,
                    True,
                    xyz,
                    low,
                    high,
                    start + i,
                    boxes,
                    node_low,
                    node_high,
                )
            else:
                below = level_start[level - 1]
                stop = min(start, below + (i + 1) * FAN_OUT)
                _merge(below + i * FAN_OUT, stop, start + i, boxes, node_low, node_high)


@njit(cache=True, nogil=True, error_model="numpy")
def block_bounds(words, starts, ptr, post, xyz, low, high, boxes, node_low, node_high):
    """Fill the trees over the postings of ``words``; tree ``t`` begins at node ``starts[t]``."""
    for tree in range(len(words)):
        first, last = np.int64(ptr[words[tree]]), np.int64(ptr[words[tree] + 1])
        start = np.int64(starts[tree])
        count = (last - first + FAN_OUT - 1) // FAN_OUT
        for i in range(count):
            a = first + i * FAN_OUT
            _gather(
                post,
                a,
                min(last, a + FAN_OUT),
                False,
                xyz,
                low,
                high,
                start + i,
                boxes,
                node_low,
                node_high,
            )
        while count > FAN_OUT:
            above = start + count
            parents = (count + FAN_OUT - 1) // FAN_OUT
            for i in range(parents):
                a = start + i * FAN_OUT
                _merge(a, min(above, a + FAN_OUT), above + i, boxes, node_low, node_high)
            start, count = above, parents
