"""Operands of integer operators: quantized tensors, and weights stored in 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm import relax

from compiler.passes.rewriting.graph import Expr, Graph
from compiler.passes.rewriting.matching import (
    Array,
    as_constant,
    constant_array,
    dtype_of,
    rank_of,
)

BYTES = ("int8", "uint8")
WORDS = ("int16", "uint16")


@dataclass(frozen=True)
class Quantized:
    """A dequantization: integers with constant parameters, scalars or vectors along `axis`."""

    data: Expr
    scale: Array
    zero: Array
    axis: int

    @property
    def is_scalar(self) -> bool:
        return self.scale.size == 1 and self.zero.size == 1

    def equals(self, other: Quantized) -> bool:
        """True if the parameters are the same numbers for the same type."""
        return (
            self.is_scalar
            and other.is_scalar
            and dtype_of(self.data) == dtype_of(other.data)
            and float(self.scale.reshape(())) == float(other.scale.reshape(()))
            and int(self.zero.reshape(())) == int(other.zero.reshape(()))
        )

    def dequantized(self, data: Expr) -> Expr:
        """Other integers with the same scalar parameters as floats."""
        zero = self.zero.reshape(())
        return relax.op.dequantize(data, as_constant(self.scale.reshape(())), as_constant(zero), -1, "float32")


def dequantized_operand(graph: Graph, expr: Expr, dtypes: Sequence[str] = BYTES) -> Quantized | None:
    """Tensor that a float operand is the dequantization of, where that is of one of the `dtypes`."""
    call = graph.call(expr, "relax.dequantize")
    if call is None or dtype_of(call) != "float32":
        return None
    scale, zero = (constant_array(graph, each) for each in call.args[1:3])
    if scale is None or zero is None or dtype_of(call.args[0]) not in dtypes:
        return None
    return Quantized(call.args[0], scale, zero, int(call.attrs.axis) % max(rank_of(call) or 1, 1))


@dataclass(frozen=True)
class IntegerWeight:
    """Weights less their zero point, int8 or int16 (see center-weights), and the scale of each filter or of all."""

    values: Array
    scale: Array


def integer_weight(graph: Graph, expr: Expr, filters: int) -> IntegerWeight | None:
    """Constant weights with one scale for all or one per entry of axis `filters`."""
    found = dequantized_operand(graph, expr)
    values = None if found is None else constant_array(graph, found.data)
    if found is None or values is None or (found.scale.size > 1 and found.axis != filters):
        return None
    shape = [1] * values.ndim
    shape[filters] = -1
    zero = found.zero.astype(np.int32)
    shifted = values.astype(np.int32) - (zero.reshape(shape) if zero.size > 1 else zero.reshape(()))
    if shifted.size == 0:
        return None
    fits = shifted.min() >= -128 and shifted.max() <= 127
    return IntegerWeight(shifted.astype(np.int8 if fits else np.int16), found.scale.reshape(-1).astype(np.float32))
