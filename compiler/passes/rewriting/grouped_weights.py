"""Weights with one scale per group of neighbors along the depth of a matmul, as graphs express them.

    permute_dims(reshape(dequantize(integers (columns * groups, group), scales (columns * groups,), axis 0),
                         (columns, groups * group)))

optionally cropped to the first `depth` elements by a strided_slice, and without a reshape if a column is one group: a
matrix (depth, columns).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import relax
from tvm.ir import GenericConst

from compiler.passes.rewriting.graph import Expr, operator_name
from compiler.passes.rewriting.matching import Array, array_of, as_constant, dtype_of, rank_of, static_shape

Emit = Callable[[Expr], Expr]
# Returns the value a variable is bound to; other expressions unchanged.
Define = Callable[[Expr], Expr]


@dataclass(frozen=True)
class GroupedWeight:
    """A matrix (depth, columns) stored as integers.

    Attributes:
        values: int8 (depth, columns); -8 to 7 for 4 bits.
        scales: float32 or float16 (groups, columns).
        zeros: float32 (groups, columns), None if all are 0.
        group: number of neighbors along the depth that share a scale.
        bits: 4 or 8.
    """

    values: Array
    scales: Array
    zeros: Array | None
    group: int
    bits: int

    def dequantized(self) -> Array:
        """Return the weight as float32."""
        depth = len(self.values)
        scales = np.repeat(self.scales.astype(np.float32), self.group, 0)[:depth]
        zeros = 0 if self.zeros is None else np.repeat(self.zeros, self.group, 0)[:depth]
        return ((self.values.astype(np.float32) - zeros) * scales).astype(np.float32)


def grouped_rows(values: Array, scales: Array, zeros: Array | None, group: int, emit: Emit) -> Expr:
    """Build the graph of a weight (columns, depth).

    Args:
        values: int8 or uint8 (columns, depth).
        scales: of a type no wider than float32, (columns, groups).
        zeros: integers of the type of `values`, (columns, groups); None for 0.
        group: number of neighbors along the depth that share a scale.
    """
    columns, depth = values.shape
    groups = scales.shape[1]
    padded = np.zeros((columns, groups * group), values.dtype)
    padded[:, :depth] = values
    flat = np.ascontiguousarray(scales.astype(np.float32)).reshape(-1)
    zero = np.zeros(flat.shape, values.dtype) if zeros is None else np.ascontiguousarray(zeros).reshape(-1)
    rows = as_constant(padded.reshape(columns * groups, group))
    wide = emit(relax.op.dequantize(rows, as_constant(flat), as_constant(zero), 0, "float32"))
    wide = emit(relax.op.reshape(wide, (columns, groups * group)))
    return wide if groups * group == depth else emit(relax.op.strided_slice(wide, [1], [0], [depth]))


def grouped_expression(values: Array, scales: Array, zeros: Array | None, group: int, emit: Emit) -> Expr:
    """Build the graph of a weight (depth, columns) with scales and zero points (groups, columns); see
    `grouped_rows`."""
    rows = grouped_rows(values.T, scales.T, None if zeros is None else zeros.T, group, emit)
    return emit(relax.op.permute_dims(rows))


def grouped_weight(expr: Expr, define: Define) -> GroupedWeight | None:
    """Return the weight if a matrix has the form of `grouped_expression`."""
    call = define(expr)
    if operator_name(call) != "relax.permute_dims" or rank_of(call) != 2:
        return None
    shape = static_shape(call)
    call = define(call.args[0])
    if operator_name(call) == "relax.strided_slice" and _is_head(call):
        call = define(call.args[0])
    if shape is None:
        return None
    full = (shape[1], shape[0])
    if operator_name(call) == "relax.reshape":
        reshaped = static_shape(call)
        full = (0, 0) if reshaped is None or len(reshaped) != 2 else (reshaped[0], reshaped[1])
        call = define(call.args[0])
    if operator_name(call) != "relax.dequantize" or dtype_of(call) != "float32":
        return None
    integers, scale, zero = (_array(define(each)) for each in call.args)
    if integers is None or scale is None or zero is None or integers.dtype.kind not in "iu" or integers.itemsize != 1:
        return None
    depth, columns = shape
    if integers.ndim != 2 or full[0] != columns or integers.size != full[0] * full[1]:
        return None
    if full[1] % integers.shape[1] or scale.shape != integers.shape[:1]:
        return None
    if int(call.attrs.axis) % 2 != 0 or (zero.size != 1 and zero.shape != scale.shape):
        return None
    return _narrowed(integers, scale, np.broadcast_to(zero, scale.shape), (depth, columns))


def _is_head(call: Expr) -> bool:
    """True if a slice takes the first elements of each row."""
    axes, begin, strides = (
        [int(getattr(each, "value", each)) for each in part.fields] if isinstance(part, relax.Tuple) else None
        for part in (call.args[1], call.args[2], call.args[4] if len(call.args) > 4 else relax.Tuple([]))
    )
    return axes in ([1], [-1]) and begin == [0] and all(each == 1 for each in strides or ())


def _array(expr: Expr) -> Array | None:
    return array_of(expr) if isinstance(expr, GenericConst) else None


def _narrowed(integers: Array, scale: Array, zero: Array, shape: tuple[int, int]) -> GroupedWeight:
    """Return the weight in as few bits as possible, with zero points of 0 if possible."""
    depth, columns = shape
    group = integers.shape[1]
    signed, zeros = integers.astype(np.int16), zero.astype(np.int16)
    if (zeros == zeros[0]).all() and int(signed.min()) - zeros[0] >= -128 and int(signed.max()) - zeros[0] <= 127:
        middle = int(zeros[0])
    elif int(signed.max()) - int(signed.min()) < 16:
        middle = int(signed.min()) + 8
    else:
        middle = 128 if integers.dtype == np.uint8 else 0
    signed, zeros = signed - middle, zeros - middle
    bits = 4 if int(signed.min()) >= -8 and int(signed.max()) <= 7 else 8
    values = signed.astype(np.int8).reshape(columns, -1)[:, :depth].T
    by_group = (columns, -1)
    half = scale.astype(np.float16)
    scales = half if np.array_equal(half.astype(np.float32), scale) else scale.astype(np.float32)
    return GroupedWeight(
        np.ascontiguousarray(values),
        np.ascontiguousarray(scales.reshape(by_group).T),
        np.ascontiguousarray(zeros.astype(np.float32).reshape(by_group).T) if np.any(zeros) else None,
        group,
        bits,
    )
