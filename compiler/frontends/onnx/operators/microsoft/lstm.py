"""com.microsoft: DynamicQuantizeLSTM, whose input and state are quantized dynamically and multiplied as integers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax
from tvm.relax import op as R

from compiler.frontends.onnx.bounds import require, require_shape
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.composition import Composer
from compiler.frontends.onnx.operators.microsoft.fused import DOMAIN
from compiler.frontends.onnx.operators.recurrent.recurrent import (
    Arrays,
    Operand,
    Packing,
    activations_of,
    direction_flags,
    layer_results,
    run_recurrence,
)
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.values import Constant, Runtime, tensor_shape
from schedules.ir.tvm_types import Expr, Index
from schedules.recurrence.description import CellKind, Recurrence

_GATES = 4
_WORD_BYTES = 4  # bytes per word along the depth
_MAX_LANES = 16


@dataclass(frozen=True)
class _Weights:
    """Signed bytes (directions, 4 * hidden, depth); scales and zero points (directions, 4 * hidden), the latter None if
    all are 0."""

    data: Operand
    scales: Operand
    zero_points: Operand | None


@converter("DynamicQuantizeLSTM", domain=DOMAIN)
def dynamic_quantize_lstm(context: NodeContext) -> list[Expr]:
    """Inputs: X, W, R, B, lengths, initial h and c, P, then scale and zero point of W and of R; gates in the order
    iofc.

    The input is quantized as a whole, the state per step, over all samples of a direction.
    """
    if context.has_input(4):
        context.refuse("sequence_lens is not supported")
    backward = direction_flags(context)
    hidden, features = _checked_sizes(context, len(backward))
    has_peepholes = context.has_input(7)
    forget = bool(context.attribute("input_forget", 0))
    kind = CellKind("LSTM", input_forget=forget, has_peepholes=has_peepholes)
    recurrence = Recurrence(
        kind=kind,
        activations=activations_of(context, kind.cell().activations, len(backward)),
        clip=float(context.attribute("clip", 0.0)) if context.has_attribute("clip") else None,
        backward=backward,
        hidden=hidden,
        inputs=features,
        lanes=min(_MAX_LANES, max(_WORD_BYTES, 1 << (hidden - 1).bit_length())),
        dtype="float32",
        quantized=True,
    )
    return layer_results(context, run_recurrence(context, recurrence, _operands(context, recurrence)), False)


def _checked_sizes(context: NodeContext, directions: int) -> tuple[int, int]:
    """Return (hidden units, features); InvalidModelError if the operands do not fit."""
    if [context.rank(index) for index in range(3)] != [3, 3, 3]:
        context.invalid("X, W and R must have rank 3")
    features, hidden = context.shape(1)[1], context.shape(2)[1]
    if not isinstance(hidden, int) or not isinstance(features, int):
        context.refuse("the shapes of its weights are not known when compiling")
    if int(context.required_attribute("hidden_size")) != hidden:
        context.invalid(f"hidden_size is {context.attribute('hidden_size', 0)}, the weights' {hidden}")
    columns, samples = _GATES * hidden, context.shape(0)[1]
    expected: dict[int, tuple[Index, ...]] = {
        1: (directions, features, columns),
        2: (directions, hidden, columns),
        3: (directions, 2 * columns),
        7: (directions, 3 * hidden),
        **dict.fromkeys((5, 6), (directions, samples, hidden)),
    }
    for index, shape in expected.items():
        if context.has_input(index):
            require_shape(context, context.shape(index), shape, f"its input {index}")
    size = context.shape(0)[2]
    if isinstance(size, int) and size != features:
        context.invalid(f"the data have {size} features, the weights ask for {features}")
    require(context, size, "equal", features)
    return hidden, features


def _operands(context: NodeContext, recurrence: Recurrence) -> dict[str, Expr]:
    arrays, op = Arrays(context, "float32"), Composer(context)
    packing = Packing(arrays, recurrence.directions, _GATES, recurrence.hidden, recurrence.lanes)
    weights = _weights(context, packing, 1, 8)
    recurrent = _weights(context, packing, 2, 10)
    operands: dict[str, Operand] = {
        "x": _projection(op, packing, weights, recurrence.inputs),
        "r0": _words(packing, recurrent.data, recurrence.hidden),
        "scales": packing.vectors(recurrent.scales, _GATES),
        "sums": packing.vectors(arrays.sum_last(recurrent.data, "int32"), _GATES),
    }
    if recurrent.zero_points is not None:
        operands["zeros"] = packing.vectors(recurrent.zero_points, _GATES)
    if context.has_input(7):
        operands["peepholes"] = packing.vectors(arrays.input(7), 3)
    result = {name: arrays.tensor(value) for name, value in operands.items()}
    for name, index in (("h", 5), ("c", 6)):
        if context.has_input(index):
            result[f"initial_{name}"] = context.input(index)
    return result


def _weights(context: NodeContext, packing: Packing, index: int, scale: int) -> _Weights:
    """Convert unsigned weights and their zero points to signed by subtracting 128."""
    arrays, columns = packing.arrays, (packing.directions, _GATES * packing.hidden)
    unsigned = context.dtype(index) == "uint8"
    zero_points = None
    if context.has_input(scale + 1):
        zero_points = _spread(arrays, arrays.cast(arrays.raw(scale + 1), "int32"), columns)
    elif unsigned:
        zero_points = np.zeros(columns, np.int32)
    data = arrays.permute(arrays.raw(index), (0, 2, 1))
    if unsigned:
        shift = np.array(-128, np.int32)
        data = arrays.cast(arrays.add(arrays.cast(data, "int32"), shift), "int8")
        zero_points = arrays.add(zero_points, shift)
    if isinstance(zero_points, np.ndarray) and not zero_points.any():
        zero_points = None
    return _Weights(data, _spread(arrays, arrays.raw(scale), columns), zero_points)


def _spread(arrays: Arrays, value: Operand, shape: tuple[int, int]) -> Operand:
    """Expand one value per direction or per column to one per column."""
    known = tuple(value.shape) if isinstance(value, np.ndarray) else tuple(tensor_shape(value))
    if known == shape:
        return value
    return arrays.broadcast(arrays.reshape(value, (shape[0], 1)), shape)


def _projection(op: Composer, packing: Packing, weights: _Weights, features: int) -> Expr:
    """Multiply all steps by the input weights and add the bias: (steps, samples, directions, blocks, gates, lanes)."""
    context, arrays = op.context, packing.arrays
    layout = (packing.directions, packing.blocks, _GATES, packing.lanes)
    columns = packing.directions * packing.blocks * _GATES * packing.lanes
    steps, samples = context.shape(0)[:2]
    rows = context.arithmetic.multiply(steps, samples)
    flat = context.reshape(context.input(0), [rows, features])

    def by_column(values: Operand, dtype: str = "float32") -> Constant | Runtime:
        return arrays.value(arrays.cast(arrays.reshape(packing.vectors(values, _GATES), (columns,)), dtype))

    quantized, scale, zero = op.outputs(3, "DynamicQuantizeLinear", arrays.value(flat))
    matrix = arrays.value(packing.projection(weights.data, features))
    zero_points = None if weights.zero_points is None else by_column(weights.zero_points, "int8")
    sums = op("MatMulInteger", quantized, matrix, zero, zero_points)
    product = op("Mul", op("Cast", sums, to=1), op("Mul", scale, by_column(weights.scales)))
    if context.has_input(3):
        both = arrays.reshape(arrays.input(3), (packing.directions, 2, _GATES * packing.hidden))
        halves = [arrays.reshape(arrays.slice(both, 1, h, h + 1), (packing.directions, -1)) for h in range(2)]
        product = op("Add", product, by_column(arrays.add(*halves)))
    return context.reshape(context.importer.builder.materialize(product), [steps, samples, *layout])


def _words(packing: Packing, data: Operand, depth: int) -> Operand:
    """Pack signed bytes (directions, 4 * hidden, depth) into words of four along the depth: (directions, blocks, depth
    / 4, gates, lanes), int32."""
    arrays = packing.arrays
    padded = arrays.pad_last(data, -depth % _WORD_BYTES)
    packed = packing.matrix(padded, depth + -depth % _WORD_BYTES, range(_GATES))
    leading = (packing.directions, packing.blocks, -(-depth // _WORD_BYTES))
    split = arrays.reshape(packed, (*leading, _WORD_BYTES, _GATES, packing.lanes))
    if isinstance(split, np.ndarray):
        return np.ascontiguousarray(split.transpose(0, 1, 2, 4, 5, 3)).view(np.int32)[..., 0]
    context, total, shape = arrays.context, None, (*leading, _GATES, packing.lanes)
    for byte in range(_WORD_BYTES):
        part = arrays.cast(arrays.reshape(arrays.slice(split, 3, byte, byte + 1), shape), "int32")
        low = part if byte == _WORD_BYTES - 1 else context.emit(R.bitwise_and(part, relax.const(255, "int32")))
        moved = context.emit(R.left_shift(low, relax.const(8 * byte, "int32")))
        total = moved if total is None else context.emit(R.bitwise_or(total, moved))
    return total
