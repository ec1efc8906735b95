"""Elementwise arithmetic, quotients and remainders, and arithmetic with Python numbers that change the data type."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from compiler.frontends.torch.decomposition import decomposition_of, float_dtype
from compiler.frontends.torch.own_operators import own_operator


@decomposition_of("aten.hypot.default")
def hypot(first: Tensor, second: Tensor) -> Tensor:
    """Computed after division by the larger operand, so that the squares stay in range."""
    first, second = first.abs(), second.abs()
    larger = torch.maximum(first, second)
    ratio = torch.minimum(first, second) / torch.where(larger == 0, torch.ones_like(larger), larger)
    return torch.where(torch.isinf(larger), larger, larger * (1 + ratio * ratio).sqrt())


@decomposition_of("aten.nextafter.default", "prims.nextafter.default")
def _next_after(values: Tensor, towards: Tensor) -> Tensor:
    """A step of more than half a unit in the last place and at most one, in float64, is rounded to the next number."""
    if values.dtype != torch.float32:
        return NotImplemented
    wide = values.double()
    step = (wide.abs() * (2**-24 * (1 + 2**-20))).clamp(min=2**-149)
    beside = torch.where(values < towards, wide + step, wide - step).float()
    beside = torch.where(values.isinf(), values.sign() * torch.finfo(torch.float32).max, beside)
    return torch.where(values == towards, towards, torch.where(towards.isnan(), towards, beside))


@decomposition_of("aten.view.dtype")
def _bits(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Read the bits of numbers as another type of the same width."""
    if values.element_size() != dtype.itemsize or values.is_complex() or dtype.is_complex:
        return NotImplemented
    return own_operator("BitCast", [values], dtype, values.shape, dtype=str(dtype).removeprefix("torch."))


@decomposition_of("aten.frexp.Tensor", "prims.frexp.default")
def _fraction_and_exponent(values: Tensor) -> tuple[Tensor, Tensor]:
    """Split numbers into fractions of at least 1/2 and below 1, and powers of two."""
    wide = values.double()  # no number of a narrower type is denormal in float64
    if values.dtype == torch.float64:
        return NotImplemented
    bits = wide.view(torch.int64)
    whole = (values == 0) | ~values.isfinite()
    exponent = torch.where(whole, 0, ((bits >> 52) & 0x7FF) - 1022)
    fraction = torch.where(whole, wide, ((bits & ~(0x7FF << 52)) | (1022 << 52)).view(torch.float64))
    return fraction.to(values.dtype), exponent.to(torch.int32)


@decomposition_of("aten.copysign.Tensor")
def copysign(values: Tensor, signs: Tensor) -> Tensor:
    """Magnitudes with the signs of other numbers; floats also for integers."""
    dtype = torch.result_type(values, signs)
    size = values.to(float_dtype(dtype)).abs()
    return torch.where(negative(signs), -size, size)


@decomposition_of("aten.copysign.Scalar")
def _copysign_of_number(values: Tensor, sign: float) -> Tensor:
    size = as_float(values).abs()
    return -size if math.copysign(1, sign) < 0 else size


@decomposition_of("aten.angle.default")
def _angle(values: Tensor) -> Tensor:
    """0, or pi for negative numbers (not for -0); NaN for NaN."""
    if values.is_complex():
        return NotImplemented
    floats = as_float(values)
    return torch.where(floats.isnan(), floats, torch.where(values < 0, math.pi, 0.0).to(floats.dtype))


def as_float(values: Tensor) -> Tensor:
    """Integers and booleans become floats of the default type."""
    return values.to(float_dtype(values.dtype))


@decomposition_of("aten.signbit.default")
def negative(values: Tensor) -> Tensor:
    """True for values below zero, including -0."""
    return (values < 0) | (1 / values < 0) if values.is_floating_point() else values < 0


@decomposition_of("aten.sign.default", "aten.sgn.default")
def _sign(values: Tensor) -> Tensor:
    """Return the sign; 0 for NaN, unlike ONNX's."""
    if not values.is_floating_point():
        return NotImplemented
    return (values > 0).to(values.dtype) - (values < 0).to(values.dtype)


