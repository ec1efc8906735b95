"""SmoothQuant: part of what makes activations hard to quantize moves into the weights, channel by channel.

    x @ w => (x / s) @ (s w),   s = max|x|^strength / max|w|^(1 - strength) a channel

Xiao et al., arXiv:2211.10438, equation 4. The division is part of the kernel that quantizes x.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from tvm import relax
from tvm.ir import IRModule

from compiler.compression.quantization.affine import Array
from compiler.compression.quantization.edit import Emit, edit_main, with_operands
from compiler.compression.quantization.layers import Layer
from compiler.compression.quantization.statistics import Statistics
from compiler.passes.rewriting.graph import Call, Expr, Var
from compiler.passes.rewriting.matching import as_constant

STRENGTH = 0.5
# Where the largest channel is within this factor of the middle one, there is nothing to smooth.
_UNEVEN = 4.0


def smooth(mod: IRModule, layers: Collection[Layer], statistics: Mapping[Var, Statistics]) -> IRModule:
    """`mod` with the activations of matrix products smoothed where their channels are uneven; the same function."""
    factors = {
        layer.variable: (layer, found)
        for layer in layers
        if layer.product.is_matrix and (found := smoothing_factors(layer, statistics[layer.data])) is not None
    }
    if not factors:
        return mod

    def edit(variable: Var, call: Call, emit: Emit) -> Expr | None:
        if variable not in factors:
            return None
        layer, factor = factors[variable]
        data = emit(relax.op.multiply(layer.data, as_constant((1 / factor).astype(np.float32))))
        weight = as_constant((layer.weight * factor[:, None]).astype(np.float32))
        return with_operands(call, {layer.product.data: data, layer.product.weight: weight})

    return edit_main(mod, edit)


def smoothing_factors(layer: Layer, statistics: Statistics) -> Array | None:
    """One positive number per channel, their geometric mean 1; None where the channels are even."""
    largest = statistics.largest.astype(np.float64)
    middle = float(np.median(largest))
    if not largest.size or middle <= 0 or largest.max() < _UNEVEN * middle:
        return None
    # A channel that was never seen to move keeps its scale, near that of the smallest that was.
    activations = np.maximum(largest, 1e-2 * middle)
    weights = np.abs(layer.weight).max(axis=1).astype(np.float64)
    weights = np.maximum(weights, 1e-2 * max(float(np.median(weights)), 1e-30))
    factor = activations**STRENGTH / weights ** (1 - STRENGTH)
    return factor / np.exp(np.log(factor).mean())
