"""Kernels that no rule of an operator family serves: parallel and vectorized if possible, correct on any valid IR.

Elementwise stages are inlined, stages that exchange rows run row by row (softmax, the norms), and each stage is emitted
according to its form. A kernel is planned completely before code is emitted, and rules match the plan: one per form,
and the fallback for plain loops or statements that are not simple stages.

Reductions with too few results for many cores run in two steps: partial results of parts, and their join. The length of
parts depends only on sizes: results are the same for every machine with several cores, and any number of threads.

Their one knob is a schedule that TVM's MetaSchedule found for exactly this kernel, a trace of schedule primitives in
JSON; by default there is none. A trace belongs to one kernel, so workloads that have this knob must identify kernels:
see `digest`.

Row by row, softmax and the norms read their input from the L1 cache. Loops common to all stages (found through the
indices by which they exchange intermediates) become the outer loops; inside them the stages follow each other, and an
intermediate shrinks to the size of one row.
"""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import tvm_ffi

from schedules.codegen.nest import Extent, build_function, parallel_grid, sequence
from schedules.codegen.parallel import pays_off, step_cycles, work
from schedules.config import Config, ConfigSpace, KnobValue
from schedules.errors import NotScheduledError
from schedules.instructions.masks import has_masks, padded
from schedules.ir.access import accesses_of
from schedules.ir.expression import constant_int, expression, index, map_accesses, substitute, uses
from schedules.ir.inline import inline_stages, written_intermediates
from schedules.ir.numbers import ceil_div
from schedules.ir.reduction import Reduction, in_two_stages, reduction_of
from schedules.ir.stages import Axis, Kernel, Opaque, Stage, dtype_of, product, shape_of
from schedules.ir.tir import Buffer, Expr, Index, PrimFunc, Stmt, s_tir, tirx, tvm
from schedules.machine import Machine, dtype_bits
from schedules.rule import CpuRule, Priority, Workload
from schedules.stages.code import planned_code
from schedules.stages.plan import Form, NestPlan, StagePlan, plan_stage
from schedules.stages.windows import separate_windows
from schedules.task_split import SplitAxis, Work, estimated_cycles, start_cycles

TRACE = "trace"
# Vectors are several times faster than single elements: up to this many times more steps are accepted for them.
_MAX_STEPS = 4


@dataclass(frozen=True)
class GeneralWorkload(Workload):
    """The number of stages, for reports, and `digest`, which identifies a kernel of known sizes ("": any kernel)."""

    stages: int
    digest: str = ""


@dataclass(frozen=True, eq=False)
class KernelPlan:
    """Plan of a kernel's statements, in order, and the intermediates that they need."""

    statements: tuple[RowsPlan | StagePlan | Opaque, ...]
    buffers: tuple[Expr, ...]

    @property
    def form(self) -> Form:
        """Plain if any statement is."""
        return max(Form.PLAIN if isinstance(each, Opaque) else each.form for each in self.statements)


@lru_cache(maxsize=1)  # every rule queries the same kernel
def plan_kernel(kernel: Kernel, machine: Machine) -> KernelPlan:
    """Plan of a kernel with at least one simple stage.

    If a stage runs as plain loops because of stages inlined into it (moves between blocks of several tensors into one
    that unpacks the blocks), nothing is inlined.
    """
    kernel = separate_windows(kernel)
    stages = inline_stages(kernel)
    plan = _plan(kernel, stages, machine)
    if plan.form is not Form.PLAIN or not kernel.is_plain or len(stages) == len(kernel.stages):
        return plan
    if _points(kernel.stages) > _MAX_STEPS * _points(stages):
        return plan
    apart = _plan(kernel, list(kernel.stages), machine)
    return plan if apart.form is Form.PLAIN else apart


def _points(stages: Sequence[Stage | Opaque]) -> float:
    """Number of elements that stages compute; infinite if unknown."""
    counts = [stage.points() if isinstance(stage, Stage) else None for stage in stages]
    return sum(math.inf if count is None else count for count in counts)


