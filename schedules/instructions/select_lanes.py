"""Per-lane selection as an operator: `selected(data, words, shift)` picks, in each lane, the number of `data` whose
index is stored in the lane's word starting at bit `shift`.

It is one permutation (`vpermps`), which ignores the bits above those it reads, so `data` is repeated until it fills a
vector.
"""

from __future__ import annotations

from functools import cache

from schedules.instructions.llvm_functions import register_operator, symbol, vector
from schedules.ir.tir import Expr, tirx, tvm
from schedules.machine import Machine

# Supported numbers of values to choose among.
CHOICES = (4, 8, 16)
_NAME = "tensorwright.select{}"
OPERATORS = tuple(_NAME.format(choices) for choices in CHOICES)
_PERMUTATIONS = {16: "@llvm.x86.avx512.permvar.sf.512", 8: "@llvm.x86.avx2.permps"}


def choices_of(machine: Machine) -> tuple[int, ...]:
    """Numbers of values that the machine's vector permutations can select from; empty without one."""
    lanes = machine.lanes("float32")
    able = machine.executes("avx512f") if lanes == 16 else lanes == 8 and machine.executes("avx2")
    return tuple(choices for choices in CHOICES if choices <= lanes) if able else ()


def selected(data: Expr, words: Expr, shift: Expr) -> Expr:
    """The operator.

    Args:
        data: float32, a vector of 4, 8 or 16.
        words: int32, a vector of the machine's width.
        shift: int32, the lowest bit of the choice in each word.
    """
    choices = int(str(data.ty).partition("x")[2])
    result = f"float32x{str(words.ty).partition('x')[2]}"
    arguments = [data, words, shift]
    return tvm.ir.Call(tvm.ir.Op.get(_NAME.format(choices)), arguments, ret_ty=tirx.Var("result", result).ty)


def _text(choices: int, lanes: int) -> str:
    f, i, few = vector("float", lanes), vector("i32", lanes), vector("float", choices)
    repeated = ", ".join(f"i32 {lane % choices}" for lane in range(lanes))
    return f"""define {f} @{symbol(f"select{choices}", lanes)}({few} %a, {i} %w, i32 %s) alwaysinline nounwind {{
  %e = shufflevector {few} %a, {few} poison, {i} <{repeated}>
  %o = insertelement {i} poison, i32 %s, i32 0
  %u = shufflevector {i} %o, {i} poison, {i} zeroinitializer
  %n = lshr {i} %w, %u
  %r = call {f} {_PERMUTATIONS[lanes]}({f} %e, {i} %n)
  ret {f} %r
}}"""


@cache
def definitions(lanes: frozenset[int], machine: Machine) -> str:
    """LLVM IR of the functions for those numbers of lanes that have a permutation."""
    parts = []
    for count in sorted(lanes & set(_PERMUTATIONS)):
        f, i = vector("float", count), vector("i32", count)
        parts.append(f"declare {f} {_PERMUTATIONS[count]}({f}, {i})")
        parts += [_text(choices, count) for choices in CHOICES if choices <= count]
    return "\n".join([*parts, ""])


for _operator in OPERATORS:
    register_operator(_operator, "by the bits of words")
