"""Sums of 8-bit products as operators: `sum + a0 * b0 + a1 * b1 + a2 * b2 + a3 * b3`, a unsigned and b signed bytes.

Four bytes travel as an int32 (the first in the lowest byte), and a function in LLVM IR, inlined where it is called,
does the rest: with `vpdpbusd` where the processor has it (in AVX-512 or, of 256 bits, as AVX-VNNI); else the bytes are
widened to 16 bits and summed in pairs by `vpmaddwd`, whose sums cannot overflow (unlike those of `vpmaddubsw`, which
saturate at 16 bits). On Arm it is `usdot`; where there is only `sdot`, of signed bytes, it sums (a - 128) b, and 128
times the sum of b is added.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from schedules.instructions.llvm_functions import register_operator, symbol, vector
from schedules.instructions.neon import REGISTER_LANES, in_quarters, with_register_length
from schedules.ir.tir import Expr, tirx, tvm
from schedules.machine import Machine

DOT = "tensorwright.dot_u8s8"
WORDS = "tensorwright.dot_words"
ROUND = "tensorwright.round_int32"
OPERATORS = (DOT, WORDS, ROUND)
# What a machine multiplies with.
VNNI, PAIRS, USDOT, SDOT, PLAIN = "vnni", "pairs", "usdot", "sdot", "plain"
# Lanes of 32 bits and the intrinsics that have them. The lesser widths of VNNI need AVX512VL or AVX-VNNI.
_BITS = {4: 128, 8: 256, 16: 512}
_PAIRS = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}


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


def _splat(value: int, lanes: int, scalar: str = "i32") -> str:
    return str(value) if lanes == 1 else f"splat ({scalar} {value})"


def _pairs(unit: str, lanes: int, avx512: bool) -> str | None:
    """The intrinsic that sums products of pairs of 16 bits, where there is one."""
    return _PAIRS.get(lanes) if unit in (VNNI, PAIRS) and (lanes < 16 or avx512) else None


def _vnni(unit: str, lanes: int, avx512: bool) -> bool:
    """Whether so many lanes are one instruction of VNNI."""
    return unit == VNNI and lanes in _BITS and (lanes < 16 or avx512)


def _dot_text(lanes: int, unit: str, avx512: bool) -> str:
    i = vector("i32", lanes)
    head = f"define {i} @{symbol('dot_u8s8', lanes)}({i} %c, {i} %a, {i} %b) alwaysinline nounwind {{"
    pairs = _pairs(unit, lanes, avx512)
    if _vnni(unit, lanes, avx512):
        return f"""{head}
  %x = bitcast {i} %a to <{4 * lanes} x i8>
  %y = bitcast {i} %b to <{4 * lanes} x i8>
  %r = call {i} @llvm.x86.avx512.vpdpbusd.{_BITS[lanes]}({i} %c, <{4 * lanes} x i8> %x, <{4 * lanes} x i8> %y)
  ret {i} %r
}}"""
    if unit in (USDOT, SDOT) and lanes > REGISTER_LANES and lanes % REGISTER_LANES == 0:
        return in_quarters(symbol("dot_u8s8", lanes), symbol("dot_u8s8", REGISTER_LANES), lanes, "i32")
    if unit in (USDOT, SDOT) and lanes == REGISTER_LANES:
        return f"{head}\n{_neon_bytes(unit)}\n  ret {i} %r\n}}"
    if pairs is None:
        return f"{head}\n{plain_bytes(lanes)}\n  ret {i} %s3\n}}"
    w, eight = f"<{2 * lanes} x i16>", _splat(8, 2 * lanes, "i16")
    return f"""{head}
  %x = bitcast {i} %a to {w}
  %y = bitcast {i} %b to {w}
  %xl = and {w} %x, {_splat(255, 2 * lanes, "i16")}
  %xh = lshr {w} %x, {eight}
  %yu = shl {w} %y, {eight}
  %yl = ashr {w} %yu, {eight}
  %yh = ashr {w} %y, {eight}
  %pl = call {i} @{pairs}({w} %xl, {w} %yl)
  %ph = call {i} @{pairs}({w} %xh, {w} %yh)
  %s = add {i} %c, %pl
  %r = add {i} %s, %ph
  ret {i} %r
}}"""


def _neon_bytes(unit: str) -> str:
    """The sum is %r. Of `sdot`, the sum of b alone is the same for all that share b, and computed once."""
    casts = "  %x = bitcast <4 x i32> %a to <16 x i8>\n  %y = bitcast <4 x i32> %b to <16 x i8>"
    call = f"call <4 x i32> @llvm.aarch64.neon.{unit}.v4i32.v16i8(<4 x i32>"
    if unit == USDOT:
        return f"{casts}\n  %r = {call} %c, <16 x i8> %x, <16 x i8> %y)"
    return f"""{casts}
  %z = xor <16 x i8> %x, splat (i8 -128)
  %o = {call} zeroinitializer, <16 x i8> splat (i8 1), <16 x i8> %y)
  %m = shl <4 x i32> %o, splat (i32 7)
  %t = add <4 x i32> %c, %m
  %r = {call} %t, <16 x i8> %z, <16 x i8> %y)"""


def _host_width(lanes: int, unit: str, avx512: bool) -> int | None:
    """The least number of lanes that an x86 instruction has and these fit in, where they are less than one has."""
    if unit not in (VNNI, PAIRS) or lanes in _BITS:
        return None
    return next((each for each in _BITS if each > lanes and (each < 16 or avx512)), None)


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


def plain_bytes(lanes: int, *, signed: bool = False) -> str:
    """Byte after byte, on any processor; the sum is %s3. `signed` says how the bytes of %a are read."""
    i = vector("i32", lanes)
    lines = []
    for byte in range(4):
        before = "%c" if byte == 0 else f"%s{byte - 1}"
        if signed:
            lines += [
                f"  %as{byte} = shl {i} %a, {_splat(24 - 8 * byte, lanes)}",
                f"  %ab{byte} = ashr {i} %as{byte}, {_splat(24, lanes)}",
            ]
        else:
            lines += [
                f"  %as{byte} = lshr {i} %a, {_splat(8 * byte, lanes)}",
                f"  %ab{byte} = and {i} %as{byte}, {_splat(255, lanes)}",
            ]
        lines += [
            f"  %bs{byte} = shl {i} %b, {_splat(24 - 8 * byte, lanes)}",
            f"  %bb{byte} = ashr {i} %bs{byte}, {_splat(24, lanes)}",
            f"  %p{byte} = mul {i} %ab{byte}, %bb{byte}",
            f"  %s{byte} = add {i} {before}, %p{byte}",
        ]
    return "\n".join(lines)


def _words_text(lanes: int, unit: str, avx512: bool) -> str:
    i, w = vector("i32", lanes), f"<{2 * lanes} x i16>"
    head = f"define {i} @{symbol('dot_words', lanes)}({i} %c, {i} %a, {i} %b) alwaysinline nounwind {{"
    casts = f"  %x = bitcast {i} %a to {w}\n  %y = bitcast {i} %b to {w}"
    pairs = _pairs(unit, lanes, avx512)
    if _vnni(unit, lanes, avx512):
        call = f"call {i} @llvm.x86.avx512.vpdpwssd.{_BITS[lanes]}({i} %c, {w} %x, {w} %y)"
        return f"{head}\n{casts}\n  %r = {call}\n  ret {i} %r\n}}"
    if pairs is not None:
        call = f"call {i} @{pairs}({w} %x, {w} %y)"
        return f"{head}\n{casts}\n  %p = {call}\n  %r = add {i} %c, %p\n  ret {i} %r\n}}"
    half = _splat(16, lanes)
    return f"""{head}
  %u = shl {i} %b, {half}
  %w = ashr {i} %u, {half}
  %p = mul {i} %a, %w
  %r = add {i} %c, %p
  ret {i} %r
}}"""


def _round_text(lanes: int) -> str:
    f, i = vector("float", lanes), vector("i32", lanes)
    suffix = "i32.f32" if lanes == 1 else f"v{lanes}i32.v{lanes}f32"
    return f"""declare {i} @llvm.lrint.{suffix}({f})
