"""Inlining: an elementwise stage is moved into the stages that read it, unless that would repeat too much work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from schedules.ir.expression import buffers_loaded, constant_int, expression, map_loads, nodes, substitute, uses
from schedules.ir.lets import fresh_lets, hoisted_lets
from schedules.ir.stages import Kernel, Opaque, Stage, shape_of
from schedules.ir.tir import Buffer, Call, Expr, Node, Var, structural_equal, structural_map, tirx, tvm

# How many times a cheap value may be recomputed before it is stored in memory instead.
_MAX_CHEAP_REPEATS = 8
_MAX_CHEAP_OPERATIONS = 16
# A body with more operations than this does not grow any further.
_MAX_NODES = 600
# Chains of functions that read their operand several times grow exponentially: beyond this, none is inlined.
_MAX_EXPANDED = 3000

EXPENSIVE_CALLS = frozenset(
    f"tirx.{name}"
    for name in (
        *("exp", "exp2", "log", "log2", "log1p", "tanh", "erf", "sigmoid", "pow", "sqrt", "rsqrt", "fmod"),
        *("sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "asinh", "acosh", "atanh"),
    )
)

# `if_then_else` is an operator of TVM's primitive expressions, unlike the functions above.
IF_THEN_ELSE = "prim.if_then_else"


def call_name(node: Expr) -> str:
    """The operator name of a call, "" if it calls something else."""
    return str(node.op.name) if isinstance(node, tvm.ir.Call) and isinstance(node.op, tvm.ir.Op) else ""


def operations(root: Node) -> tuple[int, int]:
    """(arithmetic operations, expensive ones: elementary functions and floating-point divisions) below `root`."""
    numeric = (tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Min, tirx.Max, tirx.FloorDiv, tirx.FloorMod)
    found = nodes(root, *numeric, tirx.Select, tirx.Shuffle, tvm.ir.Call)
    return len(found), sum(isinstance(node, tirx.Div) or call_name(node) in EXPENSIVE_CALLS for node in found)


def has_branch(root: Node) -> bool:
    """True if there is an `if_then_else` below `root`: what it guards must not be evaluated elsewhere."""
    return any(call_name(node) == IF_THEN_ELSE for node in nodes(root, tvm.ir.Call))


def inline_stages(kernel: Kernel) -> list[Stage | Opaque]:
    """The kernel's stages after inlining where it pays off. The semantics are unchanged."""
    stages = list(kernel.stages)
    position = 0
    while position < len(stages):
        replaced = _inlined(kernel, stages, position)
        if replaced is None:
            position += 1
        else:
            stages = replaced
    return stages


def written_intermediates(kernel: Kernel, stages: Sequence[Stage | Opaque]) -> tuple[Buffer, ...]:
    """The intermediates that are still written; an opaque statement may use any."""
    if any(isinstance(stage, Opaque) for stage in stages):
        return kernel.intermediates
    written = [buffer for stage in stages for buffer in _writes(stage)]
    return tuple(each for each in kernel.intermediates if any(each.same_as(buffer) for buffer in written))


def _inlined(kernel: Kernel, stages: list[Stage | Opaque], position: int) -> list[Stage | Opaque] | None:
    stage = stages[position]
    if not isinstance(stage, Stage) or not is_candidate(kernel, stages, stage):
        return None
    buffer = stage.body.buffer
    readers = [i for i, other in enumerate(stages) if other is not stage and _reads(other, buffer)]
    if not readers or any(i < position or not isinstance(stages[i], Stage) for i in readers):
        return None
    if not all(_pays(stage, stages[i]) for i in readers) or not _few_repeats(stage, [stages[i] for i in readers]):
        return None
    result = list(stages)
    for i in readers:
        replaced = inline_into(stage, stages[i])
        if replaced is None:
            return None
        result[i] = replaced
    del result[position]
    return result


