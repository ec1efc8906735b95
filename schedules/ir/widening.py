"""Reading numbers that are stored narrower than they are computed with: bfloat16 bits in uint16, 8-bit integers."""

from __future__ import annotations

from schedules.ir.tir import Expr, tirx


def number(stored: Expr, dtype: str) -> Expr:
    """A stored element, or a vector of them, as `dtype`; uint16 holds the bits of a bfloat16 when that is float32."""
    own, _, lanes = str(stored.ty).partition("x")
    if own == dtype:
        return stored
    if own == "uint16" and dtype == "float32":
        return widened(stored)
    return tirx.Cast(_vector(dtype, lanes), stored)


def widened(bits: Expr) -> Expr:
    """The float32 of a bfloat16 held in a uint16; exact."""
    lanes = str(bits.ty).partition("x")[2]
    words = _vector("int32", lanes)
    return tirx.reinterpret(_vector("float32", lanes), tirx.Cast(words, bits) << tirx.const(16, words))


def low_halves(words: Expr) -> Expr:
    """16-bit integers as the low halves of int32, zeros above."""
    own, _, lanes = str(words.ty).partition("x")
    assert own == "int16"
    unsigned = tirx.reinterpret(_vector("uint16", lanes), words)
    return tirx.Cast(_vector("int32", lanes), unsigned)


def _vector(dtype: str, lanes: str) -> str:
    return f"{dtype}x{lanes}" if lanes else dtype
