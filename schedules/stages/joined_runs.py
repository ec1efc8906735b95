"""Joins short runs that are adjacent in memory into one vector, as in concatenations in blocks of channels.

`out[b, x, 0] = a[b, x]` and `out[b, x, 1 + i] = c[b, x, i]` of 15 become one store of 16: each run is read within a
whole vector of its source, and the lanes are put together in registers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from schedules.ir.access import coefficient_of
from schedules.ir.expression import constant_int, index, substitute, uses
from schedules.ir.stages import Axis, Stage
from schedules.ir.tir import Expr, structural_equal, tirx, tvm
from schedules.machine import Machine
from schedules.stages.axis_splitting import split_axes
from schedules.stages.lanes import Part, block_size, parts_of, picked, ramp


@dataclass(frozen=True, eq=False)
class _Run:
    """A stage that moves values into the lanes from `start` to `end` of a block of `size`, along `axis` where there
    are several; `parts` is what does that."""

    stage: Stage
    axis: Axis | None
    start: int
    end: int
    size: int
    parts: list[Part]

    @property
    def others(self) -> tuple[Axis, ...]:
        """All axes but its own."""
        return tuple(axis for axis in self.stage.axes if axis is not self.axis)

    def meets(self, other: _Run) -> bool:
        """True if another run goes on where this one ends, for the same values of all other axes."""
        if self.end != other.start or len(self.others) != len(other.others):
            return False
        if any(mine is not its for mine, its in zip(self.others, other.others, strict=True)):
            return False
        (buffer, *places), (other_buffer, *other_places) = _target(self.stage), _target(other.stage)
        return bool(buffer.same_as(other_buffer)) and bool(structural_equal(places[:-1], other_places[:-1]))


def join_runs(pieces: Iterable[Stage], machine: Machine) -> list[Stage]:
    """The parts of a stage; those that together fill a block are joined, others that are scattered are split."""
    done: list[Stage] = []
    waiting: list[_Run] = []
    for piece in pieces:
        run = _run_of(piece, machine)
        follows = run is not None and (waiting[-1].meets(run) if waiting else run.start == 0)
        if run is None or not follows:
            done += _alone(waiting)
            waiting = []
        if run is None:
            done.append(piece)
        elif not follows and run.start:
            done += _alone([run])
        else:
            waiting.append(run)
            if run.end == run.size:
                done.append(_joined(waiting))
                waiting = []
    return done + _alone(waiting)


def _alone(runs: Sequence[_Run]) -> list[Stage]:
    return [piece for run in runs for piece in split_axes(run.stage)]


def is_run(stage: Stage, machine: Machine) -> bool:
    """True if a stage fills a part of a block, so that it may be joined with what fills the rest."""
    return _run_of(stage, machine) is not None


def is_part_of_block(stage: Stage, machine: Machine) -> bool:
    """True if a stage moves elements to some places of a block, or to all from here and there."""
    size = block_size(stage, machine)
    if size is None or not isinstance(stage.body.value, tvm.ir.TensorLoad):
        return False
    place = stage.body.indices[-1]
    lane = next((axis.var for axis in stage.axes if axis.var.same_as(place) and axis.extent == size), None)
    return lane is None or any(coefficient_of(point, lane) is None for point in stage.body.value.indices)


def _run_of(stage: Stage, machine: Machine) -> _Run | None:
    """The stage as a run that is shorter than a block; None when it is none."""
    size = block_size(stage, machine)
    if size is None or stage.reduction:
        return None
    stage = _without_single(stage)
    _, *outer, place = _target(stage)
    inner = [axis for axis in stage.axes if uses(place, axis.var)]
    if len(inner) > 1 or any(uses(point, axis.var) for axis in inner for point in outer):
        return None
    axis = inner[0] if inner else None
    start, extent = _start(place, axis), axis.extent if axis else 1
    if start is None or not isinstance(extent, int) or extent >= size:
        return None
    parts = parts_of(stage.body.value, axis.var if axis else None, range(start, start + extent), size, {})
    return None if parts is None else _Run(stage, axis, start, start + extent, size, parts)


def _without_single(stage: Stage) -> Stage:
    """The stage without loops of one step."""
    single = {axis.var: index(0, str(axis.var.ty)) for axis in stage.axes if axis.extent == 1}
    axes = tuple(axis for axis in stage.axes if axis.extent != 1)
    return Stage(stage.name, axes, substitute(stage.body, single), None, stage.annotations)


def _joined(runs: Sequence[_Run]) -> Stage:
    """One stage that stores the runs as one vector."""
    first = runs[0]
    buffer, *outer, place = _target(first.stage)
    vector = picked([part for run in runs for part in run.parts], first.size)
    body = tirx.BufferStore(buffer, vector, [*outer, ramp(index(0, str(place.ty)), first.size)])
    return Stage(first.stage.name, first.others, body, None, first.stage.annotations)


def _start(point: Expr, axis: Axis | None) -> int | None:
    """Start of an index that is constant or grows with an axis; None for any other."""
    if axis is not None:
        if coefficient_of(point, axis.var) != 1:
            return None
        point = substitute(point, {axis.var: index(0, str(axis.var.ty))})
    start = constant_int(tvm.sym.Analyzer().simplify(point))
    return start if isinstance(start, int) else None


def _target(stage: Stage) -> list[Expr]:
    """The buffer that a stage stores to, and the indices."""
    assert stage.store is not None
    return [stage.store.buffer, *stage.store.indices]
