"""Winograd's convolution of bytes: exact, whatever the numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schedules import Machine
from schedules.conv.winograd import (
    WinogradInteger,
    conv_winograd_integer,
    integer_winograd_pays,
    pack_integer_filter,
)
from schedules.conv.workload import DotWorkload, IntegerWinogradWorkload
from schedules.selection.apply import apply_schedules
from tests.schedules.blocked import AVX2, AVX512, Array, blocks, compiled, unpack
from tests.schedules.conv.test_dot import _HOST, pack

import tvm  # isort: skip
from tvm import te  # isort: skip

PAIRS = AVX2.model_copy(update={"features": frozenset({"avx2"})})


def _work(
    channels: int, filters: int, spatial: tuple[int, int], operand: str = "uint8", fill: int = 0, **more: Any
) -> DotWorkload:
    given_: dict[str, Any] = {"batch": 1, "pad": ((1, 1), (1, 1)), "lanes": 8, "stride": 1, **more}
    return DotWorkload(
        given_["batch"],
        channels,
        given_["lanes"],
        spatial,
        (3, 3),
        (given_["stride"],) * 2,
        (1, 1),
        given_["pad"],
        "int32",
        filters,
        1,
        given_["lanes"],
        operand=operand,
        fill=fill,
    )


def _run(work: DotWorkload, values: Array, filters: Array, machine: Machine) -> Array:
    lanes = work.block
    data = te.placeholder((work.batch, blocks(work.channels, lanes), *work.spatial, lanes), work.operand, name="data")
    packed = pack_integer_filter(filters, lanes, work.strides[0])
    weight = te.placeholder(packed.shape, "int16", name="weight")
    function = te.create_prim_func([data, weight, conv_winograd_integer(data, weight, work)])
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    scheduled, report = apply_schedules(module, machine)
    assert not report.failures, report.failures
    assert [kernel.rule for kernel in report.kernels] == ["conv-winograd-integer"]
    built = compiled(scheduled)
    shape = (work.batch, work.out_blocks, *work.out_spatial, lanes)
    output = tvm.runtime.tensor(np.full(shape, 7, "int32"))
    built["main"](tvm.runtime.tensor(pack(values, lanes)), tvm.runtime.tensor(packed), output)
    return unpack(output.numpy(), work.filters)


def _reference(values: Array, filters: Array, work: DotWorkload) -> Array:
    padded = np.pad(values.astype(np.int64), [(0, 0), (0, 0), *work.pad], constant_values=work.fill)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    windows = windows[:, :, :: work.strides[0], :: work.strides[1]]
    result: Array = np.einsum("ncyxuv,fcuv->nfyx", windows, filters.astype(np.int64), optimize=True)
    return result


@st.composite
def cases(draw: Any) -> DotWorkload:
    """Odd sizes, asymmetric padding, channels of no whole blocks."""
    operand = draw(st.sampled_from(["uint8", "int8"]))
    return _work(
        draw(st.sampled_from([1, 5, 8, 19])),
        draw(st.sampled_from([1, 7, 8, 24])),
        (draw(st.integers(4, 15)), draw(st.integers(4, 15))),
        operand,
        draw(st.integers(0, 255)) if operand == "uint8" else draw(st.integers(-128, 127)),
        batch=draw(st.integers(1, 2)),
        stride=draw(st.integers(1, 2)),
        pad=tuple((draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in range(2)),
    )


@pytest.mark.skipif("avx2" not in _HOST, reason="this machine has no AVX2")
@settings(max_examples=7, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(work=cases())
def test_random_shapes(work: DotWorkload) -> None:
    check(work, PAIRS)


def check(work: DotWorkload, machine: Machine) -> None:
    rng = np.random.default_rng(0)
    limits = np.iinfo(work.operand)
    values = rng.integers(limits.min, limits.max + 1, (work.batch, work.channels, *work.spatial)).astype(work.operand)
    filters = rng.integers(-128, 128, (work.filters, work.channels, 3, 3)).astype(np.int8)
    np.testing.assert_array_equal(_run(work, values, filters, machine), _reference(values, filters, work))


@pytest.mark.skipif("avx2" not in _HOST, reason="this machine has no AVX2")
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_are_exact(sign: int) -> None:
    """Sums of products wrap around here: 4 * 255 * 127 * 9 * 1840 is just below 2**31."""
    work = _work(1840, 8, (4, 4))
    values = np.full((1, 1840, 4, 4), 255, np.uint8)
    filters = np.full((8, 1840, 3, 3), sign * 127, np.int8)
    np.testing.assert_array_equal(_run(work, values, filters, PAIRS), _reference(values, filters, work))


def test_it_is_chosen_where_it_is_exact_and_saves_time() -> None:
    small = np.ones((64, 64, 3, 3), np.int8)
    work = _work(64, 64, (56, 56))
    assert integer_winograd_pays(work, small, PAIRS)
    assert not integer_winograd_pays(work, small, AVX512)  # has no pairs
    assert not integer_winograd_pays(work, small, AVX2.model_copy(update={"features": frozenset({"avx2", "avxvnni"})}))
    assert not integer_winograd_pays(_work(64, 64, (1, 1)), small, PAIRS)  # most of a tile would be thrown away
    assert integer_winograd_pays(_work(128, 256, (28, 28), stride=2), np.ones((256, 128, 3, 3), np.int8), PAIRS)
    for channels, fits in ((1840, True), (1848, False)):
        large = np.full((256, channels, 3, 3), 127, np.int8)
        assert integer_winograd_pays(_work(channels, 256, (56, 56)), large, PAIRS) == fits


def test_defaults_lie_in_their_space() -> None:
    rule = WinogradInteger()
    for channels, size in ((64, 56), (512, 7), (24, 13), (16, 112)):
        work = IntegerWinogradWorkload(**vars(_work(channels, channels, (size, size))))
        rule.space(work, PAIRS).check(rule.default(work, PAIRS))