def is_candidate(kernel: Kernel, stages: Sequence[Stage | Opaque], stage: Stage) -> bool:
    """True if an elementwise stage alone writes an intermediate, at its own loop variables, from constant inputs."""
    store = stage.store
    if store is None or stage.reduction or stage.init is not None or not kernel.is_intermediate(store.buffer):
        return False
    if _index_axes(stage) is None:
        return False
    others = [other for other in stages if other is not stage]
    written = [buffer for other in others for buffer in _writes(other)]
    if any(store.buffer.same_as(buffer) for buffer in written):
        return False
    after = stages[next(i for i, other in enumerate(stages) if other is stage) :]
    rewritten = [buffer for other in after for buffer in _writes(other)]
    return not any(load.source.same_as(buffer) for load in stage.loads for buffer in rewritten)


def is_elementwise(stage: Stage) -> bool:
    """True if a stage stores one value at each point of its own loop variables, as `inline_value` requires."""
    return stage.store is not None and not stage.reduction and stage.init is None and _index_axes(stage) is not None


def _index_axes(stage: Stage) -> list[Expr] | None:
    """The loop variable of each dimension of the output (None if the index is constant 0 of size 1)."""
    axes: list[Expr] = []
    for point, size in zip(stage.body.indices, shape_of(stage.body.buffer), strict=True):
        if isinstance(point, tvm.ir.Var) and not any(point.same_as(other) for other in axes):
            axes.append(point)
        elif constant_int(point) == 0 and size == 1:
            axes.append(None)
        else:
            return None
    variables = [var for var in axes if var is not None]
    covered = all(any(axis.var.same_as(var) for var in variables) or axis.extent == 1 for axis in stage.axes)
    return axes if covered else None


def _writes(stage: Stage | Opaque) -> tuple[Expr, ...]:
    return stage.writes if isinstance(stage, Stage) else Stage("", (), stage.statement).writes


def _reads(stage: Stage | Opaque, buffer: Buffer) -> bool:
    loads = stage.loads if isinstance(stage, Stage) else buffers_loaded(stage.statement)
    # An opaque statement or an init may access the buffer in another way.
    other = stage.init if isinstance(stage, Stage) else stage.statement
    return any(load.source.same_as(buffer) for load in loads) or (other is not None and uses(other, buffer))


def _pays(stage: Stage, reader: Stage | Opaque) -> bool:
    """True if inlining pays off: a summing loop must not repeat branches; bodies of several statements stay."""
    if not isinstance(reader, Stage) or reader.store is None:
        return False
    if sum(operations(reader.body)) > _MAX_NODES:
        return False
    return not (reader.reduction and has_branch(stage.body))


def _few_repeats(stage: Stage, readers: Sequence[Any]) -> bool:
    cheap, expensive = operations(stage.body.value)
    if cheap == 0:
        return True
    repeats = 0.0
    points = stage.points()
    for reader in readers:
        positions = len(_distinct_uses(reader.body.value, stage.body.buffer))
        evaluations = reader.points()
        if points is not None and evaluations is not None:
            repeats += positions * evaluations / max(points, 1)
        elif reader.reduction:
            repeats = math.inf
        else:
            repeats += positions * _repeats_of_dynamic(stage, reader)
    if expensive:
        return repeats <= 1.25
    return repeats <= (_MAX_CHEAP_REPEATS if cheap <= _MAX_CHEAP_OPERATIONS else 2.0)


def _repeats_of_dynamic(stage: Stage, reader: Stage) -> float:
    """How often a reader evaluates each point of a stage: the product of the extents that only the reader has, infinite
    if one is dynamic; 1 if the stage has others."""
    rest = [axis.extent for axis in reader.axes]
    for axis in stage.axes:
        same = [i for i, extent in enumerate(rest) if structural_equal(expression(extent), expression(axis.extent))]
        if same:
            del rest[same[0]]
        elif axis.extent != 1:
            return 1.0
    return math.prod(extent if isinstance(extent, int) else math.inf for extent in rest)


