"""Vectorizes and parallelizes the independent loops of kernels that are written statement by statement.

Kernels mark such a loop by an annotation and leave it scalar, since other machines run its iterations differently: GPUs
use one thread for each.
"""

from __future__ import annotations

from schedules.ir.expression import substitute
from schedules.ir.tir import Expr, Stmt, structural_map, tirx, tvm

IN_VECTORS = "tensorwright.in_vectors"
"""Annotation of a serial loop from 0: its iterations are independent, and each stores one element."""
IN_CHUNKS = "tensorwright.in_chunks"
"""The same; threads may share the iterations as well."""
VECTOR_DTYPES = ("float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
"""Dtypes of elements that are loaded and stored in vectors; TVM converts others element by element."""
_LANES = 16  # per vector; LLVM splits it if registers are narrower
_CHUNK = 1 << 14  # elements that one thread takes at once
_MIN_SHARED = 1 << 18  # fewer elements are not worth the threads


def vectorize_element_loops(root: Stmt) -> Stmt:
    """Vectorize marked loops, and split them into parallel chunks if they are known to be long."""

    def rewritten(loop: Stmt) -> Stmt:
        if IN_CHUNKS in loop.annotations:
            return _chunks(loop)
        if IN_VECTORS in loop.annotations:
            return _vectors(loop, tirx.const(0, str(loop.loop_var.ty.dtype)), loop.extent)
        return loop

    return structural_map(root, (tirx.For, rewritten))


def _chunks(loop: Stmt) -> Stmt:
    """Chunks of vectors, parallel if their number is known and large."""
    size = tvm.sym.Analyzer().simplify(loop.extent)
    is_shared = isinstance(size, tirx.IntImm) and int(size.value) >= _MIN_SHARED
    dtype = str(loop.loop_var.ty.dtype)
    chunk, zero = tirx.const(_CHUNK, dtype), tirx.const(0, dtype)
    number = tirx.Var("chunk", loop.loop_var.ty)
    first = number * chunk
    body = _vectors(loop, first, tirx.min(chunk, size - first))
    kind = tirx.ForKind.PARALLEL if is_shared else tirx.ForKind.SERIAL
    return tirx.For(number, zero, tirx.floordiv(size + chunk - 1, chunk), kind, body)


def _vectors(loop: Stmt, first: Expr, count: Expr) -> Stmt:
    """`count` iterations starting at `first`: vectorized, with a scalar remainder."""
    kind, dtype = loop.loop_var.ty, str(loop.loop_var.ty.dtype)
    lanes, zero = tirx.const(_LANES, dtype), tirx.const(0, dtype)
    block, lane, rest = (tirx.Var(name, kind) for name in ("block", "lane", "rest"))
    vectors = tirx.floordiv(count, lanes)
    vector = tirx.For(lane, zero, lanes, tirx.ForKind.VECTORIZED, _at(loop, first + block * lanes + lane))
    blocks = tirx.For(block, zero, vectors, tirx.ForKind.SERIAL, vector)
    last = _at(loop, first + vectors * lanes + rest)
    return tirx.SeqStmt([blocks, tirx.For(rest, zero, tirx.floormod(count, lanes), tirx.ForKind.SERIAL, last)])


def _at(loop: Stmt, position: Expr) -> Stmt:
    return substitute(loop.body, {loop.loop_var: position})
