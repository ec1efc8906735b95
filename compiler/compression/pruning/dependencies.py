"""Dependencies between positions of tensors that must be removed together, so that the remaining network is still the
same network.

Every axis of every constant and variable gets a node for each position; the rules of `axes/` join nodes that an
operator ties together. Axes without a rule cannot be pruned, and neither can inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from tvm import relax
from tvm.ir import GenericConst, IRModule

from compiler.compression.pruning.axes import (
    FIXED,
    Axes,
    Axis,
    Labels,
    Producer,
    Trace,
    Value,
    fix_value,
    is_axes,
    rule_for,
)
from compiler.passes.rewriting.graph import Expr, Var, bindings_of, operator_name
from compiler.passes.rewriting.matching import Array, array_of, rank_of, shape_of


@dataclass(frozen=True)
class Cell:
    """Channels produced by the same weights; each is a unit that can be removed separately.

    Attributes:
        name: name of the first of those weights, for reports.
        units: the number of each unit, as in `Dependencies.units`.
        width: number of positions of its weights' axes per unit.
        kind: "channels" or "heads".
    """

    name: str
    units: Labels
    width: int
    kind: str


@dataclass(frozen=True)
class Dependencies:
    """Removable parts of a module.

    Attributes:
        values: the axes of each variable of `main`.
        constants: each constant with its axes, once, in the order of the graph.
        units: the unit of each node; 0 if it cannot be pruned.
        producers: the constant weights of matmuls and convolutions, and their axis that indexes the results, in the
            graph's order.
        cells: the units, grouped by the weights that produce them.
        names: names of weights, for reports.
    """

    mod: IRModule
    values: dict[Var, Value]
    constants: dict[GenericConst, Axes]
    units: Labels
    producers: tuple[Producer, ...]
    cells: tuple[Cell, ...]
    names: Mapping[GenericConst, str]

    def unit_axis(self, axis: Axis) -> Axis:
        """The units of an axis; None if nothing can be removed."""
        return None if axis is None else self.units[axis]

    def units_of(self, weights: Iterable[GenericConst]) -> set[int]:
        """The units along any axis of these constants."""
        axes = [self.unit_axis(axis) for weight in weights for axis in self.constants[weight]]
        return {int(unit) for units in axes if units is not None for unit in units} - {0}

    def totals(self, saliency: dict[GenericConst, Array]) -> Array:
        """For each unit, the sum over all elements of all constants that are removed with it (float64)."""
        result = np.zeros(int(self.units.max(initial=0)) + 1)
        for constant, values in saliency.items():
            for index, axis in enumerate(self.constants[constant]):
                units = self.unit_axis(axis)
                if units is not None:
                    others = tuple(each for each in range(values.ndim) if each != index)
                    np.add.at(result, units, values.sum(axis=others, dtype=np.float64))
        return result


def find_dependencies(mod: IRModule, names: Mapping[GenericConst, str] = MappingProxyType({})) -> Dependencies:
    """Analyze the outermost code of `main`; `names` are the names of weights for reports."""
    walk = _Walk(Trace())
    main = mod["main"]
    for parameter in main.params:
        walk.values[parameter] = _fixed(parameter)
    for block in main.body.blocks:
        for binding in block.bindings:
            walk.bind(binding)
    fix_value(walk.trace, walk.value(main.body.body))
    trace = walk.trace
    roots = trace.nodes.roots()
    producers = [each for each in trace.producers if each.labels is not None]
    used = np.unique(np.concatenate([roots[each.labels] for each in producers])) if producers else np.zeros(0, np.int64)
    used = used[used != FIXED]
    numbers = np.zeros(len(roots), np.int64)
    numbers[used] = np.arange(1, len(used) + 1)
    units = numbers[roots]
    heads = {int(unit) for axis in trace.batched if axis is not None for unit in units[axis]}
    cells = tuple(_cells(producers, units, heads, names))
    return Dependencies(mod, walk.values, walk.constants, units, tuple(trace.producers), cells, names)


class _Walk:
    """Computes the values of variables and constants in order."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.values: dict[Var, Value] = {}
        self.constants: dict[GenericConst, Axes] = {}

    def value(self, expr: Expr) -> Value:
        """Axes of a tensor, a list of values for a tuple, None for anything else."""
        if isinstance(expr, relax.Var):
            return self.values.get(expr)
        if isinstance(expr, GenericConst):
            if expr not in self.constants:
                shape = array_of(expr).shape
                self.constants[expr] = [self.trace.nodes.fresh(size) if size > 1 else None for size in shape]
            return self.constants[expr]
        if isinstance(expr, relax.Tuple):
            return [self.value(field) for field in expr.fields]
        return None

    def bind(self, binding: object) -> None:
        value = binding.value  # type: ignore[attr-defined]
        self.values[binding.var] = self.result(value)  # type: ignore[attr-defined]
        if operator_name(value) == "relax.permute_dims" and isinstance(value.args[0], GenericConst):
            self.trace.transposed[binding.var] = value.args[0], self.constants[value.args[0]]  # type: ignore[attr-defined]

    def result(self, value: Expr) -> Value:
        if isinstance(value, relax.Var | GenericConst | relax.Tuple):
            return self.value(value)
        if isinstance(value, relax.TupleGetItem):
            whole = self.value(value.tuple_value)
            return whole[int(value.index)] if isinstance(whole, list) else _fixed(value)
        if isinstance(value, relax.Call):
            return self.call(value)
        for inner in bindings_of(value):  # branches: values they read cannot be pruned
            for read in _read(inner.value):
                fix_value(self.trace, self.value(read))
        for read in _read(value):
            fix_value(self.trace, self.value(read))
        return _fixed(value)

    def call(self, call: Expr) -> Value:
        name = operator_name(call) or ""
        if name == "relax.call_tir":
            arguments = list(call.args[1].fields) if isinstance(call.args[1], relax.Tuple) else [call.args[1]]
            if is_clip(call) and isinstance(shape_of(call), list):
                return self.value(arguments[0])
        else:
            arguments = list(call.args)
        values = [self.value(argument) for argument in arguments]
        rule = rule_for(name)
        if rule is None or (values and values[0] is None):
            fix_value(self.trace, values)
            return _fixed(call)
        return rule(self.trace, call, values)


