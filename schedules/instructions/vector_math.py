"""Elementary functions in float32 vectors, as LLVM functions that are inlined where they are called.

LLVM turns a vector `exp` into one libm call per lane. These hold only multiply-adds, selects and integer shifts.
Largest errors over the whole range against float64, in units in the last place of float32, with fused multiply-adds:

==========  =====  ==========================================================================
function    ulp    method
==========  =====  ==========================================================================
exp         1.0    as Cephes' `expf`: x = n ln 2 + r, a degree-6 polynomial in r, 2^n in two steps
sigmoid     2.5    1 / (1 + e^-x), 0 where that is below the normal range
tanh        5      odd rational approximation 13/6 as in Eigen
erf         6      odd rational approximation 11/10 as in Eigen
log         1.0    Cephes `logf`: mantissa in [sqrt(1/2), sqrt(2)), a degree-9 polynomial
round       0      half away from zero, as `roundf`
==========  =====  ==========================================================================

NaN gives NaN, infinities and overflow give the limits, results below the normal range are denormals.

Softmax takes powers of what is 0 or less. `exp_of_negative` is exp for such (1.0 ulp down to e^-87), 0 below the normal
range; `exp_of_negative_coarse` likewise with a largest relative error of 8e-5, a twentieth of what rounding to bfloat16
comes to.

Each comes in two variants. The plain one has its constants in registers, best for loops that do nothing else. The one
for tiles reads them from memory with each use: beside a tile of sums there are no registers for them, and LLVM would
rather spill the sums inside the innermost loop.

In TensorIR each is an operator `tensorwright.<name>` that the vectorizer knows; TVM's last lowering makes it
a call of the function for its number of lanes, whose text `definitions` gives for import into the kernel.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from schedules.instructions.llvm_functions import PREFIX, register_operator
from schedules.ir.tir import tvm

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr

_LOG2_E = 1.4426950408889634
_LN2 = 0.6931471805599453
_LN2_HIGH = 0.693359375  # 9 bits, so that n * _LN2_HIGH is exact
_LN2_LOW = -2.12194440e-4
_ROUNDING = 12582912.0  # 1.5 * 2^23: adding it rounds a float32 to an integer, held in the low bits
_ROUNDING_BITS = 0x4B400000
# e^r = 1 + r + r^2 P(r) for |r| <= ln 2 / 2, P fitted for the least largest relative error, 3.1e-9 (Lawson's method).
_EXP = (1.38145406e-3, 8.36874545e-3, 4.16683890e-2, 1.66665211e-1, 4.99999940e-1, 1.0, 1.0)
# e^r for |r| <= ln 2 / 2, fitted likewise: relative error 7.6e-5.
_EXP_COARSE = (1.656631e-1, 5.0498962e-1, 1.00016594, 9.9992732e-1)
_EXP_LIMITS = (-104.0, 89.0)  # beyond these the result is 0 or infinity in float32

_TANH_NUMERATOR = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
_TANH_DENOMINATOR = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
_TANH_LIMIT = 9.1  # from 9.02 on, float32 tanh is 1

_ERF_NUMERATOR = (
    2.123732201653183e-06,
    2.861979592125863e-04,
    3.658048342913389e-03,
    5.243302136659622e-02,
    1.874160766601562e-01,
    1.128379106521606,
)
_ERF_DENOMINATOR = (
    3.891857340931893e-05,
    1.143296016380198e-03,
    1.475208811461925e-02,
    1.129456758499146e-01,
    4.994257986545563e-01,
    1.0,
)
_ERF_LIMIT = 3.832506856900711  # where float32 erf is 1

_LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)

IN_TILE = "_in_tile"
LIMIT = "limit"
EXP_OF_NEGATIVE, EXP_OF_NEGATIVE_COARSE = "exp_of_negative", "exp_of_negative_coarse"
_TABLE = "tensorwright_constants"
_TABLE_SIZE = 128


def _bits(value: float) -> str:
    """A float32 in LLVM's exact notation: the bits of the double of equal value."""
    rounded = struct.unpack("<f", struct.pack("<f", value))[0]
    return f"0x{struct.unpack('<Q', struct.pack('<d', rounded))[0]:016X}"


