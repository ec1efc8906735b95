"""Kernels of small images whose number is known only when they run."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import compiler
import targets

NET = nn.Sequential(
    nn.Conv2d(3, 8, 3, 2, 1),  # direct
    nn.Conv2d(8, 16, 3, padding=1),  # Winograd's
    nn.Conv2d(16, 16, 3, padding=1, groups=16),
    nn.MaxPool2d(3, 2, 1),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
).eval()


def test_threads_share_images_that_do_not_pay_one_by_one() -> None:
    x = torch.randn(19, 3, 16, 16)
    module = compiler.compile(
        NET,
        targets.get("x86-64-v3", cores=2),  # one processor: others choose other methods for these sizes
        example_inputs=(x[:2],),
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        threads=2,
    )
    window = {"conv-direct", "conv-winograd", "conv-depthwise", "pool", "global-pool"}
    kernels = [kernel for kernel in module.manifest.kernels if kernel.rule in window]
    assert {kernel.rule for kernel in kernels} == window
    assert [kernel.tasks for kernel in kernels] == [("?",)] * len(kernels)  # decided when the module runs
    for batch in (1, 19):
        expected = NET(x[:batch]).detach().numpy()
        np.testing.assert_allclose(np.asarray(module(x[:batch])), expected, rtol=1e-5, atol=1e-5)
