"""Folded convolution against the definition in float64, over random shapes, folds and described machines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schedules import Machine
from schedules.conv.folded import _folded, conv_folded, fold_filter, folded_workload, tile_cycles
from schedules.conv.workload import ConvWorkload
from tests.schedules.blocked import AVX512, MACHINES, blocks, pack, pack_filter, reference_conv, relu, run_scheduled

from tvm import te  # isort: skip


@st.composite
def convolutions(draw: Any) -> dict[str, Any]:
    """A convolution of 1 or 2 dimensions with few filters; the last stride is a multiple of the dilation."""
    rank = draw(st.integers(1, 2))
    kernel = tuple(draw(st.integers(1, 5)) for _ in range(rank))
    dilations = tuple(draw(st.integers(1, 2)) for _ in range(rank))
    strides = (*(draw(st.integers(1, 2)) for _ in range(rank - 1)), dilations[-1] * draw(st.integers(1, 2)))
    pad = tuple((draw(st.integers(0, 2)), draw(st.integers(0, 3))) for _ in range(rank))
    spatial = tuple(
        max(2, (size - 1) * step + 1 - sum(around)) + draw(st.integers(0, 20))
        for size, step, around in zip(kernel, dilations, pad, strict=True)
    )
    return {
        "batch": draw(st.integers(1, 2)),
        "channels": draw(st.sampled_from([1, 3, 16, 19])),
        "filters": draw(st.sampled_from([1, 2, 3, 5, 8, 13, 24])),
        "spatial": spatial,
        "kernel": kernel,
        "strides": strides,
        "dilations": dilations,
        "pad": pad,
        "planar": draw(st.booleans()),
        "last": draw(st.booleans()),
        "fold": draw(st.integers(2, 16)),
        "dynamic": draw(st.booleans()),
    }


def _workload(machine: Any, case: dict[str, Any]) -> ConvWorkload:
    lanes = machine.lanes("float32")
    names = ("batch", "channels", "spatial", "kernel", "strides", "dilations", "pad")
    return ConvWorkload(
        **{name: case[name] for name in names},
        block=lanes,
        dtype="float32",
        filters=case["filters"],
        groups=1,
        in_block=1 if case["planar"] else lanes,
    )


@pytest.mark.parametrize("machine", MACHINES)
@settings(max_examples=9, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(case=convolutions())
def test_random_shapes(machine: str, case: dict[str, Any]) -> None:
    check(MACHINES[machine], case)


def test_a_long_row_whose_tasks_end_inside_of_a_fold() -> None:
    """TVM's simplifier did not come to an end with both bounds of such a row."""
    row = {"spatial": (1, 44098), "kernel": (1, 256), "strides": (1, 2), "dilations": (1, 1), "pad": ((0, 0), (0, 0))}
    machine = MACHINES["avx2"].model_copy(update={"l2_bytes": 256 << 10, "cores": 1})
    check(
        machine,
        {"batch": 1, "channels": 1, "filters": 1, "planar": True, "last": False, "fold": 8, "dynamic": False, **row},
    )


