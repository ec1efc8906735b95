"""The elementwise steps that attention applies to its scores between the first product and softmax.

Quantizations there (`quantize`, `dequantize`) are steps too: a score is scaled, rounded within limits, and moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from tvm import ir, te, tirx

Expr: TypeAlias = ir.Expr
_LIMITS = {name: np.iinfo(name) for name in ("int8", "uint8", "int16", "uint16")}


@dataclass(frozen=True)
class Scale:
    """Times a number."""

    factor: float


@dataclass(frozen=True)
class Divide:
    """By a number."""

    divisor: float


@dataclass(frozen=True)
class Shift:
    """Plus a number."""

    offset: float


@dataclass(frozen=True)
class Add:
    """Plus a tensor that broadcasts to the scores."""

    tensor: Expr


@dataclass(frozen=True)
class Round:
    """To the nearest integer within limits, halves to even."""

    low: int
    high: int


Step = Scale | Divide | Shift | Add | Round


@dataclass(frozen=True)
class Quantization:
    """Quantization per tensor: integer = round(number / scale) + zero, limited to what the type holds."""

    scale: float
    zero: int
    dtype: str

    def quantize(self) -> list[Step]:
        """To its integers."""
        return [Scale(1 / self.scale), self._limits, Shift(self.zero)]

    def dequantize(self) -> list[Step]:
        """From its integers."""
        return [Shift(-self.zero), Scale(self.scale)]

    def integer(self, number: Expr, factor: float = 1.0) -> Expr:
        """The integer of `factor * number`, a float32."""
        whole = _rounded(number * _float(factor / self.scale), self._limits)
        return tirx.Cast(self.dtype, whole + tirx.IntImm("int32", self.zero))

    @property
    def _limits(self) -> Round:
        limits = _LIMITS[self.dtype]
        return Round(int(limits.min) - self.zero, int(limits.max) - self.zero)


def joined(steps: Sequence[Step]) -> list[Step]:
    """The steps with neighbouring factors and offsets made one, where something is rounded: what is between two
    roundings is one multiplication then, as in operators on quantized tensors."""
    if not any(isinstance(step, Round) for step in steps):
        return list(steps)
    result: list[Step] = []
    for step in steps:
        last = result[-1] if result else None
        if isinstance(step, Scale) and isinstance(last, Scale):
            result[-1] = Scale(last.factor * step.factor)
        elif isinstance(step, Shift) and isinstance(last, Shift):
            result[-1] = Shift(last.offset + step.offset)
        else:
            result.append(step)
        if result[-1] in (Scale(1.0), Shift(0)):
            result.pop()
    return result


def applied(steps: Sequence[Step], number: Expr, tensors: Sequence[Expr]) -> Expr:
    """Apply the steps to a float32; `tensors` are the elements that steps add, in order."""
    elements = iter(tensors)
    for step in steps:
        if isinstance(step, Scale):
            number = number * _float(step.factor)
        elif isinstance(step, Divide):
            number = number / _float(step.divisor)
        elif isinstance(step, Shift):
            number = number + _float(step.offset)
        elif isinstance(step, Add):
            number = number + next(elements)
        else:
            number = tirx.Cast("float32", _rounded(number, step))
    return number


def _rounded(number: Expr, step: Round) -> Expr:
    """The int32; limits come first, since vector instructions round what lies within int32."""
    limited = te.min(te.max(number, _float(step.low)), _float(step.high))
    return tirx.Cast("int32", tirx.nearbyint(limited))


def _float(number: float) -> Expr:
    return tirx.FloatImm("float32", float(np.float32(number)))
