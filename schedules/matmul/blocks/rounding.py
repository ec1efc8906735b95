"""Dynamic int8 quantization of matmul inputs, with a scale for each unit of neighbours along the depth.

A unit is words of an int32 tensor (..., units, 3 + unit / 4): the scale (float32 bits), the sum of the bytes, the scale
times that sum (float32 bits), and the bytes, four a word. The scale is the greatest magnitude over 127. A NaN in the
data, or an infinity, becomes the scale's.
"""

from __future__ import annotations

from schedules.annotations import KIND, SPEC
from schedules.ir.tir import Expr, Tensor, te, tirx

BLOCK_ROUND = "block-round"
HEADER, SCALE, SUM, SCALED_SUM = 3, 0, 1, 2
QUAD = 4
_MOST = 127.0
_MAGNITUDE = 0x7FFFFFFF


def _number(value: int) -> Expr:
    return tirx.const(value, "int64")


def block_round(data: Tensor, units: int, unit: int) -> Tensor:
    """Quantize float32 data (..., depth) to int32 (..., units, 3 + unit / 4); zero-padded beyond the depth."""
    depth, lead = data.shape[-1], list(data.shape[:-1])
    attrs = {KIND: BLOCK_ROUND, SPEC: str(unit)}
    whole = isinstance(depth, tirx.IntImm) and int(depth.value) == units * unit
    zero = tirx.const(0.0, "float32")

    def element(*at: Expr) -> Expr:
        """The element at index at[-1] of unit at[-2]."""
        place = at[-2] * unit + at[-1]
        return data(*at[:-2], place) if whole else tirx.if_then_else(place < depth, data(*at[:-2], place), zero)

    k = te.reduce_axis((_number(0), _number(unit)), name="k")
    peak = te.compute(
        [*lead, _number(units)],
        # Of magnitudes as integers: NaN is the greatest.
        lambda *at: te.max(tirx.reinterpret("int32", element(*at, k)) & tirx.const(_MAGNITUDE, "int32"), axis=k),
        name="peak",
        attrs=attrs,
    )

    def rounded(at: tuple[Expr, ...], place: Expr) -> Expr:
        most = tirx.reinterpret("float32", peak(*at))
        inverse = tirx.if_then_else(most > zero, tirx.const(_MOST, "float32") / most, zero)
        return tirx.Cast("int8", tirx.Cast("int32", tirx.nearbyint(element(*at, place) * inverse)))

    place = te.reduce_axis((_number(0), _number(unit)), name="place")
    total = te.compute(
        [*lead, _number(units)],
        lambda *at: te.sum(tirx.Cast("int32", rounded(at, place)), axis=place),
        name="total",
        attrs=attrs,
    )

    def word(*at: Expr) -> Expr:
        of_unit, slot = at[:-1], at[-1]
        scale = tirx.reinterpret("float32", peak(*of_unit)) * tirx.const(1 / _MOST, "float32")
        first = tirx.max(slot - HEADER, _number(0)) * QUAD
        value = tirx.const(0, "int32")
        for byte in range(QUAD):
            one = tirx.Cast("int32", rounded(of_unit, first + byte)) & tirx.const(0xFF, "int32")
            value = value | one << tirx.const(8 * byte, "int32")
        scaled = tirx.reinterpret("int32", scale * tirx.Cast("float32", total(*of_unit)))
        value = tirx.if_then_else(slot == SCALED_SUM, scaled, value)
        value = tirx.if_then_else(slot == SUM, total(*of_unit), value)
        return tirx.if_then_else(slot == SCALE, tirx.reinterpret("int32", scale), value)

    return te.compute([*lead, _number(units), _number(HEADER + unit // QUAD)], word, name="rounded", attrs=attrs)
