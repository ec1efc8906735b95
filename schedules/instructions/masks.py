"""Vectors of which only the first lanes are valid: the ends of rows, by masked loads and stores.

In TensorIR, operators mark the loads, the conditions and the stored values of such a vector, in a loop over its lanes.
After vectorization, `with_masked_accesses` lowers the marked accesses to LLVM's masked loads and stores, which do not
access memory in invalid lanes.
"""

from __future__ import annotations

from collections.abc import Sequence

from schedules.instructions import vector_math
from schedules.instructions.llvm_functions import PREFIX, register_operator
from schedules.ir.access import Access
from schedules.ir.expression import DIVISIONS, buffers_loaded, index, map_loads, map_stores, nodes, uses, vector_lanes
from schedules.ir.inline import IF_THEN_ELSE, call_name
from schedules.ir.numbers import ceil_div
from schedules.ir.stages import dtype_of
from schedules.ir.tir import Buffer, Expr, Index, Node, Stmt, Var, structural_map, tirx, tvm
from schedules.machine import Machine

VECTOR_DTYPES = ("float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
"""Dtypes of elements that are loaded and stored in vectors; TVM converts others element by element."""
_LOAD, _VALUE, _VALID = PREFIX + "masked_load", PREFIX + "masked_value", PREFIX + "first_lanes"
_IN_VECTORS = frozenset(
    {
        IF_THEN_ELSE,
        *(f"tirx.{name}" for name in ("sqrt", "fabs", "floor", "ceil", "trunc", "nearbyint", "likely")),
        *(f"tirx.{name}" for name in ("bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not")),
        *(f"tirx.{name}" for name in ("shift_left", "shift_right")),
    }
)
_IN_FLOAT32_VECTORS = frozenset(f"tirx.{name}" for name in vector_math.FUNCTIONS)

for _name in (_LOAD, _VALUE, _VALID):
    register_operator(_name, "of a vector of which only the first lanes are valid")


def has_masks(machine: Machine) -> bool:
    """True if masked loads and stores of all element types are as fast as others."""
    return machine.executes("avx512bw", "avx512vl")


def may_mask(body: Stmt, along: Sequence[Access]) -> bool:
    """True if a loop body with these accesses along its lanes can run in lanes that are not valid: they read what
    happens to be in a register."""
    return (
        all(dtype_of(access.buffer) in VECTOR_DTYPES for access in along)
        and all(map(_is_in_vectors, nodes(body, tvm.ir.Call)))
        and not _may_divide_by_zero(body)
    )


def _may_divide_by_zero(body: Stmt) -> bool:
    """True if an integer is divided by a loaded value: a division by 0 ends the process, also in a lane not valid."""
    bound = [let.var for let in nodes(body, tirx.Let)]
    divisors = [division.b for division in nodes(body, *DIVISIONS) if "int" in str(division.ty)]
    return any(buffers_loaded(divisor) or any(uses(divisor, each) for each in bound) for divisor in divisors)


_PADDING = 64  # elements: lanes of the longest vectors


def padded(size: Index) -> Index:
    """The size of a buffer of one dimension whose end may be accessed in a whole vector."""
    if isinstance(size, int):
        return ceil_div(size, _PADDING) * _PADDING
    count = index(_PADDING, str(size.ty))
    return tirx.FloorDiv(size + (_PADDING - 1), count) * count


def _is_in_vectors(call: Expr) -> bool:
    """True if a call takes as long for a vector as for a part of it: others are computed lane by lane."""
    name = call_name(call)
    return name in _IN_VECTORS or (name in _IN_FLOAT32_VECTORS and str(call.ty) == "float32")


def is_valid(lane: Expr, count: Expr) -> Expr:
    """The condition that a lane is one of the first `count`."""
    return tvm.ir.Call(tvm.ir.Op.get(_VALID), [lane, count], ret_ty=tirx.const(True, "bool").ty)


def masked_accesses(root: Node, var: Var, valid: Expr, whole: Sequence[Buffer] = ()) -> Node:
    """Mark the loads and stores that move with `var`, except those of `whole` buffers."""

    def moves(buffer: Buffer, indices: Sequence[Expr]) -> bool:
        return not any(map(buffer.same_as, whole)) and any(uses(point, var) for point in indices)

    def load(node: Expr) -> Expr | None:
        return _marked(_LOAD, node, valid) if moves(node.source, node.indices) else None

    def store(node: Stmt) -> Stmt | None:
        value = _marked(_VALUE, node.value, valid)
        return tirx.BufferStore(node.buffer, value, list(node.indices)) if moves(node.buffer, node.indices) else None

    return map_stores(map_loads(root, load), store)


def _marked(name: str, value: Expr, valid: Expr) -> Expr:
    return tvm.ir.Call(tvm.ir.Op.get(name), [value, valid], ret_ty=value.ty)


def with_masked_accesses(body: Stmt) -> Stmt:
    """Turn marked accesses of a vectorized, flattened body into masked ones."""

    def call(node: Expr) -> Expr:
        if call_name(node) == _VALID:
            return _valid_lanes(*node.args)
        return _loaded(*node.args) if call_name(node) == _LOAD else node

    def store(node: Stmt) -> Stmt:
        return _stored(node) if call_name(node.value) == _VALUE else node

    return structural_map(body, [(tvm.ir.Call, call), (tirx.BufferStore, store)])


def _valid_lanes(lane: Expr, count: Expr) -> Expr:
    """The comparison, in int32: a register holds 16 of them."""
    if not isinstance(lane, tirx.Ramp):
        return tirx.LT(tirx.Cast("int32", lane), tirx.Cast("int32", count))
    lanes = vector_lanes(lane)
    scalar = tirx.Cast("int32", count.value if isinstance(count, tirx.Broadcast) else count)
    return tirx.LT(tirx.Ramp(tirx.const(0, "int32"), tirx.const(1, "int32"), lanes), tirx.Broadcast(scalar, lanes))


def _loaded(load: Expr, valid: Expr) -> Expr:
    point = load.indices[0]
    if isinstance(point, tirx.Ramp):
        return tirx.op.masked_load(str(load.ty), load.source, point, valid)
    # Of a buffer whose elements StorageRewrite made vectors, or in a loop that TVM did not vectorize.
    return load if vector_lanes(load) > 1 else tirx.if_then_else(valid, load, tirx.const(0, str(load.ty)))


def _stored(store: Stmt) -> Stmt:
    value, valid = store.value.args
    point = store.indices[0]
    if isinstance(point, tirx.Ramp):
        return tirx.Evaluate(tirx.op.masked_store(store.buffer, value, point, valid))
    plain = tirx.BufferStore(store.buffer, value, [point])
    if vector_lanes(value) == 1:
        return tirx.IfThenElse(valid, plain, None)
    return tirx.BufferStore(store.buffer, tirx.Select(valid, value, tirx.BufferLoad(store.buffer, [point])), [point])
