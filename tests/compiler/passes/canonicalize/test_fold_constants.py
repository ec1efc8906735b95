# mypy: disable-error-code="valid-type, no-untyped-def"
# ruff: noqa: N805
"""fold-constants: shapes, casts, arithmetic, tuples and kernels; never random or much larger values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.ir import GenericConst, IRModule
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from compiler.passes.rewriting.matching import array_of, as_constant, plain, static_shape
from tests.compiler.passes.building import Build, apply, operators, run_module


def folded(value: Any, *operands: Any) -> Any:
    """The constant that `value`, a call on constants, is folded to, or None."""
    build = Build()
    for operand in operands:
        build.emit(operand)
    mod = apply("fold-constants", build.module(build.emit(value)))
    result = mod["main"].body.blocks[0].bindings[-1].value.fields[0]
    return result if isinstance(result, GenericConst) else None


def const(*shape: int, dtype: str = "float32") -> Any:
    numbers = np.random.default_rng(3).standard_normal(shape) * 3
    return as_constant(numbers.astype(dtype))


O = relax.op  # noqa: E741
INDEX = as_constant(np.array([2, 0], "int64"))
CALLS = [
    O.add(const(3, 1), const(4)),
    O.divide(const(5), const(5)),
    O.divide(const(5, dtype="int32"), as_constant(np.full(5, -2, "int32"))),
    O.floor_divide(const(5, dtype="int32"), as_constant(np.full(5, -2, "int32"))),
    O.mod(const(5, dtype="int32"), as_constant(np.full(5, 2, "int32"))),
    O.power(const(3), as_constant(np.array(2, "float32"))),
    O.rsqrt(as_constant(np.array([4.0, 2.0], "float32"))),
    O.erf(const(4)),
    O.maximum(const(4), as_constant(np.array([np.nan, 1, 2, -9], "float32"))),
    O.where(as_constant(np.array([True, False])), const(2), as_constant(np.zeros(2, "float32"))),
    O.astype(const(4), "float16"),
    O.astype(const(4), "bfloat16"),
    O.astype(const(4), "int8"),
    O.astype(as_constant(np.array([1e20, -1e20], "float32")), "int32"),
    O.reshape(const(2, 6), (3, 4)),
    O.permute_dims(const(2, 3, 4), [2, 0, 1]),
    O.expand_dims(const(3), [0, 2]),
    O.squeeze(const(1, 3), [0]),
    O.broadcast_to(const(1, 3), (4, 3)),
    O.concat([const(2, 3), const(1, 3)], 0),
    O.stack([const(2, 3), const(2, 3)], 1),
    O.take(const(4, 3), INDEX, 0),
    O.strided_slice(const(6, 5), [0, 1], [1, -3], [6, 100], [2, 1]),
    O.strided_slice(const(6), [0], [5], [0], [-2]),
    O.sum(const(3, 4), [1], True),
    O.mean(const(3, 4)),
    O.max(const(3, 4), [0]),
    O.argmax(const(3, 4), 1),
    O.cumsum(const(3, 4), 1),
    O.full((2, 3), as_constant(np.array(2.5, "float32"))),
    O.zeros((2, 3), "int64"),
    O.arange(2, 11, 3, "int64"),
    O.shape_to_tensor(relax.ShapeExpr([4, 5])),
    O.matmul(const(3, 4), const(4, 5)),
    O.tile(const(2, 3), (2, 1)),
    O.repeat(const(2, 3), 2, 0),
    O.flip(const(2, 3), 1),
    O.one_hot(INDEX, relax.prim_value(1), relax.prim_value(0), 3),
    O.tril(const(4, 4)),
    O.nn.softmax(const(3, 4)),
    O.gather_elements(const(2, 3), as_constant(np.array([[1, 0, 1]], "int64")), 0),
    O.left_shift(INDEX, INDEX),
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: str(call.op.name))
def test_the_folded_value_is_what_the_engine_computes(call: Any) -> None:
    build = Build()
    expected = run_module(build.module(build.emit(call)))[0]
    constant = folded(call)
    assert constant is not None
    got = array_of(constant)
    assert got.dtype == expected.dtype
    # One rounding more or less: numpy and TVM sum and approximate in different orders.
    exact = got.dtype.kind in "iub"
    np.testing.assert_allclose(
        got.astype("float64"), expected.astype("float64"), rtol=0 if exact else 3e-6, atol=0 if exact else 1e-6
    )


def test_chains_fold_through_shapes_and_tuples() -> None:
    build = Build()
    x = build.input("x", ("n", 8))
    w = build.constant((4, 16))
    parts = build.emit(O.split(w, 2, 0))
    half = build.emit(relax.TupleGetItem(parts, 1))
    turned = build.emit(O.permute_dims(build.emit(O.reshape(half, (4, 8)))))
    out = build.emit(O.matmul(x, turned))
    shape = build.emit(O.shape_of(out))
    again = build.emit(O.tensor_to_shape(build.emit(O.shape_to_tensor(shape))))
    rows, columns = tvm.tirx.Var("rows", "int64"), tvm.tirx.Var("columns", "int64")
    build.match(again, relax.ShapeType([rows, columns]))
    result = build.emit(O.nn.relu(build.emit(O.reshape(out, relax.ShapeExpr([columns, rows])))))
    mod = apply("fold-constants", build.module(result))
    assert operators(mod) == ["matmul", "reshape", "nn.relu"]
    reshape = mod["main"].body.blocks[0].bindings[1].value
    n = mod["main"].params[0].ty.shape[0]
    assert static_shape(reshape.args[0]) is None
    assert [plain(size) for size in reshape.args[1].values] == [4, n]


@pytest.mark.parametrize(
    "call",
    [
        O.broadcast_to(const(1), (1 << 20,)),
        O.full((1 << 20,), as_constant(np.array(1, "float32"))),
        O.nn.dropout(const(4)),
    ],
    ids=["broadcast", "full", "dropout"],
)
def test_nothing_grows_and_nothing_random_is_folded(call: Any) -> None:
    build = Build()
    value = build.emit(call)
    if isinstance(value.ty, relax.TupleType):
        value = build.emit(relax.TupleGetItem(value, 0))
    name = str(call.op.name).removeprefix("relax.")
    assert operators(apply("fold-constants", build.module(value))) == [name]


@pytest.mark.parametrize("quantized", [True, False])
def test_narrow_weights_stay_where_they_are_multiplied_or_activations_are_narrow_too(quantized: bool) -> None:
    build = Build()
    x = build.input("x", (2, 64))
    scale, zero = as_constant(np.array(0.5, "float32")), as_constant(np.array(1, "int8"))
    w = as_constant(np.arange(64 * 64).reshape(64, 64).astype("int8"))
    if quantized:
        x = build.emit(O.dequantize(build.emit(O.quantize(x, scale, zero, 0, "int8")), scale, zero, 0))
    weight = build.emit(O.dequantize(w, scale, zero, 0))
    wide = build.emit(O.astype(build.emit(O.astype(w, "int32")), "float32"))
    few = build.emit(O.astype(as_constant(np.ones(64, "int8")), "float32"))
    value = build.emit(O.matmul(build.emit(O.matmul(x, weight)), wide))
    mod = build.module(build.emit(O.add(value, few)))
    kept = ["quantize", "dequantize", "dequantize", "astype", "astype"] if quantized else ["dequantize"]
    after = apply("fold-constants", mod)
    assert sorted(operators(after)) == sorted([*kept, "matmul", "matmul", "add"])
    folded_all = apply("fold-dequantize", mod)
    assert operators(folded_all) == (["quantize", "dequantize"] if quantized else []) + ["matmul", "matmul", "add"]
    data = np.random.default_rng(0).standard_normal((2, 64)).astype("float32")
    for each in (after, folded_all):
        np.testing.assert_allclose(run_module(each, data)[0], run_module(mod, data)[0], rtol=1e-5)


def test_elementary_functions_are_rounded_once() -> None:
    x = np.linspace(0.01, 9, 2000, dtype="float32")
    for name in ("exp", "log", "sin", "cos", "tanh"):
        expected = getattr(np, name)(x.astype("float64")).astype("float32")
        np.testing.assert_array_equal(array_of(folded(getattr(relax.op, name)(as_constant(x)))), expected)


def test_branches_private_functions_and_kernels() -> None:
    w = as_constant(np.arange(4, dtype="float32"))

    @I.ir_module
    class Before:
        @T.prim_func(private=True, s_tir=True)
        def double(a: T.Buffer((4,), "float32"), b: T.Buffer((4,), "float32")):
            for i in range(4):
                with T.sblock("b"):
                    v = T.axis.spatial(4, i)
                    b[v] = a[v] * T.float32(2)

        @R.function(private=True)
        def body(c: R.Tensor((), "bool"), x: R.Tensor((4,), "float32")) -> R.Tensor((4,), "float32"):
            if c:
                y = R.add(x, R.exp(w))
                r = y
            else:
                r = x
            return r

        @R.function
        def main(c: R.Tensor((), "bool"), x: R.Tensor((4,), "float32")) -> R.Tuple(R.Tensor((4,), "float32")):
            cls = Before
            with R.dataflow():
                k = R.call_tir(cls.double, (w,), out_ty=R.Tensor((4,), "float32"))
                y = R.add(x, k)
                z = cls.body(c, y)
                gv = (z,)
                R.output(gv)
            return gv

    mod: IRModule = Before
    after = apply("fold-constants", mod)
    assert sorted(operators(after)) == ["add", "add"]
    x = np.ones(4, "float32")
    for flag in (True, False):
        np.testing.assert_allclose(
            run_module(after, np.array(flag), x)[0], run_module(mod, np.array(flag), x)[0], rtol=1e-6
        )


def test_a_module_without_constants_stays_the_same_object() -> None:
    build = Build()
    x = build.input("x", (2, 3))
    mod = build.module(build.emit(O.nn.relu(x)))
    assert apply("fold-constants", mod).same_as(mod)


def test_sums_of_weights_that_stay_narrow_are_folded() -> None:
    """The zero point of data adds a sum of each column of the weights to a product of integers."""
    weights = np.random.default_rng(0).integers(-128, 128, (300, 400)).astype(np.int8)
    x = relax.Var("x", relax.TensorType((4, 300), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            data = builder.emit(O.astype(x, "uint8"))
            wide = builder.emit(O.astype(relax.const(weights), "int32"))
            sums = builder.emit(O.sum(wide, axis=[-2], keepdims=True))
            product = builder.emit(O.matmul(data, relax.const(weights), out_dtype="int32"))
            output = builder.emit_output(O.add(product, sums))
        builder.emit_func_output(output)
    mod = apply("fold-constants", builder.get())
    assert operators(mod) == ["astype", "matmul", "add"]
    found = mod["main"].body.blocks[0].bindings[-1].value.args[1]
    np.testing.assert_array_equal(array_of(found), weights.astype(np.int32).sum(0, keepdims=True))
