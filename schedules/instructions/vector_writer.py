"""Emits one LLVM function on float32 vectors, an instruction at a time."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from schedules.instructions.llvm_functions import splat, vector

TABLE = "tensorwright_constants"
TABLE_SIZE = 256
WIDE_TABLE, WIDE_TABLE_SIZE = "tensorwright_wide_constants", 32
WIDE_ROUNDING = 6755399441055744.0  # 1.5 * 2^52: adding it rounds a float64 to an integer, held in the low bits
# Lanes of the vectors whose exponents AVX-512 reads and changes in one instruction; one lane is the first of four.
_SCALABLE = (1, 4, 8, 16)
# Metadata of `Writer.unless_any`: a rarely taken branch, and a loop that is not worth unrolling.
_RARELY, _LOOP = "!0", "!1"
METADATA = (
    f'{_RARELY} = !{{!"branch_weights", i32 1, i32 4000}}\n{_LOOP} = distinct !{{{_LOOP}, !2, !3}}\n'
    '!2 = !{!"llvm.loop.unroll.disable"}\n!3 = !{!"llvm.loop.vectorize.enable", i1 false}'
)


def float_bits(value: float) -> str:
    """A float32 in LLVM's exact notation: the bits of the double of equal value."""
    rounded = struct.unpack("<f", struct.pack("<f", value))[0]
    return f"0x{struct.unpack('<Q', struct.pack('<d', rounded))[0]:016X}"


def wide_bits(value: float) -> str:
    """A float64 in LLVM's exact notation."""
    return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"


class Tables:
    """The constants of variants that read them from memory: float32 and float64."""

    def __init__(self) -> None:
        self.narrow: list[float] = []
        self.wide: list[float] = []


