"""Proofs that two formulas of symbolic sizes are equal, and one canonical formula for all that are.

A size is made of sums, products, and quotients and remainders by numbers. If every variable is taken modulo a common
multiple of those numbers, v = L*q + r, such a formula is a polynomial of the q for each choice of the r, and two
formulas are equal if and only if these polynomials are. TVM's own analyzer proves much of this, but does not know that
a size is a multiple of a number, nor how to simplify "SAME" padding (a maximum).

Sizes of a kernel's tensors that are computed from other sizes get their own names.

TVM's passes repeat and simplify such an expression, `(h - 1) // 32 + 1`, in every index into the tensor. With names,
kernels of different layers that differ only in these expressions become equal, too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from tvm.sym import Analyzer

from schedules.ir.expression import nodes, substitute
from schedules.ir.tir import (
    Buffer,
    Expr,
    Node,
    PrimFunc,
    StructuralKey,
    Var,
    structural_equal,
    structural_map,
    tirx,
    tvm,
)

_OPERATIONS = (tirx.Add, tirx.Sub, tirx.Mul, tirx.FloorDiv, tirx.FloorMod, tirx.Min, tirx.Max)


def name_sizes(function: PrimFunc) -> PrimFunc:
    """The function with a variable for each computed size, bound to the tensor's shape."""
    sizes = _computed_sizes(function)
    if not sizes:
        return function
    body, shapes = function.body, {each: list(each.ty.shape) for each in _buffers(function)}
    for number, size in enumerate(sizes):
        name = tirx.Var(f"size_{number}", size.ty)
        body = _named(body, size, name)
        for shape in shapes.values():
            shape[:] = [_named(each, size, name) if isinstance(each, _OPERATIONS) else each for each in shape]
    fresh = {each: with_shape(each, shape) for each, shape in shapes.items()}
    parameters = [fresh.get(each, each) for each in function.params]
    return tirx.PrimFunc(parameters, substitute(body, fresh), function.ret_type, function.attrs, function.span)


def _buffers(function: PrimFunc) -> list[Buffer]:
    return [each for each in function.params if tirx.is_buffer_var(each)]


def _computed_sizes(function: PrimFunc) -> list[Expr]:
    """The expressions among the sizes of a function's tensors, outer ones before those they contain."""
    computed: dict[StructuralKey, Expr] = {}
    for buffer in _buffers(function):
        for size in buffer.ty.shape:
            if isinstance(size, _OPERATIONS):
                computed.setdefault(StructuralKey(size), size)
    return sorted(computed.values(), key=lambda size: -len(nodes(size, *_OPERATIONS)))


def _named(root: Node, size: Expr, name: Expr) -> Node:
    """`root` with `size` replaced by `name`, also its two factors inside a longer product, (n * h) * w."""
    key, constants = StructuralKey(size), _constant_operands(size)

    def replace(node: Expr) -> Expr:
        # Computing a key takes far longer than comparing the operands, and most nodes have other constants.
        return name if _constant_operands(node) == constants and StructuralKey(node) == key else node

    if not isinstance(size, tirx.Mul):
        return structural_map(root, (type(size), replace))
    first, second = StructuralKey(size.a), StructuralKey(size.b)

    def replace_product(node: Expr) -> Expr:
        if isinstance(node.a, tirx.Mul) and StructuralKey(node.b) == second and StructuralKey(node.a.b) == first:
            return tirx.Mul(node.a.a, name)
        return replace(node)

    return structural_map(root, (tirx.Mul, replace_product))


def _constant_operands(operation: Expr) -> tuple[int | None, int | None]:
    """The values of the two operands of an operation, None if not constant."""
    return _constant(operation.a), _constant(operation.b)


def _constant(value: Expr) -> int | None:
    return int(value.value) if isinstance(value, tirx.IntImm) else None


def with_shape(buffer: Buffer, shape: list[Expr]) -> Expr:
    """A copy of a buffer with another shape."""
    ty = buffer.ty
    return tirx.decl_buffer(
        shape,
        ty.dtype,
        str(buffer.name),
        strides=ty.strides,
        elem_offset=ty.elem_offset,
        scope=str(ty.storage_scope),
        data_alignment=int(ty.data_alignment),
        offset_factor=int(ty.offset_factor),
        layout=ty.layout,
    )


