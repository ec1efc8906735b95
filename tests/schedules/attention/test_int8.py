"""Attention between 8-bit integers: sums exact, weights rounded as numpy rounds them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules.attention.compute import Orders, Rounding, attention
from schedules.ir.tir import tirx
from tests.schedules.harness import Array, evaluate, runnable, scheduled

TILES = "sapphire-rapids-simulated"

EXTENTS = st.sampled_from([1, 2, 7, 16, 19, 33, 40])
TYPES = st.sampled_from(["int8", "uint8"])
SCALE = 2.0**-14
SCORES = 2.0**-3  # the step that scores are rounded to
WEIGHT = 1 / 255
HEADS_BEHIND, KEYS_LAST = (0, 2, 1, 3), (0, 2, 3, 1)


def integers(shape: tuple[int, ...], dtype: str, seed: int) -> Array:
    limits = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(limits.min, limits.max + 1, shape).astype(dtype)


def zero_of(dtype: str, seed: int) -> int:
    limits = np.iinfo(dtype)
    return int(np.random.default_rng(seed).choice([0, limits.min, limits.max, 17]))


def weight_of(dtype: str, zero: int) -> Any:
    limits = np.iinfo(dtype)
    low, high = (tirx.FloatImm("float32", float(limit - zero)) for limit in (limits.min, limits.max))

    def weight(number: Any) -> Any:
        limited = tirx.Max(tirx.Min(number * tirx.FloatImm("float32", 1 / WEIGHT), high), low)
        return tirx.Cast(dtype, tirx.Cast("int32", tirx.nearbyint(limited)) + tirx.IntImm("int32", zero))

    return weight


def score_of(raw: Any, at: Any) -> Any:
    number = tirx.Cast("float32", raw) * tirx.FloatImm("float32", SCALE / SCORES)
    return tirx.nearbyint(number) * tirx.FloatImm("float32", SCORES)


def exact(operands: list[Array], dtype: str, zeros: tuple[int, ...]) -> tuple[Array, Array]:
    """The int32 results, and how far a weight next to a half may take each."""
    query, key, value = (
        each.astype("int64") - zero for each, zero in zip(operands, (zeros[0], zeros[1], zeros[3]), strict=True)
    )
    scores = np.rint((query @ key) * (SCALE / SCORES)) * SCORES
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    steps = powers / powers.sum(-1, keepdims=True) / WEIGHT
    limits = np.iinfo(dtype)
    rounded = np.clip(np.rint(steps), limits.min - zeros[2], limits.max - zeros[2]).astype("int64")
    near = np.abs(steps - np.floor(steps) - 0.5) < 1e-3
    return rounded @ value, near.astype("int64") @ np.abs(value)


def build(weights: str, zeros: tuple[int, ...], orders: Orders) -> Any:
    """Emits the kernel, whose weights are of a type."""
    rounding = Rounding(weight_of(weights, zeros[2]), (zeros[0], zeros[1], zeros[2], zeros[3]))

    def compute(query: Any, key: Any, value: Any) -> Any:
        return attention(query, key, value, score_of, orders=orders, rounding=rounding)

    def make(builder: Any, *tensors: Any) -> Any:
        attrs = {"op_pattern": 8}
        return builder.emit(builder.call_te(compute, *tensors, primfunc_name_hint="attention", primfunc_attrs=attrs))

    return make


@pytest.mark.parametrize("target", [*runnable(), TILES])
@settings(max_examples=8, deadline=None)
@given(
    sizes=st.tuples(EXTENTS, EXTENTS, st.sampled_from([1, 4, 7, 16, 32, 33, 64, 80]), EXTENTS),
    types=st.tuples(TYPES, TYPES, TYPES, TYPES),
    sides=st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
    seed=st.integers(0, 99),
)
def test_any_size_type_and_order(
    target: str,
    sizes: tuple[int, int, int, int],
    types: tuple[str, str, str, str],
    sides: tuple[bool, ...],
    seed: int,
) -> None:
    queries, keys, depth, columns = sizes
    shapes = (2, 3, queries, depth), (2, 3, depth, keys), (2, 3, keys, columns)
    of_operands = types[0], types[1], types[3]
    operands = [
        integers(shape, dtype, seed + i) for i, (shape, dtype) in enumerate(zip(shapes, of_operands, strict=True))
    ]
    zeros = tuple(zero_of(dtype, seed + i) for i, dtype in enumerate(types))
    orders = [
        order if side else None
        for order, side in zip((HEADS_BEHIND, KEYS_LAST, HEADS_BEHIND, HEADS_BEHIND), sides, strict=True)
    ]
    stored = [
        each if order is None else np.ascontiguousarray(each.transpose(np.argsort(order)))
        for each, order in zip(operands, orders[:3], strict=True)
    ]
    result = evaluate(build(types[2], zeros, Orders(*orders)), stored, target, "attention-int8")
    wanted, off = exact(operands, types[2], zeros)
    if orders[3] is not None:
        wanted, off = wanted.transpose(orders[3]), off.transpose(orders[3])
    assert np.all(np.abs(result - wanted) <= off)


@pytest.mark.parametrize("queries", [15, 16])
def test_many_queries_multiply_in_tiles(queries: int) -> None:
    shapes = (2, 3, queries, 32), (2, 3, 32, 40), (2, 3, 40, 32)
    mod, _ = scheduled(build("uint8", (0, 0, 0, 0), Orders()), [(shape, "int8") for shape in shapes], TILES)
    assert ("tensorwright_tiles_tdpbusd" in mod.script()) == (queries == 16)
