"""A PrimFunc split into stages, by which a rule recognizes the kernels it serves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from schedules.ir.expression import buffers_loaded, constant_int, index, nodes, substitute
from schedules.ir.tir import Buffer, Expr, GlobalVar, PrimFunc, Stmt, Var, s_tir, tirx, tvm

Extent = int | Any


@dataclass(frozen=True, eq=False)
class Axis:
    """One loop of a stage: its variable, its extent (an int when static), and whether it is summed over."""

    var: Var
    extent: Extent
    reduce: bool = False

    @property
    def name(self) -> str:
        return str(self.var.name)


@dataclass(frozen=True, eq=False)
class Stage:
    """One block: for all `axes`, `body` (after `init` once per point of the spatial axes).

    `store` is the only BufferStore of the body, or None if it has other statements. `annotations` are the block's own;
    a rule recognizes a stage made for it by them.
    """

    name: str
    axes: tuple[Axis, ...]
    body: Stmt
    init: Stmt | None = None
    annotations: Mapping[str, Any] = field(default_factory=dict)

    @property
    def spatial(self) -> tuple[Axis, ...]:
        return tuple(axis for axis in self.axes if not axis.reduce)

    @property
    def reduction(self) -> tuple[Axis, ...]:
        return tuple(axis for axis in self.axes if axis.reduce)

    @property
    def store(self) -> Stmt | None:
        return self.body if isinstance(self.body, tirx.BufferStore) else None

    @cached_property
    def loads(self) -> tuple[Expr, ...]:
        """Every BufferLoad of the body, the reduction's own accumulator included."""
        return tuple(buffers_loaded(self.body))

    @cached_property
    def writes(self) -> tuple[Expr, ...]:
        """The buffers that the body stores to."""
        buffers: list[Buffer] = []
        for store in nodes(self.body, tirx.BufferStore):
            if not any(store.buffer.same_as(other) for other in buffers):
                buffers.append(store.buffer)
        return tuple(buffers)

    @property
    def single(self) -> dict[Var, Expr]:
        """The index of each loop of extent 1."""
        return {axis.var: index(0, str(axis.var.ty)) for axis in self.axes if axis.extent == 1}

    def without_single(self) -> Stage:
        """The stage without loops of extent 1."""
        axes = tuple(axis for axis in self.axes if axis.extent != 1)
        init = None if self.init is None else substitute(self.init, self.single)
        return Stage(self.name, axes, substitute(self.body, self.single), init, self.annotations)

    def with_axes(self, position: int, axes: Sequence[Axis], value: Expr) -> Stage:
        """The stage with one axis replaced by others; `value` expresses its variable in terms of theirs."""
        values = {self.axes[position].var: value}
        init = None if self.init is None else substitute(self.init, values)
        every = (*self.axes[:position], *axes, *self.axes[position + 1 :])
        return Stage(self.name, every, substitute(self.body, values), init, self.annotations)

    def points(self) -> int | None:
        """Number of runs of the body, or None if dynamic."""
        return product(axis.extent for axis in self.axes)


@dataclass(frozen=True, eq=False)
class Opaque:
    """A statement that is not a simple stage; it is kept unchanged."""

    statement: Stmt


def product(extents: Iterable[Extent]) -> int | None:
    """The product of static extents; None if one is symbolic."""
    total = 1
    for extent in extents:
        if not isinstance(extent, int):
            return None
        total *= extent
    return total