def _plan(kernel: Kernel, stages: list[Stage | Opaque], machine: Machine) -> KernelPlan:
    simple = [stage for stage in stages if isinstance(stage, Stage)]
    needed = written_intermediates(kernel, stages)
    if len(simple) == len(stages):
        rows = plan_rows(simple, needed, machine)
        if rows is not None:
            return KernelPlan((rows,), ())
    statements: list[RowsPlan | StagePlan | Opaque] = []
    for stage in stages:
        if isinstance(stage, Opaque):
            statements.append(stage)
            continue
        plan = plan_stage(stage, machine)
        divided = partial_reduction(stage, plan, machine)
        statements += [plan] if divided is None else divided.steps
        needed += () if divided is None else (divided.partial,)
    return KernelPlan(tuple(statements), needed)


def kernel_code(kernel: Kernel, plan: KernelPlan, machine: Machine) -> PrimFunc:
    """The kernel's PrimFunc as planned."""

    def code(statement: RowsPlan | StagePlan | Opaque) -> Stmt:
        if isinstance(statement, Opaque):
            return statement.statement
        if isinstance(statement, RowsPlan):
            return rows_code(statement, machine)
        return planned_code(statement, machine)

    return build_function(kernel, [code(each) for each in plan.statements], plan.buffers)


class GeneralRule(CpuRule[GeneralWorkload]):
    """Serves kernels whose plan has a certain form, in vectors."""

    priority: ClassVar[int] = Priority.GENERAL

    @property
    @abstractmethod
    def form(self) -> Form | None:
        """The required form; None: any."""

    def match(self, kernel: Kernel, machine: Machine) -> GeneralWorkload | None:
        if not kernel.simple_stages or self.form not in (None, plan_kernel(kernel, machine).form):
            return None
        return GeneralWorkload(len(kernel.stages), digest(kernel.function) if kernel.is_static else "")

    def space(self, workload: GeneralWorkload, machine: Machine) -> ConfigSpace:
        return ConfigSpace({TRACE: Traces()} if workload.digest else {})

    def default(self, workload: GeneralWorkload, machine: Machine) -> Config:
        return Config.of({TRACE: ""} if workload.digest else {})

    def apply(self, kernel: Kernel, workload: GeneralWorkload, config: Config, machine: Machine) -> PrimFunc:
        if not kernel.simple_stages:
            raise NotScheduledError("only opaque statements")
        if config.get(TRACE):
            return traced_function(kernel, str(config[TRACE]))
        return kernel_code(kernel, plan_kernel(kernel, machine), machine)


class Copies(GeneralRule):
    """Serves kernels that only move values, in vectors."""

    name: ClassVar[str] = "copy"
    form = Form.COPY


class Elementwise(GeneralRule):
    """Serves kernels that compute each element independently, in vectors."""

    name: ClassVar[str] = "elementwise"
    form = Form.ELEMENTWISE


class Reduce(GeneralRule):
    """Serves vectorized kernels with reductions, whatever their other stages do in vectors."""

    name: ClassVar[str] = "reduction"
    form = Form.REDUCTION


class Rows(GeneralRule):
    """Serves kernels whose stages share their rows, each of which runs in vectors."""

    name: ClassVar[str] = "rows"
    form = Form.ROWS


class TransposeBlocks(GeneralRule):
    """Serves kernels that transpose, whatever they compute from the elements."""

    name: ClassVar[str] = "transpose"
    form = Form.TRANSPOSE


class Fallback(GeneralRule):
    """Serves any kernel with at least one simple stage."""

    name: ClassVar[str] = "fallback"
    priority: ClassVar[int] = Priority.FALLBACK
    version: ClassVar[int] = 2  # vectorized kernels moved to separate rules

    form = None


_TASKS = 128  # of both steps together: four for each of 32 cores
_MIN_POINTS = 16384  # per part: some 2 microseconds, a hundred times the cost of storing and joining its result
_RUN = 64  # parts of a contiguous axis are multiples of this: whole groups of vectors


@dataclass(frozen=True, eq=False)
class PartialReduction:
    """The plans of both steps, and the partial results passed between them."""

    steps: tuple[StagePlan, StagePlan]
    partial: Expr


