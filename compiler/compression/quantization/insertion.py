"""Inserts pairs of quantize and dequantize into a graph, in the same form as the ONNX importer for QDQ models.

For integer-only accelerators, pairs are inserted after every operator, not only before matmuls and convolutions.

There are no pairs inside what will be fused: a matmul and its bias, a clamp on any result, and chains of elementwise
functions of one tensor, which become one table.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from tvm import relax
from tvm.ir import GenericConst, IRModule

from compiler.compression.quantization.affine import Affine, Array, QuantizedWeight
from compiler.compression.quantization.edit import Emit, edit_main, main_bindings, with_operands
from compiler.compression.quantization.layers import (
    ELEMENTWISE,
    MOVES,
    OPAQUE_OPERATORS,
    Layer,
    LayerGraph,
    Placement,
    activations_of,
    integer_name,
    is_transparent,
    linear_operator_of,
    ties,
)
from compiler.passes.rewriting.graph import Call, Expr, Var, operands, operator_name
from compiler.passes.rewriting.matching import array_of, as_constant, dtype_of, rank_of, same_shape, shape_of


class Dequantizable(Protocol):
    """Quantized weights."""

    def dequantized(self) -> Array:
        """The weights as float32."""


WeightT = TypeVar("WeightT", bound=Dequantizable, covariant=True)


@dataclass(frozen=True)
class Numbers(Generic[WeightT]):
    """The parameters of a placement.

    Attributes:
        activations: quantization parameters of each site; a site without them is left unchanged.
        weights: quantized weights of each layer, by its variable.
        shifts: bias corrections per filter, by the layer's variable.
    """

    activations: Mapping[Var, Affine]
    weights: Mapping[Var, WeightT]
    shifts: Mapping[Var, Array]


def insert_pairs(mod: IRModule, placement: Placement, numbers: Numbers[QuantizedWeight]) -> IRModule:
    """`mod` with each operand of a placement quantized and dequantized."""
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
        """The new value of a binding, quantized if that is done at its definition."""
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
            layer.operator.data: self._pair(layer.data, block, emit) if layer.data in read else layer.data,
            layer.operator.weight: emit(dequantized_weight(weight)),
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
            layer, np.zeros(self._numbers.weights[layer.variable].values.shape[layer.operator.filters])
        )
        if bias.size not in (1, shape.size):
            return call
        value = np.broadcast_to(bias.reshape(-1), shape.size) + (0 if shift is None else shift)
        return with_operands(call, {1: as_constant(along_channels(layer, self._on_grid(layer, value)))})

    def _on_grid(self, layer: Layer, bias: Array) -> Array:
        """The bias as a whole number of steps of the sums, as an int32 accumulator holds it."""
        step = self._numbers.activations[layer.data].scale * self._numbers.weights[layer.variable].scale.astype(
            np.float64
        )
        integers = np.clip(np.rint(bias / step), -(2.0**31) + 1, 2.0**31 - 1)
        return (integers * step).astype(np.float32)


def along_channels(layer: Layer, values: Array) -> Array:
    """One number per filter, shaped to broadcast over the layer's result."""
    rank = rank_of(layer.variable)
    assert rank is not None
    return np.asarray(values, np.float32).reshape([-1, *[1] * (rank - 1 - layer.operator.channels)])


_LIMITS = frozenset(f"relax.{name}" for name in ("nn.relu", "nn.relu6", "clip"))


