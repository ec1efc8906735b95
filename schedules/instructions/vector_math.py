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
pow         0.51   2^(y log2 x) in float64: Taylor series of degrees 13 and 9
round       0      half away from zero, as `roundf`
sin, cos    1.6    Cephes `sinf`; reduced by pi / 2 in two parts in float64, as FreeBSD's `sinf`
tan         2.7    Cephes `tanf`, reduced likewise
asin        2.5    Cephes `asinf`: a degree-11 polynomial up to 1/2, of a square root above
acos        1.2    from the same
atan        2.4    Cephes `atanf`: three ranges, a degree-9 polynomial
sinh        1.7    Cephes `sinhf`: a degree-7 polynomial up to 1, powers of e above
cosh        1.4    powers of e
asinh       3.9    Cephes `asinhf`: a degree-9 polynomial up to 1/2, a logarithm above
acosh       2.4    Cephes `acoshf`: a polynomial times a square root up to 1.5, a logarithm above
atanh       1.5    Cephes `atanhf`: a degree-11 polynomial up to 1/2, a logarithm above
==========  =====  ==========================================================================

NaN gives NaN, infinities and overflow give the limits, results below the normal range are denormals.
Vectors in which a sine's, cosine's or tangent's argument exceeds 2^28 go to the C library, lane by lane.

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

from collections.abc import Callable, Iterable, Sequence
from functools import cache

from schedules.instructions import vector_functions
from schedules.instructions.llvm_functions import PREFIX, register_operator
from schedules.instructions.vector_writer import (
    METADATA,
    TABLE,
    TABLE_SIZE,
    WIDE_TABLE,
    WIDE_TABLE_SIZE,
    Tables,
    Writer,
    float_bits,
    wide_bits,
)
from schedules.ir.tir import Expr, tvm

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
_ERF_LIMIT = 3.832506856900711  # float32 erf is 1 from here on

IN_TILE = "_in_tile"
LIMIT = "limit"
EXP_OF_NEGATIVE, EXP_OF_NEGATIVE_COARSE = "exp_of_negative", "exp_of_negative_coarse"


def _odd_rational(
    w: Writer, argument: str, limit: float, numerator: Sequence[float], denominator: Sequence[float]
) -> str:
    """x P(x^2) / Q(x^2) on the clamped argument, cut to [-1, 1]."""
    x = w.clamp(argument, -limit, limit)
    square = w.multiply(x, x)
    quotient = w.divide(w.horner(numerator, square), w.horner(denominator, square))
    return w.clamp(w.multiply(x, quotient), -1.0, 1.0)


def _limit(w: Writer, x: str, low: str, high: str) -> str:
    """min(max(x, low), high), and NaN for NaN: each select becomes one minimum or maximum instruction."""
    above = w.select(w.compare("olt", x, low), low, x)
    return w.select(w.compare("ogt", above, high), high, above)


def _round(w: Writer, x: str) -> str:
    below_half = 0.49999997  # the largest float32 below 0.5: 0.5 itself would round 0.49999997 up
    return w.intrinsic("trunc", w.add(x, w.intrinsic("copysign", w.number(below_half), x)))


FUNCTIONS: dict[str, Callable[..., str]] = {
    "exp": vector_functions.exp,
    EXP_OF_NEGATIVE: vector_functions.exp_of_negative,
    EXP_OF_NEGATIVE_COARSE: vector_functions.exp_of_negative_coarse,
    "sigmoid": vector_functions.sigmoid,
    "tanh": lambda w, x: _odd_rational(w, x, _TANH_LIMIT, _TANH_NUMERATOR, _TANH_DENOMINATOR),
    "erf": lambda w, x: _odd_rational(w, x, _ERF_LIMIT, _ERF_NUMERATOR, _ERF_DENOMINATOR),
    "log": vector_functions.log,
    "round": _round,
    LIMIT: _limit,
    **{name: getattr(vector_functions, name) for name in ("sin", "cos", "tan", "asin", "acos", "atan")},
    **{name: getattr(vector_functions, name) for name in ("sinh", "cosh", "asinh", "acosh", "atanh")},
    "pow": vector_functions.power,
}
_PARAMETERS = {LIMIT: ("%x", "%low", "%high"), "pow": ("%x", "%y")}  # those of the others are one, %x


def _constants() -> Tables:
    """The tables of all functions' constants, in a fixed order."""
    tables = Tables()
    for name in FUNCTIONS:
        FUNCTIONS[name](Writer(2, tables), *_PARAMETERS.get(name, ("%x",)))
    assert len(tables.narrow) <= TABLE_SIZE
    assert len(tables.wide) <= WIDE_TABLE_SIZE
    return tables


def _symbol(name: str, lanes: int) -> str:
    return f"tensorwright_{name}_f32x{lanes}"


@cache
def _function_text(name: str, lanes: int) -> tuple[str, frozenset[str]]:
    """(the definition, the declarations it needs)."""
    plain = name.removesuffix(IN_TILE)
    writer = Writer(lanes, None if plain == name else _constants())
    parameters = _PARAMETERS.get(plain, ("%x",))
    result = FUNCTIONS[plain](writer, *parameters)
    typed = ", ".join(f"{writer.float} {parameter}" for parameter in parameters)
    head = f"define {writer.float} @{_symbol(name, lanes)}({typed}) alwaysinline nounwind {{"
    return "\n".join([head, *writer.lines, f"  ret {writer.float} {result}", "}"]), frozenset(writer.declared)


@cache
def _table_text() -> str:
    tables = _constants()
    narrow = [f"float {float_bits(value)}" for value in tables.narrow]
    wide = [f"double {wide_bits(value)}" for value in tables.wide]
    narrow += ["float 0.0"] * (TABLE_SIZE - len(narrow))
    wide += ["double 0.0"] * (WIDE_TABLE_SIZE - len(wide))
    return (
        f"@{TABLE} = linkonce_odr global [{TABLE_SIZE} x float] [{', '.join(narrow)}]\n"
        f"@{WIDE_TABLE} = linkonce_odr global [{WIDE_TABLE_SIZE} x double] [{', '.join(wide)}]"
    )


def definitions(names: Iterable[str], lanes: Iterable[int]) -> str:
    """LLVM IR that defines the functions (with `IN_TILE` appended: that variant) for these numbers of lanes."""
    used = sorted(set(names))
    texts = [_function_text(name, count) for name in used for count in sorted(set(lanes))]
    declared = sorted({line for _, lines in texts for line in lines})
    table = [_table_text()] if any(name.endswith(IN_TILE) for name in used) else []
    bodies = "\n".join(text for text, _ in texts)
    return "\n".join([*table, *declared, bodies, *([METADATA] if "!prof" in bodies else []), ""])


def call(name: str, x: Expr, *others: Expr) -> Expr:
    """The TensorIR expression of a function of float32 expressions."""
    return tvm.ir.Call(tvm.ir.Op.get(PREFIX + name), [x, *others], ret_ty=x.ty)


for _name in FUNCTIONS:
    for _variant in (_name, _name + IN_TILE):
        register_operator(PREFIX + _variant, "of float32 in vectors", _symbol)
