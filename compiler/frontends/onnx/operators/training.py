"""Optimizers of ai.onnx.preview.training, Dropout (the identity at inference) and operators that cannot be compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from tvm import relax
from tvm.relax import op as R

from compiler.frontends.onnx.bounds import require_shape
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.tensor.create import filled
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.values import Value

DOMAIN = "ai.onnx.preview.training"

Update = Callable[[relax.Expr, relax.Expr, list[relax.Expr]], list[relax.Expr]]


class _Math:
    """Arithmetic with attributes of the node, in the tensors' type."""

    def __init__(self, context: NodeContext) -> None:
        self.context = context
        self.dtype = context.dtype(2)

    def attribute(self, name: str, default: float) -> relax.Expr:
        return self.number(float(self.context.attribute(name, default)))

    def number(self, value: float) -> relax.Expr:
        return self.context.literal(value, self.dtype)

    def input(self, index: int) -> relax.Expr:
        """Return a scalar input in the tensors' type."""
        return self.context.emit(R.astype(self.context.reshape(self.context.input(index), []), self.dtype))

    def regularized(self, tensor: relax.Expr, gradient: relax.Expr) -> relax.Expr:
        """Return the gradient including that of the L2 penalty."""
        return self.context.emit(R.add(R.multiply(self.attribute("norm_coefficient", 0.0), tensor), gradient))


def _updated(context: NodeContext, kinds: int, update: Update) -> list[relax.Expr]:
    """Apply an update to each optimized tensor. Inputs after rate and step, and outputs, are grouped by kind."""
    count, rest = divmod(len(context.inputs) - 2, kinds)
    if rest or count < 1:
        context.invalid(f"{len(context.inputs)} inputs, which are not 2 and {kinds} for each tensor")
    math = _Math(context)
    rate, step = math.input(0), math.input(1)
    results = []
    for number in range(count):
        for kind in range(1, kinds):
            shape = context.shape(2 + kind * count + number)
            require_shape(context, shape, context.shape(2 + number), f"its input {2 + kind * count + number}")
        results.append(update(rate, step, [context.input(2 + kind * count + number) for kind in range(kinds)]))
    return [result[kind] for kind in range(kinds - 1) for result in results]


@converter("Adagrad", domain=DOMAIN)
def adagrad(context: NodeContext) -> list[relax.Expr]:
    """x - rate / (1 + step * decay) * g / (sqrt(h + g * g) + epsilon)."""
    math = _Math(context)

    def update(rate: relax.Expr, step: relax.Expr, tensors: list[relax.Expr]) -> list[relax.Expr]:
        x, gradient, squares = tensors
        decay = R.add(math.number(1.0), R.multiply(step, math.attribute("decay_factor", 0.0)))
        g = math.regularized(x, gradient)
        new = context.emit(R.add(squares, R.multiply(g, g)))
        scaled = R.divide(R.multiply(R.divide(rate, decay), g), R.add(R.sqrt(new), math.attribute("epsilon", 1e-6)))
        return [context.emit(R.subtract(x, scaled)), new]

    return _updated(context, 3, update)


@converter("Adam", domain=DOMAIN)
def adam(context: NodeContext) -> list[relax.Expr]:
    """Kingma and Ba, https://arxiv.org/abs/1412.6980, algorithm 1, with L2 penalties before and after."""
    math = _Math(context)
    alpha, beta = math.attribute("alpha", 0.9), math.attribute("beta", 0.999)
    one, zero = math.number(1.0), math.number(0.0)

    def update(rate: relax.Expr, step: relax.Expr, tensors: list[relax.Expr]) -> list[relax.Expr]:
        x, gradient, mean, squares = tensors
        g = math.regularized(x, gradient)
        mean = context.emit(R.add(R.multiply(alpha, mean), R.multiply(R.subtract(one, alpha), g)))
        new = R.multiply(R.subtract(one, beta), R.multiply(g, g))
        squares = context.emit(R.add(R.multiply(beta, squares), new))
        root = R.sqrt(R.subtract(one, R.power(beta, step)))
        corrected = R.divide(R.multiply(rate, root), R.subtract(one, R.power(alpha, step)))
        adjusted = context.emit(R.where(R.greater(step, zero), corrected, rate))
        ratio = R.divide(mean, R.add(R.sqrt(squares), math.attribute("epsilon", 1e-6)))
        x = context.emit(R.subtract(x, R.multiply(adjusted, ratio)))
        shrink = R.subtract(one, math.attribute("norm_coefficient_post", 0.0))
        return [context.emit(R.multiply(shrink, x)), mean, squares]

    return _updated(context, 4, update)


@converter("Momentum", domain=DOMAIN)
def momentum(context: NodeContext) -> list[relax.Expr]:
    """Gradient descent with momentum, plain or Nesterov's; the gradient's factor beta is 1 in the first step."""
    mode = context.attribute("mode", "standard")
    if mode not in ("standard", "nesterov"):
        context.invalid(f"mode must be standard or nesterov, not {mode!r}")
    math = _Math(context)
    alpha, beta = math.attribute("alpha", 0.9), math.attribute("beta", 1.0)

    def update(rate: relax.Expr, step: relax.Expr, tensors: list[relax.Expr]) -> list[relax.Expr]:
        x, gradient, velocity = tensors
        g = math.regularized(x, gradient)
        factor = context.emit(R.where(R.greater(step, math.number(0.0)), beta, math.number(1.0)))
        velocity = context.emit(R.add(R.multiply(alpha, velocity), R.multiply(factor, g)))
        move = velocity if mode == "standard" else R.add(g, R.multiply(alpha, velocity))
        return [context.emit(R.subtract(x, R.multiply(rate, move))), velocity]

    return _updated(context, 3, update)


@converter("Gradient", domain=DOMAIN)
def gradient(context: NodeContext) -> NoReturn:
    """Refused."""
    context.refuse(
        "it asks for the derivative of a part of the graph; export a model that holds the derivative's nodes"
    )


@converter("ImageDecoder", since=20)
def image_decoder(context: NodeContext) -> NoReturn:
    """Refused."""
    context.refuse("compressed images cannot be decoded inside a compiled module; decode them before it")


@converter("Dropout", since=7)
def dropout(context: NodeContext) -> list[Value | relax.Expr | None]:
    """Input and, if requested, a mask of ones."""
    if context.opset >= 12 and context.has_input(2) and bool(context.scalar(2)):
        ratio = float(context.scalar(1, 0.5))
        if ratio != 0.0:
            context.refuse("in training mode it drops elements at random")
    if not context.output_used(1):
        return [context.tensor(0), None]
    dtype = "bool" if context.opset >= 10 else context.dtype(0)
    return [context.tensor(0), filled(context, 1, dtype, context.shape(0))]