class _Writer:
    """Writes the body of one LLVM function on vectors of `lanes` float32; values are register names or constants."""

    def __init__(self, lanes: int, table: list[float] | None = None) -> None:
        """`table` collects the constants of a variant that reads them from memory."""
        self.lanes = lanes
        self.table = table
        self.float = self._of("float")
        self.int = self._of("i32")
        self.bool = self._of("i1")
        self.lines: list[str] = []
        self.declared: set[str] = set()

    def _of(self, scalar: str) -> str:
        return scalar if self.lanes == 1 else f"<{self.lanes} x {scalar}>"

    def _emit(self, text: str) -> str:
        name = f"%v{len(self.lines)}"
        self.lines.append(f"  {name} = {text}")
        return name

    def number(self, value: float) -> str:
        """A float32 constant in every lane."""
        if self.table is not None:
            return self._from_table(value)
        return _bits(value) if self.lanes == 1 else f"splat (float {_bits(value)})"

    def _from_table(self, value: float) -> str:
        """Read from a variable that others might write to, for all LLVM knows: no register holds it for long."""
        assert self.table is not None
        if value not in self.table:
            self.table.append(value)
        place = f"getelementptr inbounds ([{_TABLE_SIZE} x float], ptr @{_TABLE}, i64 0, i64 {self.table.index(value)})"
        scalar = self._emit(f"load float, ptr {place}, align 4")
        if self.lanes == 1:
            return scalar
        first = self._emit(f"insertelement {self.float} poison, float {scalar}, i64 0")
        zeros = f"<{self.lanes} x i32> zeroinitializer"
        return self._emit(f"shufflevector {self.float} {first}, {self.float} poison, {zeros}")

    def integer(self, value: int) -> str:
        return str(value) if self.lanes == 1 else f"splat (i32 {value})"

    def add(self, a: str, b: str) -> str:
        return self._emit(f"fadd contract {self.float} {a}, {b}")

    def subtract(self, a: str, b: str) -> str:
        return self._emit(f"fsub contract {self.float} {a}, {b}")

    def multiply(self, a: str, b: str) -> str:
        return self._emit(f"fmul contract {self.float} {a}, {b}")

    def divide(self, a: str, b: str) -> str:
        return self._emit(f"fdiv {self.float} {a}, {b}")

    def whole(self, operation: str, a: str, b: str) -> str:
        """An integer operation: add, sub, shl, ashr, and, or."""
        return self._emit(f"{operation} {self.int} {a}, {b}")

    def compare(self, condition: str, a: str, b: str) -> str:
        """An ordered (o..) or unordered (u..) comparison."""
        return self._emit(f"fcmp {condition} {self.float} {a}, {b}")

    def select(self, condition: str, a: str, b: str) -> str:
        return self._emit(f"select {self.bool} {condition}, {self.float} {a}, {self.float} {b}")

    def bits(self, a: str) -> str:
        return self._emit(f"bitcast {self.float} {a} to {self.int}")

    def from_bits(self, a: str) -> str:
        return self._emit(f"bitcast {self.int} {a} to {self.float}")

    def to_float(self, a: str) -> str:
        return self._emit(f"sitofp {self.int} {a} to {self.float}")

    def intrinsic(self, name: str, *arguments: str) -> str:
        suffix = "f32" if self.lanes == 1 else f"v{self.lanes}f32"
        types = ", ".join(self.float for _ in arguments)
        self.declared.add(f"declare {self.float} @llvm.{name}.{suffix}({types})")
        values = ", ".join(f"{self.float} {argument}" for argument in arguments)
        return self._emit(f"call {self.float} @llvm.{name}.{suffix}({values})")

    def horner(self, coefficients: Sequence[float], x: str) -> str:
        """The polynomial with these coefficients, highest power first."""
        result = self.number(coefficients[0])
        for coefficient in coefficients[1:]:
            result = self.add(self.multiply(result, x), self.number(coefficient))
        return result

    def clamp(self, x: str, low: float, high: float) -> str:
        """Clamped so that NaN stays NaN; each select becomes one minimum or maximum instruction."""
        upper = self.select(self.compare("ogt", x, self.number(high)), self.number(high), x)
        return self.select(self.compare("olt", upper, self.number(low)), self.number(low), upper)

    def power_of_two(self, exponent: str) -> str:
        """2^exponent for an exponent in the normal range."""
        shifted = self.whole("shl", self.whole("add", exponent, self.integer(127)), self.integer(23))
        return self.from_bits(shifted)


