"""Vectors assembled from lanes of other vectors: the source of each lane of a block, and the permutations.

A block is the last dimension of a stage's result, if that fits a vector: channels in blocks of channels.

Joins short runs that are adjacent in memory into one vector, as in concatenations in blocks of channels.

`out[b, x, 0] = a[b, x]` and `out[b, x, 1 + i] = c[b, x, i]` of 15 become one store of 16: each run is read as part of a
whole vector of its source, and the lanes are combined in registers.

Blocks whose lanes come from several positions of few vectors: channel shuffles in blocks of channels.

`out[b, x, i] = a[f(16 * b + i) // 16, x, f(16 * b + i) % 16]` is written block by block. The lanes and blocks of `a`
that make up a block are then known, and permutations combine them.

Vectors of strided elements, as whole vectors and permutations: steps, interleaved values, flips.

For `a[2 * x]` with 16 neighboring x, 31 elements are read as two vectors, which overlap rather than read past the last
element, and one permutation selects the elements.

Gathers, vectors of elements at loaded positions: `a[b[i]]`.

The offsets are computed in vectors and the elements loaded one by one, which is as fast as processors' gather
instructions.

Interleaved stores: channels last, with few channels; pixel shuffles; stacking along a last axis.

`out[x, c] = a[c, x]` with 3 channels reads a vector of each and stores three whole vectors, whose lanes are
permutations of them, instead of single elements three apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from schedules.instructions.masks import VECTOR_DTYPES
from schedules.ir.access import Access, Stride, accesses_of, coefficient_of, simplified, with_plain_indices
from schedules.ir.expression import buffers_loaded, constant_int, expression, index, map_loads, nodes, substitute, uses
from schedules.ir.inline import has_branch
from schedules.ir.size_proofs import UnprovableError, evaluated
from schedules.ir.stages import Axis, Stage, dtype_of, is_compact, product, shape_of
from schedules.ir.tir import Buffer, Expr, Index, Node, Stmt, Var, structural_equal, tirx, tvm
from schedules.machine import Machine, dtype_bits
from schedules.stages.loops import Loop, LoopNest, split_axes, split_axis

STRIDES = (-1, 2, 3, 4)
"""Largest distance between neighbors of a vector; elements farther apart are read one by one."""


def strided_axis(nest: LoopNest) -> Loop | None:
    """The spatial loop in which every store moves by one element and every load by none, one or a few; None if there is
    none, or a branch guards a load."""
    return _axis_where(nest, partial(_serves, nest))


def _axis_where(nest: LoopNest, serves: Callable[[Access, Stride], bool]) -> Loop | None:
    """The innermost spatial loop in which every access has a suitable stride; None if a branch guards a load."""
    if nest.stage.store is None or has_branch(nest.stage.body):
        return None
    loops = (each for each in reversed(nest.spatial) if all(map(serves, nest.accesses, each.strides)))
    return next(loops, None)


def _serves(nest: LoopNest, access: Access, stride: Index | None) -> bool:
    if access.is_store:
        return bool(stride == 1)
    if stride in (0, 1):
        return True
    bound = [let.var for let in nodes(nest.stage.body, tirx.Let)]
    used = [var for point in access.indices for var in nodes(point, tvm.ir.Var)]
    hoisted = not any(var.same_as(each) for var in used for each in bound)
    return stride in STRIDES and hoisted and str(access.buffer.dtype) != "bool"


class StridedLoads:
    """The strided loads of a nest along an axis; empty if all are contiguous."""

    def __init__(self, nest: LoopNest, axis: Loop) -> None:
        self.axis = axis
        apart = [
            (access, stride)
            for access, stride in zip(nest.accesses, axis.strides, strict=True)
            if stride in STRIDES and not access.is_store
        ]
        self._loads: list[tuple[Access, int]] = []
        for access, stride in apart:
            if not any(access.is_at(known.buffer, known.indices) for known, _ in self._loads):
                self._loads.append((access, stride))

    def read(self, start: Expr, lanes: int, rest: Mapping[Var, Expr]) -> tuple[list[Stmt], list[Expr]]:
        """Statements that read `lanes` elements of each load, starting at `start`, and the buffers that they fill; none
        for a single element."""
        if lanes == 1:
            return [], []
        statements: list[Stmt] = []
        buffers = []
        for access, stride in self._loads:
            copy = tirx.decl_buffer([lanes], str(access.buffer.dtype), "apart", scope="local", layout=None)
            offset = {**rest, self.axis.var: start}
            vector = _strided(access.buffer, [substitute(point, offset) for point in access.indices], stride, lanes)
            statements.append(tirx.AllocBuffer(copy))
            statements.append(tirx.BufferStore(copy, vector, [ramp(index(0), lanes)]))
            buffers.append(copy)
        return statements, buffers

    def placed(self, root: Node, buffers: list[Buffer], lane: Expr) -> Node:
        """An expression or statement of the nest, with its strided loads replaced by a lane of the buffers."""
        if not buffers:
            return root

        def replace(load: Expr) -> Expr:
            for (access, _), copy in zip(self._loads, buffers, strict=True):
                if access.is_at(load.source, load.indices):
                    return tirx.BufferLoad(copy, [lane])
            return None

        return map_loads(root, replace)


def _strided(buffer: Buffer, indices: list[Expr], stride: int, lanes: int) -> Expr:
    """Elements `stride` apart, the first at `indices`, as one vector."""
    *outer, last = indices
    lowest = min(stride * (lanes - 1), 0)
    offsets = {lane: stride * lane - lowest for lane in range(lanes)}
    windows = _windows(offsets, lanes, max(offsets.values()) + 1)
    return picked([(run_of_lanes(buffer, outer, last + (lowest + at), lanes), share) for at, share in windows], lanes)


def gathered_axis(nest: LoopNest) -> Loop | None:
    """The spatial loop in which every store moves by one element, and every load by none or one, or at loaded indices;
    None if there is none, or a branch guards a load."""
    return _axis_where(nest, _is_gathered)


def _is_gathered(access: Access, stride: Stride) -> bool:
    if access.is_store:
        return bool(stride == 1)
    if stride is not None:
        return stride in (0, 1)
    return dtype_of(access.buffer) in VECTOR_DTYPES and any(buffers_loaded(point) for point in access.indices)


_COUNTS = (2, 3, 4)
_PIXELS = (2, 3)  # larger ones are split by `split_axes`
_MIN_EXTENT = 4


def interleaved_count(stage: Stage) -> int:
    """Number of interleaved stores of a stage; 1 for any other stage."""
    return len(stage.body.seq) if isinstance(stage.body, tirx.SeqStmt) else 1


def interleaved_axis(nest: LoopNest) -> Loop | None:
    """The loop along which stores are interleaved, and whose stored values are contiguous or the same; None if the nest
    was not made by `interleave`."""
    count = interleaved_count(nest.stage)
    if count not in _COUNTS or not _stores_one_buffer(nest.stage):
        return None
    return next((loop for loop in reversed(nest.spatial) if _is_interleaved(nest.accesses, loop.strides, count)), None)


def _stores_one_buffer(stage: Stage) -> bool:
    stores = list(stage.body.seq)
    if any(not isinstance(store, tirx.BufferStore) or has_branch(store) for store in stores) or stage.reduction:
        return False
    first = stores[0]
    same = all(store.buffer.same_as(first.buffer) for store in stores)
    written = any(access.buffer.same_as(first.buffer) for access in accesses_of(stage.body) if not access.is_store)
    return same and not written and is_compact(first.buffer)


def _is_interleaved(accesses: Sequence[Access], strides: Sequence[Index | None], count: int) -> bool:
    pairs = list(zip(accesses, strides, strict=True))
    loads = [stride for access, stride in pairs if not access.is_store]
    return all(stride == count for access, stride in pairs if access.is_store) and set(loads) <= {0, 1} and 1 in loads


def interleave(pieces: Sequence[Stage]) -> list[Stage]:
    """The parts of a stage, with interleaved stores joined into one part that has all of them."""
    done: list[Stage] = []
    waiting: list[Stage] = []
    for piece in pieces:
        if waiting and not _follows(waiting, piece):
            done += waiting
            waiting = []
        element = _element_of_few(piece)
        if element is None or element[0] != len(waiting):
            done.append(_with_interleaved_stores(piece) or piece)
            continue
        waiting.append(piece)
        if len(waiting) == element[1]:
            whole = _whole(waiting[0], [each.body for each in waiting], piece.axes)
            done += waiting if whole is None else [whole]
            waiting = []
    return done + waiting


def _element_of_few(stage: Stage) -> tuple[int, int] | None:
    """(index, count): which element of a short last dimension a stage stores, and the size of that dimension."""
    store = stage.store
    if store is None or stage.reduction or not is_compact(store.buffer) or not store.indices:
        return None
    element, count = constant_int(store.indices[-1]), shape_of(store.buffer)[-1]
    return (element, count) if isinstance(element, int) and count in _COUNTS else None


def _follows(waiting: Sequence[Stage], piece: Stage) -> bool:
    """True if a stage stores the next element of that dimension, at the same offset as the ones before."""
    first, store = waiting[0].body, piece.store
    if store is None or _element_of_few(piece) != (len(waiting), shape_of(first.buffer)[-1]):
        return False
    if len(piece.axes) != len(waiting[0].axes):
        return False
    pairs = zip(waiting[0].axes, piece.axes, strict=True)
    if not all(mine is its or mine.extent == its.extent == 1 for mine, its in pairs):
        return False
    same = structural_equal(list(first.indices)[:-1], list(store.indices)[:-1])
    return bool(store.buffer.same_as(first.buffer)) and bool(same)


def _with_interleaved_stores(stage: Stage) -> Stage | None:
    """A stage with a short axis along which its stores are contiguous, rewritten with one store for each step."""
    store = stage.store
    if store is None or stage.reduction or not is_compact(store.buffer):
        return None
    target = Access(store.buffer, tuple(store.indices), True)
    for position, axis in enumerate(stage.axes):
        if target.stride(axis.var) != 1:
            continue
        if isinstance(axis.extent, int) and axis.extent in _COUNTS:
            return _one_store_each(stage, position)
        for count in _divisors(stage):
            if simplified(tirx.floormod(expression(axis.extent), index(count))) == 0:
                split = with_plain_indices(split_axis(stage, position, count)[0])
                return _one_store_each(split, position + 1)
    return None


def _divisors(stage: Stage) -> list[int]:
    """Small divisors of an index."""
    points = [point for access in accesses_of(stage.body) for point in access.indices]
    factors = [constant_int(each.b) for point in points for each in nodes(point, tirx.FloorDiv, tirx.FloorMod)]
    return sorted({factor for factor in factors if isinstance(factor, int) and factor in _PIXELS})


def _one_store_each(stage: Stage, position: int) -> Stage | None:
    axis = stage.axes[position]
    steps = [
        with_plain_indices(stage.with_axes(position, [], index(step, str(axis.var.ty)))) for step in range(axis.extent)
    ]
    return _whole(steps[0], [step.body for step in steps], steps[0].axes)


def _whole(stage: Stage, bodies: Sequence[Stmt], axes: Sequence[Axis]) -> Stage | None:
    """The stores as one stage; None if they are not interleaved along any of its axes."""
    merged = Stage(stage.name, tuple(axes), tirx.SeqStmt(list(bodies)), None, stage.annotations)
    if not _stores_one_buffer(merged):
        return None
    accesses = accesses_of(merged.body)
    for axis in axes:
        long = not isinstance(axis.extent, int) or axis.extent >= _MIN_EXTENT
        if long and _is_interleaved(accesses, [access.stride(axis.var) for access in accesses], len(bodies)):
            return merged
    return None


Part = tuple[Expr, dict[int, int]]
"""A vector, and its lanes by lane of the block: the lane in the block, the lane in the vector."""
_MIN_LANES = 4


def block_size(stage: Stage, machine: Machine) -> int | None:
    """The size of the block that a stage stores to; None if there is none."""
    if stage.store is None or not is_compact(stage.store.buffer) or not shape_of(stage.store.buffer):
        return None
    size = shape_of(stage.store.buffer)[-1]
    lanes = machine.vector_bits // dtype_bits(str(stage.store.buffer.dtype))
    fits = isinstance(size, int) and size >= _MIN_LANES and size in {lanes >> shift for shift in range(8)}
    return size if fits else None


def picked(parts: Sequence[Part], size: int) -> Expr:
    """A vector of `size` lanes from vectors of the same length. Lanes that no part covers are undefined."""
    (vector, chosen), *rest = parts
    picks = [chosen.get(lane, lane) for lane in range(size)]
    for second, offsets in rest or [(vector, chosen)]:
        picks = [size + offsets[lane] if lane in offsets else pick for lane, pick in enumerate(picks)]
        vector, picks = tirx.Shuffle([vector, second], picks), list(range(size))
    return vector


def parts_of(
    value: Expr, var: Var | None, lanes: Sequence[int], size: int, known: Mapping[Var, int]
) -> list[Part] | None:
    """Moves of a value into some lanes of a block: the first of `lanes` is where `var` (None: a single lane) is 0.

    `known` are the values of other variables. None if the value is not a constant or load, if its offset in the last
    dimension depends on others, or if too many vectors would be read.
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
        outer, offset = _offset(value.indices, var, {**known, var: number})
        if offset is None:
            return None
        groups.setdefault(outer, {})[lane] = offset
    parts = []
    for outer, offsets in groups.items():
        points = [
            substitute(point, mapping) if constant is None else index(constant, str(point.ty))
            for point, constant in zip(value.indices, outer, strict=False)
        ]
        for start, share in _windows(offsets, size, width):
            first = index(start, str(value.indices[-1].ty))
            parts.append((run_of_lanes(value.source, points, first, size), share))
    return parts if len(parts) <= size // 2 else None


