"""A common view of convolutions and matmuls with constant weights, for scaling and shifting their channels.

Weights are multiplied in their own precision (float32 for float16), which rounds each weight once.

Transposed convolutions become plain ones with one filter per phase and interleaved results. A transposed convolution
adds x[i] w[k] at position i s + k. With k = s j + r, position s q + r gets the sum over j of x[q - j] w[s j + r]: for
each phase r, a convolution over j with the kernel flipped. One convolution computes all phases as separate filters
(kernels are padded to a multiple of s), its results are interleaved, and `padding` is cropped.

Taps of a convolution's filter: for which outputs each one reads the input, and which read only padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import relax

from compiler.passes.rewriting.graph import Call, Expr, Graph, operator_name
from compiler.passes.rewriting.matching import Array, as_constant, constant_array, dtype_of, rank_of, static_shape

CONVOLUTIONS = tuple(f"relax.nn.conv{rank}d{suffix}" for rank in (1, 2, 3) for suffix in ("", "_transpose"))
MATMUL = "relax.matmul"
_FLOATS = ("float16", "float32", "float64")


@dataclass(frozen=True)
class Linear:
    """A convolution, `x @ w` or `w @ x` with a constant weight.

    Attributes:
        call: the call.
        weight: the constant.
        position: the weight's operand index (0 in `w @ x`, otherwise 1).
        channel_axis: the axis of the result for filters, columns or rows.
        input_axis: the reduction axis of the other operand.
        out_axis, in_axis: axes of the weight for output and input channels (within a group).
        groups: groups of channels.
    """

    call: Call
    weight: Array
    position: int
    channel_axis: int
    input_axis: int
    out_axis: int
    in_axis: int
    groups: int = 1

    @property
    def data(self) -> Expr:
        """Return the operand that is not the weight."""
        return self.call.args[1 - self.position]

    @property
    def is_transposed(self) -> bool:
        """True for a transposed convolution, whose weight has all input channels and one group's output channels."""
        return str(self.call.op.name).endswith("_transpose")

    @property
    def out_channels(self) -> int:
        """Number of output channels of all groups."""
        return self.weight.shape[self.out_axis] * (self.groups if self.is_transposed else 1)

    @property
    def in_channels(self) -> int:
        """Number of input channels of all groups."""
        return self.weight.shape[self.in_axis] * (1 if self.is_transposed else self.groups)

    def rebuilt(self, weight: Array, data: Expr | None = None) -> Call:
        """Return the call with another weight of the same shape and, if given, other data."""
        operands = [self.data if data is None else data, as_constant(weight)]
        if self.position == 0:
            operands.reverse()
        return relax.Call(self.call.op, operands, self.call.attrs, self.call.ty_args)

    def scaled_outputs(self, factor: Array) -> Array | None:
        """Return the weight with output channel c multiplied by `factor[c]`; None if a weight overflows."""
        if self.is_transposed:
            return self._times(self._pairs(factor, self.in_axis, self.out_axis))
        return self._times(self._along(factor, self.out_axis))

    def scaled_inputs(self, factor: Array) -> Array | None:
        """Return the weight equivalent to multiplying input channel c by `factor[c]`."""
        if self.is_transposed or self.groups == 1:
            return self._times(self._along(factor, self.in_axis))
        return self._times(self._pairs(factor, self.out_axis, self.in_axis))

    def shift(self, offset: Array) -> Array | None:
        """Return the offset of each output channel (float64) caused by adding `offset[c]` to input channel c
        everywhere.

        None if it differs between positions: with padding, in a transposed convolution, in a batch.
        """
        spatial = [axis for axis in range(self.weight.ndim) if axis not in (self.out_axis, self.in_axis)]
        if operator_name(self.call) == MATMUL:
            if any(self.weight.shape[axis] != 1 for axis in spatial):
                return None
        elif self.is_transposed or any(int(width) != 0 for width in self.call.attrs.padding):
            return None
        weight = np.transpose(self.weight, [self.out_axis, self.in_axis, *spatial])
        taps = weight.reshape(*weight.shape[:2], -1).sum(axis=2, dtype=np.float64)  # (out, in of a group)
        grouped = taps.reshape(self.groups, -1, taps.shape[1])
        gain = np.einsum("goi,gi->go", grouped, offset.reshape(self.groups, -1)).reshape(-1)
        return gain if bool(np.isfinite(gain).all()) else None

    def _along(self, factor: Array, axis: int) -> Array:
        shape = [1] * self.weight.ndim
        shape[axis] = -1
        return factor.reshape(shape)

    def _pairs(self, factor: Array, grouped_axis: int, axis: int) -> Array:
        """Spread `factor` of (groups * n) over an axis that spans the groups and the axis of n."""
        repeats = self.weight.shape[grouped_axis] // self.groups
        matrix = np.repeat(factor.reshape(self.groups, -1), repeats, axis=0)
        shape = [1] * self.weight.ndim
        shape[grouped_axis], shape[axis] = matrix.shape
        if grouped_axis > axis:
            matrix = matrix.T
        return matrix.reshape(shape)

    def _times(self, factor: Array) -> Array | None:
        precision = np.promote_types(self.weight.dtype, np.float32)
        with np.errstate(all="ignore"):
            product = self.weight * factor.astype(precision)
            result: Array = product.astype(self.weight.dtype, copy=False)
        return result if bool(np.isfinite(result).all()) else None


