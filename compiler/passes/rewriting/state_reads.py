"""Reads of a state by attention: its rows, behind the transposes, reshapes, repetitions and scales in between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tvm import relax, tirx
from tvm.ir import GenericConst, GlobalVar, IRModule

from compiler.passes.rewriting.dimension_orders import axes_of
from compiler.passes.rewriting.graph import operator_name
from compiler.passes.rewriting.matching import array_of, dtype_of, is_one, plain, same_size, shape_of
from schedules.annotations import UPDATES
from schedules.ir.tvm_types import Call, Expr, Index, Var

Axis = Literal["batch", "heads", "rows", "size", "repeated"]
_AXES: tuple[Axis, ...] = ("batch", "heads", "rows", "size")
_NARROW = ("float16", "bfloat16")
_SLICE = 3  # operands of a slice: axes, first and last elements
_ROWS = 2  # the axis of the rows of a state (batch, heads, rows, size)


@dataclass(frozen=True)
class StateRead:
    """Part of a state (batch, heads, rows, size) that an expression holds.

    Attributes:
        state: the state after its rows were written.
        rows: how many of its first rows; None for all.
        factor: what each element is multiplied by.
        scales: float32 (batch, heads, rows), of a state of int8; None else.
        axes: which axes of the state each axis of the expression is made of, those of size 1 left out.
        path: the variables between the state and the expression.
    """

    state: Expr
    rows: Expr | None
    factor: float
    scales: Expr | None
    axes: tuple[tuple[Axis, ...], ...]
    path: tuple[Var, ...] = ()

    def is_ordered(self, *order: Axis) -> bool:
        """True if its axes are those of the state in this order, heads perhaps repeated one by one."""
        wanted = [[axis, "repeated"] if axis == "heads" else [axis] for axis in order]
        return len(self.axes) == len(wanted) and all(
            [axis for axis in names if axis in found] == list(found)
            for found, names in zip(self.axes, wanted, strict=True)
        )


@dataclass
class _Path:
    """Operations between a state and what is read of it, the last first."""

    shapes: list[Call] = field(default_factory=list)
    factor: float = 1.0
    scales: Expr | None = None


class StateReader:
    """Finds what expressions of a function read of states, by the definitions of its variables."""

    def __init__(self, mod: IRModule, definitions: Mapping[Var, Expr]) -> None:
        self._mod, self._definitions = mod, definitions

    def read(self, expr: Expr) -> StateRead | None:
        """Part that an expression holds of a state that this run wrote rows to; None where it holds something else."""
        path = _Path()
        variables = []
        while not self._is_state(expr):
            variables.append(expr)
            value = self._definitions.get(expr)
            before = None if value is None else self._before(value, path)
            if before is None:
                return None
            expr = before
        rows, shapes = None, list(reversed(path.shapes))
        if shapes and operator_name(shapes[0]) == "relax.strided_slice":
            rows = shapes.pop(0).ty.shape.values[_ROWS]
        sizes = shape_of(expr)
        if sizes is None or len(sizes) != len(_AXES):
            return None
        if rows is not None:
            sizes[_ROWS] = plain(rows)
        axes = _axes(shapes, sizes)
        return None if axes is None else StateRead(expr, rows, path.factor, path.scales, axes, tuple(variables))

    def _is_state(self, expr: Expr) -> bool:
        """True if it is the result of a kernel that writes rows."""
        call = self._definitions.get(expr)
        if call is None or operator_name(call) != "relax.call_tir" or not isinstance(call.args[0], GlobalVar):
            return False
        return UPDATES in (self._mod[call.args[0]].attrs or {})

    def _before(self, value: Expr, path: _Path) -> Expr | None:
        """The operand that a value is made of, with what it does to it added to the path."""
        name = operator_name(value)
        if isinstance(value, relax.Var):
            return value
        if name in ("relax.reshape", "relax.permute_dims", "relax.broadcast_to", "relax.expand_dims"):
            path.shapes.append(value)
            return value.args[0]
        if name == "relax.strided_slice" and self._is_state(value.args[0]) and _is_first_rows(value):
            path.shapes.append(value)
            return value.args[0]
        if name == "relax.astype" and dtype_of(value) == "float32" and dtype_of(value.args[0]) in _NARROW:
            return value.args[0]
        if name == "relax.multiply":
            return self._before_product(value, path)
        return None

    def _before_product(self, value: Call, path: _Path) -> Expr | None:
        for inner, operand in (value.args[:], reversed(value.args[:])):
            number = _number(operand)
            if number is not None:
                path.factor *= number
                return inner
        return self._bytes(value, path)

    def _bytes(self, value: Call, path: _Path) -> Expr | None:
        """The state of int8 whose rows are multiplied by their scales."""
        cast, scales = (self._definitions.get(each) for each in value.args)
        if cast is None or scales is None:
            return None
        if operator_name(cast) != "relax.astype" or operator_name(scales) != "relax.expand_dims":
            return None
        if not self._is_state(cast.args[0]) or not self._is_state(scales.args[0]) or path.scales is not None:
            return None
        if dtype_of(cast.args[0]) != "int8":
            return None
        path.scales = scales.args[0]
        return cast.args[0]


def _is_first_rows(call: Call) -> bool:
    """True if a slice of a state takes its first rows."""
    given = [_elements(each) for each in call.args[1:]]
    if len(given) < _SLICE or any(each is None for each in given):
        return False
    axes, begin, _, *strides = (each for each in given if each is not None)
    by_one = all(_is(step, 1) for each in strides for step in each)
    return len(axes) == 1 and _is(axes[0], _ROWS) and _is(begin[0], 0) and by_one


def _elements(expr: Expr) -> list[Expr] | None:
    return list(expr.fields) if isinstance(expr, relax.Tuple) else None


def _is(expr: Expr, number: int) -> bool:
    value = getattr(expr, "value", expr)
    return isinstance(value, int | tirx.IntImm) and int(value) == number


def _number(expr: Expr) -> float | None:
    """The value of a float32 constant of one element."""
    if not isinstance(expr, GenericConst) or dtype_of(expr) != "float32":
        return None
    array = array_of(expr)
    return float(array.reshape(())) if array.size == 1 else None


Atoms = list[tuple[Axis, "Index"]]


def _axes(shapes: list[Call], sizes: list[Index]) -> tuple[tuple[Axis, ...], ...] | None:
    """Map each axis of the calls' result to the state axes it came from."""
    groups: list[Atoms] = [[] if is_one(size) else [(axis, size)] for axis, size in zip(_AXES, sizes, strict=True)]
    for call in shapes:
        name, shape = operator_name(call), shape_of(call)
        after: list[Atoms] | None
        if name == "relax.permute_dims":
            axes = axes_of(call)
            after = None if axes is None else [groups[axis] for axis in axes]
        elif shape is None:
            after = None
        elif name == "relax.broadcast_to":
            after = _repeated(groups, shape)
        else:
            after = _regrouped([atom for group in groups for atom in group], shape)
        if after is None:
            return None
        groups = after
    return tuple(tuple(axis for axis, _ in group) for group in groups)