def _offset(indices: Sequence[Expr], var: Var, values: Mapping[Var, int]) -> tuple[tuple[int | None, ...], int | None]:
    """The outer indices as functions of `var`, and the offset in the last dimension: None if not constant."""
    *outer, last = indices
    offsets = tuple(_value(point, values) if uses(point, var) else None for point in outer)
    if any(each is None and uses(point, var) for each, point in zip(offsets, outer, strict=True)):
        return offsets, None
    return offsets, _value(last, values)


def _windows(offsets: Mapping[int, int], size: int, width: int) -> list[tuple[int, dict[int, int]]]:
    """Vectors of `size` neighbors within a row of `width` that cover these offsets: the start of each, and its lane for
    each offset."""
    windows: list[tuple[int, dict[int, int]]] = []
    rest = dict(offsets)
    while rest:
        start = min([*rest.values(), width - size])
        windows.append((start, {lane: at - start for lane, at in rest.items() if at < start + size}))
        rest = {lane: at for lane, at in rest.items() if at >= start + size}
    return windows


def _value(expr: Expr, values: Mapping[Var, int]) -> int | None:
    """The constant value of index arithmetic; None if unknown."""
    try:
        return evaluated(expr, lambda var: values[var])
    except (UnprovableError, KeyError):
        return None


