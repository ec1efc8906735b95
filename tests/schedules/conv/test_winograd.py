"""Winograd's convolution: exact matrices, the error bounds that are stated, random shapes, and when it is chosen."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schedules.conv import compute as conv_compute
from schedules.conv.winograd import Winograd
from schedules.conv.winograd_tiling import Register, split_winograd, winograd_form
from schedules.conv.winograd_transforms import bounds, edge_of, spread_weight, transforms
from schedules.conv.workload import ConvWorkload, WinogradWorkload
from schedules.machine import Machine
from tests.schedules.blocked import (
    AVX512,
    MACHINES,
    Array,
    blocks,
    pack,
    reference_conv,
    relu,
    run_scheduled,
    unpack,
)

from tvm import te  # isort: skip

STEP = (1, 1)
KNOBS = ("blocks", "pixels", "tiles", "chunks")  # of `Register`
FORMS = [(tile, stride) for stride in (1, 2) for tile in bounds(stride)]
FILTERS = pytest.mark.parametrize("transforms_filters", [False, True], ids=["stored", "transformed"])


def _work(
    channels: int,
    filters: int,
    spatial: tuple[int, int],
    lanes: int = 16,
    batch: int = 1,
    pad: Any = ((1, 1), (1, 1)),
    stride: int = 1,
) -> ConvWorkload:
    strides = (stride, stride)
    return ConvWorkload(batch, channels, lanes, spatial, (3, 3), strides, STEP, pad, "float32", filters, 1, lanes)


def _winograd(work: ConvWorkload, tile: int, transforms_filters: bool = False) -> WinogradWorkload:
    return WinogradWorkload(**vars(work), tile=tile, transforms_filters=transforms_filters)


def _tile(work: ConvWorkload, machine: Machine, error_bound: float) -> int | None:
    form = winograd_form(work, machine, error_bound)
    return None if form is None else form.tile


def _pack_spread(spread: Array, lanes: int) -> Array:
    filters, channels = spread.shape[:2]
    outer = blocks(filters, lanes)
    padded = np.pad(spread.reshape(filters, channels, -1), [(0, outer * lanes - filters), (0, 0), (0, 0)])
    return np.ascontiguousarray(padded.reshape(outer, lanes, channels, -1).transpose(0, 3, 2, 1))


def _run(work: WinogradWorkload, values: Array, filters: Array, machine: Any) -> Array:
    lanes = work.block
    data = te.placeholder((work.batch, blocks(work.channels, lanes), *work.spatial, lanes), name="data")
    if work.transforms_filters:
        packed = np.ascontiguousarray(_pack_spread(filters, lanes).swapaxes(1, 2))
    else:
        matrix = np.array(transforms(work.tile, work.strides[0]).weight)
        packed = _pack_spread(spread_weight(filters, matrix).astype(np.float32), lanes)
    weight = te.placeholder(packed.shape, name="weight")
    conv = conv_compute.conv_winograd(data, weight, work)
    arrays = [pack(values, lanes), packed]
    shape = (work.batch, work.out_blocks, *work.out_spatial, lanes)
    return unpack(run_scheduled([data, weight, relu(conv)], arrays, machine, "conv-winograd", shape), work.filters)


@pytest.mark.parametrize(("tile", "stride"), FORMS)
def test_the_matrices_compute_a_convolution(tile: int, stride: int) -> None:
    """In exact arithmetic but for the rounding of a matrix entry to float64."""
    matrices = transforms(tile, stride)
    edge = edge_of(tile, stride)
    data = [Fraction(3 * i * i - 7 * i + 2, 5) for i in range(edge)]
    kernel = [Fraction(2), Fraction(-3, 7), Fraction(5, 3)]

    def times(matrix: Any, vector: list[Any]) -> list[Any]:
        return [sum(Fraction(m) * v for m, v in zip(row, vector, strict=True)) for row in matrix]

    spread = [a * b for a, b in zip(times(matrices.input, data), times(matrices.weight, kernel), strict=True)]
    for place, value in enumerate(times(matrices.output, spread)):
        expected = sum(data[place * stride + i] * kernel[i] for i in range(3))
        assert abs(float(value - expected)) < 1e-13


@pytest.mark.parametrize(("tile", "stride"), FORMS)
def test_input_and_output_matrices_are_exact_in_binary(tile: int, stride: int) -> None:
    matrices = transforms(tile, stride)
    for row in (*matrices.input, *matrices.output):
        for entry in row:
            assert float(np.float32(entry)) == entry


@pytest.mark.parametrize(("tile", "stride"), FORMS)
@pytest.mark.parametrize("channels", [16, 128, 512])
@FILTERS
def test_error_bound(tile: int, stride: int, channels: int, transforms_filters: bool) -> None:
    rng = np.random.default_rng(channels)
    work = _winograd(_work(channels, 16, (18, 18), stride=stride), tile, transforms_filters)
    values = np.abs(rng.standard_normal((1, channels, 18, 18), dtype=np.float32))
    filters = rng.standard_normal((16, channels, 3, 3), dtype=np.float32)
    expected = np.maximum(reference_conv(values, filters, work.strides, STEP, work.pad, 1), 0)
    error = _run(work, values, filters, AVX512) - expected
    assert np.sqrt((error**2).mean() / (expected**2).mean()) < bounds(stride)[tile]


@st.composite
def shapes(draw: Any) -> dict[str, Any]:
    """Odd sizes, asymmetric padding, channels of no whole blocks."""
    pad = tuple((draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in range(2))
    return {
        "channels": draw(st.sampled_from([1, 5, 16, 33])),
        "filters": draw(st.sampled_from([1, 7, 16, 40])),
        "spatial": tuple(draw(st.integers(4, 23)) for _ in range(2)),
        "batch": draw(st.integers(1, 2)),
        "pad": pad,
    }


@pytest.mark.parametrize("machine", MACHINES)
@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(case=shapes(), form=st.sampled_from(FORMS))
def test_random_shapes(machine: str, case: dict[str, Any], form: tuple[int, int]) -> None:
    check(MACHINES[machine], case, form)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("form", [(4, 1), (2, 2)])
def test_filters_transformed_by_each_task(machine: str, form: tuple[int, int]) -> None:
    """The input channels in whole parts and one that is shorter; more filters than fill the last block."""
    for channels, side in ((224, 9), (16, 23)):
        case = {"channels": channels, "filters": 40, "spatial": (side, side + 3), "batch": 2}
        check(MACHINES[machine], case, form, transforms_filters=True)


def check(description: Machine, case: dict[str, Any], form: tuple[int, int], transforms_filters: bool = False) -> None:
    tile, stride = form
    plain = _work(lanes=description.lanes("float32"), stride=stride, **case)
    work = _winograd(plain, tile, transforms_filters and plain.channels % plain.block == 0)
    rng = np.random.default_rng(0)
    values = rng.standard_normal((work.batch, work.channels, *work.spatial), dtype=np.float32)
    filters = rng.standard_normal((work.filters, work.channels, 3, 3), dtype=np.float32)
    expected = np.maximum(reference_conv(values, filters, work.strides, STEP, work.pad, 1), 0)
    # The bound is on the mean; the largest of some thousand errors is a few tens of times that, at outputs of ~17, as
    # 33 channels have them: outputs and errors grow with the root of their number.
    atol = 3e-4 * max(1.0, (work.channels / 33) ** 0.5)
    np.testing.assert_allclose(_run(work, values, filters, description), expected, rtol=1e-4, atol=atol)


def test_it_is_chosen_where_it_saves_time() -> None:
    assert _tile(_work(64, 64, (56, 56)), AVX512, 1e-6) == 4
    assert _tile(_work(64, 64, (56, 56)), AVX512, 4e-7) == 2
    assert _tile(_work(64, 64, (56, 56)), AVX512, 1e-8) is None
    assert _tile(_work(512, 512, (2, 2)), AVX512, 1e-6) is None
    assert _tile(_work(64, 128, (56, 56), stride=2), AVX512, 1e-6) == 4
    assert _tile(_work(128, 256, (28, 28), stride=2), AVX512, 1e-6) == 2
    assert _tile(_work(512, 512, (14, 14), stride=2), AVX512, 1e-6) is None  # weights outweigh what is saved


@pytest.mark.parametrize("case", [(256, 256, 14, 1), (512, 512, 7, 1)])
def test_the_input_is_transformed_once_where_many_tasks_share_it(case: tuple[int, int, int, int]) -> None:
    channels, filters, side, stride = case
    machine = AVX512.model_copy(update={"cores": 32, "memory_rate": 56.0})
    work = _work(channels, filters, (side, side), stride=stride)
    form = winograd_form(work, machine, 1e-6)
    assert form is not None, "on two threads of such a machine it takes 0.6 of the time of a direct convolution"
    config = Winograd().default(form, machine)
    found = split_winograd(form, Register(*(config.integer(name) for name in KNOBS)), machine)
    assert found.transforms is not None
    check(machine, {"channels": channels, "filters": filters, "spatial": (side, side)}, (form.tile, stride))


def test_tasks_transform_filters_that_would_come_late_from_memory() -> None:
    def transforms_filters(work: ConvWorkload, memory_rate: float) -> bool:
        form = winograd_form(work, AVX512.model_copy(update={"memory_rate": memory_rate}), 1e-6)
        assert form is not None
        return form.transforms_filters

    assert transforms_filters(_work(512, 512, (7, 7)), 4.0)
    assert transforms_filters(_work(256, 256, (14, 14)), 10.0)
    assert not transforms_filters(_work(64, 64, (56, 56)), 4.0), "they stay in the second cache"
    assert not transforms_filters(_work(512, 512, (7, 7), batch=16), 10.0), "each image would transform them again"


def test_many_cores_do_not_draw_large_tiles_filters_from_memory_again_and_again() -> None:
    def tile(cores: int) -> int | None:
        machine = AVX512.model_copy(update={"cores": cores, "memory_rate": max(13.0, 1.6 * cores)})
        return _tile(_work(128, 32, (14, 14)), machine, 1e-6)

    assert [tile(cores) for cores in (2, 16, 32)] == [4, 2, 2]


@pytest.mark.parametrize(
    "change",
    [
        {"strides": (2, 1)},
        {"strides": (3, 3)},
        {"dilations": (1, 2)},
        {"kernel": (3, 5)},
        {"groups": 2},
        {"in_block": 1},
        {"dtype": "float16"},
    ],
)
def test_it_is_not_chosen_for_what_it_can_not_do(change: dict[str, Any]) -> None:
    work = ConvWorkload(**{**vars(_work(64, 64, (56, 56))), **change})
    assert _tile(work, AVX512, 1.0) is None


def test_defaults_lie_in_their_space() -> None:
    rule = Winograd()
    for machine in MACHINES.values():
        lanes = machine.lanes("float32")
        for channels, size in ((64, 56), (512, 7), (24, 13), (16, 224)):
            work = WinogradWorkload(**vars(_work(channels, channels, (size, size), lanes)), tile=4)
            rule.space(work, machine).check(rule.default(work, machine))