def as_linear(graph: Graph, expr: Expr) -> Linear | None:
    """Return the convolution or matmul with a constant floating-point weight that defines `expr`."""
    call = graph.call(expr, MATMUL, *CONVOLUTIONS)
    if call is None:
        return None
    return _as_matmul(graph, call) if operator_name(call) == MATMUL else _as_convolution(graph, call)


def _weight(graph: Graph, call: Call, position: int) -> Array | None:
    weight = constant_array(graph, call.args[position])
    same = weight is not None and weight.dtype.name in _FLOATS and dtype_of(call.args[1 - position]) == weight.dtype
    return weight if same else None


def _as_matmul(graph: Graph, call: Call) -> Linear | None:
    result_rank = rank_of(call)
    for position in (1, 0):
        weight = _weight(graph, call, position)
        data_rank = rank_of(call.args[1 - position])
        if weight is None or weight.ndim < 2 or data_rank is None or result_rank is None or data_rank < 2:
            continue
        rows, columns = weight.ndim - 2, weight.ndim - 1
        if position == 1:
            return Linear(call, weight, 1, result_rank - 1, data_rank - 1, columns, rows)
        return Linear(call, weight, 0, result_rank - 2, data_rank - 2, rows, columns)
    return None


def _as_convolution(graph: Graph, call: Call) -> Linear | None:
    weight = _weight(graph, call, 1)
    attrs = call.attrs
    kernel, data = str(attrs.kernel_layout), str(attrs.data_layout)
    out = str(attrs.out_layout) or data
    if weight is None or not (kernel + data + out).isalpha() or len(kernel) != weight.ndim:
        return None
    return Linear(
        call, weight, 1, out.index("C"), data.index("C"), kernel.index("O"), kernel.index("I"), int(attrs.groups)
    )


def per_channel(array: Array | None, rank: int | None, axis: int, channels: int) -> Array | None:
    """Return `array` as a float64 vector of `channels` if it varies only along that axis when broadcast to `rank`."""
    if array is None or rank is None or array.ndim > rank or array.dtype.name not in _FLOATS:
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    if any(size != 1 for position, size in enumerate(shape) if position != axis) or shape[axis] not in (1, channels):
        return None
    vector = np.broadcast_to(array.reshape(-1), (channels,)).astype(np.float64)
    return vector if bool(np.isfinite(vector).all()) else None


def along_axis(vector: Array, rank: int, axis: int, dtype: str) -> Array:
    """Reshape a vector of c elements to broadcast along `axis` of a tensor: (c, 1, ..., 1) of `dtype`."""
    return vector.reshape([-1] + [1] * (rank - 1 - axis)).astype(dtype)


Emit = Callable[[Expr], Expr]


