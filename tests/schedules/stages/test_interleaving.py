"""Values that are stored by turns: their numbers, and that they are stored in whole vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax, te

from schedules.ir.stages import Kernel, kernels_of
from schedules.ir.tir import tirx, tvm
from schedules.stages.lanes import interleave, interleaved_count
from tests.schedules.harness import AVX512, Build, evaluate, lowered, normal, runnable, scheduled, virtual_machine

op = relax.op
SIZES = st.sampled_from([1, 2, 3, 5, 16, 17, 33, 50])


def permuted(order: list[int]) -> Build:
    return lambda builder, x: builder.emit(op.permute_dims(x, order))


def pixels(channels: int, size: int, factor: int) -> Build:
    """Channels become pixels: `torch.nn.PixelShuffle`."""

    def compute(x: Any) -> Any:
        def element(k: Any, y: Any, x_: Any) -> Any:
            return x[(k * factor + y % factor) * factor + x_ % factor, y // factor, x_ // factor]

        return te.compute((channels, size * factor, size * factor), element)

    return lambda builder, x: builder.emit(builder.call_te(compute, x))


@pytest.mark.parametrize("target", runnable())
@settings(max_examples=7, deadline=None)
@given(
    batch=st.integers(1, 2),
    channels=st.integers(1, 5),
    height=SIZES,
    width=SIZES,
    dtype=st.sampled_from(["float32", "float64", "int8", "int32"]),
)
def test_channels_last(target: str, batch: int, channels: int, height: int, width: int, dtype: str) -> None:
    x = np.random.default_rng(0).integers(-99, 99, (batch, channels, height, width)).astype(dtype)
    found = evaluate(permuted([0, 2, 3, 1]), [x], target)
    np.testing.assert_array_equal(found, x.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("target", runnable())
@settings(max_examples=5, deadline=None)
@given(channels=st.integers(1, 3), size=SIZES, factor=st.integers(2, 5))
def test_pixel_shuffles(target: str, channels: int, size: int, factor: int) -> None:
    x = normal((channels * factor * factor, size, size))
    expected = x.reshape(channels, factor, factor, size, size).transpose(0, 3, 1, 4, 2)
    found = evaluate(pixels(channels, size, factor), [x], target)
    np.testing.assert_array_equal(found, expected.reshape(channels, size * factor, size * factor))


@pytest.mark.parametrize("target", runnable())
@settings(max_examples=6, deadline=None)
@given(rows=SIZES, columns=SIZES, count=st.integers(2, 5), arithmetic=st.booleans())
def test_what_is_stacked_along_the_last_axis(
    target: str, rows: int, columns: int, count: int, arithmetic: bool
) -> None:
    parts = [normal((rows, columns), seed) for seed in range(count)]

    def build(builder: Any, *inputs: Any) -> Any:
        joined = builder.emit(op.stack(list(inputs), -1))
        return builder.emit(op.nn.relu(joined)) if arithmetic else joined

    expected = np.stack(parts, -1)
    np.testing.assert_array_equal(evaluate(build, parts, target), np.maximum(expected, 0) if arithmetic else expected)


@pytest.mark.parametrize("target", runnable())
@settings(max_examples=4, deadline=None)
@given(rows=SIZES, columns=SIZES)
def test_neighbours_turned_like_complex_numbers(target: str, rows: int, columns: int) -> None:
    """Rotary embeddings of neighbouring elements."""
    x, cosines, sines = (normal((rows, columns), seed) for seed in range(3))
    y = normal((rows, columns), 3)

    def build(builder: Any, x: Any, y: Any, c: Any, s: Any) -> Any:
        real = builder.emit(op.subtract(op.multiply(x, c), op.multiply(y, s)))
        imaginary = builder.emit(op.add(op.multiply(x, s), op.multiply(y, c)))
        return builder.emit(op.stack([real, imaginary], -1))

    exact = (x + 1j * y.astype("complex128")) * (cosines + 1j * sines.astype("complex128"))
    found = evaluate(build, [x, y, cosines, sines], target)
    np.testing.assert_allclose(found, np.stack([exact.real, exact.imag], -1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", runnable())
def test_sizes_known_at_run_time(target: str) -> None:
    n = tirx.Var("n", "int64")
    mod, _ = scheduled(permuted([1, 0]), [((3, n), "float32")], target)
    machine = virtual_machine(mod, target)
    for size in (1, 15, 16, 50):
        x = normal((3, size))
        np.testing.assert_array_equal(machine["main"](tvm.runtime.tensor(x)).numpy(), x.T)


@pytest.mark.parametrize(
    ("build", "shape", "turns"),
    [
        (permuted([1, 2, 0]), (3, 20, 20), 3),
        (permuted([1, 0]), (2, 50), 2),
        (pixels(3, 20, 2), (12, 20, 20), 2),
        (pixels(3, 20, 3), (27, 20, 20), 3),
        (permuted([1, 0]), (5, 50), 1),
        (permuted([1, 0]), (3, 2), 1),
    ],
)
def test_what_takes_turns(build: Build, shape: tuple[int, ...], turns: int) -> None:
    [(_, function)] = kernels_of(lowered(build, [(shape, "float32")], AVX512))
    (piece,) = interleave(Kernel.of(function).simple_stages)
    assert interleaved_count(piece) == turns
