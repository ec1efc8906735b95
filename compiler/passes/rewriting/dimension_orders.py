"""Tensors as transpositions of other tensors, for kernels that can read dimensions in any order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compiler.passes.rewriting.graph import Expr, operator_name
from compiler.passes.rewriting.matching import is_one, rank_of, same_shape, shape_of, without_ones
from schedules.ir.tvm_types import Index

Definition = Callable[[Expr], Expr]


@dataclass(frozen=True)
class Ordered:
    """`permute_dims(reshape(source, shape), order)`; the reshape only adds and removes dimensions of 1."""

    source: Expr
    shape: tuple[Index, ...]
    order: tuple[int, ...]

    @property
    def is_plain(self) -> bool:
        """True if nothing is transposed."""
        return self.order == tuple(range(len(self.order)))


def ordered(expr: Expr, definition: Definition) -> Ordered:
    """Express a tensor of known rank as a transposition of the tensor before its transposes."""
    shape = shape_of(expr)
    assert shape is not None
    value = definition(expr)
    plain = Ordered(expr, tuple(shape), tuple(range(len(shape))))
    axes = axes_of(value) if operator_name(value) == "relax.permute_dims" else None
    if axes is not None and shape_of(value.args[0]) is not None:
        inner = ordered(value.args[0], definition)
        return Ordered(inner.source, inner.shape, tuple(inner.order[axis] for axis in axes))
    if operator_name(value) == "relax.reshape" and operator_name(definition(value.args[0])) == "relax.permute_dims":
        before = shape_of(value.args[0])
        if before is not None and same_shape(without_ones(before), without_ones(shape)):
            return _with_units(ordered(value.args[0], definition), shape)
    return plain


def axes_of(call: Expr) -> list[int] | None:
    """Return the permutation of a permute_dims call: axis i of the result is axis `axes[i]` of the operand."""
    rank = rank_of(call.args[0])
    if rank is None:
        return None
    axes = call.attrs.axes
    return list(reversed(range(rank))) if axes is None else [int(axis) % rank for axis in axes]


def order_of_result(axes: Sequence[int], shape: Sequence[Index], between: Sequence[Index]) -> tuple[int, ...]:
    """which only adds and removes dimensions of 1; these come first."""
    own = [axis for axis, size in enumerate(shape) if not is_one(size)]
    theirs = [axis for axis, size in enumerate(between) if not is_one(size)]
    moved = [own[theirs.index(axis)] for axis in axes if axis in theirs]
    return (*(axis for axis, size in enumerate(shape) if is_one(size)), *moved)


def differ_by_ones(left: Sequence[Index], right: Sequence[Index]) -> bool:
    """True if two shapes are equal except for dimensions of 1."""
    return same_shape(without_ones(left), without_ones(right))


def _with_units(inner: Ordered, shape: Sequence[Index]) -> Ordered:
    """Return the same elements in a shape with other dimensions of 1, which come first in the source."""
    long = [axis for axis, size in enumerate(inner.shape) if not is_one(size)]
    order = [long.index(axis) for axis in inner.order if axis in long]
    units = len(shape) - len(long)
    source_shape = (*[1] * units, *(inner.shape[axis] for axis in long))
    ones, rest = iter(range(units)), iter(order)
    axes = tuple(next(ones) if is_one(size) else units + next(rest) for size in shape)
    return Ordered(inner.source, source_shape, axes)