Monomial: TypeAlias = tuple[int, ...]
"""Indices of the multiplied variables, sorted, repeated for each power."""
Polynomial: TypeAlias = dict[Monomial, int]
"""Coefficients that are not 0."""

CONGRUENCES = "tensorwright.congruences"
"""Attribute of a module's `main`: (modulus, remainder) of sizes by name, checked at every run."""
_MAX_CLASSES = 1024
"""Limit on the choices of remainders in a proof (one dimension halved ten times, two halved five times each)."""
_MAX_TERMS = 64
"""Limit on the terms of a polynomial in a proof."""
_MAX_NODES = 1000
"""Limit on the nodes of formulas that are simplified or compared: TVM's analyzer takes time by their square."""
_POINTS = 6
"""Values of the variables at which formulas are compared before a proof is tried."""
_MIN_VALUE = 64
"""Variables are at least this at these points, so that divisors are not 0."""
_COMPARISONS: dict[type, Callable[[int, int], bool]] = {
    tirx.EQ: lambda a, b: a == b,
    tirx.NE: lambda a, b: a != b,
    tirx.LT: lambda a, b: a < b,
    tirx.LE: lambda a, b: a <= b,
    tirx.GT: lambda a, b: a > b,
    tirx.GE: lambda a, b: a >= b,
}
_ARITHMETIC: dict[type, Callable[[int, int], int]] = {
    tirx.Add: lambda a, b: a + b,
    tirx.Sub: lambda a, b: a - b,
    tirx.Mul: lambda a, b: a * b,
    tirx.FloorDiv: lambda a, b: a // b,
    tirx.FloorMod: lambda a, b: a % b,
    tirx.Min: min,
    tirx.Max: max,
    tirx.And: lambda a, b: bool(a and b),
    tirx.Or: lambda a, b: bool(a or b),
}


@dataclass(frozen=True)
class Congruence:
    """A size equals `modulus * q + remainder` for some q >= 0."""

    modulus: int = 1
    remainder: int = 0


class UnprovableError(Exception):
    """The formula is not a polynomial for the given remainders, or a proof would take too long."""