class Writer:
    """Writes the body of one LLVM function on vectors of `lanes` float32; values are register names or constants."""

    def __init__(self, lanes: int, tables: Tables | None = None, *, scales: bool = False) -> None:
        """`tables` collects the constants of a variant that reads them from memory; `scales`: the processor has
        AVX-512's instructions for exponents."""
        self.lanes = lanes
        self.tables = tables
        self.scales = scales and lanes in _SCALABLE
        self.float = vector("float", self.lanes)
        self.int = vector("i32", self.lanes)
        self.bool = vector("i1", self.lanes)
        self.double = vector("double", self.lanes)
        self.lines: list[str] = []
        self.declared: set[str] = set()

    def _emit(self, text: str) -> str:
        name = f"%v{len(self.lines)}"
        self.lines.append(f"  {name} = {text}")
        return name

    def number(self, value: float) -> str:
        """A float32 constant in every lane."""
        if self.tables is None:
            return splat(float_bits(value), self.lanes, "float")
        return self._from_table(value, self.tables.narrow, f"{TABLE_SIZE} x float", TABLE)

    def wide_number(self, value: float) -> str:
        """A float64 constant in every lane."""
        if self.tables is None:
            return splat(wide_bits(value), self.lanes, "double")
        return self._from_table(value, self.tables.wide, f"{WIDE_TABLE_SIZE} x double", WIDE_TABLE)

    def _from_table(self, value: float, table: list[float], kind: str, symbol: str) -> str:
        """Load from a table that LLVM must assume to be writable, so that no register holds it for long."""
        if value not in table:
            table.append(value)
        scalar = kind.split()[-1]
        position = f"getelementptr inbounds ([{kind}], ptr @{symbol}, i64 0, i64 {table.index(value)})"
        loaded = self._emit(f"load {scalar}, ptr {position}, align {8 if scalar == 'double' else 4}")
        if self.lanes == 1:
            return loaded
        kind = vector(scalar, self.lanes)
        first = self._emit(f"insertelement {kind} poison, {scalar} {loaded}, i64 0")
        return self._emit(f"shufflevector {kind} {first}, {kind} poison, <{self.lanes} x i32> zeroinitializer")

    def integer(self, value: int) -> str:
        return splat(value, self.lanes)

    def add(self, a: str, b: str) -> str:
        return self._emit(f"fadd contract {self.float} {a}, {b}")

    def subtract(self, a: str, b: str) -> str:
        return self._emit(f"fsub contract {self.float} {a}, {b}")

    def multiply(self, a: str, b: str) -> str:
        return self._emit(f"fmul contract {self.float} {a}, {b}")

    def divide(self, a: str, b: str) -> str:
        return self._emit(f"fdiv {self.float} {a}, {b}")

    def whole(self, operation: str, a: str, b: str) -> str:
        """An integer operation: add, sub, shl, ashr, and, or, xor."""
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

    def test_bit(self, a: str) -> str:
        """True where the lowest bit is set."""
        return self._emit(f"trunc {self.int} {a} to {self.bool}")

    def sign_bit(self, a: str) -> str:
        """The sign bit only, in the highest bit."""
        return self.whole("and", self.bits(a), self.integer(-(2**31)))

    def with_sign_flipped(self, a: str, sign: str) -> str:
        """`a` with its sign flipped where the highest bit of `sign` is set; its other bits are 0."""
        return self.from_bits(self.whole("xor", self.bits(a), sign))

    def wide(self, operation: str, a: str, b: str) -> str:
        """A float64 operation: fadd, fsub, fmul, fdiv."""
        return self._emit(f"{operation} contract {self.double} {a}, {b}")

    def wide_horner(self, coefficients: Sequence[float], x: str) -> str:
        """`horner` in float64."""
        result = self.wide_number(coefficients[0])
        for coefficient in coefficients[1:]:
            result = self.wide("fadd", self.wide("fmul", result, x), self.wide_number(coefficient))
        return result

    def wide_clamp(self, x: str, low: float, high: float) -> str:
        """`clamp` in float64."""
        for condition, limit in (("ogt", self.wide_number(high)), ("olt", self.wide_number(low))):
            beyond = self._emit(f"fcmp {condition} {self.double} {x}, {limit}")
            x = self._emit(f"select {self.bool} {beyond}, {self.double} {limit}, {self.double} {x}")
        return x

    def widened(self, a: str) -> str:
        return self._emit(f"fpext {self.float} {a} to {self.double}")

    def narrowed(self, a: str) -> str:
        return self._emit(f"fptrunc {self.double} {a} to {self.float}")

    def low_word(self, a: str) -> str:
        """The low 32 bits of float64 values."""
        long = vector("i64", self.lanes)
        return self._emit(f"trunc {long} {self._emit(f'bitcast {self.double} {a} to {long}')} to {self.int}")

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

    def scaled(self, a: str, n: str, exponent: Callable[[], str]) -> str:
        """a 2^n for a normal `a` and a whole number `n`; `exponent` writes `n` as an integer.

        Without an instruction in two steps, since 2^n itself may be outside the normal range when the result is not;
        only the second rounds, so both ways give the same bits.
        """
        if self.scales:
            return self._avx512("scalef", [a, n])
        whole = exponent()
        half = self.whole("ashr", whole, self.integer(1))
        first = self.multiply(a, self._power_of_two(half))
        return self.multiply(first, self._power_of_two(self.whole("sub", whole, half)))

    def _power_of_two(self, exponent: str) -> str:
        """2^exponent for an exponent in the normal range."""
        shifted = self.whole("shl", self.whole("add", exponent, self.integer(127)), self.integer(23))
        return self.from_bits(shifted)

    def exponent(self, a: str) -> str:
        """The exponent of `a` as a float, with AVX-512: -infinity for 0."""
        return self._avx512("getexp", [a])

    def mantissa(self, a: str) -> str:
        """`a` divided by a power of two, in [1/2, 1), with AVX-512."""
        return self._avx512("getmant", [a], "i32 2")

    def _avx512(self, name: str, operands: Sequence[str], *immediates: str) -> str:
        """An instruction of AVX-512 with all lanes, in the current rounding mode.

        LLVM's intrinsics for one lane work on the first of four, and take a vector for the other three.
        """
        single = self.lanes == 1
        lanes = max(self.lanes, 4)
        kind = vector("float", lanes)
        values = (
            [self._emit(f"insertelement {kind} zeroinitializer, float {a}, i64 0") for a in operands]
            if single
            else operands
        )
        of_others = values[:1] if single and len(values) == 1 else []
        typed = [f"{kind} {each}" for each in (*of_others, *values)]
        typed += [*immediates, f"{kind} zeroinitializer", f"i{max(lanes, 8)} -1"]
        typed += ["i32 4"] if single or lanes == 16 else []
        suffix = "ss" if single else f"ps.{32 * lanes}"
        function = f"@llvm.x86.avx512.mask.{name}.{suffix}"
        types = ", ".join(each.rsplit(" ", 1)[0] for each in typed)
        self.declared.add(f"declare {kind} {function}({types})")
        result = self._emit(f"call {kind} {function}({', '.join(typed)})")
        return self._emit(f"extractelement {kind} {result}, i64 0") if single else result

    def unless_any(self, condition: str, common: Callable[[], str], library: str, x: str) -> str:
        """The value that `common` writes; for a vector in which `condition` holds for any lane, the C library function
        `library` of every lane of `x`."""
        slot = self._emit(f"alloca {self.float}")
        met = self._any(condition)
        self.lines.append(f"  br i1 {met}, label %rare, label %common, !prof {_RARELY}")
        self.lines.append("rare:")
        rare = self._lane_by_lane(library, x, slot)
        self.lines += ["  br label %done", "common:"]
        usual = common()
        self.lines += ["  br label %done", "done:"]
        return self._emit(f"phi {self.float} [{rare}, %rare_end], [{usual}, %common]")

    def _any(self, condition: str) -> str:
        if self.lanes == 1:
            return condition
        name = f"@llvm.vector.reduce.or.v{self.lanes}i1"
        self.declared.add(f"declare i1 {name}({self.bool})")
        return self._emit(f"call i1 {name}({self.bool} {condition})")

    def _lane_by_lane(self, library: str, x: str, slot: str) -> str:
        """The function of every lane, in a loop over `slot`; continues in the block `rare_end`."""
        function = f"@llvm.{library}.f32"
        self.declared.add(f"declare float {function}(float)")
        if self.lanes == 1:
            self.lines += ["  br label %rare_end", "rare_end:"]
            return self._emit(f"call float {function}(float {x})")
        self.lines += [
            f"  store {self.float} {x}, ptr {slot}",
            "  br label %lanes",
            "lanes:",
            "  %lane = phi i64 [0, %rare], [%next, %lanes]",
            f"  %place = getelementptr inbounds float, ptr {slot}, i64 %lane",
            "  %argument = load float, ptr %place, align 4",
            f"  %answer = call float {function}(float %argument)",
            "  store float %answer, ptr %place, align 4",
            "  %next = add nuw nsw i64 %lane, 1",
            f"  %last = icmp eq i64 %next, {self.lanes}",
            f"  br i1 %last, label %rare_end, label %lanes, !llvm.loop {_LOOP}",
            "rare_end:",
        ]
        return self._emit(f"load {self.float}, ptr {slot}")
