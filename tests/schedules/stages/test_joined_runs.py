"""Short runs side by side become one vector: their numbers, and that they are joined."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import te

from schedules.ir.stages import Kernel
from schedules.ir.tir import tirx
from schedules.stages.rules import plan_kernel
from tests.schedules.harness import AVX512, Array, Build, evaluate, lowered, runnable, target_of

LANES = {"x86-64-v3": 8, AVX512: 16}


def in_blocks(x: Array, block: int, fill: float = 0.0) -> Array:
    """Pixels by channels in blocks of channels."""
    rows, channels = x.shape
    padded = np.full((rows, -(-channels // block) * block), fill, x.dtype)
    padded[:, :channels] = x
    return np.ascontiguousarray(padded.reshape(rows, -1, block).swapaxes(0, 1))


def concatenated(sizes: list[int], rows: int, block: int) -> Build:
    """Tensors in blocks of channels, concatenated in blocks of channels."""
    starts = np.cumsum([0, *sizes]).tolist()
    total = starts[-1]

    def compute(*parts: Any) -> Any:
        def element(b: Any, i: Any, lane: Any) -> Any:
            channel = b * block + lane
            value: Any = tirx.const(0, "float32")
            for part, start, size in reversed(list(zip(parts, starts, sizes, strict=False))):
                own = channel - start
                value = tirx.if_then_else(channel < start + size, part[own // block, i, own % block], value)
            return value

        return te.compute((-(-total // block), rows, block), element)

    return lambda builder, *inputs: builder.emit(builder.call_te(compute, *inputs))


@pytest.mark.parametrize("target", runnable())
@settings(max_examples=9, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    rows=st.sampled_from([1, 3, 40]),
    block=st.sampled_from([4, 8, 16]),
)
def test_concatenation_in_blocks(target: str, sizes: list[int], rows: int, block: int) -> None:
    random = np.random.default_rng(0)
    parts = [random.standard_normal((rows, size), dtype="float32") for size in sizes]
    # What fills up the blocks of the parts must not get into the result.
    blocked = [in_blocks(part, block, fill=np.nan) for part in parts]
    found = evaluate(concatenated(sizes, rows, block), blocked, target)
    np.testing.assert_array_equal(found, in_blocks(np.concatenate(parts, 1), block))


@pytest.mark.parametrize("target", runnable())
@pytest.mark.parametrize("sizes", [[1, 32], [20, 20], [3, 5, 30]])
def test_each_vector_is_stored_once(target: str, sizes: list[int]) -> None:
    lanes = LANES[target]
    rows, total = 50, sum(sizes)
    shapes = [((-(-size // lanes), rows, lanes), "float32") for size in sizes]
    mod = lowered(concatenated(sizes, rows, lanes), shapes, target)
    [function] = [each for _, each in mod.functions_items() if isinstance(each, tirx.PrimFunc)]
    (stage,) = plan_kernel(Kernel.of(function), target_of(target).machine).statements
    stored = 0
    for piece in stage.nests:  # type: ignore[union-attr]
        assert piece.is_in_vectors
        points = piece.nest.stage.points() or 0
        stored += points if piece.axis is None else points // lanes
    assert stored == rows * -(-total // lanes)
