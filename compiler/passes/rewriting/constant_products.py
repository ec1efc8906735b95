"""A common view of convolutions and matrix products with constant weights: scaling and shifting their channels.

Weights are multiplied in their own precision (float32 for float16), which rounds each once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax

from compiler.passes.rewriting.graph import Call, Expr, Graph, operator_name
from compiler.passes.rewriting.matching import Array, as_constant, constant_array, dtype_of, rank_of

CONVOLUTIONS = tuple(f"relax.nn.conv{rank}d{suffix}" for rank in (1, 2, 3) for suffix in ("", "_transpose"))
MATMUL = "relax.matmul"
_FLOATS = ("float16", "float32", "float64")


@dataclass(frozen=True)
class Linear:
    """A convolution, `x @ w` or `w @ x`, whose weight is a constant.

    Attributes:
        call: the call.
        weight: the constant.
        position: which operand it is (0 in `w @ x`, else 1).
        channel_axis: the axis of the result along which filters, columns or rows lie.
        input_axis: the axis of the other operand that is summed over.
        out_axis, in_axis: axes of the weight for output and input channels (for a group's part of them).
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
        """The operand that is not the weight."""
        return self.call.args[1 - self.position]

    @property
    def is_transposed(self) -> bool:
        """True if it is a transposed convolution, whose weight has all input channels and a group's output channels."""
        return str(self.call.op.name).endswith("_transpose")

    @property
    def out_channels(self) -> int:
        """Output channels of all groups."""
        return self.weight.shape[self.out_axis] * (self.groups if self.is_transposed else 1)

    @property
    def in_channels(self) -> int:
        """Input channels of all groups."""
        return self.weight.shape[self.in_axis] * (1 if self.is_transposed else self.groups)

    def rebuilt(self, weight: Array, data: Expr | None = None) -> Call:
        """The call with another weight of the same shape and, if given, other data."""
        operands = [self.data if data is None else data, as_constant(weight)]
        if self.position == 0:
            operands.reverse()
        return relax.Call(self.call.op, operands, self.call.attrs, self.call.ty_args)

    def scaled_outputs(self, factor: Array) -> Array | None:
        """The weight with output channel c multiplied by `factor[c]`; None when a weight overflows."""
        if self.is_transposed:
            return self._times(self._pairs(factor, self.in_axis, self.out_axis))
        return self._times(self._along(factor, self.out_axis))

    def scaled_inputs(self, factor: Array) -> Array | None:
        """The weight that gives for x what this one gives for x with input channel c multiplied by `factor[c]`."""
        if self.is_transposed or self.groups == 1:
            return self._times(self._along(factor, self.in_axis))
        return self._times(self._pairs(factor, self.out_axis, self.in_axis))

    def shift(self, offset: Array) -> Array | None:
        """Offset of each output channel (float64) when `offset[c]` is added to input channel c everywhere.

        None where it is not the same at every position: with padding, in a transposed convolution, in a batch.
        """
        others = [axis for axis in range(self.weight.ndim) if axis not in (self.out_axis, self.in_axis)]
        if operator_name(self.call) == MATMUL:
            if any(self.weight.shape[axis] != 1 for axis in others):
                return None
        elif self.is_transposed or any(int(width) != 0 for width in self.call.attrs.padding):
            return None
        weight = np.transpose(self.weight, [self.out_axis, self.in_axis, *others])
        taps = weight.reshape(*weight.shape[:2], -1).sum(axis=2, dtype=np.float64)  # (out, in of a group)
        grouped = taps.reshape(self.groups, -1, taps.shape[1])
        gain = np.einsum("goi,gi->go", grouped, offset.reshape(self.groups, -1)).reshape(-1)
        return gain if bool(np.isfinite(gain).all()) else None

    def _along(self, factor: Array, axis: int) -> Array:
        shape = [1] * self.weight.ndim
        shape[axis] = -1
        return factor.reshape(shape)

    def _pairs(self, factor: Array, grouped_axis: int, axis: int) -> Array:
        """`factor` of (groups * n) spread over an axis that runs through the groups and the axis of n."""
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
    """The convolution or matrix product with a constant floating-point weight that defines `expr`."""
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
        call,
        weight,
        1,
        out.index("C"),
        data.index("C"),
        kernel.index("O"),
        kernel.index("I"),
        int(attrs.groups),
    )


def per_channel(array: Array | None, rank: int | None, axis: int, channels: int) -> Array | None:
    """`array` as a float64 vector of `channels`, when that is all it is if broadcast to a tensor of `rank`."""
    if array is None or rank is None or array.ndim > rank or array.dtype.name not in _FLOATS:
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    if any(size != 1 for position, size in enumerate(shape) if position != axis) or shape[axis] not in (1, channels):
        return None
    vector = np.broadcast_to(array.reshape(-1), (channels,)).astype(np.float64)
    return vector if bool(np.isfinite(vector).all()) else None


def along_axis(vector: Array, rank: int, axis: int, dtype: str) -> Array:
    """`vector` of c elements as an array of `dtype` that broadcasts along `axis` of a tensor: (c, 1, ..., 1)."""
    return vector.reshape([-1] + [1] * (rank - 1 - axis)).astype(dtype)
