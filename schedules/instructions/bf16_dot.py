"""The bfloat16 dot product as an operator: `sum + a.low * b.low + a.high * b.high` of pairs held in 32-bit integers.

`vdpbf16ps` needs bfloat16 operands, which TVM turns into floats before code generation. So pairs travel as int32
(the element with the even index in the low half), and a function in LLVM IR, inlined where it is called, does the rest.
Without the instruction the same is computed by two multiply-adds on the halves.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from schedules.instructions.llvm_functions import register_operator, symbol, vector
from schedules.instructions.neon import in_quarters, with_register_length
from schedules.ir.tir import Expr, tirx, tvm
from schedules.machine import Machine

DOT = "tensorwright.dot_bf16"
ROUND = "tensorwright.round_bf16"
ROUND_RUN = "tensorwright.round_run_bf16"
NARROW = "tensorwright.narrow_bf16"
OPERATORS = (DOT, ROUND, ROUND_RUN, NARROW)
# What a machine multiplies with.
AVX512, NEON, PLAIN = "avx512", "neon", "plain"
# Vector bits of the intrinsics by lanes; the largest is part of AVX512_BF16, the others also need AVX512VL.
_WIDTHS = {4: 128, 8: 256, 16: 512}


def unit_of(machine: Machine) -> str:
    """What a machine multiplies pairs of bfloat16 with."""
    if machine.has("avx512bf16", "avx512vl"):
        return AVX512
    return NEON if machine.architecture == "aarch64" and machine.has("bf16") else PLAIN


def dot(total: Expr, a: Expr, b: Expr) -> Expr:
    """The operator on float32 `total` and int32 pairs."""
    return tvm.ir.Call(tvm.ir.Op.get(DOT), [total, a, b], ret_ty=total.ty)


def rounded_pair(low: Expr, high: Expr) -> Expr:
    """Two float32 rounded to nearest even bfloat16, as an int32 pair."""
    return tvm.ir.Call(tvm.ir.Op.get(ROUND), [low, high], ret_ty=tirx.IntImm("int32", 0).ty)


def rounded_run(first: Expr, second: Expr) -> Expr:
    """Two vectors of float32 that follow each other in memory, as one vector of pairs. Not elementwise: in a vectorized
    loop of n lanes, the arguments are the elements `lane` and `n + lane` of the run."""
    return tvm.ir.Call(tvm.ir.Op.get(ROUND_RUN), [first, second], ret_ty=tirx.IntImm("int32", 0).ty)


def narrowed(value: Expr) -> Expr:
    """A float32 rounded to nearest even bfloat16, as the uint16 that holds its bits."""
    return tvm.ir.Call(tvm.ir.Op.get(NARROW), [value], ret_ty=tirx.IntImm("uint16", 0).ty)


def bfloat16_bits(values: np.ndarray) -> NDArray[np.uint16]:
    """float32 values rounded to nearest even bfloat16, as their bits."""
    import ml_dtypes

    return np.ascontiguousarray(values.astype(ml_dtypes.bfloat16)).view(np.uint16)


def pack_pairs(weight: np.ndarray, width: int) -> NDArray[np.int32]:
    """A float32 (depth, columns) weight as int32 pairs (panels, ceil(depth / 2), width); what is beyond is 0."""
    import ml_dtypes

    depth, columns = weight.shape
    panels, steps = -(-columns // width), -(-depth // 2)
    padded = np.zeros((2 * steps, panels * width), ml_dtypes.bfloat16)
    padded[:depth, :columns] = weight
    halves = padded.view(np.uint16).astype(np.uint32).reshape(steps, 2, panels, width)
    pairs = halves[:, 0] | halves[:, 1] << 16
    return np.ascontiguousarray(pairs.transpose(1, 0, 2)).view(np.int32)


def _splat(value: int, lanes: int) -> str:
    return str(value) if lanes == 1 else f"splat (i32 {value})"


def _instruction(lanes: int, unit: str) -> str | None:
    """LLVM's name of the instruction for that many lanes, where there is one."""
    if unit == AVX512 and lanes in _WIDTHS:
        return f"@llvm.x86.avx512bf16.dpbf16ps.{_WIDTHS[lanes]}"
    return "@llvm.aarch64.neon.bfdot.v4f32.v8bf16" if unit == NEON and lanes == 4 else None


