"""Runs the stages of a kernel together, row by row: softmax and the norms read their input from the first cache.

Loops that every stage has in common (found through the indices by which they exchange intermediates) become the outer
loops; inside them the stages follow each other, and an intermediate shrinks to what one row needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from schedules.codegen.nest import Extent, parallel_grid, sequence
from schedules.codegen.parallel import pays_off, step_cycles, work
from schedules.cuts import CutAxis, Work, estimated_cycles, start_cycles
from schedules.ir.access import accesses_of
from schedules.ir.expression import constant_int, map_accesses, substitute
from schedules.ir.stages import Axis, Stage, dtype_of, product, shape_of
from schedules.ir.tir import Buffer, Expr, Index, Stmt, tirx
from schedules.machine import Machine
from schedules.stages.code import planned_code
from schedules.stages.plan import Form, StagePlan, plan_stage

_APART = 1.5  # times the work of rows, where each stage reads and writes memory
_Key = tuple[int, int]  # (stage, axis of the stage)
_RowBuffer = tuple[Any, list[int], Any]  # an intermediate, its dimensions that a row keeps, and that of one row


@dataclass(frozen=True, eq=False)
class SharedLoop:
    """A loop that all stages have in common: its axis in each of them, in order."""

    axes: tuple[Axis, ...]

    @property
    def extent(self) -> Index:
        return self.axes[-1].extent


class _Classes:
    """Axes of several stages that run over the same index of the intermediates (union-find); `spoiled` ones are read at
    other indices too."""

    def __init__(self) -> None:
        self._parent: dict[_Key, _Key] = {}
        self.spoiled: set[_Key] = set()

    def find(self, key: _Key) -> _Key:
        self._parent.setdefault(key, key)
        while self._parent[key] != key:
            key = self._parent[key]
        return key

    def unite(self, a: _Key, b: _Key) -> None:
        self._parent[self.find(a)] = self.find(b)

    def members(self, root: _Key) -> list[_Key]:
        return [key for key in self._parent if self.find(key) == root]


def shared_loops(stages: Sequence[Stage], intermediates: Sequence[Expr]) -> list[SharedLoop]:
    """The loops that all stages can share, in the order of the last stage; its contiguous one is left to vectors."""
    if len(stages) < 2 or any(stage.store is None for stage in stages):
        return []
    classes = _Classes()
    for buffer in intermediates:
        if not _unite_through(buffer, stages, classes):
            return []
    result = []
    for position, axis in enumerate(stages[-1].axes):
        root = classes.find((len(stages) - 1, position))
        axes = _complete(classes, root, stages)
        stores = [access for access in accesses_of(stages[-1].body) if access.is_store]
        if axes is not None and not any(access.stride(axis.var) == 1 for access in stores):
            result.append(SharedLoop(axes))
    return result


def _unite_through(buffer: Buffer, stages: Sequence[Stage], classes: _Classes) -> bool:
    """Relate the axes of the stage that writes an intermediate to those that read it; False rules sharing out."""
    writers = [i for i, stage in enumerate(stages) if stage.body.buffer.same_as(buffer)]
    if len(writers) != 1:
        return not writers
    writer = writers[0]
    stored = [_axis_at(stages[writer], point) for point in stages[writer].body.indices]
    written = {position for position in stored if position is not None}
    if any(i not in written for i, axis in enumerate(stages[writer].axes) if not axis.reduce and axis.extent != 1):
        return False
    for reader, stage in enumerate(stages):
        if reader == writer:
            continue
        for load in (load for load in stage.loads if load.source.same_as(buffer)):
            if reader < writer:
                return False
            for position, point in zip(stored, load.indices, strict=True):
                if position is None:
                    continue
                read_at = _axis_at(stage, point)
                if read_at is None:
                    classes.spoiled.add((writer, position))
                    classes.find((writer, position))
                else:
                    classes.unite((writer, position), (reader, read_at))
    return True


def _axis_at(stage: Stage, point: Expr) -> int | None:
    """Axis that an index is, when it is nothing but that."""
    for position, axis in enumerate(stage.axes):
        if axis.var.same_as(point):
            return position
    return None


def _complete(classes: _Classes, root: _Key, stages: Sequence[Stage]) -> tuple[Axis, ...] | None:
    """The axis of the class in every stage, None unless there is exactly one, spatial and of the same extent."""
    if any(classes.find(key) == root for key in classes.spoiled):
        return None
    members = sorted(classes.members(root))
    if [stage for stage, _ in members] != list(range(len(stages))):
        return None
    axes = tuple(stages[stage].axes[position] for stage, position in members)
    if any(axis.reduce for axis in axes):
        return None
    same = all(_equal(axis.extent, axes[0].extent) for axis in axes)
    return axes if same else None


def _equal(left: Index, right: Index) -> bool:
    if isinstance(left, int) or isinstance(right, int):
        return isinstance(left, int) and isinstance(right, int) and left == right
    return bool(left.same_as(right))


@dataclass(frozen=True, eq=False)
class RowsPlan:
    """Stages that run one after the other for each row.

    Attributes:
        rows: the shared loops, whose variables the plans of the stages hold.
        buffers: what the stages exchange, of one row.
        stages: how each runs for one row.
        threads: whether several pay, or a condition for that.
    """

    rows: tuple[Axis, ...]
    buffers: tuple[Expr, ...]
    stages: tuple[StagePlan, ...]
    threads: bool | Expr

    @property
    def form(self) -> Form:
        """Rows, unless a stage runs as plain loops."""
        return Form.PLAIN if any(stage.form is Form.PLAIN for stage in self.stages) else Form.ROWS


def plan_rows(stages: Sequence[Stage], intermediates: Sequence[Expr], machine: Machine) -> RowsPlan | None:
    """Plan of stages that run row by row; None when they share too few rows."""
    shared = shared_loops(stages, intermediates)
    if not shared:
        return None
    amount: Index = 0
    for stage in stages:
        amount = amount + work([axis.extent for axis in stage.axes], stage.body)
    threads = pays_off(amount, machine)
    rows = product(loop.extent for loop in shared)
    if threads is not False and isinstance(amount, int) and rows is not None and rows < machine.cores:
        # Each stage on all cores, with threads of its own and a way through memory.
        cycles = step_cycles(amount)
        apart = len(stages) * start_cycles(machine.cores) + _APART * cycles / machine.cores
        work_of_rows = [Work({"rows": 0}, cycles)]
        one_each = estimated_cycles([CutAxis("rows", rows)], work_of_rows, {"rows": 1}, machine, machine.cores)
        if rows == 1 or one_each > apart:
            return None
    buffers = []
    for buffer in intermediates:
        kept = _kept_dimensions(buffer, stages, shared)
        shape = [shape_of(buffer)[k] for k in kept] or [1]
        buffers.append((buffer, kept, tirx.decl_buffer(shape, str(buffer.dtype), f"{buffer.name}_row", layout=None)))
    plans = [
        plan_stage(_row_of(stage, number, shared, buffers), machine, threads=False)
        for number, stage in enumerate(stages)
    ]
    small = tuple(each for _, _, each in buffers)
    return RowsPlan(tuple(loop.axes[-1] for loop in shared), small, tuple(plans), threads)


def _row_of(stage: Stage, number: int, shared: Sequence[SharedLoop], buffers: Sequence[_RowBuffer]) -> Stage:
    """One row of a stage: the shared loops' variables are those of the last stage."""
    mapping = {loop.axes[number].var: loop.axes[-1].var for loop in shared}
    inside = [axis for axis in stage.axes if not any(axis is loop.axes[number] for loop in shared)]
    body = _shrunk(substitute(stage.body, mapping), buffers)
    init = None if stage.init is None else _shrunk(substitute(stage.init, mapping), buffers)
    return Stage(stage.name, tuple(inside), body, init, stage.annotations)


