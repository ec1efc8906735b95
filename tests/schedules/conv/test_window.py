"""Depthwise convolution and pooling in blocked layouts, over random shapes and described machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schedules.conv import compute as conv_compute
from schedules.conv.window import Depthwise
from schedules.conv.workload import PoolWorkload, WindowWorkload
from schedules.machine import Machine
from tests.schedules.blocked import (
    MACHINES,
    Array,
    blocks,
    pack,
    pad,
    pool_rule,
    reference_conv,
    relu,
    run_scheduled,
    unpack,
)

from tvm import te  # isort: skip


@st.composite
def windows(draw: Any) -> dict[str, Any]:
    rank = draw(st.integers(1, 3))
    kernel = tuple(draw(st.integers(1, 5)) for _ in range(rank))
    dilations = tuple(draw(st.integers(1, 2)) for _ in range(rank))
    # Not more padding than window: each window then holds at least one element.
    padding = tuple((draw(st.integers(0, size - 1)), draw(st.integers(0, size - 1))) for size in kernel)
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    return {
        "batch": draw(st.integers(1, 2)),
        "channels": draw(st.sampled_from([1, 7, 16, 35])),
        "spatial": tuple(reach[i] + draw(st.integers(0, (50, 14, 4)[rank - 1])) for i in range(rank)),
        "kernel": kernel,
        "strides": tuple(draw(st.integers(1, 3)) for _ in range(rank)),
        "dilations": dilations,
        "pad": padding,
        "dtype": "float32",
    }


def _values(work: WindowWorkload) -> Array:
    return np.random.default_rng(0).standard_normal((work.batch, work.channels, *work.spatial), dtype=np.float32)


def _data(work: WindowWorkload) -> Any:
    return te.placeholder((work.batch, work.out_blocks, *work.spatial, work.block), name="data")


def _run(tensors: Sequence[Any], arrays: Sequence[Array], work: WindowWorkload, machine: Any, rule: str) -> Array:
    shape = tuple(int(size) for size in tensors[-1].shape)
    return unpack(run_scheduled(tensors, arrays, machine, rule, shape), work.channels)


COMMON: dict[str, Any] = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@pytest.mark.parametrize("machine", MACHINES)
@settings(max_examples=5, **COMMON)
@given(case=windows())
def test_depthwise(machine: str, case: dict[str, Any]) -> None:
    check_depthwise(MACHINES[machine], case)


def check_depthwise(description: Machine, case: dict[str, Any]) -> None:
    work = WindowWorkload(block=description.lanes("float32"), **case)
    data = _data(work)
    weight = te.placeholder((work.out_blocks, *work.kernel, work.block), name="weight")
    filters = np.random.default_rng(1).standard_normal((work.channels, 1, *work.kernel), dtype=np.float32)
    packed = pack(filters.swapaxes(0, 1), work.block)[0]
    got = _run(
        [data, weight, relu(conv_compute.conv_depthwise(data, weight, work))],
        [pack(_values(work), work.block), packed],
        work,
        description,
        "conv-depthwise",
    )
    expected = reference_conv(_values(work), filters, work.strides, work.dilations, work.pad, work.channels)
    np.testing.assert_allclose(got, np.maximum(expected, 0), rtol=1e-5, atol=2e-5)


def _reference_pool(work: PoolWorkload) -> Array:
    """From the definition: every window's elements, and how many of them count."""
    edge = -np.inf if work.mode == "max" else 0.0
    padded = pad(_values(work), work.pad)
    inside = pad(np.ones_like(_values(work)), work.pad)
    padded = np.where(inside == 1, padded, edge)
    result = np.full((work.batch, work.channels, *work.out_spatial), edge)
    count = np.zeros_like(result)
    for taps in np.ndindex(*work.kernel):
        window = tuple(
            slice(tap * dilation, tap * dilation + (out - 1) * stride + 1, stride)
            for tap, dilation, out, stride in zip(taps, work.dilations, work.out_spatial, work.strides, strict=True)
        )
        values = padded[(slice(None), slice(None), *window)]
        result = np.maximum(result, values) if work.mode == "max" else result + values
        count += 1 if work.count_pad else inside[(slice(None), slice(None), *window)]
    return result if work.mode == "max" else result / count


@pytest.mark.parametrize("machine", MACHINES)
@settings(max_examples=5, **COMMON)
@given(case=windows(), mode=st.sampled_from(["max", "average"]), count_pad=st.booleans())
def test_pooling(machine: str, case: dict[str, Any], mode: str, count_pad: bool) -> None:
    check_pooling(MACHINES[machine], case, mode, count_pad)


def check_pooling(description: Machine, case: dict[str, Any], mode: str, count_pad: bool) -> None:
    if mode == "average":
        case = {**case, "dilations": (1,) * len(case["kernel"])}
    work = PoolWorkload(block=description.lanes("float32"), mode=mode, count_pad=count_pad, **case)
    data = _data(work)
    tensors = [data, relu(conv_compute.pool(data, work))]
    got = _run(tensors, [pack(_values(work), work.block)], work, description, pool_rule(tensors))
    np.testing.assert_allclose(got, np.maximum(_reference_pool(work), 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["max", "average"])
@pytest.mark.parametrize("spatial", [(1,), (7, 7), (3, 13), (2, 5, 9)])
def test_global_pooling(mode: str, spatial: tuple[int, ...]) -> None:
    check_global_pooling(MACHINES["avx2"], mode, spatial)


def check_global_pooling(description: Machine, mode: str, spatial: tuple[int, ...]) -> None:
    ones = (1,) * len(spatial)
    edges = ((0, 0),) * len(spatial)
    work = PoolWorkload(2, 19, 8, spatial, spatial, ones, ones, edges, "float32", mode, False)
    data = _data(work)
    got = _run(
        [data, relu(conv_compute.global_pool(data, work))],
        [pack(_values(work), 8)],
        work,
        description,
        "global-pool",
    )
    axes = tuple(range(2, 2 + len(spatial)))
    values = _values(work).astype(np.float64)
    expected = values.max(axes, keepdims=True) if mode == "max" else values.mean(axes, keepdims=True)
    np.testing.assert_allclose(got, np.maximum(expected, 0), rtol=1e-5, atol=1e-6)
    assert blocks(19, 8) == work.out_blocks


def test_defaults_lie_in_their_space() -> None:
    rule = Depthwise()
    for machine in MACHINES.values():
        for size, kernel in ((112, 3), (7, 3), (14, 5), (56, 7), (1, 1)):
            pads = ((kernel // 2,) * 2,) * 2
            work = WindowWorkload(
                1, 32, machine.lanes("float32"), (size, size), (kernel, kernel), (1, 1), (1, 1), pads, "float32"
            )
            rule.space(work, machine).check(rule.default(work, machine))
