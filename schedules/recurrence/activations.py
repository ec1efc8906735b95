"""Activation functions of RNN, GRU and LSTM, by the names of ONNX in lower case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from schedules.ir.tir import Expr, tirx

Activation = Callable[[Any], Any]


@dataclass(frozen=True)
class Kind:
    """A function of x, alpha and beta, and the defaults of the parameters that it has."""

    function: Callable[[Any, Any, Any], Any]
    alpha: float | None = None
    beta: float | None = None


@dataclass(frozen=True)
class ActivationChoice:
    """A function with its parameters; `name` is a key of `KINDS`."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0

    def function(self) -> Activation:
        """The function of one expression."""
        kind = KINDS[self.name]
        return lambda x: kind.function(x, self.alpha, self.beta)


def _const(value: float, like: Expr) -> Expr:
    return tirx.const(value, str(like.ty.dtype))


def _clamp(x: Expr, low: float, high: float) -> Expr:
    return tirx.max(tirx.min(x, _const(high, x)), _const(low, x))


def _softplus(x: Expr) -> Expr:
    """log(1 + e^x) without overflow."""
    return tirx.max(x, _const(0, x)) + tirx.log(_const(1, x) + tirx.exp(-tirx.abs(x)))


KINDS: dict[str, Kind] = {
    "relu": Kind(lambda x, a, b: tirx.max(x, _const(0, x))),
    "tanh": Kind(lambda x, a, b: tirx.tanh(x)),
    "sigmoid": Kind(lambda x, a, b: tirx.sigmoid(x)),
    "affine": Kind(lambda x, a, b: _const(a, x) * x + _const(b, x), 1.0, 0.0),
    "leakyrelu": Kind(lambda x, a, b: tirx.Select(x < _const(0, x), _const(a, x) * x, x), 0.01),
    "thresholdedrelu": Kind(lambda x, a, b: tirx.Select(x > _const(a, x), x, _const(0, x)), 1.0),
    "scaledtanh": Kind(lambda x, a, b: _const(a, x) * tirx.tanh(_const(b, x) * x), 1.0, 1.0),
    "hardsigmoid": Kind(lambda x, a, b: _clamp(_const(a, x) * x + _const(b, x), 0.0, 1.0), 0.2, 0.5),
    "elu": Kind(lambda x, a, b: tirx.Select(x < _const(0, x), _const(a, x) * (tirx.exp(x) - _const(1, x)), x), 1.0),
    "softsign": Kind(lambda x, a, b: x / (_const(1, x) + tirx.abs(x))),
    "softplus": Kind(lambda x, a, b: _softplus(x)),
}


def clipped(x: Expr, threshold: float | None) -> Expr:
    """`x` within [-threshold, threshold]."""
    return x if threshold is None else _clamp(x, -threshold, threshold)