@dataclass(frozen=True)
class Interleaved:
    """Decomposition of one transposed convolution.

    Attributes:
        strides: its strides, the numbers of phases.
        taps: kernel size of the plain convolution, by dimension.
        start, size: the region cropped from the interleaved results, by dimension.
        filters, groups: those of the transposed convolution.
    """

    strides: tuple[int, ...]
    taps: tuple[int, ...]
    start: tuple[int, ...]
    size: tuple[int, ...]
    filters: int
    groups: int

    @classmethod
    def of(cls, call: Call) -> Interleaved | None:
        """Return the decomposition; None for dynamic sizes, dilated kernels, or layouts other than ONNX's."""
        attrs = call.attrs
        rank = len(attrs.strides)
        spatial = "DHW"[-rank:]
        layouts = str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout) or f"NC{spatial}"
        shapes = [static_shape(each) for each in (call.args[0], call.args[1], call)]
        if layouts != (f"NC{spatial}", f"IO{spatial}", f"NC{spatial}") or any(each is None for each in shapes):
            return None
        data, weight, out = (tuple(each or ()) for each in shapes)
        if any(int(each) != 1 for each in attrs.dilation) or 0 in (*data, *out):
            return None
        strides, groups = tuple(int(each) for each in attrs.strides), int(attrs.groups)
        start = tuple(int(each) for each in attrs.padding[:rank])
        # Outputs past the last product are empty sums: an additional zero tap produces them.
        ends = [first + length for first, length in zip(start, out[2:], strict=True)]
        taps = tuple(
            max(-(-kernel // stride), -(-end // stride) - extent + 1)
            for kernel, stride, end, extent in zip(weight[2:], strides, ends, data[2:], strict=True)
        )
        return cls(strides, taps, start, tuple(out[2:]), weight[1] * groups, groups)

    @property
    def phases(self) -> int:
        return int(np.prod(self.strides))

    def kernels(self, weight: Array, fill: int = 0) -> Array:
        """(in, filters / groups, *kernel) -> (filters * phases, in / groups, *taps); `fill` represents zero."""
        rank = len(self.strides)
        grouped = weight.reshape(self.groups, -1, *weight.shape[1:]).swapaxes(1, 2)
        flat = grouped.reshape(self.filters, -1, *weight.shape[2:])
        ends = [
            tap * stride - size for tap, stride, size in zip(self.taps, self.strides, weight.shape[2:], strict=True)
        ]
        full = np.pad(flat, [(0, 0), (0, 0), *((0, end) for end in ends)], constant_values=fill)
        parts = [each for pair in zip(self.taps, self.strides, strict=True) for each in pair]
        split = full.reshape(*flat.shape[:2], *parts)
        phases = [3 + 2 * axis for axis in range(rank)]
        ordered = split.transpose(0, *phases, 1, *(each - 1 for each in phases))
        flipped = np.flip(ordered, tuple(range(rank + 2, 2 * rank + 2)))
        return np.ascontiguousarray(flipped.reshape(self.filters * self.phases, -1, *self.taps))

    def repeated(self, values: Array) -> Array:
        """Repeat one number per filter for each of its phases."""
        return np.repeat(values.reshape(-1), self.phases)

    def convolution(self, data: Expr, kernels: Expr, out_dtype: str) -> Expr:
        """Emit the plain convolution."""
        rank = len(self.strides)
        return getattr(relax.op.nn, f"conv{rank}d")(
            data, kernels, padding=[tap - 1 for tap in self.taps] * 2, groups=self.groups, out_dtype=out_dtype
        )

    def interleave(self, phases: Expr, emit: Emit) -> Expr:
        """Interleave its results (batch, filters * phases, *positions)."""
        batch, _, *positions = static_shape(phases) or ()
        rank = len(positions)
        split = emit(relax.op.reshape(phases, (batch, self.filters, *self.strides, *positions)))
        order = [0, 1, *(axis for each in range(rank) for axis in (2 + rank + each, 2 + each))]
        sizes = [index * stride for index, stride in zip(positions, self.strides, strict=True)]
        joined = emit(relax.op.reshape(emit(relax.op.permute_dims(split, order)), (batch, self.filters, *sizes)))
        ends = [first + size for first, size in zip(self.start, self.size, strict=True)]
        if list(self.start) == [0] * rank and ends == sizes:
            return joined
        return relax.op.strided_slice(joined, list(range(2, 2 + rank)), list(self.start), ends)


PLAIN_CONVOLUTIONS = tuple(name for name in CONVOLUTIONS if not name.endswith("_transpose"))


@dataclass(frozen=True)
class Tap:
    """One filter position along an axis: it reads the input only for outputs `first` to `last` - 1.

    `start` is the input position that it reads for output `first`.
    """

    index: int
    first: int
    last: int
    start: int

    @property
    def outputs(self) -> int:
        return max(0, self.last - self.first)


@dataclass(frozen=True)
class Window:
    """Window of a convolution along one spatial axis, with known sizes."""

    size: int
    out: int
    taps: int
    stride: int
    dilation: int
    before: int
    after: int

    def tap(self, index: int) -> Tap:
        """Return the tap with the outputs o for which 0 <= o * stride + index * dilation - before < size."""
        offset = index * self.dilation - self.before
        first = max(0, -(offset // self.stride))
        last = min(self.out, -((offset - self.size) // self.stride))
        return Tap(index, first, last, first * self.stride + offset)

    @property
    def met(self) -> list[Tap]:
        """Return the taps that read any input."""
        return [tap for tap in map(self.tap, range(self.taps)) if tap.outputs]


def windows_of(call: Call) -> list[Window] | None:
    """Return a window for each spatial axis of a convolution with known sizes in layouts NC... and OI...; otherwise
    None."""
    attrs = call.attrs
    rank = len(attrs.strides)
    spatial = "DHW"[-rank:]
    layouts = str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout) or str(attrs.data_layout)
    shapes = [static_shape(each) for each in (call.args[0], call.args[1], call)]
    if layouts != (f"NC{spatial}", f"OI{spatial}", f"NC{spatial}") or any(shape is None for shape in shapes):
        return None
    data, weight, out = (list(shape or ())[2:] for shape in shapes)
    return [
        Window(
            data[axis],
            out[axis],
            weight[axis],
            int(attrs.strides[axis]),
            int(attrs.dilation[axis]),
            int(attrs.padding[axis]),
            int(attrs.padding[axis + rank]),
        )
        for axis in range(rank)
    ]
