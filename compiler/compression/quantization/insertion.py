"""Putting pairs of quantize and dequantize into a graph, as the ONNX importer makes them of QDQ models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from tvm import relax
from tvm.ir import IRModule

from compiler.compression.quantization.affine import Affine, Array, QuantizedWeight
from compiler.compression.quantization.edit import Emit, edit_main, with_operands
from compiler.compression.quantization.layers import Layer, Placement
from compiler.passes.rewriting.graph import Call, Expr, Var
from compiler.passes.rewriting.matching import array_of, as_constant, rank_of


class Dequantizable(Protocol):
    """Rounded weights."""

    def dequantized(self) -> Array:
        """The weights as float32."""


WeightT = TypeVar("WeightT", bound=Dequantizable, covariant=True)


@dataclass(frozen=True)
class Numbers(Generic[WeightT]):
    """The parameters of a placement.

    Attributes:
        activations: quantization parameters of each site; a site without them is left unchanged.
        weights: quantized weights of each layer, by its variable.
        shifts: what to add to each filter's result, by the layer's variable: corrections of the bias.
    """

    activations: Mapping[Var, Affine]
    weights: Mapping[Var, WeightT]
    shifts: Mapping[Var, Array]


def insert_pairs(mod: IRModule, placement: Placement, numbers: Numbers[QuantizedWeight]) -> IRModule:
    """`mod` with each operand of a placement read through integers."""
    inserter = _Inserter(mod, placement, numbers)
    return edit_main(mod, inserter.edit)


def dequantized_weight(weight: QuantizedWeight) -> Expr:
    """The weights as a dequantization of constants."""
    zero = as_constant(np.zeros(weight.scale.shape, np.int8))
    axis = weight.axis if weight.scale.ndim else -1
    return relax.op.dequantize(as_constant(weight.values), as_constant(weight.scale), zero, axis, "float32")


def pair(data: Expr, affine: Affine, emit: Emit) -> Var:
    """dequantize(quantize(data))."""
    scale = as_constant(np.asarray(affine.scale, np.float32))
    zero = as_constant(np.asarray(affine.zero, affine.dtype))
    quantized = emit(relax.op.quantize(data, scale, zero, -1, affine.dtype))
    return emit(relax.op.dequantize(quantized, scale, zero, -1, "float32"))


class _Inserter:
    def __init__(self, mod: IRModule, placement: Placement, numbers: Numbers[QuantizedWeight]) -> None:
        self._numbers = numbers
        self._operands, self._made = placement.operands, placement.made
        self._layers = {layer.variable: layer for layer in placement.layers}
        self._biases = {layer.bias: layer for layer in placement.layers if layer.bias is not None}
        self._block = {
            binding.var: index for index, block in enumerate(mod["main"].body.blocks) for binding in block.bindings
        }
        self._pairs: dict[tuple[Var, int], Var] = {}

    def edit(self, variable: Var, call: Call, emit: Emit) -> Expr | None:
        """The new value of a binding, rounded where that is done here."""
        value = self._edited(variable, call, emit)
        if variable not in self._made:
            return value
        return pair(emit(call if value is None else value), self._numbers.activations[variable], emit)

    def _edited(self, variable: Var, call: Call, emit: Emit) -> Expr | None:
        if variable in self._biases:
            return self._with_bias(self._biases[variable], call)
        read = self._operands.get(variable)
        if read is None:
            return None
        block = self._block[variable]
        layer = self._layers.get(variable)
        if layer is None:
            return self._mover(call, read, block, emit)
        weight = self._numbers.weights[variable]
        replaced: dict[int, Expr] = {
            layer.product.data: self._pair(layer.data, block, emit) if layer.data in read else layer.data,
            layer.product.weight: emit(dequantized_weight(weight)),
        }
        product: Expr = with_operands(call, replaced)
        shift = self._numbers.shifts.get(variable)
        if shift is None or layer.bias is not None:
            return product
        return relax.op.add(emit(product), as_constant(along_channels(layer, self._on_grid(layer, shift))))

    def _pair(self, site: Var, block: int, emit: Emit) -> Var:
        """One pair per block for all readers of the site."""
        key = (site, block)
        if key not in self._pairs:
            self._pairs[key] = pair(site, self._numbers.activations[site], emit)
        return self._pairs[key]

    def _mover(self, call: Call, read: frozenset[Var], block: int, emit: Emit) -> Expr:
        def quantized(argument: Expr) -> Expr:
            if isinstance(argument, relax.Tuple):
                return relax.Tuple([quantized(each) for each in argument.fields])
            return (
                self._pair(argument, block, emit) if isinstance(argument, relax.Var) and argument in read else argument
            )

        return with_operands(call, {index: quantized(argument) for index, argument in enumerate(call.args)})

    def _with_bias(self, layer: Layer, call: Call) -> Expr:
        bias = array_of(call.args[1])
        shift = self._numbers.shifts.get(layer.variable)
        shape = along_channels(
            layer, np.zeros(self._numbers.weights[layer.variable].values.shape[layer.product.filters])
        )
        if bias.size not in (1, shape.size):
            return call
        value = np.broadcast_to(bias.reshape(-1), shape.size) + (0 if shift is None else shift)
        return with_operands(call, {1: as_constant(along_channels(layer, self._on_grid(layer, value)))})

    def _on_grid(self, layer: Layer, bias: Array) -> Array:
        """The bias as a whole number of the steps of the sums, as an int32 accumulator holds it."""
        step = self._numbers.activations[layer.data].scale * self._numbers.weights[layer.variable].scale.astype(
            np.float64
        )
        integers = np.clip(np.rint(bias / step), -(2.0**31) + 1, 2.0**31 - 1)
        return (integers * step).astype(np.float32)


def along_channels(layer: Layer, values: Array) -> Array:
    """One number per filter, shaped to broadcast over the layer's result."""
    rank = rank_of(layer.variable)
    assert rank is not None
    return np.asarray(values, np.float32).reshape([-1, *[1] * (rank - 1 - layer.product.channels)])
