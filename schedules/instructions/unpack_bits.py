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
_PERMUTED_LANES = 16


def unpacked(word: Expr, shift: int) -> Expr:
    """The operator on an int32."""
    arguments = [word, tirx.const(shift, "int32")]
    return tvm.ir.Call(tvm.ir.Op.get(UNPACK), arguments, ret_ty=tirx.FloatImm("float32", 0.0).ty)


def _text(lanes: int, permutes: bool) -> str:
    f, i = vector("float", lanes), vector("i32", lanes)
    head = f"define {f} @{symbol('unpack_int4', lanes)}({i} %w, {i} %s) alwaysinline nounwind {{"
    if permutes and lanes == _PERMUTED_LANES:
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
def _definitions(lanes: tuple[int, ...], permutes: bool) -> str:
    return "\n".join([*(_text(count, permutes) for count in lanes), ""])


def definitions(lanes: Iterable[int], machine: Machine) -> str:
    """LLVM IR of the function for these numbers of lanes."""
    return _definitions(tuple(sorted(set(lanes))), machine.executes("avx512f"))


register_operator(UNPACK, "of a word")
