"""split-dilated: which convolutions are computed tap by tap, and that their results stay equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tvm import relax

import compiler
from compiler.passes.context import PipelineContext
from compiler.passes.registry import get_pass
from compiler.passes.rewriting.matching import array_of
from schedules.machine import Machine
from tests.compiler.passes.building import Build, operators

nn = relax.op.nn


def split(mod: Any) -> list[str]:
    return operators(get_pass("split-dilated")(mod, PipelineContext(machine=Machine(l2_bytes=1 << 20))))


@pytest.mark.parametrize(
    ("channels", "size", "dilation", "convolutions"),
    [
        (128, (8, 8), 6, 9),  # mostly padding
        (512, (40, 40), 4, 9),  # too large for the cache
        (128, (8, 8), 1, 1),  # not dilated
        (64, (8, 8), 6, 1),  # few channels
        (128, (16, 16), 2, 1),  # little padding, and it fits
    ],
)
def test_which_convolutions_are_split(channels: int, size: tuple[int, int], dilation: int, convolutions: int) -> None:
    build = Build()
    x = build.input("x", (1, channels, *size))
    mod = build.module(build.emit(nn.conv2d(x, build.constant((8, channels, 3, 3)), 1, dilation, dilation)))
    assert split(mod).count("nn.conv2d") == convolutions


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("size", "dilation"), [((9, 7), 5), ((13, 3), (2, 7)), ((1, 11), (4, 6))])
def test_numbers_are_those_of_torch(size: tuple[int, int], dilation: int | tuple[int, int], stride: int) -> None:
    torch.manual_seed(4)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 131, 1),
        torch.nn.Conv2d(131, 19, 3, stride=stride, padding=dilation, dilation=dilation),
        torch.nn.ReLU(),
    ).eval()
    image = torch.randn(2, 3, *size)
    expected = net.double()(image.double()).detach()
    module = compiler.compile(net.float(), example_inputs=(image,))
    (got,) = module.run({module.manifest.inputs[0].name: image.numpy()}).values()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_signals_are_split_too() -> None:
    build = Build()
    x = build.input("x", (1, 256, 40))
    weight = build.constant((16, 256, 3))
    mod = build.module(build.emit(nn.conv1d(x, weight, padding=(64, 0), dilation=32)))
    assert split(mod).count("nn.conv1d") == 2  # the tap of 64 back meets nothing
    assert array_of(weight).shape == (16, 256, 3)
