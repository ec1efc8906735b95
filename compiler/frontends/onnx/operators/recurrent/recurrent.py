"""RNN, GRU and LSTM: the input's projection as one matmul, and one kernel that runs over time.

Weights are stored in the order in which kernels read them: hidden units in blocks of `lanes`, the last one zero-padded;
within a block, gates that are computed together are adjacent, and the elements of a block are contiguous.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from tvm import relax, te
from tvm.relax import op as R

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.bounds import require, require_shape, require_values
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.precision import cast, compute_dtype
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.symbolic import Dim
from compiler.frontends.onnx.values import Constant, Runtime, tensor_shape
from compiler.reports.formatting import plural
from schedules.instructions.finish import finish
from schedules.ir.expression import constant_int
from schedules.ir.tvm_types import Expr, Stmt, Tensor
from schedules.machine import Machine
from schedules.recurrence.description import ATTRIBUTE, HINTS, KINDS, ActivationChoice, Cell, CellKind, Recurrence
from schedules.recurrence.writers import SERIAL, by_samples, lockstep

_DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
# Work (multiplications of all steps of one sample) above which samples are distributed over cores.
_PARALLEL_WORK = 2**21


@dataclass(frozen=True)
class _Inputs:
    """Positions of a node's inputs; X, W, R, B and sequence_lens are always 0 to 4."""

    initial: tuple[tuple[str, int], ...]
    peepholes: int | None = None


@converter("RNN")
def rnn(context: NodeContext) -> list[relax.Expr]:
    """Plain recurrent layer."""
    return _recurrent(context, CellKind("RNN"), _Inputs((("h", 5),)))


@converter("GRU")
def gru(context: NodeContext) -> list[relax.Expr]:
    """Gated recurrent units; before opset 3 always with the reset applied before the matmul."""
    linear = bool(context.attribute("linear_before_reset", 0)) and context.opset >= 3
    return _recurrent(context, CellKind("GRU", linear_before_reset=linear), _Inputs((("h", 5),)))


@converter("LSTM")
def lstm(context: NodeContext) -> list[relax.Expr]:
    """Long short-term memory."""
    has_peepholes = context.has_input(7)
    forget = bool(context.attribute("input_forget", 0))
    kind = CellKind("LSTM", input_forget=forget, has_peepholes=has_peepholes)
    return _recurrent(context, kind, _Inputs((("h", 5), ("c", 6)), 7 if has_peepholes else None))


def _recurrent(context: NodeContext, kind: CellKind, inputs: _Inputs) -> list[relax.Expr]:
    cell = kind.cell()
    backward = direction_flags(context)
    hidden, features = _checked_sizes(context, cell, len(backward))
    _check_operands(context, cell, inputs, len(backward), hidden)
    dtype = compute_dtype(context.dtype(0))
    batch_first = bool(context.attribute("layout", 0))
    data = cast(context, _transposed(context, context.input(0), batch_first, (1, 0, 2)), dtype)
    steps = tensor_shape(data)[0]
    lanes = _lanes(cell, hidden)
    recurrence = Recurrence(
        kind=kind,
        activations=activations_of(context, cell.activations, len(backward)),
        clip=float(context.attribute("clip", 0.0)) if context.has_attribute("clip") else None,
        backward=backward,
        hidden=hidden,
        inputs=features,
        lanes=lanes,
        dtype=dtype,
        projects_input=isinstance(steps, int) and steps == 1,
    )
    operands = _operands(context, recurrence, data, inputs, batch_first)
    return layer_results(context, run_recurrence(context, recurrence, operands), batch_first)


def direction_flags(context: NodeContext) -> tuple[bool, ...]:
    """Return, for each direction of the node, True if it runs backwards in time."""
    return _DIRECTIONS[context.choice("direction", "forward", _DIRECTIONS)]


