"""Attention in one kernel against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules.attention.compute import Orders, attention
from schedules.ir.tir import tirx, tvm
from tests.schedules.harness import Array, Build, evaluate, normal, runnable, scheduled, virtual_machine

EXTENTS = st.sampled_from([1, 2, 7, 16, 19, 33, 40])
SCALE = 0.25


def build(with_mask: bool, operands: str = "float32") -> Build:
    def compute(query: Any, key: Any, value: Any, *mask: Any) -> Any:
        def score(raw: Any, at: tuple[Any, ...]) -> Any:
            scaled = raw * tirx.FloatImm("float32", SCALE)
            zero = tirx.IntImm("int64", 0)
            return scaled + mask[0][at[0], zero, zero, at[-1]] if with_mask else scaled

        return attention(query, key, value, score, operands=operands)

    def make(builder: Any, *given: Any) -> Any:
        call = builder.call_te(compute, *given, primfunc_name_hint="attention", primfunc_attrs={"op_pattern": 8})
        return builder.emit(call)

    return make


def exact(query: Array, key: Array, value: Array, mask: Array | None = None) -> Array:
    scores = query.astype("float64") @ key * SCALE + (0 if mask is None else mask)
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True) @ value)


@pytest.mark.parametrize("target", runnable())
@settings(max_examples=5, deadline=None)
@given(queries=EXTENTS, keys=EXTENTS, depth=EXTENTS, columns=EXTENTS, masked=st.booleans())
def test_any_size(target: str, queries: int, keys: int, depth: int, columns: int, masked: bool) -> None:
    operands = [
        normal((2, 3, queries, depth)),
        normal((2, 3, depth, keys), 1),
        normal((2, 3, keys, columns), 2),
    ]
    if masked:
        operands.append(normal((2, 1, 1, keys), 3))
    result = evaluate(build(masked), operands, target, "attention")
    # Weights sum to one, so the error is that of one float32 sum of values near 1.
    np.testing.assert_allclose(result, exact(*operands), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", runnable())
def test_large_scores_do_not_overflow(target: str) -> None:
    query, key, value = 30 * normal((1, 5, 16)), 30 * normal((1, 16, 20), 1), normal((1, 20, 8), 2)
    result = evaluate(build(False), [query, key, value], target, "attention")
    np.testing.assert_allclose(result, exact(query, key, value), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("target", runnable())
def test_long_keys_and_values_are_read_in_panels(target: str) -> None:
    operands = [normal((2, 120, 70)), normal((2, 70, 1021), 1), normal((2, 1021, 70), 2)]
    mod, _ = scheduled(build(False), [(each.shape, "float32") for each in operands], target)
    assert any("_panels" in function.script() for _, function in mod.functions_items())
    result = evaluate(build(False), operands, target, "attention")
    np.testing.assert_allclose(result, exact(*operands), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", runnable())
def test_masked_keys_count_nothing(target: str) -> None:
    query, key, value = normal((1, 2, 9, 16)), normal((1, 2, 16, 21), 1), normal((1, 2, 21, 8), 2)
    mask = np.zeros((1, 1, 1, 21), "float32")
    mask[..., 13:] = -np.inf
    result = evaluate(build(True), [query, key, value, mask], target, "attention")
    np.testing.assert_allclose(result, exact(query, key[..., :13], value[..., :13, :]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", runnable())
def test_symbolic_sequences(target: str) -> None:
    n, m = tirx.Var("n", "int64"), tirx.Var("m", "int64")
    shapes = [((1, 2, n, 16), "float32"), ((1, 2, 16, m), "float32"), ((1, 2, m, 16), "float32")]
    mod, report = scheduled(build(False), shapes, target)
    assert report.kernels[0].rule == "attention"
    machine = virtual_machine(mod, target)
    for queries, keys in ((1, 1), (8, 32), (13, 50), (40, 17)):
        operands = [normal((1, 2, queries, 16)), normal((1, 2, 16, keys), 1), normal((1, 2, keys, 16), 2)]
        result = machine["main"](*[tvm.runtime.tensor(each) for each in operands]).numpy()
        np.testing.assert_allclose(result, exact(*operands), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", [*runnable(), "sapphire-rapids-simulated"])
@settings(max_examples=5, deadline=None)
@given(queries=st.sampled_from([16, 19, 33]), keys=EXTENTS, depth=EXTENTS, columns=EXTENTS, masked=st.booleans())
def test_bfloat16_operands(target: str, queries: int, keys: int, depth: int, columns: int, masked: bool) -> None:
    operands = [
        normal((2, 3, queries, depth)),
        normal((2, 3, depth, keys), 1),
        normal((2, 3, keys, columns), 2),
    ]
    if masked:
        operands.append(normal((2, 1, 1, keys), 3))
    result = evaluate(build(masked, "bfloat16"), operands, target, "attention")
    wanted = exact(*operands)
    # A bfloat16 keeps 8 bits: scores are off by some 2^-8 of the sum of their terms' sizes, results likewise.
    np.testing.assert_allclose(result, wanted, atol=0.06, rtol=0)
    assert np.sqrt(np.mean((result - wanted) ** 2)) < 0.008


HEADS_BEHIND = (0, 2, 1, 3)  # (batch, length, heads, size) to (batch, heads, length, size), and back
KEYS_LAST = (0, 2, 3, 1)


@pytest.mark.parametrize("target", [*runnable(), "sapphire-rapids-simulated"])
@settings(max_examples=5, deadline=None)
@given(
    queries=st.sampled_from([1, 16, 19, 33]),
    keys=EXTENTS,
    depth=st.sampled_from([1, 7, 16, 32, 64, 80]),
    columns=EXTENTS,
    operands=st.sampled_from(["float32", "bfloat16"]),
    sides=st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
)
def test_heads_behind_positions(
    target: str, queries: int, keys: int, depth: int, columns: int, operands: str, sides: tuple[bool, ...]
) -> None:
    """Operands and result in the order of dimensions that projections make, each or not."""
    given = [normal((2, 3, queries, depth)), normal((2, 3, depth, keys), 1), normal((2, 3, keys, columns), 2)]
    orders = [
        order if side else None
        for order, side in zip((HEADS_BEHIND, KEYS_LAST, HEADS_BEHIND, HEADS_BEHIND), sides, strict=True)
    ]
    stored = [
        each if order is None else np.ascontiguousarray(each.transpose(np.argsort(order)))
        for each, order in zip(given, orders[:3], strict=True)
    ]

    def compute(query: Any, key: Any, value: Any) -> Any:
        scale = tirx.FloatImm("float32", SCALE)
        return attention(query, key, value, lambda raw, at: raw * scale, operands=operands, orders=Orders(*orders))

    def make(builder: Any, *tensors: Any) -> Any:
        return builder.emit(
            builder.call_te(compute, *tensors, primfunc_name_hint="attention", primfunc_attrs={"op_pattern": 8})
        )

    result = evaluate(make, stored, target, "attention")
    wanted = exact(*given)
    wanted = wanted if orders[3] is None else wanted.transpose(orders[3])
    rtol, atol = (1e-4, 1e-5) if operands == "float32" else (0, 0.06)
    np.testing.assert_allclose(result, wanted, rtol=rtol, atol=atol)
