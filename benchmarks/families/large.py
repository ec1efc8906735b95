"""Large models with dynamic height and width, whose compile time matters as much as their latency."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.families.registry import floats, net
from benchmarks.untrained import calibrate_batch_norms

IMAGES = {"x": floats("batch", 3, "height", "width")}
_WIDTHS = (32, 64, 96, 128, 160, 192)
_BLOCKS = 3  # residual blocks per level
_ATTENTION_FROM = 2  # the first level with attention


class _Residual(nn.Module):
    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(16, inner), nn.SiLU(), nn.Conv2d(inner, outer, 3, padding=1))
        self.time = nn.Linear(128, outer)
        self.second = nn.Sequential(nn.GroupNorm(16, outer), nn.SiLU(), nn.Conv2d(outer, outer, 3, padding=1))
        self.skip = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> Any:
        return self.skip(x) + self.second(self.first(x) + self.time(time)[:, :, None, None])


class _Attention(nn.Module):
    """Self-attention over all positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(16, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Any) -> Any:
        query, key, value = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, -1)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return x + self.out(mixed.transpose(1, 2).reshape(x.shape))


class _Pair(nn.Module):
    """A residual block, and attention where its level has it."""

    def __init__(self, block: nn.Module, attention: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.attention = attention

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> Any:
        return self.attention(self.block(x, time))


class _Diffusion(nn.Module):
    """The U-Net of a diffusion model (arXiv:2006.11239)."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, _WIDTHS[0], 3, padding=1)
        self.down, self.up, self.smaller, self.larger = (nn.ModuleList() for _ in range(4))
        skips, width = [_WIDTHS[0]], _WIDTHS[0]
        last = len(_WIDTHS) - 1
        for level, outer in enumerate(_WIDTHS):
            for _ in range(_BLOCKS):
                self.down.append(self._pair(width, outer, level))
                width = outer
                skips.append(width)
            if level < last:
                self.smaller.append(nn.Conv2d(width, width, 3, 2, padding=1))
                skips.append(width)
        self.middle = _Pair(_Residual(width, width), _Attention(width))
        self.last = _Residual(width, width)
        for level, outer in reversed(list(enumerate(_WIDTHS))):
            for _ in range(_BLOCKS + 1):
                self.up.append(self._pair(width + skips.pop(), outer, level))
                width = outer
            if level:
                self.larger.append(nn.Conv2d(width, width, 3, padding=1))
        self.tail = nn.Sequential(nn.GroupNorm(16, width), nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1))

    @staticmethod
    def _pair(inner: int, outer: int, level: int) -> nn.Module:
        return _Pair(_Residual(inner, outer), _Attention(outer) if level >= _ATTENTION_FROM else nn.Identity())

    def forward(self, x: Any, time: Any) -> Any:
        x = self.head(x)
        skips = [x]
        for position, pair in enumerate(self.down):
            x = pair(x, time)
            skips.append(x)
            level, at = divmod(position + 1, _BLOCKS)
            if at == 0 and level <= len(self.smaller):
                x = self.smaller[level - 1](x)
                skips.append(x)
        x = self.last(self.middle(x, time), time)
        for position, pair in enumerate(self.up):
            x = pair(torch.cat([x, skips.pop()], 1), time)
            level, at = divmod(position + 1, _BLOCKS + 1)
            if at == 0 and level <= len(self.larger):
                x = self.larger[level - 1](nn.functional.interpolate(x, scale_factor=2.0))
        return self.tail(x)


@net(
    "diffusion-unet",
    {**IMAGES, "time": floats("batch", 128)},
    [{"batch": 1, "height": 128, "width": 128}],
    exporter="torchscript",
    tolerance=1e-3,
)
def diffusion_unet() -> nn.Module:
    """187 convolutions on six levels."""
    torch.manual_seed(0)
    return _Diffusion().eval()


class _Descriptor(nn.Module):
    """A descriptor of copied images (SSCD, arXiv:2202.10261): ResNet-50, generalized mean, a normalized projection."""

    def __init__(self) -> None:
        super().__init__()
        import torchvision

        self.body = torchvision.models.resnet50(weights=None)
        self.body.avgpool = nn.Identity()
        self.body.fc = nn.Identity()
        self.project = nn.Linear(2048, 512)

    def forward(self, x: Any) -> Any:
        body = self.body
        x = body.maxpool(body.relu(body.bn1(body.conv1(x))))
        x = body.layer4(body.layer3(body.layer2(body.layer1(x))))
        pooled = x.clamp(min=1e-6).pow(3).mean([2, 3]).pow(1 / 3)
        return nn.functional.normalize(self.project(pooled))


@net("sscd", IMAGES, [{"batch": 1, "height": 224, "width": 224}], exporter="torchscript", tolerance=1e-3)
def sscd() -> nn.Module:
    """ResNet-50 with a generalized mean over any height and width."""
    torch.manual_seed(0)
    result = _Descriptor().eval()
    calibrate_batch_norms(result, torch.randn(2, 3, 64, 64))
    return result
