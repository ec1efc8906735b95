"""A fused kernel as an anchor (a convolution, pooling, ...) and an elementwise epilogue.

The elementwise stages after an anchor become one expression of the accumulator, applied while it is in a register.
"""

from __future__ import annotations

from collections.abc import Sequence

from schedules.annotations import KIND
from schedules.codegen.nest import build_function
from schedules.errors import NotScheduledError
from schedules.instructions.llvm_options import KEPT_LOOPS
from schedules.ir.expression import expression, map_loads, substitute, uses
from schedules.ir.stages import Kernel, Stage, shape_of
from schedules.ir.tir import Buffer, Expr, PrimFunc, Stmt, Var, tirx, tvm
from schedules.machine import Machine
from schedules.stages.code import stage_code

from tvm_ffi import structural_equal  # isort: skip


def anchor_stages(kernel: Kernel, kind: str) -> tuple[Stage, ...]:
    """The stages annotated with a rule's kind."""
    return tuple(stage for stage in kernel.simple_stages if stage.annotations.get(KIND) == kind)


def only_anchors(kernel: Kernel, kind: str, count: int = 1) -> tuple[Stage, ...] | None:
    """The stages annotated with a rule's kind, if there are `count`, each with a single store, and the kernel consists
    of stages only."""
    stages = anchor_stages(kernel, kind)
    fits = kernel.is_plain and len(stages) == count and all(stage.store is not None for stage in stages)
    return stages if fits else None


_MAX_DEFINITIONS = 256
"""Limit on the definitions inlined into an epilogue, each counted as often as it is read."""


class FusedKernel:
    """A kernel around the stages of its anchor.

    `finish(value, indices)` applies the epilogue to the anchor's result `value` at `indices` (expressions or ints) and
    stores it. `value` is a scalar expression that may be read several times: make it a load or a variable.

    Attributes:
        rest: the stages after the anchor that `finish` does not cover. With `partly` it covers the first ones if it
            cannot cover all, otherwise all or none.
        stored: the buffer that `finish` stores to.
    """

    def __init__(self, kernel: Kernel, anchors: Sequence[Stage], *, partly: bool = False) -> None:
        if not kernel.is_plain:
            raise NotScheduledError("the kernel has statements that are not simple stages")
        self.kernel = kernel
        self.anchors = tuple(anchors)
        first = next(i for i, stage in enumerate(kernel.stages) if stage is anchors[0])
        last = next(i for i, stage in enumerate(kernel.stages) if stage is anchors[-1])
        if last - first + 1 != len(anchors):
            raise NotScheduledError("other stages between those of the anchor")
        self._before = list(kernel.simple_stages[:first])
        self._after = list(kernel.simple_stages[last + 1 :])
        self.result = anchors[-1].writes[0]
        self._fused = _epilogue(self.result, self._after)
        done = len(self._after)
        while self._fused is None and partly and done > 1:
            done -= 1
            if self._ends_at(done):
                self._fused = _epilogue(self.result, self._after[:done])
        self.rest = self._after if self._fused is None else self._after[done:]
        self.stored = self.result if self._fused is None else self._fused[0]

    @property
    def is_joined(self) -> bool:
        """True if `finish` covers all stages after the anchor."""
        return not self.rest

    def _ends_at(self, done: int) -> bool:
        """True if only the last result of the first stages after the anchor is read by others."""
        inner = [self.result, *(buffer for stage in self._after[: done - 1] for buffer in stage.writes)]
        read = [load.source for stage in self._after[done:] for load in stage.loads]
        return all(self.kernel.is_intermediate(each) for each in inner) and not any(
            each.same_as(other) for each in inner for other in read
        )

    def finish(self, value: Expr, indices: Sequence[Expr | int]) -> Stmt:
        """The statement that stores the finished element."""
        points = [expression(each) for each in indices]
        if self._fused is None:
            return tirx.BufferStore(self.result, value, points)
        target, variables, accumulator, result = self._fused
        mapping = {accumulator: value}
        mapping.update({var: point for var, point in zip(variables, points, strict=True) if var is not None})
        return tirx.BufferStore(target, substitute(result, mapping), points)

    def ignores_rows(self, first: int, rank: int) -> bool:
        """True if `finish` uses the indices of the `rank` dimensions starting at `first` only for elements at the same
        position of tensors of the same sizes, so that they can be flattened into the last of them."""
        if self._fused is None:
            return True
        target, variables, _, value = self._fused
        dimensions = slice(first, first + rank)
        rows = [each for each in variables[dimensions] if each is not None]
        if len(rows) != rank:
            return False
        elsewhere = False

        def visit(load: Expr) -> Expr | None:
            nonlocal elsewhere
            used = any(uses(index, var) for index in load.indices for var in rows)
            fits = len(load.indices) >= first + rank
            fits = fits and structural_equal(list(load.source.ty.shape)[dimensions], list(target.ty.shape)[dimensions])
            fits = fits and all(
                index.same_as(var) for index, var in zip(list(load.indices)[dimensions], rows, strict=True)
            )
            others = [index for at, index in enumerate(load.indices) if not first <= at < first + rank]
            fits = fits and not any(uses(index, var) for index in others for var in rows)
            elsewhere = elsewhere or (used and not fits)
            return tirx.Var("loaded", load.ty)

        rest = map_loads(value, visit)
        return not elsewhere and not any(uses(rest, var) for var in rows)

    def operand(self, anchor: Stage, rank: int) -> Expr:
        """The buffer of `rank` dimensions that a stage of the anchor reads, not counting its own output."""
        for load in anchor.loads:
            if len(load.source.ty.shape) == rank and not load.source.same_as(anchor.writes[0]):
                return load.source
        raise NotScheduledError(f"stage {anchor.name} reads no tensor of rank {rank}")

    def function(self, body: Stmt, machine: Machine, *, keep_loops: bool = False) -> PrimFunc:
        """The PrimFunc with the anchor computed by `body`; with `keep_loops` LLVM does not transform its loops."""
        intermediates = [buffer for buffer in self.kernel.intermediates if self._needs(buffer)]
        producers = [stage_code(stage, machine) for stage in self._before]
        after = [] if self._fused is not None else [stage_code(stage, machine) for stage in self._after]
        function = build_function(self.kernel, [*producers, body, *after], intermediates)
        return function.with_attr(KEPT_LOOPS, tirx.IntImm("bool", 1)) if keep_loops else function

    def _needs(self, buffer: Buffer) -> bool:
        """True if an intermediate is still written to memory."""
        written = [each for stage in self._before for each in stage.writes]
        if self._fused is None:
            written += [self.result, *(each for stage in self._after for each in stage.writes)]
        return any(buffer.same_as(each) for each in written)


