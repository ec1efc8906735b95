"""Weights as products of smaller ones.

A matrix by its singular values. A convolution in one of two forms, whichever needs fewer multiplications: as a matrix
(filters against everything else), which makes a convolution of few filters and a 1x1 one (Denton et al.,
arXiv:1404.0736); or by Tucker's decomposition of filters and channels, which makes a 1x1, a small and a 1x1 convolution
(Kim et al., arXiv:1511.06530), its factors by HOSVD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from tvm import relax
from tvm.ir import IRModule

import targets
from compiler.compression.predicted_times import PredictedClock, is_calibrated
from compiler.compression.quantization.edit import Emit, edit_main
from compiler.compression.quantization.layers import Layer
from compiler.driver.compile import compile as compile_model
from compiler.passes.rewriting.graph import Call, Expr, Var
from compiler.passes.rewriting.matching import Array, as_constant, shape_of
from compiler.profiling.timing import seconds_in_turns
from compiler.runtime.random_inputs import random_inputs

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr


@dataclass(frozen=True, eq=False)
class Factors:
    """The weights of the layers that take a layer's place, in order.

    Attributes:
        weights: float32; matrices (in, out), or convolutions (out, in, *kernel) of which one has the whole kernel.
        product: what they multiply to, in the layer's own shape.
        multiplications: a position of the output (of stride 1).
    """

    weights: tuple[Array, ...]
    product: Array
    multiplications: int


def rank_for(singular: Array, energy: float, multiple: int) -> int:
    """The smallest rank that keeps this share of the sum of squares, rounded up to whole vectors."""
    kept = np.cumsum(singular.astype(np.float64) ** 2)
    if not kept[-1]:
        return 1
    rank = int(np.searchsorted(kept, energy * kept[-1] * (1 - 1e-12)) + 1)
    return min(-(-rank // multiple) * multiple, len(singular))


def factor_matrix(weight: Array, energy: float, multiple: int) -> Factors:
    """(in, out) as (in, rank) times (rank, out)."""
    left, singular, right = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    rank = rank_for(singular, energy, multiple)
    root = np.sqrt(singular[:rank])
    first, second = left[:, :rank] * root, root[:, None] * right[:rank]
    return _factors([first, second], first @ second, first.size + second.size)


def factor_filters(weight: Array, energy: float, multiple: int) -> Factors:
    """(out, in, *kernel) as `rank` filters and a 1x1 convolution of them."""
    out = weight.shape[0]
    matrix = factor_matrix(weight.reshape(out, -1).T, energy, multiple)
    first, second = matrix.weights
    rank = first.shape[1]
    weights = [first.T.reshape(rank, *weight.shape[1:]), second.T.reshape(out, rank, *_ones(weight))]
    return _factors(weights, matrix.product.T.reshape(weight.shape), matrix.multiplications)


def factor_tucker(weight: Array, energy: float, multiple: int) -> Factors:
    """(out, in, *kernel) as a 1x1 convolution, one between fewer channels and fewer filters, and a 1x1 one.

    Each of the two modes may lose half of what may be lost: the squared error is at most the sum of what both lose
    (De Lathauwer et al., 2000, property 10).
    """
    out, channels = weight.shape[:2]
    exact = weight.astype(np.float64).reshape(out, channels, -1)
    share = 1 - (1 - energy) / 2
    filters = _basis(exact.reshape(out, -1), share, multiple)
    inputs = _basis(exact.transpose(1, 0, 2).reshape(channels, -1), share, multiple)
    core = np.einsum("oik,of,ic->fck", exact, filters, inputs, optimize=True)
    product = np.einsum("fck,of,ic->oik", core, filters, inputs, optimize=True).reshape(weight.shape)
    small = core.reshape(*core.shape[:2], *weight.shape[2:])
    weights = [
        inputs.T.reshape(*inputs.T.shape, *_ones(weight)),
        small,
        filters.reshape(*filters.shape, *_ones(weight)),
    ]
    return _factors(weights, product, sum(each.size for each in weights))


def factor_convolution(weight: Array, energy: float, multiple: int) -> Factors:
    """The decomposition with fewer multiplications."""
    ways = [factor_filters(weight, energy, multiple)]
    if any(size > 1 for size in weight.shape[2:]):
        ways.append(factor_tucker(weight, energy, multiple))
    return min(ways, key=lambda way: way.multiplications)


def _basis(matrix: Array, energy: float, multiple: int) -> Array:
    """The leading left singular vectors, (rows, rank)."""
    values, vectors = np.linalg.eigh(matrix @ matrix.T)
    singular = np.sqrt(np.maximum(values[::-1], 0))
    basis: Array = vectors[:, ::-1][:, : rank_for(singular, energy, multiple)]
    return basis


def _ones(weight: Array) -> tuple[int, ...]:
    return (1,) * (weight.ndim - 2)


def _factors(weights: Sequence[Array], product: Array, multiplications: int) -> Factors:
    return Factors(tuple(each.astype(np.float32) for each in weights), product.astype(np.float32), multiplications)


# Layers replaced by the layers of their factors.


def factored(mod: IRModule, layers: Sequence[Layer], factors: Mapping[str, Factors]) -> IRModule:
    """`mod` with the layers that are in `factors`, by name, in their factored form."""
    changed = {layer.variable: factors[layer.name] for layer in layers if layer.name in factors}

    def edit(variable: Var, call: Call, emit: Emit) -> Expr | None:
        return chain(call, changed[variable].weights, emit) if variable in changed else None

    return edit_main(mod, edit)


def chain(call: Call, weights: Sequence[Array], emit: Emit) -> Expr:
    """The call's data through layers of these weights: the one with the kernel has the call's strides and padding."""
    value: Expr = call.args[0]
    is_matmul = call.op.name == "relax.matmul"
    whole = 0 if is_matmul else _with_kernel(call, weights)
    for index, weight in enumerate(weights):
        if is_matmul:
            result = relax.op.matmul(value, as_constant(weight))
        else:
            result = _convolution(call, value, weight, own=index == whole)
        value = result if index == len(weights) - 1 else emit(result)
    return value


def _with_kernel(call: Call, weights: Sequence[Array]) -> int:
    kernel = tuple(int(size) for size in call.args[1].ty.shape)[2:]
    return next(index for index, weight in enumerate(weights) if weight.shape[2:] == kernel)


def _convolution(call: Call, data: Expr, weight: Array, *, own: bool) -> Expr:
    """With the attributes of `call` where they are its `own`, plain otherwise."""
    operator = getattr(relax.op.nn, call.op.name.rsplit(".", 1)[-1])
    attributes = call.attrs
    layouts = {"data_layout": str(attributes.data_layout), "kernel_layout": str(attributes.kernel_layout)}
    if not own:
        return operator(data, as_constant(weight), **layouts)
    places = {name: [int(each) for each in getattr(attributes, name)] for name in ("strides", "padding", "dilation")}
    return operator(data, as_constant(weight), **places, **layouts)


# Whether a layer is faster in factors: by the cost model of the target's machine, or by timing both forms
# alternately.


class LayerTimer:
    """Times of layers on one thread; those of equal sizes are cached.

    Args:
        measured: they are timed on this machine; otherwise their times are predicted.
    """

    def __init__(self, target: targets.Target, measured: bool) -> None:
        self._target, self._is_measured = target, measured
        self._predicted = PredictedClock(target)
        self._known: dict[tuple[object, ...], float] = {}

    def gain(self, layer: Layer, weights: Sequence[Array]) -> float | None:
        """Speedup of the factors over the whole layer; None where it is not known.

        That is data of symbolic size, a target that this machine cannot run when times are measured, and one for which
        none are predicted otherwise.
        """
        shape = shape_of(layer.data)
        known = self._target.fits_this_machine() if self._is_measured else is_calibrated(self._target)
        if not known or shape is None or not all(isinstance(size, int) for size in shape):
            return None
        fixed = tuple(int(size) for size in shape)
        key = (fixed, str(layer.call.attrs), layer.weight.shape, tuple(each.shape for each in weights))
        if key not in self._known:
            self._known[key] = (self._measured if self._is_measured else self._by_machine)(layer, fixed, weights)
        return self._known[key]

    def _by_machine(self, layer: Layer, shape: tuple[int, ...], weights: Sequence[Array]) -> float:
        mods = [self._alone(layer, shape, own) for own in ([layer.weight], weights)]
        whole, parts = (sum(kernel.seconds for kernel in kernels) for kernels in self._predicted(mods))
        return whole / parts

    def _measured(self, layer: Layer, shape: tuple[int, ...], weights: Sequence[Array]) -> float:
        modules = [
            compile_model(self._alone(layer, shape, own), self._target, threads=1) for own in ([layer.weight], weights)
        ]
        inputs = random_inputs(modules[0].inputs)
        runs = [partial(each.run, inputs) for each in modules]
        whole, parts = seconds_in_turns(runs)
        return whole / parts

    def _alone(self, layer: Layer, shape: tuple[int, ...], weights: Sequence[Array]) -> IRModule:
        """A module of the layer alone, its data and result as the caller has them."""
        builder = relax.BlockBuilder()
        data = relax.Var("x", relax.TensorType(shape, "float32"))
        call = relax.Call(layer.call.op, [data, *layer.call.args[1:]], layer.call.attrs, layer.call.ty_args)
        with builder.function("main", [data]):
            with builder.dataflow():
                result: Expr = builder.emit(chain(call, weights, builder.emit) if len(weights) > 1 else call)
                output = builder.emit_output(relax.Tuple([result]))
            builder.emit_func_output(output)
        return builder.get()
