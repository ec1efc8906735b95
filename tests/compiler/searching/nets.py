"""A tiny net with everything that a search changes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from compiler.searching.choice import choice


class Residual(nn.Module):
    """A convolution with batch norm and a 1x1 convolution, with a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU(),
            nn.Conv2d(2 * channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.body(x))


class Tiny(nn.Module):
    """(1, 1, 8, 8) to (1, 4); with `choices` the block in the middle has two forms."""

    def __init__(self, *, choices: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU())
        self.block = Residual(8)
        wide: nn.Module = nn.Conv2d(8, 8, 5, padding=2)
        self.middle = choice(nn.Conv2d(8, 8, 1), wide) if choices else wide
        self.head = nn.Linear(8, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x: Any = self.middle(self.block(self.stem(image)))
        logits: torch.Tensor = self.head(x.mean((2, 3)))
        return logits


def tiny(*, choices: bool = False) -> Tiny:
    """The net with weights and batch norm statistics that reveal mistakes."""
    torch.manual_seed(0)
    net = Tiny(choices=choices)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    tensor.uniform_(0.5, 1.5)
    return net.eval()
