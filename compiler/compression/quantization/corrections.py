"""Corrections before and after quantization: biases, equalization across layers, SmoothQuant."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from tvm import relax
from tvm.ir import GenericConst, IRModule

from compiler.compression.quantization.affine import Array, QuantizedWeight
from compiler.compression.quantization.calibration import Statistics
from compiler.compression.quantization.edit import Emit, edit_main, with_operands
from compiler.compression.quantization.layers import Layer, LayerGraph
from compiler.passes.rewriting.graph import Call, Expr, Var, operator_name
from compiler.passes.rewriting.matching import array_of, as_constant

# Bias correction: rounding weights shifts the mean of each filter's result; the bias compensates for it.
#
# Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv:1906.04721, section 4.2,
# with the means of the activations measured instead of derived.


def bias_correction(layer: Layer, weight: QuantizedWeight, means: Array) -> Array:
    """Correction of each filter's result: minus the mean effect of the change of its weights. `means`: mean of each
    channel of the layer's activations. Borders, which include padding, are ignored."""
    change = layer.weight.astype(np.float64) - weight.dequantized()
    if layer.operator.is_matrix:  # a matrix (channels, filters)
        return (means @ change).astype(np.float32)
    if layer.operator.filters == 1:  # (channels, filters, ...) of a transposed convolution
        return np.asarray(means @ change.reshape(*change.shape[:2], -1).sum(axis=2), np.float32)
    groups = int(layer.call.attrs.groups)
    sums = change.reshape(change.shape[0], change.shape[1], -1).sum(axis=2)
    of_group = means.reshape(groups, -1)
    return np.einsum("goc,gc->go", sums.reshape(groups, -1, sums.shape[1]), of_group).reshape(-1).astype(np.float32)


# Cross-layer equalization: two convolutions with only a ReLU in between share the range of each channel.
#
#     w_b relu(w_a x + b) => (w_b s) relu((w_a x + b) / s),   s = sqrt(max|w_a| max|w_b|) / max|w_b| a channel
#
# Nagel et al., arXiv:1906.04721, section 4.1. It matters most for weights with one scale for all filters.

# Positive factors commute with these.
_HOMOGENEOUS = ("relax.nn.relu", "relax.nn.leakyrelu")
_ROUNDS = 10


def equalize(mod: IRModule, graph: LayerGraph) -> IRModule:
    """`mod` with other constants and the same results."""
    pairs = [pair for layer in graph.layers if (pair := _partner(graph, layer)) is not None]
    if not pairs:
        return mod
    weights = {layer.variable: layer.weight.astype(np.float64) for layer in graph.layers}
    scales = {layer.variable: np.ones(layer.weight.shape[0]) for layer, _ in pairs}
    for _ in range(_ROUNDS):
        for first, second in pairs:
            factor = _factor(weights[first.variable], weights[second.variable], second)
            weights[first.variable] /= factor.reshape(-1, *[1] * (first.weight.ndim - 1))
            weights[second.variable] *= _along_inputs(factor, second)
            scales[first.variable] *= factor
    changed = {each.variable for pair in pairs for each in pair}
    biases = {first.bias: scales[first.variable] for first, _ in pairs if first.bias is not None}

    def edit(variable: Var, call: Call, emit: Emit) -> Expr | None:
        if variable in biases:
            bias = array_of(call.args[1])
            shape = (1, -1, *[1] * (int(variable.ty.ndim) - 2))
            return with_operands(call, {1: as_constant((bias / biases[variable].reshape(shape)).astype(np.float32))})
        if variable in changed:
            return with_operands(call, {1: as_constant(weights[variable].astype(np.float32))})
        return None

    return edit_main(mod, edit)


