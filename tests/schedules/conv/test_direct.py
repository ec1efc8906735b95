"""Direct convolution against the definition in float64, over random shapes and described machines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from schedules.conv import compute as conv_compute
from schedules.conv.direct import ConvDirect
from schedules.conv.tiling import register_tile
from schedules.conv.workload import ConvWorkload
from schedules.machine import Machine
from schedules.selection.apply import apply_schedules
from tests.schedules.blocked import (
    AVX2,
    AVX512,
    MACHINES,
    blocks,
    pack,
    pack_filter,
    reference_conv,
    relu,
    run_scheduled,
    shape_of,
    unpack,
)

import tvm  # isort: skip
from tvm import te  # isort: skip


@st.composite
def convolutions(draw: Any) -> dict[str, Any]:
    """A convolution of 1 to 3 dimensions whose windows fit; channels are ones, primes and whole blocks."""
    rank = draw(st.integers(1, 3))
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(rank))
    dilations = tuple(draw(st.integers(1, 2)) for _ in range(rank))
    padding = tuple((draw(st.integers(0, 2)), draw(st.integers(0, 3))) for _ in range(rank))
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    spatial = tuple(
        max(1, reach[i] - sum(padding[i])) + draw(st.integers(0, (40, 12, 4)[rank - 1])) for i in range(rank)
    )
    strides = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    for size, taps, step, dilation, (before, after) in zip(spatial, kernel, strides, dilations, padding, strict=True):
        starts = range(-before, size + after - (taps - 1) * dilation, step)
        # One that reads padding alone is a constant, and no rule is asked.
        assume(any(0 <= start + tap * dilation < size for start in starts for tap in range(taps)))
    return {
        "batch": draw(st.integers(1, 2)),
        "channels": draw(st.sampled_from([1, 3, 7, 16, 24, 37])),
        "filters": draw(st.sampled_from([1, 5, 16, 31, 48])),
        "spatial": spatial,
        "kernel": kernel,
        "strides": strides,
        "dilations": dilations,
        "pad": padding,
        "planar": draw(st.booleans()),
    }


def check(machine: Machine, case: dict[str, Any], groups: int = 1, symbolic: bool = False) -> None:
    lanes = machine.lanes("float32")
    in_lanes = 1 if case["planar"] else lanes
    work = ConvWorkload(
        0 if symbolic else case["batch"],
        case["channels"],
        lanes,
        case["spatial"],
        case["kernel"],
        case["strides"],
        case["dilations"],
        case["pad"],
        "float32",
        case["filters"],
        groups,
        in_lanes,
    )
    rank = work.rank
    batch = te.var("batch", "int64") if symbolic else case["batch"]
    lane = (in_lanes,) if in_lanes > 1 else ()
    data = te.placeholder((batch, blocks(work.channels, in_lanes), *work.spatial, *lane), name="data")
    weight = te.placeholder((work.out_blocks, work.in_blocks, *work.kernel, in_lanes, lanes), name="weight")
    bias = te.placeholder((1, work.out_blocks, *(1,) * rank, lanes), name="bias")
    conv = conv_compute.conv_direct(data, weight, work)
    origin = (0,) * rank
    added = te.compute(conv.shape, lambda n, c, *rest: conv[(n, c, *rest)] + bias[(0, c, *origin, rest[-1])])
    rng = np.random.default_rng(0)
    values = rng.standard_normal((case["batch"], work.channels, *work.spatial), dtype=np.float32)
    filters = rng.standard_normal((work.filters, work.group_channels, *work.kernel), dtype=np.float32)
    offsets = rng.standard_normal((1, work.filters, *(1,) * rank), dtype=np.float32)
    packed = pack(values, in_lanes) if in_lanes > 1 else values
    arrays = [packed, pack_filter(filters, in_lanes, lanes), pack(offsets, lanes)]
    shape = (case["batch"], work.out_blocks, *work.out_spatial, lanes)
    got = run_scheduled([data, weight, bias, relu(added)], arrays, machine, "conv-direct", shape)
    expected = reference_conv(values, filters, work.strides, work.dilations, work.pad, groups) + offsets
    # Each product rounds once and each addition once: the bound grows with the terms, here at most 37 * 64.
    terms = work.group_channels * np.prod(work.kernel)
    np.testing.assert_allclose(unpack(got, work.filters), np.maximum(expected, 0), rtol=1e-5, atol=2e-7 * terms + 1e-6)


@pytest.mark.parametrize("machine", MACHINES)
@settings(max_examples=7, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(case=convolutions())
def test_random_shapes(machine: str, case: dict[str, Any]) -> None:
    check(MACHINES[machine], case)


_COMMON: dict[str, Any] = {
    "batch": 1,
    "spatial": (9, 7),
    "kernel": (3, 3),
    "strides": (1, 1),
    "dilations": (1, 1),
    "pad": ((1, 1), (1, 1)),
    "planar": False,
}


@pytest.mark.parametrize("groups", [2, 3])
def test_groups(groups: int) -> None:
    check(AVX512, {**_COMMON, "channels": 32 * groups, "filters": 16 * groups}, groups)


def test_symbolic_batch() -> None:
    check(AVX512, {**_COMMON, "batch": 3, "channels": 20, "filters": 24}, symbolic=True)


def test_a_row_too_long_for_the_cache_is_cut() -> None:
    case = {
        **_COMMON,
        "channels": 160,
        "filters": 16,
        "spatial": (3001,),
        "kernel": (5,),
        "strides": (1,),
        "dilations": (2,),
        "pad": ((4, 3),),
    }
    check(AVX512, case)


def test_every_config_of_a_small_space_is_right() -> None:
    """The knobs a tuner may turn change nothing but speed. Tiles of two of the three blocks leave one."""
    work = ConvWorkload(1, 5, 16, (4, 5), (2, 3), (1, 1), (1, 1), ((0, 1), (1, 1)), "float32", 48, 1, 16)
    rule = ConvDirect()
    space = [config for config in rule.space(work, AVX512) if config["unroll"] in (1, 4)]
    rng = np.random.default_rng(1)
    values = rng.standard_normal((1, 5, 4, 5), dtype=np.float32)
    filters = rng.standard_normal((48, 5, 2, 3), dtype=np.float32)
    expected = reference_conv(values, filters, work.strides, work.dilations, work.pad, 1)
    some = space[:: len(space) // 12]
    assert any(config["blocks"] == 2 and config["chunks"] == 1 for config in some)
    for config in some:
        got = _run_config(work, rule, config, values, filters)
        np.testing.assert_allclose(unpack(got, 48), expected, rtol=1e-5, atol=1e-5)


def _run_config(work: ConvWorkload, rule: ConvDirect, config: Any, values: Any, filters: Any) -> Any:
    from schedules.ir.stages import Kernel
    from schedules.selection.apply import apply_rule
    from tests.schedules.blocked import compiled

    data = te.placeholder((1, 1, 4, 5, 16), name="data")
    weight = te.placeholder((3, 1, 2, 3, 16, 16), name="weight")
    conv = conv_compute.conv_direct(data, weight, work)
    function = te.create_prim_func([data, weight, conv]).with_attr("global_symbol", "main")
    kernel = Kernel.of(function)
    module = compiled(tvm.IRModule({"main": apply_rule(rule, kernel, work, config, AVX512)}))
    output = tvm.runtime.tensor(np.zeros(shape_of(conv), dtype="float32"))
    module["main"](tvm.runtime.tensor(pack(values, 16)), tvm.runtime.tensor(pack_filter(filters, 16, 16)), output)
    return output.numpy()


def test_a_task_that_has_only_the_remaining_blocks_writes_nothing_else() -> None:
    """15 blocks are a tile of eight and one of seven, and each is a task."""
    pixel: dict[str, Any] = {"kernel": (1, 1), "spatial": (1, 1), "pad": ((0, 0), (0, 0))}
    check(AVX2, {**_COMMON, **pixel, "batch": 3, "channels": 960, "filters": 120})


def test_defaults_lie_in_their_space() -> None:
    for machine in MACHINES.values():
        lanes = machine.lanes("float32")
        for channels, size in ((64, 56), (128, 28), (256, 14), (512, 7), (208, 14), (3, 1), (960, 1)):
            work = ConvWorkload(
                1, channels, lanes, (size, size), (1, 1), (1, 1), (1, 1), ((0, 0),) * 2, "float32", channels, 1, lanes
            )
            rule = ConvDirect()
            rule.space(work, machine).check(rule.default(work, machine))


def test_a_prime_number_of_blocks_is_cut_into_tiles_of_two_widths() -> None:
    none = ((0, 0), (0, 0))
    work = ConvWorkload(1, 208, 16, (14, 14), (1, 1), (1, 1), (1, 1), none, "float32", 208, 1, 16)
    machine = AVX512.model_copy(update={"fma_ports": 2})
    assert ConvDirect().default(work, machine)["blocks"] == 2


def test_tiles_in_sixteen_registers_hide_latency_in_every_part_of_a_row() -> None:
    machine = AVX2.model_copy(update={"fma_ports": 2})
    tiles = {width: register_tile(width, 24, machine) for width in (7, 10, 14, 28, 56)}
    assert tiles == {7: (4, 3), 10: (5, 2), 14: (5, 2), 28: (4, 2), 56: (4, 2)}


@pytest.mark.parametrize(("in_block", "outermost"), [(1, "k1"), (16, "k0")])
def test_taps_of_a_row_of_plain_input_are_not_next_to_each_other(in_block: int, outermost: str) -> None:
    step, none = (1, 1), ((0, 0), (0, 0))
    work = ConvWorkload(1, 16, 16, (8, 8), (3, 3), step, step, none, "float32", 16, 1, in_block)
    data = te.placeholder((1, 16, 8, 8) if in_block == 1 else (1, 1, 8, 8, 16), "float32", name="data")
    weight = te.placeholder((1, 16 // in_block, 3, 3, in_block, 16), "float32", name="weight")
    function = te.create_prim_func([data, weight, conv_compute.conv_direct(data, weight, work)])
    scheduled, _ = apply_schedules(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}), AVX512)
    text = scheduled["main"].script()
    places = {name: text.index(name) for name in ("k0", "k1")}  # loops name them first
    assert min(places, key=places.__getitem__) == outermost
