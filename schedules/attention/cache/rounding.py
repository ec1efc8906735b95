"""New rows of an int8 cache: each head of each row is rounded with a scale of its own."""

from __future__ import annotations

from collections.abc import Sequence

from schedules.ir.tir import Expr, Tensor, te, tirx

_MOST = 127.0


def round_rows(given: Sequence[Tensor]) -> list[Tensor]:
    """Keys and values (batch, n, heads, size), float32, as int8 (batch, heads, n, size) each, then their scales,
    float32 (batch, heads, n) each."""
    scales = [_scales(each) for each in given]
    return [*(_rounded(*pair) for pair in zip(given, scales, strict=True)), *scales]


def _scales(rows: Tensor) -> Tensor:
    batch, count, heads, size = rows.shape
    d = te.reduce_axis((tirx.const(0, "int64"), size), name="d")
    peak = te.compute((batch, heads, count), lambda b, h, i: te.max(tirx.abs(rows[b, i, h, d]), axis=d), name="peak")
    return te.compute((batch, heads, count), lambda *at: peak(*at) * tirx.const(1 / _MOST, "float32"), name="scale")


def _rounded(rows: Tensor, scale: Tensor) -> Tensor:
    batch, count, heads, size = rows.shape
    zero, one = tirx.const(0.0, "float32"), tirx.const(1.0, "float32")

    def element(b: Expr, h: Expr, i: Expr, d: Expr) -> Expr:
        inverse = tirx.if_then_else(scale[b, h, i] > zero, one / scale[b, h, i], zero)
        return tirx.Cast("int8", tirx.Cast("int32", tirx.nearbyint(rows[b, i, h, d] * inverse)))

    return te.compute((batch, heads, count, size), element, name="rounded")
