"""Vectors assembled from lanes of other vectors: the source of each lane of a block, and the permutations.

A block is the last dimension of what a stage stores, when that fits a vector: channels in blocks of channels.

Joins short runs that are adjacent in memory into one vector, as in concatenations in blocks of channels.

`out[b, x, 0] = a[b, x]` and `out[b, x, 1 + i] = c[b, x, i]` of 15 become one store of 16: each run is read within a
whole vector of its source, and the lanes are put together in registers.

Blocks whose lanes come from several places of few vectors: shuffles of channels in blocks of channels.

`out[b, x, i] = a[f(16 * b + i) // 16, x, f(16 * b + i) % 16]` is written block by block. Which lanes of which blocks of
`a` a block is made of is known then, and permutations put it together.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from schedules.ir.access import coefficient_of
from schedules.ir.expression import constant_int, index, substitute, uses
from schedules.ir.stages import Axis, Stage, is_compact, product, shape_of
from schedules.ir.tir import Buffer, Expr, Var, structural_equal, tirx, tvm
from schedules.machine import Machine, dtype_bits
from schedules.stages.loop_splitting import split_axes

Part = tuple[Expr, dict[int, int]]
"""A vector, and which lane of it is which lane of the block: the lane in the block, the lane in the vector."""
_LEAST_LANES = 4
_OPERATIONS = {
    tirx.Add: lambda a, b: a + b,
    tirx.Sub: lambda a, b: a - b,
    tirx.Mul: lambda a, b: a * b,
    tirx.FloorDiv: lambda a, b: a // b,
    tirx.FloorMod: lambda a, b: a % b,
}


def block_size(stage: Stage, machine: Machine) -> int | None:
    """The size of the block that a stage stores to; None when it stores to none."""
    if stage.store is None or not is_compact(stage.store.buffer) or not shape_of(stage.store.buffer):
        return None
    size = shape_of(stage.store.buffer)[-1]
    lanes = machine.vector_bits // dtype_bits(str(stage.store.buffer.dtype))
    fits = isinstance(size, int) and size >= _LEAST_LANES and size in {lanes >> shift for shift in range(8)}
    return size if fits else None


def picked(parts: Sequence[Part], size: int) -> Expr:
    """A vector of `size` lanes out of vectors as long. A lane that no part holds is anything."""
    (vector, chosen), *others = parts
    picks = [chosen.get(lane, lane) for lane in range(size)]
    for other, places in others or [(vector, chosen)]:
        picks = [size + places[lane] if lane in places else pick for lane, pick in enumerate(picks)]
        vector, picks = tirx.Shuffle([vector, other], picks), list(range(size))
    return vector


def parts_of(
    value: Expr, var: Var | None, lanes: Sequence[int], size: int, known: Mapping[Var, int]
) -> list[Part] | None:
    """Moves of a value into some lanes of a block: the first of `lanes` is where `var` (None: a single lane) is 0.

    `known` are the values of other variables. None where the value is not a constant or load, where its place in the
    last dimension depends on others, or where too many vectors would have to be read.
    """
    if isinstance(value, tirx.IntImm | tirx.FloatImm):
        return [(tirx.Broadcast(value, size), dict.fromkeys(lanes, 0))]
    if not isinstance(value, tvm.ir.TensorLoad):
        return None
    mapping = {other: index(number, str(other.ty)) for other, number in known.items()}
    if var is None or not uses(value, var):
        return [(tirx.Broadcast(substitute(value, mapping), size), dict.fromkeys(lanes, 0))]
    width = shape_of(value.source)[-1]
    if not is_compact(value.source) or not isinstance(width, int) or width < size:
        return None
    groups: dict[tuple[int | None, ...], dict[int, int]] = {}
    for number, lane in enumerate(lanes):
        outer, place = _place(value.indices, var, {**known, var: number})
        if place is None:
            return None
        groups.setdefault(outer, {})[lane] = place
    parts = []
    for outer, places in groups.items():
        points = [
            substitute(point, mapping) if constant is None else index(constant, str(point.ty))
            for point, constant in zip(value.indices, outer, strict=False)
        ]
        for start, share in _windows(places, size, width):
            vector = run_of_lanes(value.source, points, index(start, str(value.indices[-1].ty)), size)
            parts.append((vector, {lane: at - start for lane, at in share.items()}))
    return parts if len(parts) <= size // 2 else None


def _place(indices: Sequence[Expr], var: Var, values: Mapping[Var, int]) -> tuple[tuple[int | None, ...], int | None]:
    """The outer indices where they depend on `var`, and the place in the last dimension: None when not constant."""
    *outer, last = indices
    found = tuple(_value(point, values) if uses(point, var) else None for point in outer)
    if any(each is None and uses(point, var) for each, point in zip(found, outer, strict=True)):
        return found, None
    return found, _value(last, values)


def _windows(places: Mapping[int, int], size: int, width: int) -> list[tuple[int, dict[int, int]]]:
    """Vectors of `size` neighbours within a row of `width` that hold these places: where each begins, and its share."""
    found: list[tuple[int, dict[int, int]]] = []
    rest = dict(places)
    while rest:
        start = min([*rest.values(), width - size])
        share = {lane: at for lane, at in rest.items() if at < start + size}
        rest = {lane: at for lane, at in rest.items() if lane not in share}
        found.append((start, share))
    return found


def _value(expr: Expr, values: Mapping[Var, int]) -> int | None:
    """The number that index arithmetic comes to; None when that is not known."""
    known = constant_int(expr)
    if isinstance(known, int):
        return known
    if isinstance(expr, tvm.ir.Var):
        return next((value for var, value in values.items() if var.same_as(expr)), None)
    if isinstance(expr, tirx.Cast):
        return _value(expr.value, values)
    operation = _OPERATIONS.get(type(expr))
    if operation is None:
        return None
    left, right = _value(expr.a, values), _value(expr.b, values)
    return None if left is None or right is None else operation(left, right)


def run_of_lanes(buffer: Buffer, outer: Sequence[Expr], start: Expr, size: int) -> Expr:
    """`size` neighbours in the last dimension."""
    return tirx.BufferLoad(buffer, [*outer, ramp(start, size)])


def ramp(start: Expr, size: int) -> Expr:
    """The places from `start` on."""
    return tirx.Ramp(start, index(1, str(start.ty)), size)


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
