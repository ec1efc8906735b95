"""Vectorizes and parallelizes the independent loops of kernels that are written statement by statement.

Kernels mark such a loop by an annotation and leave it scalar, since other machines run its iterations differently: GPUs
use one thread for each.
"""

from __future__ import annotations

from collections.abc import Sequence

from schedules.instructions.masks import has_masks, is_valid, masked_accesses, may_mask
from schedules.ir.access import accesses_of
from schedules.ir.expression import map_accesses, nodes, substitute
from schedules.ir.stages import dtype_of
from schedules.ir.tir import Buffer, Expr, Stmt, Var, structural_map, tirx, tvm
from schedules.machine import Machine, dtype_bits

IN_VECTORS = "tensorwright.in_vectors"
"""Annotation of a serial loop from 0: its iterations are independent, and each stores one element, or one in each
iteration of its inner loops."""
IN_CHUNKS = "tensorwright.in_chunks"
"""The same; threads may share the iterations as well."""
_LANES = 16  # per vector; LLVM splits it if registers are narrower
_MAX_LANES, _MAX_BITS = 64, 2048  # of several vectors at once, in loops whose steps depend on each other
_CHUNK = 1 << 14  # elements that one thread takes at once
_MIN_SHARED = 1 << 18  # fewer elements are not worth the threads


def vectorize_element_loops(root: Stmt, machine: Machine) -> Stmt:
    """Vectorize marked loops, and split them into parallel chunks if they are known to be long."""

    def rewritten(loop: Stmt) -> Stmt:
        if IN_CHUNKS in loop.annotations:
            return _chunks(loop, machine)
        if IN_VECTORS in loop.annotations:
            return _vectors(loop, tirx.const(0, str(loop.loop_var.ty.dtype)), loop.extent, machine)
        return loop

    return structural_map(root, (tirx.For, rewritten))


def _chunks(loop: Stmt, machine: Machine) -> Stmt:
    """Chunks of vectors, parallel if their number is known and large."""
    size = tvm.sym.Analyzer().simplify(loop.extent)
    is_shared = isinstance(size, tirx.IntImm) and int(size.value) >= _MIN_SHARED
    dtype = str(loop.loop_var.ty.dtype)
    chunk, zero = tirx.const(_CHUNK, dtype), tirx.const(0, dtype)
    number = tirx.Var("chunk", loop.loop_var.ty)
    first = number * chunk
    body = _vectors(loop, first, tirx.min(chunk, size - first), machine)
    kind = tirx.ForKind.PARALLEL if is_shared else tirx.ForKind.SERIAL
    return tirx.For(number, zero, tirx.floordiv(size + chunk - 1, chunk), kind, body)


def _vectors(loop: Stmt, first: Expr, count: Expr, machine: Machine) -> Stmt:
    """`count` iterations starting at `first`: vectorized, with a remainder that is scalar or one masked vector."""
    kind, dtype = loop.loop_var.ty, str(loop.loop_var.ty.dtype)
    zero, own = tirx.const(0, dtype), [each.buffer for each in nodes(loop.body, tirx.AllocBuffer)]
    statements = []
    for lanes in _lane_counts(loop, own):
        size, block, lane = tirx.const(lanes, dtype), tirx.Var("block", kind), tirx.Var("lane", kind)
        vectors = tirx.floordiv(count, size)
        vector = _vector(_at(loop, first + block * size + lane), lane, lanes, own)
        statements.append(tirx.For(block, zero, vectors, tirx.ForKind.SERIAL, vector))
        first, count = first + vectors * size, tirx.floormod(count, size)
    rest = tirx.Var("rest", kind)
    last = _at(loop, first + rest)
    if _may_mask(loop, own, machine):
        masked = masked_accesses(last, rest, is_valid(rest, count))
        statements.append(tirx.IfThenElse(count > zero, _vector(masked, rest, _LANES, own), None))
    else:
        statements.append(tirx.For(rest, zero, count, tirx.ForKind.SERIAL, last))
    return tirx.SeqStmt(statements)


def _lane_counts(loop: Stmt, own: Sequence[Buffer]) -> tuple[int, ...]:
    """Lane counts to vectorize with, in order: each takes the iterations that the one before leaves."""
    if not nodes(loop.body, tirx.For):
        return (_LANES,)
    bits = max((dtype_bits(dtype_of(each)) for each in own), default=8)
    return min(_MAX_LANES, _MAX_BITS // bits), _LANES


def _vector(body: Stmt, lane: Var, lanes: int, own: Sequence[Buffer]) -> Stmt:
    """A vectorized loop; TVM does not give each lane its own buffers."""
    wide = {each: _for_lanes(each, lanes) for each in own}

    def moved(buffer: Buffer, indices: Sequence[Expr]) -> tuple[Buffer, list[Expr]] | None:
        return (wide[buffer], [indices[0] * lanes + lane]) if buffer in wide else None

    body = structural_map(map_accesses(body, moved), (tirx.AllocBuffer, lambda each: tirx.Evaluate(0)))
    loop = tirx.For(lane, tirx.const(0, lane.ty), tirx.const(lanes, lane.ty), tirx.ForKind.VECTORIZED, body)
    return tirx.SeqStmt([*(tirx.AllocBuffer(each) for each in wide.values()), loop]) if wide else loop


def _for_lanes(buffer: Buffer, lanes: int) -> Buffer:
    (size,) = buffer.ty.shape
    return tirx.decl_buffer([size * lanes], dtype_of(buffer), str(buffer.name), scope=str(buffer.ty.storage_scope))


def _may_mask(loop: Stmt, own: Sequence[Buffer], machine: Machine) -> bool:
    """True if the last iterations can be a masked vector: its accesses are adjacent, and what it stores is not loaded
    by it, since processors forward no masked stores."""
    accesses = [each for each in accesses_of(loop.body) if not any(map(each.buffer.same_as, own))]
    strides = [each.stride(loop.loop_var) for each in accesses]
    stored = [each.buffer for each in accesses if each.is_store]
    return (
        has_masks(machine)
        and all(stride in (0, 1) for stride in strides)
        and not any(buffer.same_as(each.buffer) for buffer in stored for each in accesses if not each.is_store)
        and may_mask(loop.body, [each for each, stride in zip(accesses, strides, strict=True) if stride == 1])
    )


def _at(loop: Stmt, position: Expr) -> Stmt:
    """A copy of the body with its own variables."""
    body = substitute(loop.body, {loop.loop_var: position})
    defined = [*(each.loop_var for each in nodes(body, tirx.For)), *(each.var for each in nodes(body, tirx.Bind))]
    fresh = {each: tirx.Var(str(each.name), each.ty) for each in defined}
    return structural_map(body, (tvm.ir.Var, lambda var: fresh.get(var, var))) if fresh else body