class SizeSpellings:
    """One canonical formula for all sizes that can be proved equal; variables are >= 0. `congruences`: known
    congruences of variables, by name."""

    def __init__(self, congruences: Mapping[str, Congruence] | None = None) -> None:
        self._congruences = dict(congruences or {})
        self._analyzer = Analyzer()
        self._numbers: dict[Var, int] = {}
        self._spellings: dict[StructuralKey, Expr] = {}
        self._alike: dict[tuple[object, ...], list[Expr]] = {}

    @property
    def congruences(self) -> Mapping[str, Congruence]:
        """Known congruences of variables, by name."""
        return self._congruences

    def know(self, variable: Var, congruence: Congruence) -> None:
        """Register that a variable is congruent to a number; formulas seen before are forgotten."""
        self._congruences[str(variable.name)] = congruence
        self._spellings.clear()
        self._alike.clear()
        for each in (*self._numbers, variable):
            self.of(each)

    def of(self, size: Expr) -> Expr:
        """The number that this formula provably equals, otherwise the first formula seen that it provably equals."""
        key = StructuralKey(size)
        known = self._spellings.get(key)
        if known is None:
            known = self._spellings[key] = self._first_equal(size)
        return known

    def equal(self, a: Expr, b: Expr) -> bool:
        """True if they are equal for all values of their variables."""
        return structural_equal(a, b) or (self._values(a) == self._values(b) and self._proved(a, b))

    def _first_equal(self, size: Expr) -> Expr:
        values = self._values(size)
        if values is None:
            return size
        if len(set(values[1:])) == 1 and not isinstance(size, tirx.IntImm):
            number = tirx.IntImm(str(values[0]), values[1])
            if self._proved(number, size):
                return number
        alike = self._alike.setdefault(values, [])
        for each in alike:
            if self._proved(each, size):
                return each
        alike.append(size)
        return size

    def _proved(self, a: Expr, b: Expr) -> bool:
        if not is_short(a, b):
            return False
        return bool(self._analyzer.can_prove_equal(a, b)) or self._equal_for_all_remainders(a, b)

    def _values(self, size: Expr) -> tuple[object, ...] | None:
        """Values of the formula at some points; None if it contains an unknown operation, or is long."""
        if not is_short(size):
            return None
        try:
            return (str(size.ty.dtype), *(self._value_at(size, point) for point in range(_POINTS)))
        except (UnprovableError, ZeroDivisionError):
            return None

    def _value_at(self, size: Expr, point: int) -> int:
        def variable(var: Var) -> int:
            number, known = self._number(var), self._congruence(var)
            return known.modulus * (_MIN_VALUE + (number * 7919 + point * 104729) % 997) + known.remainder

        return evaluated(size, variable)

    def _number(self, var: Var) -> int:
        return self._numbers.setdefault(var, len(self._numbers))

    def _congruence(self, var: Var) -> Congruence:
        return self._congruences.get(str(var.name), Congruence())

    def _equal_for_all_remainders(self, a: Expr, b: Expr) -> bool:
        periods: dict[Var, int] = {}
        try:
            for size in (a, b):
                for var, period in _periods(size).items():
                    periods[var] = math.lcm(periods.get(var, self._congruence(var).modulus), period)
            choices = [self._remainders(var, period) for var, period in periods.items()]
            if math.prod(map(len, choices)) > _MAX_CLASSES:
                return False
            for remainders in itertools.product(*choices):
                of = {
                    var: _without_zeros({(self._number(var),): period, (): remainder})
                    for (var, period), remainder in zip(periods.items(), remainders, strict=True)
                }
                if _polynomial(a, of) != _polynomial(b, of):
                    return False
        except UnprovableError:
            return False
        return True

    def _remainders(self, var: Var, period: int) -> range:
        known = self._congruence(var)
        return range(known.remainder % known.modulus, period, known.modulus)


def is_short(*formulas: Expr) -> bool:
    """True if formulas may be simplified, or compared with one another."""
    return sum(len(nodes(each, tvm.ir.Expr)) for each in formulas) <= _MAX_NODES


def complexity(size: Expr) -> tuple[int, str]:
    """Sort key for spellings: the number of nodes, then the text."""
    return len(nodes(size, tvm.ir.Expr)), str(size)


def evaluated(size: Expr, value_of: Callable[[Var], int]) -> int:
    """The value of a formula. Raises UnprovableError if it contains other operations."""
    kind = type(size)
    if isinstance(size, tvm.ir.Var):
        return value_of(size)
    if kind is tirx.IntImm:
        return int(size.value)
    if kind is tirx.Cast and str(size.ty.dtype).startswith("int"):
        return evaluated(size.value, value_of)
    if kind is tirx.Not:
        return not evaluated(size.a, value_of)
    if kind is tirx.Select:
        return evaluated(size.true_value if evaluated(size.condition, value_of) else size.false_value, value_of)
    operation = _ARITHMETIC.get(kind) or _COMPARISONS.get(kind)
    if operation is None:
        raise UnprovableError
    return operation(evaluated(size.a, value_of), evaluated(size.b, value_of))


def is_nonnegative(size: Expr) -> bool:
    """True if a formula is a polynomial of sizes that is proved to be at least 0 for all of them."""
    variables = {var: number for number, var in enumerate(_periods(size))}
    try:
        return _sign(_polynomial(size, {var: {(number,): 1} for var, number in variables.items()})) >= 0
    except UnprovableError:
        return False


def _periods(size: Expr) -> dict[Var, int]:
    """For each variable, the modulus whose remainders select between polynomials."""
    if isinstance(size, tvm.ir.Var):
        return {size: 1}
    result: dict[Var, int] = {}
    for part in _operands(size):
        for var, period in _periods(part).items():
            result[var] = math.lcm(result.get(var, 1), period)
    if isinstance(size, (tirx.FloorDiv, tirx.FloorMod)) and isinstance(size.b, tirx.IntImm) and int(size.b.value) != 0:
        return {var: period * abs(int(size.b.value)) for var, period in result.items()}
    return result


