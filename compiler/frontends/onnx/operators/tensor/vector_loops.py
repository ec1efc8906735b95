"""Loops of kernels that are written statement by statement, in vectors; emitted into the current `IRBuilder`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import tvm
from tvm import tirx
from tvm.script.ir_builder import tirx as T

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr

_IN_VECTORS = ("float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_LANES = 16  # of a vector; LLVM splits it where registers are narrower
_CHUNK = 1 << 14  # elements that one thread takes at once
_LEAST_SHARED = 1 << 18  # fewer elements are not worth the threads


def in_vectors(extent: Expr, dtype: object, body: Callable[[Expr], None]) -> None:
    """Run the body for 0 up to `extent`, in vectors but for the last elements; types that TVM widens, one by one."""
    if str(dtype) not in _IN_VECTORS or (isinstance(extent, tirx.IntImm) and int(extent) < _LANES):
        with T.serial(0, extent) as i:
            body(i)
        return
    lanes = tirx.const(_LANES, "int64")
    with T.seq_scope():
        with T.serial(0, tirx.floordiv(extent, lanes)) as block, T.vectorized(0, lanes) as lane:
            body(block * lanes + lane)
        with T.serial(0, tirx.floormod(extent, lanes)) as rest:
            body(tirx.floordiv(extent, lanes) * lanes + rest)


def for_each(count: Expr, dtype: object, body: Callable[[Expr], None]) -> None:
    """Run the body for 0 up to `count`, in any order: one loop, in chunks of vectors, which threads share where they
    are known to be many."""
    size, chunk = tvm.sym.Analyzer().simplify(count), tirx.const(_CHUNK, "int64")
    is_shared = isinstance(size, tirx.IntImm) and int(size) >= _LEAST_SHARED
    chunks = tirx.floordiv(size + chunk - 1, chunk)
    with (T.parallel if is_shared else T.serial)(0, chunks) as number:
        first = number * chunk
        in_vectors(tirx.min(chunk, size - first), dtype, lambda i: body(first + i))
