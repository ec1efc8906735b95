"""Pruning of whole layers: the graph without them is the net without them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import compiler
from benchmarks.digits import DigitsTransformer, Residual
from compiler.compression.pruning.layers import find_residual_layers
from compiler.errors import OptionError
from compiler.frontends.source import import_model


class Chain(nn.Module):
    """Residual blocks, one whose shortcut is a convolution, and a sum of two paths: (batch, 3, 8, 8) to (batch, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(Residual(8) for _ in range(4))
        self.wide, self.short = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(8, 16, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(image))
        for block in self.blocks:
            x = block(x)
        x = torch.relu(self.wide(x) + self.short(x))
        logits: torch.Tensor = self.head(x.mean((2, 3)))
        return logits


def _run(source: Any, example: torch.Tensor, **options: Any) -> np.ndarray:
    module = compiler.compile(source, threads=1, **options)
    return next(iter(module.run({module.inputs[0].name: example.numpy()}).values()))


@pytest.fixture
def chain() -> tuple[Chain, torch.Tensor]:
    torch.manual_seed(0)
    net, example = Chain(), torch.randn(2, 3, 8, 8)
    net.train()(example)  # statistics of the batch norms
    for index, factor in enumerate((1.0, 0.3, 2.0, 0.5)):
        for weight in net.blocks[index].parameters():
            weight.data *= factor
    return net.eval(), example


def test_blocks_of_a_convolutional_net(chain: tuple[Chain, torch.Tensor]) -> None:
    net, example = chain
    assert len(find_residual_layers(import_model(net, example_inputs=(example,)))) == 4
    pruned = compiler.prune(net, 0.5, pattern="layers", example_inputs=(example,), threads=1)
    assert [layer.change for layer in pruned.report.layers] == ["", "removed", "", "removed"]
    shallow = copy.deepcopy(net)
    shallow.blocks = nn.ModuleList([net.blocks[0], net.blocks[2]])
    with torch.no_grad():
        wanted, whole = shallow(example).numpy(), net(example).numpy()
    got = _run(pruned, example)
    assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert np.abs(whole - wanted).max() > 1e-3 * np.abs(wanted).max()
    assert pruned.report.after.bytes < 0.8 * pruned.report.before.bytes


def test_layers_of_a_transformer_by_influence() -> None:
    """Each layer is attention and an MLP; the one that adds almost nothing is removed first."""
    torch.manual_seed(0)
    net, example = DigitsTransformer(width=24, depth=3, heads=3).eval(), torch.randn(2, 1, 16, 16)
    block: Any = net.blocks[1]
    for part in (block.joined, block.network[2]):
        for weight in part.parameters():
            weight.data *= 1e-3
    pruned = compiler.prune(
        net, 1 / 3, pattern="layers", criterion="influence", calibration=[{"image": example.numpy()}],
        example_inputs=(example,), threads=1,
    )  # fmt: skip
    assert [layer.change for layer in pruned.report.layers] == ["", "", "removed", "removed", "", ""]
    shallow = copy.deepcopy(net)
    shallow.blocks = nn.ModuleList([net.blocks[0], net.blocks[2]])
    with torch.no_grad():
        wanted = shallow(example).numpy()
    assert np.abs(_run(pruned, example) - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"amount": 0.05}, "is none"),
        ({"criterion": "influence"}, "needs calibration="),
        ({"criterion": "second-order"}, "does not rank layers"),
        ({"finetune": print}, "not from a module in training"),
        ({"pattern": "channels", "criterion": "influence"}, "is for pattern='layers'"),
    ],
)
def test_refused(chain: tuple[Chain, torch.Tensor], options: dict[str, Any], message: str) -> None:
    net, example = chain
    with pytest.raises(OptionError, match=message):
        compiler.prune(net, **{"pattern": "layers", "example_inputs": (example,), "threads": 1, **options})
