"""The fallback on every kind of kernel: any shape, any dtype, against numpy."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax, te
from tvm.script import tirx as T

from schedules.ir.expression import substitute
from schedules.ir.inline import call_name
from schedules.ir.stages import Kernel
from schedules.ir.tir import structural_walk, tirx, tvm
from schedules.machine import Machine
from schedules.selection.apply import apply_schedules
from tests.schedules.harness import evaluate, normal, run, runnable, scheduled, target_of, virtual_machine

op = relax.op
SIZES = st.sampled_from([1, 2, 3, 7, 8, 15, 16, 17, 33, 61])
SHAPES = st.lists(SIZES, min_size=1, max_size=4).filter(lambda shape: np.prod(shape) < 40000)
TARGETS = runnable()


def one(function: Callable[..., Any]) -> Callable[..., Any]:
    """A builder of a single operator."""
    return lambda builder, *inputs: builder.emit(function(*inputs))


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=6, deadline=None)
@given(shape=SHAPES, data=st.data())
def test_broadcast_chains(target: str, shape: list[int], data: st.DataObject) -> None:
    other = [size if data.draw(st.booleans()) else 1 for size in shape]
    x, y = normal(shape), normal(other, 1)

    def build(builder: Any, x: Any, y: Any) -> Any:
        total = builder.emit(op.add(x, y))
        return builder.emit(op.multiply(builder.emit(op.nn.relu(total)), total))

    total = x + y
    np.testing.assert_array_equal(evaluate(build, [x, y], target), np.maximum(total, 0) * total)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=6, deadline=None)
@given(shape=SHAPES, data=st.data(), name=st.sampled_from(["sum", "max", "min", "mean", "prod"]))
def test_reductions(target: str, shape: list[int], data: st.DataObject, name: str) -> None:
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
    keep = data.draw(st.booleans())
    x = np.clip(normal(shape), -1.2, 1.2) if name == "prod" else normal(shape)
    result = evaluate(one(lambda x: getattr(op, name)(x, axes, keepdims=keep)), [x], target)
    expected = getattr(np, name)(x.astype("float64"), tuple(axes), keepdims=keep)
    count = x.size / max(expected.size, 1)
    np.testing.assert_allclose(result, expected, rtol=2e-6 * count**0.5 + 1e-5, atol=1e-6 * count)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("columns", [3, 20, 70, 131])
def test_few_sums_of_many_elements_stay_within_their_buffer(target: str, columns: int) -> None:
    """Enough work for several threads, and fewer results than one thread would hold in registers."""
    mod, _ = scheduled(one(lambda x: op.sum(x, [0])), [((33001, columns), "float32")], target)
    analyzer = tvm.sym.Analyzer()
    stores: list[tuple[int, int]] = []

    def bind(loop: Any) -> None:
        analyzer.bind(loop.loop_var, tvm.ir.Range(loop.min, loop.min + loop.extent))

    def visit(store: Any) -> None:
        point = store.indices[0]
        if call_name(store.value) == "tensorwright.masked_value":
            lane, valid = store.value.args[1].args
            point = substitute(point, {lane: valid - 1})
        bound = int(analyzer.const_int_bound(point).max_value)
        stores.append((bound, int(store.buffer.ty.shape[0])))

    structural_walk(mod["sum"].body, (tirx.For, bind))
    structural_walk(mod["sum"].body, (tirx.BufferStore, visit))
    assert stores
    assert all(index < size for index, size in stores), stores
    x = normal((33001, columns))
    np.testing.assert_allclose(run(mod, target, [x]), x.astype("float64").sum(0), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=5, deadline=None)
@given(shape=SHAPES, data=st.data())
def test_softmax_along_any_axis(target: str, shape: list[int], data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    x = 10 * normal(shape)
    shifted = np.exp(x.astype("float64") - x.max(axis, keepdims=True))
    expected = shifted / shifted.sum(axis, keepdims=True)
    result = evaluate(one(lambda x: op.nn.softmax(x, axis)), [x], target)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=4, deadline=None)
@given(rows=SIZES, columns=SIZES)
def test_layer_norm(target: str, rows: int, columns: int) -> None:
    x, gamma, beta = normal((2, rows, columns)), normal((columns,), 1), normal((columns,), 2)
    exact = x.astype("float64")
    scaled = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-5)
    result = evaluate(one(lambda x, g, b: op.nn.layer_norm(x, g, b, axes=[-1])), [x, gamma, beta], target)
    np.testing.assert_allclose(result, scaled * gamma + beta, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=6, deadline=None)
@given(shape=SHAPES, data=st.data())
def test_transposes(target: str, shape: list[int], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(shape))))
    x = normal(shape)
    result = evaluate(one(lambda x: op.permute_dims(x, list(order))), [x], target)
    np.testing.assert_array_equal(result, x.transpose(order))


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=5, deadline=None)
@given(sizes=st.lists(SIZES, min_size=2, max_size=4), axis=st.integers(0, 2))
def test_concatenation(target: str, sizes: list[int], axis: int) -> None:
    parts = [normal([size if i == axis else 5 for i in range(3)], seed) for seed, size in enumerate(sizes)]
    result = evaluate(one(lambda *parts: op.concat(list(parts), axis)), parts, target)
    np.testing.assert_array_equal(result, np.concatenate(parts, axis))


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=4, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=2, max_size=5), axis=st.integers(1, 3), rows=st.integers(60, 73))
def test_parts_of_a_large_concatenation_share_one_parallel_loop(
    target: str, sizes: list[int], axis: int, rows: int
) -> None:
    shapes = [[1, rows, rows + 1, 17] for _ in sizes]
    for shape, size in zip(shapes, sizes, strict=True):
        shape[axis] = size
    parts = [normal(shape, seed) for seed, shape in enumerate(shapes)]

    def build(builder: Any, *inputs: Any) -> Any:
        return builder.emit(op.nn.relu(builder.emit(op.concat(list(inputs), axis))))

    mod, _ = scheduled(build, [(shape, "float32") for shape in shapes], target)
    large = sum(sizes) * parts[0].size // sizes[0] > 50_000
    assert str(mod.script()).count("T.parallel") == 1 or not large
    result = run(mod, target, parts)
    np.testing.assert_array_equal(result, np.maximum(np.concatenate(parts, axis), 0))


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=5, deadline=None)
@given(shape=st.tuples(SIZES, SIZES), before=st.tuples(st.integers(0, 3), st.integers(0, 3)), after=st.integers(0, 3))
def test_padding(target: str, shape: tuple[int, int], before: tuple[int, int], after: int) -> None:
    x = normal(shape)
    width = [before[0], after, before[1], after]
    result = evaluate(one(lambda x: op.nn.pad(x, width, pad_value=2.5)), [x], target)
    expected = np.pad(x, ((before[0], after), (before[1], after)), constant_values=2.5)
    np.testing.assert_array_equal(result, expected)


DTYPES = ["float16", "float64", "int8", "uint8", "int32", "int64", "bool"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_and_conversions(target: str, dtype: str) -> None:
    x = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 50, (5, 37)).astype(dtype)
    y = evaluate(one(lambda x: op.astype(x, "float32")), [x], target)
    np.testing.assert_array_equal(y, x.astype("float32"))
    back = evaluate(one(lambda x: op.astype(x, dtype)), [y], target)
    np.testing.assert_array_equal(back, x)
    if dtype != "bool":
        np.testing.assert_array_equal(evaluate(one(lambda x: op.add(x, x)), [x], target), x + x)
        np.testing.assert_array_equal(evaluate(one(lambda x: op.max(x, [1])), [x], target), x.max(1))


@pytest.mark.parametrize("target", TARGETS)
def test_gathering_and_searching(target: str) -> None:
    x = normal((19, 37))
    at = np.random.default_rng(0).integers(0, 19, (4, 5))
    np.testing.assert_array_equal(evaluate(one(lambda x, i: op.take(x, i, 0)), [x, at], target), x[at])
    np.testing.assert_array_equal(evaluate(one(lambda x: op.argmax(x, 1)), [x], target), x.argmax(1))
    np.testing.assert_array_equal(evaluate(one(lambda x, y: op.where(op.greater(x, y), x, y)), [x, -x], target), abs(x))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4, 5)])
def test_nothing_to_do(target: str, shape: tuple[int, ...]) -> None:
    x = normal(shape)
    assert evaluate(one(op.nn.relu), [x], target).shape == shape
    empty_axis = shape.index(0)
    result = evaluate(one(lambda x: op.sum(x, [empty_axis])), [x], target)
    np.testing.assert_array_equal(result, x.sum(empty_axis))


@pytest.mark.parametrize("target", TARGETS)
def test_symbolic_shapes(target: str) -> None:
    n, m = tirx.Var("n", "int64"), tirx.Var("m", "int64")

    def build(builder: Any, x: Any, g: Any) -> Any:
        soft = builder.emit(op.nn.softmax(builder.emit(op.nn.gelu(x)), -1))
        return builder.emit(op.nn.rms_norm(soft, g, axes=[-1]))

    mod, _ = scheduled(build, [((2, n, m), "float32"), ((m,), "float32")], target)
    machine = virtual_machine(mod, target)
    for rows, columns in ((1, 1), (5, 7), (3, 64), (2, 131), (0, 3)):
        x, gamma = normal((2, rows, columns)), normal((columns,), 1)
        static = evaluate(build, [x, gamma], target) if rows else np.zeros((2, 0, columns), "float32")
        result = machine["main"](tvm.runtime.tensor(x), tvm.runtime.tensor(gamma)).numpy()
        np.testing.assert_allclose(result, static, rtol=1e-4, atol=1e-6)


@T.prim_func(private=True, s_tir=True)
def opaque(a: T.Buffer((8,), "float32"), b: T.Buffer((8,), "float32")) -> None:  # type: ignore[valid-type]
    for i in range(8):
        if a[i] > T.float32(0):
            b[i] = a[i]
        else:
            b[i] = T.float32(-1)


def test_opaque_code_is_left_as_it_is() -> None:
    mod, report = apply_schedules(tvm.IRModule({"opaque": opaque}), target_of(TARGETS[0]).machine)
    assert report.kernels[0].source == "as-is"
    assert not report.failures
    assert not Kernel.of(mod["opaque"]).is_plain


def test_equal_kernels_are_scheduled_once() -> None:
    def build(builder: Any, x: Any) -> Any:
        return builder.emit(op.nn.softmax(builder.emit(op.nn.softmax(x, -1)), -1))

    shape = ((4, 9), "float32")
    mod, report = scheduled(build, [shape], TARGETS[0])
    copy = mod["softmax"]
    twice = tvm.IRModule({"a": copy.without_attr("tirx.is_scheduled"), "b": copy.without_attr("tirx.is_scheduled")})
    _, report = apply_schedules(twice, target_of(TARGETS[0]).machine)
    assert [kernel.same_as for kernel in report.kernels] == [None, "a"]


def test_kernels_whose_symbolic_sizes_have_other_names_are_scheduled_once() -> None:
    def doubled(size: str) -> Any:
        x = te.placeholder((tvm.tirx.Var(size, "int64"), 9), "float32", name=f"{size}_rows")
        return te.create_prim_func([x, te.compute(x.shape, lambda i, j: x[i, j] * 2.0, name="twice")])

    mod, report = apply_schedules(tvm.IRModule({"a": doubled("n"), "b": doubled("m")}), target_of(TARGETS[0]).machine)
    assert [kernel.same_as for kernel in report.kernels] == [None, "a"]
    assert not mod["a"].params[0].same_as(mod["b"].params[0])


def test_a_guarded_transpose_reads_nothing_beyond_its_source() -> None:
    """Three channels become a block of four; what lies behind the third may be nobody's memory."""
    data = te.placeholder((1, 3, 16, 16), "float32", name="data")
    zero = tirx.const(0, "float32")
    packed = te.compute(
        (1, 1, 16, 16, 4), lambda n, b, y, x, c: tirx.if_then_else(b * 4 + c < 3, data[n, b * 4 + c, y, x], zero)
    )
    function = te.create_prim_func([data, packed]).with_attr("global_symbol", "main")
    scheduled, _ = apply_schedules(tvm.IRModule({"main": function}), Machine(vector_bits=128))
    analyzer = tvm.sym.Analyzer()
    largest: list[int] = []

    def bind(loop: Any) -> None:
        analyzer.bind(loop.loop_var, tvm.ir.Range(loop.min, loop.min + loop.extent))

    def visit(load: Any) -> None:
        if str(load.source.name) == "data":
            sized = zip((1, 3, 16, 16), load.indices, strict=True)
            flat = reduce(lambda total, each: total * each[0] + each[1], sized, 0)
            largest.append(int(analyzer.const_int_bound(flat).max_value))

    structural_walk(scheduled["main"].body, (tirx.For, bind))
    structural_walk(scheduled["main"].body, (tvm.ir.TensorLoad, visit))
    assert max(largest) == 3 * 16 * 16 - 1
