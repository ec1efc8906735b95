"""Image-to-image models: segmentation, super-resolution, style transfer, decoders of autoencoders."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

from benchmarks._open_models import _unet
from benchmarks.families.registry import floats, net
from benchmarks.untrained import calibrate_batch_norms

DYNAMIC = {"x": floats("batch", 3, "height", "width")}


@net("unet", DYNAMIC, [{"batch": 1, "height": 192, "width": 192}], tolerance=1e-3)
def unet() -> nn.Module:
    """U-Net of three levels."""
    result: nn.Module = _unet()
    calibrate_batch_norms(result, torch.randn(1, 3, 64, 64))
    return result


@net("deeplabv3", {"x": floats(1, 3, 256, 256)}, tolerance=1e-3)
def deeplab() -> nn.Module:
    """DeepLabV3 of MobileNetV3: dilated convolutions and bilinear resizing."""
    import torchvision

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            build = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large
            self.net = build(weights=None, weights_backbone=None)

        def forward(self, x: torch.Tensor) -> Any:
            return self.net(x)["out"]

    torch.manual_seed(0)
    result = Head().eval()
    calibrate_batch_norms(result, torch.randn(2, 3, 256, 256))
    return result


@net("espcn", {"y": floats("batch", 1, "height", "width")}, [{"batch": 1, "height": 240, "width": 320}])
def espcn() -> nn.Module:
    """ESPCN (arXiv:1609.05158): super-resolution by 3 with a pixel shuffle."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 64, 5, padding=2),
        nn.Tanh(),
        nn.Conv2d(64, 32, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(32, 9, 3, padding=1),
        nn.PixelShuffle(3),
    ).eval()


class _Styled(nn.Module):
    """Reflection padding, a convolution and an instance norm."""

    def __init__(self, inner: int, outer: int, kernel: int, stride: int = 1, scale: int = 1) -> None:
        super().__init__()
        self.scale = scale
        self.pad = nn.ReflectionPad2d(kernel // 2)
        self.convolution = nn.Conv2d(inner, outer, kernel, stride)
        self.norm = nn.InstanceNorm2d(outer, affine=True)

    def forward(self, x: Any) -> Any:
        if self.scale > 1:
            x = nn.functional.interpolate(x, scale_factor=self.scale, mode="nearest")
        return self.norm(self.convolution(self.pad(x)))


class _StyleNet(nn.Module):
    """Fast style transfer (arXiv:1603.08155) with instance norms."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([_Styled(3, 32, 9), _Styled(32, 64, 3, 2), _Styled(64, 128, 3, 2)])
        self.first = nn.ModuleList([_Styled(128, 128, 3) for _ in range(5)])
        self.second = nn.ModuleList([_Styled(128, 128, 3) for _ in range(5)])
        self.up = nn.ModuleList([_Styled(128, 64, 3, scale=2), _Styled(64, 32, 3, scale=2)])
        self.last = nn.Sequential(nn.ReflectionPad2d(4), nn.Conv2d(32, 3, 9))

    def forward(self, x: torch.Tensor) -> Any:
        for layer in self.down:
            x = layer(x).relu()
        for first, second in zip(self.first, self.second, strict=True):
            x = x + second(first(x).relu())
        for layer in self.up:
            x = layer(x).relu()
        return self.last(x)


@net("style-transfer", {"x": floats(1, 3, 224, 224)}, tolerance=1e-3)
def style_transfer() -> nn.Module:
    """At a fixed size."""
    torch.manual_seed(0)
    return _StyleNet().eval()


@net(
    "style-transfer-dynamic",
    {"x": floats(1, 3, "height", "width")},
    [{"height": 224, "width": 224}],
    exporter="torchscript",
    tolerance=1e-3,
)
def style_transfer_dynamic() -> nn.Module:
    """At any height and width."""
    return style_transfer()


@net("vae-decoder", {"latents": floats("batch", 4, 16, 16)}, [{"batch": 1}], tolerance=1e-3)
def vae_decoder() -> nn.Module:
    """The decoder of a latent diffusion model (arXiv:2112.10752), narrow: group norms, SiLU, nearest resizing."""

    class Residual(nn.Module):
        def __init__(self, inner: int, outer: int) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.GroupNorm(16, inner),
                nn.SiLU(),
                nn.Conv2d(inner, outer, 3, padding=1),
                nn.GroupNorm(16, outer),
                nn.SiLU(),
                nn.Conv2d(outer, outer, 3, padding=1),
            )
            self.skip = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1)

        def forward(self, x: torch.Tensor) -> Any:
            return self.skip(x) + self.layers(x)

    def up(inner: int, outer: int) -> list[nn.Module]:
        return [nn.Upsample(scale_factor=2), nn.Conv2d(inner, inner, 3, padding=1), Residual(inner, outer)]

    torch.manual_seed(0)
    head = [nn.GroupNorm(16, 32), nn.SiLU(), nn.Conv2d(32, 3, 3, padding=1)]
    first = [nn.Conv2d(4, 128, 3, padding=1), Residual(128, 128)]
    return nn.Sequential(*first, *up(128, 64), *up(64, 32), *up(32, 32), *head).eval()


@net("autoencoder", {"x": floats("rows", 640)}, [{"rows": 1}, {"rows": 196}])
def autoencoder() -> nn.Module:
    """Dense autoencoder of MLPerf Tiny for anomalies in sounds."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    widths = (640, 128, 128, 128, 128, 8, 128, 128, 128, 128)
    for inner, outer in itertools.pairwise(widths):
        layers += [nn.Linear(inner, outer), nn.BatchNorm1d(outer), nn.ReLU()]
    result = nn.Sequential(*layers, nn.Linear(128, 640)).eval()
    calibrate_batch_norms(result, torch.randn(64, 640))
    return result
