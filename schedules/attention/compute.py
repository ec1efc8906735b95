"""Attention as a tensor expression, its reference semantics; `schedules.attention.rule` runs it fast."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from schedules.annotations import KIND
from schedules.ir.tir import Expr, Index, IterVar, te, tirx

Tensor: TypeAlias = te.Tensor
# A score as a function of the raw score and its position (..., query, key): scale, mask.
Score = Callable[[Expr, tuple[Expr, ...]], Expr]

ATTENTION, ATTENTION_INT8 = "attention", "attention-int8"
OPERANDS = "tensorwright.operands"  # block attribute: the type that matmuls may round their operands to
SCORES, ADJUSTED, LARGEST, POWERS, TOTAL, WEIGHTS, PRODUCT, RESULT = (
    f"attention_{name}" for name in ("scores", "adjusted", "largest", "powers", "total", "weights", "product", "result")
)


def _axis(extent: Expr, name: str) -> IterVar:
    return te.reduce_axis((tirx.IntImm("int64", 0), extent), name=name)


@dataclass(frozen=True)
class Orders:
    """Dimension orders: each operand is its tensor transposed by its order (`numpy.transpose`'s axes), and the result
    is transposed by its own. None: unchanged."""

    query: tuple[int, ...] | None = None
    key: tuple[int, ...] | None = None
    value: tuple[int, ...] | None = None
    result: tuple[int, ...] | None = None


def _transposed(tensor: Tensor, order: Sequence[int] | None) -> tuple[list[Expr], Callable[[tuple[Expr, ...]], Expr]]:
    """The shape of a transposed tensor, and its element at a position."""
    if order is None:
        return list(tensor.shape), lambda at: tensor[at]
    return [tensor.shape[axis] for axis in order], lambda at: tensor[_original(at, order)]


def _original(at: Sequence[Index], order: Sequence[int]) -> tuple[Index, ...]:
    """Indices in the original tensor of an element of the transposed one."""
    return tuple(point for _, point in sorted(zip(order, at, strict=True), key=lambda pair: pair[0]))


@dataclass(frozen=True)
class Rounding:
    """Rounding of attention between quantized tensors.

    `weight` maps a weight, between 0 and 1, to the factor of the values. If `zeros` are given, operands and weights are
    8-bit integers and `zeros` the zero points of query, key, weights and value; sums are int32, `score` receives those
    of the first matmul, and `result` computes the output from those of the second.
    """

    weight: Callable[[Expr], Expr]
    zeros: tuple[int, int, int, int] | None = None
    result: Callable[[Expr], Expr] = lambda product: product


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score: Score,
    *,
    guarded: bool = False,
    operands: str = "float32",
    orders: Orders = Orders(),
    rounding: Rounding | None = None,
) -> Tensor:
    """softmax over keys of `score(query . key)`, times value.

    Shapes: query (..., queries, depth), key (..., depth, keys), value (..., keys, columns) with the same leading
    dimensions, each after its transposition; returns (..., queries, columns), transposed. `guarded`: weights that are
    NaN count as 0; whole rows are, for example if -inf masks all keys. `operands` is "float32", or "bfloat16" if
    matmuls may round to it. With `rounding`, weights are rounded before they multiply.
    """
    (*leading, queries, depth), query_at = _transposed(query, orders.query)
    (*_, keys), key_at = _transposed(key, orders.key)
    (*_, columns), value_at = _transposed(value, orders.value)
    zeros = None if rounding is None else rounding.zeros
    attrs = {KIND: ATTENTION if zeros is None else ATTENTION_INT8, OPERANDS: operands}
    of_query, of_key, of_weights, of_values = zeros or (None, None, None, None)
    grid, shape = [*leading, queries, keys], [*leading, queries, columns]
    d, s = _axis(depth, "d"), _axis(keys, "s")
    scores = te.compute(
        grid,
        lambda *at: te.sum(
            _less(query_at((*at[:-1], d)), of_query) * _less(key_at((*at[:-2], d, at[-1])), of_key), axis=d
        ),
        name=SCORES,
        attrs=attrs,
    )
    weights, sums = _softmax(scores, score, attrs, rounding)
    product = te.compute(
        shape,
        lambda *at: te.sum(
            _less(weights[(*at[:-1], s)], of_weights) * _less(value_at((*at[:-2], s, at[-1])), of_values), axis=s
        ),
        name=PRODUCT,
        attrs=attrs,
    )
    order = orders.result or tuple(range(len(shape)))

    def result(*position: Expr) -> Expr:
        at = _original(position, order)
        if rounding is not None:
            return rounding.result(product[at])
        total = sums[at[:-1]]
        return guarded_quotient(product[at], total) if guarded else product[at] / total

    return te.compute([shape[axis] for axis in order], result, name=RESULT, attrs=attrs)


def _softmax(
    scores: Tensor, score: Score, attrs: Mapping[str, str], rounding: Rounding | None
) -> tuple[Tensor, Tensor]:
    """Weights of the values, and the sums of the exponentials; already divided by them only if weights are rounded."""
    grid = list(scores.shape)
    rows, keys = grid[:-1], grid[-1]
    k, total = _axis(keys, "k"), _axis(keys, "t")
    adjusted = te.compute(grid, lambda *at: score(scores[at], at), name=ADJUSTED, attrs=attrs)
    largest = te.compute(rows, lambda *at: te.max(adjusted[(*at, k)], axis=k), name=LARGEST, attrs=attrs)
    powers = te.compute(grid, lambda *at: tirx.exp(adjusted[at] - largest[at[:-1]]), name=POWERS, attrs=attrs)
    sums = te.compute(rows, lambda *at: te.sum(powers[(*at, total)], axis=total), name=TOTAL, attrs=attrs)
    if rounding is None:
        return powers, sums
    weight, one = rounding.weight, tirx.FloatImm("float32", 1.0)
    return te.compute(grid, lambda *at: weight(powers[at] * (one / sums[at[:-1]])), name=WEIGHTS, attrs=attrs), sums


def _less(value: Expr, zero: int | None) -> Expr:
    """An integer minus its zero point, in 32 bits; without a zero point, the number itself."""
    return value if zero is None else tirx.Cast("int32", value) - tirx.IntImm("int32", zero)


def guarded_quotient(value: Expr, total: Expr) -> Expr:
    """value / total, or 0 if the total is 0 or NaN, which is when weights are NaN."""
    zero = tirx.FloatImm("float32", 0.0)
    return tirx.Select(tirx.GT(total, zero), value / total, zero)