def _dot_text(lanes: int, unit: str) -> str:
    f, i = vector("float", lanes), vector("i32", lanes)
    head = f"define {f} @{symbol('dot_bf16', lanes)}({f} %c, {i} %a, {i} %b) alwaysinline nounwind {{"
    name = _instruction(lanes, unit)
    if unit == NEON and lanes > 4 and lanes % 4 == 0:
        return in_quarters(symbol("dot_bf16", lanes), symbol("dot_bf16", 4), lanes, "float")
    if name is not None:
        h = f"<{2 * lanes} x bfloat>"
        return f"""declare {f} {name}({f}, {h}, {h})
{head}
  %x = bitcast {i} %a to {h}
  %y = bitcast {i} %b to {h}
  %r = call {f} {name}({f} %c, {h} %x, {h} %y)
  ret {f} %r
}}"""
    return f"""{head}
  %al = shl {i} %a, {_splat(16, lanes)}
  %bl = shl {i} %b, {_splat(16, lanes)}
  %ah = and {i} %a, {_splat(-65536, lanes)}
  %bh = and {i} %b, {_splat(-65536, lanes)}
  %alf = bitcast {i} %al to {f}
  %blf = bitcast {i} %bl to {f}
  %ahf = bitcast {i} %ah to {f}
  %bhf = bitcast {i} %bh to {f}
  %high = fmul contract {f} %ahf, %bhf
  %sum = fadd contract {f} %c, %high
  %low = fmul contract {f} %alf, %blf
  %r = fadd contract {f} %sum, %low
  ret {f} %r
}}"""


def _round_text(lanes: int) -> str:
    """Rounds by adding 0x7FFF and the lowest bit that stays; NaN becomes the quiet NaN."""
    f, i, b = vector("float", lanes), vector("i32", lanes), vector("i1", lanes)
    lines = [f"define {i} @{symbol('round_bf16', lanes)}({f} %low, {f} %high) alwaysinline nounwind {{"]
    for name in ("low", "high"):
        lines += [
            f"  %{name}b = bitcast {f} %{name} to {i}",
            f"  %{name}s = lshr {i} %{name}b, {_splat(16, lanes)}",
            f"  %{name}o = and {i} %{name}s, {_splat(1, lanes)}",
            f"  %{name}h = add {i} %{name}o, {_splat(0x7FFF, lanes)}",
            f"  %{name}r = add {i} %{name}b, %{name}h",
            f"  %{name}u = lshr {i} %{name}r, {_splat(16, lanes)}",
            f"  %{name}n = fcmp uno {f} %{name}, %{name}",
            f"  %{name}v = select {b} %{name}n, {i} {_splat(0x7FC0, lanes)}, {i} %{name}u",
        ]
    lines += [
        f"  %up = shl {i} %highv, {_splat(16, lanes)}",
        f"  %r = or {i} %up, %lowv",
        f"  ret {i} %r",
        "}",
    ]
    return "\n".join(lines)


def _round_run_text(lanes: int) -> str:
    f, i = vector("float", lanes), vector("i32", lanes)
    head = f"define {i} @{symbol('round_run_bf16', lanes)}({f} %first, {f} %second) alwaysinline nounwind {{"
    call = f"call {i} @{symbol('round_bf16', lanes)}"
    if lanes == 1:
        return f"{head}\n  %r = {call}({f} %first, {f} %second)\n  ret {i} %r\n}}"
    even, odd = (", ".join(f"i32 {2 * lane + start}" for lane in range(lanes)) for start in (0, 1))
    return f"""{head}
  %even = shufflevector {f} %first, {f} %second, <{lanes} x i32> <{even}>
  %odd = shufflevector {f} %first, {f} %second, <{lanes} x i32> <{odd}>
  %r = {call}({f} %even, {f} %odd)
  ret {i} %r
}}"""


def _narrow_text(lanes: int) -> str:
    """LLVM knows the instruction of targets that have it, and what to do on others, NaN included."""
    f, b, i = vector("float", lanes), vector("bfloat", lanes), vector("i16", lanes)
    return f"""define {i} @{symbol("narrow_bf16", lanes)}({f} %x) alwaysinline nounwind {{
  %t = fptrunc {f} %x to {b}
  %r = bitcast {b} %t to {i}
  ret {i} %r
}}"""


@cache
def _definitions(lanes: tuple[int, ...], unit: str) -> str:
    parts = [text for count in lanes for text in _texts(count, unit)]
    return "\n".join([*parts, ""])


def _texts(lanes: int, unit: str) -> tuple[str, ...]:
    return _dot_text(lanes, unit), _round_text(lanes), _round_run_text(lanes), _narrow_text(lanes)


def definitions(lanes: Iterable[int], *, unit: str) -> str:
    """LLVM IR of the functions for these numbers of lanes; `unit` is one of the units."""
    return _definitions(with_register_length(lanes, unit == NEON), unit)


for _operator in OPERATORS:
    register_operator(_operator, "on pairs of bfloat16")
