"""Reading 4-bit integers out of 32-bit words as an operator: `unpacked(word, shift)` is the float32 of the signed four
bits from bit `shift` on.

On AVX-512 it is a shift and a look-up: `vpermps` reads one of 16 floats by the lowest four bits of each lane and
ignores the others. Elsewhere the bits are shifted to the top, back with their sign, and converted.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from schedules.instructions.llvm_functions import register_operator, symbol, vector
from schedules.ir.tir import Expr, tirx, tvm
from schedules.machine import Machine

UNPACK = "tensorwright.unpack_int4"
OPERATORS = (UNPACK,)
BITS = 4
# How a machine reads them.
PERMUTE, SHIFTS = "permute", "shifts"
_PERMUTED_LANES = 16


def unit_of(machine: Machine) -> str:
    """How a machine reads four bits."""
    return PERMUTE if machine.has("avx512f") else SHIFTS


def unpacked(word: Expr, shift: int) -> Expr:
    """The operator on an int32."""
    arguments = [word, tirx.const(shift, "int32")]
    return tvm.ir.Call(tvm.ir.Op.get(UNPACK), arguments, ret_ty=tirx.FloatImm("float32", 0.0).ty)


def _text(lanes: int, unit: str) -> str:
    f, i = vector("float", lanes), vector("i32", lanes)
    head = f"define {f} @{symbol('unpack_int4', lanes)}({i} %w, {i} %s) alwaysinline nounwind {{"
    if unit == PERMUTE and lanes == _PERMUTED_LANES:
        levels = ", ".join(f"float {float(level)}" for level in [*range(8), *range(-8, 0)])
        return f"""declare {f} @llvm.x86.avx512.permvar.sf.512({f}, {i})
{head}
  %n = lshr {i} %w, %s
  %r = call {f} @llvm.x86.avx512.permvar.sf.512({f} <{levels}>, {i} %n)
  ret {f} %r
}}"""
    top = "28" if lanes == 1 else "splat (i32 28)"
    return f"""{head}
  %u = sub {i} {top}, %s
  %t = shl {i} %w, %u
  %n = ashr {i} %t, {top}
  %r = sitofp {i} %n to {f}
  ret {f} %r
}}"""


@cache
def _definitions(lanes: tuple[int, ...], unit: str) -> str:
    return "\n".join([*(_text(count, unit) for count in lanes), ""])


def definitions(lanes: Iterable[int], *, unit: str) -> str:
    """LLVM IR of the function for these numbers of lanes; `unit` is one of the units."""
    return _definitions(tuple(sorted(set(lanes))), unit)


register_operator(UNPACK, "of a word")
