"""Functions of one quantized tensor as a lookup table: 256 results, each computed as the processor would.

Any chain of elementwise operators between a dequantization and a quantization is one table: activations, sums and
products with a number, changes of scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm.ir import GenericConst

from schedules.ir.tvm_types import Call, Expr, Var
from targets.ethos_u.kernels import Kernel
from targets.ethos_u.steps import Array, Emitter, Result, Step, Unsupported, Value
from targets.ethos_u.view import View, operator_name, registered_name

KERNELS = frozenset(
    f"kernel.{name}" for name in ("elu", "selu", "celu", "thresholded_relu", "softplus", "softsign", "mish")
)
_SELU = 1.6732632423543772, 1.0507009873554805
_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def _selu(x: Array) -> Array:
    return np.asarray(_SELU[1] * np.where(x > 0, x, _SELU[0] * np.expm1(np.minimum(x, 0))))


def _gelu_tanh(x: Array) -> Array:
    return np.asarray(x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def _gelu(x: Array) -> Array:
    return np.asarray(x * 0.5 * (1 + _erf(x / math.sqrt(2))))


_UNARY: dict[str, Callable[[Array], Array]] = {
    **{name: getattr(np, name) for name in ("abs", "ceil", "cos", "exp", "floor", "log", "negative", "sign", "sin")},
    **{name: getattr(np, name) for name in ("sinh", "sqrt", "square", "tan", "tanh", "trunc")},
    "atan": np.arctan,
    "erf": _erf,
    "round": np.rint,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sigmoid": _sigmoid,
    "nn.gelu": _gelu,
    "nn.gelu_tanh": _gelu_tanh,
    "nn.relu": lambda x: np.maximum(x, 0),
    "nn.relu6": lambda x: np.clip(x, 0, 6),
    "nn.selu": _selu,
    "nn.silu": lambda x: x * _sigmoid(x),
    "nn.softplus": lambda x: np.logaddexp(x, 0),
}
_BINARY: dict[str, Callable[[Array, Array], Array]] = {
    name: getattr(np, name) for name in ("add", "divide", "maximum", "minimum", "multiply", "power", "subtract")
}


def table(view: View, expr: Expr, result: Result) -> Step | None:
    """The step if `expr` is a function of one quantized tensor, otherwise None."""
    leaves: dict[Var, Expr] = {}
    names: list[str] = []
    if not _is_elementwise(view, expr, leaves, names) or len(leaves) != 1:
        return None
    leaf = next(iter(leaves.values()))
    data = view.described(leaf.args[0], leaf)
    if data.shape != result.output.shape:
        return None
    integers = np.arange(-128, 128)
    with np.errstate(all="ignore"):
        inputs = (integers - data.zero) * data.scale
        values = np.broadcast_to(_evaluated(view, expr, inputs), inputs.shape)
        steps = np.rint(values / result.output.scale) + result.output.zero
    if np.isnan(steps).any():
        raise Unsupported("its result is not a number for some of the 256 values of its operand")
    entries = np.clip(steps, result.low, result.high).astype(np.int8)

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        graph, x = emitter.graph, inputs[0].tensor
        looked_up = graph.emit("TABLE", [x, graph.constant(entries)], x.shape, "int8", "TableAttribute")
        return emitter.made(looked_up, inputs[0].last)

    name = "table of " + (", ".join(reversed(names)) or "another scale")
    return Step(name, "x".join(map(str, result.output.shape)), (data,), result.output, 0, emit)


def _is_elementwise(view: View, expr: Expr, leaves: dict[Var, Expr], names: list[str]) -> bool:
    """True if `expr` is elementwise; records the tensors that it reads."""
    value = view.definition(expr)
    if isinstance(value, GenericConst):
        return bool(value.value.numpy().size == 1)
    name = (operator_name(value) or "").removeprefix("relax.")
    if name == "dequantize":
        leaves[value.args[0]] = value
        return not isinstance(view.definition(value.args[0]), GenericConst)
    limits = clip_limits(view, value)
    if limits is not None:
        names.append("clip")
        return _is_elementwise(view, limits[0], leaves, names)
    if registered_name(value) in KERNELS:
        names.append(str(value.args[0].name_hint))
        return Kernel(view, value).is_pointwise() and _is_elementwise(view, value.args[1].fields[0], leaves, names)
    if name not in _UNARY and name not in _BINARY and name != "nn.leakyrelu":
        return False
    names.append(name.removeprefix("nn."))
    return all(_is_elementwise(view, each, leaves, names) for each in value.args)


def _evaluated(view: View, expr: Expr, inputs: Array) -> Array:
    """The values of `expr` for given values of its tensor, in float64."""
    value = view.definition(expr)
    if isinstance(value, GenericConst):
        return np.asarray(value.value.numpy().reshape(()), np.float64)
    name = str(operator_name(value)).removeprefix("relax.")
    if name == "dequantize":
        return inputs
    limits = clip_limits(view, value)
    if limits is not None:
        return np.clip(_evaluated(view, limits[0], inputs), limits[1], limits[2])
    if name == "call_tir":
        return Kernel(view, value).values(_evaluated(view, value.args[1].fields[0], inputs))
    operands = [_evaluated(view, each, inputs) for each in value.args]
    if name == "nn.leakyrelu":
        return np.where(operands[0] >= 0, operands[0], operands[0] * float(value.attrs.alpha))
    return _UNARY[name](operands[0]) if name in _UNARY else _BINARY[name](operands[0], operands[1])


def clip_limits(view: View, call: Call) -> tuple[Expr, float, float] | None:
    """(operand, low, high) of a clamp: a ReLU, a clip, or ONNX's Clip, which is a kernel that propagates NaN."""
    name = operator_name(call)
    if name == "relax.nn.relu":
        return call.args[0], 0.0, math.inf
    if name == "relax.nn.relu6":
        return call.args[0], 0.0, 6.0
    if name == "relax.clip":
        low, high = (_number(view, each) for each in call.args[1:3])
        return None if low is None or high is None else (call.args[0], low, high)
    if name == "relax.call_tir" and "clip" in call.args[0].name_hint:
        operands = list(call.args[1].fields)
        if len(operands) == 3:
            low, high = (_number(view, each) for each in operands[1:])
            return None if low is None or high is None else (operands[0], low, high)
    return None


def _number(view: View, expr: Expr) -> float | None:
    """The value of a constant or of a shape expression."""
    array = view.constant(expr)
    if array is not None:
        return float(array.reshape(-1)[0]) if array.size == 1 else None
    value: Any = getattr(expr, "value", None)
    value = getattr(value, "value", value)
    return float(value) if isinstance(value, int | float) else None