def partial_reduction(stage: Stage, plan: StagePlan, machine: Machine) -> PartialReduction | None:
    """A reduction in two steps; None if its results are enough tasks, or threads do not pay off. `plan`: the plan of
    the stage in one step."""
    if len(plan.nests) != 1 or plan.nests[0].reduction is None or machine.cores == 1:
        return None
    if stage.points() is None:
        stage = plan.nests[0].nest.stage  # the length of a part is dynamic, which is never merged into another loop
    reduction = reduction_of(stage)
    if reduction is None:
        return None
    threads = pays_off(work([axis.extent for axis in stage.axes], stage.body), machine)
    if threads is False:
        return None
    tasks = _tasks(plan.nests[0])
    maximum = _TASKS // tasks
    points = product(axis.extent for axis in stage.axes)
    if points is not None:
        maximum = min(maximum, points // (tasks * _MIN_POINTS))
    axis = _divided_axis(stage, reduction, maximum)
    if maximum < 2 or axis is None:
        return None
    inside = product(each.extent for each in stage.axes if each is not axis)
    length = _part_length(axis.extent, maximum, max(1, _MIN_POINTS * tasks // inside) if inside else _MIN_POINTS)
    return _in_parts(stage, reduction, axis, length, threads, machine)


def _tasks(nest: NestPlan) -> int:
    """Number of tasks of a reduction in one step; unknown sizes count as 1."""
    tasks = 1
    for loop in nest.nest.spatial:
        extent = loop.extent if isinstance(loop.extent, int) else 1
        tasks *= max(1, extent // _RUN) if loop is nest.axis else extent
    return max(1, tasks)


def _divided_axis(stage: Stage, reduction: Reduction, parts: int) -> Axis | None:
    """The outermost axis that is long enough, otherwise the longest; with unknown lengths the first."""
    axes = [axis for axis in stage.reduction if uses(reduction.value, axis.var)]
    long = [axis for axis in axes if not isinstance(axis.extent, int) or axis.extent >= 2 * parts]
    known = [axis for axis in axes if isinstance(axis.extent, int) and axis.extent >= 4]
    return long[0] if long else max(known, key=lambda axis: axis.extent, default=None)


def _part_length(extent: Index, maximum: int, minimum: int) -> Index:
    """Steps of a part: at least two, so that a part is never merged into a loop with another axis."""
    if isinstance(extent, int):
        length = max(2, ceil_div(extent, maximum))
        return ceil_div(length, _RUN) * _RUN if extent >= _RUN * maximum else length
    runs = tirx.FloorDiv(extent + (maximum * _RUN - 1), index(maximum * _RUN))
    return tirx.Max(runs * _RUN, index(ceil_div(minimum, _RUN) * _RUN))


def _in_parts(
    stage: Stage, reduction: Reduction, axis: Axis, length: Index, threads: bool | Expr, machine: Machine
) -> PartialReduction:
    dtype = str(axis.var.ty)
    known = isinstance(axis.extent, int) and isinstance(length, int)
    parts = ceil_div(axis.extent, length) if known else tirx.FloorDiv(axis.extent + (length - 1), length)
    part, inner, join = (tirx.Var(f"{axis.name}_{name}", dtype) for name in ("part", "step", "join"))
    rest: Index = length
    if not known or axis.extent % length:
        rest = tirx.Min(expression(length, dtype), expression(axis.extent, dtype) - part * length)
    value = substitute(reduction.value, {axis.var: part * length + inner})
    inside = [Axis(inner, rest, reduce=True) if each is axis else each for each in stage.reduction]
    axes = (Axis(part, parts), *stage.spatial, *inside)
    joined = (*stage.spatial, Axis(join, parts, reduce=True))
    first, second = in_two_stages(stage, reduction, "parts", axes, value, joined, {part: join})
    plans = plan_stage(first, machine, threads=threads), plan_stage(second, machine)
    return PartialReduction(plans, first.body.buffer)


class Traces(tuple[KnobValue, ...]):
    """The choices of a knob that holds a trace: any text; only "" (no trace) is listed."""

    def __new__(cls) -> Traces:
        """Return the only instance."""
        return super().__new__(cls, ("",))

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str)


def digest(function: PrimFunc) -> str:
    """Sixteen hexadecimal digits, equal for kernels that differ only in names."""
    return f"{tvm_ffi.structural_hash(function.without_attr('global_symbol')) & (1 << 64) - 1:016x}"


def new_schedule(function: PrimFunc) -> s_tir.Schedule:
    """A `tvm.s_tir.Schedule` of a copy of a kernel, which is its module's "main".

    A copy, since TVM's schedule modifies blocks of the function in place.
    """
    module = tvm.IRModule({"main": s_tir.renew_defs(function).with_attr("global_symbol", "main")})
    return s_tir.Schedule(module, debug_mask="none", error_render_level="fast")


def traced_function(kernel: Kernel, trace: str) -> PrimFunc:
    """The kernel scheduled by the trace. Raises NotScheduledError if the trace does not fit it."""
    return traced_schedule(kernel, trace).mod["main"]


def traced_schedule(kernel: Kernel, trace: str) -> s_tir.Schedule:
    """The schedule produced by a trace. Raises NotScheduledError if the trace does not fit the kernel."""
    schedule = new_schedule(kernel.function)
    try:
        s_tir.Trace.apply_json_to_schedule(json.loads(trace), schedule)
    except MemoryError:
        raise
    except Exception as error:  # TVM passes on any exception of its primitives
        raise NotScheduledError(f"the recorded trace does not fit the kernel: {error}") from error
    return schedule


def trace_text(schedule: s_tir.Schedule) -> str:
    """The trace of a schedule, for `traced_function`."""
    return json.dumps(_plain(schedule.trace.as_json()), separators=(",", ":"))


def _plain(value: Any) -> Any:
    """Convert TVM's containers to a JSON value."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    if hasattr(value, "value"):
        return _plain(value.value)
    if hasattr(value, "items"):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value]


_APART = 1.5  # relative cost of separate stages, which read and write memory
_Key = tuple[int, int]  # (stage, axis of the stage)
_RowBuffer = tuple[Any, list[int], Any]  # an intermediate, its dimensions within a row, and the buffer of one row


@dataclass(frozen=True, eq=False)
class SharedLoop:
    """A loop common to all stages: its axis in each of them, in order."""

    axes: tuple[Axis, ...]

    @property
    def extent(self) -> Index:
        return self.axes[-1].extent


class _Classes:
    """Axes of several stages that run over the same index of the intermediates (union-find); `spoiled` ones are also
    read at other indices."""

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
    """The loops that all stages can share, in the order of the last stage; its contiguous one is kept for vectors."""
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
    """Relate the axes of the writer of an intermediate to those of its readers; False if loops cannot be shared."""
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
    """The axis whose variable an index is; None if it is anything else."""
    for position, axis in enumerate(stage.axes):
        if axis.var.same_as(point):
            return position
    return None


def _complete(classes: _Classes, root: _Key, stages: Sequence[Stage]) -> tuple[Axis, ...] | None:
    """The axis of the class in every stage; None unless there is exactly one, spatial and of the same extent."""
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
        rows: the shared loops, whose variables are used in the plans of the stages.
        buffers: the intermediates of one row.
        stages: the plan of each for one row.
        threads: whether several threads pay off, or a condition for that.
    """

    rows: tuple[Axis, ...]
    buffers: tuple[Expr, ...]
    stages: tuple[StagePlan, ...]
    threads: bool | Expr

    @property
    def form(self) -> Form:
        """ROWS, unless a stage runs as plain loops."""
        return Form.PLAIN if any(stage.form is Form.PLAIN for stage in self.stages) else Form.ROWS


def plan_rows(stages: Sequence[Stage], intermediates: Sequence[Expr], machine: Machine) -> RowsPlan | None:
    """Plan of stages that run row by row; None if they share too few rows."""
    shared = _with_space(shared_loops(stages, intermediates), stages, intermediates)
    if not shared:
        return None
    amount: Index = 0
    for stage in stages:
        amount = amount + work([axis.extent for axis in stage.axes], stage.body)
    threads = pays_off(amount, machine)
    rows = product(loop.extent for loop in shared)
    if threads is not False and isinstance(amount, int) and rows is not None and rows < machine.cores:
        # Each stage on all cores separately, starting threads and passing through memory each time.
        cycles = step_cycles(amount)
        apart = len(stages) * start_cycles(machine.cores) + _APART * cycles / machine.cores
        work_of_rows = [Work({"rows": 0}, cycles)]
        one_each = estimated_cycles([SplitAxis("rows", rows)], work_of_rows, {"rows": 1}, machine, machine.cores)
        if rows == 1 or one_each > apart:
            return None
    buffers = []
    scratch: dict[Buffer, Index | None] = {}
    for buffer in intermediates:
        axes = _kept_dimensions(buffer, stages, shared)
        shape = [shape_of(buffer)[k] for k in axes] or [1]
        pads = has_masks(machine) and len(axes) == 1 and shape != [1]
        size = [padded(shape[0])] if pads else shape
        row = tirx.decl_buffer(size, str(buffer.dtype), f"{buffer.name}_row", layout=None)
        buffers.append((buffer, axes, row))
        if pads or not _READ_SOON <= _bytes(size, buffer) < math.inf:
            scratch[row] = shape[0] if pads else None
    plans = []
    for number, stage in enumerate(stages):
        plans.append(plan_stage(_row_of(stage, number, shared, buffers), machine, threads=False, scratch=scratch))
        for row in _partly_written(plans[-1], scratch):
            scratch[row] = None
    small = tuple(each for _, _, each in buffers)
    return RowsPlan(tuple(loop.axes[-1] for loop in shared), small, tuple(plans), threads)


def _partly_written(plan: StagePlan, scratch: Mapping[Buffer, Index | None]) -> list[Buffer]:
    """Scratch buffers whose padding a stage does not write: computing with uninitialized elements may be slow, since
    these may be denormal."""
    return [
        row
        for row in scratch
        for nest in plan.nests
        if any(row.same_as(each) for each in nest.nest.stage.writes)
        and not any(row.same_as(each) for each in nest.whole)
    ]


_READ_SOON = 2048  # bytes, written in less time than a store takes to reach the L1 cache
_NEAR = 16384  # bytes, half of the smallest L1 cache


def _with_space(shared: list[SharedLoop], stages: Sequence[Stage], intermediates: Sequence[Expr]) -> list[SharedLoop]:
    """The shared loops without the innermost one if windows read the rows of an intermediate, and several rows fit into
    the L1 cache: a load that overlaps several recent stores waits until these have reached the cache."""
    if len(shared) < 2:
        return shared
    read = [buffer for buffer in intermediates if any(_is_read_in_windows(buffer, stage) for stage in stages)]
    sizes = [
        _bytes([shape_of(buffer)[k] for k in _kept_dimensions(buffer, stages, shared[:-1])], buffer) for buffer in read
    ]
    return shared[:-1] if read and max(sizes) <= _NEAR else shared


def _is_read_in_windows(buffer: Buffer, stage: Stage) -> bool:
    """True if a stage reads a buffer at other indices than loop variables and constants."""
    points = [point for load in stage.loads if load.source.same_as(buffer) for point in load.indices]
    return any(_axis_at(stage, point) is None and not isinstance(constant_int(point), int) for point in points)


def _bytes(shape: Sequence[Index], buffer: Buffer) -> float:
    """Size of a part of a buffer; infinite if it is dynamic."""
    elements = product(shape)
    return math.inf if elements is None else elements * dtype_bits(dtype_of(buffer)) // 8


def _row_of(stage: Stage, number: int, shared: Sequence[SharedLoop], buffers: Sequence[_RowBuffer]) -> Stage:
    """One row of a stage: the shared loops' variables are those of the last stage."""
    mapping = {loop.axes[number].var: loop.axes[-1].var for loop in shared}
    inside = [axis for axis in stage.axes if not any(axis is loop.axes[number] for loop in shared)]
    body = _shrunk(substitute(stage.body, mapping), buffers)
    init = None if stage.init is None else _shrunk(substitute(stage.init, mapping), buffers)
    return Stage(stage.name, tuple(inside), body, init, stage.annotations)


def rows_code(plan: RowsPlan, machine: Machine) -> Stmt:
    """The planned rows as a statement, with new variables at each call."""
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
    axes = [k for k, point in enumerate(writer.body.indices) if not any(var.same_as(point) for var in dropped)]
    sizes = shape_of(buffer)
    return [k for k in axes if sizes[k] != 1 or constant_int(writer.body.indices[k]) != 0]


def _shrunk(root: Stmt, buffers: Sequence[_RowBuffer]) -> Stmt:
    """Redirect loads and stores to the small buffers."""

    def small(buffer: Buffer, indices: Sequence[Expr]) -> tuple[Expr, list[Expr]] | None:
        for full, axes, row in buffers:
            if buffer.same_as(full):
                return row, [indices[k] for k in axes] or [tirx.IntImm("int64", 0)]
        return None

    return map_accesses(root, small)
