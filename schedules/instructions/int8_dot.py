"""Sums of 8-bit products as operators: `sum + a0 * b0 + a1 * b1 + a2 * b2 + a3 * b3`, a unsigned and b signed bytes.

Four bytes travel as an int32 (the first in the lowest byte), and a function in LLVM IR, inlined where it is called,
does the rest by the instructions that the machine has: see `x86_vnni`, `x86_pairs` and `neon_dot`, and `byte_products`
for any other machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from schedules.instructions import x86_vnni
from schedules.instructions.byte_products import ANY_PROCESSOR, RESULT, ByteProducts
from schedules.instructions.llvm_functions import register_operator, symbol, vector
from schedules.instructions.neon import REGISTER_LANES, in_quarters, with_register_length
from schedules.instructions.neon_dot import NEON_SDOT, NEON_USDOT
from schedules.instructions.x86_pairs import X86_PAIRS
from schedules.ir.tir import Expr, tirx, tvm
from schedules.machine import Machine

DOT = "tensorwright.dot_u8s8"
WORDS = "tensorwright.dot_words"
ROUND = "tensorwright.round_int32"
OPERATORS = (DOT, WORDS, ROUND)
# What a machine multiplies with.
VNNI, PAIRS, USDOT, SDOT, PLAIN = "vnni", "pairs", "usdot", "sdot", "plain"


def unit_of(machine: Machine) -> str:
    """What a machine multiplies bytes with."""
    if machine.has("avx512vnni", "avx512vl") or machine.has("avxvnni"):
        return VNNI
    if machine.architecture == "aarch64" and machine.has("dotprod"):
        return USDOT if machine.has("i8mm") else SDOT
    return PAIRS if machine.has("avx2") else PLAIN


def multiplies_bytes(machine: Machine) -> bool:
    """Whether products of bytes are faster than those of float32, not only smaller."""
    return unit_of(machine) in (VNNI, USDOT, SDOT)


def dot(total: Expr, a: Expr, b: Expr) -> Expr:
    """The operator on an int32 `total`, four unsigned bytes `a` and four signed bytes `b`."""
    return tvm.ir.Call(tvm.ir.Op.get(DOT), [total, a, b], ret_ty=total.ty)


def dot_words(total: Expr, a: Expr, b: Expr) -> Expr:
    """`total + a * b` of an int32 `a` in [-32768, 32767] and the signed 16 bits in the low half of `b`, zeros above."""
    return tvm.ir.Call(tvm.ir.Op.get(WORDS), [total, a, b], ret_ty=total.ty)


def rounded_int32(value: Expr) -> Expr:
    """A float32, or a vector of them, rounded to the nearest int32, halves to even; it must lie within the range."""
    lanes = str(value.ty).partition("x")[2]
    zero = tirx.const(0, "int32")
    result = tirx.Broadcast(zero, int(lanes)) if lanes else zero
    return tvm.ir.Call(tvm.ir.Op.get(ROUND), [value], ret_ty=result.ty)


def plain(call: Expr) -> Expr:
    """A call of `dot` or `rounded_int32` as plain arithmetic, for code generators that have no such operators."""
    if call.op.same_as(tvm.ir.Op.get(ROUND)):
        return tirx.Cast("int32", tirx.nearbyint(call.args[0]))
    total, a, b = call.args
    for byte in range(4):
        total = total + ((a >> 8 * byte) & 0xFF) * ((b << (24 - 8 * byte)) >> 24)
    return total


def _products(lanes: int, unit: str, avx512: bool) -> ByteProducts:
    """The instructions for so many lanes."""
    if unit in (USDOT, SDOT) and lanes == REGISTER_LANES:
        return NEON_USDOT if unit == USDOT else NEON_SDOT
    if unit in (VNNI, PAIRS) and lanes in x86_vnni.BITS and (lanes < 16 or avx512):
        return x86_vnni.X86_VNNI if unit == VNNI else X86_PAIRS
    return ANY_PROCESSOR


def _function(name: str, lanes: int, body: str) -> str:
    i = vector("i32", lanes)
    head = f"define {i} @{symbol(name, lanes)}({i} %c, {i} %a, {i} %b) alwaysinline nounwind {{"
    return f"{head}\n{body}\n  ret {i} {RESULT}\n}}"


def _dot_text(lanes: int, unit: str, avx512: bool) -> str:
    if unit in (USDOT, SDOT) and lanes > REGISTER_LANES and lanes % REGISTER_LANES == 0:
        return in_quarters(symbol("dot_u8s8", lanes), symbol("dot_u8s8", REGISTER_LANES), lanes, "i32")
    return _function("dot_u8s8", lanes, _products(lanes, unit, avx512).dot(lanes))


def _host_width(lanes: int, unit: str, avx512: bool) -> int | None:
    """The least number of lanes that an x86 instruction has and these fit in, where they are less than one has."""
    if unit not in (VNNI, PAIRS) or lanes in x86_vnni.BITS:
        return None
    return next((each for each in x86_vnni.BITS if each > lanes and (each < 16 or avx512)), None)


def _padded_text(name: str, lanes: int, wide: int) -> str:
    """The function of few lanes by that of more. Left to LLVM 22 as scalars, it joins rows of products wrongly: 3 of 7
    rows with one column of depth 16 came out wrong."""
    i, w = vector("i32", lanes), vector("i32", wide)
    lines = [f"define {i} @{symbol(name, lanes)}({i} %c, {i} %a, {i} %b) alwaysinline nounwind {{"]
    places = ", ".join(f"i32 {min(lane, lanes)}" for lane in range(wide))
    for each in "cab":
        if lanes == 1:
            lines.append(f"  %{each}w = insertelement {w} zeroinitializer, i32 %{each}, i32 0")
        else:
            lines.append(f"  %{each}w = shufflevector {i} %{each}, {i} zeroinitializer, <{wide} x i32> <{places}>")
    lines.append(f"  %rw = call {w} @{symbol(name, wide)}({w} %cw, {w} %aw, {w} %bw)")
    if lanes == 1:
        lines.append(f"  %r = extractelement {w} %rw, i32 0")
    else:
        kept = ", ".join(f"i32 {lane}" for lane in range(lanes))
        lines.append(f"  %r = shufflevector {w} %rw, {w} poison, <{lanes} x i32> <{kept}>")
    return "\n".join([*lines, f"  ret {i} %r", "}"])


def _round_text(lanes: int) -> str:
    f, i = vector("float", lanes), vector("i32", lanes)
    suffix = "i32.f32" if lanes == 1 else f"v{lanes}i32.v{lanes}f32"
    return f"""declare {i} @llvm.lrint.{suffix}({f})
