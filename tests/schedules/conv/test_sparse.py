"""Convolutions that skip zero blocks, against the definition in float64, over random shapes and described machines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schedules.conv.sparse import conv_pays, conv_sparse, pack_sparse_filter
from schedules.conv.workload import ConvWorkload, WinogradWorkload
from schedules.machine import Machine
from tests.schedules.blocked import (
    AVX512,
    MACHINES,
    blocks,
    pack,
    pack_filter,
    reference_conv,
    relu,
    run_scheduled,
    unpack,
)

from tvm import te  # isort: skip


@st.composite
def convolutions(draw: Any) -> dict[str, Any]:
    """A convolution of 1 to 3 dimensions and the share of its blocks that are zero."""
    rank = draw(st.sampled_from([1, 2, 2, 2, 3]))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    dilations = tuple(draw(st.integers(1, 2)) for _ in range(rank))
    pad = tuple((draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in range(rank))
    spatial = tuple(
        max(2, (size - 1) * step + 1 - sum(around)) + draw(st.integers(0, 12))
        for size, step, around in zip(kernel, dilations, pad, strict=True)
    )
    return {
        "batch": draw(st.integers(1, 2)),
        "channels": draw(st.sampled_from([3, 16, 19, 40])),
        "filters": draw(st.sampled_from([1, 8, 13, 33, 64])),
        "spatial": spatial,
        "kernel": kernel,
        "strides": tuple(draw(st.integers(1, 2)) for _ in range(rank)),
        "dilations": dilations,
        "pad": pad,
        "zeros": draw(st.sampled_from([0, 0.5, 0.9, 1])),
    }


def _workload(machine: Any, case: dict[str, Any]) -> ConvWorkload:
    lanes = machine.lanes("float32")
    fields = {name: value for name, value in case.items() if name != "zeros"}
    return ConvWorkload(**fields, block=lanes, dtype="float32", groups=1, in_block=lanes)


@pytest.mark.parametrize("machine", MACHINES)
@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(case=convolutions())
def test_random_shapes(machine: str, case: dict[str, Any]) -> None:
    check(MACHINES[machine], case)


def check(machine: Machine, case: dict[str, Any]) -> None:
    work = _workload(machine, case)
    lanes = work.block
    rng = np.random.default_rng(0)
    values = rng.standard_normal((work.batch, work.channels, *work.spatial), dtype=np.float32)
    filters = rng.standard_normal((work.filters, work.channels, *work.kernel), dtype=np.float32)
    gone = rng.random((work.out_blocks, *filters.shape[1:])) < case["zeros"]
    filters[np.repeat(gone, lanes, axis=0)[: work.filters]] = 0
    sparse, weight = pack_sparse_filter(pack_filter(filters, lanes, lanes), work)
    data = te.placeholder((work.batch, blocks(work.channels, lanes), *work.spatial, lanes), name="data")
    kept = te.placeholder(weight.values.shape, name="kept")
    index = te.placeholder(weight.index.shape, "int32", name="index")
    output = relu(conv_sparse(data, kept, index, sparse))
    shape = (work.batch, work.out_blocks, *work.out_spatial, lanes)
    arrays = [pack(values, lanes), weight.values, weight.index]
    got = run_scheduled([data, kept, index, output], arrays, machine, "conv-sparse", shape)
    expected = reference_conv(values, filters, work.strides, work.dilations, work.pad, 1)
    terms = work.channels * np.prod(work.kernel)
    bound = 2e-7 * terms + 1e-6  # each product and each addition rounds once
    np.testing.assert_allclose(unpack(got, work.filters), np.maximum(expected, 0), rtol=1e-5, atol=bound)


def test_sparse_pays_from_a_share_on() -> None:
    case = {"batch": 1, "channels": 256, "filters": 64, "spatial": (56, 56), "strides": (1, 1), "dilations": (1, 1)}
    narrow = _workload(AVX512, {**case, "kernel": (1, 1), "pad": ((0, 0), (0, 0))})
    assert conv_pays(0.7, narrow, None, AVX512)
    assert not conv_pays(0.95, narrow, None, AVX512)
    wide = _workload(AVX512, {**case, "kernel": (3, 3), "pad": ((1, 1), (1, 1))})
    # Winograd's method multiplies a quarter as often, so there must be fewer blocks than that.
    winograd = WinogradWorkload(**vars(wide), tile=4)
    assert not conv_pays(0.25, wide, winograd, AVX512)
    assert conv_pays(0.05, wide, winograd, AVX512)