def _exp(w: _Writer, argument: str) -> str:
    polynomial, exponent = _exp_parts(w, w.clamp(argument, *_EXP_LIMITS))
    # In two steps, since 2^n itself may lie outside the normal range where the result does not.
    half = w.whole("ashr", exponent, w.integer(1))
    scaled = w.multiply(polynomial, w.power_of_two(half))
    return w.multiply(scaled, w.power_of_two(w.whole("sub", exponent, half)))


def _exp_parts(w: _Writer, x: str) -> tuple[str, str]:
    """(p, n) with e^x = p 2^n, p near [0.7, 1.4]."""
    shifted = w.add(w.multiply(x, w.number(_LOG2_E)), w.number(_ROUNDING))
    n = w.subtract(shifted, w.number(_ROUNDING))
    r = w.subtract(x, w.multiply(n, w.number(_LN2_HIGH)))
    r = w.subtract(r, w.multiply(n, w.number(_LN2_LOW)))
    return w.horner(_EXP, r), w.whole("sub", w.bits(shifted), w.integer(_ROUNDING_BITS))


def _exp_of_negative(w: _Writer, argument: str) -> str:
    return _exp_in_one_step(w, argument, (_LN2_HIGH, _LN2_LOW), _EXP)


def _exp_of_negative_coarse(w: _Writer, argument: str) -> str:
    return _exp_in_one_step(w, argument, (_LN2,), _EXP_COARSE)


def _exp_in_one_step(w: _Writer, argument: str, ln2: Sequence[float], polynomial: Sequence[float]) -> str:
    """e^x for x <= 0, n at least -127, whose bits of 2^n are those of 0. What rounds n adds the bias of exponents."""
    x = w.select(w.compare("olt", argument, w.number(-88.0)), w.number(-88.0), argument)
    rounding = w.number(_ROUNDING + 127)
    shifted = w.add(w.multiply(x, w.number(_LOG2_E)), rounding)
    n = w.subtract(shifted, rounding)
    for part in ln2:
        x = w.subtract(x, w.multiply(n, w.number(part)))
    power = w.from_bits(w.whole("shl", w.bits(shifted), w.integer(23)))
    return w.multiply(w.horner(polynomial, x), power)


def _sigmoid(w: _Writer, x: str) -> str:
    """1 / (1 + e^-x), where e^-x becomes infinite as soon as the result is below the normal range.

    So 2^n takes one step: n = 128 gives the bits of infinity, and the upper limit keeps n at -126. What rounds n to an
    integer adds the bias of exponents too, and -r takes the place of r.
    """
    x = w.clamp(x, -89.0, 87.33)
    rounding = w.number(_ROUNDING + 127)
    shifted = w.add(w.multiply(x, w.number(-_LOG2_E)), rounding)
    n = w.subtract(shifted, rounding)
    minus_r = w.add(x, w.multiply(n, w.number(_LN2_HIGH)))
    minus_r = w.add(minus_r, w.multiply(n, w.number(_LN2_LOW)))
    polynomial = w.horner([entry if i % 2 == 0 else -entry for i, entry in enumerate(_EXP)], minus_r)
    power = w.from_bits(w.whole("shl", w.bits(shifted), w.integer(23)))
    return w.divide(w.number(1.0), w.add(w.multiply(polynomial, power), w.number(1.0)))


def _odd_rational(
    w: _Writer, argument: str, limit: float, numerator: Sequence[float], denominator: Sequence[float]
) -> str:
    """x P(x^2) / Q(x^2) on the clamped argument, cut to [-1, 1]."""
    x = w.clamp(argument, -limit, limit)
    square = w.multiply(x, x)
    quotient = w.divide(w.horner(numerator, square), w.horner(denominator, square))
    return w.clamp(w.multiply(x, quotient), -1.0, 1.0)


def _tanh(w: _Writer, x: str) -> str:
    return _odd_rational(w, x, _TANH_LIMIT, _TANH_NUMERATOR, _TANH_DENOMINATOR)


def _erf(w: _Writer, x: str) -> str:
    return _odd_rational(w, x, _ERF_LIMIT, _ERF_NUMERATOR, _ERF_DENOMINATOR)