def _checked_sizes(context: NodeContext, cell: Cell, directions: int) -> tuple[int, int]:
    """Return (hidden units, features); InvalidModelError if the weights do not fit."""
    if [context.rank(index) for index in range(3)] != [3, 3, 3]:
        context.invalid("X, W and R must have rank 3")
    recurrent, weights = context.shape(2), context.shape(1)
    hidden, features = recurrent[2], weights[2]
    if not isinstance(hidden, int) or not isinstance(features, int):
        context.refuse("the shapes of its weights are not known when compiling")
    if context.attribute("hidden_size", hidden) != hidden:
        context.invalid(f"hidden_size is {context.attribute('hidden_size', 0)}, the weights' {hidden}")
    if tuple(recurrent) != (directions, cell.gates * hidden, hidden) or tuple(weights[:2]) != tuple(recurrent[:2]):
        context.invalid(
            f"weights of shapes {tuple(weights)} and {tuple(recurrent)} for {plural(directions, 'direction')}"
        )
    size = context.shape(0)[2]
    if isinstance(size, int) and size != features:
        context.invalid(f"the data have {size} features, the weights ask for {features}")
    require(context, size, "equal", features)
    return hidden, features


def _check_operands(context: NodeContext, cell: Cell, inputs: _Inputs, directions: int, hidden: int) -> None:
    """Check that bias, lengths, initial states and peepholes have the sizes implied by data and weights."""
    batch_first = bool(context.attribute("layout", 0))
    first, second = context.shape(0)[:2]
    steps, samples = (second, first) if batch_first else (first, second)
    state = (samples, directions, hidden) if batch_first else (directions, samples, hidden)
    expected: dict[int, tuple[Dim, ...]] = {3: (directions, 2 * cell.gates * hidden), 4: (samples,)}
    expected |= {index: state for _, index in inputs.initial}
    if inputs.peepholes is not None:
        expected[inputs.peepholes] = (directions, cell.peepholes * hidden)
    for index, shape in expected.items():
        if context.has_input(index):
            require_shape(context, context.shape(index), shape, f"its input {index}")
    if context.has_input(4):
        require_values(context, 4, 0, context.arithmetic.add(steps, 1))


def _lanes(cell: Cell, hidden: int) -> int:
    """Return the units per block: the cell's preferred number, or the smallest power of two that fits them all."""
    lanes = 1
    while lanes < min(cell.lanes, hidden):
        lanes *= 2
    return lanes


def _transposed(context: NodeContext, tensor: relax.Expr, batch_first: bool, axes: tuple[int, ...]) -> relax.Expr:
    return context.emit(R.permute_dims(tensor, list(axes))) if batch_first else tensor


def _operands(
    context: NodeContext, recurrence: Recurrence, data: relax.Expr, inputs: _Inputs, batch_first: bool
) -> dict[str, relax.Expr]:
    arrays = Arrays(context, recurrence.dtype)
    cell, directions = recurrence.cell, len(recurrence.stages)
    packing = Packing(arrays, directions, cell.gates, recurrence.hidden, recurrence.lanes)
    operands: dict[str, Expr] = {}
    weights, recurrent = arrays.input(1), arrays.input(2)
    bias, recurrent_bias = _biases(context, arrays, packing, recurrence)
    if recurrence.projects_input:
        operands["x"] = data
        operands["bias"] = bias
        for number, stage in enumerate(recurrence.stages[0]):
            operands[f"w{number}"] = packing.matrix(weights, recurrence.inputs, stage.gates)
    else:
        operands["x"] = _projection(context, packing, data, weights, recurrence.inputs, arrays.tensor(bias))
    if recurrent_bias is not None:
        operands["recurrent_bias"] = recurrent_bias
    for number, stage in enumerate(recurrence.stages[0]):
        operands[f"r{number}"] = packing.matrix(recurrent, recurrence.hidden, stage.gates)
    if inputs.peepholes is not None:
        operands["peepholes"] = packing.vectors(arrays.input(inputs.peepholes), cell.peepholes)
    operands = {name: arrays.tensor(value) for name, value in operands.items()}
    for name, index in inputs.initial:
        if context.has_input(index):
            initial = _transposed(context, context.input(index), batch_first, (1, 0, 2))
            operands[f"initial_{name}"] = cast(context, initial, recurrence.dtype)
    if context.has_input(4):
        operands["lengths"] = context.input(4)
    return operands