@dataclass(eq=False)
class Kernel:
    """A PrimFunc and its stages, in order.

    `intermediates` are the buffers allocated in the function; `inputs` and `outputs` are the parameters read and
    written.
    `is_plain` means that every statement is a simple stage; only such kernels can be regenerated from their stages.
    """

    function: PrimFunc
    stages: tuple[Stage | Opaque, ...]
    intermediates: tuple[Expr, ...] = ()
    outputs: tuple[Expr, ...] = field(init=False)
    inputs: tuple[Expr, ...] = field(init=False)

    def __post_init__(self) -> None:
        written = [buffer for stage in self.simple_stages for buffer in stage.writes]
        params = [param for param in self.function.params if tirx.is_buffer_var(param)]
        self.outputs = tuple(param for param in params if any(param.same_as(buffer) for buffer in written))
        self.inputs = tuple(param for param in params if not any(param.same_as(buffer) for buffer in written))

    @property
    def simple_stages(self) -> tuple[Stage, ...]:
        return tuple(stage for stage in self.stages if isinstance(stage, Stage))

    @property
    def is_plain(self) -> bool:
        return bool(self.stages) and len(self.simple_stages) == len(self.stages)

    @property
    def is_static(self) -> bool:
        """True if all loop extents and buffer shapes are known."""
        shapes = [dim for buffer in (*self.inputs, *self.outputs, *self.intermediates) for dim in shape_of(buffer)]
        loops = [axis.extent for stage in self.simple_stages for axis in stage.axes]
        return all(isinstance(extent, int) for extent in (*shapes, *loops))

    def is_intermediate(self, buffer: Buffer) -> bool:
        return any(buffer.same_as(other) for other in self.intermediates)

    @classmethod
    def of(cls, function: PrimFunc) -> Kernel:
        """Split a PrimFunc into stages; other statements become Opaque, so this never fails on valid IR."""
        root = function.body
        if not isinstance(root, s_tir.SBlockRealize) or root.block.iter_vars or root.block.match_buffers:
            return cls(function, (Opaque(root),))
        block = root.block
        statements = block.body.seq if isinstance(block.body, tirx.SeqStmt) else [block.body]
        stages = tuple(_stage_or_opaque(statement) for statement in statements)
        return cls(function, stages, tuple(block.alloc_buffers))


def shape_of(buffer: Buffer) -> tuple[Extent, ...]:
    """The buffer's shape, ints where static."""
    return tuple(constant_int(dim) for dim in buffer.ty.shape)


def dtype_of(buffer: Buffer) -> str:
    """The buffer's element type."""
    return str(buffer.dtype)


def is_compact(buffer: Buffer) -> bool:
    """True if the buffer is row-major without padding or offset."""
    offset = constant_int(buffer.ty.elem_offset)
    return len(buffer.ty.strides) == 0 and offset == 0 and buffer.ty.layout is None


def _loops(statement: Stmt) -> Iterator[Stmt]:
    while isinstance(statement, tirx.For):
        yield statement
        statement = statement.body
    yield statement


def _stage_or_opaque(statement: Stmt) -> Stage | Opaque:
    *loops, realize = _loops(statement)
    if not isinstance(realize, s_tir.SBlockRealize) or not _plain_loops(loops):
        return Opaque(statement)
    block = realize.block
    if block.alloc_buffers or block.match_buffers or constant_int(realize.predicate) != 1:
        return Opaque(statement)
    axes = _axes(loops, realize)
    if axes is None or nodes(block.body, s_tir.SBlockRealize):
        return Opaque(statement)
    binding = {iter_var.var: value for iter_var, value in zip(block.iter_vars, realize.iter_values, strict=True)}
    body = substitute(block.body, binding)
    init = None if block.init is None else substitute(block.init, binding)
    return Stage(str(block.name_hint), axes, body, init, dict(block.annotations))


def _plain_loops(loops: Sequence[Stmt]) -> bool:
    return all(
        loop.kind == tirx.ForKind.SERIAL
        and constant_int(loop.min) == 0
        and not loop.annotations
        and loop.thread_binding is None
        and (loop.step is None or constant_int(loop.step) == 1)
        for loop in loops
    )


def _axes(loops: Sequence[Stmt], realize: Stmt) -> tuple[Axis, ...] | None:
    """The loops as axes; None unless each loop is bound directly to exactly one iter var, spatial or reduction."""
    kinds: dict[int, bool] = {}
    variables = [loop.loop_var for loop in loops]
    for iter_var, value in zip(realize.block.iter_vars, realize.iter_values, strict=True):
        if iter_var.iter_type not in (tirx.IterVar.DataPar, tirx.IterVar.CommReduce):
            return None
        reduce = iter_var.iter_type == tirx.IterVar.CommReduce
        if isinstance(constant_int(value), int):
            continue
        position = next((i for i, var in enumerate(variables) if var.same_as(value)), None)
        if position is None or position in kinds:
            return None
        kinds[position] = reduce
    if len(kinds) != len(loops):
        return None
    return tuple(Axis(loop.loop_var, constant_int(loop.extent), kinds[i]) for i, loop in enumerate(loops))


def kernels_of(mod: tvm.IRModule) -> Iterator[tuple[GlobalVar, PrimFunc]]:
    """The (global variable, PrimFunc) pairs of a module."""
    for global_var, function in mod.functions_items():
        if isinstance(function, tirx.PrimFunc):
            yield global_var, function
