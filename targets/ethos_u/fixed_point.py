"""32-bit integer arithmetic that TOSA has no operator for: 16-bit lookup tables, reciprocals, square roots.

The accelerator's lookup tables have 256 bytes. A 15-bit number needs two tables, for its high and its low byte; a
function of a 31-bit number looks up its leading bits, followed by one step of Newton's method.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from targets.ethos_u.tosa import Tensor, TosaGraph

Array = np.ndarray
LARGEST = (1 << 15) - 1
_POINT = 30  # position of the leading bit of a normalized number


class FixedPoint:
    """Appends int32 operators to a graph."""

    def __init__(self, graph: TosaGraph) -> None:
        self.graph = graph

    def binary(
        self, code: str, left: Tensor, right: Tensor | int, attribute: str | None = None, *values: object
    ) -> Tensor:
        """An operator of two int32 tensors, or of one and a number; one of them may be broadcast along axes."""
        if isinstance(right, int):
            right = self.graph.constant(np.full((1,) * len(left.shape), right, np.int32))
        shape = tuple(np.broadcast_shapes(left.shape, right.shape))
        return self.graph.emit(code, [left, right], shape, "int32", attribute or f"{code.title()}Attribute", *values)

    def add(self, left: Tensor, right: Tensor | int) -> Tensor:
        """left + right."""
        return self.binary("ADD", left, right)

    def subtract(self, left: Tensor, right: Tensor | int) -> Tensor:
        """left - right."""
        return self.binary("SUB", left, right)

    def minus_from(self, number: int, x: Tensor) -> Tensor:
        """number - x."""
        left = self.graph.constant(np.full((1,) * len(x.shape), number, np.int32))
        return self.graph.emit("SUB", [left, x], x.shape, "int32", "SubAttribute")

    def multiply(self, left: Tensor, right: Tensor) -> Tensor:
        """left * right, which must fit in 32 bits."""
        shape = tuple(np.broadcast_shapes(left.shape, right.shape))
        shift = self.graph.constant(np.zeros(1, np.int8))
        return self.graph.emit("MUL", [left, right, shift], shape, "int32", "MulAttribute")

    def times(self, x: Tensor, number: int) -> Tensor:
        """x * number, which must fit in 32 bits."""
        return self.multiply(x, self.graph.constant(np.full((1,) * len(x.shape), number, np.int32)))

    def shift_left(self, x: Tensor, by: Tensor) -> Tensor:
        """x * 2**by."""
        return self.binary("LOGICAL_LEFT_SHIFT", x, by, "LogicalLeftShiftAttribute")

    def shift_right(self, x: Tensor, by: Tensor | int) -> Tensor:
        """x / 2**by, rounded to nearest, halves up."""
        return self.binary("ARITHMETIC_RIGHT_SHIFT", x, by, "ArithmeticRightShiftAttribute", True)

    def leading_zeros(self, x: Tensor) -> Tensor:
        """Number of leading zeros of the 32 bits."""
        return self.graph.emit("CLZ", [x], x.shape, "int32", "ClzAttribute")

    def sums(self, x: Tensor) -> Tensor:
        """Sums over the last axis, which becomes 1."""
        shape = (*x.shape[:-1], 1)
        return self.graph.emit("REDUCE_SUM", [x], shape, "int32", "ReduceSumAttribute", len(x.shape) - 1)

    def looked_up(self, x: Tensor, numbers: Array) -> Tensor:
        """Look up int32 numbers (0 to 2**15 - 1) in a table of 256, for int8 -128 to 127."""
        high, low = numbers.astype(np.int64) >> 8, (numbers.astype(np.int64) & 255) - 128
        parts = []
        for entries, scale, zero in ((high, 256.0, 0), (low, 1.0, -128)):
            table = self.graph.constant(entries.astype(np.int8))
            part = self.graph.emit("TABLE", [x, table], x.shape, "int8", "TableAttribute")
            parts.append(self.graph.rescale(part, [scale], "int32", zero=zero))
        return self.add(*parts)

    def leading(self, x: Tensor, low: int, bits: int, function: Callable[[Array], Array]) -> Tensor:
        """A function of numbers from `low` to `low` + 2**`bits`, evaluated at the middle of the interval of their top 8
        bits. `function`: maps float64 to 15-bit integers."""
        part = 2.0 ** (bits - 8)
        offset = self.subtract(x, low + int(part) // 2)
        # Round to the nearest of 256 intervals, and the very last number to the last one.
        index = self.graph.rescale(offset, [1 / part], "int8", output_zero=-128)
        return self.looked_up(index, function(low + (np.arange(256) + 0.5) * part))

    def reciprocal(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(r, n) such that 1 / x = r * 2**(n - 45) to 15 bits, x > 0; r from 2**14 to 2**15, n from 0 to 30."""
        shift = self.subtract(self.leading_zeros(x), 1)
        normal = self.shift_left(x, shift)  # 2**30 to 2**31
        first = self.leading(normal, 1 << _POINT, _POINT, lambda v: np.minimum(np.rint(2.0**45 / v), LARGEST))
        short = self.shift_right(self.subtract(normal, 1 << 14), 15)
        # short * first is 2**30 except for the error that Newton's step removes.
        error = self.shift_right(self.minus_from(1 << _POINT, self.multiply(short, first)), 14)
        return self.add(first, self.shift_right(self.multiply(first, error), 16)), shift

    def logarithm(self, x: Tensor, places: int) -> Tensor:
        """ln(x) * 2**places to 2**-9, x > 0; places from 15 to 26."""
        shift = self.subtract(self.leading_zeros(x), 1)
        normal = self.shift_left(x, shift)  # 2**30 to 2**31
        fraction = self.leading(normal, 1 << _POINT, _POINT, lambda v: np.rint(2.0**15 * np.log(v / 2.0**_POINT)))
        whole = self.times(self.minus_from(_POINT, shift), round(np.log(2.0) * 2.0**places))
        return self.add(whole, self.times(fraction, 1 << places - 15))

    def reciprocal_root(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(r, n) such that 1 / sqrt(x) = r * 2**(n - 29) to 14 bits, for positive x: r below 2**15, n from 0 to 15."""
        # Half of the leading zeros after the sign bit, rounded down: an even shift makes x at least 2**29.
        half = self.shift_right(self.subtract(self.leading_zeros(x), 2), 1)
        normal = self.shift_left(x, self.add(half, half))
        first = self.leading(normal, 0, 31, lambda v: np.minimum(np.rint(2.0**29 / np.sqrt(v)), LARGEST))
        square = self.shift_right(self.multiply(first, first), 14)
        # short * square is 2**28 except for the error that Newton's step removes.
        short = self.shift_right(normal, 16)
        error = self.shift_right(self.minus_from(1 << 28, self.multiply(short, square)), 14)
        return self.add(first, self.shift_right(self.multiply(first, error), 15)), half
