"""What products have in common whose numbers of the depth are looked up: the form, and how sums take turns."""

from __future__ import annotations

from typing import Any

from schedules.expression import index, substitute
from schedules.kernel import Axis, Kernel, Stage, shape_of
from schedules.machine import Machine
from schedules.matmul_form import Group, MatmulForm
from schedules.reduction import COMBINERS, Reduction
from schedules.register_tile import RegisterTile
from schedules.tir import tirx


def looked_up(kernel: Kernel, stages: tuple[Stage, ...]) -> tuple[MatmulForm, Any] | None:
    """(the form, the index) of a kernel with one stage `data[..., some of index] * values[...]`, the index in int32.

    The depth of the form is that of the data, its B the values; neither the strides of A nor a start is of use.
    """
    if len(stages) != 1 or not kernel.is_plain or stages[0].store is None:
        return None
    stage, store = stages[0], stages[0].store
    loads = [load for load in stage.loads if not load.source.same_as(store.buffer)]
    found = next(load.source for load in loads if str(load.source.dtype) == "int32")
    data, values = (load for load in loads if not load.source.same_as(found))
    column = next((axis for axis in stage.axes if axis.var.same_as(store.indices[-1])), None)
    rows = tuple(axis for axis in stage.spatial if axis is not column and axis.extent != 1)
    trivial = {axis.var: index(0) for axis in stage.axes if axis.extent == 1 and axis is not column}
    depth = Axis(tirx.Var("row", "int64"), shape_of(data.source)[-1], reduce=True)
    place = substitute(tirx.BufferLoad(data.source, [*data.indices[:-1], depth.var]), trivial)
    zero = tirx.const(0.0, "float32")
    reduction = Reduction(COMBINERS[tirx.Add], zero, zero, substitute(store, trivial))
    width = shape_of(values.source)[-1]
    form = MatmulForm(
        stage, reduction, (), Group(rows), column, depth, place, values, place, values, width, 0, 1, 1, None
    )
    return form, found


def turns(vectors: int, machine: Machine) -> int:
    """How many sums each result has when a tile of so many vectors alone would wait for its additions."""
    wanted = -(-machine.fma_latency * machine.fma_ports // vectors)
    return max(1, min(wanted, machine.vector_registers // 2 // vectors))


def joined(sums: RegisterTile, other: RegisterTile) -> list[Any]:
    """Statements that add the sums of another tile to those of one."""
    return sums.stores(lambda i, place, lane: sums.sum(i, place) + other.sum(i, place))
