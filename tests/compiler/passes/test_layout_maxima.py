"""Global maxima as frontends write them: in the blocked layout, and NaN where the input has one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import compiler


class Maxima(torch.nn.Module):
    """The largest of each filter's values over some axes."""

    def __init__(self, axes: tuple[int, ...], keep: bool) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(1, 20, 1, bias=False)
        with torch.no_grad():
            self.convolution.weight.abs_()
        self.axes, self.keep = axes, keep

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.amax(self.convolution(x), self.axes, keepdim=self.keep)


def found(net: torch.nn.Module, x: torch.Tensor) -> tuple[np.ndarray, list[str | None]]:
    module = compiler.compile(net, example_inputs=(x,), records=False)
    (result,) = module.run({module.manifest.inputs[0].name: x.numpy()}).values()
    return np.asarray(result), [kernel.rule for kernel in module.manifest.kernels]


@pytest.mark.parametrize("keep", [False, True])
def test_a_maximum_over_the_image_stays_in_blocks(keep: bool) -> None:
    net = Maxima((2, 3), keep).eval()
    x = torch.randn(4, 1, 9, 7)
    x[1, 0, 4, 4] = torch.nan
    x[2] = -torch.inf
    result, rules = found(net, x)
    np.testing.assert_allclose(result, net(x).detach().numpy(), rtol=1e-5, atol=1e-6)
    assert np.isnan(result[1]).all()
    assert (result[2] == -np.inf).all()
    assert "global-pool" in rules


@pytest.mark.parametrize("axes", [(3,), (1,), (1, 2, 3), (0, 2, 3)])
def test_other_maxima_are_left_alone(axes: tuple[int, ...]) -> None:
    net = Maxima(axes, False).eval()
    x = torch.randn(4, 1, 9, 7)
    result, rules = found(net, x)
    np.testing.assert_allclose(result, net(x).detach().numpy(), rtol=1e-5, atol=1e-6)
    assert "global-pool" not in rules
