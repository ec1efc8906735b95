"""Blocks whose lanes come from several places of few vectors: shuffles of channels in blocks of channels.

`out[b, x, i] = a[f(16 * b + i) // 16, x, f(16 * b + i) % 16]` is written block by block. Which lanes of which blocks of
`a` a block is made of is known then, and permutations put it together.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from schedules.ir.expression import index, substitute, uses
from schedules.ir.stages import Axis, Stage, product
from schedules.ir.tir import Expr, Var, tirx, tvm
from schedules.machine import Machine
from schedules.stages.lanes import block_size, parts_of, picked, ramp

_MOST_BLOCKS = 64  # that are written out


def permuted_lanes(stage: Stage, machine: Machine) -> list[Stage] | None:
    """A stage that moves elements into whole blocks, as one stage per block; None where that is impossible or does not
    pay off."""
    size = block_size(stage, machine)
    store = stage.store
    if size is None or store is None or stage.reduction or not isinstance(store.value, tvm.ir.TensorLoad):
        return None
    lane = next((axis for axis in stage.axes if axis.var.same_as(store.indices[-1])), None)
    if lane is None or lane.extent != size:
        return None
    along = [axis for axis in stage.axes if axis is not lane and _is_mixed(axis, lane, store.value)]
    count = product(axis.extent for axis in along)
    if count is None or count > _MOST_BLOCKS:
        return None
    made: list[Stage] = []
    for values in itertools.product(*(range(axis.extent) for axis in along)):
        block = _block(stage, lane, dict(zip((axis.var for axis in along), values, strict=True)))
        if block is None:
            return None
        made.append(block)
    return made


def _is_mixed(axis: Axis, lane: Axis, load: Expr) -> bool:
    """True if an index depends on both."""
    return any(uses(point, axis.var) and uses(point, lane.var) for point in load.indices)


def _block(stage: Stage, lane: Axis, values: Mapping[Var, int]) -> Stage | None:
    """The stage at these values of some axes, with all lanes at once; None when that cannot be."""
    store, size = stage.body, int(lane.extent)
    parts = parts_of(store.value, lane.var, range(size), size, values)
    if parts is None:
        return None
    mapping = {var: index(value, str(var.ty)) for var, value in values.items()}
    *outer, last = [substitute(point, mapping) for point in store.indices]
    body = tirx.BufferStore(store.buffer, picked(parts, size), [*outer, ramp(index(0, str(last.ty)), size)])
    axes = tuple(axis for axis in stage.axes if axis is not lane and axis.var not in values)
    return Stage(stage.name, axes, body, None, stage.annotations)
