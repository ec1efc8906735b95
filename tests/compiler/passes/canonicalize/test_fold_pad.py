"""fold-pad: into convolutions and poolings of every rank and layout, and where padding must stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from tests.compiler.passes.building import Build, apply, operators, run_module

op = relax.op
nn = relax.op.nn
LOWEST = float(np.finfo("float32").min)


def check(mod: tvm.IRModule, *shapes: tuple[int, ...]) -> list[str]:
    after = apply("fold-pad", mod)
    random = np.random.default_rng(1)
    inputs = [random.standard_normal(shape).astype("float32") for shape in shapes]
    for got, expected in zip(run_module(after, *inputs), run_module(mod, *inputs), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)  # sums in another order
    return operators(after)


FIRES: list[tuple[str, tuple[int, ...], Callable[[Build, Any], Any], list[str]]] = [
    (
        "conv1d",
        (1, 3, 8),
        lambda b, x: nn.conv1d(b.emit(nn.pad(x, [0, 0, 0, 0, 2, 1])), b.constant((2, 3, 3)), padding=1),
        ["nn.conv1d"],
    ),
    (
        "conv2d",
        (1, 4, 6, 7),
        lambda b, x: nn.conv2d(
            b.emit(nn.pad(x, [0, 0, 0, 0, 2, 1, 0, 3])), b.constant((4, 2, 3, 3)), 2, (1, 0, 2, 1), 1, 2
        ),
        ["nn.conv2d"],
    ),
    (
        "conv2d nhwc",
        (1, 6, 7, 2),
        lambda b, x: nn.conv2d(
            b.emit(nn.pad(x, [0, 0, 2, 1, 0, 3, 0, 0])),
            b.constant((3, 3, 2, 4)),
            data_layout="NHWC",
            kernel_layout="HWIO",
        ),
        ["nn.conv2d"],
    ),
    (
        "conv3d",
        (1, 2, 4, 4, 4),
        lambda b, x: nn.conv3d(b.emit(nn.pad(x, [0, 0, 0, 0, 1, 0, 0, 1, 2, 2])), b.constant((2, 2, 2, 2, 2))),
        ["nn.conv3d"],
    ),
    (
        "average",
        (1, 2, 6, 6),
        lambda b, x: nn.avg_pool2d(b.emit(nn.pad(x, [0, 0, 0, 0, 1, 1, 2, 0])), (3, 3), (2, 2)),
        ["nn.avg_pool2d"],
    ),
    (
        "maximum",
        (1, 2, 6, 6),
        lambda b, x: nn.max_pool2d(b.emit(nn.pad(x, [0, 0, 0, 0, 1, 1, 2, 0], "constant", LOWEST)), (3, 3), (2, 2)),
        ["nn.max_pool2d"],
    ),
    (
        "maximum of relu",
        (1, 2, 6, 6),
        lambda b, x: nn.max_pool2d(b.emit(nn.pad(b.emit(nn.relu(x)), [0, 0, 0, 0, 1, 1, 1, 1])), (3, 3), (2, 2)),
        ["nn.relu", "nn.max_pool2d"],
    ),
]
STAYS: list[tuple[str, tuple[int, ...], Callable[[Build, Any], Any]]] = [
    ("one value", (1, 3, 8), lambda b, x: nn.conv1d(b.emit(nn.pad(x, [0] * 4 + [2, 1], "constant", 1.0)), W(b))),
    ("reflection", (1, 3, 8), lambda b, x: nn.conv1d(b.emit(nn.pad(x, [0] * 4 + [2, 1], "reflect")), W(b))),
    ("channels", (1, 2, 8), lambda b, x: nn.conv1d(b.emit(nn.pad(x, [0, 0, 1, 0, 2, 1])), W(b))),
    (
        "average that does not count its own padding",
        (1, 2, 6, 6),
        lambda b, x: nn.avg_pool2d(b.emit(nn.pad(x, [0] * 4 + [1] * 4)), (3, 3), (2, 2), (1, 1)),
    ),
    (
        "zeros before the maximum of any number",
        (1, 2, 6, 6),
        lambda b, x: nn.max_pool2d(b.emit(nn.pad(x, [0] * 4 + [1] * 4)), (3, 3)),
    ),
    (
        "windows of padding alone",
        (1, 2, 6, 6),
        lambda b, x: nn.max_pool2d(b.emit(nn.pad(x, [0] * 4 + [2] * 4, "constant", LOWEST)), (2, 2)),
    ),
]


def W(build: Build) -> Any:  # noqa: N802
    return build.constant((2, 3, 3))


@pytest.mark.parametrize(("shape", "make", "expected"), [c[1:] for c in FIRES], ids=[c[0] for c in FIRES])
def test_padding_is_folded(shape: tuple[int, ...], make: Callable[[Build, Any], Any], expected: list[str]) -> None:
    build = Build()
    x = build.input("x", shape)
    assert check(build.module(build.emit(make(build, x))), shape) == expected


@pytest.mark.parametrize(("shape", "make"), [c[1:] for c in STAYS], ids=[c[0] for c in STAYS])
def test_padding_of_another_kind_stays(shape: tuple[int, ...], make: Callable[[Build, Any], Any]) -> None:
    build = Build()
    x = build.input("x", shape)
    mod = build.module(build.emit(make(build, x)))
    assert apply("fold-pad", mod).same_as(mod)


def test_padding_with_another_consumer_stays() -> None:
    build = Build()
    x = build.input("x", (1, 3, 8))
    padded = build.emit(nn.pad(x, [0, 0, 0, 0, 2, 1]))
    mod = build.module(build.emit(nn.conv1d(padded, W(build))), padded)
    assert apply("fold-pad", mod).same_as(mod)


@settings(max_examples=4, deadline=None)
@given(
    pads=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    stride=st.integers(1, 2),
    size=st.integers(3, 7),
)
def test_average_against_numpy(pads: list[int], stride: int, size: int) -> None:
    build = Build()
    x = build.input("x", (1, 1, size, size))
    padded = build.emit(nn.pad(x, [0, 0, 0, 0, *pads]))
    after = apply("fold-pad", build.module(build.emit(nn.avg_pool2d(padded, (2, 2), (stride, stride)))))
    assert operators(after)[-1] == "nn.avg_pool2d"
    data = np.random.default_rng(size).standard_normal((1, 1, size, size))
    full = np.pad(data, [(0, 0), (0, 0), tuple(pads[:2]), tuple(pads[2:])])
    windows = np.lib.stride_tricks.sliding_window_view(full, (2, 2), (2, 3))[:, :, ::stride, ::stride]
    np.testing.assert_allclose(run_module(after, data.astype("float32"))[0], windows.mean((-2, -1)), atol=1e-6)
