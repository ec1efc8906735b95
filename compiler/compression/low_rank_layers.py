"""The factors of a layer, and the graph with them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import IRModule

from compiler.compression.quantization.edit import Emit, edit_main
from compiler.compression.quantization.layers import Layer
from compiler.passes.graph import Call, Expr, Var
from compiler.passes.matching import Array, as_constant

_FEWEST = 4096  # weights


@dataclass(frozen=True)
class Factors:
    """A layer's weights as a product.

    Attributes:
        arrays: (rows, rank) and (rank, columns) of a matrix; (r1, I, 1, 1), (r2, r1, h, w) and (O, r2, 1, 1) of a
            convolution, whose middle one does what the layer did; (r, I, 1, 1) and (O, r, 1, 1) of one of size 1.
        operations, whole_operations: multiply-adds for one place of the result, strides left aside.
    """

    arrays: tuple[Array, ...]
    ranks: str
    operations: float
    whole_operations: float

    @property
    def size(self) -> int:
        return sum(array.size for array in self.arrays)


def factors_of(layer: Layer, energy: float, lanes: int) -> Factors | None:
    """Factors of the smallest rank that keeps `energy`; None for layers that have none."""
    weight = layer.weight.astype(np.float64)
    if weight.size < _FEWEST:
        return None
    if weight.ndim == 2:
        return _of_matrix(weight, energy, lanes)
    attrs = layer.call.attrs
    if weight.ndim != 4 or int(attrs.groups) != 1 or str(attrs.data_layout) != "NCHW":
        return None
    return _of_pointwise(weight, energy, lanes) if weight.shape[2:] == (1, 1) else _tucker(weight, energy, lanes, attrs)


def _rank(singular: Array, energy: float, lanes: int) -> int:
    squares = np.cumsum(singular**2)
    rank = int(np.searchsorted(squares, energy * squares[-1])) + 1
    return min(len(singular), -(-rank // lanes) * lanes)


def _split(matrix: Array, energy: float, lanes: int) -> tuple[Array, Array]:
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    rank = _rank(s, energy, lanes)
    root = np.sqrt(s[:rank])
    return (u[:, :rank] * root).astype(np.float32), (root[:, None] * v[:rank]).astype(np.float32)


def _of_matrix(weight: Array, energy: float, lanes: int) -> Factors:
    left, right = _split(weight, energy, lanes)
    return Factors((left, right), str(left.shape[1]), left.size + right.size, weight.size)


def _of_pointwise(weight: Array, energy: float, lanes: int) -> Factors:
    left, right = _split(weight[:, :, 0, 0], energy, lanes)
    arrays = (right[:, :, None, None], left[:, :, None, None])
    return Factors(arrays, str(left.shape[1]), left.size + right.size, weight.size)


def _tucker(weight: Array, energy: float, lanes: int, attrs: Any) -> Factors:
    """Bases of both channel axes by singular vectors (a higher-order SVD); each keeps half of what may be lost."""
    each = 1 - (1 - energy) / 2
    bases = []
    for axis in (0, 1):
        unfolded = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
        values, vectors = np.linalg.eigh(unfolded @ unfolded.T)
        singular = np.sqrt(np.maximum(values[::-1], 0))
        bases.append(vectors[:, ::-1][:, : _rank(singular, each, lanes)])
    out, inner = bases
    core = np.einsum("oihw,or,is->rshw", weight, out, inner, optimize=True)
    arrays = (inner.T[:, :, None, None], core, out[:, :, None, None])
    stride = prod(int(step) for step in attrs.strides)
    operations = inner.size * stride + core.size + out.size  # the first one works at the size before the stride
    ranks = f"{inner.shape[1]}, {out.shape[1]}"
    return Factors(tuple(each.astype(np.float32) for each in arrays), ranks, operations, weight.size)


def factored(call: Call, factors: Factors, emit: Emit) -> Expr:
    """The layer's result by its factors."""
    data = call.args[0]
    constants = [as_constant(np.ascontiguousarray(array)) for array in factors.arrays]
    if len(factors.arrays[0].shape) == 2:
        return relax.op.matmul(emit(relax.op.matmul(data, constants[0])), constants[1])
    attrs = call.attrs
    shape = {name: [int(each) for each in getattr(attrs, name)] for name in ("strides", "padding", "dilation")}
    if len(constants) == 2:
        first = emit(relax.op.nn.conv2d(data, constants[0], **shape))
        return relax.op.nn.conv2d(first, constants[1])
    first = emit(relax.op.nn.conv2d(data, constants[0]))
    middle = emit(relax.op.nn.conv2d(first, constants[1], **shape))
    return relax.op.nn.conv2d(middle, constants[2])


def with_factors(mod: IRModule, chosen: dict[Var, Factors]) -> IRModule:
    """The module with the layers bound to these variables factorized."""

    def edit(variable: Var, call: Call, emit: Emit) -> Expr | None:
        return factored(call, chosen[variable], emit) if variable in chosen else None

    return edit_main(mod, edit)
