"""`usdot` (Arm's I8MM) and `sdot` (DotProd) of a 128-bit register: sums of products of bytes in one instruction.

`sdot` takes signed bytes alone: it sums (a - 128) b, and 128 times the sum of b is added, which is the same for all
that share b and computed once.
"""

from __future__ import annotations

from schedules.instructions.byte_products import ANY_PROCESSOR, ByteProducts

_CASTS = "  %x = bitcast <4 x i32> %a to <16 x i8>\n  %y = bitcast <4 x i32> %b to <16 x i8>"


def _intrinsic(name: str) -> str:
    return f"@llvm.aarch64.neon.{name}.v4i32.v16i8"


def _declarations(name: str) -> list[str]:
    return [f"declare <4 x i32> {_intrinsic(name)}(<4 x i32>, <16 x i8>, <16 x i8>)"]


def _usdot(_: int) -> str:
    return f"{_CASTS}\n  %r = call <4 x i32> {_intrinsic('usdot')}(<4 x i32> %c, <16 x i8> %x, <16 x i8> %y)"


def _sdot(_: int) -> str:
    call = f"call <4 x i32> {_intrinsic('sdot')}(<4 x i32>"
    return f"""{_CASTS}
  %z = xor <16 x i8> %x, splat (i8 -128)
  %o = {call} zeroinitializer, <16 x i8> splat (i8 1), <16 x i8> %y)
  %m = shl <4 x i32> %o, splat (i32 7)
  %t = add <4 x i32> %c, %m
  %r = {call} %t, <16 x i8> %z, <16 x i8> %y)"""


NEON_USDOT = ByteProducts(lambda _: _declarations("usdot"), _usdot, ANY_PROCESSOR.words)
NEON_SDOT = ByteProducts(lambda _: _declarations("sdot"), _sdot, ANY_PROCESSOR.words)
