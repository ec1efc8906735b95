"""Shared code of matmuls with an index along the depth: the form, and interleaved accumulators."""

from __future__ import annotations

from typing import Any

from schedules.codegen.register_tile import RegisterTile
from schedules.ir.stages import Axis, Kernel, Stage, shape_of
from schedules.ir.tir import Stmt, tirx
from schedules.machine import Machine
from schedules.matmul.form import MatmulForm
from schedules.matmul.packed_operand import panel_form


def looked_up(kernel: Kernel, stages: tuple[Stage, ...]) -> tuple[MatmulForm, Any] | None:
    """(the form, the index) of a kernel with one stage `data[..., some of index] * values[...]`, the index in int32.

    The depth of the form is that of the data, its B the values.
    """
    if len(stages) != 1 or not kernel.is_plain or stages[0].store is None:
        return None
    stage, store = stages[0], stages[0].store
    loads = [load for load in stage.loads if not load.source.same_as(store.buffer)]
    found = next(load.source for load in loads if str(load.source.dtype) == "int32")
    data, values = (load for load in loads if not load.source.same_as(found))
    depth = Axis(tirx.Var("row", "int64"), shape_of(data.source)[-1], reduce=True)
    place = tirx.BufferLoad(data.source, [*data.indices[:-1], depth.var])
    return panel_form(stage, depth, place, values), found


def turns(vectors: int, machine: Machine) -> int:
    """Number of accumulators per result, for tiles of so few vectors that a single one would be bound by addition
    latency."""
    wanted = -(-machine.fma_latency * machine.fma_ports // vectors)
    return max(1, min(wanted, machine.vector_registers // 2 // vectors))


def joined(sums: RegisterTile, other: RegisterTile) -> list[Stmt]:
    """Statements that add another tile's sums to those of one."""
    return sums.stores(lambda i, place, lane: sums.sum(i, place) + other.sum(i, place))
