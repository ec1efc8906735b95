"""plan-layout of transposed convolutions: which kernels they become, and that the numbers are torch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tvm import relax

from compiler.passes.context import PipelineContext
from compiler.passes.layout.plan_layout import plan_layout
from compiler.passes.layout.transposed import Phase, PhaseConvolutions
from compiler.passes.rewriting.matching import as_constant
from schedules import Machine
from tests.compiler.passes.building import Build, kernel_names, run_scheduled

MACHINE = Machine(architecture="x86_64", vector_bits=256, vector_registers=16)
Array = NDArray[Any]


def transposed(shape: tuple[int, ...], weight: Array, **attributes: Any) -> Any:
    operator = [relax.op.nn.conv1d_transpose, relax.op.nn.conv2d_transpose, relax.op.nn.conv3d_transpose]
    build = Build()
    call = operator[len(shape) - 3](build.input("x", shape), as_constant(weight), **attributes)
    return build.module(build.emit(call))


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def planned(shape: tuple[int, ...], weight: Array, **attributes: Any) -> list[str]:
    return kernel_names(plan_layout(transposed(shape, weight, **attributes), PipelineContext(machine=MACHINE)))


def test_wide_layers_get_a_convolution_a_phase() -> None:
    names = planned((1, 64, 8, 8), random(64, 64, 4, 4), strides=2, padding=1)
    assert names == ["pack", *["conv2d"] * 4, "interleave", "unpack"]


def test_few_filters_share_the_blocks_of_one_convolution() -> None:
    shape, weight = (1, 64, 32, 32), random(64, 3, 4, 4)
    mod = plan_layout(transposed(shape, weight, strides=2, padding=1), PipelineContext(machine=MACHINE))
    assert kernel_names(mod) == ["pack", "conv2d_transpose", "interleave", "unpack"]
    (made,) = [function for name, function in mod.functions_items() if "conv2d_transpose" in name.name_hint]
    assert made.params[-1].ty.shape[1] == 2  # 4 phases of 3 filters in 2 blocks of 8 lanes


def test_one_input_is_a_product() -> None:
    mod = plan_layout(transposed((1, 100, 1, 1), random(100, 32, 4, 4)), PipelineContext(machine=MACHINE))
    (made,) = [function for name, function in mod.functions_items() if "conv2d_transpose" in name.name_hint]
    assert [int(size) for size in made.params[-1].ty.shape] == [1, 32 * 16 // 8, 1, 1, 8]


def test_depthwise_stays_depthwise() -> None:
    shape, weight = (1, 24, 6, 7), random(24, 1, 4, 4)
    mod = plan_layout(transposed(shape, weight, strides=2, padding=1, groups=24), PipelineContext(machine=MACHINE))
    weights = [function.params[1].ty.shape for name, function in mod.functions_items() if "conv2d" in name.name_hint]
    assert [[int(size) for size in each] for each in weights] == [[24 // 8, 2, 2, 8]] * 4


def test_a_phase_has_its_own_taps_and_positions() -> None:
    # Kernel 3, stride 2, padding 1, 4 inputs, 7 outputs: the even outputs are the middle tap's, the odd ones two taps'.
    assert Phase.of(0, 4, 7, 3, 2, 1) == Phase(1, 1, 4, (0, 0))
    assert Phase.of(1, 4, 7, 3, 2, 1) == Phase(0, 2, 3, (0, 0))
    assert PhaseConvolutions.of((1, 8, 4), (1, 8, 7), (1,), (2,), (0,), 1) is None  # stride above the kernel


@st.composite
def layers(draw: st.DrawFn) -> dict[str, Any]:
    rank = draw(st.sampled_from([1, 2, 2, 3]))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    sizes = [draw(st.integers(1, 7 if rank < 3 else 4)) for _ in range(rank)]
    kernel = [draw(st.integers(1, 6 if rank < 3 else 3)) for _ in range(rank)]
    strides = [draw(st.integers(1, 4 if rank < 3 else 2)) for _ in range(rank)]
    dilation = [draw(st.sampled_from([1, 1, 2])) for _ in range(rank)]
    extra = [draw(st.integers(0, max(0, stride - 1))) for stride in strides]
    padding = []
    for size, taps, stride, step, more in zip(sizes, kernel, strides, dilation, extra, strict=True):
        most = ((size - 1) * stride + step * (taps - 1) + more) // 2
        padding.append(draw(st.integers(0, min(most, step * (taps - 1)))))
    return {
        "channels": groups * draw(st.sampled_from([1, 3, 8, 11])),
        "each": draw(st.sampled_from([1, 3, 8, 13])),
        "sizes": sizes,
        "kernel": kernel,
        "stride": strides,
        "padding": padding,
        "output_padding": extra,
        "dilation": dilation,
        "groups": groups,
    }


@settings(max_examples=22, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(layers())
def test_numbers_of_random_layers(layer: dict[str, Any]) -> None:
    check(layer)


@pytest.mark.parametrize("kernel", [(3, 3), (4, 4), (5, 2)])
@pytest.mark.parametrize("filters", [3, 16])
def test_numbers_of_what_networks_have(kernel: tuple[int, int], filters: int) -> None:
    layer = {"channels": 24, "each": filters, "sizes": [9, 11], "kernel": kernel, "stride": [2, 2]}
    check({**layer, "padding": [1, 1], "output_padding": [1, 0], "dilation": [1, 1], "groups": 1})


def check(layer: dict[str, Any]) -> None:
    shape = (2, layer["channels"], *layer["sizes"])
    weight = random(layer["channels"], layer["each"], *layer["kernel"], seed=1)
    data = random(*shape, seed=2)
    rank, groups = len(layer["sizes"]), layer["groups"]
    names = ("stride", "padding", "output_padding", "groups", "dilation")
    function = [torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d][rank - 1]
    operands = torch.from_numpy(data).double(), torch.from_numpy(weight).double(), None
    expected = function(*operands, *(layer[name] for name in names)).numpy()
    attributes = {"strides": layer["stride"], "output_padding": layer["output_padding"], "dilation": layer["dilation"]}
    mod = transposed(shape, weight, **attributes, padding=layer["padding"] * 2, groups=groups)
    got = run_scheduled(mod, PipelineContext(machine=MACHINE), [data])
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
