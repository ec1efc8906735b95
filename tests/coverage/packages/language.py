"""Base models of transformers: text, images, audio and their combinations."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from tests.coverage.packages.model import BATCH, IMAGE, Build, PackageModel, with_call

_MOST_PARAMETERS = 5e7
_IMAGE_SIZE = 64
_TOKENS = ((0, 0, 1), (0, 1, 1))

_SIZES = {
    **dict.fromkeys(("hidden_size", "d_model", "embed_dim", "dim", "n_embd", "projection_dim"), 32),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner", "ffn_dim", "d_ff"), 48),
    **dict.fromkeys(("num_hidden_layers", "encoder_layers", "decoder_layers", "n_layer", "num_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads", "n_head"), 4),
    **dict.fromkeys(("num_heads",), 4),
    **dict.fromkeys(("vocab_size",), 120),
    **dict.fromkeys(("max_position_embeddings",), 64),
    **dict.fromkeys(("num_key_value_heads",), 2),
    **dict.fromkeys(("head_dim", "d_kv"), 8),
    **dict.fromkeys(("pad_token_id",), 0),
    **dict.fromkeys(("image_size",), _IMAGE_SIZE),
}


def transformers_models() -> Iterator[PackageModel]:
    """The base model of each type whose config takes the usual names of sizes, of two layers."""
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    for kind in sorted(auto.MODEL_MAPPING_NAMES):
        yield _model(kind)


def _model(kind: str) -> PackageModel:
    import transformers

    names = importlib.import_module("transformers.models.auto.modeling_auto").MODEL_MAPPING_NAMES[kind]
    model = getattr(transformers, names if isinstance(names, str) else names[0], None)
    main = getattr(model, "main_input_name", "input_ids")
    if main == "pixel_values":
        return PackageModel(kind, _transformers(kind), IMAGE)
    if main in ("input_values", "input_features"):
        return PackageModel(kind, _transformers(kind), BATCH)
    return PackageModel(kind, _transformers(kind), _TOKENS, tied=((1, 0, 0),))


def _small(config: Any) -> dict[str, Any]:
    """Sizes for the constructor of a config, with those of the configs in it."""
    from transformers import PretrainedConfig

    found: dict[str, Any] = {
        name: size for name, size in _SIZES.items() if isinstance(getattr(config, name, None), int)
    }
    if isinstance(getattr(config, "depths", None), list):
        found["depths"] = [1] * len(config.depths)
    found.update({name: _small(value) for name, value in vars(config).items() if isinstance(value, PretrainedConfig)})
    return found


def _transformers(kind: str) -> Build:
    def build() -> tuple[Any, tuple[Any, ...]]:
        import torch
        import transformers

        config = transformers.AutoConfig.for_model(kind, **_small(transformers.AutoConfig.for_model(kind)))
        net = transformers.AutoModel.from_config(config).eval()
        if sum(each.numel() for each in net.parameters()) > _MOST_PARAMETERS:
            raise ValueError("its config does not take the usual names of sizes")
        options = {"use_cache": False} if hasattr(config, "use_cache") else {}
        failed: Exception = ValueError(f"its main input is {net.main_input_name}")
        for names in _signatures(net):
            inputs = tuple(_input(config, name) for name in names)
            called = with_call(net, _Call(names, options))
            try:
                with torch.no_grad():
                    called(*inputs)
            except Exception as error:  # another set of inputs is tried: models differ in what they need
                failed = error
                continue
            return called, inputs
        raise failed

    return build


class _Call:
    """A call by the names of the inputs."""

    def __init__(self, names: tuple[str, ...], options: dict[str, Any]) -> None:
        self.names, self.options = names, options

    def __call__(self, net: Any, *inputs: Any) -> Any:
        return net(**dict(zip(self.names, inputs, strict=True)), **self.options, return_dict=False)


def _signatures(net: Any) -> Iterator[tuple[str, ...]]:
    """Sets of inputs to try."""
    main = net.main_input_name
    yield (main,)
    yield main, "decoder_input_ids"
    yield "input_ids", "pixel_values"
    yield "input_ids", "input_values"
    yield "input_ids", "input_features"


def _input(config: Any, name: str) -> Any:
    import torch

    if name.endswith("input_ids"):
        return torch.randint(1, 100, (2, 7 if name == "input_ids" else 5))
    if name == "pixel_values":
        vision = getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", _IMAGE_SIZE)
        size = size if isinstance(size, list | tuple) else (size, size)
        return torch.randn(2, getattr(vision, "num_channels", 3), *size)
    if name == "input_features":
        bins = int(getattr(config, "num_mel_bins", 0) or getattr(config, "feature_size", 80))
        positions = getattr(config, "max_source_positions", None)
        return torch.randn(2, bins, 2 * positions) if positions else torch.randn(2, 60, bins)
    if name == "input_values":
        return torch.randn(2, 4000)
    raise ValueError(f"its main input is {name}")
