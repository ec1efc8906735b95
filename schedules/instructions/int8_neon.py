"""Sums of 8-bit products by instructions that only Arm has, as operators of LLVM IR.

`dot_signed(sum, a, b)` is `sdot`: four products of signed bytes for each int32. `matrix(sum, a, b)` is `usmmla` or
`smmla`: a holds two rows and b two columns of eight bytes; the sum gets their 2 x 2 product, twice as many
multiplications as a dot product of the same registers.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from schedules.instructions.byte_products import RESULT, plain_bytes
from schedules.instructions.int8_dot import SDOT, USDOT, unit_of
from schedules.instructions.llvm_functions import register_operator, symbol, vector
from schedules.instructions.neon import REGISTER_LANES, in_quarters, with_register_length
from schedules.ir.tir import Expr, tirx, tvm
from schedules.machine import Machine

SIGNED = "tensorwright.dot_s8s8"
MATRIX_UNSIGNED = "tensorwright.matrix_u8s8"
MATRIX_SIGNED = "tensorwright.matrix_s8s8"
OPERATORS = (SIGNED, MATRIX_UNSIGNED, MATRIX_SIGNED)
DEPTH = 8  # bytes of a row that a matrix instruction sums over
_INSTRUCTIONS = {"matrix_u8s8": "usmmla", "matrix_s8s8": "smmla"}


def has_matrices(machine: Machine) -> bool:
    """Whether one instruction multiplies matrices of bytes."""
    return unit_of(machine) == USDOT


def sums_signed(machine: Machine, operand: str) -> bool:
    """Whether products of `operand` ("uint8" or "int8") with int8 are best summed as signed numbers."""
    return unit_of(machine) == SDOT or (unit_of(machine) == USDOT and operand == "int8")


def shift_of(operand: str, signed: bool) -> int:
    """What is added to every element of `operand` before it is multiplied."""
    if signed:
        return -128 if operand == "uint8" else 0
    return 128 if operand == "int8" else 0


def dot_signed(total: Expr, a: Expr, b: Expr) -> Expr:
    """`total` plus the products of four signed bytes `a` and four signed bytes `b`, each an int32."""
    return tvm.ir.Call(tvm.ir.Op.get(SIGNED), [total, a, b], ret_ty=total.ty)


def matrix(total: Expr, a: Expr, b: Expr, *, signed: bool) -> Expr:
    """Four int32 of a 2 x 2 `total`, row after row, plus two rows `a` times two columns `b` of eight bytes each."""
    operator = MATRIX_SIGNED if signed else MATRIX_UNSIGNED
    return tvm.ir.Call(tvm.ir.Op.get(operator), [total, a, b], ret_ty=total.ty)


def joined(low: Expr, high: Expr) -> Expr:
    """Two vectors of two int32 as one of four."""
    return tirx.Shuffle([low, high], [tirx.IntImm("int32", lane) for lane in range(4)])


def row_of(left: Expr, right: Expr, row: int) -> Expr:
    """A row of four columns out of the 2 x 2 sums of the left and the right two columns."""
    places = [2 * row, 2 * row + 1, 4 + 2 * row, 5 + 2 * row]
    return tirx.Shuffle([left, right], [tirx.IntImm("int32", place) for place in places])


def _signed_text(lanes: int, neon: bool) -> str:
    """LLVM takes a lane of the second factor as it lies in a register: that is %a, the same for all columns."""
    name, i = symbol("dot_s8s8", lanes), vector("i32", lanes)
    head = f"define {i} @{name}({i} %c, {i} %a, {i} %b) alwaysinline nounwind {{"
    if neon and lanes > REGISTER_LANES and lanes % REGISTER_LANES == 0:
        return in_quarters(name, symbol("dot_s8s8", REGISTER_LANES), lanes, "i32")
    if neon and lanes == REGISTER_LANES:
        return f"""declare <4 x i32> @llvm.aarch64.neon.sdot.v4i32.v16i8(<4 x i32>, <16 x i8>, <16 x i8>)
{head}
  %x = bitcast <4 x i32> %a to <16 x i8>
  %y = bitcast <4 x i32> %b to <16 x i8>
  %r = call <4 x i32> @llvm.aarch64.neon.sdot.v4i32.v16i8(<4 x i32> %c, <16 x i8> %y, <16 x i8> %x)
  ret <4 x i32> %r
}}"""
    return f"{head}\n{plain_bytes(lanes, signed=True)}\n  ret {i} {RESULT}\n}}"


def _matrix_text(name: str) -> str:
    called = f"@llvm.aarch64.neon.{_INSTRUCTIONS[name]}.v4i32.v16i8"
    head = f"define <4 x i32> @{symbol(name, REGISTER_LANES)}(<4 x i32> %c, <4 x i32> %a, <4 x i32> %b)"
    return f"""declare <4 x i32> {called}(<4 x i32>, <16 x i8>, <16 x i8>)
{head} alwaysinline nounwind {{
  %x = bitcast <4 x i32> %a to <16 x i8>
  %y = bitcast <4 x i32> %b to <16 x i8>
  %r = call <4 x i32> {called}(<4 x i32> %c, <16 x i8> %x, <16 x i8> %y)
  ret <4 x i32> %r
}}"""


@cache
def _definitions(lanes: tuple[int, ...], neon: bool, matrices: bool) -> str:
    parts = [_signed_text(count, neon) for count in lanes]
    return "\n".join([*parts, *(map(_matrix_text, _INSTRUCTIONS) if matrices else ()), ""])


def definitions(lanes: Iterable[int], machine: Machine) -> str:
    """LLVM IR of the functions for these numbers of lanes."""
    neon = unit_of(machine) in (USDOT, SDOT)
    return _definitions(with_register_length(lanes, neon), neon, has_matrices(machine))


for _operator in OPERATORS:
    register_operator(_operator, "of signed bytes" if _operator == SIGNED else "of bytes, two rows by two columns")
