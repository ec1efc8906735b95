"""Sizes on the shape heap are computed in a deterministic order that respects dependencies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

import schedules.ir.load_tvm  # noqa: F401  (first, so that TVM loads without torch)

# isort: split
from tvm import tirx
from tvm.ir import GlobalVar, IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.lower.order_sizes import order_sizes


def _ordered(pairs: Sequence[tuple[int, int]]) -> list[int]:
    """The places that are written, of a function that writes H[place] = 2 * H[read] for each (place, read)."""
    heap: Any = tirx.decl_buffer((10,), "int64", name="H")
    stores = [tirx.BufferStore(heap, heap[read] * tirx.IntImm("int64", 2), [place]) for place, read in pairs]
    function = tirx.PrimFunc([heap], tirx.SeqStmt(stores)).with_attr("tirx.is_host_func", True)
    mod = order_sizes(IRModule({GlobalVar("shape_func"): function}), PipelineContext())
    return [int(store.indices[0].value) for store in mod["shape_func"].body.seq]


@pytest.mark.parametrize(
    ("pairs", "places"),
    [
        ([(8, 0), (2, 1), (5, 0)], [2, 5, 8]),
        ([(2, 0), (5, 0)], [2, 5]),
        ([(8, 0), (2, 8)], [8, 2]),  # the second reads what the first writes
        ([(8, 0), (8, 1), (2, 0)], [8, 8, 2]),
    ],
)
def test_independent_sizes_are_sorted(pairs: list[tuple[int, int]], places: list[int]) -> None:
    assert _ordered(pairs) == places
