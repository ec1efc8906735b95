"""Sums of products of bytes in LLVM IR: the interface of each instruction set, and code for any processor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from schedules.instructions.llvm_functions import vector

Text = Callable[[int], str]
"""Lines of a function's body for a number of lanes of 32 bits: they leave the sum in `RESULT`."""
RESULT = "%r"


@dataclass(frozen=True)
class ByteProducts:
    """An instruction set's text; in a body, %c is the sum so far, and %a and %b are the factors, one int32 per lane.

    Attributes:
        declarations: of the intrinsics that the bodies call.
        dot: four unsigned bytes %a by four signed bytes %b.
        words: 16 bits of %a by the low 16 bits of %b, both signed.
    """

    declarations: Callable[[int], list[str]]
    dot: Text
    words: Text


def splat(value: int, lanes: int, scalar: str = "i32") -> str:
    """A constant in every lane."""
    return str(value) if lanes == 1 else f"splat ({scalar} {value})"


def as_words(lanes: int) -> str:
    """Both factors as 16-bit numbers: %x and %y."""
    i, w = vector("i32", lanes), f"<{2 * lanes} x i16>"
    return f"  %x = bitcast {i} %a to {w}\n  %y = bitcast {i} %b to {w}"


def plain_bytes(lanes: int, *, signed: bool = False) -> str:
    """Byte after byte, on any processor; the sum is `RESULT`. `signed` says how the bytes of %a are read."""
    i = vector("i32", lanes)
    lines = []
    for byte in range(4):
        before = "%c" if byte == 0 else f"%s{byte - 1}"
        after = RESULT if byte == 3 else f"%s{byte}"
        if signed:
            lines += [
                f"  %as{byte} = shl {i} %a, {splat(24 - 8 * byte, lanes)}",
                f"  %ab{byte} = ashr {i} %as{byte}, {splat(24, lanes)}",
            ]
        else:
            lines += [
                f"  %as{byte} = lshr {i} %a, {splat(8 * byte, lanes)}",
                f"  %ab{byte} = and {i} %as{byte}, {splat(255, lanes)}",
            ]
        lines += [
            f"  %bs{byte} = shl {i} %b, {splat(24 - 8 * byte, lanes)}",
            f"  %bb{byte} = ashr {i} %bs{byte}, {splat(24, lanes)}",
            f"  %p{byte} = mul {i} %ab{byte}, %bb{byte}",
            f"  {after} = add {i} {before}, %p{byte}",
        ]
    return "\n".join(lines)


def _words(lanes: int) -> str:
    i, half = vector("i32", lanes), splat(16, lanes)
    return f"""  %u = shl {i} %b, {half}
  %w = ashr {i} %u, {half}
  %p = mul {i} %a, %w
  %r = add {i} %c, %p"""


ANY_PROCESSOR = ByteProducts(lambda lanes: [], plain_bytes, _words)
