"""Vectorized rounding operators: float32 to int32, and to 16-bit floats, whose pairs are packed in an int32.

TVM converts bfloat16 to floats before code generation. So a pair is an int32 (the element with the even index in the
low half), and an LLVM IR function, inlined at the call, does the rest.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schedules.instructions.dot_products.operation import DOT_BF16, Operation
from schedules.instructions.llvm_functions import register_operator, splat, symbol, vector
from schedules.ir.tir import Expr, tirx, tvm
from schedules.machine import Machine

INTEGER = "tensorwright.round_int32"
PAIR = {"bfloat16": "tensorwright.round_bf16", "float16": "tensorwright.round_f16"}
RUN = {"bfloat16": "tensorwright.round_run_bf16", "float16": "tensorwright.round_run_f16"}
NARROW = "tensorwright.narrow_bf16"
OPERATORS = (INTEGER, *PAIR.values(), *RUN.values(), NARROW)


def rounded_int32(value: Expr) -> Expr:
    """Round a float32, or a vector of them, to the nearest int32, ties to even; values must be in range."""
    kind = str(value.ty).replace("float32", "int32")
    return tvm.ir.Call(tvm.ir.Op.get(INTEGER), [value], ret_ty=tirx.const(0, kind).ty)


def rounded_pair(low: Expr, high: Expr, operation: Operation = DOT_BF16) -> Expr:
    """Round two float32 to 16-bit floats, ties to even, packed in an int32."""
    return tvm.ir.Call(tvm.ir.Op.get(PAIR[operation.a]), [low, high], ret_ty=tirx.IntImm("int32", 0).ty)


def rounded_run(first: Expr, second: Expr, operation: Operation = DOT_BF16) -> Expr:
    """Round two vectors of float32 that are consecutive in memory to one vector of pairs. Not elementwise: in a
    vectorized loop of n lanes, the arguments are elements `lane` and `n + lane` of the run."""
    return tvm.ir.Call(tvm.ir.Op.get(RUN[operation.a]), [first, second], ret_ty=tirx.IntImm("int32", 0).ty)


def narrowed(value: Expr, operation: Operation = DOT_BF16) -> Expr:
    """Round a float32, ties to even, to its stored form: bfloat16 as the uint16 with its bits."""
    if operation is not DOT_BF16:
        return tirx.Cast(operation.stored, value)
    return tvm.ir.Call(tvm.ir.Op.get(NARROW), [value], ret_ty=tirx.IntImm("uint16", 0).ty)


def stored_halves(values: np.ndarray, operation: Operation) -> NDArray[Any]:
    """Round float32 values, ties to even, to their stored form. Values beyond the range of float16 become infinite."""
    if operation is DOT_BF16:
        return bfloat16_bits(values)
    with np.errstate(over="ignore"):
        return values.astype(operation.stored)


def bfloat16_bits(values: np.ndarray) -> NDArray[np.uint16]:
    """Round float32 values to bfloat16, ties to even, as their bits."""
    import ml_dtypes

    return np.ascontiguousarray(values.astype(ml_dtypes.bfloat16)).view(np.uint16)


def _integer_text(lanes: int) -> str:
    f, i = vector("float", lanes), vector("i32", lanes)
    suffix = "i32.f32" if lanes == 1 else f"v{lanes}i32.v{lanes}f32"
    return f"""declare {i} @llvm.lrint.{suffix}({f})
define {i} @{symbol("round_int32", lanes)}({f} %x) alwaysinline nounwind {{
  %r = call {i} @llvm.lrint.{suffix}({f} %x)
  ret {i} %r
}}"""


def _pair_text(lanes: int) -> str:
    """Rounds by adding 0x7FFF and the lowest remaining bit; NaN becomes the quiet NaN."""
    f, i, b = vector("float", lanes), vector("i32", lanes), vector("i1", lanes)
    lines = [f"define {i} @{symbol('round_bf16', lanes)}({f} %low, {f} %high) alwaysinline nounwind {{"]
    for name in ("low", "high"):
        lines += [
            f"  %{name}b = bitcast {f} %{name} to {i}",
            f"  %{name}s = lshr {i} %{name}b, {splat(16, lanes)}",
            f"  %{name}o = and {i} %{name}s, {splat(1, lanes)}",
            f"  %{name}h = add {i} %{name}o, {splat(0x7FFF, lanes)}",
            f"  %{name}r = add {i} %{name}b, %{name}h",
            f"  %{name}u = lshr {i} %{name}r, {splat(16, lanes)}",
            f"  %{name}n = fcmp uno {f} %{name}, %{name}",
            f"  %{name}v = select {b} %{name}n, {i} {splat(0x7FC0, lanes)}, {i} %{name}u",
        ]
    lines += [f"  %up = shl {i} %highv, {splat(16, lanes)}", f"  %r = or {i} %up, %lowv", f"  ret {i} %r", "}"]
    return "\n".join(lines)


def _run_text(lanes: int) -> str:
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


def _float16_texts(lanes: int) -> str:
    """LLVM IR for pairs of single elements, and for pairs of consecutive vectors."""
    f, i, wide = vector("float", lanes), vector("i32", lanes), 2 * lanes
    halves, order = f"<{wide} x half>", ", ".join(f"i32 {lane}" for lane in range(wide))
    words = [f"  %{name}s = insertelement <1 x float> poison, float %{name}, i32 0" for name in ("first", "second")]
    part, kind = ("s", "<1 x float>") if lanes == 1 else ("", f)
    zipped = ", ".join(f"i32 {lane // 2 + lane % 2 * lanes}" for lane in range(wide))
    texts = []
    for name, mask in (("round_run_f16", order), ("round_f16", zipped)):
        lines = [
            f"define {i} @{symbol(name, lanes)}({f} %first, {f} %second) alwaysinline nounwind {{",
            *(words if lanes == 1 else []),
            f"  %run = shufflevector {kind} %first{part}, {kind} %second{part}, <{wide} x i32> <{mask}>",
            f"  %halves = fptrunc <{wide} x float> %run to {halves}",
            f"  %r = bitcast {halves} %halves to {i}",
            f"  ret {i} %r\n}}",
        ]
        texts.append("\n".join(lines))
    return "\n".join(texts)


def _narrow_text(lanes: int) -> str:
    """LLVM selects the instruction on targets that have it and emulates it elsewhere, including NaN."""
    f, b, i = vector("float", lanes), vector("bfloat", lanes), vector("i16", lanes)
    return f"""define {i} @{symbol("narrow_bf16", lanes)}({f} %x) alwaysinline nounwind {{
  %t = fptrunc {f} %x to {b}
  %r = bitcast {b} %t to {i}
  ret {i} %r
}}"""


@cache
def definitions(lanes: frozenset[int], machine: Machine) -> str:
    """LLVM IR of the functions for these numbers of lanes; LLVM selects the instructions of each machine."""
    texts = (_integer_text, _pair_text, _run_text, _float16_texts, _narrow_text)
    return "\n".join([*(text(count) for count in sorted(lanes) for text in texts), ""])


for _operator in OPERATORS:
    register_operator(_operator, "of float32")