@decomposition_of("aten.heaviside.default")
def _heaviside(values: Tensor, at_zero: Tensor) -> Tensor:
    """Step function; 0 for NaN."""
    return torch.where(values == 0, at_zero, (values > 0).to(values.dtype))


@decomposition_of("aten.rrelu.default")
def _rrelu(values: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, *_: object) -> Tensor:
    return NotImplemented if training else torch.where(values > 0, values, values * ((lower + upper) / 2))


@decomposition_of("aten._is_all_true.default")
def _is_all_true(values: Tensor) -> Tensor:
    return values.all()


@decomposition_of("aten._is_any_true.default")
def _is_any_true(values: Tensor) -> Tensor:
    return values.any()


@decomposition_of("aten.fmax.default")
def _fmax(first: Tensor, second: Tensor) -> Tensor:
    """Return the larger operand, or the one that is not NaN."""
    return torch.where(first.isnan(), second, torch.where(second.isnan(), first, torch.maximum(first, second)))


@decomposition_of("aten.fmin.default")
def _fmin(first: Tensor, second: Tensor) -> Tensor:
    """Return the smaller operand, or the one that is not NaN."""
    return torch.where(first.isnan(), second, torch.where(second.isnan(), first, torch.minimum(first, second)))


@decomposition_of(
    "aten.__rshift__.Scalar",
    "aten.__rshift__.Tensor",
    "aten.bitwise_right_shift.Tensor",
    "aten.bitwise_right_shift.Tensor_Scalar",
    "aten.bitwise_right_shift.Scalar_Tensor",
)
def _right_shift(values: Tensor | int, steps: Tensor | int) -> Tensor:
    """Arithmetic shift: a quotient rounded down."""
    return torch.div(_wide(values), 2 ** _wide(steps), rounding_mode="floor").to(torch.result_type(values, steps))


@decomposition_of(
    "aten.__lshift__.Scalar",
    "aten.__lshift__.Tensor",
    "aten.bitwise_left_shift.Tensor",
    "aten.bitwise_left_shift.Tensor_Scalar",
    "aten.bitwise_left_shift.Scalar_Tensor",
)
def _left_shift(values: Tensor | int, steps: Tensor | int) -> Tensor:
    return (_wide(values) * 2 ** _wide(steps)).to(torch.result_type(values, steps))


def _wide(values: Tensor | int) -> Tensor | int:
    """Cast to 64 bits, which hold the powers of two for shifts of narrower integers."""
    return values.to(torch.int64) if isinstance(values, Tensor) else values


@decomposition_of("aten.remainder.Tensor", "aten.remainder.Scalar", "aten.remainder.Scalar_Tensor")
def _remainder(values: Tensor | float, divisor: Tensor | float) -> Tensor:
    """Remainder with the sign of the divisor, exact like fmod. For powers of two the exporter's form is exact."""
    if _is_symbolic(values) or _is_symbolic(divisor):
        return torch.remainder(_not_symbolic(values), _not_symbolic(divisor))
    if not _is_float(values, divisor) or (not isinstance(divisor, Tensor) and abs(math.frexp(divisor)[0]) == 0.5):
        return NotImplemented
    values, divisor = _tensors(values, divisor)
    rest = torch.fmod(values, divisor)
    return torch.where((rest != 0) & ((rest < 0) != (divisor < 0)), rest + divisor, rest)


@decomposition_of("aten.div.Tensor_mode", "aten.div.Scalar_mode")
def _divide(values: Tensor, divisor: Tensor | float, *, rounding_mode: str | None) -> Tensor:
    if rounding_mode != "floor" or not _is_float(values, divisor):
        return NotImplemented
    return floor_quotient(values, divisor)


def floor_quotient(values: Tensor | float, divisor: Tensor | float) -> Tensor:
    """Quotient of floats rounded down like in Python: 3.0 // 0.3 is 9, although the rounded quotient is 10."""
    values, divisor = _tensors(values, divisor)
    rest = torch.fmod(values, divisor)
    quotient = (values - rest) / divisor
    quotient = torch.where((rest != 0) & ((rest < 0) != (divisor < 0)), quotient - 1, quotient)
    below = torch.floor(quotient)
    nearest = torch.where(quotient - below > 0.5, below + 1, below)
    return torch.where(divisor == 0, values / divisor, nearest)


