"""Weights of recurrent operators in the order in which their kernels read them.

Hidden units are taken in blocks of `lanes`, the last one filled with zeros; in a block, the gates that are computed
together lie side by side, and the elements of one block follow each other in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from tvm import relax
from tvm.relax import op as R

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.precision import cast
from compiler.frontends.onnx.values import Constant, Runtime
from schedules.ir.tvm_types import Expr
from schedules.recurrence.description import KINDS, ActivationChoice

# The activation functions that a recurrent node asks for.


def activations_of(
    context: NodeContext, defaults: tuple[str, ...], directions: int
) -> tuple[tuple[ActivationChoice, ...], ...]:
    """The activation functions of each direction.

    activation_alpha and activation_beta hold values for the functions that have such a parameter, in their order.
    """
    names: list[str] = context.attribute("activations", list(defaults) * directions)
    if names == list(defaults) * 2:  # ONNX's default of RNN, whatever the direction, which exporters write out
        names = list(defaults) * directions
    if len(names) != len(defaults) * directions:
        context.invalid(f"{len(defaults) * directions} activations are needed, not {len(names)}")
    alphas: list[float] = list(context.attribute("activation_alpha", []))
    betas: list[float] = list(context.attribute("activation_beta", []))
    chosen = []
    for name in names:
        kind = KINDS.get(name.lower())
        if kind is None:
            context.refuse(f"the activation {name!r} is unknown")
        chosen.append(ActivationChoice(name.lower(), _next(alphas, kind.alpha), _next(betas, kind.beta)))
    count = len(defaults)
    return tuple(tuple(chosen[direction * count : (direction + 1) * count]) for direction in range(directions))


def _next(values: list[float], default: float | None) -> float:
    if default is None:
        return 0.0
    return float(values.pop(0)) if values else default


# An array that is known when compiling, or a tensor.
Operand: TypeAlias = "np.ndarray | Expr"


class Arrays:
    """The same rearrangements of arrays known when compiling, and of tensors that are not."""

    def __init__(self, context: NodeContext, dtype: str) -> None:
        self.context = context
        self.dtype = dtype

    def input(self, index: int) -> Operand:
        """Input `index` in the type to compute in: an array if it is constant, else a tensor."""
        value = self.context.tensor(index)
        if isinstance(value, Constant):
            return value.array.astype(dtypes.numpy_dtype(self.dtype), copy=False)
        return cast(self.context, self.context.input(index), self.dtype)

    def raw(self, index: int) -> np.ndarray:
        """Input `index` in its own type: an array if it is constant, else a tensor."""
        value = self.context.tensor(index)
        return value.array if isinstance(value, Constant) else self.context.input(index)

    def cast(self, value: Operand, dtype: str) -> Operand:
        if isinstance(value, np.ndarray):
            return value.astype(dtype)
        return cast(self.context, value, dtype)

    def sum_last(self, value: Operand, dtype: str) -> Operand:
        """The sums along the last axis, in a wider type."""
        if isinstance(value, np.ndarray):
            return value.sum(-1, dtype=dtype)
        return self.context.emit(R.sum(self.cast(value, dtype), axis=[-1]))

    def broadcast(self, value: Operand, shape: Sequence[int]) -> Operand:
        if isinstance(value, np.ndarray):
            return np.broadcast_to(value, shape)
        return self.context.emit(R.broadcast_to(value, list(shape)))

    def reshape(self, value: Operand, shape: Sequence[int]) -> Operand:
        if isinstance(value, np.ndarray):
            return value.reshape(shape)
        return self.context.emit(R.reshape(value, list(shape)))

    def permute(self, value: Operand, axes: Sequence[int]) -> Operand:
        if isinstance(value, np.ndarray):
            return value.transpose(axes)
        return self.context.emit(R.permute_dims(value, list(axes)))

    def pad_last(self, value: Operand, count: int) -> Operand:
        """`count` zeros after the last axis."""
        if count == 0:
            return value
        if isinstance(value, np.ndarray):
            return np.pad(value, [(0, 0)] * (value.ndim - 1) + [(0, count)])
        widths = [0] * (2 * int(value.ty.ndim))
        widths[-1] = count
        return self.context.emit(R.nn.pad(value, widths))

    def slice(self, value: Operand, axis: int, begin: int, end: int) -> Operand:
        """The elements from `begin` to before `end` along an axis."""
        if isinstance(value, np.ndarray):
            return value[(slice(None),) * axis + (slice(begin, end),)]
        return self.context.emit(R.strided_slice(value, [axis], [begin], [end]))

    def add(self, left: Operand, right: Operand) -> Operand:
        if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
            return left + right
        return self.context.emit(R.add(self.tensor(left), self.tensor(right)))

    def concatenate(self, values: Sequence[Operand], axis: int) -> Operand:
        if all(isinstance(value, np.ndarray) for value in values):
            return np.concatenate(list(values), axis)
        return self.context.emit(R.concat([self.tensor(value) for value in values], axis))

    def zeros(self, shape: Sequence[int]) -> np.ndarray:
        return np.zeros(shape, dtypes.numpy_dtype(self.dtype))

    def tensor(self, value: Operand) -> relax.Expr:
        """Convert to a Relax expression."""
        return Constant(np.ascontiguousarray(value)).expr() if isinstance(value, np.ndarray) else value

    def value(self, value: Operand) -> Constant | Runtime:
        """Convert to an operand of the node."""
        if isinstance(value, np.ndarray):
            return Constant(np.ascontiguousarray(value))
        return Runtime(value, str(value.ty.dtype), self.context.sources())


class Packing:
    """Layout of packed weights: blocks of hidden units, gates side by side."""

    def __init__(self, arrays: Arrays, directions: int, gates: int, hidden: int, lanes: int) -> None:
        self.arrays = arrays
        self.directions, self.gates, self.hidden, self.lanes = directions, gates, hidden, lanes
        self.blocks = -(-hidden // lanes)

    @property
    def padding(self) -> int:
        return self.blocks * self.lanes - self.hidden

    def matrix(self, weight: Operand, inputs: int, gates: Sequence[int]) -> Operand:
        """(directions, all gates * hidden, inputs) to (directions, blocks, inputs, gates, lanes); gates in a row."""
        arrays, chosen = self.arrays, len(gates)
        value = arrays.reshape(weight, (self.directions, self.gates, self.hidden, inputs))
        if chosen != self.gates:
            value = arrays.slice(value, 1, gates[0], gates[-1] + 1)
        value = arrays.pad_last(arrays.permute(value, (0, 3, 1, 2)), self.padding)
        value = arrays.reshape(value, (self.directions, inputs, chosen, self.blocks, self.lanes))
        return arrays.permute(value, (0, 3, 1, 2, 4))

    def vectors(self, values: Operand, count: int) -> Operand:
        """(directions, count * hidden) to (directions, blocks, count, lanes)."""
        arrays = self.arrays
        value = arrays.reshape(values, (self.directions, count, self.hidden))
        value = arrays.reshape(arrays.pad_last(value, self.padding), (self.directions, count, self.blocks, self.lanes))
        return arrays.permute(value, (0, 2, 1, 3))

    def projection(self, weight: Operand, inputs: int) -> Operand:
        """(directions, gates * hidden, inputs) to (inputs, directions * blocks * gates * lanes), for one product."""
        arrays = self.arrays
        value = arrays.permute(self.matrix(weight, inputs, range(self.gates)), (2, 0, 1, 3, 4))
        return arrays.reshape(value, (inputs, self.directions * self.blocks * self.gates * self.lanes))
