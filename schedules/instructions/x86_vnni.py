"""`vpdpbusd` and `vpdpwssd` of AVX-512 VNNI and, of up to 256 bits, AVX-VNNI: sums of products in one instruction."""

from __future__ import annotations

from schedules.instructions.byte_products import ByteProducts, as_words
from schedules.instructions.llvm_functions import vector

BITS = {4: 128, 8: 256, 16: 512}
"""Of the registers, by lanes of 32 bits. The lesser widths need AVX512VL or AVX-VNNI."""


def _declarations(lanes: int) -> list[str]:
    i, b, w, bits = vector("i32", lanes), f"<{4 * lanes} x i8>", f"<{2 * lanes} x i16>", BITS[lanes]
    return [
        f"declare {i} @llvm.x86.avx512.vpdpbusd.{bits}({i}, {b}, {b})",
        f"declare {i} @llvm.x86.avx512.vpdpwssd.{bits}({i}, {w}, {w})",
    ]


def _dot(lanes: int) -> str:
    i, b = vector("i32", lanes), f"<{4 * lanes} x i8>"
    return f"""  %x = bitcast {i} %a to {b}
  %y = bitcast {i} %b to {b}
  %r = call {i} @llvm.x86.avx512.vpdpbusd.{BITS[lanes]}({i} %c, {b} %x, {b} %y)"""


def _words(lanes: int) -> str:
    i, w = vector("i32", lanes), f"<{2 * lanes} x i16>"
    return f"{as_words(lanes)}\n  %r = call {i} @llvm.x86.avx512.vpdpwssd.{BITS[lanes]}({i} %c, {w} %x, {w} %y)"


X86_VNNI = ByteProducts(_declarations, _dot, _words)
