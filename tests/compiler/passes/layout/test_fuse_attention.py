"""fuse-attention: recognized and unrecognized patterns, and their results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from compiler.passes.context import PassOptions, PipelineContext
from compiler.passes.layout.fuse_attention import fuse_attention
from schedules import apply_schedules
from schedules.attention.cache.call import cached_attention
from schedules.attention.cache.description import ATTRIBUTE, parse
from schedules.machine import Machine
from tests.compiler.passes.building import operators, run_module
from tests.unoptimized import unoptimized_machine

op = relax.op
CONTEXT = PipelineContext(machine=Machine(vector_bits=256))
SHAPES = {"q": (2, 3, 5, 8), "k": (2, 3, 8, 7), "v": (2, 3, 7, 6), "m": (2, 1, 1, 7)}


def build(*, scale: str = "multiply", mask: bool = True, axis: int = -1, keep: bool = False) -> tvm.IRModule:
    builder = relax.BlockBuilder()
    q, k, v, m = (relax.Var(name, relax.TensorType(list(shape), "float32")) for name, shape in SHAPES.items())
    with builder.function("main", [q, k, v, m]):
        with builder.dataflow():
            scores = builder.emit(op.matmul(q, k))
            if scale:
                scores = builder.emit(getattr(op, scale)(scores, relax.const(3.0, "float32")))
            if mask:
                scores = builder.emit(op.add(m, scores))
            weights = builder.emit(op.nn.softmax(scores, axis))
            result = builder.emit(op.matmul(weights, v))
            output = builder.emit_output(relax.Tuple([result, weights]) if keep else result)
        builder.emit_func_output(output)
    return builder.get()


def run(mod: tvm.IRModule, operands: list[Any] | None = None) -> Any:
    operands = operands or [
        np.random.default_rng(i).standard_normal(shape, dtype="float32") for i, shape in enumerate(SHAPES.values())
    ]
    return unoptimized_machine(mod)["main"](*map(tvm.runtime.tensor, operands)).numpy()


def kernels(mod: tvm.IRModule) -> list[str]:
    return [var.name_hint for var, function in mod.functions_items() if not isinstance(function, relax.Function)]


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_attention_over_a_cache_may_round_its_products_in_bf16(precision: str) -> None:
    builder = relax.BlockBuilder()
    sizes = {"q": (1, 20, 4, 8), "k": (1, 2, 20, 8), "v": (1, 2, 20, 8)}
    operands = [relax.Var(name, relax.TensorType(list(shape), "float32")) for name, shape in sizes.items()]
    with builder.function("main", operands):
        builder.emit_func_output(builder.emit(cached_attention(builder, *operands)))
    machine = Machine(features=frozenset({"avx512bf16"}))
    after = fuse_attention(builder.get(), PipelineContext(machine=machine, options=PassOptions(precision=precision)))
    [text] = [str(each.attrs[ATTRIBUTE]) for each in after.functions.values() if ATTRIBUTE in (each.attrs or {})]
    assert parse(text).rounds == (precision == "bf16")


@pytest.mark.parametrize("scale", ["", "multiply", "divide"])
@pytest.mark.parametrize("mask", [False, True])
def test_attention_becomes_one_kernel(scale: str, mask: bool) -> None:
    before = build(scale=scale, mask=mask)
    after = fuse_attention(before, CONTEXT)
    assert kernels(after) == ["attention"]
    np.testing.assert_allclose(run(after), run(before), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("precision", "features", "rounds"),
    [("bf16", ("avx512bf16",), True), ("bf16", (), False), ("float32", ("avx512bf16",), False)],
)
def test_products_may_round_where_bfloat16_is_fast_and_asked_for(
    precision: str, features: tuple[str, ...], rounds: bool
) -> None:
    machine = Machine(vector_bits=512, features=frozenset(features))
    after = fuse_attention(build(), PipelineContext(machine=machine, options=PassOptions(precision)))
    assert ("bfloat16" in after["attention"].script()) is rounds


def guarded(*, keep: bool = False) -> tvm.IRModule:
    """As torch exports it: rows in which every key is masked have weights of 0 instead of NaN."""
    builder = relax.BlockBuilder()
    q, k, v, m = (relax.Var(name, relax.TensorType(list(shape), "float32")) for name, shape in SHAPES.items())
    with builder.function("main", [q, k, v, m]):
        with builder.dataflow():
            scores = builder.emit(op.add(builder.emit(op.matmul(q, k)), m))
            weights = builder.emit(op.nn.softmax(scores))
            undefined = builder.emit(op.isnan(weights))
            safe = builder.emit(op.where(undefined, relax.const(0.0, "float32"), weights))
            result = builder.emit(op.matmul(safe, v))
            output = builder.emit_output(relax.Tuple([result, weights]) if keep else result)
        builder.emit_func_output(output)
    return builder.get()


def test_a_guard_against_nan_is_part_of_it() -> None:
    before, machine = guarded(), Machine(vector_bits=256)
    after = fuse_attention(before, CONTEXT)
    assert kernels(after) == ["attention"]
    scheduled, _ = apply_schedules(relax.transform.LegalizeOps()(after), machine)
    mask = np.zeros(SHAPES["m"], "float32")
    mask[0] = -np.inf  # every key of the first batch
    operands = [
        np.random.default_rng(i).standard_normal(shape, dtype="float32") for i, shape in enumerate(SHAPES.values())
    ]
    operands[0][1, 0, 2, :] = np.nan
    operands[3] = mask
    expected = run(before, operands)
    assert not expected[0].any()
    for each in (after, scheduled):
        np.testing.assert_allclose(run(each, operands), expected, rtol=1e-5, atol=1e-6)


def test_guarded_weights_that_are_read_elsewhere_stay() -> None:
    assert kernels(fuse_attention(guarded(keep=True), CONTEXT)) == []


def test_weights_that_are_read_elsewhere_stay() -> None:
    before = build(keep=True)
    assert fuse_attention(before, CONTEXT) is before


def test_softmax_over_queries_is_not_attention() -> None:
    before = build(axis=2)
    assert fuse_attention(before, CONTEXT) is before


def test_nothing_happens_without_a_machine() -> None:
    before = build()
    assert fuse_attention(before, PipelineContext()) is before


def with_heads(leading: tuple[int, ...], *, ones: bool) -> tvm.IRModule:
    """Heads taken out of projections (batch, length, heads, size) and put behind positions again, as exporters write
    it; `ones`: by way of (length, heads, size), with a batch of 1 added around the products as torch does."""
    builder = relax.BlockBuilder()
    length, heads, size = 9, 3, 8
    shape = (*leading, length, heads, size)
    q, k, v = (relax.Var(name, relax.TensorType(list(shape), "float32")) for name in "qkv")
    rank = len(shape)
    order = [*range(rank - 3), rank - 2, rank - 3, rank - 1]
    batched = [1, heads, length, size]

    def emit(value: Any) -> Any:
        return builder.emit(value)

    def taken(x: Any) -> Any:
        moved = emit(op.permute_dims(x, order))
        return emit(op.reshape(moved, batched)) if ones else moved

    with builder.function("main", [q, k, v]):
        with builder.dataflow():
            keys = emit(op.permute_dims(k, [*range(rank - 3), rank - 2, rank - 1, rank - 3]))
            keys = emit(op.reshape(keys, [1, heads, size, length])) if ones else keys
            weights = emit(op.nn.softmax(emit(op.matmul(taken(q), keys))))
            result = emit(op.matmul(weights, taken(v)))
            result = emit(op.permute_dims(result, [2, 0, 1, 3] if ones else order))
            output = builder.emit_output(op.reshape(result, [length * int(np.prod(leading, dtype=int)), heads * size]))
        builder.emit_func_output(output)
    return builder.get()


@pytest.mark.parametrize(("leading", "ones"), [((2,), False), ((1,), False), ((), True), ((2, 2), False)])
def test_transposes_around_it_are_part_of_it(leading: tuple[int, ...], ones: bool) -> None:
    before = with_heads(leading, ones=ones)
    after = fuse_attention(before, CONTEXT)
    assert kernels(after) == ["attention"]
    names = operators(after)
    assert "permute_dims" not in names
    assert names.count("reshape") <= 4
    shape = (*leading, 9, 3, 8)
    operands = [np.random.default_rng(i).standard_normal(shape, dtype="float32") for i in range(3)]
    scheduled, _ = apply_schedules(relax.transform.LegalizeOps()(after), Machine(vector_bits=256))
    for each in (after, scheduled):
        np.testing.assert_allclose(run(each, operands), run(before, operands), rtol=1e-5, atol=1e-6)


def test_a_transpose_that_others_read_stays() -> None:
    builder = relax.BlockBuilder()
    q, k, v = (relax.Var(name, relax.TensorType([2, 9, 3, 8], "float32")) for name in "qkv")
    with builder.function("main", [q, k, v]):
        with builder.dataflow():
            query, value = (builder.emit(op.permute_dims(each, [0, 2, 1, 3])) for each in (q, v))
            key = builder.emit(op.permute_dims(k, [0, 2, 3, 1]))
            weights = builder.emit(op.nn.softmax(builder.emit(op.matmul(query, key))))
            result = builder.emit(op.matmul(weights, value))
            moved = builder.emit(op.permute_dims(result, [0, 2, 1, 3]))
            output = builder.emit_output(relax.Tuple([result, moved, query]))
        builder.emit_func_output(output)
    before = builder.get()
    after = fuse_attention(before, CONTEXT)
    assert kernels(after) == ["attention"]
    assert operators(after).count("permute_dims") == 2
    operands = [np.random.default_rng(i).standard_normal((2, 9, 3, 8), dtype="float32") for i in range(3)]
    for got, expected in zip(run_module(after, *operands), run_module(before, *operands), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
