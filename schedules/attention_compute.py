"""Attention as a tensor expression: what it means; `schedules.attention` runs it fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from schedules.conv_workload import KIND
from schedules.tir import tirx

from tvm import te  # isort: skip

Tensor = Any
Expr = Any
# A score as a function of the raw score and its place (..., query, key): scale, mask.
Score = Callable[[Expr, tuple[Expr, ...]], Expr]

ATTENTION = "attention"
OPERANDS = "tensorwright.operands"  # block attribute: the type that products may round their operands to
SCORES, ADJUSTED, LARGEST, POWERS, TOTAL, PRODUCT, RESULT = (
    "attention_scores",
    "attention_adjusted",
    "attention_largest",
    "attention_powers",
    "attention_total",
    "attention_product",
    "attention_result",
)


def _axis(extent: Any, name: str) -> Any:
    return te.reduce_axis((tirx.IntImm("int64", 0), extent), name=name)


@dataclass(frozen=True)
class Orders:
    """Of dimensions: each operand is its tensor transposed by its order (`numpy.transpose`'s axes), and what is
    returned is the result transposed by its own. None: as it is."""

    query: tuple[int, ...] | None = None
    key: tuple[int, ...] | None = None
    value: tuple[int, ...] | None = None
    result: tuple[int, ...] | None = None


def _transposed(tensor: Tensor, order: Sequence[int] | None) -> tuple[list[Any], Callable[[tuple[Expr, ...]], Expr]]:
    """The shape of a transposed tensor, and its element at a place."""
    if order is None:
        return list(tensor.shape), lambda at: tensor[at]
    return [tensor.shape[axis] for axis in order], lambda at: tensor[_original(at, order)]


def _original(at: Sequence[Any], order: Sequence[int]) -> tuple[Any, ...]:
    """Where an element at a place of the transposed tensor stands in the original."""
    return tuple(point for _, point in sorted(zip(order, at, strict=True), key=lambda pair: pair[0]))


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score: Score,
    *,
    guarded: bool = False,
    operands: str = "float32",
    orders: Orders = Orders(),
) -> Tensor:
    """softmax over keys of `score(query . key)`, times value.

    Shapes: query (..., queries, depth), key (..., depth, keys), value (..., keys, columns) with the same leading
    dimensions, each after its transposition; returns (..., queries, columns), transposed. `guarded`: weights that are
    NaN count as 0; they are so in whole rows, as where all keys are masked by -inf. `operands` is "float32", or
    "bfloat16" where products may round to it.
    """
    (*lead, queries, depth), query_at = _transposed(query, orders.query)
    (*_, keys), key_at = _transposed(key, orders.key)
    (*_, columns), value_at = _transposed(value, orders.value)
    attrs = {KIND: ATTENTION, OPERANDS: operands}
    rows, grid = [*lead, queries], [*lead, queries, keys]
    d, k, total, s = _axis(depth, "d"), _axis(keys, "k"), _axis(keys, "t"), _axis(keys, "s")
    scores = te.compute(
        grid,
        lambda *at: te.sum(query_at((*at[:-1], d)) * key_at((*at[:-2], d, at[-1])), axis=d),
        name=SCORES,
        attrs=attrs,
    )
    adjusted = te.compute(grid, lambda *at: score(scores[at], at), name=ADJUSTED, attrs=attrs)
    largest = te.compute(rows, lambda *at: te.max(adjusted[(*at, k)], axis=k), name=LARGEST, attrs=attrs)
    powers = te.compute(grid, lambda *at: tirx.exp(adjusted[at] - largest[at[:-1]]), name=POWERS, attrs=attrs)
    sums = te.compute(rows, lambda *at: te.sum(powers[(*at, total)], axis=total), name=TOTAL, attrs=attrs)
    product = te.compute(
        [*rows, columns],
        lambda *at: te.sum(powers[(*at[:-1], s)] * value_at((*at[:-2], s, at[-1])), axis=s),
        name=PRODUCT,
        attrs=attrs,
    )

    shape = [*rows, columns]
    order = orders.result or tuple(range(len(shape)))

    def result(*place: Expr) -> Expr:
        at = _original(place, order)
        total = sums[at[:-1]]
        return guarded_quotient(product[at], total) if guarded else product[at] / total

    return te.compute([shape[axis] for axis in order], result, name=RESULT, attrs=attrs)


def guarded_quotient(value: Expr, total: Expr) -> Expr:
    """value / total, or 0 where the total is 0 or NaN, which is where weights are NaN."""
    zero = tirx.FloatImm("float32", 0.0)
    return tirx.Select(tirx.GT(total, zero), value / total, zero)
