"""Tensors of one value, which other families make too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import relax
from tvm.relax import op as R

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.symbolic import Dim, expression


def filled(context: NodeContext, value: float | np.generic, dtype: str, sizes: Sequence[Dim]) -> relax.Expr:
    """A tensor of one value."""
    scalar = context.literal(value, dtype)
    carrier = dtypes.carrier(dtype)
    # TVM's full() fails on infinities.
    if dtypes.is_float(dtype) and not np.isfinite(np.float64(value)):
        return context.emit(R.broadcast_to(scalar, sizes_expr(sizes)))
    return context.emit(R.full(sizes_expr(sizes), scalar, carrier))


def sizes_expr(sizes: Sequence[Dim]) -> relax.ShapeExpr:
    """Sizes as Relax's shape."""
    return relax.ShapeExpr([expression(size) for size in sizes])