define {i} @{symbol("round_int32", lanes)}({f} %x) alwaysinline nounwind {{
  %r = call {i} @llvm.lrint.{suffix}({f} %x)
  ret {i} %r
}}"""


def _declarations(unit: str, lanes: int, avx512: bool) -> list[str]:
    i, b, w = vector("i32", lanes), f"<{4 * lanes} x i8>", f"<{2 * lanes} x i16>"
    if _vnni(unit, lanes, avx512):
        bits = _BITS[lanes]
        return [
            f"declare {i} @llvm.x86.avx512.vpdpbusd.{bits}({i}, {b}, {b})",
            f"declare {i} @llvm.x86.avx512.vpdpwssd.{bits}({i}, {w}, {w})",
        ]
    if unit in (USDOT, SDOT) and lanes == REGISTER_LANES:
        return [f"declare {i} @llvm.aarch64.neon.{unit}.v4i32.v16i8({i}, {b}, {b})"]
    pairs = _pairs(unit, lanes, avx512)
    return [] if pairs is None else [f"declare {i} @{pairs}({w}, {w})"]


@cache
def _definitions(lanes: tuple[int, ...], unit: str, avx512: bool) -> str:
    parts: list[str] = []
    hosts = {count: _host_width(count, unit, avx512) for count in lanes}
    for count in sorted({*lanes, *(wide for wide in hosts.values() if wide is not None)}):
        host = hosts.get(count)
        parts += _declarations(unit, count, avx512)
        if host is None:
            parts += [_dot_text(count, unit, avx512), _words_text(count, unit, avx512)]
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
