"""Unpacking of 4-bit numbers from 32-bit words as operators: `unpacked(word, shift)` is the signed four-bit integer at
bit `shift` as float32, `looked_up(word, table)` the table entry indexed by the lowest four bits.

On AVX-512 they are a shift and a lookup: `vpermps` selects one of 16 floats by the lowest four bits of each lane and
ignores the others. Elsewhere signed integers are shifted to the top, arithmetically back, and converted; table entries
are selected bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from schedules.instructions.llvm_functions import register_operator, splat, symbol, vector
from schedules.instructions.vector_writer import float_bits
from schedules.ir.tir import Expr, tirx, tvm
from schedules.machine import Machine

UNPACK = "tensorwright.unpack_int4"
BITS = 4
_PERMUTED_LANES = 16
_PERMUTATION = "@llvm.x86.avx512.permvar.sf.512"
# The tables of bitsandbytes (`get_4bit_type`).
_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
TABLES = {"nf4": _NF4}
OPERATORS = (UNPACK, *(f"tensorwright.look_up_{name}" for name in TABLES))


def unpacked(word: Expr, shift: int) -> Expr:
    """The operator on an int32."""
    arguments = [word, tirx.const(shift, "int32")]
    return tvm.ir.Call(tvm.ir.Op.get(UNPACK), arguments, ret_ty=tirx.FloatImm("float32", 0.0).ty)


def looked_up(word: Expr, table: Sequence[float]) -> Expr | None:
    """The operator on an int32; None for a table that has no operator."""
    for name, each in TABLES.items():
        if np.array_equal(np.asarray(each, np.float32), np.asarray(table, np.float32)):
            operator = tvm.ir.Op.get(f"tensorwright.look_up_{name}")
            return tvm.ir.Call(operator, [word], ret_ty=tirx.FloatImm("float32", 0.0).ty)
    return None


def _unpacking(lanes: int, permutes: bool) -> str:
    f, i = vector("float", lanes), vector("i32", lanes)
    head = f"define {f} @{symbol('unpack_int4', lanes)}({i} %w, {i} %s) alwaysinline nounwind {{"
    if permutes and lanes == _PERMUTED_LANES:
        levels = ", ".join(f"float {float(level)}" for level in [*range(8), *range(-8, 0)])
        return f"""{head}
  %n = lshr {i} %w, %s
  %r = call {f} {_PERMUTATION}({f} <{levels}>, {i} %n)
  ret {f} %r
}}"""
    top = splat(28, lanes)
    return f"""{head}
  %u = sub {i} {top}, %s
  %t = shl {i} %w, %u
  %n = ashr {i} %t, {top}
  %r = sitofp {i} %n to {f}
  ret {f} %r
}}"""


def _look_up(name: str, lanes: int, permutes: bool) -> str:
    f, i, i1 = vector("float", lanes), vector("i32", lanes), vector("i1", lanes)
    numbers = [float_bits(each) for each in TABLES[name]]
    head = f"define {f} @{symbol(f'look_up_{name}', lanes)}({i} %w) alwaysinline nounwind {{"
    if permutes and lanes == _PERMUTED_LANES:
        levels = ", ".join(f"float {each}" for each in numbers)
        return f"""{head}
  %r = call {f} {_PERMUTATION}({f} <{levels}>, {i} %w)
  ret {f} %r
}}"""

    lines, entries = [head], [splat(each, lanes, "float") for each in numbers]
    for bit in range(BITS):
        lines.append(f"  %m{bit} = and {i} %w, {splat(1 << bit, lanes)}")
        lines.append(f"  %b{bit} = icmp ne {i} %m{bit}, {splat(0, lanes)}")
        chosen = [f"%r{bit}_{at}" for at in range(len(entries) // 2)]
        for at, name_ in enumerate(chosen):
            lines.append(f"  {name_} = select {i1} %b{bit}, {f} {entries[2 * at + 1]}, {f} {entries[2 * at]}")
        entries = chosen
    return "\n".join([*lines, f"  ret {f} {entries[0]}", "}"])


@cache
def definitions(lanes: frozenset[int], machine: Machine) -> str:
    """LLVM IR of the functions for these numbers of lanes."""
    f, i = vector("float", _PERMUTED_LANES), vector("i32", _PERMUTED_LANES)
    permutes = machine.executes("avx512f")
    declared = permutes and _PERMUTED_LANES in lanes
    texts = [f"declare {f} {_PERMUTATION}({f}, {i})"] if declared else []
    for count in sorted(lanes):
        texts += [_unpacking(count, permutes), *(_look_up(name, count, permutes) for name in TABLES)]
    return "\n".join([*texts, ""])


for _operator in OPERATORS:
    register_operator(_operator, "of a word")
