"""Tuples of arrays that kernels take by address, and sums of sixteen lanes.

A tuple of thirty arrays passed by value costs more than a small search; a held one is
one pointer. The sums add term by term in each lane, as the scalar code does, so that
a bound or a value is the same to the last bit whichever made it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.typing.templates import AttributeTemplate
from numba.extending import (
    infer_getattr,
    intrinsic,
    lower_getattr_generic,
    models,
    register_model,
)

__all__ = ["held"]


class _Held(types.Type):
    """The address of a named tuple; see :func:`held`."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind
        super().__init__(name=f"held({kind})")


register_model(_Held)(models.OpaqueModel)


@infer_getattr
class _HeldFields(AttributeTemplate):
    key = _Held

    def generic_resolve(self, kind: _Held, name: str) -> Any:
        return kind.kind.types[kind.kind.fields.index(name)]


@lower_getattr_generic(_Held)
def _field_of_held(context, builder, kind, value, name):
    place = kind.kind.fields.index(name)
    part = kind.kind.types[place]
    struct = context.get_value_type(kind.kind).as_pointer()
    at = cgutils.gep_inbounds(builder, builder.bitcast(value, struct), 0, place)
    if not isinstance(part, types.Array):
        return builder.load(at)
    kept = context.make_array(part)(context, builder, ref=at)
    array = context.make_array(part)(context, builder)
    for field in ("nitems", "itemsize", "data", "shape", "strides"):
        setattr(array, field, getattr(kept, field))
    array.meminfo = cgutils.get_null_value(array.meminfo.type)
    array.parent = cgutils.get_null_value(array.parent.type)
    return array._getvalue()


@intrinsic
def held(_context, kind):
    """Return the address of a named tuple of arrays and numbers, to be used like the tuple.

    Handing a tuple of forty arrays from function to function would copy some two
    hundred words at every call and count each array up and down. The address is
    good until the function that asked for it returns, and what it leads to is not
    counted: whoever called the kernel holds the arrays.
    """

    def generate(context, builder, signature, values):
        place = cgutils.alloca_once(builder, context.get_value_type(signature.args[0]))
        builder.store(values[0], place)
        return builder.bitcast(place, cgutils.voidptr_t)

    return _Held(kind)(kind), generate


@intrinsic
def _sums(_context, values, base, pick, vector, size, out):
    """Fill ``out`` [16] with sums over j of ``vector[j] * values[base + pick[j] + lane]``.

    Returns the largest of them.

    The compiler does not find this loop by itself (it cannot know that the arrays
    do not overlap): one float64 vector of 16 lanes, added to for j = 0, 1, ...
    """
    wide, one, zero = ir.VectorType(ir.DoubleType(), 16), ir.IntType(64), ir.IntType(32)

    def generate(context, builder, signature, given):
        def data(place):
            kind = signature.args[place]
            return context.make_array(kind)(context, builder, given[place]).data

        value_at, pick_at, vector_at, out_at = data(0), data(2), data(3), data(5)
        nothing = ir.Constant(wide, [ir.Constant(ir.DoubleType(), 0.0)] * 16)
        before = builder.block
        loop = builder.function.append_basic_block("sums")
        after = builder.function.append_basic_block("sums_done")
        builder.branch(loop)
        builder.position_at_end(loop)
        j, total = builder.phi(one), builder.phi(wide)
        j.add_incoming(ir.Constant(one, 0), before)
        total.add_incoming(nothing, before)
        first = builder.add(given[1], builder.load(builder.gep(pick_at, [j])))
        lanes = builder.bitcast(
            builder.gep(value_at, [first]), ir.VectorType(ir.FloatType(), 16).as_pointer()
        )
        terms = builder.fpext(builder.load(lanes, align=4), wide)
        factor = builder.insert_element(
            ir.Constant(wide, ir.Undefined),
            builder.load(builder.gep(vector_at, [j])),
            ir.Constant(zero, 0),
        )
        factor = builder.shuffle_vector(
            factor,
            ir.Constant(wide, ir.Undefined),
            ir.Constant(ir.VectorType(zero, 16), [0] * 16),
        )
        added = builder.fadd(total, builder.fmul(factor, terms))
        following = builder.add(j, ir.Constant(one, 1))
        j.add_incoming(following, loop)
        total.add_incoming(added, loop)
        builder.cbranch(builder.icmp_signed("<", following, given[4]), loop, after)
        builder.position_at_end(after)
        builder.store(added, builder.bitcast(out_at, wide.as_pointer()), align=8)
        largest = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.DoubleType(), [wide]),
            "llvm.vector.reduce.fmax.v16f64",
        )
        return builder.call(largest, [added], fastmath=("nnan",))

    return types.float64(values, base, pick, vector, size, out), generate


@njit(inline="always")
def _dots(values, base, pick, vector, out):
    return _sums(values, base, pick, vector, len(vector), out)