def _is_float(*operands: Tensor | float) -> bool:
    return any(each.is_floating_point() if isinstance(each, Tensor) else isinstance(each, float) for each in operands)


def _tensors(values: Tensor | float, divisor: Tensor | float) -> tuple[Tensor, Tensor]:
    dtype = torch.result_type(values, divisor)

    def tensor(value: Tensor | float) -> Tensor:
        # `as_tensor` would turn a number into a program input.
        return value.to(dtype) if isinstance(value, Tensor) else torch.full((), value, dtype=dtype)

    return tensor(values), tensor(divisor)


@decomposition_of("aten.atan2.default")
def atan2(ordinates: Tensor, abscissas: Tensor) -> Tensor:
    """Arctangent in all quadrants, with signed zeros and infinities like in C."""
    if not (ordinates.is_floating_point() and abscissas.is_floating_point()):
        return NotImplemented
    infinite = torch.isinf(ordinates) & torch.isinf(abscissas)
    ratio = torch.where(infinite, torch.sign(ordinates) * torch.sign(abscissas), ordinates / abscissas)
    half = torch.where(negative(ordinates), -1.0, 1.0).to(ordinates.dtype) * math.pi
    angle = torch.atan(ratio) + torch.where(abscissas < 0, half, 0.0)
    flat = torch.where(ordinates == 0, torch.where(negative(abscissas), half, ordinates), half / 2)
    return torch.where((abscissas == 0) & ~ordinates.isnan(), flat, angle)


@decomposition_of("aten.rsub.Scalar", "aten.rsub.Tensor")
def _subtracted_from(values: Tensor, other: Any, alpha: Any = 1) -> Any:
    """other - alpha * values, with integers converted to floats."""
    dtype = torch.result_type(values, other)
    if dtype == values.dtype:
        return NotImplemented
    left = other if isinstance(other, Tensor) else torch.full((), other, dtype=dtype)
    return left.to(dtype) - values.to(dtype) * alpha


@decomposition_of("aten.floor_divide.default")
def _floor_divided(left: Any, right: Any) -> Any:
    """left // right, either of them a number, in the data type that results from both."""
    dtype = torch.result_type(left, right)
    if dtype.is_floating_point:
        return floor_quotient(left, right)
    if isinstance(left, Tensor) and left.dtype == dtype:
        return NotImplemented
    divided = left.to(dtype) if isinstance(left, Tensor) else torch.full((), left, dtype=dtype)
    return torch.floor_divide(divided, right.to(dtype) if isinstance(right, Tensor) else right)


_HALVES = (torch.float16, torch.bfloat16)


def _in_float32(name: str, function: Callable[..., Tensor]) -> None:
    """Keep sums and products of halves in half precision; the exporter returns the float32 that it computes in."""

    def decomposition(values: Tensor, *arguments: Any, dtype: torch.dtype | None = None, **named: Any) -> Tensor:
        if values.dtype not in _HALVES or dtype not in (None, values.dtype):
            return NotImplemented
        return function(values.float(), *arguments, **named).to(values.dtype)

    decomposition_of(name, dtypes=_HALVES)(decomposition)


for _name, _function in (
    ("aten.sum.default", torch.sum),
    ("aten.sum.dim_IntList", torch.sum),
    ("aten.cumsum.default", torch.cumsum),
    ("aten.prod.default", torch.prod),
    ("aten.prod.dim_int", torch.prod),
):
    _in_float32(_name, _function)


@decomposition_of("aten.any.default", "aten.any.dim", "aten.any.dims")
def _any(values: Tensor, axes: Any = None, keepdim: bool = False) -> Tensor:
    """True if any element is nonzero; False for no elements."""
    return values.to(torch.bool).to(torch.int32).sum(axes, keepdim) != 0


def _is_symbolic(value: object) -> bool:
    return isinstance(value, torch.SymInt | torch.SymFloat)


def _not_symbolic(value: Any) -> Any:
    """Turn a scalar computed from dynamic sizes into a tensor: the exporter would treat it as a number."""
    return torch.full((), value) if _is_symbolic(value) else value