def _log(w: _Writer, x: str) -> str:
    denormal = w.compare("olt", x, w.number(1.17549435e-38))
    bits = w.bits(w.select(denormal, w.multiply(x, w.number(8388608.0)), x))
    offset = w.select(denormal, w.number(149.0), w.number(126.0))
    fraction = w.whole("or", w.whole("and", bits, w.integer(0x007FFFFF)), w.integer(0x3F000000))  # in [0.5, 1)
    mantissa = w.from_bits(fraction)
    exponent = w.subtract(w.to_float(w.whole("ashr", bits, w.integer(23))), offset)
    low = w.compare("olt", mantissa, w.number(0.70710678118654752))
    m = w.subtract(w.select(low, w.add(mantissa, mantissa), mantissa), w.number(1.0))
    e = w.select(low, w.subtract(exponent, w.number(1.0)), exponent)
    square = w.multiply(m, m)
    tail = w.multiply(w.multiply(w.horner(_LOG, m), m), square)
    small = w.add(tail, w.multiply(e, w.number(_LN2_LOW)))
    small = w.subtract(small, w.multiply(w.number(0.5), square))
    result = w.add(w.add(m, small), w.multiply(e, w.number(_LN2_HIGH)))
    result = w.select(w.compare("oeq", x, w.number(0.0)), w.number(float("-inf")), result)
    # NaN fails the comparison, so NaN and infinity return themselves.
    result = w.select(w.compare("ole", x, w.number(3.4028234e38)), result, x)
    return w.select(w.compare("olt", x, w.number(0.0)), w.number(math.nan), result)


def _limit(w: _Writer, x: str, low: str, high: str) -> str:
    """min(max(x, low), high), and NaN for NaN: each select becomes one minimum or maximum instruction."""
    above = w.select(w.compare("olt", x, low), low, x)
    return w.select(w.compare("ogt", above, high), high, above)


def _round(w: _Writer, x: str) -> str:
    below_half = 0.49999997  # the largest float32 below 0.5: 0.5 itself would round 0.49999997 up
    return w.intrinsic("trunc", w.add(x, w.intrinsic("copysign", w.number(below_half), x)))


FUNCTIONS: dict[str, Callable[..., str]] = {
    "exp": _exp,
    EXP_OF_NEGATIVE: _exp_of_negative,
    EXP_OF_NEGATIVE_COARSE: _exp_of_negative_coarse,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "erf": _erf,
    "log": _log,
    "round": _round,
    LIMIT: _limit,
}
_PARAMETERS = {LIMIT: ("%x", "%low", "%high")}  # those of the others are one, %x


def _constants() -> list[float]:
    """The table of all functions' constants , in a fixed order."""
    table: list[float] = []
    for name in FUNCTIONS:
        FUNCTIONS[name](_Writer(2, table), *_PARAMETERS.get(name, ("%x",)))
    assert len(table) <= _TABLE_SIZE
    return table


def _symbol(name: str, lanes: int) -> str:
    return f"tensorwright_{name}_f32x{lanes}"


@cache
def _function_text(name: str, lanes: int) -> tuple[str, frozenset[str]]:
    """(the definition, the declarations it needs)."""
    plain = name.removesuffix(IN_TILE)
    writer = _Writer(lanes, None if plain == name else _constants())
    parameters = _PARAMETERS.get(plain, ("%x",))
    result = FUNCTIONS[plain](writer, *parameters)
    typed = ", ".join(f"{writer.float} {parameter}" for parameter in parameters)
    head = f"define {writer.float} @{_symbol(name, lanes)}({typed}) alwaysinline nounwind {{"
    return "\n".join([head, *writer.lines, f"  ret {writer.float} {result}", "}"]), frozenset(writer.declared)


@cache
def _table_text() -> str:
    table = _constants()
    values = ", ".join(f"float {_bits(value)}" for value in table + [0.0] * (_TABLE_SIZE - len(table)))
    return f"@{_TABLE} = linkonce_odr global [{_TABLE_SIZE} x float] [{values}]"


def definitions(names: Iterable[str], lanes: Iterable[int]) -> str:
    """LLVM IR that defines the functions (with `IN_TILE` appended: that variant) for these numbers of lanes."""
    used = sorted(set(names))
    texts = [_function_text(name, count) for name in used for count in sorted(set(lanes))]
    declared = sorted({line for _, lines in texts for line in lines})
    table = [_table_text()] if any(name.endswith(IN_TILE) for name in used) else []
    return "\n".join([*table, *declared, *(text for text, _ in texts), ""])


def call(name: str, x: Expr, *others: Expr) -> Expr:
    """The TensorIR expression of a function of float32 expressions."""
    return tvm.ir.Call(tvm.ir.Op.get(PREFIX + name), [x, *others], ret_ty=x.ty)


for _name in FUNCTIONS:
    for _variant in (_name, _name + IN_TILE):
        register_operator(PREFIX + _variant, "of float32 in vectors", _symbol)