def _biases(context: NodeContext, arrays: Arrays, packing: Packing, recurrence: Recurrence) -> tuple[Expr, Expr]:
    """Return (bias of the sums (directions, blocks, gates, lanes), that of the separate recurrent sums or None)."""
    directions, gates, hidden = packing.directions, packing.gates, packing.hidden
    separate = recurrence.stages[0][0].separate
    if not context.has_input(3):
        return packing.vectors(arrays.zeros((directions, gates * hidden)), gates), None
    both = arrays.reshape(arrays.input(3), (directions, 2 * gates, hidden))
    first, second = arrays.slice(both, 1, 0, gates), arrays.slice(both, 1, gates, 2 * gates)
    joined = gates - len(separate)
    if not separate:
        return packing.vectors(arrays.add(first, second), gates), None
    # The recurrent bias of a separate gate, the last one, is kept apart.
    sums = arrays.add(arrays.slice(first, 1, 0, joined), arrays.slice(second, 1, 0, joined))
    bias = arrays.concatenate([sums, arrays.slice(first, 1, joined, gates)], 1)
    return packing.vectors(bias, gates), packing.vectors(arrays.slice(second, 1, joined, gates), len(separate))


def _projection(
    context: NodeContext, packing: Packing, data: relax.Expr, weights: Expr, features: int, bias: relax.Expr
) -> relax.Expr:
    """Multiply all steps by the input weights and add the bias: (steps, samples, directions, blocks, gates, lanes)."""
    steps, samples = tensor_shape(data)[:2]
    rows = context.arithmetic.multiply(steps, samples)
    flat = context.reshape(data, [rows, features])
    product = context.emit(R.matmul(flat, packing.arrays.tensor(packing.projection(weights, features))))
    layout = [packing.directions, packing.blocks, packing.gates, packing.lanes]
    flat_bias = packing.arrays.reshape(bias, (math.prod(layout),))
    total = context.emit(R.add(product, flat_bias))
    return context.reshape(total, [steps, samples, *layout])


def run_recurrence(context: NodeContext, recurrence: Recurrence, operands: Mapping[str, relax.Expr]) -> relax.Expr:
    """Emit the kernel: (Y (steps, directions, samples, hidden), last states (directions, samples, hidden)).

    It works unscheduled; CPU rules rewrite it from the description in its attribute.
    """
    recurrence = replace(recurrence, operands=tuple(operands))
    result = context.emit_te(_kernel(recurrence), *operands.values(), primfunc_name_hint=HINTS[recurrence.cell.gates])
    builder = context.block_builder
    function = builder.lookup_binding(result).args[0]
    finished = finish(builder.get()[function], Machine()).with_attr("tirx.is_scheduled", True)
    builder.update_func(function, finished.with_attr(ATTRIBUTE, recurrence.text()))
    return result


def _kernel(recurrence: Recurrence) -> Callable[..., Tensor]:
    """Return a tensor expression function of the operands."""

    def compute(*tensors: Tensor) -> list[Tensor]:
        steps, samples = tensors[recurrence.operands.index("x")].shape[:2]
        state_shape = (recurrence.directions, samples, recurrence.hidden)
        output_shape = (steps, recurrence.directions, samples, recurrence.hidden)
        shapes = [output_shape, *[state_shape] * len(recurrence.cell.states)]

        def body(ins: Sequence[Expr], outs: Sequence[Expr]) -> Stmt:
            if recurrence.quantized:
                return lockstep(recurrence, ins, outs, SERIAL)
            return by_samples(recurrence, ins, outs, shared=_is_shared(recurrence, steps, samples))

        return te.extern(shapes, list(tensors), body, dtype=[recurrence.dtype] * len(shapes), name="recurrent")

    return compute


def _is_shared(recurrence: Recurrence, steps: Expr, samples: Expr) -> bool:
    """True if threads share the samples on targets whose rules do not rewrite the kernel."""
    number, length = constant_int(samples), constant_int(steps)
    if not isinstance(number, int) or number < 2:
        return False
    known_steps = length if isinstance(length, int) else 16
    return recurrence.cell.gates * recurrence.hidden**2 * known_steps >= _PARALLEL_WORK


def layer_results(context: NodeContext, result: relax.Expr, batch_first: bool) -> list[relax.Expr]:
    """Return a kernel's results in the node's layout and type: Y (steps, directions, samples, hidden), last states."""
    dtype = context.dtype(0)
    outputs = [context.emit(relax.TupleGetItem(result, index)) for index in range(len(result.ty.fields))]
    axes = [(2, 0, 1, 3), *[(1, 0, 2)] * (len(outputs) - 1)]
    return [
        cast(context, _transposed(context, output, batch_first, order), dtype)
        for output, order in zip(outputs, axes, strict=True)
    ]


# The activation functions of a recurrent node.