def is_clip(call: Expr) -> bool:
    """True for a NaN-propagating clamp from the ONNX importer: a kernel of one tensor and one or two numbers."""
    if operator_name(call) != "relax.call_tir" or call.args[0].name_hint.rstrip("0123456789") != "clip":
        return False
    return isinstance(call.args[1], relax.Tuple) and all(rank_of(each) == 0 for each in call.args[1].fields[1:])


def _fixed(expr: Expr) -> Value:
    """Value of a tensor with no prunable axis, or of a tuple of such tensors."""
    return _fixed_type(expr.ty)


def _fixed_type(ty: object) -> Value:
    if isinstance(ty, relax.TupleType):
        return [_fixed_type(field) for field in ty.fields]
    if isinstance(ty, relax.TensorType) and ty.ndim >= 0:
        return [None] * int(ty.ndim)
    return None


def _read(expr: Expr) -> list[Expr]:
    """Variables and constants anywhere in an expression."""
    operands: list[Expr] = []
    relax.analysis.post_order_visit(
        expr, lambda each: operands.append(each) if isinstance(each, relax.Var | GenericConst) else None
    )
    return operands


def _cells(producers: list[Producer], units: Labels, heads: set[int], names: Mapping[GenericConst, str]) -> list[Cell]:
    """Group units by their producers, in the order of the graph."""
    given: dict[int, list[int]] = {}
    widths: dict[int, int] = {}
    for index, producer in enumerate(producers):
        counts = np.bincount(units[producer.labels])
        for unit in np.flatnonzero(counts).tolist():
            given.setdefault(unit, []).append(index)
            widths.setdefault(unit, int(counts[unit]))
    given.pop(0, None)
    cells: dict[tuple[int, ...], list[int]] = {}
    for unit, indices in given.items():
        cells.setdefault(tuple(indices), []).append(unit)
    return [
        Cell(
            names.get(producers[indices[0]].constant) or _label(producers[indices[0]], indices[0]),
            np.array(members, np.int64),
            widths[members[0]],
            "heads" if heads.issuperset(members) else "channels",
        )
        for indices, members in sorted(cells.items())
    ]


def _label(producer: Producer, number: int) -> str:
    sizes = "x".join(map(str, array_of(producer.constant).shape))
    return f"weight_{number} {sizes}"


__all__ = ["Cell", "Dependencies", "find_dependencies", "is_axes"]