def _repeated(groups: list[Atoms], shape: list[Index]) -> list[Atoms] | None:
    if len(groups) != len(shape):
        return None
    return [group or ([] if is_one(size) else [("repeated", size)]) for group, size in zip(groups, shape, strict=True)]


def _regrouped(atoms: Atoms, shape: list[Index]) -> list[Atoms] | None:
    """The atoms on axes of other sizes; None where an axis is not made of whole atoms.

    One axis may have a size that is not seen to be that of its atoms: the rest is its own.
    """
    front, left = _taken(atoms, shape)
    if len(front) == len(shape):
        return None if left else front
    back, left = _taken(left[::-1], shape[: len(front) : -1])
    if len(front) + 1 + len(back) < len(shape):
        return None
    return [*front, left[::-1], *(group[::-1] for group in reversed(back))]


def _taken(atoms: Atoms, shape: list[Index]) -> tuple[list[Atoms], Atoms]:
    """The first axes as far as each is made of the next atoms, and the atoms that are left."""
    groups: list[Atoms] = []
    left = list(atoms)
    for size in shape:
        product: Index = 1
        count = 0
        while not same_size(product, size) and count < len(left):
            product = product * left[count][1]
            count += 1
        if not same_size(product, size):
            break
        groups.append(left[:count])
        left = left[count:]
    return groups, left
