"""Activation functions of RNN, GRU and LSTM, by the names of ONNX."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from compiler.frontends.onnx.context import NodeContext

Activation = Callable[[Any], Any]


@dataclass(frozen=True)
class _Kind:
    """A function of x, alpha and beta, and the defaults of the parameters that it has."""

    function: Callable[[Any, Any, Any], Any]
    alpha: float | None = None
    beta: float | None = None


def _const(value: float, like: Any) -> Any:
    return tirx.const(value, str(like.ty.dtype))


def _clamp(x: Any, low: float, high: float) -> Any:
    return tirx.max(tirx.min(x, _const(high, x)), _const(low, x))


def _softplus(x: Any) -> Any:
    """log(1 + e^x) without overflow."""
    return tirx.max(x, _const(0, x)) + tirx.log(_const(1, x) + tirx.exp(-tirx.abs(x)))


_KINDS: dict[str, _Kind] = {
    "relu": _Kind(lambda x, a, b: tirx.max(x, _const(0, x))),
    "tanh": _Kind(lambda x, a, b: tirx.tanh(x)),
    "sigmoid": _Kind(lambda x, a, b: tirx.sigmoid(x)),
    "affine": _Kind(lambda x, a, b: _const(a, x) * x + _const(b, x), 1.0, 0.0),
    "leakyrelu": _Kind(lambda x, a, b: tirx.Select(x < _const(0, x), _const(a, x) * x, x), 0.01),
    "thresholdedrelu": _Kind(lambda x, a, b: tirx.Select(x > _const(a, x), x, _const(0, x)), 1.0),
    "scaledtanh": _Kind(lambda x, a, b: _const(a, x) * tirx.tanh(_const(b, x) * x), 1.0, 1.0),
    "hardsigmoid": _Kind(lambda x, a, b: _clamp(_const(a, x) * x + _const(b, x), 0.0, 1.0), 0.2, 0.5),
    "elu": _Kind(lambda x, a, b: tirx.Select(x < _const(0, x), _const(a, x) * (tirx.exp(x) - _const(1, x)), x), 1.0),
    "softsign": _Kind(lambda x, a, b: x / (_const(1, x) + tirx.abs(x))),
    "softplus": _Kind(lambda x, a, b: _softplus(x)),
}


def activations_of(context: NodeContext, defaults: tuple[str, ...], directions: int) -> list[list[Activation]]:
    """The activation functions of each direction.

    activation_alpha and activation_beta hold values for the functions that have such a parameter, in their order.
    """
    names: list[str] = context.attribute("activations", list(defaults) * directions)
    if len(names) != len(defaults) * directions:
        context.invalid(f"{len(defaults) * directions} activations are needed, not {len(names)}")
    alphas: list[float] = list(context.attribute("activation_alpha", []))
    betas: list[float] = list(context.attribute("activation_beta", []))
    functions = []
    for name in names:
        kind = _KINDS.get(name.lower())
        if kind is None:
            context.refuse(f"the activation {name!r} is unknown")
        functions.append(_bound(kind, _next(alphas, kind.alpha), _next(betas, kind.beta)))
    count = len(defaults)
    return [functions[direction * count : (direction + 1) * count] for direction in range(directions)]


def _next(values: list[float], default: float | None) -> float:
    if default is None:
        return 0.0
    return float(values.pop(0)) if values else default


def _bound(kind: _Kind, alpha: float, beta: float) -> Activation:
    return lambda x: kind.function(x, alpha, beta)


def clipped(x: Any, threshold: float | None) -> Any:
    """`x` within [-threshold, threshold]."""
    return x if threshold is None else _clamp(x, -threshold, threshold)
