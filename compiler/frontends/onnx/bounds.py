"""Bounds checks: sizes that must agree, and ranges of indices, lengths and counts.

Known values are checked during import. Input sizes, and inputs that hold indices, are checked before a run; computed
sizes are checked during it. Computed indices are clamped by the kernels that use them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import relax, tirx

from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.size_checks import Relation
from compiler.frontends.onnx.symbolic import Dim, expression, is_number
from compiler.frontends.onnx.values import tensor_shape
from schedules.ir.tvm_types import Expr


def require(context: NodeContext, left: Dim, relation: Relation, right: Dim) -> None:
    """Check a relation between two sizes: raises InvalidModelError for numbers, otherwise emits a run-time check."""
    if is_number(left) and is_number(right):
        if not {
            "equal": left == right,
            "at least": left >= right,
            "broadcast": left == right or 1 in (left, right),
        }[relation]:
            context.invalid(f"its sizes do not fit: {left} and {right} are not {relation}")
        return
    context.importer.builder.require(left, relation, right)


def require_shape(context: NodeContext, shape: Sequence[Dim], expected: Sequence[Dim], what: str) -> None:
    """Check that a shape is the expected one; `what` names the tensor in the message."""
    if len(shape) != len(expected):
        context.invalid(f"{what} has rank {len(shape)}, not {len(expected)}")
    for size, expected_size in zip(shape, expected, strict=True):
        if is_number(size) and is_number(expected_size) and size != expected_size:
            context.invalid(f"{what} has the shape {_text(shape)}, not {_text(expected)}")
        require(context, size, "equal", expected_size)


def require_multiple(context: NodeContext, size: Dim, divisor: int) -> None:
    """Check that a size is a multiple of a divisor."""
    if is_number(size):
        if size % divisor:
            context.invalid(f"a size of {size} does not divide by {divisor}")
        return
    require(context, context.arithmetic.floor_mod(size, divisor), "equal", 0)


def require_entries(context: NodeContext, size: Dim, count: Dim) -> None:
    """Check that an axis has an entry, unless nothing is read from it: `count` is 0."""
    if not (is_number(size) and size > 0):
        require(context, size, "at least", context.arithmetic.minimum(count, 1))


def require_indices(context: NodeContext, position: int, size: Dim, count: Dim | None = None) -> None:
    """Check that input `position` holds indices into an axis of that size; negative ones count from its end.

    `count` is the number of elements read with them (by default the number of indices).
    """
    require_values(context, position, None, size)
    number = context.arithmetic.product(context.shape(position)) if count is None else count
    require_entries(context, size, number)


def require_within(context: NodeContext, shape: Sequence[Dim], outer: Sequence[Dim], axis: int) -> None:
    """Check that a shape is no larger than another of the same rank, along any axis but the given one."""
    for other, (size, limit) in enumerate(zip(shape, outer, strict=True)):
        if other != axis:
            require(context, limit, "at least", size)


def require_coordinates(context: NodeContext, position: int, sizes: Sequence[Dim]) -> None:
    """Check that input `position` holds coordinates in its last axis: indices into axes of those sizes, in order."""
    count = context.arithmetic.product(context.shape(position)[:-1])
    for size in sizes:
        require_entries(context, size, count)
    known = context.known(position)
    if known is not None and known.size:
        for column, size in enumerate(sizes):
            require_constants(context, known[..., column], None, size)
    elif known is None and all(context.arithmetic.equal_is_proved(size, sizes[0]) for size in sizes):
        context.importer.builder.require_range(context.input(position), None, sizes[0])


def require_values(context: NodeContext, position: int, least: Dim | None, size: Dim) -> None:
    """Check that the elements of input `position` are in [least, size); a `least` of None means -size.

    Raises InvalidModelError for known elements in a known range, otherwise emits a check before a run. Computed
    elements are not checked: the kernel clamps them, or skips those out of range.
    """
    known = context.known(position)
    if known is None:
        context.importer.builder.require_range(context.input(position), least, size)
    elif known.size:
        require_constants(context, known, least, size)


def require_constants(context: NodeContext, known: np.ndarray, least: Dim | None, size: Dim) -> None:
    """Like `require_values`, for a known, nonempty array."""
    low, high = int(known.min()), int(known.max())
    numbers = is_number(size) and (least is None or is_number(least))
    if numbers and not (-size if least is None else least) <= low <= high < size:
        wrong = high if high >= size else low
        context.invalid(f"{wrong} lies outside [{-size if least is None else least}, {size})")
    if numbers:
        return
    require(context, size, "at least", high + 1)
    if least is None:
        require(context, size, "at least", -low)
    else:
        require(context, low, "at least", least)


def _text(shape: Sequence[Dim]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def with_size(context: NodeContext, tensor: relax.Expr, axis: int, size: Dim) -> relax.Expr:
    """Return the tensor with its size at an axis checked, and from here on known, to be `size`."""
    shape = list(tensor_shape(tensor))
    require(context, shape[axis], "equal", size)
    if is_number(shape[axis]) or context.arithmetic.equal_is_proved(shape[axis], size):
        return tensor
    shape[axis] = size
    return context.match_shape(tensor, shape)


def limited_position(value: Expr, size: Expr, index_dtype: str = "int64") -> Expr:
    """Convert a float coordinate inside a kernel to the index of an element of an axis of that size.

    It is clamped before the cast, which is undefined for infinities and NaN, and after it: float32 rounds large sizes.
    """
    dtype = str(value.ty.dtype)
    last = tirx.max(size.astype(dtype) - tirx.const(1, dtype), tirx.const(0, dtype))
    inside = tirx.max(tirx.min(value, last), tirx.const(0, dtype))
    return limited(inside, 0, size - 1, index_dtype)


def limited(value: Expr, low: object, high: Expr, dtype: str = "int64") -> Expr:
    """Clamp a value inside a kernel to [low, high], as an integer of that dtype."""
    low, high = expression(low).astype(dtype), expression(high).astype(dtype)
    return tirx.max(tirx.min(value.astype(dtype), high), low)
