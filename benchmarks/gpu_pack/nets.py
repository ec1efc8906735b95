"""The most important nets, in plain PyTorch: they are compiled from this file, and timed by PyTorch from the same file
on machines without torchvision and onnx. Topologies are those of torchvision and of the published models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.gpu_pack.generator import LARGEST, seed_of, weights

_DEVIATION = (LARGEST + 0.5) / math.sqrt(3)  # of the weights as integers


class Residual(nn.Module):
    """A bottleneck (He et al. 2015, the stride in the middle) or two 3 x 3 convolutions, with a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = 4 * width if bottleneck else width
        kernels = (
            ((1, 1, width), (3, stride, width), (1, 1, outputs)) if bottleneck else ((3, stride, width), (3, 1, width))
        )
        layers: list[nn.Module] = []
        last = inputs
        for size, step, count in kernels:
            layers += [nn.Conv2d(last, count, size, step, size // 2, bias=False), nn.BatchNorm2d(count), nn.ReLU()]
            last = count
        self.body = nn.Sequential(*layers[:-1])
        self.body[-1].is_branch = True  # type: ignore[assignment]
        same = stride == 1 and inputs == outputs
        around = (nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.around = nn.Identity() if same else nn.Sequential(*around)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(self.body(x) + self.around(x))


def resnet(blocks: tuple[int, ...], bottleneck: bool) -> nn.Module:
    """ResNet-18 (2, 2, 2, 2) and ResNet-50 (3, 4, 6, 3): images (1, 3, 224, 224) to 1000 classes."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    layers: list[nn.Module] = []
    inputs = 64
    for stage, count in enumerate(blocks):
        for block in range(count):
            width = 64 << stage
            layers.append(Residual(inputs, width, 2 if stage and not block else 1, bottleneck))
            inputs = 4 * width if bottleneck else width
    return nn.Sequential(*stem, *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


class Inverted(nn.Module):
    """An inverted residual (Sandler et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        parts: list[nn.Module] = []
        if expansion > 1:
            parts += [nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()]
        parts += [nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()]
        self.body = nn.Sequential(*parts, nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.adds = stride == 1 and inputs == outputs
        self.body[-1].is_branch = self.adds  # type: ignore[assignment]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + self.body(x) if self.adds else self.body(x)
        return result


def mobilenet_v2() -> nn.Module:
    """Images (1, 3, 224, 224) to 1000 classes."""
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()]
    inputs = 32
    settings = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    for expansion, outputs, count, stride in settings:
        for block in range(count):
            layers.append(Inverted(inputs, outputs, 1 if block else stride, expansion))
            inputs = outputs
    layers += [nn.Conv2d(inputs, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))


class Attention(nn.Module):
    """Attention of `heads` heads over (batch, length, width), with an additive mask or none."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.joined = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        batch, length, width = x.shape

        def split(linear: nn.Module) -> torch.Tensor:
            parts: torch.Tensor = linear(x).view(batch, length, self.heads, width // self.heads)
            return parts.transpose(1, 2)

        query, key, value = (split(each) for each in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        result: torch.Tensor = self.joined(mixed.transpose(1, 2).reshape(batch, length, width))
        return result


class Encoder(nn.Module):
    """A transformer layer, with norms before attention and MLP (ViT) or after them (BERT)."""

    def __init__(self, width: int, inner: int, heads: int, before: bool, epsilon: float) -> None:
        super().__init__()
        self.attention, self.before = Attention(width, heads), before
        self.first, self.second = nn.LayerNorm(width, epsilon), nn.LayerNorm(width, epsilon)
        self.inner, self.outer = nn.Linear(width, inner), nn.Linear(inner, width)

    def feed(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.outer(nn.functional.gelu(self.inner(x)))
        return result

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        if self.before:
            x = x + self.attention(self.first(x), mask)
            return x + self.feed(self.second(x))
        x = self.first(x + self.attention(x, mask))
        result: torch.Tensor = self.second(x + self.feed(x))
        return result


class Vit(nn.Module):
    """ViT-B/16: images (1, 3, 224, 224) to 1000 classes."""

    def __init__(self, width: int = 768, layers: int = 12) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.token, self.places = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, 197, width))
        self.layers = nn.ModuleList(Encoder(width, 4 * width, 12, True, 1e-6) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width, 1e-6), nn.Linear(width, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        hidden = torch.cat([self.token, patches], 1) + self.places
        for layer in self.layers:
            hidden = layer(hidden)
        result: torch.Tensor = self.head(self.norm(hidden)[:, 0])
        return result


class MiniLm(nn.Module):
    """all-MiniLM-L6-v2: ids, mask and segments, int64 (batch, length) each, to hidden states (batch, length, 384)."""

    def __init__(self, width: int = 384, layers: int = 6) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(30522, width), nn.Embedding(512, width)
        self.segments, self.norm = nn.Embedding(2, width), nn.LayerNorm(width, 1e-12)
        self.layers = nn.ModuleList(Encoder(width, 4 * width, 12, False, 1e-12) for _ in range(layers))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
        places = self.places(torch.arange(ids.shape[1], device=ids.device))
        hidden = self.norm(self.words(ids) + places + self.segments(segments))
        hides = (1.0 - mask[:, None, None, :].to(hidden.dtype)) * -10000.0
        for layer in self.layers:
            hidden = layer(hidden, hides)
        result: torch.Tensor = hidden
        return result


class RmsNorm(nn.Module):
    """x / rms(x), times a weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
        return x * scale * self.weight


class Llama(nn.Module):
    """A layer in the shape of Llama 3.2 1B, on a prompt: hidden states (1, length, 2048), 32 heads, 8 with keys."""

    cosines: torch.Tensor
    sines: torch.Tensor

    def __init__(self, length: int = 256, width: int = 2048, inner: int = 8192) -> None:
        super().__init__()
        self.heads, self.groups, self.size = width // 64, 8, 64
        self.first, self.second = RmsNorm(width), RmsNorm(width)
        kept = self.groups * self.size
        self.query, self.key, self.value = (nn.Linear(width, each, bias=False) for each in (width, kept, kept))
        self.joined = nn.Linear(width, width, bias=False)
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)
        angles = torch.outer(torch.arange(length).float(), 500000.0 ** (-torch.arange(0, 64, 2).float() / 64))
        self.register_buffer("cosines", torch.cat([angles, angles], -1).cos())
        self.register_buffer("sines", torch.cat([angles, angles], -1).sin())

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        half = self.size // 2
        return x * self.cosines + torch.cat([-x[..., half:], x[..., :half]], -1) * self.sines

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        normal = self.first(x)

        def split(linear: nn.Module, heads: int) -> torch.Tensor:
            parts: torch.Tensor = linear(normal).view(batch, length, heads, self.size)
            return parts.transpose(1, 2)

        query, key = self.turned(split(self.query, self.heads)), self.turned(split(self.key, self.groups))
        value, times = split(self.value, self.groups), self.heads // self.groups
        key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.joined(mixed.transpose(1, 2).reshape(batch, length, width))
        normal = self.second(x)
        result: torch.Tensor = x + self.down(nn.functional.silu(self.gate(normal)) * self.up(normal))
        return result


@dataclass(frozen=True)
class Net:
    """A net and its inputs by name, each with its shape and the exclusive upper bound of its random integers (None for
    real numbers)."""

    build: Callable[[], nn.Module]
    inputs: dict[str, tuple[tuple[int, ...], int | None]]


_IMAGE: dict[str, tuple[tuple[int, ...], int | None]] = {"x": ((1, 3, 224, 224), None)}
_TOKENS: dict[str, tuple[tuple[int, ...], int | None]] = {
    "ids": ((1, 128), 30522), "mask": ((1, 128), 2), "segments": ((1, 128), 2)
}  # fmt: skip
NETS: dict[str, Net] = {
    "resnet50": Net(lambda: resnet((3, 4, 6, 3), True), _IMAGE),
    "vit_b_16": Net(Vit, _IMAGE),
    "minilm-128": Net(MiniLm, _TOKENS),
    "llama-block-256": Net(Llama, {"x": ((1, 256, 2048), None)}),
    "resnet18": Net(lambda: resnet((2, 2, 2, 2), False), _IMAGE),
    "mobilenet_v2": Net(mobilenet_v2, _IMAGE),
}


def exponent_of(fan_in: int, gain: float) -> int:
    """Return the exponent of the power of two for which generated weights have about the variance gain^2 / fan_in."""
    return round(math.log2(gain / math.sqrt(fan_in) / _DEVIATION))


def seed_parameters(module: nn.Module, name: str) -> dict[str, tuple[int, int, int, tuple[int, ...]]]:
    """Replace every parameter with two or more axes by generated weights; others are unchanged.

    Returns:
        Seed, row, exponent and shape by the parameter's name.
    """
    seeded = {}
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            if parameter.ndim < 2:
                continue
            shape, seed = tuple(parameter.shape), seed_of(name, key)
            row = parameter.numel() // shape[0]
            is_table = "words" in key or "places" in key or "segments" in key or "embed" in key
            exponent = exponent_of(1 if is_table else row, 1.4 if parameter.ndim == 4 else 1.0)
            values: Any = torch.from_numpy(weights(seed, parameter.numel(), row)).to(torch.float32)
            parameter.copy_((values * 2.0**exponent).reshape(shape))
            seeded[key] = (seed, row, exponent, shape)
    return seeded
