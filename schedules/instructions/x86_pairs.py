"""`vpmaddwd` of SSE2, AVX2 and AVX-512BW: products of 16 bits summed in pairs, which cannot overflow 32 bits.

Bytes are widened to 16 bits for it. `vpmaddubsw` would take them as they are, but saturates its sums at 16 bits.
"""

from __future__ import annotations

from schedules.instructions.byte_products import ByteProducts, as_words, splat
from schedules.instructions.llvm_functions import vector

INTRINSICS = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}
"""By lanes of 32 bits."""


def _declarations(lanes: int) -> list[str]:
    w = f"<{2 * lanes} x i16>"
    return [f"declare {vector('i32', lanes)} @{INTRINSICS[lanes]}({w}, {w})"]


def _dot(lanes: int) -> str:
    i, w, pairs = vector("i32", lanes), f"<{2 * lanes} x i16>", INTRINSICS[lanes]
    eight = splat(8, 2 * lanes, "i16")
    return f"""{as_words(lanes)}
  %xl = and {w} %x, {splat(255, 2 * lanes, "i16")}
  %xh = lshr {w} %x, {eight}
  %yu = shl {w} %y, {eight}
  %yl = ashr {w} %yu, {eight}
  %yh = ashr {w} %y, {eight}
  %pl = call {i} @{pairs}({w} %xl, {w} %yl)
  %ph = call {i} @{pairs}({w} %xh, {w} %yh)
  %s = add {i} %c, %pl
  %r = add {i} %s, %ph"""


def _words(lanes: int) -> str:
    i, w = vector("i32", lanes), f"<{2 * lanes} x i16>"
    return f"{as_words(lanes)}\n  %p = call {i} @{INTRINSICS[lanes]}({w} %x, {w} %y)\n  %r = add {i} %c, %p"


X86_PAIRS = ByteProducts(_declarations, _dot, _words)