def activations_of(
    context: NodeContext, defaults: tuple[str, ...], directions: int
) -> tuple[tuple[ActivationChoice, ...], ...]:
    """Return the activation functions of each direction.

    activation_alpha and activation_beta hold values for the functions with such a parameter, in order.
    """
    names: list[str] = context.attribute("activations", list(defaults) * directions)
    if names == list(defaults) * 2:  # ONNX's default of RNN, for any direction, which exporters write explicitly
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


# An array known at compile time, or a tensor.
Operand: TypeAlias = "np.ndarray | Expr"


class Arrays:
    """The same rearrangements for arrays known at compile time and for tensors."""

    def __init__(self, context: NodeContext, dtype: str) -> None:
        self.context = context
        self.dtype = dtype

    def input(self, index: int) -> Operand:
        """Return input `index` in the computation type: an array if it is constant, otherwise a tensor."""
        value = self.context.tensor(index)
        if isinstance(value, Constant):
            return value.array.astype(dtypes.numpy_dtype(self.dtype), copy=False)
        return cast(self.context, self.context.input(index), self.dtype)

    def raw(self, index: int) -> np.ndarray:
        """Return input `index` in its own type: an array if it is constant, otherwise a tensor."""
        value = self.context.tensor(index)
        return value.array if isinstance(value, Constant) else self.context.input(index)

    def cast(self, value: Operand, dtype: str) -> Operand:
        if isinstance(value, np.ndarray):
            return value.astype(dtype)
        return cast(self.context, value, dtype)

    def sum_last(self, value: Operand, dtype: str) -> Operand:
        """Sum along the last axis, in a wider type."""
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
        return self.context.reshape(value, shape)

    def permute(self, value: Operand, axes: Sequence[int]) -> Operand:
        if isinstance(value, np.ndarray):
            return value.transpose(axes)
        return self.context.emit(R.permute_dims(value, list(axes)))

    def pad_last(self, value: Operand, count: int) -> Operand:
        """Append `count` zeros to the last axis."""
        if count == 0:
            return value
        if isinstance(value, np.ndarray):
            return np.pad(value, [(0, 0)] * (value.ndim - 1) + [(0, count)])
        widths = [0] * (2 * int(value.ty.ndim))
        widths[-1] = count
        return self.context.emit(R.nn.pad(value, widths))

    def slice(self, value: Operand, axis: int, begin: int, end: int) -> Operand:
        """Return the elements from `begin` to before `end` along an axis."""
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
    """Layout of packed weights: blocks of hidden units, with adjacent gates."""

    def __init__(self, arrays: Arrays, directions: int, gates: int, hidden: int, lanes: int) -> None:
        self.arrays = arrays
        self.directions, self.gates, self.hidden, self.lanes = directions, gates, hidden, lanes
        self.blocks = -(-hidden // lanes)

    @property
    def padding(self) -> int:
        return self.blocks * self.lanes - self.hidden

    def matrix(self, weight: Operand, inputs: int, gates: Sequence[int]) -> Operand:
        """(directions, all gates * hidden, inputs) -> (directions, blocks, inputs, gates, lanes)."""
        arrays, chosen = self.arrays, len(gates)
        value = arrays.reshape(weight, (self.directions, self.gates, self.hidden, inputs))
        if chosen != self.gates:
            value = arrays.slice(value, 1, gates[0], gates[-1] + 1)
        value = arrays.pad_last(arrays.permute(value, (0, 3, 1, 2)), self.padding)
        value = arrays.reshape(value, (self.directions, inputs, chosen, self.blocks, self.lanes))
        return arrays.permute(value, (0, 3, 1, 2, 4))

    def vectors(self, values: Operand, count: int) -> Operand:
        """(directions, count * hidden) -> (directions, blocks, count, lanes)."""
        arrays = self.arrays
        value = arrays.reshape(values, (self.directions, count, self.hidden))
        value = arrays.reshape(arrays.pad_last(value, self.padding), (self.directions, count, self.blocks, self.lanes))
        return arrays.permute(value, (0, 2, 1, 3))

    def projection(self, weight: Operand, inputs: int) -> Operand:
        """(directions, gates * hidden, inputs) -> (inputs, directions * blocks * gates * lanes), for a single
        matmul."""
        arrays = self.arrays
        value = arrays.permute(self.matrix(weight, inputs, range(self.gates)), (2, 0, 1, 3, 4))
        return arrays.reshape(value, (inputs, self.directions * self.blocks * self.gates * self.lanes))
