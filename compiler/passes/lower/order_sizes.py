"""order-sizes: compute sizes in the order of their positions on the shape heap.

TVM iterates over a set of pointers there, so the order of independent statements would differ between processes.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.lower.shape_heap import rewrite_shape_functions
from compiler.passes.registry import graph_pass
from schedules.ir.access import accesses_of
from schedules.ir.tvm_types import Expr


@graph_pass("order-sizes", summary="Compute sizes in a deterministic order")
def order_sizes(mod: IRModule, context: PipelineContext) -> IRModule:
    """Runs after `lower-shapes`: sorts the statements of each function on the shape heap by the position they write."""
    return rewrite_shape_functions(mod, _ordered)


def _ordered(function: tirx.PrimFunc) -> tirx.PrimFunc | None:
    """Return the function with sorted statements; None if already sorted, or if one may read what another writes."""
    body = function.body
    if not isinstance(body, tirx.SeqStmt) or not all(isinstance(store, tirx.BufferStore) for store in body.seq):
        return None
    positions = [_position(store.indices) for store in body.seq]
    reads = [_position(access.indices) for store in body.seq for access in accesses_of(store.value)]
    if None in positions or None in reads or set(positions) & set(reads) or len(set(positions)) < len(positions):
        return None
    order = sorted(range(len(positions)), key=lambda index: positions[index] or 0)
    if order == list(range(len(positions))):
        return None
    return function.with_body(tirx.SeqStmt([body.seq[index] for index in order]), function.span)


def _position(indices: Sequence[Expr]) -> int | None:
    """Return the constant position on the heap."""
    (index,) = indices
    return int(index.value) if isinstance(index, tirx.IntImm) else None
