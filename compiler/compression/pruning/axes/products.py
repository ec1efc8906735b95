"""Convolutions and matrix products."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm.ir import GenericConst

from compiler.compression.pruning.axes.elementwise import broadcast
from compiler.compression.pruning.axes.registry import Axes, Producer, Trace, Value, axis_rule, fix_value
from compiler.compression.pruning.nodes import Axis
from compiler.passes.rewriting.graph import Call, Expr
from compiler.passes.rewriting.matching import shape_of


@axis_rule("relax.matmul")
def matmul(trace: Trace, call: Call, values: Sequence[Value]) -> Value:
    """(..., m, k) by (..., k, n); what two activations are summed over must stay, as their product is not linear."""
    left, right = list(values[0]), list(values[1])
    shapes = [list(shape_of(argument) or []) for argument in call.args[:2]]
    if min(len(left), len(right)) < 2 or [len(left), len(right)] != [len(shape) for shape in shapes]:
        fix_value(trace, [left, right])
        return [None] * int(call.ty.ndim)
    sources = [_constant(trace, argument, value) for argument, value in zip(call.args, (left, right), strict=True)]
    constants = [source is not None for source in sources]
    summed = trace.nodes.unite(left[-1], right[-2])
    if not any(constants):
        trace.nodes.fix(summed)
    for source, labels in ((sources[1], right[-1]), (sources[0], left[-2])):
        if source is not None:
            axis = next((index for index, each in enumerate(source[1]) if each is labels), 0)
            trace.producers.append(Producer(source[0], axis, labels))
            break
    batch = (
        broadcast(trace, [shape[:-2] for shape in shapes], [left[:-2], right[:-2]]) if max(map(len, shapes)) > 2 else []
    )
    if not any(constants):
        trace.batched += [axis for axis in batch if axis is not None]
    return [*batch, left[-2], right[-1]]


def _constant(trace: Trace, argument: Expr, value: Axes) -> tuple[Expr, Axes] | None:
    """The constant that an operand is, transposed or not, with the axes of the constant."""
    return (argument, value) if isinstance(argument, GenericConst) else trace.transposed.get(argument)


@axis_rule(*(f"relax.nn.conv{rank}d" for rank in (1, 2, 3)))
def convolution(trace: Trace, call: Call, values: Sequence[Value]) -> Value:
    """Grouped: a group goes with all that it reads and gives."""
    data, weight = values[0], values[1]
    layouts = str(call.attrs.data_layout), str(call.attrs.kernel_layout)
    if not (layouts[0].startswith("NC") and layouts[1].startswith("OI")):
        fix_value(trace, [data, weight])
        return [None] * int(call.ty.ndim)
    for axis in (*data[2:], *weight[2:]):
        trace.nodes.fix(axis)
    groups = int(call.attrs.groups)
    if groups == 1:
        trace.nodes.unite(data[1], weight[1])
    else:
        trace.nodes.fix(weight[1])
        _tie_groups(trace, data[1], weight[0], groups)
    if isinstance(call.args[1], GenericConst):
        trace.producers.append(Producer(call.args[1], 0, weight[0]))
    spatial: Axes = [None] * (int(call.ty.ndim) - 2)
    return [data[0], weight[0], *spatial]


def _tie_groups(trace: Trace, read: Axis, given: Axis, groups: int) -> None:
    if read is None or given is None:
        trace.nodes.unite(read, given)
        return
    first = given.reshape(groups, -1)[:, 0]
    trace.nodes.unite(given, np.repeat(first, len(given) // groups))
    trace.nodes.unite(read, np.repeat(first, len(read) // groups))


@axis_rule(*(f"relax.nn.conv{rank}d_transpose" for rank in (1, 2, 3)))
def transposed_convolution(trace: Trace, call: Call, values: Sequence[Value]) -> Value:
    data, weight = values[0], values[1]
    spatial: Axes = [None] * (int(call.ty.ndim) - 2)
    layouts = str(call.attrs.data_layout), str(call.attrs.kernel_layout)
    if int(call.attrs.groups) > 1 or not (layouts[0].startswith("NC") and layouts[1].startswith("IO")):
        fix_value(trace, [data, weight])
        return [None, None, *spatial]
    for axis in (*data[2:], *weight[2:]):
        trace.nodes.fix(axis)
    trace.nodes.unite(data[1], weight[0])
    if isinstance(call.args[1], GenericConst):
        trace.producers.append(Producer(call.args[1], 1, weight[1]))
    return [data[0], weight[1], *spatial]
