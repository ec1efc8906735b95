"""Arithmetic on scalars known during import or at run time: Python numbers and TVM scalar expressions.

Every function takes ints, floats, bools or expressions, and returns a Python number if possible, otherwise a simplified
expression. Shape variables are assumed non-negative. Integer division and remainder truncate, as in ONNX.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import tvm
from tvm import sym, tirx

from schedules.ir.expression import DIVISIONS
from schedules.ir.size_proofs import SizeSpellings, is_short
from schedules.ir.structural import structural_walk
from schedules.ir.tir import StructuralKey, structural_equal, structural_map
from schedules.ir.tvm_types import Expr

Scalar = Any  # int | float | bool | tvm.ir.Expr of a primitive type
Dim = Any  # int | tvm.ir.Expr of type int64

_MAX_SIZE = 2**40
_LARGEST_DENOMINATOR = 16  # of float constants by which sizes are multiplied exactly


class Arithmetic:
    """Scalar arithmetic that assumes that its dimensions are in [0, 2**40)."""

    def __init__(self) -> None:
        self.analyzer = sym.Analyzer()
        self.spellings = SizeSpellings()
        # Results of TVM's analyzer: layers of a network repeat formulas.
        self._simplified: dict[StructuralKey, tvm.ir.Expr] = {}
        self._equal: dict[tuple[StructuralKey, StructuralKey], bool] = {}

    def dimension(self, name: str, maximum: int = _MAX_SIZE) -> tvm.ir.Expr:
        """Return a new symbolic size, int64, in [0, maximum)."""
        variable = tirx.Var(name, "int64")
        self.analyzer.bind(variable, tvm.ir.Range(0, maximum))
        self.spellings.of(variable)
        return variable

    def simplify(self, value: Scalar) -> Scalar:
        """Return the value in its shortest form, the same for all sizes proved equal."""
        if is_number(value):
            return value
        key = StructuralKey(value)
        simple = self._simplified.get(key)
        if simple is None:
            simple = self._simplified[key] = self.analyzer.simplify(value) if is_short(value) else value
        return plain(self.spellings.of(simple) if dtype_of(simple) == "int64" else simple)

    def equal_is_proved(self, a: Scalar, b: Scalar) -> bool:
        if is_number(a) and is_number(b):
            return bool(a == b)
        left, right = expression(a), expression(b)
        pair = StructuralKey(left), StructuralKey(right)
        known = self._equal.get(pair)
        if known is None:
            # Spellings are for sizes; TVM also proves some equalities of floats.
            known = self.spellings.equal(left, right) or (
                is_short(left, right) and bool(self.analyzer.can_prove_equal(left, right))
            )
            self._equal[pair] = known
        return known

    def proved(self, condition: Scalar) -> bool:
        """True if a condition always holds."""
        if is_number(condition):
            return bool(condition)
        return is_short(condition) and bool(self.analyzer.can_prove(condition))

    def _binary(
        self, on_numbers: Callable[..., Scalar], on_expressions: Callable[..., Scalar], a: Scalar, b: Scalar
    ) -> Scalar:
        if is_number(a) and is_number(b):
            return on_numbers(a, b)
        left, right = _same_type(a, b)
        return self.simplify(on_expressions(left, right))

    def add(self, a: Scalar, b: Scalar) -> Scalar:
        for x, rest in ((a, b), (b, a)):
            window = _rounding_up(x, rest)
            if window is not None:
                return self.multiply(self.ceil_divide(x, window), window)
        return self._binary(lambda x, y: x + y, tirx.Add, a, b)

    def subtract(self, a: Scalar, b: Scalar) -> Scalar:
        window = _rounding_down(a, b)
        if window is not None:
            return self.multiply(self.floor_divide(a, window), window)
        return self._binary(lambda x, y: x - y, tirx.Sub, a, b)

    def multiply(self, a: Scalar, b: Scalar) -> Scalar:
        return self._binary(lambda x, y: x * y, tirx.Mul, a, b)

    def divide(self, a: Scalar, b: Scalar) -> Scalar:
        """Quotient, truncated toward zero for integers. Raises ZeroDivisionError for an integer division by zero."""
        if self.is_float(a) or self.is_float(b):
            return self._binary(lambda x, y: x / y, tirx.Div, a, b)
        if is_number(b) and b == 0:
            raise ZeroDivisionError("integer division by zero")
        factor = _other_factor(a, b)
        if factor is not None:
            return factor
        if self.not_negative(a) and self.not_negative(b):
            return self._binary(lambda x, y: x // y, tirx.FloorDiv, a, b)
        if is_number(b) and b > 0 and not is_number(a) and self.equal_is_proved(self.floor_mod(a, b), 0):
            return self._exact_quotient(a, b)
        return self._binary(_truncated_quotient, tirx.Div, a, b)

    def _exact_quotient(self, a: tvm.ir.Expr, b: int) -> Scalar:
        """Quotient of a multiple of `b`; x // b for x - x % b, which frontends write to round down."""
        shorter = self.floor_divide(structural_map(a, (tirx.FloorMod, lambda rest: _constant(0, rest))), b)
        return shorter if self.equal_is_proved(shorter, tirx.FloorDiv(a, _constant(b, a))) else self.floor_divide(a, b)

    def floor_divide(self, a: Scalar, b: Scalar) -> Scalar:
        return self._binary(lambda x, y: x // y, tirx.FloorDiv, a, b)

    def ceil_divide(self, a: Scalar, b: Scalar) -> Scalar:
        return self.floor_divide(self.add(a, self.subtract(b, 1)), b)

    def floor_mod(self, a: Scalar, b: Scalar) -> Scalar:
        if _other_factor(a, b) is not None:
            return 0
        return self._binary(lambda x, y: x % y, tirx.FloorMod, a, b)

    def truncated_mod(self, a: Scalar, b: Scalar) -> Scalar:
        return self._binary(lambda x, y: x - y * _truncated_quotient(x, y), tirx.Mod, a, b)

    def minimum(self, a: Scalar, b: Scalar) -> Scalar:
        return self._binary(min, tirx.Min, a, b)

    def maximum(self, a: Scalar, b: Scalar) -> Scalar:
        return self._binary(max, tirx.Max, a, b)

    def equal(self, a: Scalar, b: Scalar) -> Scalar:
        if _is_condition(a) or _is_condition(b):  # TVM's code generator has no comparison of booleans
            both = self.logical_and(a, b)
            return self.logical_or(both, self.logical_not(self.logical_or(a, b)))
        return self._binary(lambda x, y: x == y, tirx.EQ, a, b)

    def less(self, a: Scalar, b: Scalar) -> Scalar:
        return self._binary(lambda x, y: x < y, tirx.LT, a, b)

    def less_equal(self, a: Scalar, b: Scalar) -> Scalar:
        return self._binary(lambda x, y: x <= y, tirx.LE, a, b)

    def logical_and(self, a: Scalar, b: Scalar) -> Scalar:
        return self._binary(lambda x, y: bool(x and y), tirx.And, a, b)

    def logical_or(self, a: Scalar, b: Scalar) -> Scalar:
        return self._binary(lambda x, y: bool(x or y), tirx.Or, a, b)

    def logical_not(self, a: Scalar) -> Scalar:
        return (not a) if is_number(a) else self.simplify(tirx.Not(a))

    def negative(self, a: Scalar) -> Scalar:
        return self.subtract(0.0 if self.is_float(a) else 0, a)

    def absolute(self, a: Scalar) -> Scalar:
        return abs(a) if is_number(a) else self.maximum(a, self.negative(a))

    def floor(self, a: Scalar) -> Scalar:
        """Floor of a float; computed in exact integer arithmetic and cast back if `a` is a rational multiple of
        sizes."""
        if is_number(a):
            return float(math.floor(a))
        fraction = self.fraction(a)
        if fraction is None:
            return self.simplify(tirx.floor(a))
        return cast(self.floor_divide(*fraction), dtype_of(a))

    def ceil(self, a: Scalar) -> Scalar:
        """Like `floor`, upwards."""
        if is_number(a):
            return float(math.ceil(a))
        fraction = self.fraction(a)
        if fraction is None:
            return self.simplify(tirx.ceil(a))
        return cast(self.ceil_divide(*fraction), dtype_of(a))

    def truncated(self, a: Scalar) -> Scalar | None:
        """Truncate a float to int64; None unless it is a rational multiple of sizes."""
        if is_number(a):
            return int(a)
        fraction = self.fraction(a)
        return None if fraction is None else self.divide(*fraction)

    def fraction(self, a: Scalar) -> tuple[Scalar, int] | None:
        """Return (numerator, denominator), integers, of a float scalar; None if it is not such a quotient.

        Only for expressions that float32 computes exactly for numerators below 2**24: constants with a denominator of
        at most 16, a power of two, and one division by another integer at the very end, whose floor and ceiling survive
        rounding.
        """
        if is_number(a):
            numerator, denominator = float(a).as_integer_ratio() if math.isfinite(a) else (0, 0)
            return (numerator, denominator) if 0 < denominator <= _LARGEST_DENOMINATOR else None
        if isinstance(a, tirx.FloatImm):
            return self.fraction(float(a.value))
        if isinstance(a, tirx.Cast) and str(a.value.ty.dtype) == "int64":
            return a.value, 1
        if not isinstance(a, (tirx.Add, tirx.Sub, tirx.Mul, tirx.Div)):
            return None
        left, right = self.fraction(a.a), self.fraction(a.b)
        if left is None or right is None or not _is_power_of_two(left[1]) or not _is_power_of_two(right[1]):
            return None
        return self._combined(a, left, right)

    def _combined(self, a: tvm.ir.Expr, left: tuple[Scalar, int], right: tuple[Scalar, int]) -> Expr:
        (n, d), (m, e) = left, right
        if isinstance(a, tirx.Mul):
            known = is_number(n) or is_number(m)
            return (self.multiply(n, m), d * e) if known else None
        if isinstance(a, tirx.Div):
            return (self.multiply(n, e), d * m) if is_number(m) and m > 0 else None
        combine = self.add if isinstance(a, tirx.Add) else self.subtract
        common = max(d, e)
        return combine(self.multiply(n, common // d), self.multiply(m, common // e)), common

    def select(self, condition: Scalar, a: Scalar, b: Scalar) -> Scalar:
        """Return `a` if the condition holds, otherwise `b`."""
        condition = self.simplify(condition)
        if is_number(condition):
            return a if condition else b
        if is_number(a) and is_number(b) and a == b and type(a) is type(b):
            return a
        left, right = _same_type(a, b)
        if self.spellings.equal(left, right) or self._divides_by_zero(right, tirx.Not(condition)):
            return a
        if self._divides_by_zero(left, condition):
            return b
        return self.simplify(tirx.Select(condition, left, right))

    def _divides_by_zero(self, value: tvm.ir.Expr, condition: tvm.ir.Expr) -> bool:
        """True if the value divides by zero when the condition holds. Such runs are refused, and TVM, which simplifies
        the sides of a selection by its condition, does not compile the division."""
        divisors: list[tvm.ir.Expr] = []
        structural_walk(value, (DIVISIONS, lambda each: divisors.append(each.b)))
        divisors = [each for each in divisors if dtype_of(each) == "int64"]
        if not divisors:
            return False
        with self.analyzer.constraint_scope(condition):
            return any(self.proved(tirx.EQ(each, _constant(0, each))) for each in divisors)

    def product(self, values: Iterable[Scalar]) -> Scalar:
        result: Scalar = 1
        for value in values:
            result = self.multiply(result, value)
        return result

    def total(self, values: list[Expr]) -> Scalar:
        result: Scalar = 0
        for value in values:
            result = self.add(result, value)
        return result

    def not_negative(self, a: Scalar) -> bool:
        """True if a scalar is proved non-negative: by its parts, which are shorter, or as a whole."""
        if is_number(a):
            return bool(a >= 0)
        return self._of_not_negative(a) or self.proved(tirx.GE(a, _constant(0, a)))

    def _of_not_negative(self, a: tvm.ir.Expr) -> bool:
        """True if an expression is computed from non-negative ones in a way that keeps them so; of any depth."""
        pending = [a]
        while pending:
            part = pending.pop()
            if isinstance(part, tirx.Select):
                pending += [part.true_value, part.false_value]
            elif self._is_rounded_up(part):
                pending.append(part.b)  # it is not 0
            elif isinstance(part, (tirx.Add, tirx.Mul, tirx.Div, tirx.FloorDiv, tirx.Min)):
                pending += [part.a, part.b]
            elif isinstance(part, tirx.Max):
                if not self.not_negative(part.a) and not self.not_negative(part.b):
                    return False
            elif part.same_as(a) or not self.proved(tirx.GE(part, _constant(0, part))):
                return False
        return True

    def _is_rounded_up(self, a: tvm.ir.Expr) -> bool:
        """True for a quotient like (x + w - 1) // w, whose numerator is negative where both x and w are 0."""
        by_a_size = isinstance(a, tirx.FloorDiv) and not isinstance(a.b, tirx.IntImm)
        return by_a_size and self.proved(tirx.GE(a.a, a.b - 1))

    def float_not_negative(self, a: Scalar) -> bool:
        """True if the form of a float scalar proves it non-negative; the analyzer only supports integers."""
        if is_number(a):
            return bool(a >= 0)
        if isinstance(a, tirx.FloatImm):
            return bool(a.value >= 0)
        if isinstance(a, tirx.Cast):
            return self.not_negative(a.value)
        if isinstance(a, (tirx.Add, tirx.Mul, tirx.Div, tirx.Min)):
            return self.float_not_negative(a.a) and self.float_not_negative(a.b)
        if isinstance(a, tirx.Max):
            return self.float_not_negative(a.a) or self.float_not_negative(a.b)
        rounds = isinstance(a, tvm.ir.Call) and getattr(a.op, "name", "").rpartition(".")[2] in ("floor", "ceil")
        return rounds and self.float_not_negative(a.args[0])

    @staticmethod
    def is_float(a: Scalar) -> bool:
        return isinstance(a, float) if is_number(a) else dtype_of(a).startswith("float")


def is_number(value: Scalar) -> bool:
    return isinstance(value, (int, float, bool))


# TVM simplifies sizes rounded to multiples of a number; these functions find those rounded to multiples of a size.


def _rounding_down(x: Scalar, rest: Scalar) -> Scalar | None:
    """The size w if `rest` is x % w."""
    return rest.b if _is_rest(rest) and _is_same(rest.a, x) else None


def _rounding_up(x: Scalar, rest: Scalar) -> Scalar | None:
    """The size w if `rest` is (w - x % w) % w."""
    if not _is_rest(rest) or not isinstance(rest.a, tirx.Sub):
        return None
    return rest.b if _is_same(rest.a.a, rest.b) and _is_same(_rounding_down(x, rest.a.b), rest.b) else None


def _other_factor(a: Scalar, b: Scalar) -> Scalar | None:
    """The size x if `a` is x * b or b * x."""
    if not isinstance(a, tirx.Mul) or is_number(b):
        return None
    return next((x for x, factor in ((a.a, a.b), (a.b, a.a)) if _is_same(factor, b)), None)


def _is_rest(value: Scalar) -> bool:
    """True for a remainder by another size."""
    return isinstance(value, tirx.FloorMod) and not isinstance(value.b, tirx.IntImm)


def _is_same(a: Scalar | None, b: Scalar) -> bool:
    return isinstance(a, tvm.ir.Expr) and isinstance(b, tvm.ir.Expr) and structural_equal(a, b)


def _is_condition(value: Scalar) -> bool:
    """True for a boolean expression."""
    return not is_number(value) and dtype_of(value) == "bool"


def dtype_of(value: tvm.ir.Expr) -> str:
    """Return the name of an expression's primitive type."""
    return str(value.ty.dtype)


def _is_power_of_two(value: int) -> bool:
    return value & (value - 1) == 0


def is_simple(size: Dim) -> bool:
    """True if a size is a number, a symbol, or built from those by adding, subtracting, multiplying and dividing."""
    if isinstance(size, (int, tirx.Var, tirx.IntImm)):
        return True
    return isinstance(size, (tirx.Add, tirx.Sub, tirx.Mul, tirx.FloorDiv)) and is_simple(size.a) and is_simple(size.b)


def plain(value: Scalar) -> Scalar:
    """Convert an immediate to a Python number; anything else is unchanged."""
    if isinstance(value, tirx.IntImm):
        return bool(value.value) if str(value.ty.dtype) == "bool" else int(value.value)
    if isinstance(value, tirx.FloatImm):
        return float(value.value)
    return value


def expression(value: Scalar, dtype: str | None = None) -> tvm.ir.Expr:
    """Return the TVM expression of a scalar; by default ints are int64 and floats float32."""
    if isinstance(value, bool):
        return tirx.const(value, dtype or "bool")
    if isinstance(value, int):
        return tirx.const(value, dtype or "int64")
    if isinstance(value, float):
        return tirx.const(value, dtype or "float32")
    return value


def cast(value: Scalar, dtype: str) -> Scalar:
    """Cast an expression to `dtype`, one of int64, float32, float64, bool."""
    if is_number(value):
        return bool(value) if dtype == "bool" else float(value) if dtype.startswith("float") else int(value)
    if str(value.ty.dtype) == dtype:
        return value
    if dtype == "bool":
        return tirx.NE(value, _constant(0, value))
    return tirx.Cast(dtype, value)


def _constant(value: int, like: tvm.ir.Expr) -> tvm.ir.Expr:
    return tirx.const(value, str(like.ty.dtype))


def _same_type(a: Scalar, b: Scalar) -> tuple[tvm.ir.Expr, tvm.ir.Expr]:
    if is_number(a) and is_number(b):
        return expression(a), expression(b)
    if is_number(a):
        return tirx.const(a, str(b.ty.dtype)), b
    if is_number(b):
        return a, tirx.const(b, str(a.ty.dtype))
    return a, b


def _truncated_quotient(a: int, b: int) -> int:
    quotient = abs(a) // abs(b)
    return quotient if (a >= 0) == (b >= 0) else -quotient
