"""crop-filters: taps that read only padding are removed, and where they must stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from compiler.passes.rewriting.matching import array_of
from tests.compiler.passes.building import Build, apply, run_module

nn = relax.op.nn


def filter_shapes(mod: tvm.IRModule) -> list[tuple[int, ...]]:
    """Shapes of the constants, in order."""
    shapes: list[tuple[int, ...]] = []

    def visit(expr: Any) -> None:
        if isinstance(expr, tvm.ir.GenericConst):
            shapes.append(array_of(expr).shape)

    relax.analysis.post_order_visit(mod["main"], visit)
    return shapes


CASES: list[tuple[str, tuple[int, ...], Callable[[Build, Any], Any], tuple[int, ...]]] = [
    ("dilation beyond the image", (1, 4, 7, 9), lambda b, x: nn.conv2d(x, b.constant((5, 4, 3, 3)), 1, 9, 9), (1, 1)),
    ("one axis", (1, 4, 7, 9), lambda b, x: nn.conv2d(x, b.constant((5, 4, 3, 3)), 1, (8, 2), (8, 2)), (1, 3)),
    ("one side", (1, 3, 4), lambda b, x: nn.conv1d(x, b.constant((2, 3, 3)), padding=(8, 0), dilation=4), (1,)),
    ("an image of one pixel", (2, 4, 1, 1), lambda b, x: nn.conv2d(x, b.constant((3, 4, 3, 3)), padding=1), (1, 1)),
    ("groups", (1, 4, 5, 5), lambda b, x: nn.conv2d(x, b.constant((4, 2, 3, 3)), 1, 6, 6, 2), (1, 1)),
    ("all needed", (1, 4, 7, 9), lambda b, x: nn.conv2d(x, b.constant((5, 4, 3, 3)), 1, 6, 6), (3, 3)),
]


@pytest.mark.parametrize(("shape", "convolution", "kernel"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_filters_are_cropped(
    shape: tuple[int, ...], convolution: Callable[[Build, Any], Any], kernel: tuple[int, ...]
) -> None:
    build = Build()
    before = build.module(build.emit(convolution(build, build.input("x", shape))))
    after = apply("crop-filters", before)
    if kernel == (3, 3):
        assert after.same_as(before)
    assert [each[2:] for each in filter_shapes(after)] == [kernel]
    x = np.random.default_rng(2).standard_normal(shape).astype("float32")
    for got, expected in zip(run_module(after, x), run_module(before, x), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)  # sums in another order


@given(
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    dilation=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    padding=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    stride=st.integers(1, 3),
)
@settings(max_examples=9, deadline=None)
def test_any_convolution_keeps_its_numbers(
    size: tuple[int, int],
    kernel: tuple[int, int],
    dilation: tuple[int, int],
    padding: tuple[int, int],
    stride: int,
) -> None:
    if any(s + 2 * p < (k - 1) * d + 1 for s, k, d, p in zip(size, kernel, dilation, padding, strict=True)):
        return
    build = Build()
    x, weight = build.input("x", (1, 3, *size)), build.constant((2, 3, *kernel))
    mod = build.module(build.emit(nn.conv2d(x, weight, stride, padding, dilation)))
    data = np.random.default_rng(3).standard_normal((1, 3, *size)).astype("float32")
    wide = torch.from_numpy(data).double(), torch.from_numpy(array_of(weight).copy()).double()
    expected = torch.nn.functional.conv2d(*wide, None, stride, padding, dilation)
    np.testing.assert_allclose(run_module(apply("crop-filters", mod), data)[0], expected, rtol=1e-4, atol=1e-5)