def run_of_lanes(buffer: Buffer, outer: Sequence[Expr], start: Expr, size: int) -> Expr:
    """`size` neighbors in the last dimension."""
    return tirx.BufferLoad(buffer, [*outer, ramp(start, size)])


def ramp(start: Expr, size: int) -> Expr:
    """Consecutive offsets from `start` on."""
    return tirx.Ramp(start, index(1, str(start.ty)), size)


@dataclass(frozen=True, eq=False)
class _Run:
    """A stage that moves values into the lanes from `start` to `end` of a block of `size`, along `axis` if there are
    several; `parts` are the moves."""

    stage: Stage
    axis: Axis | None
    start: int
    end: int
    size: int
    parts: list[Part]

    @property
    def others(self) -> tuple[Axis, ...]:
        """All axes except its own."""
        return tuple(axis for axis in self.stage.axes if axis is not self.axis)

    def meets(self, other: _Run) -> bool:
        """True if another run starts where this one ends, for the same values of all other axes."""
        if self.end != other.start or len(self.others) != len(other.others):
            return False
        if any(mine is not its for mine, its in zip(self.others, other.others, strict=True)):
            return False
        (buffer, *offsets), (other_buffer, *other_offsets) = _target(self.stage), _target(other.stage)
        return bool(buffer.same_as(other_buffer)) and bool(structural_equal(offsets[:-1], other_offsets[:-1]))


