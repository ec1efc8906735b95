"""Plans how a stage will run before code is emitted: its loop nests, and the vectorized axis of each.

Elementwise stages are vectorized along the axis in which they store contiguously, or transposed in square blocks.
Reductions are vectorized along such an axis if there is one (each lane has its own sum), otherwise along the reduction
axis (lanes are joined at the end). Stages with no such axis run as plain loops.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from schedules.codegen.parallel import pays_off, step_cycles, work
from schedules.instructions.masks import has_masks, may_mask
from schedules.ir.access import with_plain_indices
from schedules.ir.expression import buffers_loaded, expression, map_loads, nodes, uses, vector_lanes
from schedules.ir.inline import IF_THEN_ELSE, call_name
from schedules.ir.reduction import Reduction, reduction_of
from schedules.ir.stages import Axis, Stage, product
from schedules.ir.tir import Buffer, Expr, Index, structural_equal, tirx, tvm
from schedules.machine import Machine
from schedules.stages.lanes import (
    gathered_axis,
    interleave,
    interleaved_axis,
    interleaved_count,
    is_part_of_block,
    is_run,
    join_runs,
    permuted_lanes,
    strided_axis,
)
from schedules.stages.loops import Loop, LoopNest, loop_nest_of, split_axes, split_branches
from schedules.stages.transpose_code import Transpose, find_transpose
from schedules.task_split import busiest_share, start_cycles

_MIN_VECTOR = 4  # elements; shorter vectors are no better than single elements


class Form(IntEnum):
    """Form of the code; for several pieces of code, the maximum."""

    COPY = 0
    """Values are only moved, in vectors."""
    ELEMENTWISE = 1
    TRANSPOSE = 2
    REDUCTION = 3
    ROWS = 4
    """Several stages run together, row by row, each in vectors."""
    PLAIN = 5
    """Loops over single elements."""


@dataclass(frozen=True, eq=False)
class NestPlan:
    """One collapsed nest.

    Attributes:
        lanes: lanes of a vector.
        threads: whether several threads pay off, or a condition for that.
        axis: the vectorized loop; None if the nest is transposed or runs as plain loops.
        transpose: its axes if the nest is transposed.
        reduction: the reduction, if vectorized; along `axis`, or in each lane if `axis` is spatial.
        masked: the end of the axis is a masked vector, instead of shorter vectors.
        whole: buffers of which that vector is accessed as a whole.
    """

    nest: LoopNest
    lanes: int
    threads: bool | Expr
    axis: Loop | None = None
    transpose: Transpose | None = None
    reduction: Reduction | None = None
    masked: bool = False
    whole: tuple[Buffer, ...] = ()

    @property
    def cycles(self) -> float:
        """Estimated time on one core; 0 if it depends on unknown sizes."""
        return step_cycles(_amount(self.nest.stage))

    @property
    def is_in_vectors(self) -> bool:
        """True if there are no loops over single elements, nor over vectors that short."""
        loops = (*self.nest.spatial, *self.nest.reduction)
        if self.axis is None:
            joined = self.nest.stage.store is not None and _width(self.nest.stage) > 1
            return self.transpose is not None or not loops or joined
        return not self.axis.is_static or self.axis.extent >= _MIN_VECTOR or len(loops) == 1

    @property
    def is_interleaved(self) -> bool:
        """True if the stores of several values are interleaved, see `interleaving`."""
        return self.axis is not None and self.nest.stage.store is None

    @property
    def form(self) -> Form:
        """Form of vectorized code."""
        if self.reduction is not None:
            return Form.REDUCTION
        if self.transpose is not None or self.is_interleaved:
            return Form.TRANSPOSE
        store = self.nest.stage.store
        return Form.COPY if store is not None and _is_moved(store.value) else Form.ELEMENTWISE


@dataclass(frozen=True, eq=False)
class StagePlan:
    """The parts of a stage, one after the other, inside the `shared` loops.

    `threads`: whether several threads pay off for the shared loops, or a condition for that.
    """

    parts: tuple[NestPlan | StagePlan, ...]
    shared: tuple[Axis, ...] = ()
    threads: bool | Expr = False

    @property
    def nests(self) -> list[NestPlan]:
        """The nests of all parts."""
        return [nest for part in self.parts for nest in (part.nests if isinstance(part, StagePlan) else [part])]

    @property
    def cycles(self) -> float:
        """Estimated time on one core; 0 if it depends on unknown sizes."""
        times = [part.cycles for part in self.parts]
        return sum(times) * (product(axis.extent for axis in self.shared) or 0) if all(times) else 0.0

    @property
    def form(self) -> Form:
        """Single elements only count if they take longer than the vectors: the borders of a padded tensor do not."""
        single = [piece for piece in self.nests if not piece.is_in_vectors]
        alone, every = _points(single), _points(self.nests)
        if single and (alone is None or every is None or alone * max(piece.lanes for piece in single) > every):
            return Form.PLAIN  # more steps than the whole would take in vectors
        return max((piece.form for piece in self.nests if piece.is_in_vectors), default=Form.COPY)


def _points(pieces: Sequence[NestPlan]) -> int | None:
    """Number of computed elements; None if unknown."""
    total = 0
    for piece in pieces:
        points = piece.nest.stage.points()
        if points is None:
            return None
        total += points * _width(piece.nest.stage)
    return total


def _width(stage: Stage) -> int:
    """Number of elements that a stage stores at once: more than one if runs were joined, or stores are interleaved."""
    if stage.store is None:
        return interleaved_count(stage)
    return vector_lanes(stage.store.value)


def _is_moved(value: Expr) -> bool:
    """True if a value is loaded or constant, selected only by position."""
    if isinstance(value, tvm.ir.TensorLoad | tirx.IntImm | tirx.FloatImm | tirx.Shuffle):
        return True  # only moves are joined into runs
    if isinstance(value, tirx.Select):
        condition, *values = value.condition, value.true_value, value.false_value
    elif call_name(value) == IF_THEN_ELSE:
        condition, *values = value.args
    else:
        return False
    return not buffers_loaded(condition) and all(_is_moved(each) for each in values)


def plan_stage(
    stage: Stage,
    machine: Machine,
    *,
    threads: bool | Expr | None = None,
    scratch: Mapping[Buffer, Index | None] | None = None,
) -> StagePlan:
    """Decide how a stage runs. `threads`: whether several threads pay off, or a condition for that; None: decided by
    the stage's work. False for a stage that already runs inside a parallel loop.

    `scratch`: buffers that are read soon after they are written; the number of elements if padding follows them.
    """
    stage = with_plain_indices(stage)
    pieces = _nests(stage, machine)
    shared = _shared_axis(stage, pieces, machine) if threads is None else None
    if shared is not None:
        pieces, threads = [_inside(piece, [shared]) for piece in pieces], False
    parts = _with_ends(_parts(pieces, machine, threads), machine, scratch or {})
    return StagePlan(parts) if shared is None else StagePlan(parts, (shared,), threads=True)


def _with_ends(
    parts: tuple[NestPlan | StagePlan, ...], machine: Machine, scratch: Mapping[Buffer, Index | None]
) -> tuple[NestPlan | StagePlan, ...]:
    """The plans with masked ends where they are faster."""
    if not has_masks(machine):
        return parts
    return tuple(
        replace(part, parts=_with_ends(part.parts, machine, scratch))
        if isinstance(part, StagePlan)
        else _with_end(part, scratch)
        for part in parts
    )


def _with_end(plan: NestPlan, scratch: Mapping[Buffer, Index | None]) -> NestPlan:
    """Processors forward stores only to loads of the same size and not masked: scratch buffers are written and read in
    whole vectors or shorter ones."""
    axis = plan.axis
    if axis is None or plan.lanes == 1 or plan.is_interleaved:
        return plan
    pairs = list(zip(plan.nest.accesses, axis.strides, strict=True))
    along = [access for access, stride in pairs if stride == 1]
    if any(stride not in (0, 1) for _, stride in pairs) or not may_mask(plan.nest.stage.body, along):
        return plan
    whole = tuple(
        buffer
        for buffer, size in scratch.items()
        if size is not None
        and structural_equal(expression(axis.extent), expression(size))
        and all(axis.var.same_as(access.indices[0]) for access in along if access.buffer.same_as(buffer))
    )
    masked = all(access.buffer not in scratch or access.buffer in whole for access in along)
    return replace(plan, masked=masked, whole=whole if masked else ())


def _parts(pieces: Sequence[Stage], machine: Machine, threads: bool | Expr | None) -> tuple[NestPlan | StagePlan, ...]:
    """Plans of the pieces of a stage. Pieces of the same rows run row by row: memory is passed through once."""
    parts: list[NestPlan | StagePlan] = []
    for _, group in itertools.groupby(pieces, lambda piece: [id(axis) for axis in piece.spatial[:-1]]):
        rows = list(group)
        plans = [(piece, plan) for piece in rows if (plan := _piece_plan(piece, machine, threads)) is not None]
        outer = rows[0].spatial[:-1]
        vectors = any(plan.axis is not None for _, plan in plans)
        if len(plans) > 1 and outer and vectors and all(_runs_along_last(piece, plan) for piece, plan in plans):
            inner = [_piece_plan(_inside(piece, outer), machine, False) for piece, _ in plans]
            amount = sum((_amount(piece) for piece, _ in plans), 0)
            needed = pays_off(amount, machine) if threads is None else threads
            parts.append(StagePlan(tuple(plan for plan in inner if plan is not None), outer, needed))
        else:
            parts += [plan for _, plan in plans]
    return tuple(parts)


def _runs_along_last(piece: Stage, plan: NestPlan) -> bool:
    """True if the last loop of a piece is its vectorized one, or a single step."""
    if plan.axis is None:
        return piece.spatial[-1].extent == 1
    return not piece.reduction and not plan.is_interleaved and plan.axis.var.same_as(piece.spatial[-1].var)


def _inside(stage: Stage, axes: Sequence[Axis]) -> Stage:
    """A step of some loops of a stage."""
    return replace(stage, axes=tuple(axis for axis in stage.axes if axis not in axes))


def _nests(stage: Stage, machine: Machine) -> list[Stage]:
    """The stage in pieces without branches and with contiguous memory accesses, as far as possible."""
    nests: list[Stage] = []
    for branch in split_branches(stage):
        piece = with_plain_indices(branch)
        runs = split_axes(piece)
        if any(is_part_of_block(run, machine) for run in join_runs(runs, machine)):
            runs = permuted_lanes(piece, machine) or ([piece] if is_run(piece, machine) else runs)
        nests += runs
    return join_runs(interleave(nests), machine)


def _shared_axis(stage: Stage, pieces: Sequence[Stage], machine: Machine) -> Axis | None:
    """A loop that is whole in each of several pieces and balances their work as well as separate loops would, each of
    which starts threads; None if there is none, or threads do not pay off."""
    total = work([axis.extent for axis in stage.axes], stage.body)
    if len(pieces) < 2 or pays_off(total, machine) is not True:
        return None
    *outer, _ = stage.spatial  # vectors run along the last loop
    common = [axis for axis in outer if isinstance(axis.extent, int) and all(axis in piece.axes for piece in pieces)]
    cycles = step_cycles(total)
    start = start_cycles(machine.cores)
    times = [cycles * busiest_share(axis.extent, machine.cores) + start for axis in common]
    apart = cycles / machine.cores + len(pieces) * start
    return common[times.index(min(times))] if times and min(times) <= apart else None


def _piece_plan(stage: Stage, machine: Machine, threads: bool | Expr | None) -> NestPlan | None:
    """Plan of a piece; None if it computes nothing."""
    if any(axis.extent == 0 for axis in stage.spatial):
        return None
    if any(axis.extent == 0 for axis in stage.reduction) or _keeps_start(stage):
        start = Stage(stage.name, stage.spatial, stage.init) if stage.init else None
        return None if start is None else _piece_plan(start, machine, threads)
    nest = loop_nest_of(stage)
    if threads is None:
        threads = pays_off(_amount(stage), machine)
    return (_reduction_plan if stage.reduction else _elementwise_plan)(nest, machine, threads)


def _keeps_start(stage: Stage) -> bool:
    """True if a reduction of a constant, as on the border of padding, results in its start value."""
    store, init = stage.store, stage.init
    if store is None or not stage.reduction or not isinstance(init, tirx.BufferStore):
        return False
    constant = all(load.source.same_as(store.buffer) for load in stage.loads)
    if not constant or not isinstance(init.value, tirx.IntImm | tirx.FloatImm):
        return False
    value = map_loads(store.value, lambda load: init.value)
    return bool(structural_equal(tvm.sym.Analyzer().simplify(value), init.value))


def _amount(stage: Stage) -> Index:
    return _width(stage) * work([axis.extent for axis in stage.axes], stage.body)


def _elementwise_plan(nest: LoopNest, machine: Machine, threads: bool | Expr) -> NestPlan:
    lanes = nest.lanes(machine)
    axis = interleaved_axis(nest) or _vector_axis(nest)
    if axis is None:
        transpose = find_transpose(nest)
        if (
            transpose is not None
            and not _has_branch_on(nest, transpose.target)
            and not _has_branch_on(nest, transpose.source)
        ):
            return NestPlan(nest, lanes, threads, transpose=transpose)
        axis = strided_axis(nest) or (gathered_axis(nest) if lanes >= _MIN_VECTOR else None)
    if axis is None or _has_branch_on(nest, axis):
        return NestPlan(nest, lanes, threads)
    return NestPlan(nest, nest.lanes(machine, axis), threads, axis)


def _reduction_plan(nest: LoopNest, machine: Machine, threads: bool | Expr) -> NestPlan:
    lanes = nest.lanes(machine)
    reduction = reduction_of(nest.stage)
    if reduction is None:
        return NestPlan(nest, lanes, threads)
    across = _lane_axis(nest, reduction)
    along = _sum_axis(nest, lanes)
    if across is not None and (along is None or not across.is_static or across.extent >= lanes):
        return NestPlan(nest, lanes, threads, across, reduction=reduction)
    if along is not None:
        return NestPlan(nest, lanes, threads, along, reduction=reduction)
    apart = strided_axis(nest)
    return NestPlan(nest, lanes, threads, apart, reduction=None if apart is None else reduction)


def _vector_axis(nest: LoopNest) -> Loop | None:
    """The spatial loop in which every store moves by one element and every load by one or none."""
    for loop in reversed(nest.spatial):
        if nest.is_contiguous(loop) and all(loop.strides[i] == 1 for i in nest.stores):
            return loop if nest.stage.store is not None else None
    return None


def _lane_axis(nest: LoopNest, reduction: Reduction) -> Loop | None:
    """The spatial loop along whose lanes sums can be vectorized."""
    axis = _vector_axis(nest)
    moves = [i for i, access in enumerate(nest.accesses) if not access.buffer.same_as(reduction.store.buffer)]
    if axis is None or _has_branch_on(nest, axis) or not any(axis.strides[i] == 1 for i in moves):
        return None
    return axis


def _sum_axis(nest: LoopNest, lanes: int) -> Loop | None:
    """The innermost reduction loop in which the operands are contiguous, if it fills a vector."""
    for loop in reversed(nest.reduction):
        contiguous = set(loop.strides) <= {0, 1} and 1 in loop.strides
        long_enough = not loop.is_static or loop.extent >= lanes
        if contiguous and long_enough and not _has_branch_on(nest, loop):
            return loop
    return None


def _has_branch_on(nest: LoopNest, loop: Loop) -> bool:
    """True if a branch differs between lanes: it would run lane by lane, unless LLVM turns it into a mask."""
    calls = nodes(nest.stage.body, tvm.ir.Call)
    return any(call_name(call) == IF_THEN_ELSE and uses(call.args[0], loop.var) for call in calls)