def _epilogue(result: Expr, stages: Sequence[Stage]) -> tuple[Expr, list[Expr], Expr, Expr] | None:
    """(target buffer, its index variables, the accumulator's variable, the value); None if there is no such form."""
    if not stages or any(stage.reduction or stage.store is None for stage in stages):
        return None
    last = stages[-1].body
    target = last.buffer
    if not structural_equal(target.ty.shape, result.ty.shape):
        return None  # the result is written into a larger tensor: it must be complete first
    variables = _axis_variables(stages[-1])
    if variables is None:
        return None
    accumulator = tirx.Var("accumulator", str(result.dtype))
    inliner = _Inliner(result, stages[:-1], accumulator, list(last.indices))
    value = inliner.inline(last.value)
    return None if inliner.failed else (target, variables, accumulator, value)


def _axis_variables(stage: Stage) -> list[Var] | None:
    """The loop variable of each dimension that a stage stores, None for constant ones; None if an index is neither."""
    variables = []
    statement = stage.body
    for point, size in zip(statement.indices, shape_of(statement.buffer), strict=True):
        if any(axis.var.same_as(point) for axis in stage.spatial):
            variables.append(point)
        elif isinstance(point, tirx.IntImm) and size == 1:
            variables.append(None)
        else:
            return None
    return variables


class _Inliner:
    """Replaces loads of intermediates by their definitions, and of the anchor's result by the accumulator.

    Chains of functions that read their operand several times grow exponentially: beyond `_MAX_DEFINITIONS` it fails.
    """

    def __init__(self, result: Expr, stages: Sequence[Stage], accumulator: Expr, indices: list[Expr]) -> None:
        self._result = result
        self._stages = stages
        self._accumulator = accumulator
        self._indices = indices
        self._analyzer = tvm.sym.Analyzer()
        self._definitions = 0
        self.failed = False

    def inline(self, value: Expr) -> Expr:
        return map_loads(value, self._replace)

    def _replace(self, load: Expr) -> Expr | None:
        if load.source.same_as(self._result):
            if not self._same_point(load):
                self.failed = True
            return self._accumulator
        for stage in self._stages:
            if load.source.same_as(stage.body.buffer):
                variables = _axis_variables(stage)
                self._definitions += 1
                if variables is None or self._definitions > _MAX_DEFINITIONS:
                    self.failed = True
                    return None
                mapping = {var: point for var, point in zip(variables, load.indices, strict=True) if var is not None}
                return self.inline(substitute(stage.body.value, mapping))
        return None

    def _same_point(self, load: Expr) -> bool:
        sizes = shape_of(self._result)
        return all(
            size == 1 or self._analyzer.can_prove_equal(mine, other)
            for size, mine, other in zip(sizes, load.indices, self._indices, strict=True)
        )