def join_runs(pieces: Iterable[Stage], machine: Machine) -> list[Stage]:
    """The parts of a stage; those that together fill a block are joined, other scattered ones are split."""
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
    """True if a stage fills a part of a block, so that it may be joined with the stages that fill the rest."""
    return _run_of(stage, machine) is not None


def is_part_of_block(stage: Stage, machine: Machine) -> bool:
    """True if a stage moves elements to some offsets of a block, or gathers a whole block from several positions."""
    size = block_size(stage, machine)
    if size is None or not isinstance(stage.body.value, tvm.ir.TensorLoad):
        return False
    offset = stage.body.indices[-1]
    lane = next((axis.var for axis in stage.axes if axis.var.same_as(offset) and axis.extent == size), None)
    return lane is None or any(coefficient_of(point, lane) is None for point in stage.body.value.indices)


def _run_of(stage: Stage, machine: Machine) -> _Run | None:
    """The stage as a run that is shorter than a block; None if it is not one."""
    size = block_size(stage, machine)
    if size is None or stage.reduction:
        return None
    stage = stage.without_single()
    _, *outer, offset = _target(stage)
    inner = [axis for axis in stage.axes if uses(offset, axis.var)]
    if len(inner) > 1 or any(uses(point, axis.var) for axis in inner for point in outer):
        return None
    axis = inner[0] if inner else None
    start, extent = _start(offset, axis), axis.extent if axis else 1
    if start is None or not isinstance(extent, int) or extent >= size:
        return None
    parts = parts_of(stage.body.value, axis.var if axis else None, range(start, start + extent), size, {})
    return None if parts is None else _Run(stage, axis, start, start + extent, size, parts)