def place_integer_only(
    mod: IRModule, graph: LayerGraph, in_float: Collection[str] = (), operators: Collection[str] = ()
) -> Placement:
    """Pairs after the definition of each tensor, or for an input of the model before its readers.

    Args:
        in_float: names of layers.
        operators: other operators that the target computes in integers.
    """
    layers = [layer for layer in graph.layers if layer.name not in in_float]
    integer = {layer.variable for layer in layers} | {layer.bias for layer in layers}
    inner = _inner(mod, graph)
    calls = {variable: call for variable, call in graph.definitions.items() if dtype_of(variable) == "float32"}
    joined = {layer.variable for layer in layers} | {
        variable
        for variable, call in calls.items()
        if _is_integer(call, operators) and variable not in _in_float(graph, layers)
    }
    results = [variable for variable in calls if (variable in joined or variable in integer) and variable not in inner]
    parameters = set(mod["main"].params)
    read: dict[Var, frozenset[Var]] = {}
    for variable, call in calls.items():
        inputs = frozenset(each for _, each in activations_of(call) if each in parameters)
        if variable in joined:
            read[variable] = inputs
    sites = [each for each in mod["main"].params if any(each in group for group in read.values())] + results
    return Placement(
        tuple(layers),
        tuple(graph.opaque_calls),
        tuple(sites),
        read,
        ties(graph, graph.opaque_calls, sites),
        frozenset(results),
    )


def _is_integer(call: Call, operators: Collection[str]) -> bool:
    name = operator_name(call)
    if name in OPAQUE_OPERATORS or name in ELEMENTWISE or is_transparent(call):
        return True
    # A matmul that is not a layer has two activations, or stays in float.
    both = name == "relax.matmul" and len(activations_of(call)) == 2
    return integer_name(call) in operators and (both or linear_operator_of(call, operators) is None)


def _in_float(graph: LayerGraph, layers: Collection[object]) -> set[Var]:
    """Results of the layers that stay in float, with their biases."""
    kept = [layer for layer in graph.layers if layer not in layers]
    return {each for layer in kept for each in (layer.variable, layer.bias) if each is not None}


def _inner(mod: IRModule, graph: LayerGraph) -> set[Var]:
    """Variables that only a bias, a clamp, or a function of the same tensor reads."""
    readers: dict[Var, list[Var | None]] = {}
    for variable, value in main_bindings(mod):
        for operand in operands(value):
            readers.setdefault(operand, []).append(variable)
    for operand in operands(mod["main"].body.body):
        readers.setdefault(operand, []).append(None)
    biases = {layer.variable: layer.bias for layer in graph.layers}
    inner = set()
    for variable, by in readers.items():
        reader = by[0] if len(by) == 1 else None
        if reader is not None and (
            biases.get(variable) == reader
            or (_is_limit(graph.definitions.get(reader)) and variable in graph.definitions)
        ):
            inner.add(variable)
    return inner | _inside_chains(graph, readers, inner)


def _is_limit(call: Call | None) -> bool:
    return isinstance(call, relax.Call) and (
        operator_name(call) in _LIMITS or (operator_name(call) == "relax.call_tir" and "clip" in call.args[0].name_hint)
    )


def _inside_chains(graph: LayerGraph, readers: Mapping[Var, list[Var | None]], inner: Collection[Var]) -> set[Var]:
    """Functions of one tensor that only other functions of the same tensor read."""
    sources: dict[Var, Var] = {}
    sums = {layer.bias for layer in graph.layers}
    for variable, call in graph.definitions.items():
        read = [each for _, each in activations_of(call)]
        if _is_pointwise(variable, call) and variable not in sums and not any(each in inner for each in read):
            source = {sources.get(each, each) for each in read}
            if len(source) == 1:
                sources[variable] = source.pop()
    return {
        variable
        for variable, source in sources.items()
        if all(reader is not None and sources.get(reader) == source for reader in readers.get(variable, [None]))
    }


def _is_pointwise(variable: Var, call: Call) -> bool:
    """True if it is elementwise, with only scalars as other operands."""
    if not is_transparent(call) or operator_name(call) in MOVES:
        return False
    read = [each for _, each in activations_of(call)]
    numbers = [each for each in call.args if isinstance(each, GenericConst)]
    return (
        bool(read)
        and all(same_shape(shape_of(each), shape_of(variable)) for each in read)
        and all(array_of(each).size == 1 for each in numbers)
    )
