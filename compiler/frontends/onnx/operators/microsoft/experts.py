"""com.microsoft: mixtures of experts, with float weights (MoE) and block-quantized weights (QMoE)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tvm import relax
from tvm.relax import op as R

from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.microsoft.fused import DOMAIN, limited_swiglu
from compiler.frontends.onnx.operators.microsoft.quantized import INT8_DATA, unpacked
from compiler.frontends.onnx.operators.precision import cast
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.values import Runtime, tensor_shape
from compiler.passes.rewriting.block_weights import BlockWeight
from compiler.passes.rewriting.expert_products import Routing, combined, expert_product, route, scores_of_chosen
from schedules.ir.tvm_types import Expr

_ROUTER_WEIGHTS = 14  # an input of QMoE
_INTERLEAVED = 1  # swiglu_fusion's value for gates and linear parts in alternating rows of one weight
_BITS = (2, 4, 8)


@dataclass(frozen=True)
class _Layer:
    """The inputs of one matmul of the experts, and the attribute with its number of bits."""

    weight: int
    bias: int
    scales: int | None = None
    zeros: int | None = None
    bits: str = ""


_FLOATS = (_Layer(2, 3), _Layer(4, 5), _Layer(6, 7))
_INTEGERS = (
    _Layer(2, 4, 3, 11, "fc1_expert_weight_bits"),
    _Layer(5, 7, 6, 12, "fc2_expert_weight_bits"),
    _Layer(8, 10, 9, 13, "fc3_expert_weight_bits"),
)


@converter("MoE", domain=DOMAIN)
def moe(context: NodeContext) -> relax.Expr:
    """Apply to each row of the input the experts with its largest logits: see `_Mixture`.

    Inputs: data (..., hidden), logits (rows, experts), then weight (experts, outputs, inputs) and bias of each matmul:
    the first, the last and, for gated experts, the second half of the first.
    """
    return _Mixture(context, _FLOATS).result()


@converter("QMoE", domain=DOMAIN)
def quantized_moe(context: NodeContext) -> relax.Expr:
    """MoE whose weights are packed integers with a scale per row, or per `block_size` neighbors in it.

    ONNX Runtime's kernel normalizes the weights of the chosen experts regardless of `normalize_routing_weights`,
    unless they come from a separate input.
    """
    kind = context.attribute("quant_type", "int")
    if kind != "int":
        context.refuse(f"weights of quant_type={kind!r} are not supported")
    if context.attribute("weights_prepacked", -1) == 1:
        context.refuse("weights prepacked for a GPU are not supported")
    return _Mixture(context, _INTEGERS).result()


def _bytes(count: int, bits: int) -> int:
    return -(-count * bits // 8)


class _Mixture:
    """One node: rows are routed to `k` experts each, whose results are summed with the routing weights.

    An expert is last(activation(first(x))), or last(activation(gate(x)) * linear(x)) if gated.
    """

    def __init__(self, context: NodeContext, layers: tuple[_Layer, _Layer, _Layer]) -> None:
        self.context, (self.first, self.last, self.second) = context, layers
        self.activation = context.attribute("activation_type", "relu")
        self.fusion = int(context.attribute("swiglu_fusion", 0)) if self.activation == "swiglu" else 0
        self._refuse_variants()
        self.hidden = context.shape(0)[-1]
        if not isinstance(self.hidden, int):
            context.refuse("the size of a row is not known when compiling")
        self.experts = self._shape(self.first)[0]
        self.rows = context.arithmetic.product(context.shape(0)[:-1])
        self.inner = self._columns(self.first) // (2 if self.fusion else 1)

    def _refuse_variants(self) -> None:
        context = self.context
        known = ("relu", "gelu", "silu", "identity", "swiglu")
        if self.activation not in known:
            context.refuse(f"activation_type={self.activation!r} is not supported, only {', '.join(known)}")
        for name in ("use_sparse_mixer", "swiglu_limit_after_activation"):
            if context.attribute(name, 0):
                context.refuse(f"{name}=1 is not supported")
        if self.activation == "swiglu" and bool(self.fusion) == context.has_input(self.second.weight):
            context.invalid("swiglu takes either swiglu_fusion or a weight of its linear part")
        for index in range(_ROUTER_WEIGHTS + 1, len(context.inputs)):
            if context.has_input(index):
                context.refuse(f"its input {index} is not supported")

    def result(self) -> relax.Expr:
        """Return the combined expert results of each row, with the shape and type of the input."""
        context, builder = self.context, self.context.block_builder
        rows = context.reshape(cast(context, context.input(0), "float32"), [self.rows, self.hidden])
        logits = self._scores(1)
        chosen = int(context.attribute("k", 1))
        if not 1 <= chosen <= self.experts:
            context.invalid(f"k={chosen} of {self.experts} experts cannot be chosen")
        routing = route(builder, logits, chosen)
        weights = self._weights(logits, routing)
        slots = context.emit(R.take(rows, routing.rows, axis=0))
        found = self._product(self._activated(slots, routing), self.last, self.hidden, routing)
        total = combined(builder, found, routing, weights)
        return cast(context, context.reshape(total, context.shape(0)), str(context.input(0).ty.dtype))

    def _scores(self, index: int) -> relax.Expr:
        """Return one number per row and expert, float32."""
        scores = cast(self.context, self.context.input(index), "float32")
        return self.context.match_shape(scores, [self.rows, self.experts])

    def _weights(self, logits: relax.Expr, routing: Routing) -> relax.Expr:
        """Return the weights of each row's experts: float32 (rows, k)."""
        context, builder = self.context, self.context.block_builder
        normalized = bool(context.attribute("normalize_routing_weights", 0))
        if self.first.scales is not None and context.has_input(_ROUTER_WEIGHTS):
            weights = scores_of_chosen(builder, self._scores(_ROUTER_WEIGHTS), routing)
            if not normalized:
                return weights
            return context.emit(R.divide(weights, context.emit(R.sum(weights, -1, keepdims=True))))
        if normalized or self.first.scales is not None:
            return context.emit(R.nn.softmax(routing.scores, -1))
        return scores_of_chosen(builder, context.emit(R.nn.softmax(logits, -1)), routing)

    def _activated(self, slots: relax.Expr, routing: Routing) -> relax.Expr:
        """Return the operand of the experts' last matmul: (slots, inner)."""
        context = self.context
        first = self._product(slots, self.first, self.inner * (2 if self.fusion else 1), routing)
        if self.fusion:
            halves = context.emit(R.split(first, 2, axis=1))
            return self._swiglu(*(context.emit(relax.TupleGetItem(halves, index)) for index in range(2)))
        linear = None
        if context.has_input(self.second.weight):
            linear = self._product(slots, self.second, self.inner, routing)
        if self.activation == "swiglu":
            assert linear is not None
            return self._swiglu(first, linear)
        found = self._elementwise(first)
        return found if linear is None else context.emit(R.multiply(found, linear))

    def _elementwise(self, value: relax.Expr) -> relax.Expr:
        if self.activation == "identity":
            return value
        functions = {"relu": R.nn.relu, "gelu": R.nn.gelu_tanh, "silu": R.nn.silu}
        return self.context.emit(functions[self.activation](value))

    def _swiglu(self, gate: relax.Expr, linear: relax.Expr) -> relax.Expr:
        limit = float(self.context.attribute("swiglu_limit", np.inf))
        found = limited_swiglu(self.context, Runtime(gate, "float32"), Runtime(linear, "float32"), limit)
        assert isinstance(found, Runtime)
        return found.expr

    def _product(self, slots: relax.Expr, layer: _Layer, columns: int, routing: Routing) -> relax.Expr:
        """Multiply each slot by its expert's weight and add the bias: float32 (slots, columns)."""
        context = self.context
        depth = int(tensor_shape(slots)[1])
        weights = self._floats(layer, columns, depth) if layer.scales is None else self._blocks(layer, columns, depth)
        stacked = BlockWeight.of_experts(self.experts, columns, weights)
        rounds = context.attribute("accuracy_level", 0) == INT8_DATA
        product: Expr = expert_product(
            context.block_builder, slots, stacked, columns, routing.experts, "int8" if rounds else "float32"
        )
        if not context.has_input(layer.bias):
            return product
        bias = self._gate_first(layer, self._array(layer.bias, columns).astype(np.float32))
        rows = R.take(relax.const(bias), routing.experts, axis=0)
        return context.emit(R.add(product, context.emit(rows)))

    def _shape(self, layer: _Layer) -> tuple[int, ...]:
        shape = self.context.shape(layer.weight)
        if len(shape) != 3 or not all(isinstance(size, int) for size in shape):
            self.context.invalid(f"its weight {layer.weight} has the shape {shape}, not that of (experts, rows, depth)")
        return shape

    def _columns(self, layer: _Layer) -> int:
        """Return the number of outputs of a matmul on input rows; the weight may be declared transposed."""
        context = self.context
        _, *sizes = self._shape(layer)
        bits = 8 if layer.scales is None else self._bits(layer)
        elements = sizes[0] * sizes[1] * 8 // bits
        if elements % self.hidden:
            context.invalid(f"its weight {layer.weight} of {sizes} does not fit rows of {self.hidden}")
        return int(elements // self.hidden)

    def _bits(self, layer: _Layer) -> int:
        bits = int(self.context.attribute(layer.bits, self.context.attribute("expert_weight_bits", 4)))
        if bits not in _BITS:
            self.context.refuse(f"weights of {bits} bits are not supported")
        return bits

    def _array(self, index: int, *shape: int) -> np.ndarray:
        """Return a constant input as one array per expert; its declared shape only needs the same number of
        elements."""
        array = self.context.constant(index)
        if array.size != self.experts * math.prod(shape):
            self.context.invalid(f"its input {index} has the shape {array.shape}, not {(self.experts, *shape)}")
        return array.reshape(self.experts, *shape)

    def _gate_first(self, layer: _Layer, values: np.ndarray) -> np.ndarray:
        """Return values (experts, outputs, ...) of a matmul with gates before linear parts, if these alternate."""
        if layer is not self.first or self.fusion != _INTERLEAVED:
            return values
        return np.concatenate([values[:, 0::2], values[:, 1::2]], axis=1)

    def _floats(self, layer: _Layer, columns: int, depth: int) -> Iterator[BlockWeight]:
        values = self._gate_first(layer, self._array(layer.weight, columns, depth))
        numbers = str(self.context.dtype(layer.weight))
        return (BlockWeight.of_floats(each, numbers) for each in values)

    def _blocks(self, layer: _Layer, columns: int, depth: int) -> Iterator[BlockWeight]:
        assert layer.scales is not None
        assert layer.zeros is not None
        context, bits = self.context, self._bits(layer)
        values = unpacked(self._array(layer.weight, columns, _bytes(depth, bits)), bits)[..., :depth]
        groups = context.shape(layer.scales)[2] if context.rank(layer.scales) == 3 else 1
        group = int(context.attribute("block_size", 0)) if groups > 1 else depth
        if group < 1 or -(-depth // group) != groups:
            context.invalid(f"{groups} scales of rows of {depth} do not fit a block_size of {group}")
        if group % 4:
            context.refuse(f"scales of {group} neighbours are not supported: it must be a multiple of 4")
        scales = self._array(layer.scales, columns, groups).astype(np.float32)
        zeros: np.ndarray = np.full((1, 1, 1), 2 ** (bits - 1), np.uint8)
        if context.has_input(layer.zeros):
            # With one scale per row, the zero points of neighboring rows share a byte.
            rows, rows_of_block = (columns, groups) if groups > 1 else (1, columns)
            packed = self._array(layer.zeros, rows, _bytes(rows_of_block, bits))
            zeros = unpacked(packed, bits)[..., :rows_of_block].reshape(scales.shape)
        values, scales, zeros = (self._gate_first(layer, each) for each in (values, scales, zeros))
        vary = zeros.size > 1
        for expert in range(self.experts):
            zero = zeros[expert] if vary else zeros[0]
            yield BlockWeight.of_integers(values[expert], scales[expert], zero, group, bits, vary=vary)
