"""Time series, signals and sets of points: TCN, N-BEATS, PatchTST, detectors in EEG, PointNet."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.catalog import package_folder
from benchmarks.families.registry import floats, net
from benchmarks.untrained import calibrate_batch_norms


@net("tcn", {"x": floats("batch", 8, "length")}, [{"batch": 1, "length": 256}, {"batch": 16, "length": 256}])
def tcn() -> nn.Module:
    """Causal dilated convolutions (arXiv:1803.01271): six levels of 32 channels."""

    class Level(nn.Module):
        def __init__(self, inner: int, width: int, dilation: int) -> None:
            super().__init__()
            self.pad = nn.ConstantPad1d((2 * dilation, 0), 0.0)
            self.first = nn.Conv1d(inner, width, 3, dilation=dilation)
            self.second = nn.Conv1d(width, width, 3, dilation=dilation)
            self.skip = nn.Identity() if inner == width else nn.Conv1d(inner, width, 1)

        def forward(self, x: torch.Tensor) -> Any:
            inner = self.second(self.pad(self.first(self.pad(x)).relu())).relu()
            return (inner + self.skip(x)).relu()

    torch.manual_seed(0)
    return nn.Sequential(*[Level(32 if level else 8, 32, 1 << level) for level in range(6)]).eval()


@net("n-beats", {"x": floats("batch", 96)}, [{"batch": 1}, {"batch": 64}])
def n_beats() -> nn.Module:
    """N-BEATS (arXiv:1905.10437): ten generic blocks."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths = (96, 128, 128, 128, 128)
            self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in itertools.pairwise(widths)])
            self.back, self.ahead = (nn.Sequential(nn.Linear(128, 8), nn.Linear(8, each)) for each in (96, 24))

        def forward(self, x: Any) -> Any:
            for layer in self.layers:
                x = layer(x).relu()
            return self.back(x), self.ahead(x)

    class NBeats(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Block() for _ in range(10)])

        def forward(self, x: Any) -> Any:
            total = torch.zeros(x.shape[0], 24)
            for block in self.blocks:
                back, ahead = block(x)
                x, total = x - back, total + ahead
            return total

    torch.manual_seed(0)
    return NBeats().eval()


@net("patch-tst", {"x": floats("batch", 336, 7)}, [{"batch": 1}, {"batch": 16}], tolerance=1e-3)
def patch_tst() -> nn.Module:
    """PatchTST (arXiv:2211.14730): patches of 16 steps per channel, three layers of 128."""

    class PatchTST(nn.Module):
        def __init__(self, width: int = 128) -> None:
            super().__init__()
            self.embed = nn.Linear(16, width)
            self.position = nn.Parameter(torch.randn(41, width) * 0.02)
            layer = nn.TransformerEncoderLayer(width, 16, 256, 0.0, "gelu", batch_first=True)
            self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
            self.head = nn.Linear(41 * width, 96)

        def forward(self, x: Any) -> Any:
            mean = x.mean(1, keepdim=True)
            scale = (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
            patches = ((x - mean) / scale).transpose(1, 2).unfold(-1, 16, 8)
            tokens = self.embed(patches).flatten(0, 1) + self.position
            found = self.head(self.layers(tokens).flatten(1)).reshape(-1, 7, 96).transpose(1, 2)
            return found * scale + mean

    torch.manual_seed(0)
    return PatchTST().eval()


@net(
    "eeg-spindles",
    {"raw_signal": floats("batch", 1, 7500), "spectrogram": floats("batch", 15, 7500)},
    [{"batch": 1}],
    tolerance=1e-3,
)
def eeg_spindles() -> Path:
    """Trained detector of sleep spindles: convolutions over time with exact GELU, transposed convolutions."""
    return package_folder("brainmaze_eeg_models") / "spindles" / "_models" / "spindle-detector-eeg.onnx"


@net("pointnet", {"points": floats("batch", 3, 1024)}, [{"batch": 1}, {"batch": 8}])
def pointnet() -> nn.Module:
    """PointNet (arXiv:1612.00593) with its transform of inputs: shared MLPs and maxima over points."""

    def shared(*widths: int) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for inner, outer in itertools.pairwise(widths):
            layers += [nn.Conv1d(inner, outer, 1), nn.BatchNorm1d(outer), nn.ReLU()]
        return layers

    class PointNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transform = nn.Sequential(*shared(3, 64, 128, 1024))
            self.matrix = nn.Sequential(nn.Linear(1024, 256), nn.ReLU(), nn.Linear(256, 9))
            self.features = nn.Sequential(*shared(3, 64, 64, 64, 128, 1024))
            self.head = nn.Sequential(
                nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 40)
            )

        def forward(self, points: Any) -> Any:
            matrix = self.matrix(self.transform(points).amax(2)).reshape(-1, 3, 3) + torch.eye(3)
            turned = (points.transpose(1, 2) @ matrix).transpose(1, 2)
            return self.head(self.features(turned).amax(2)).log_softmax(-1)

    torch.manual_seed(0)
    result = PointNet().eval()
    calibrate_batch_norms(result, torch.randn(4, 3, 1024))
    return result
