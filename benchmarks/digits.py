"""Two nets trained in seconds on scikit-learn's digits (1797 images of 8x8), for measuring accuracy offline.

The images are enlarged to 16x16; 1200 are for training, 297 for calibration, 300 for the score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

Array = np.ndarray
SIZE = 16
_TRAINING, _SCORED = 1200, 300


@dataclass(frozen=True)
class Digits:
    """Images (count, 1, 16, 16) in [0, 1] and their labels."""

    train: tuple[Array, Array]
    calibration: tuple[Array, Array]
    test: tuple[Array, Array]


def load_digits() -> Digits:
    """The data in a fixed random order."""
    from sklearn.datasets import load_digits as load

    stored = load()
    order = np.random.default_rng(0).permutation(len(stored.target))
    images = (stored.images[order, None] / 16).astype(np.float32).repeat(2, axis=2).repeat(2, axis=3)
    labels = stored.target[order].astype(np.int64)
    cuts = [0, _TRAINING, len(labels) - _SCORED, len(labels)]
    parts = [slice(*ends) for ends in pairwise(cuts)]
    train, calibration, test = ((images[part], labels[part]) for part in parts)
    return Digits(train, calibration, test)


class Residual(nn.Module):
    """A convolution, a depthwise one and a 1x1 one, with a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU6(),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.body(x))


class DigitsCnn(nn.Module):
    """Convolutions with residual, concatenated and pooled paths; (batch, 1, 16, 16) to (batch, 10)."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        self.first = nn.Sequential(Residual(channels), nn.MaxPool2d(2))
        self.left = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())
        self.right = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.SiLU())
        self.second = nn.Sequential(Residual(2 * channels), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(2 * channels, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.first(self.stem(image))
        logits: torch.Tensor = self.head(self.second(torch.cat([self.left(x), self.right(x)], 1)))
        return logits


class DigitsTransformer(nn.Module):
    """Two transformer layers over 16 patches of 4x4; (batch, 1, 16, 16) to (batch, 10)."""

    def __init__(self, width: int = 64, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 4, stride=4)
        self.places = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.embed(image).flatten(2).transpose(1, 2) + self.places
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.head(self.norm(x).mean(1))
        return logits


class Block(nn.Module):
    """Attention and a two-layer network, each on the normalized input and added to it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.joined = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.network = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        split = self.qkv(self.before(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        x = x + self.joined(mixed.transpose(1, 2).reshape(batch, length, width))
        mapped: torch.Tensor = x + self.network(self.between(x))
        return mapped


def train(net: nn.Module, data: Digits, *, epochs: int = 10, seed: int = 0) -> nn.Module:
    """Train with Adam, and return the net in evaluation mode.

    Uses one thread: the batches are small, and on a busy machine torch's threads wait for each other for minutes.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    for module in net.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]
    images, labels = (torch.from_numpy(part) for part in data.train)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, epochs * -(-len(labels) // 50))
    net.train()
    for _ in range(epochs):
        order: Any = torch.randperm(len(labels))
        for part in order.split(50):
            optimizer.zero_grad()
            loss: Any = nn.functional.cross_entropy(net(images[part]), labels[part])
            loss.backward()
            optimizer.step()
            schedule.step()
    torch.set_num_threads(threads)
    return net.eval()


def accuracy(data: Digits, name: str = "image", batch: int = 50) -> Callable[[Any], float]:
    """Return a function for `evaluate=` of `quantize`: the accuracy on the test images."""
    images, labels = data.test

    def evaluate(run: Callable[[Mapping[str, Array]], Mapping[str, Array]]) -> float:
        predictions = [
            next(iter(run({name: images[start : start + batch]}).values())).argmax(1)
            for start in range(0, len(labels), batch)
        ]
        return float((np.concatenate(predictions) == labels).mean())

    return evaluate