def _distinct_uses(value: Expr, buffer: Buffer) -> list[list[Expr]]:
    """The loads of a buffer, grouped by equal indices."""
    groups: list[list[Expr]] = []
    for load in buffers_loaded(value):
        if not load.source.same_as(buffer):
            continue
        for group in groups:
            if _same_position(group[0], load):
                group.append(load)
                break
        else:
            groups.append([load])
    return groups


def _expanded_operations(value: Expr) -> int:
    """The number of operations of a value with its Lets, if each variable were written out wherever it is read.

    TVM's analyzer expands Lets like that to bound their values.
    """
    costs: dict[Var, int] = {}
    while True:
        part = value.value if isinstance(value, tirx.Let) else value
        cost = sum(operations(part)) + sum(costs.get(var, 0) for var in nodes(part, tvm.ir.Var))
        if not isinstance(value, tirx.Let):
            return cost
        costs[value.var] = cost
        value = value.body


def _is_shared(value: Expr, group: Sequence[Expr]) -> bool:
    """True if equal loads should be bound to a variable: there are several, and one is evaluated on every path."""
    if len(group) < 2 or _bound_inside(value, group[0]):
        return False
    return not has_branch(value) or any(
        load.source.same_as(group[0].source) and _same_position(load, group[0]) for load in _unguarded(value)
    )


def _unguarded(value: Expr) -> list[Expr]:
    """The loads outside the values that branches select."""

    def condition(call: Call) -> Expr:
        if call_name(call) != IF_THEN_ELSE:
            return call
        zero = tirx.const(0, str(call.ty))
        return tirx.if_then_else(call.args[0], zero, zero)

    return buffers_loaded(structural_map(value, (tvm.ir.Call, condition)))


def _same_position(a: Expr, b: Expr) -> bool:
    return bool(structural_equal(list(a.indices), list(b.indices), map_free_vars=False))


def inline_into(stage: Stage, reader: Stage | Opaque) -> Stage | None:
    """The reader with the stage computed where it is read; None if its expression would grow too long."""
    assert isinstance(reader, Stage)
    store = reader.body
    value = inline_value(stage, store.value)
    if _expanded_operations(value) > _MAX_EXPANDED:
        return None
    body = tirx.BufferStore(store.buffer, value, list(store.indices))
    return Stage(reader.name, reader.axes, body, reader.init, reader.annotations)


def inline_value(stage: Stage, value: Expr) -> Expr:
    """`value` with the loads of an elementwise stage's output replaced by the stage's expression.

    A value that is read more than once at the same position is bound to a variable, unless branches guard every read.
    """
    buffer = stage.body.buffer
    axes = _index_axes(stage)
    assert axes is not None
    bindings: list[tuple[Var, Expr]] = []
    shared = [group for group in _distinct_uses(value, buffer) if _is_shared(value, group)]
    variables = [tirx.Var(f"{stage.name}_value", group[0].ty) for group in shared]

    def computed(load: Expr) -> Expr:
        mapping = {var: point for var, point in zip(axes, load.indices, strict=True) if var is not None}
        return fresh_lets(substitute(stage.body.value, mapping))

    def replace(load: Expr) -> Expr | None:
        if not load.source.same_as(buffer):
            return None
        for group, variable in zip(shared, variables, strict=True):
            if _same_position(group[0], load):
                return variable
        return computed(load)

    result = map_loads(value, replace)
    bindings = [(variable, computed(group[0])) for group, variable in zip(shared, variables, strict=True)]
    for variable, bound in reversed(bindings):
        result = tirx.Let(variable, bound, result)
    return hoisted_lets(result)


def _bound_inside(value: Expr, load: Expr) -> bool:
    """True if the indices of a load use a variable that a Let inside `value` binds."""
    bound = [let.var for let in nodes(value, tirx.Let)]
    return any(var.same_as(other) for var in nodes(load, tvm.ir.Var) for other in bound)
