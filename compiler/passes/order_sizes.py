"""order-sizes: sizes are computed in the order of their places on the shape heap.

TVM goes through a set of pointers there, so that the order of independent statements differs from process to process.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from schedules.access import accesses_of

_HOST = "tirx.is_host_func"


@graph_pass("order-sizes", summary="Compute sizes in one order, whatever the process")
def order_sizes(mod: IRModule, context: PipelineContext) -> IRModule:
    """After `lower-shapes`: the statements of each function on the shape heap by the place that they write."""
    result = dict(mod.functions_items())
    changed = False
    for variable, function in mod.functions_items():
        if isinstance(function, tirx.PrimFunc) and function.attrs and _HOST in function.attrs:
            ordered = _ordered(function.body)
            if ordered is not None:
                result[variable], changed = function.with_body(ordered, function.span), True
    return IRModule(result, mod.attrs, mod.global_infos) if changed else mod


def _ordered(body: Any) -> Any | None:
    """The statements in order; None when they are, or when one may read what another writes."""
    if not isinstance(body, tirx.SeqStmt) or not all(isinstance(each, tirx.BufferStore) for each in body.seq):
        return None
    places = [_place(each.indices) for each in body.seq]
    reads = [_place(access.indices) for each in body.seq for access in accesses_of(each.value)]
    if None in places or None in reads or set(places) & set(reads) or len(set(places)) < len(places):
        return None
    order = sorted(range(len(places)), key=lambda index: places[index] or 0)
    return None if order == list(range(len(places))) else tirx.SeqStmt([body.seq[index] for index in order])


def _place(indices: Any) -> int | None:
    """The constant place on the heap."""
    (index,) = indices
    return int(index.value) if isinstance(index, tirx.IntImm) else None
