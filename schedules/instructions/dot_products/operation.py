"""Instructions on narrow operands as TVM operators: total + sum over a group of a * b, lane by lane.

A group is stored as one 32-bit word per lane, its first element in the lowest bits. Each operation has a plain form in
LLVM IR, which runs on any processor and is the reference in tests of the instructions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from schedules.instructions.llvm_functions import PREFIX, register_operator, splat, symbol, vector
from schedules.ir.tir import Expr, tirx, tvm
from schedules.machine import Machine

Body = Callable[[int], str]
"""Lines of a function for a number of lanes: %c is the total so far, %a and %b the words; the sum is `RESULT`."""
RESULT = "%r"
BYTES = ("uint8", "int8")
SCALARS = {"float32": "float", "int32": "i32"}
"""LLVM types of totals."""


@dataclass(frozen=True)
class Operation:
    """A sum of products over a group of neighbors.

    Attributes:
        short: its name; its TVM operator's name has `PREFIX` before it.
        a: the type of the left operand's elements; `b`: of the right one's; `total`: of the sum.
        group: number of elements of an operand per word.
        plain: its body on any processor; None if it is only emitted for machines with an instruction for it.
        partial: an operation on the same words whose totals are words of two sums in the operands' type. It accumulates
            a few steps if that is faster; its words times `ONES` are then added to the total.
    """

    short: str
    a: str
    b: str
    total: str
    group: int
    plain: Body | None
    partial: Operation | None = None

    @property
    def name(self) -> str:
        """The operator's full name."""
        return PREFIX + self.short

    def __call__(self, total: Expr, a: Expr, b: Expr) -> Expr:
        """`total` plus the products of words (or vectors of them)."""
        return tvm.ir.Call(tvm.ir.Op.get(self.name), [total, a, b], ret_ty=total.ty)

    def expression(self, a: Expr, b: Expr) -> Expr:
        """The sum of products of two words as arithmetic."""
        if self.total == "float32":
            return self.half(a, 0) * self.half(b, 0) + self.half(a, 1) * self.half(b, 1)
        first, second, third, fourth = (_byte(a, at, self.a) * _byte(b, at, self.b) for at in range(4))
        return first + second + third + fourth

    @property
    def stored(self) -> str:
        """TVM dtype of the left operand in memory; bfloat16 is stored as its bits."""
        return "uint16" if self.a == "bfloat16" else self.a

    def half(self, word: Expr, at: int) -> Expr:
        """The low or high 16-bit float of a word, as float32."""
        sixteen = tirx.IntImm("int32", 16)
        if self.a == "bfloat16":
            return tirx.reinterpret("float32", word & tirx.IntImm("int32", -65536) if at else word << sixteen)
        bits = tirx.Cast("uint16", word >> sixteen if at else word)
        return tirx.Cast("float32", tirx.reinterpret("float16", bits))

    def takes(self, a: str, b: str) -> bool:
        """True if the operation supports these operands; bytes of the other signedness are shifted."""
        return self.b == b and (self.a == a or (self.a in BYTES and a in BYTES))

    def shift(self, dtype: str) -> int:
        """Offset that converts elements of an 8-bit dtype to the dtype of the left operand."""
        return {("uint8", "int8"): -128, ("int8", "uint8"): 128}.get((dtype, self.a), 0)

    def function(self, lanes: int, body: str) -> str:
        """The LLVM function with a given body."""
        kind, i = vector(SCALARS[self.total], lanes), vector("i32", lanes)
        head = f"define {kind} @{symbol(self.short, lanes)}({kind} %c, {i} %a, {i} %b) alwaysinline nounwind {{"
        return f"{head}\n{body}\n  ret {kind} {RESULT}\n}}"


def joined(low: Expr, high: Expr) -> Expr:
    """Concatenate two vectors of two int32."""
    return tirx.Shuffle([low, high], [tirx.IntImm("int32", lane) for lane in range(4)])


def row_of(left: Expr, right: Expr, row: int) -> Expr:
    """A row of four columns from the 2 x 2 accumulators of the left two and the right two columns."""
    positions = [2 * row, 2 * row + 1, 4 + 2 * row, 5 + 2 * row]
    return tirx.Shuffle([left, right], [tirx.IntImm("int32", position) for position in positions])


