# mypy: disable-error-code="valid-type, no-untyped-def"
# ruff: noqa: N805
"""fold-batch-norm: every kind of convolution and product, on both sides, and cases where it must not apply."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from compiler.passes.rewriting.matching import as_constant
from tests.compiler.passes.building import Build, apply, operators, run_module

op = relax.op
# kind: (input shape, weight shape, channels of the output, the operator)
KINDS: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, Any]] = {
    "conv1d": ((2, 4, 9), (6, 4, 3), 6, lambda x, w: op.nn.conv1d(x, w)),
    "conv2d": ((1, 4, 6, 7), (6, 4, 3, 2), 6, lambda x, w: op.nn.conv2d(x, w, strides=2)),
    "conv3d": ((1, 2, 4, 5, 4), (3, 2, 2, 2, 2), 3, lambda x, w: op.nn.conv3d(x, w)),
    "grouped": ((1, 6, 5, 5), (4, 3, 2, 2), 4, lambda x, w: op.nn.conv2d(x, w, groups=2)),
    "depthwise": ((1, 4, 5, 5), (8, 1, 3, 3), 8, lambda x, w: op.nn.conv2d(x, w, groups=4)),
    "nhwc": (
        (1, 5, 6, 4),
        (3, 3, 4, 6),
        6,
        lambda x, w: op.nn.conv2d(x, w, data_layout="NHWC", kernel_layout="HWIO"),
    ),
    "transposed": ((1, 4, 3, 3), (4, 5, 2, 2), 5, lambda x, w: op.nn.conv2d_transpose(x, w, strides=2)),
    "transposed grouped": ((1, 4, 3, 3), (4, 3, 2, 2), 6, lambda x, w: op.nn.conv2d_transpose(x, w, groups=2)),
    "transposed 1d": ((1, 4, 5), (4, 3, 3), 3, lambda x, w: op.nn.conv1d_transpose(x, w)),
    "matmul": ((2, 3, 4), (4, 5), 5, op.matmul),
    "batched matmul": ((3, 4), (2, 4, 5), 5, op.matmul),
    "left matmul": ((4, 3), (5, 4), 5, lambda x, w: op.matmul(w, x)),
}


def spread(kind: str, vector: np.ndarray, side: str) -> Any:
    """A vector over channels as a constant that broadcasts against the input or the output."""
    rank = len(KINDS[kind][0])
    if kind in ("matmul", "batched matmul", "nhwc"):
        trailing = 0
    elif kind == "left matmul":
        trailing = 1
    else:
        trailing = rank - 2
    del side
    return as_constant(vector.reshape([-1] + [1] * trailing).astype("float32"))


def in_channels(kind: str) -> int:
    shape = KINDS[kind][0]
    return {"matmul": shape[-1], "batched matmul": shape[-1], "nhwc": shape[-1], "left matmul": shape[-2]}.get(
        kind, shape[1]
    )


def same_numbers(after: tvm.IRModule, before: tvm.IRModule, *shapes: tuple[int, ...]) -> None:
    random = np.random.default_rng(5)
    inputs = [random.standard_normal(shape).astype("float32") for shape in shapes]
    for got, expected in zip(run_module(after, *inputs), run_module(before, *inputs), strict=True):
        # Rounding of the folded weights, over sums of fewer than 100 terms of magnitude about 1.
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_scale_and_bias_after(kind: str) -> None:
    shape, weight, channels, linear = KINDS[kind]
    build = Build()
    random = build.random
    x = build.input("x", shape)
    y = build.emit(linear(x, build.constant(weight)))
    y = build.emit(op.add(y, spread(kind, random.standard_normal(channels), "out")))
    y = build.emit(op.multiply(spread(kind, random.standard_normal(channels), "out"), y))
    y = build.emit(op.divide(y, spread(kind, 0.5 + random.random(channels), "out")))
    mod = build.module(y)
    after = apply("fold-batch-norm", mod)
    assert [name.split(".")[-1] for name in operators(after)][1:] == ["add"]
    assert len(operators(after)) == 2
    same_numbers(after, mod, shape)


@pytest.mark.parametrize("kind", KINDS)
def test_scale_and_offset_before(kind: str) -> None:
    shape, weight, _, linear = KINDS[kind]
    build = Build()
    x = build.input("x", shape)
    count = in_channels(kind)
    y = build.emit(op.multiply(x, spread(kind, build.random.standard_normal(count), "in")))
    y = build.emit(op.subtract(y, spread(kind, build.random.standard_normal(count), "in")))
    mod = build.module(build.emit(linear(y, build.constant(weight))))
    after = apply("fold-batch-norm", mod)
    if "transposed" in kind or kind == "batched matmul":  # the offset's part is not one number a channel
        assert len(operators(after)) == 3
    else:
        assert [name.split(".")[-1] for name in operators(after)][1:] == ["add"]
    same_numbers(after, mod, shape)


def batch_norm(build: Build, x: Any, channels: int, *, training: bool = False) -> Any:
    constants = [build.constant((channels,)) for _ in range(3)]
    variance = as_constant((0.5 + build.random.random(channels)).astype("float32"))
    return build.emit(op.nn.batch_norm(x, *constants, variance, axis=1, training=training))


def test_batch_norm_after_a_convolution_goes_into_it() -> None:
    build = Build()
    x = build.input("x", (2, 3, 8, 8))
    y = build.emit(op.nn.conv2d(x, build.constant((4, 3, 3, 3)), padding=1))
    norm = batch_norm(build, y, 4)
    mod = build.module(build.emit(relax.TupleGetItem(norm, 0)), build.emit(relax.TupleGetItem(norm, 1)))
    after = apply("fold-batch-norm", mod)
    assert operators(after) == ["nn.conv2d", "add"]
    same_numbers(after, mod, (2, 3, 8, 8))


def test_batch_norm_before_a_padded_convolution_keeps_its_offset() -> None:
    build = Build()
    x = build.input("x", (2, 3, 8, 8))
    y = build.emit(relax.TupleGetItem(batch_norm(build, x, 3), 0))
    mod = build.module(build.emit(op.nn.conv2d(y, build.constant((4, 3, 3, 3)), padding=1)))
    after = apply("fold-batch-norm", mod)
    assert operators(after) == ["multiply", "add", "nn.conv2d"]
    same_numbers(after, mod, (2, 3, 8, 8))


def test_batch_norm_in_training_stays() -> None:
    build = Build()
    x = build.input("x", (2, 3, 8, 8))
    mod = build.module(build.emit(relax.TupleGetItem(batch_norm(build, x, 3, training=True), 0)))
    assert apply("fold-batch-norm", mod).same_as(mod)


@pytest.mark.parametrize("shared", ["linear", "bias", "before"])
def test_nothing_is_folded_when_what_is_between_has_another_consumer(shared: str) -> None:
    build = Build()
    x = build.input("x", (2, 4))
    scale = build.constant((4,))
    if shared == "before":
        y = build.emit(op.multiply(x, scale))
        mod = build.module(build.emit(op.matmul(y, build.constant((4, 4)))), y)
    else:
        y = build.emit(op.matmul(x, build.constant((4, 4))))
        z = build.emit(op.add(y, build.constant((4,)))) if shared == "bias" else y
        mod = build.module(build.emit(op.multiply(z, scale)), z)
    assert apply("fold-batch-norm", mod).same_as(mod)


def test_no_channel_vector_no_fold() -> None:
    build = Build()
    x = build.input("x", (4, 4))
    y = build.emit(op.matmul(x, build.constant((4, 4))))
    by_rows = build.emit(op.multiply(y, build.constant((4, 1))))
    z = build.emit(op.matmul(x, build.constant((4, 4))))
    wider = build.emit(op.multiply(z, build.constant((2, 1, 4))))
    weight_that_overflows = as_constant(np.full((4, 4), 1e30, "float32"))
    v = build.emit(op.matmul(x, weight_that_overflows))
    huge = build.emit(op.multiply(v, as_constant(np.array(1e30, "float32"))))
    u = build.emit(op.multiply(build.input("one", (4, 1)), build.constant((4,))))  # broadcasts the data
    broadcast = build.emit(op.matmul(u, build.constant((4, 4))))
    mod = build.module(by_rows, wider, huge, broadcast)
    assert apply("fold-batch-norm", mod).same_as(mod)


W = as_constant(np.arange(6, dtype="float32").reshape(2, 3))
S = as_constant(np.array([1, 2, 4], "float32"))
WS = as_constant(np.arange(6, dtype="float32").reshape(2, 3) * np.array([1, 2, 4], "float32"))


def test_before_and_expected_with_a_symbolic_batch_in_a_branch() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor(("n", 2), "float32"), c: R.Tensor((), "bool")) -> R.Tensor(("n", 3), "float32"):
            if c:
                y = R.matmul(x, W)
                z = R.multiply(y, S)
                r = z
            else:
                u = R.matmul(x, W)
                r = u
            return r

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor(("n", 2), "float32"), c: R.Tensor((), "bool")) -> R.Tensor(("n", 3), "float32"):
            if c:
                z = R.matmul(x, WS)
                r = z
            else:
                u = R.matmul(x, W)
                r = u
            return r

    tvm.ir.assert_structural_equal(apply("fold-batch-norm", Before), Expected)


@settings(max_examples=5, deadline=None)
@given(
    channels=st.integers(1, 9),
    inner=st.integers(1, 9),
    rows=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_against_numpy_on_random_shapes(channels: int, inner: int, rows: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    w, s, t = random.standard_normal((inner, channels)), random.standard_normal(inner), random.standard_normal(channels)
    build = Build()
    x = build.input("x", (rows, inner))
    y = build.emit(op.multiply(x, as_constant(s.astype("float32"))))
    y = build.emit(op.matmul(y, as_constant(w.astype("float32"))))
    after = apply("fold-batch-norm", build.module(build.emit(op.multiply(y, as_constant(t.astype("float32"))))))
    assert operators(after) == ["matmul"]
    data = random.standard_normal((rows, inner))
    np.testing.assert_allclose(
        run_module(after, data.astype("float32"))[0], (data * s) @ w * t, rtol=1e-4, atol=1e-5 * inner
    )