def _partner(graph: LayerGraph, second: Layer) -> tuple[Layer, Layer] | None:
    """(the convolution before, `second`), if there are no other readers in between and factors commute."""
    first = next((each for each in graph.layers if each.variable.same_as(graph.root(second.data))), None)
    if first is None or 1 in (first.operator.filters, second.operator.filters):
        return None
    if graph.readers.get(first.variable) != [second.variable]:
        return None
    at = second.data
    while not at.same_as(first.variable):
        call = graph.definitions[at]
        is_bias = first.bias is not None and at.same_as(first.bias)
        if not is_bias and operator_name(call) not in _HOMOGENEOUS:
            return None
        if is_bias and not _adds_to_channels(call, first):
            return None
        at = call.args[0]
    groups = int(second.call.attrs.groups)
    return (first, second) if groups in (1, second.weight.shape[0]) else None


def _adds_to_channels(call: Call, layer: Layer) -> bool:
    """True if the added constant has one number per filter."""
    shape = (1, layer.weight.shape[0], *[1] * (int(call.ty.ndim) - 2))
    constant = call.args[1]
    return isinstance(constant, GenericConst) and array_of(constant).shape in (shape, shape[1:])


def _factor(first: Array, second: Array, layer: Layer) -> Array:
    ranges = np.abs(first).reshape(first.shape[0], -1).max(axis=1)
    depthwise = int(layer.call.attrs.groups) > 1
    following = np.abs(second if depthwise else second.swapaxes(0, 1)).reshape(ranges.size, -1).max(axis=1)
    usable = (ranges > 0) & (following > 0)
    return np.where(usable, np.sqrt(np.where(usable, ranges / np.where(following > 0, following, 1), 1)), 1.0)


def _along_inputs(factor: Array, layer: Layer) -> Array:
    """The factors of the input channels, shaped to broadcast over the weights."""
    rest = [1] * (layer.weight.ndim - 2)
    depthwise = int(layer.call.attrs.groups) > 1
    return factor.reshape(-1, 1, *rest) if depthwise else factor.reshape(1, -1, *rest)


# SmoothQuant: moves part of the activations' quantization difficulty into the weights, channel by channel.
#
#     x @ w => (x / s) @ (s w),   s = max|x|^strength / max|w|^(1 - strength) a channel
#
# Xiao et al., arXiv:2211.10438, equation 4. The division is part of the kernel that quantizes x.

STRENGTH = 0.5
# If the largest channel is within this factor of the median, there is nothing to smooth.
_UNEVEN = 4.0


def smooth(mod: IRModule, layers: Collection[Layer], statistics: Mapping[Var, Statistics]) -> IRModule:
    """`mod` with the activations of matmuls smoothed if their channels are uneven; the same function."""
    factors = {
        layer.variable: (layer, found)
        for layer in layers
        if layer.operator.is_matrix and (found := smoothing_factors(layer, statistics[layer.data])) is not None
    }
    if not factors:
        return mod

    def edit(variable: Var, call: Call, emit: Emit) -> Expr | None:
        if variable not in factors:
            return None
        layer, factor = factors[variable]
        data = emit(relax.op.multiply(layer.data, as_constant((1 / factor).astype(np.float32))))
        weight = as_constant((layer.weight * factor[:, None]).astype(np.float32))
        return with_operands(call, {layer.operator.data: data, layer.operator.weight: weight})

    return edit_main(mod, edit)


def smoothing_factors(layer: Layer, statistics: Statistics) -> Array | None:
    """One positive number per channel, with geometric mean 1; None if the channels are even."""
    largest = statistics.largest.astype(np.float64)
    middle = float(np.median(largest))
    if not largest.size or middle <= 0 or largest.max() < _UNEVEN * middle:
        return None
    # A channel that was always constant keeps a scale near that of the smallest that was not.
    activations = np.maximum(largest, 1e-2 * middle)
    weights = np.abs(layer.weight).max(axis=1).astype(np.float64)
    weights = np.maximum(weights, 1e-2 * max(float(np.median(weights)), 1e-30))
    factor = activations**STRENGTH / weights ** (1 - STRENGTH)
    return factor / np.exp(np.log(factor).mean())
