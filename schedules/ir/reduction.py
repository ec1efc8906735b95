"""Reductions in blocks: `out = out + value`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from schedules.ir.expression import buffers_loaded, expression, substitute
from schedules.ir.stages import Axis, Stage
from schedules.ir.tir import Expr, Stmt, Var, structural_equal, tirx, tvm


@dataclass(frozen=True, eq=False)
class Combiner:
    """Combination of partial results, and its identity as the start value (None: the stage's own init).

    `stored` is the update of a stage's own element as `reduction_of` recognizes it; None: the expression of `combine`.
    """

    name: str
    combine: Callable[[Expr, Expr], Expr]
    identity: float | None
    stored: Callable[[Expr, Expr], Expr] | None = None


COMBINERS = {
    tirx.Add: Combiner("add", lambda a, b: a + b, 0.0),
    tirx.Mul: Combiner("multiply", lambda a, b: a * b, 1.0),
    # These may be combined with the start value more than once, so they start from the stage's own.
    tirx.Max: Combiner("maximum", tirx.Max, None),
    tirx.Min: Combiner("minimum", tirx.Min, None),
}


@dataclass(frozen=True, eq=False)
class Reduction:
    """A stage `out[...] = combine(out[...], value)` that starts at `start`."""

    combiner: Combiner
    value: Expr
    start: Expr
    store: Stmt

    @property
    def dtype(self) -> str:
        return str(self.store.buffer.dtype)

    def identity(self) -> Expr:
        """Initial value of an accumulator if the start value is combined at the end."""
        if self.combiner.identity is None:
            return self.start
        return tirx.const(self.combiner.identity, self.dtype)

    def update(self, own: Expr, operand: Expr) -> Expr:
        """Value that a stage of this reduction stores: its own element combined with an operand."""
        return (self.combiner.stored or self.combiner.combine)(own, operand)

    def joins_start(self) -> bool:
        """True if the start value must still be combined after accumulating from `identity`."""
        is_number = isinstance(self.start, tirx.IntImm | tirx.FloatImm)
        return self.combiner.identity not in (None, float(self.start.value) if is_number else None)


def in_two_stages(
    stage: Stage,
    reduction: Reduction,
    name: str,
    axes: Sequence[Axis],
    value: Expr,
    join: Sequence[Axis],
    read_at: Mapping[Var, Expr],
) -> tuple[Stage, Stage]:
    """A reduction as partial results, one for each point of the spatial axes among `axes`, and their join over the
    axes `join`, which reads them with the variables in `read_at` replaced."""
    spatial = [axis for axis in axes if not axis.reduce]
    shape = [expression(axis.extent, str(axis.var.ty)) for axis in spatial]
    partial = tirx.decl_buffer(shape, reduction.dtype, name, layout=None)
    position = [axis.var for axis in spatial]
    store = reduction.store
    own = tirx.BufferLoad(store.buffer, list(store.indices))
    read = tirx.BufferLoad(partial, [substitute(each, read_at) for each in position])
    first = Stage(
        f"{stage.name}_{name}",
        tuple(axes),
        tirx.BufferStore(partial, reduction.update(tirx.BufferLoad(partial, position), value), position),
        tirx.BufferStore(partial, reduction.identity(), position),
    )
    joined = tirx.BufferStore(store.buffer, reduction.update(own, read), list(store.indices))
    return first, Stage(stage.name, tuple(join), joined, stage.init, stage.annotations)


def reduction_of(stage: Stage) -> Reduction | None:
    """The reduction that a stage performs, or None if it has another form."""
    store = stage.store
    if store is None or not stage.reduction or not isinstance(stage.init, tirx.BufferStore):
        return None
    if not stage.init.buffer.same_as(store.buffer) or not _same_position(stage.init.indices, store.indices):
        return None
    lets: list[tuple[Var, Expr]] = []
    value = store.value
    while isinstance(value, tirx.Let):
        lets.append((value.var, value.value))
        value = value.body
    match = _extremum(value, store) or _combination(value, store)
    if match is None:
        return None
    combiner, operand = match
    for var, bound in reversed(lets):
        operand = tirx.Let(var, bound, operand)
    if any(load.source.same_as(store.buffer) for load in buffers_loaded(operand)):
        return None
    return Reduction(combiner, operand, stage.init.value, store)


def _combination(value: Expr, store: Stmt) -> tuple[Combiner, Expr] | None:
    """Combiner of the stage's own element with an operand, and that operand."""
    combiner = COMBINERS.get(type(value))
    if combiner is None:
        return None
    pairs = (value.a, value.b), (value.b, value.a)
    return next(((combiner, operand) for own, operand in pairs if _is_own_load(own, store)), None)


def _extremum(value: Expr, store: Stmt) -> tuple[Combiner, Expr] | None:
    """The combination for the maximum or minimum, or NaN if there is one, as the importer writes it."""
    if not isinstance(value, tirx.Select) or not isinstance(value.false_value, tirx.Select):
        return None
    total, operand, last = value.true_value, value.false_value.true_value, value.false_value.false_value
    if not isinstance(last, tirx.Max | tirx.Min) or not _is_own_load(total, store):
        return None
    kind = type(last)

    def stored(total: Expr, operand: Expr) -> Expr:
        read = tirx.Select(tirx.isnan(operand), operand, kind(total, operand))
        return tirx.Select(tirx.isnan(total), total, read)

    if not structural_equal(value, stored(total, operand)):
        return None

    def combine(a: Expr, b: Expr) -> Expr:
        # A comparison with NaN selects the second operand, the total: only the new value must be checked, ahead of
        # time.
        return tirx.Select(tirx.isnan(b), b, tirx.Select(b > a if kind is tirx.Max else b < a, b, a))

    return Combiner("maximum" if kind is tirx.Max else "minimum", combine, None, stored), operand


def _is_own_load(expr: Expr, store: Stmt) -> bool:
    return (
        isinstance(expr, tvm.ir.TensorLoad)
        and bool(expr.source.same_as(store.buffer))
        and _same_position(expr.indices, store.indices)
    )


def _same_position(left: Expr, right: Expr) -> bool:
    return len(left) == len(right) and bool(structural_equal(list(left), list(right)))
