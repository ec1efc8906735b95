"""x86 instructions: VNNI (AVX-512; AVX for up to 256 bits), AVX-VNNI-INT8, AVX-512 BF16 and FP16, AVX10.2, and
`vpmaddwd`."""

from __future__ import annotations

from schedules.instructions.dot_products.operation import (
    DOT_BF16,
    DOT_F16,
    DOT_S8S8,
    DOT_S8U8,
    DOT_U8S8,
    DOT_U8U8,
    DOT_WORDS,
    SCALARS,
    SUM_F16,
    Instruction,
    Operation,
    features,
    float16_sums,
)
from schedules.instructions.llvm_functions import splat, vector

BITS = {4: 128, 8: 256, 16: 512}
"""Width of the registers in bits, by number of 32-bit lanes. The smaller widths need AVX512VL or AVX-VNNI."""
_PAIRS = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}
_VNNI = (features("avx512vnni", "avx512vl"), features("avxvnni"))


def _words(lanes: int) -> str:
    return f"<{2 * lanes} x i16>"


def _casts(lanes: int, kind: str) -> str:
    """Both factors cast to a vector type, as %x and %y."""
    i = vector("i32", lanes)
    return f"  %x = bitcast {i} %a to {kind}\n  %y = bitcast {i} %b to {kind}"


def _dot(
    name: str,
    operation: Operation,
    needs: tuple[frozenset[str], ...],
    rate: float,
    element: str,
    intrinsic: str = "llvm.x86.avx512.{name}",
    *,
    pads: bool = False,
) -> Instruction:
    """An instruction on registers of LLVM type `element`; `{avx}` in the intrinsic is the width's prefix."""

    def types(lanes: int) -> tuple[str, str, str]:
        called = intrinsic.format(name=name, avx="avx10" if lanes == 16 else "avx2")
        kind = f"<{(4 if element == 'i8' else 2) * lanes} x {element}>"
        return vector(SCALARS[operation.total], lanes), kind, f"@{called}.{BITS[lanes]}"

    def body(lanes: int) -> str:
        total, kind, called = types(lanes)
        return f"{_casts(lanes, kind)}\n  %r = call {total} {called}({total} %c, {kind} %x, {kind} %y)"

    def declared(lanes: int) -> list[str]:
        total, kind, called = types(lanes)
        return [f"declare {total} {called}({total}, {kind}, {kind})"]

    return Instruction(name, operation, needs, rate, tuple(BITS), body, declared, pads=pads)


def _declared_pairs(lanes: int) -> list[str]:
    return [f"declare {vector('i32', lanes)} @{_PAIRS[lanes]}({_words(lanes)}, {_words(lanes)})"]


def _pairs_of_bytes(lanes: int) -> str:
    """Bytes converted to 16 bits, whose products cannot overflow 32 bits in pairs: `vpmaddubsw` multiplies bytes
    directly, but its sums saturate at 16 bits."""
    i, w, pairs = vector("i32", lanes), _words(lanes), _PAIRS[lanes]
    eight = splat(8, 2 * lanes, "i16")
    return f"""{_casts(lanes, w)}
  %xl = and {w} %x, {splat(255, 2 * lanes, "i16")}
  %xh = lshr {w} %x, {eight}
  %yu = shl {w} %y, {eight}
  %yl = ashr {w} %yu, {eight}
  %yh = ashr {w} %y, {eight}
  %pl = call {i} @{pairs}({w} %xl, {w} %yl)
  %ph = call {i} @{pairs}({w} %xh, {w} %yh)
  %s = add {i} %c, %pl
  %r = add {i} %s, %ph"""


def _pairs_of_words(lanes: int) -> str:
    i, w = vector("i32", lanes), _words(lanes)
    return f"{_casts(lanes, w)}\n  %p = call {i} @{_PAIRS[lanes]}({w} %x, {w} %y)\n  %r = add {i} %c, %p"


# Byte dot products in any signedness: AVX-VNNI-INT8 has registers of up to 256 bits, AVX10.2 of 512 bits.
_ANY_SIGN = (features("avx10.2"), features("avxvnniint8"))
_BF16, _FP16 = (features("avx512bf16", "avx512vl"),), (features("avx512fp16", "avx512vl"),)
INSTRUCTIONS = (
    _dot("vdpbf16ps", DOT_BF16, _BF16, 2.0, "bfloat", "llvm.x86.avx512bf16.dpbf16ps"),
    _dot("vdpphps", DOT_F16, (features("avx10.2"),), 2.0, "half", "llvm.x86.avx10.{name}"),
    # Per 64 steps, the multiplications are 64 of some 74 instructions.
    Instruction("vfmadd231ph", SUM_F16, _FP16, 1.7, tuple(BITS), float16_sums),
    _dot("vpdpbusd", DOT_U8S8, _VNNI, 4.0, "i8", pads=True),
    *(
        _dot(name, operation, _ANY_SIGN, 4.0, "i8", "llvm.x86.{avx}.{name}")
        for name, operation in (("vpdpbssd", DOT_S8S8), ("vpdpbsud", DOT_S8U8), ("vpdpbuud", DOT_U8U8))
    ),
    _dot("vpdpwssd", DOT_WORDS, _VNNI, 2.0, "i16", pads=True),
    *(
        Instruction(
            name, operation, (features("avx2"),), rate, tuple(BITS), body, _declared_pairs, direct=direct, pads=True
        )
        for name, operation, rate, body, direct in (
            ("vpmaddwd of bytes", DOT_U8S8, 1.5, _pairs_of_bytes, False),
            ("vpmaddwd", DOT_WORDS, 1.0, _pairs_of_words, True),
        )
    ),
)
