"""Depthwise convolution and pooling of 8-bit integers: exact, whatever stands in the padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schedules.conv.compute import conv_depthwise, pool
from schedules.conv.workload import DepthwiseDotWorkload, PoolWorkload
from tests.schedules.blocked import Array, blocks, pool_rule, reference_conv, unpack
from tests.schedules.conv.test_dot import MACHINES, RUNNABLE, pack, run_kernel

from tvm import te  # isort: skip


@st.composite
def windows(draw: Any) -> dict[str, Any]:
    """A window of two dimensions that fits."""
    kernel = tuple(draw(st.integers(1, 5)) for _ in range(2))
    dilations = tuple(draw(st.integers(1, 2)) for _ in range(2))
    padding = tuple((draw(st.integers(0, min(2, size - 1))), draw(st.integers(0, min(2, size - 1)))) for size in kernel)
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    return {
        "batch": draw(st.integers(1, 2)),
        "channels": draw(st.sampled_from([1, 3, 16, 37])),
        "spatial": tuple(max(1, reach[i] - sum(padding[i])) + draw(st.integers(0, 17)) for i in range(2)),
        "kernel": kernel,
        "strides": tuple(draw(st.integers(1, 3)) for _ in range(2)),
        "dilations": dilations,
        "pad": padding,
    }


def extreme(rng: Any, kind: str, shape: tuple[int, ...]) -> Array:
    limits = np.iinfo(kind)
    return rng.choice([limits.min, limits.max, 0, 1, 77], shape).astype(kind)


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("machine", RUNNABLE)
@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(case=windows(), fill=st.integers(0, 127))
def test_depthwise(machine: str, kind: str, case: dict[str, Any], fill: int) -> None:
    lanes = MACHINES[machine].lanes("float32")
    work = DepthwiseDotWorkload(**case, block=lanes, dtype="int32", operand=kind, fill=fill)
    count = blocks(work.channels, lanes)
    data = te.placeholder((work.batch, count, *work.spatial, lanes), kind, name="data")
    weight = te.placeholder((count, *work.kernel, lanes), "int16", name="weight")
    rng = np.random.default_rng(0)
    x = extreme(rng, kind, (work.batch, work.channels, *work.spatial))
    w = extreme(rng, "int8", (work.channels, 1, *work.kernel))
    packed = pack(w.swapaxes(0, 1).astype(np.int16), lanes)[0]
    result = conv_depthwise(data, weight, work)
    got = run_kernel([data, weight, result], [pack(x, lanes), packed], MACHINES[machine], "conv-depthwise")
    meant = x.astype(np.int64) - fill
    expected = reference_conv(meant, w, work.strides, work.dilations, work.pad, work.channels)
    np.testing.assert_array_equal(unpack(got, work.channels), expected)


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(case=windows())
def test_maximum(kind: str, case: dict[str, Any]) -> None:
    machine = MACHINES[RUNNABLE[-1]]
    lanes = machine.lanes("float32")
    work = PoolWorkload(**case, block=lanes, dtype=kind, mode="max", count_pad=False)
    data = te.placeholder((work.batch, blocks(work.channels, lanes), *work.spatial, lanes), kind, name="data")
    x = extreme(np.random.default_rng(0), kind, (work.batch, work.channels, *work.spatial))
    tensors = [data, pool(data, work)]
    got = run_kernel(tensors, [pack(x, lanes)], machine, pool_rule(tensors))
    lowest = np.iinfo(kind).min
    whole = np.pad(x, [(0, 0), (0, 0), *work.pad], constant_values=lowest)
    expected = np.full((work.batch, work.channels, *work.out_spatial), lowest, kind)
    for taps in np.ndindex(*work.kernel):
        place = tuple(
            slice(tap * dilation, tap * dilation + (size - 1) * stride + 1, stride)
            for tap, dilation, size, stride in zip(taps, work.dilations, work.out_spatial, work.strides, strict=True)
        )
        expected = np.maximum(expected, whole[(slice(None), slice(None), *place)])
    np.testing.assert_array_equal(unpack(got, work.channels), expected)
