"""A TOSA 1.0 graph under construction: tensors, operators, and helpers that several operators share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray
Shape = tuple[int, ...]
_VERSION = (1, 0, 0, False)
_PIECE_BY_PIECE = ("CONCAT", "PAD", "TILE")  # Vela writes the results of these in pieces


@dataclass(frozen=True)
class Tensor:
    """A tensor of the graph; `dtype` is "int8", "int16" or "int32"."""

    name: str
    shape: Shape
    dtype: str


def fraction(scale: float) -> tuple[int, int]:
    """(multiplier of 31 bits, shift) nearest to a positive scale: scale = multiplier / 2**shift, shift in 2 to 62.
    Raises ValueError if the scale is outside the range of TOSA's RESCALE."""
    if not 0 < scale < math.inf:
        raise ValueError(f"no RESCALE multiplies by {scale}")
    mantissa, exponent = math.frexp(scale)
    multiplier = round(mantissa * (1 << 31))
    if multiplier == 1 << 31:
        multiplier, exponent = multiplier >> 1, exponent + 1
    shift = 31 - exponent
    if shift > 62:  # tiny scale: drop bits that cannot affect a result
        multiplier, shift = multiplier >> min(shift - 62, 31), 62
    if shift < 2 or multiplier == 0:
        raise ValueError(f"no RESCALE multiplies by {scale}")
    return multiplier, shift


