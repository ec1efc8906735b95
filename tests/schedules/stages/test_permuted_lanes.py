"""Shuffles of channels in blocks of channels: their numbers, and that they run in whole vectors."""

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
from tests.schedules.harness import AVX512, Build, evaluate, lowered, runnable, target_of
from tests.schedules.stages.test_joined_runs import LANES, in_blocks


def shuffled(rows: int, groups: int, size: int, block: int) -> Build:
    """Channel i of the result is channel i % groups * size + i // groups, in blocks; 0 behind the last."""
    channels = groups * size

    def compute(x: Any) -> Any:
        def element(b: Any, i: Any, lane: Any) -> Any:
            channel = b * block + lane
            source = channel % groups * size + channel // groups
            inside = x[source // block, i, source % block]
            return tirx.if_then_else(channel < channels, inside, tirx.const(0, str(x.dtype)))

        return te.compute((-(-channels // block), rows, block), element)

    return lambda builder, x: builder.emit(builder.call_te(compute, x))


@pytest.mark.parametrize("target", runnable())
@settings(max_examples=7, deadline=None)
@given(
    rows=st.sampled_from([1, 3, 40]),
    groups=st.integers(2, 8),
    size=st.integers(1, 24),
    block=st.sampled_from([4, 8, 16]),
    dtype=st.sampled_from(["float32", "int8", "float64"]),
)
def test_shuffles_of_channels(target: str, rows: int, groups: int, size: int, block: int, dtype: str) -> None:
    x = np.random.default_rng(0).integers(-99, 99, (rows, groups * size)).astype(dtype)
    found = evaluate(shuffled(rows, groups, size, block), [in_blocks(x, block, fill=7)], target)
    expected = x.reshape(rows, groups, size).swapaxes(1, 2).reshape(rows, -1)
    np.testing.assert_array_equal(found, in_blocks(expected, block))


@pytest.mark.parametrize("target", runnable())
@pytest.mark.parametrize(("groups", "size"), [(3, 80), (2, 24), (4, 20), (2, 17)])
def test_blocks_are_stored_whole(target: str, groups: int, size: int) -> None:
    block, rows = LANES[target], 50
    shape = (-(-groups * size // block), rows, block)
    mod = lowered(shuffled(rows, groups, size, block), [(shape, "float32")], target)
    [function] = [each for _, each in mod.functions_items() if isinstance(each, tirx.PrimFunc)]
    (stage,) = plan_kernel(Kernel.of(function), target_of(target).machine).statements
    for piece in stage.nests:  # type: ignore[union-attr]
        assert f"x{block}" in str(piece.nest.stage.body.value.ty) or piece.axis is not None


def test_what_takes_too_many_blocks_is_left_alone() -> None:
    """16 groups: each lane of a block comes from another one."""
    mod = lowered(shuffled(5, 16, 16, 16), [((16, 5, 16), "float32")], AVX512)
    [function] = [each for _, each in mod.functions_items() if isinstance(each, tirx.PrimFunc)]
    (stage,) = plan_kernel(Kernel.of(function), target_of(AVX512).machine).statements
    assert all(piece.transpose is not None for piece in stage.nests)  # type: ignore[union-attr]