define {i} @{symbol("round_int32", lanes)}({f} %x) alwaysinline nounwind {{
  %r = call {i} @llvm.lrint.{suffix}({f} %x)
  ret {i} %r
}}"""


@cache
def _definitions(lanes: tuple[int, ...], unit: str, avx512: bool) -> str:
    parts: list[str] = []
    hosts = {count: _host_width(count, unit, avx512) for count in lanes}
    for count in sorted({*lanes, *(wide for wide in hosts.values() if wide is not None)}):
        host = hosts.get(count)
        products = _products(count, unit, avx512)
        parts += products.declarations(count)
        if host is None:
            parts += [_dot_text(count, unit, avx512), _function("dot_words", count, products.words(count))]
        else:
            parts += [_padded_text(name, count, host) for name in ("dot_u8s8", "dot_words")]
        parts.append(_round_text(count))
    return "\n".join([*parts, ""])


def definitions(lanes: Iterable[int], *, unit: str) -> str:
    """LLVM IR of the functions for these numbers of lanes. `unit` is one of the units, "+512" behind it when vectors of
    512 bits have 16-bit arithmetic."""
    name, _, wide = unit.partition("+")
    return _definitions(with_register_length(lanes, name in (USDOT, SDOT)), name, bool(wide))


def unit_text(machine: Machine) -> str:
    """What `definitions` takes for a machine."""
    return unit_of(machine) + ("+512" if machine.has("avx512bw") else "")


for _operator in OPERATORS:
    register_operator(_operator, "of 8-bit integers")