def rows_code(plan: RowsPlan, machine: Machine) -> Stmt:
    """The planned rows as a statement, of new variables at each call."""
    extents = [Extent(axis.name, axis.extent, str(axis.var.ty)) for axis in plan.rows]

    def row(values: Sequence[Expr]) -> Stmt:
        fresh = [
            tirx.decl_buffer(list(shape_of(each)), dtype_of(each), str(each.name), layout=None) for each in plan.buffers
        ]
        mapping = dict(zip((*(axis.var for axis in plan.rows), *plan.buffers), (*values, *fresh), strict=True))
        body = [planned_code(stage, machine) for stage in plan.stages]
        return sequence([*map(tirx.AllocBuffer, fresh), substitute(sequence(body), mapping)])

    return parallel_grid(extents, row, machine, parallel=plan.threads)


def _kept_dimensions(buffer: Buffer, stages: Sequence[Stage], shared: Sequence[SharedLoop]) -> list[int]:
    """The dimensions of an intermediate that are not indexed by a shared loop."""
    number, writer = next((i, stage) for i, stage in enumerate(stages) if stage.body.buffer.same_as(buffer))
    dropped = [loop.axes[number].var for loop in shared]
    kept = [k for k, point in enumerate(writer.body.indices) if not any(var.same_as(point) for var in dropped)]
    sizes = shape_of(buffer)
    return [k for k in kept if sizes[k] != 1 or constant_int(writer.body.indices[k]) != 0]


def _shrunk(root: Stmt, buffers: Sequence[_RowBuffer]) -> Stmt:
    """Loads and stores moved to the small buffers."""

    def small(buffer: Buffer, indices: Sequence[Expr]) -> tuple[Expr, list[Expr]] | None:
        for full, kept, row in buffers:
            if buffer.same_as(full):
                return row, [indices[k] for k in kept] or [tirx.IntImm("int64", 0)]
        return None

    return map_accesses(root, small)
