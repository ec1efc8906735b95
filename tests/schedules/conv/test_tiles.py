"""Convolution by instructions whose sums stay in tiles, on a simulated processor: numbers against numpy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import targets
from schedules.config import Config
from schedules.conv.dot import conv_dot
from schedules.conv.tiles import ConvTiles, tiles_workload
from schedules.conv.workload import ConvWorkload, TilesWorkload
from schedules.selection.apply import apply_schedules
from tests.schedules.blocked import reference_conv, unpack
from tests.schedules.conv.test_direct import _COMMON, convolutions
from tests.schedules.conv.test_dot import HALVES, KINDS, operands, pack, pack_weight, run_kernel

import tvm  # isort: skip
from tvm import te  # isort: skip

MACHINE = targets.get("granite-rapids-simulated", cores=2).machine
_CUBE = {"kernel": (3, 3, 3), "pad": ((1, 1),) * 3, "strides": (1, 1, 1), "dilations": (1, 1, 1)}
_LANES = 16


def workload(kind: str, case: dict[str, Any], fill: int = 0) -> TilesWorkload | None:
    names = ("batch", "channels", "spatial", "kernel", "strides", "dilations", "filters")
    fields = {name: case[name] for name in names} | {"groups": case.get("groups", 1)}
    work = ConvWorkload(**fields, pad=tuple(case["pad"]), block=_LANES, dtype="float32", in_block=_LANES)
    return tiles_workload(work, kind, MACHINE, fill)


def tensors_of(work: TilesWorkload) -> tuple[Any, Any, Any]:
    place = (work.batch, -(-work.channels // _LANES), *work.spatial, _LANES)
    data = te.placeholder(place, work.operand, name="data")
    shape = (-(-work.filters // work.panel), work.in_blocks, *work.kernel, 16, work.panel * work.group)
    weight = te.placeholder(shape, work.operand if work.of_halves else "int8", name="weight")
    return data, weight, conv_dot(data, weight, work)


def check(kind: str, case: dict[str, Any], fill: int = 0) -> None:
    work = workload(kind, case, fill)
    assert work is not None
    data, weight, conv = tensors_of(work)
    doubled = te.compute(conv.shape, lambda *at: conv(*at) + conv(*at), name="doubled")
    shapes = (work.batch, work.channels, *work.spatial), (work.filters, work.group_channels, *work.kernel)
    x, w, x_meant, w_meant = operands(np.random.default_rng(0), kind, *shapes)
    packed = [pack(x, _LANES), pack_weight(w, work.in_block, work.panel, work.group)]
    got = unpack(run_kernel([data, weight, doubled], packed, MACHINE, "conv-tiles"), work.filters) / 2
    amounts = [(0, 0), (0, 0), *work.pad]
    whole = np.pad(x_meant.astype(np.float64), amounts, constant_values=fill)
    expected = reference_conv(whole, w_meant, work.strides, work.dilations, [(0, 0)] * work.rank, work.groups)
    if not work.of_halves:
        np.testing.assert_array_equal(got, expected)
        return
    # Products of 16-bit floats are exact in float32; each addition rounds once.
    terms = work.group_channels * np.prod(work.kernel)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-7 * terms + 1e-6)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=7, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(case=convolutions(), fill=st.integers(0, 127))
def test_random_shapes(kind: str, case: dict[str, Any], fill: int) -> None:
    assume(case["dilations"][:-2] in ((), (1,)) and workload(kind, case) is not None)
    check(kind, case, fill=0 if kind in HALVES else fill)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "case",
    [
        {"channels": 70, "filters": 49, "spatial": (9, 11)},
        {"channels": 64, "filters": 64, "spatial": (7, 7), "kernel": (1, 1), "pad": ((0, 0), (0, 0))},
        {"channels": 33, "filters": 32, "spatial": (14, 30), "strides": (2, 2)},
        {"channels": 16, "filters": 16, "spatial": (5, 260)},
        {"channels": 96, "filters": 192, "spatial": (9, 8), "groups": 2},
        {"channels": 64, "filters": 64, "spatial": (7, 7), "groups": 4, "strides": (2, 2)},
        {"channels": 40, "filters": 33, "spatial": (5, 6, 7), **_CUBE},
        {"channels": 64, "filters": 32, "spatial": (4, 9, 20), **_CUBE, "strides": (2, 2, 1), "groups": 2},
    ],
)
def test_sizes_of_nets(kind: str, case: dict[str, Any]) -> None:
    check(kind, {**_COMMON, **case})


def test_every_config_is_right() -> None:
    work = workload("uint8", {**_COMMON, "channels": 40, "filters": 64, "spatial": (10, 9)})
    assert work is not None
    data, weight, conv = tensors_of(work)
    function = te.create_prim_func([data, weight, conv]).with_attr("global_symbol", "main")
    space = ConvTiles().space(work, MACHINE)
    assert {"rows", "chunks"} == set(space.knobs)
    x, w, x_meant, w_meant = operands(np.random.default_rng(1), "uint8", (1, 40, 10, 9), (64, 40, *work.kernel))
    packed = [pack(x, _LANES), pack_weight(w, work.in_block, work.panel, work.group)]
    expected = reference_conv(x_meant.astype(np.float64), w_meant, work.strides, work.dilations, work.pad, 1)
    for rows, chunks in ((1, 1), (3, 2), (10, 1), (7, 2)):
        config = Config.of(rows=rows, chunks=chunks)
        scheduled, report = apply_schedules(tvm.IRModule({"main": function}), MACHINE, lambda *_, c=config: c)
        assert not report.failures
        module = tvm.compile(scheduled, target=targets.get("host").tvm_target())
        output = tvm.runtime.tensor(np.zeros([int(each) for each in conv.shape], "int32"))
        module["main"](*(tvm.runtime.tensor(each) for each in packed), output)
        np.testing.assert_array_equal(unpack(output.numpy(), 64), expected)


def test_what_tiles_do_not_serve() -> None:
    work = workload("uint16", {**_COMMON, "channels": 32, "filters": 32})
    assert work is not None
    plain = ConvWorkload(**{name: getattr(work, name) for name in ConvWorkload.__dataclass_fields__})
    assert tiles_workload(replace(plain, in_block=16, groups=2), "uint16", MACHINE) is not None
    assert tiles_workload(replace(plain, in_block=16, channels=1), "uint16", MACHINE) is None  # mostly empty rows
    cube = workload("uint16", {**_COMMON, "channels": 32, "filters": 32, "spatial": (5, 6, 7), **_CUBE})
    assert cube is not None
    dilated = {**_COMMON, "channels": 32, "filters": 32, "spatial": (9, 6, 7), **_CUBE, "dilations": (2, 1, 1)}
    assert workload("uint16", dilated) is None
    assert tiles_workload(replace(plain, in_block=1), "uint16", MACHINE) is None
    assert tiles_workload(replace(plain, in_block=16), "uint16", targets.get("znver4").machine) is None