def _operands(size: Expr) -> Iterator[Expr]:
    for name in ("a", "b", "value", "condition", "true_value", "false_value"):
        part = getattr(size, name, None)
        if isinstance(part, tvm.ir.Expr):
            yield part


def _polynomial(size: Expr, of: Mapping[Var, Polynomial]) -> Polynomial:
    """The formula with polynomials substituted for its variables."""
    if isinstance(size, tvm.ir.Var):
        return of[size]
    if isinstance(size, tirx.IntImm):
        return _without_zeros({(): int(size.value)})
    if isinstance(size, tirx.Cast):
        return _polynomial(size.value, of)
    if isinstance(size, tirx.Select):
        chosen = size.true_value if _decided(size.condition, of) else size.false_value
        return _polynomial(chosen, of)
    if not isinstance(size, (tirx.Add, tirx.Sub, tirx.Mul, tirx.FloorDiv, tirx.FloorMod, tirx.Min, tirx.Max)):
        raise UnprovableError
    a, b = _polynomial(size.a, of), _polynomial(size.b, of)
    if isinstance(size, tirx.Add):
        return _sum(a, b)
    if isinstance(size, tirx.Sub):
        return _sum(a, b, -1)
    if isinstance(size, tirx.Mul):
        return _product(a, b)
    if isinstance(size, tirx.FloorDiv):
        return _quotient(a, b)
    if isinstance(size, tirx.FloorMod):
        return _sum(a, _product(b, _quotient(a, b)), -1)
    return a if (_sign(_sum(a, b, -1)) >= 0) == isinstance(size, tirx.Max) else b


def _sum(a: Polynomial, b: Polynomial, factor: int = 1) -> Polynomial:
    result = dict(a)
    for monomial, coefficient in b.items():
        result[monomial] = result.get(monomial, 0) + factor * coefficient
    return _without_zeros(result)


def _product(a: Polynomial, b: Polynomial) -> Polynomial:
    if len(a) * len(b) > _MAX_TERMS:
        raise UnprovableError
    result: Polynomial = {}
    for (left, c), (right, d) in itertools.product(a.items(), b.items()):
        monomial = tuple(sorted(left + right))
        result[monomial] = result.get(monomial, 0) + c * d
    return _without_zeros(result)


def _quotient(a: Polynomial, b: Polynomial) -> Polynomial:
    """a // b, for a number that divides all coefficients except the constant, or a product that divides a."""
    if len(b) != 1:
        if a == b:
            return {(): 1}
        raise UnprovableError
    ((monomial, divisor),) = b.items()
    if divisor < 0:
        return _quotient(_sum({}, a, -1), {monomial: -divisor})
    result: Polynomial = {}
    for factors, coefficient in a.items():
        remaining = list(factors)
        for variable in monomial:
            if variable not in remaining:
                raise UnprovableError
            remaining.remove(variable)
        if coefficient % divisor and factors:
            raise UnprovableError
        result[tuple(remaining)] = coefficient // divisor
    return _without_zeros(result)


def _sign(polynomial: Polynomial) -> int:
    """1 or -1 if it never has the other sign, 0 for zero; variables are >= 0."""
    if all(coefficient > 0 for coefficient in polynomial.values()):
        return 1 if polynomial else 0
    if all(coefficient < 0 for coefficient in polynomial.values()):
        return -1
    raise UnprovableError


def _decided(condition: Expr, of: Mapping[Var, Polynomial]) -> bool:
    """The result of a comparison that is the same for all values."""
    compare = _COMPARISONS.get(type(condition))
    if compare is None:
        raise UnprovableError
    difference = _sum(_polynomial(condition.a, of), _polynomial(condition.b, of), -1)
    sign = _sign(difference)
    if sign and () not in difference:  # it is 0 if the variables are
        raise UnprovableError
    return bool(compare(sign, 0))


def _without_zeros(polynomial: Polynomial) -> Polynomial:
    if len(polynomial) > _MAX_TERMS:
        raise UnprovableError
    return {monomial: coefficient for monomial, coefficient in polynomial.items() if coefficient}