def check(machine: Machine, case: dict[str, Any]) -> None:
    plain = _workload(machine, case)
    lanes, rank = plain.block, plain.rank
    fold = min(case["fold"], lanes)
    if case["filters"] * fold > lanes and lanes % fold:
        fold = 2
    spatial_axes = tuple(range(2, 2 + rank))
    axes = (0, rank + 1, *range(1, rank + 1)) if case["last"] else (0, 1, *spatial_axes)
    spatial = plain.spatial
    sizes: list[Any] = list(plain.out_spatial)
    extents: list[Any] = list(spatial)
    if case["dynamic"]:
        plain = replace(plain, spatial=(0,) * rank)
        extents = [te.var(f"size{i}", "int64") for i in range(rank)]
        sizes = [
            (extent + sum(around) - (size - 1) * step - 1) // stride + 1
            for extent, size, stride, step, around in zip(
                extents, plain.kernel, plain.strides, plain.dilations, plain.pad, strict=True
            )
        ]
    work = _folded(plain, fold, axes)
    lane = (work.in_block,) if work.in_block > 1 else ()
    shape = (work.batch, blocks(work.channels, work.in_block), *extents, *lane)
    data = te.placeholder(shape, name="data")
    weight = te.placeholder((work.out_blocks, work.in_blocks, *work.kernel, work.in_block, lanes), name="weight")
    rng = np.random.default_rng(0)
    values = rng.standard_normal((work.batch, work.channels, *spatial), dtype=np.float32)
    filters = rng.standard_normal((work.outputs, work.channels, *work.kernel[:-1], plain.kernel[-1]), dtype=np.float32)
    packed = pack(values, work.in_block) if work.in_block > 1 else values
    arrays = [packed, pack_filter(fold_filter(filters, work), work.in_block, lanes)]
    out_shape = work.indices(work.batch, work.outputs, replace(plain, spatial=spatial).out_spatial)
    output = relu(conv_folded(data, weight, work, sizes))
    got = run_scheduled([data, weight, output], arrays, machine, "conv-folded", out_shape)
    expected = reference_conv(values, filters, plain.strides, plain.dilations, plain.pad, 1)
    # Each product rounds once and each addition once: the bound grows with the terms.
    terms = work.channels * np.prod(plain.kernel)
    np.testing.assert_allclose(got.transpose(work.axes), np.maximum(expected, 0), rtol=1e-5, atol=2e-7 * terms + 1e-6)


_WIDE: dict[str, Any] = {
    "batch": 1,
    "channels": 8,
    "filters": 8,
    "spatial": (172, 264),
    "kernel": (3, 39),
    "strides": (1, 1),
    "dilations": (1, 1),
    "pad": ((1, 1), (19, 19)),
    "planar": True,
}


def test_half_empty_registers_of_a_wide_window_are_filled() -> None:
    plain = _workload(AVX512, _WIDE)
    folded = folded_workload(plain, AVX512, (0, 1, 2, 3))
    assert folded is not None
    assert (folded.fold, folded.kernel, folded.out_spatial) == (2, (3, 40), (172, 132))
    assert tile_cycles(folded, AVX512) < 0.6 * tile_cycles(plain, AVX512)


def test_nothing_is_gained_by_folding_1x1() -> None:
    case = {**_WIDE, "kernel": (1, 1), "pad": ((0, 0), (0, 0))}
    plain = _workload(AVX512, case)
    folded = folded_workload(plain, AVX512, (0, 1, 2, 3))
    assert folded is None or tile_cycles(folded, AVX512) >= 0.95 * tile_cycles(plain, AVX512)


def test_a_stride_that_taps_do_not_meet_is_not_folded() -> None:
    plain = _workload(AVX512, {**_WIDE, "dilations": (1, 2), "kernel": (3, 5)})
    assert folded_workload(plain, AVX512, (0, 1, 2, 3)) is None


def test_sizes_that_are_known_when_it_runs() -> None:
    """The choice is that of likely sizes; rows of every length end in folds that are whole or not."""
    plain = replace(
        _workload(AVX512, {**_WIDE, "filters": 3, "kernel": (9, 9), "pad": ((0, 0), (0, 0))}), spatial=(0, 0)
    )
    folded = folded_workload(plain, AVX512, (0, 1, 2, 3), [(160, 160), (224, 224)])
    assert folded is not None
    assert (folded.fold, folded.width, folded.is_open) == (5, 0, True)
    case = {**_WIDE, "channels": 16, "filters": 3, "planar": False, "last": False, "dynamic": True, "fold": 5}
    for width in range(9, 15):
        check(AVX512, {**case, "spatial": (12, width), "kernel": (9, 9), "pad": ((0, 0), (0, 0))})
