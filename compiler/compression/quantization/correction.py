"""Bias correction: rounding weights shifts the mean of each filter's result; the bias compensates for it.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv:1906.04721, section 4.2,
with the means of the activations measured instead of derived.
"""

from __future__ import annotations

import numpy as np

from compiler.compression.quantization.affine import Array, QuantizedWeight
from compiler.compression.quantization.layers import Layer


def bias_correction(layer: Layer, weight: QuantizedWeight, means: Array) -> Array:
    """What to add to each filter's result: minus the mean effect of the change of its weights.

    Args:
        means: of each channel of the layer's activations. Borders, where padding takes part, are left out of account.
    """
    change = layer.weight.astype(np.float64) - weight.dequantized()
    if layer.product.is_matrix:  # a matrix (channels, filters)
        return (means @ change).astype(np.float32)
    if layer.product.filters == 1:  # (channels, filters, ...) of a transposed convolution
        return np.asarray(means @ change.reshape(*change.shape[:2], -1).sum(axis=2), np.float32)
    groups = int(layer.call.attrs.groups)
    sums = change.reshape(change.shape[0], change.shape[1], -1).sum(axis=2)
    of_group = means.reshape(groups, -1)
    return np.einsum("goc,gc->go", sums.reshape(groups, -1, sums.shape[1]), of_group).reshape(-1).astype(np.float32)