def _byte(word: Expr, at: int, dtype: str) -> Expr:
    return (word << (24 - 8 * at)) >> 24 if dtype == "int8" else (word >> 8 * at) & 0xFF


def _plain_bytes(a: str, b: str) -> Body:
    """Plain code for two byte dtypes, byte by byte."""
    return lambda lanes: _bytewise(lanes, signed={"a": a == "int8", "b": b == "int8"})


def _bytewise(lanes: int, signed: Mapping[str, bool]) -> str:
    i = vector("i32", lanes)
    lines = []
    for byte in range(4):
        before = "%c" if byte == 0 else f"%s{byte - 1}"
        after = RESULT if byte == 3 else f"%s{byte}"
        for name, is_signed in signed.items():
            shift, mask = (24 - 8 * byte, 24) if is_signed else (8 * byte, 255)
            first, second = ("shl", "ashr") if is_signed else ("lshr", "and")
            lines += [
                f"  %{name}s{byte} = {first} {i} %{name}, {splat(shift, lanes)}",
                f"  %{name}b{byte} = {second} {i} %{name}s{byte}, {splat(mask, lanes)}",
            ]
        lines += [f"  %p{byte} = mul {i} %ab{byte}, %bb{byte}", f"  {after} = add {i} {before}, %p{byte}"]
    return "\n".join(lines)


def _plain_word(lanes: int) -> str:
    i, half = vector("i32", lanes), splat(16, lanes)
    return f"""  %u = shl {i} %b, {half}
  %w = ashr {i} %u, {half}
  %p = mul {i} %a, %w
  %r = add {i} %c, %p"""


def _plain_bfloat16(lanes: int) -> str:
    """Plain code: a multiply-add for each half."""
    f, i = vector("float", lanes), vector("i32", lanes)
    return f"""  %al = shl {i} %a, {splat(16, lanes)}
  %bl = shl {i} %b, {splat(16, lanes)}
  %ah = and {i} %a, {splat(-65536, lanes)}
  %bh = and {i} %b, {splat(-65536, lanes)}
  %alf = bitcast {i} %al to {f}
  %blf = bitcast {i} %bl to {f}
  %ahf = bitcast {i} %ah to {f}
  %bhf = bitcast {i} %bh to {f}
{_sum_of_halves(f)}"""


def _sum_of_halves(f: str) -> str:
    """Lines that add the products of the high and of the low halves."""
    return f"""  %high = fmul contract {f} %ahf, %bhf
  %sum = fadd contract {f} %c, %high
  %low = fmul contract {f} %alf, %blf
  {RESULT} = fadd contract {f} %sum, %low"""


def _plain_float16(lanes: int) -> str:
    """Plain code: a multiply-add for each half."""
    f, h, s, i = (vector(each, lanes) for each in ("float", "half", "i16", "i32"))
    lines = []
    for name in "ab":
        lines += [
            f"  %{name}l = trunc {i} %{name} to {s}",
            f"  %{name}s = lshr {i} %{name}, {splat(16, lanes)}",
            f"  %{name}h = trunc {i} %{name}s to {s}",
            f"  %{name}lb = bitcast {s} %{name}l to {h}",
            f"  %{name}hb = bitcast {s} %{name}h to {h}",
            f"  %{name}lf = fpext {h} %{name}lb to {f}",
            f"  %{name}hf = fpext {h} %{name}hb to {f}",
        ]
    return "\n".join([*lines, _sum_of_halves(f)])


def float16_sums(lanes: int) -> str:
    """Each half of a word separately, accumulated in float16."""
    i, h = vector("i32", lanes), f"<{2 * lanes} x half>"
    return f"""  %ch = bitcast {i} %c to {h}
  %ah = bitcast {i} %a to {h}
  %bh = bitcast {i} %b to {h}
  %product = fmul contract {h} %ah, %bh
  %sum = fadd contract {h} %ch, %product
  %r = bitcast {h} %sum to {i}"""


