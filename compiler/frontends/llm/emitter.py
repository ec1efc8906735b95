"""Shared context for building a decoder: block builder, weights, norms and elementwise operations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm import relax, tirx
from tvm.relax import op as R

from compiler.frontends.llm.config import DecoderConfig, XieluNumbers
from compiler.frontends.llm.options import LanguageModelOptions
from compiler.frontends.llm.parameters import Norm, Parameters
from compiler.frontends.llm.products import Products
from compiler.passes.rewriting.matching import as_constant
from schedules.ir.tvm_types import Expr


class Emitter:
    """Emits operations of one decoder. `length` is the symbolic number of tokens per run."""

    def __init__(self, config: DecoderConfig, parameters: Parameters, options: LanguageModelOptions) -> None:
        self.config, self.parameters, self.options = config, parameters, options
        self.builder = relax.BlockBuilder()
        self.products = Products(self.builder, options)
        self.length = tirx.Var("n", "int64")
        self.first_values: Expr | None = None  # (n, width) of RWKV 7's first layer, read by later ones

    def has_norm(self, index: int, role: str) -> bool:
        """True if a layer has this norm."""
        return self.parameters.has_norm(index, role)

    def normed(self, index: int, role: str, x: Expr) -> Expr:
        """Normalize, if the layer has the norm."""
        if not self.has_norm(index, role):
            return x
        return self.normalized(x, self.parameters.norm(index, role, int(x.ty.shape[-1])))

    def normalized(self, x: Expr, norm: Norm, epsilon: float | None = None) -> Expr:
        """Normalize over the last axis, with the model's epsilon if no other is given."""
        epsilon = self.config.epsilon if epsilon is None else epsilon
        size = int(x.ty.shape[-1])
        scale = as_constant(np.ones(size, np.float32) if norm.weight is None else norm.weight.astype(np.float32))
        if self.config.norm == "rms":
            normed = self.builder.emit(R.nn.rms_norm(x, scale, [-1], epsilon))
            return normed if norm.bias is None else self.builder.emit(R.add(normed, as_constant(norm.bias)))
        bias = as_constant(np.zeros(size, np.float32) if norm.bias is None else norm.bias.astype(np.float32))
        return self.builder.emit(R.nn.layer_norm(x, scale, bias, [-1], epsilon))

    def residual(self, x: Expr, *added: Expr) -> Expr:
        """Add the residual updates of a block to x."""
        for each in added:
            x = self.builder.emit(R.add(x, self.scaled(each, self.config.residual_scale)))
        return x

    def activated(self, index: int, x: Expr) -> Expr:
        """Apply the activation of a layer's MLP."""
        if self.config.activation == "xielu":
            return self._xielu(x, self.config.layers[index].xielu or self.parameters.xielu(index))
        return self.builder.emit(_ACTIVATIONS[self.config.activation](x))

    def _xielu(self, x: Expr, numbers: XieluNumbers) -> Expr:
        """xIELU, like in transformers: https://arxiv.org/abs/2411.13010"""
        emit = self.builder.emit
        linear = emit(R.multiply(x, number(numbers.beta)))
        squared = emit(R.multiply(emit(R.multiply(x, x)), number(numbers.positive)))
        # exp(y) - 1 = 2 t / (1 - t) with t = tanh(y / 2), which is accurate near 0.
        tangent = emit(R.tanh(emit(R.multiply(emit(R.minimum(x, number(numbers.epsilon))), number(0.5)))))
        power = emit(R.divide(emit(R.multiply(tangent, number(2.0))), emit(R.subtract(number(1.0), tangent))))
        below = emit(R.multiply(emit(R.subtract(power, x)), number(numbers.negative)))
        return emit(R.add(emit(R.where(emit(R.greater(x, number(0.0))), squared, below)), linear))

    def softplus(self, x: Expr) -> Expr:
        """log(1 + exp(x)), without overflow."""
        emit = self.builder.emit
        small = emit(R.exp(emit(R.negative(emit(R.abs(x))))))
        return emit(R.add(emit(R.nn.relu(x)), emit(R.log(emit(R.add(small, number(1.0)))))))

    def scaled(self, x: Expr, factor: float) -> Expr:
        """Multiply by a number."""
        return x if factor == 1.0 else self.builder.emit(R.multiply(x, number(factor)))

    def capped(self, x: Expr, cap: float | None) -> Expr:
        """Return cap * tanh(x / cap), or x without a cap."""
        if cap is None:
            return x
        emit = self.builder.emit
        return emit(R.multiply(emit(R.tanh(emit(R.divide(x, number(cap))))), number(cap)))


def number(value: float) -> Expr:
    """Return a float32 constant."""
    return relax.const(value, "float32")


def _squared_relu(x: Expr) -> Expr:
    return R.square(R.nn.relu(x))


_ACTIVATIONS: dict[str, Callable[[Expr], Expr]] = {
    "silu": R.nn.silu,
    "gelu": R.nn.gelu,
    "gelu_tanh": R.nn.gelu_tanh,
    "relu": R.nn.relu,
    "relu2": _squared_relu,
}