def _joined(runs: Sequence[_Run]) -> Stage:
    """One stage that stores the runs as one vector."""
    first = runs[0]
    buffer, *outer, offset = _target(first.stage)
    vector = picked([part for run in runs for part in run.parts], first.size)
    body = tirx.BufferStore(buffer, vector, [*outer, ramp(index(0, str(offset.ty)), first.size)])
    return Stage(first.stage.name, first.others, body, None, first.stage.annotations)


def _start(point: Expr, axis: Axis | None) -> int | None:
    """Start of an index that is constant or increases with an axis; None for any other."""
    if axis is not None:
        if coefficient_of(point, axis.var) != 1:
            return None
        point = substitute(point, {axis.var: index(0, str(axis.var.ty))})
    start = constant_int(tvm.sym.Analyzer().simplify(point))
    return start if isinstance(start, int) else None


def _target(stage: Stage) -> list[Expr]:
    """The buffer that a stage stores to, and the indices."""
    return [stage.body.buffer, *stage.body.indices]


_MAX_BLOCKS = 64  # blocks written out


def permuted_lanes(stage: Stage, machine: Machine) -> list[Stage] | None:
    """A stage that moves elements into whole blocks, as one stage per block; None if that is impossible or does not pay
    off."""
    size = block_size(stage, machine)
    store = stage.store
    if size is None or store is None or stage.reduction or not isinstance(store.value, tvm.ir.TensorLoad):
        return None
    lane = next((axis for axis in stage.axes if axis.var.same_as(store.indices[-1])), None)
    if lane is None or lane.extent != size:
        return None
    along = [axis for axis in stage.axes if axis is not lane and _is_mixed(axis, lane, store.value)]
    count = product(axis.extent for axis in along)
    if count is None or count > _MAX_BLOCKS:
        return None
    blocks: list[Stage] = []
    for values in itertools.product(*(range(axis.extent) for axis in along)):
        block = _block(stage, lane, dict(zip((axis.var for axis in along), values, strict=True)))
        if block is None:
            return None
        blocks.append(block)
    return blocks


def _is_mixed(axis: Axis, lane: Axis, load: Expr) -> bool:
    """True if an index depends on both axes."""
    return any(uses(point, axis.var) and uses(point, lane.var) for point in load.indices)


def _block(stage: Stage, lane: Axis, values: Mapping[Var, int]) -> Stage | None:
    """The stage at these values of some axes, with all lanes at once; None if that is impossible."""
    store, size = stage.body, int(lane.extent)
    parts = parts_of(store.value, lane.var, range(size), size, values)
    if parts is None:
        return None
    mapping = {var: index(value, str(var.ty)) for var, value in values.items()}
    *outer, last = [substitute(point, mapping) for point in store.indices]
    body = tirx.BufferStore(store.buffer, picked(parts, size), [*outer, ramp(index(0, str(last.ty)), size)])
    axes = tuple(axis for axis in stage.axes if axis is not lane and axis.var not in values)
    return Stage(stage.name, axes, body, None, stage.annotations)