class TosaGraph:
    """Collects operators; `serialize` returns the flatbuffer for Vela and the reference model."""

    def __init__(self) -> None:
        import tosa_serializer

        self._ts = tosa_serializer
        self._serializer = tosa_serializer.TosaSerializer("", tosa_serializer.ConstMode.EMBED, *_VERSION)
        self.operators = 0
        self._made: dict[str, Any] = {}
        self._outputs: set[str] = set()
        self._in_pieces: set[str] = set()
        self._reshaped: dict[tuple[str, Shape], Tensor] = {}

    def serialize(self) -> bytes:
        """The finished graph."""
        return bytes(self._serializer.serialize())

    def input(self, shape: Shape) -> Tensor:
        """An int8 input."""
        made = self._serializer.addPlaceholder(list(shape), self._ts.DType.INT8)
        return Tensor(made.name, shape, "int8")

    def constant(self, values: Array) -> Tensor:
        """A constant of its own type."""
        dtype = str(values.dtype)
        made = self._serializer.addConst(list(values.shape), self._type(dtype), np.ascontiguousarray(values))
        return Tensor(made.name, values.shape, dtype)

    def shape(self, values: Sequence[int]) -> Tensor:
        """A constant shape."""
        made = self._serializer.addConst([len(values)], self._ts.DType.SHAPE, list(values))
        return Tensor(made.name, (len(values),), "shape")

    def output(self, tensor: Tensor) -> None:
        """Mark an output; outputs keep the order of these calls. An input, or an existing output, is copied."""
        if tensor.name not in self._made or tensor.name in self._outputs:
            tensor = self.copied(tensor)
        self._outputs.add(tensor.name)
        self._serializer.addOutputTensor(self._made[tensor.name])

    def emit(
        self, operator: str, inputs: Sequence[Tensor], shape: Shape, dtype: str, attribute: str, *values: object
    ) -> Tensor:
        """Append an operator with one result; `attribute` is the serializer's name of its attributes."""
        result = self._serializer.addIntermediate(list(shape), self._type(dtype))
        self._made[result.name] = result
        if operator in _PIECE_BY_PIECE or (operator == "RESHAPE" and inputs[0].name in self._in_pieces):
            self._in_pieces.add(result.name)
        attributes = self._ts.TosaSerializerAttribute()
        getattr(attributes, attribute)(*values)
        code = getattr(self._ts.Op, operator)
        self._serializer.addOperator(code, [each.name for each in inputs], [result.name], attributes)
        self.operators += 1
        return Tensor(result.name, tuple(shape), dtype)

    def _type(self, dtype: str) -> Any:
        return getattr(self._ts.DType, dtype.upper())

    # Building blocks of the operators.

    def zero(self, dtype: str, value: int = 0) -> Tensor:
        """A zero point."""
        return self.constant(np.array([value], dtype))

    def copied(self, x: Tensor) -> Tensor:
        """A copy of an int8 tensor."""
        entries = self.constant(np.arange(-128, 128, dtype=np.int8))
        return self.emit("TABLE", [x, entries], x.shape, "int8", "TableAttribute")

    def rescale(self, x: Tensor, scales: Sequence[float], dtype: str, *, zero: int = 0, output_zero: int = 0) -> Tensor:
        """(x - zero) * scale + output_zero, rounded once to nearest (halves up), saturated to `dtype`. `scales`: a
        single one, or one per entry of the last axis."""
        if x.name in self._in_pieces and x.dtype == "int8":
            # Vela 5.2 loses the RESCALE before a sum, product or maximum without broadcast operands, and before a PAD.
            x = self.copied(x)
        parts = [fraction(scale) for scale in scales]
        multiplier = self.constant(np.array([each[0] for each in parts], np.int32))
        shift = self.constant(np.array([each[1] for each in parts], np.int8))
        zeros = self.zero(x.dtype, zero), self.zero(dtype, output_zero)
        rounding = self._ts.RoundingMode.SINGLE_ROUND
        values = (True, rounding, len(parts) > 1, False, False)
        return self.emit("RESCALE", [x, multiplier, shift, *zeros], x.shape, dtype, "RescaleAttribute", *values)

    def clamp(self, x: Tensor, low: int, high: int) -> Tensor:
        """Clamp; omitted if the limits cover int8."""
        if low <= -128 and high >= 127:
            return x
        limits = [[int(np.uint8(np.int8(limit)))] for limit in (low, high)]
        return self.emit(
            "CLAMP", [x], x.shape, x.dtype, "ClampAttribute", *limits, self._ts.NanPropagationMode.PROPAGATE
        )

    def reshape(self, x: Tensor, shape: Shape) -> Tensor:
        """The same elements in the same order; each shape of a tensor is emitted only once, since Vela copies
        otherwise."""
        if x.shape == tuple(shape):
            return x
        if (x.name, tuple(shape)) not in self._reshaped:
            made = self.emit("RESHAPE", [x, self.shape(shape)], shape, x.dtype, "ReshapeAttribute")
            self._reshaped[x.name, tuple(shape)] = made
        return self._reshaped[x.name, tuple(shape)]

    def transpose(self, x: Tensor, order: Sequence[int]) -> Tensor:
        """Axes permuted; a reshape if only axes of size 1 move."""
        shape = tuple(x.shape[axis] for axis in order)
        moved = [axis for axis in order if x.shape[axis] != 1]
        if moved == sorted(moved):
            return self.reshape(x, shape)
        return self.emit("TRANSPOSE", [x], shape, x.dtype, "TransposeAttribute", list(order))

    def convolution(
        self,
        x: Tensor,
        weight: Array,
        bias: Array,
        zero: int,
        *,
        padding: Sequence[int],
        strides: Sequence[int],
        dilation: Sequence[int] = (1, 1),
        depthwise: bool = False,
    ) -> Tensor:
        """int32 sums of x (N, H, W, C) and int8 weights (O, kh, kw, C), or (kh, kw, C, M) if depthwise. `padding`: top,
        bottom, left, right."""
        kernel = weight.shape[:2] if depthwise else weight.shape[1:3]
        sizes = [
            (size + before + after - step * (extent - 1) - 1) // stride + 1
            for size, before, after, extent, stride, step in zip(
                x.shape[1:3], padding[::2], padding[1::2], kernel, strides, dilation, strict=True
            )
        ]
        channels = weight.shape[2] * weight.shape[3] if depthwise else weight.shape[0]
        extents = [step * (extent - 1) + 1 for extent, step in zip(kernel, dilation, strict=True)]
        x, padding = self._fitted(x, sizes, extents, strides, padding)
        operands = [x, self.constant(weight), self.constant(bias), self.zero("int8", zero), self.zero("int8")]
        values = (list(padding), list(strides), list(dilation), False, self._ts.DType.INT32)
        names = ("DEPTHWISE_CONV2D", "DepthwiseConv2dAttribute") if depthwise else ("CONV2D", "Conv2dAttribute")
        shape = (x.shape[0], *sizes, channels)
        return self.emit(names[0], operands, shape, "int32", names[1], *values)

    def transposed_convolution(
        self,
        x: Tensor,
        weight: Array,
        bias: Array,
        zero: int,
        edges: Sequence[int],
        strides: Sequence[int],
        shape: Shape,
    ) -> Tensor:
        """int32 sums of the given shape of x (N, H, W, C) and int8 weights (O, kh, kw, C). `edges`: padding of the
        result at its top, bottom, left and right; negative to crop."""
        operands = [x, self.constant(weight), self.constant(bias), self.zero("int8", zero), self.zero("int8")]
        values = (list(edges), list(strides), False, self._ts.DType.INT32)
        return self.emit("TRANSPOSE_CONV2D", operands, shape, "int32", "TransposeConv2dAttribute", *values)

    def pool(
        self,
        operator: str,
        x: Tensor,
        kernel: Sequence[int],
        strides: Sequence[int],
        padding: Sequence[int],
        zero: int = 0,
    ) -> Tensor:
        """MAX_POOL2D or AVG_POOL2D of int8 x (N, H, W, C); padding as top, bottom, left, right."""
        sizes = [
            (size + before + after - extent) // stride + 1
            for size, before, after, extent, stride in zip(
                x.shape[1:3], padding[::2], padding[1::2], kernel, strides, strict=True
            )
        ]
        x, padding = self._fitted(x, sizes, kernel, strides, padding)
        shape = (x.shape[0], *sizes, x.shape[3])
        values: list[Any] = [list(kernel), list(strides), list(padding)]
        if operator == "MAX_POOL2D":
            values.append(self._ts.NanPropagationMode.PROPAGATE)
            return self.emit(operator, [x], shape, "int8", "MaxPool2dAttribute", *values)
        operands = [x, self.zero("int8", zero), self.zero("int8", zero)]
        return self.emit(operator, operands, shape, "int8", "AvgPool2dAttribute", *values, self._ts.DType.INT32)

    def nan_mode(self) -> Any:
        """NaN mode of minimum and maximum, irrelevant for integers."""
        return self._ts.NanPropagationMode.PROPAGATE

    def reduce(self, operator: str, x: Tensor) -> Tensor:
        """REDUCE_MAX or REDUCE_MIN of the last axis, which becomes 1."""
        shape, axis = (*x.shape[:-1], 1), len(x.shape) - 1
        name = f"Reduce{operator.removeprefix('REDUCE_').title()}Attribute"
        return self.emit(operator, [x], shape, x.dtype, name, axis, self._ts.NanPropagationMode.PROPAGATE)

    def concat(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        """Concatenate tensors; a single one is returned unchanged."""
        if len(parts) == 1:
            return parts[0]
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        return self.emit("CONCAT", parts, tuple(shape), parts[0].dtype, "ConcatAttribute", axis)

    def split(self, x: Tensor, count: int, axis: int) -> list[Tensor]:
        """Split into equal parts."""
        sizes, starts = list(x.shape), [0] * len(x.shape)
        sizes[axis] //= count
        parts = []
        for index in range(count):
            starts[axis] = index * sizes[axis]
            parts.append(self.slice(x, starts, sizes))
        return parts

    def pad(self, x: Tensor, around: Sequence[int], value: int) -> Tensor:
        """Pad with a constant; `around` is (before, after) of each axis."""
        if not any(around):
            return x
        sizes = zip(x.shape, around[::2], around[1::2], strict=True)
        shape = tuple(size + before + after for size, before, after in sizes)
        filling = self.constant(np.array([value], x.dtype))
        return self.emit("PAD", [x, self.shape(around), filling], shape, x.dtype, "PadAttribute")

    def tile(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """Repeat along each axis."""
        if all(count == 1 for count in counts):
            return x
        shape = tuple(size * count for size, count in zip(x.shape, counts, strict=True))
        return self.emit("TILE", [x, self.shape(counts)], shape, x.dtype, "TileAttribute")

    def slice(self, x: Tensor, starts: Sequence[int], sizes: Sequence[int]) -> Tensor:
        """A part of a tensor."""
        sizes = tuple(sizes)
        if sizes == x.shape:
            return x
        operands = [x, self.shape(starts), self.shape(sizes)]
        return self.emit("SLICE", operands, sizes, x.dtype, "SliceAttribute")

    def _fitted(
        self, x: Tensor, sizes: Sequence[int], extents: Sequence[int], strides: Sequence[int], padding: Sequence[int]
    ) -> tuple[Tensor, list[int]]:
        """The operand without rows and columns that no window reaches: TOSA requires windows to end at the edge."""
        shape, fitted = list(x.shape), list(padding)
        for axis in (0, 1):
            needed = (sizes[axis] - 1) * strides[axis] + extents[axis] - padding[2 * axis]
            shape[1 + axis] = min(shape[1 + axis], needed)
            fitted[2 * axis + 1] = needed - shape[1 + axis]
        return self.slice(x, [0] * 4, shape), fitted
