"""Nets with every kind of channel dependency known to the analysis, and reference results after removal."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from compiler.compression.pruning.dependencies import Dependencies
from compiler.compression.pruning.plan import with_constants
from compiler.compression.pruning.shrink import cut, kept
from compiler.passes.rewriting.matching import Array, array_of


class Tangle(nn.Module):
    """Residual, concatenated, depthwise, grouped, gated and flattened paths; (batch, 3, 8, 8) to (batch, 5)."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU6())
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.grouped = nn.Conv2d(width, width, 1, groups=4)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 7, 1), nn.ReLU(), nn.Conv2d(7, width, 1))
        self.side = nn.Conv2d(width, 5, 1)
        self.last = nn.Conv2d(width + 5, 6, 1)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.head = nn.Linear(4 * 16, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem(image)
        x = x + torch.relu(self.depthwise(x))
        x = nn.functional.max_pool2d(self.grouped(x), 4)
        x = x * torch.sigmoid(self.gate(x))
        left, right = torch.split(torch.cat([x, torch.tanh(self.side(x))], 1), [9, 8], 1)
        x = self.up(self.last(torch.cat([right, left], 1)))
        logits: torch.Tensor = self.head(x.flatten(1))
        return logits


def random_removal(found: Dependencies, share: float, seed: int = 0, kinds: tuple[str, ...] = ("channels",)) -> Array:
    """Choose this fraction of the units of each cell, rounded down."""
    removed = np.zeros(int(found.units.max()) + 1, np.bool_)
    generator = np.random.default_rng(seed)
    for cell in found.cells:
        if cell.kind in kinds:
            removed[generator.permutation(cell.units)[: int(share * len(cell.units))]] = True
    return removed


def masked(found: Dependencies, removed: Array) -> Any:
    """Return the module with zeros in place of all removed weights."""
    new = {}
    for constant, axes in found.constants.items():
        array = array_of(constant)
        if array.ndim < 2 or cut(found, removed, constant).shape == array.shape:
            continue
        array = array.copy()
        for index, axis in enumerate(axes):
            keep = kept(found, removed, axis)
            if keep is not None:
                np.moveaxis(array, index, 0)[~keep] = 0
        new[constant] = array
    return with_constants(found.mod, new)
