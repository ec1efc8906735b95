"""Models with factorized layers: results, unfactorized layers with reasons, and the accuracy limit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import compiler
from compiler.compression.low_rank import LayerTimer
from compiler.errors import AccuracyError, OptionError

Array = np.ndarray[Any, Any]


class _Net(torch.nn.Module):
    """Convolutions with every attribute, one grouped, and a matrix; all of low rank except the last convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.strided = torch.nn.Conv2d(64, 64, 3, stride=2, padding=(1, 0))
        self.dilated = torch.nn.Conv2d(64, 64, (3, 5), dilation=(2, 1), bias=False)
        self.grouped = torch.nn.Conv2d(64, 64, 1, groups=4)
        self.full = torch.nn.Conv2d(64, 64, 1)
        self.head = torch.nn.Linear(64, 200)
        with torch.no_grad():
            for layer in (self.strided, self.dilated, self.head):
                left, _, right = torch.linalg.svd(layer.weight.flatten(1), full_matrices=False)
                scales = torch.cat([torch.linspace(2, 1, 8), torch.full((len(right) - 8,), 1e-3)])
                layer.weight.copy_((left * scales @ right).reshape(layer.weight.shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.dilated(torch.relu(self.strided(x))))
        result: torch.Tensor = self.head(torch.relu(self.full(self.grouped(x))).mean((2, 3)))
        return result


def _case() -> tuple[_Net, Array]:
    torch.manual_seed(0)
    return _Net().eval(), np.random.default_rng(0).standard_normal((1, 64, 21, 20)).astype(np.float32)


def _factored(net: torch.nn.Module, x: Array, **options: Any) -> compiler.CompressedModel:
    return compiler.factorize(net, calibration=[{"x": x}], example_inputs=(torch.from_numpy(x),), threads=1, **options)


@pytest.fixture
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the number of multiplications as the time."""
    monkeypatch.setattr(LayerTimer, "gain", lambda *_: None)


@pytest.mark.usefixtures("no_clock")
def test_layers_of_low_rank_are_replaced_and_the_numbers_stay() -> None:
    net, x = _case()
    model = _factored(net, x, energy=0.999)
    changed = [bool(layer.change) for layer in model.report.layers]
    assert changed == [True, True, False, False, True], str(model.report)
    details = [layer.reason for layer in model.report.layers]
    assert "grouped convolution" in details[2]
    assert details[3].startswith("left whole: ")
    assert model.report.after.bytes < 0.6 * model.report.before.bytes
    (got,) = compiler.compile(model, threads=1).run({"x": x}).values()
    with torch.no_grad():
        wanted = net.double()(torch.from_numpy(x).double()).numpy()
    assert np.abs(got - wanted).max() <= 0.02 * np.abs(wanted).max()


@pytest.mark.usefixtures("no_clock")
def test_what_is_lost_over_the_limit_is_made_whole_again() -> None:
    net, x = _case()
    report = _factored(net, x, energy=0.3, max_drop=5e-4).report
    assert report.drop is not None
    assert report.drop <= 5e-4
    assert any("the limit does not hold" in layer.reason for layer in report.layers)
    with pytest.raises(AccuracyError, match="does not hold with any layer in factors"):
        _factored(net, x, energy=0.3, max_drop=1e-9)


@pytest.mark.usefixtures("no_clock")
def test_a_rank_for_a_speed() -> None:
    net, x = _case()
    details = {layer.name: layer.reason for layer in _factored(net, x, speedup=2.0).report.layers}
    assert list(details) == ["strided", "dilated", "grouped", "full", "head"]
    assert "times fewer multiplications" in details["head"]


@pytest.mark.parametrize("decide", ["predicted", "measured"])
def test_layers_are_compared_in_both_forms(decide: str) -> None:
    """A 512 x 512 matrix of rank 16 needs 16 times fewer multiplications: faster on any machine under any load."""
    random = np.random.default_rng(0)
    net = torch.nn.Linear(512, 512, bias=False).eval()
    low = random.standard_normal((512, 16)) @ random.standard_normal((16, 512)) / 100
    with torch.no_grad():
        net.weight.copy_(torch.from_numpy(low))
    x = random.standard_normal((64, 512)).astype(np.float32)
    options: dict[str, Any] = {"example_inputs": (torch.from_numpy(x),), "threads": 1, "energy": 1 - 1e-9}
    model = compiler.factorize(net, calibration=[{"input": x}], decide=decide, **options)
    (layer,) = model.report.layers
    assert layer.reason.endswith("times faster")
    (got,) = compiler.compile(model, threads=1).run({"input": x}).values()
    wanted = x.astype(np.float64) @ low.T
    assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_options_are_checked() -> None:
    net, x = _case()
    for options, problem in (({"energy": 0}, "energy"), ({"speedup": 1}, "speedup"), ({"minimum_gain": 0.5}, "gain")):
        with pytest.raises(OptionError, match=problem):
            _factored(net, x, **options)


@pytest.mark.usefixtures("no_clock")
def test_a_layer_that_is_not_there() -> None:
    net, x = _case()
    with pytest.raises(OptionError, match="not a layer"):
        _factored(net, x, keep=["nothing"])
