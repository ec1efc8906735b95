"""Base models of transformers: text, images, audio and their combinations."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from tests.coverage.packages.model import Build, PackageModel, usual_axes, with_call

_MOST_PARAMETERS = 2e7
_IMAGE_SIZE = 64
_VOCABULARY = 120

# Sizes by the names that configs have for them; sizes that are smaller already stay.
_SIZES = {
    **dict.fromkeys(("hidden_size", "d_model", "embed_dim", "dim", "n_embd", "projection_dim", "hidden_dim"), 32),
    **dict.fromkeys(("decoder_hidden_size", "encoder_hidden_size", "encoder_hidden_dim", "fusion_hidden_size"), 32),
    **dict.fromkeys(("text_hidden_size", "vision_hidden_size", "projector_hidden_size", "out_hidden_size"), 32),
    **dict.fromkeys(("embedding_size", "output_channels", "upsample_initial_channel"), 32),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner", "ffn_dim", "d_ff"), 48),
    **dict.fromkeys(("mlp_dim", "decoder_intermediate_size", "ffn_hidden_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "encoder_layers", "decoder_layers", "n_layer", "num_layers", "depth"), 2),
    **dict.fromkeys(("n_layers", "num_blocks", "num_decoder_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(("decoder_num_hidden_layers", "num_adapter_layers", "num_codebooks"), 2),
    **dict.fromkeys(("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads", "n_head"), 4),
    **dict.fromkeys(("num_heads", "n_heads", "decoder_num_attention_heads", "index_n_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "index_head_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "index_topk"), 4),
    **dict.fromkeys(("num_experts_per_tok",), 2),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("vocab_size", "codebook_size"), _VOCABULARY),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_target_positions"), 64),
    **dict.fromkeys(("max_source_positions",), 30),
    **dict.fromkeys(("num_queries",), 10),
    **dict.fromkeys(("image_size",), _IMAGE_SIZE),
}


def transformers_models() -> Iterator[PackageModel]:
    """The base model of each type whose config takes the usual names of sizes, of two layers."""
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    for kind in sorted(auto.MODEL_MAPPING_NAMES):
        yield PackageModel(kind, _transformers(kind), find=usual_axes)


def _small(config: Any) -> dict[str, Any]:
    """Sizes for the constructor of a config, with those of the configs in it."""
    from transformers import PretrainedConfig

    given = {name: value for name, value in vars(config).items() if type(value) is int}
    found: dict[str, Any] = {name: min(size, given[name]) for name, size in _SIZES.items() if name in given}
    if isinstance(getattr(config, "depths", None), list):
        found["depths"] = [1] * len(config.depths)
    tokens = [name for name in sorted(given) if name.endswith(("_token_id", "_token_index"))]
    found.update({name: 100 + place for place, name in enumerate(tokens) if given[name] >= 100})
    found.update({name: _small(value) for name, value in vars(config).items() if isinstance(value, PretrainedConfig)})
    return found


def _transformers(kind: str) -> Build:
    def build() -> tuple[Any, tuple[Any, ...]]:
        import torch
        import transformers

        config = transformers.AutoConfig.for_model(kind, **_small(transformers.AutoConfig.for_model(kind)))
        with torch.device("meta"):
            parameters = transformers.AutoModel.from_config(config).parameters()
        if sum(each.numel() for each in parameters) > _MOST_PARAMETERS:
            raise ValueError("its config does not take the usual names of sizes")
        net = transformers.AutoModel.from_config(config).eval()
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
