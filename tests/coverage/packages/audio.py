"""Small torchaudio networks that process the samples or features of whole recordings."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

from tests.coverage.packages.model import Axes, Build, PackageModel, with_call

_MAKE = Callable[[Any], Any]
_BATCH_AND_FRAMES: Axes = ((0, 0, 1), (0, 1, 8))
_BATCH_AND_SAMPLES: Axes = ((0, 0, 1), (0, 2, 80))


_WAV2VEC2: dict[str, Any] = {
    "extractor_mode": "group_norm",
    "extractor_conv_layer_config": [(16, 10, 5), (16, 3, 2)],
    "extractor_conv_bias": False,
    "encoder_embed_dim": 16,
    "encoder_projection_dropout": 0.0,
    "encoder_pos_conv_kernel": 8,
    "encoder_pos_conv_groups": 2,
    "encoder_num_layers": 2,
    "encoder_num_heads": 2,
    "encoder_ff_interm_features": 32,
    "encoder_ff_interm_dropout": 0.0,
    "encoder_dropout": 0.0,
    "encoder_layer_norm_first": False,
    "encoder_attention_dropout": 0.0,
    "encoder_layer_drop": 0.0,
    "aux_num_out": None,
}


def _conformer_layers(net: Any, features: Any) -> Any:
    """A Conformer without lengths: `Conformer.forward` reads their maximum as a number."""
    features = features.transpose(0, 1)
    for layer in net.conformer_layers:
        features = layer(features, None)
    return features


# (name, constructor, input shape, dynamic axes, call)
NETWORKS: tuple[tuple[str, _MAKE, tuple[int, ...], Axes, Callable[..., Any]], ...] = (
    ("Conformer", lambda models: models.Conformer(16, 2, 32, 2, 3), (2, 24, 16), _BATCH_AND_FRAMES, _conformer_layers),
    ("ConvTasNet", lambda models: models.ConvTasNet(2, 8, 16, msk_num_feats=8, msk_num_hidden_feats=16,
                                                    msk_num_layers=2, msk_num_stacks=2),
     (2, 1, 400), _BATCH_AND_SAMPLES, lambda net, x: net(x)),
    ("DeepSpeech", lambda models: models.DeepSpeech(16, 32, 10), (2, 1, 24, 16), ((0, 0, 1), (0, 2, 8)),
     lambda net, x: net(x)),
    ("HDemucs", lambda models: models.HDemucs(["a", "b"], channels=8, nfft=1024, depth=5),
     (1, 2, 8192), ((0, 0, 1), (0, 2, 1024)), lambda net, x: net(x)),
    ("SquimObjective", lambda models: models.squim_objective_model(
        feat_dim=16, win_len=16, d_model=8, nhead=2, hidden_dim=8, num_blocks=1, rnn_type="LSTM", chunk_size=5),
     (2, 400), ((0, 0, 1), (0, 1, 80)), lambda net, x: net(x)),
    ("Wav2Letter", lambda models: models.Wav2Letter(10, "mfcc", 13), (2, 13, 100), ((0, 0, 1), (0, 2, 2)),
     lambda net, x: net(x)),
    ("wav2vec2", lambda models: models.wav2vec2_model(**_WAV2VEC2), (2, 800), ((0, 0, 1), (0, 1, 80)),
     lambda net, x: net(x)),
    ("wavlm", lambda models: models.wavlm_model(**_WAV2VEC2, encoder_num_buckets=8, encoder_max_distance=16),
     (2, 800), ((0, 0, 1), (0, 1, 80)), lambda net, x: net(x)),
)  # fmt: skip


def torchaudio_models() -> Iterator[PackageModel]:
    """Each network with dynamic batch and length."""
    for name, make, shape, axes, call in NETWORKS:
        yield PackageModel(name, _torchaudio(make, shape, call), axes)


def _torchaudio(make: _MAKE, shape: tuple[int, ...], call: Callable[..., Any]) -> Build:
    def build() -> tuple[Any, tuple[Any, ...]]:
        import torch

        return with_call(make(importlib.import_module("torchaudio.models")), call), (torch.randn(shape),)

    return build
