"""Weights with few values: results of k-means, file contents, and the accuracy limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import compiler
from compiler.compression.weight_sharing import shared
from compiler.errors import AccuracyError, OptionError

Array = np.ndarray[Any, Any]
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(1, 5000), bits=st.sampled_from([4, 5, 8]), zeros=st.booleans())
def test_each_value_becomes_the_nearest_of_few(seed: int, size: int, bits: int, zeros: bool) -> None:
    values = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
    if zeros:
        values[::2] = 0
    got = shared(values, bits)
    table = np.unique(got)
    assert len(table) <= 2**bits
    nearest = np.abs(values[:, None].astype(np.float64) - table).min(axis=1)
    np.testing.assert_allclose(np.abs(values.astype(np.float64) - got), nearest, rtol=0, atol=1e-12)
    if zeros:
        assert not got[::2].any()


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_as_near_as_theory_allows(bits: int) -> None:
    """The best mean squared error for normal numbers is pi sqrt(3) / 2 / 4^bits (Panter and Dite), for many centers."""
    values = np.random.default_rng(0).standard_normal(20000).astype(np.float32)
    error = float(((shared(values, bits).astype(np.float64) - values) ** 2).mean())
    assert error < 1.4 * np.pi * 3**0.5 / 2 / 4**bits


class _Net(torch.nn.Module):
    """A convolution with Winograd's method, one without, and a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(16, 32, 3, padding=1)
        self.second = torch.nn.Conv2d(32, 32, 5, stride=2)
        self.head = torch.nn.Linear(32, 130)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        result: torch.Tensor = self.head(x.mean((2, 3)))
        return result


def _case() -> tuple[_Net, Array]:
    torch.manual_seed(0)
    return _Net().eval(), np.random.default_rng(0).standard_normal((1, 16, 18, 18)).astype(np.float32)


def _shared(net: torch.nn.Module, x: Array, **options: Any) -> compiler.CompressedModel:
    return compiler.share_weights(
        net, calibration=[{"x": x}], example_inputs=(torch.from_numpy(x),), threads=1, **options
    )


@pytest.mark.parametrize("bits", [4, 6])
def test_the_module_computes_with_the_shared_weights_and_its_file_is_that_much_smaller(
    bits: int, tmp_path: Path
) -> None:
    net, x = _case()
    model = _shared(net, x, bits=bits, max_drop=0.5)
    assert all(layer.change for layer in model.report.layers)
    module = compiler.compile(model, threads=1)
    module.export(tmp_path / "shared.twm")
    (got,) = compiler.load(tmp_path / "shared.twm").run({"x": x}).values()
    with torch.no_grad():
        for layer in (net.first, net.second, net.head):
            layer.weight.copy_(torch.from_numpy(shared(layer.weight.numpy(), bits)))
        wanted = net.double()(torch.from_numpy(x).double()).numpy()
    assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()
    weights = sum(layer.weight.numel() for layer in (net.first, net.second, net.head))
    # The rest: tables, biases, whole vectors of 130 columns, the matrix of Winograd's method.
    assert module.artifact.parameter_bytes <= weights * bits / 8 + 6144
    assert model.report.after.bytes < model.report.before.bytes * bits / 32 + 6144


def test_more_bits_are_taken_where_the_limit_asks_for_them() -> None:
    net, x = _case()
    exact = net(torch.from_numpy(x)).detach().numpy()

    def evaluate(run: Run) -> float:
        (got,) = run({"x": x}).values()
        return 1 - float(np.abs(got - exact).max() / np.abs(exact).max())

    report = _shared(net, x, bits=4, evaluate=evaluate, max_drop=0.02).report
    assert report.drop is not None
    assert report.drop <= 0.02
    assert report.settings["bits"] > 4
    with pytest.raises(AccuracyError, match="does not hold"):
        _shared(net, x, evaluate=evaluate, max_drop=1e-7)


def test_options_are_checked() -> None:
    net, x = _case()
    with pytest.raises(OptionError, match="bits=3"):
        _shared(net, x, bits=3)
    tiny = torch.nn.Linear(4, 4).eval()
    with pytest.raises(OptionError, match="no weight"):
        compiler.share_weights(tiny, example_inputs=(torch.ones(1, 4),))