DOT_BF16 = Operation("dot_bf16", "bfloat16", "bfloat16", "float32", 2, _plain_bfloat16)
SUM_F16 = Operation("sum_f16", "float16", "float16", "int32", 2, float16_sums)
"""A word of two sums in float16 plus the products of the low and of the high halves."""
DOT_F16 = Operation("dot_f16", "float16", "float16", "float32", 2, _plain_float16, partial=SUM_F16)
ONES = 0x3C003C00
"""A word of two ones in float16."""
PARTIAL_STEPS = 64
"""Steps of a float16 sum: its relative error, some 8e-4, is at most twice that of the rounded operands."""
HALVES = {"bf16": DOT_BF16, "float16": DOT_F16}
"""The operation that sums products of 16-bit floats, by value of the option "precision"."""
OF_STORED = {each.stored: each for each in HALVES.values()}
"""The same, by the type of the operands in memory."""
DOT_U8S8, DOT_S8S8, DOT_S8U8, DOT_U8U8 = (
    Operation(f"dot_{a[0]}8{b[0]}8".replace("i", "s"), a, b, "int32", 4, _plain_bytes(a, b))
    for a, b in (("uint8", "int8"), ("int8", "int8"), ("int8", "uint8"), ("uint8", "uint8"))
)
DOT_WORDS = Operation("dot_words", "int16", "int16", "int32", 1, _plain_word)
"""An int32 in [-32768, 32767] times the signed 16 bits in the low half of a word, zeros above."""
MATRIX_U8S8 = Operation("matrix_u8s8", "uint8", "int8", "int32", 8, None)
MATRIX_S8S8 = Operation("matrix_s8s8", "int8", "int8", "int32", 8, None)
"""Four int32 of a 2 x 2 total, row by row, plus two rows `a` times two columns `b` of eight bytes each."""
OPERATIONS = (DOT_BF16, SUM_F16, DOT_F16, DOT_U8S8, DOT_S8S8, DOT_S8U8, DOT_U8U8, DOT_WORDS, MATRIX_U8S8, MATRIX_S8S8)

for _operation in OPERATIONS:
    register_operator(_operation.name, f"of {_operation.a} and {_operation.b}")


# Description of a multiply-accumulate instruction.

_TILES_OF_CONVOLUTIONS = 1.8


@dataclass(frozen=True)
class Instruction:
    """A multiply-accumulate instruction.

    Attributes:
        name: name of the instruction, the key of processors' `rates`.
        operation: the operation that it computes.
        needs: sets of features (LLVM's names) any of which gives a processor the instruction.
        rate: multiply-add throughput relative to float32 vectors, on processors that do not list another.
        lanes: supported numbers of 32-bit lanes.
        body: the body of its function for one of these.
        declarations: declarations of the intrinsics that the body calls.
        direct: operands are used as stored; otherwise they are first converted to a wider type or shifted.
        pads: fewer lanes are best computed by padding them with zeros.
        rows, depth: size of the block that one instruction multiplies by the columns of a register or tile; a depth
            of 0 is a group.
        sums: location of the accumulators; those in tiles are computed by `amx.block_sums`, not lane by lane.
    """

    name: str
    operation: Operation
    needs: tuple[frozenset[str], ...]
    rate: float
    lanes: tuple[int, ...] = ()
    body: Body = field(default=lambda lanes: "")
    declarations: Callable[[int], list[str]] = field(default=lambda lanes: [])
    direct: bool = True
    pads: bool = False
    rows: int = 1
    depth: int = 0
    sums: Literal["vectors", "tiles"] = "vectors"

    @property
    def group(self) -> int:
        """Number of neighbors along the depth that share a word; it determines the packing of weights."""
        return self.operation.group

    def rate_on(self, machine: Machine) -> float:
        """Multiply-add throughput relative to float32 on a processor."""
        return dict(machine.rates).get(self.name, self.rate)

    def convolution_rate_on(self, machine: Machine) -> float:
        """The same for convolutions: tile kernels read an input plane from the L1 cache, where matmuls read their
        operands from L2 (1,860 to 2,560 G operations/s against 1,120)."""
        return self.rate_on(machine) * (_TILES_OF_CONVOLUTIONS if self.sums == "tiles" else 1.0)


def features(*names: str) -> frozenset[str]:
    """A set of features for `Product.needs`."""
    return frozenset(names)
