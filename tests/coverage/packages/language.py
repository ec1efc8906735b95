"""Base models of transformers: text, images, audio and their combinations."""

from __future__ import annotations

import importlib
import inspect
import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

from tests.coverage.packages.model import Build, PackageModel, draw_weights, usual_axes, with_call

_MAX_PARAMETERS = 6e7
_MAX_TRIES = 6  # attempts of a call: each adds an input that the previous one required
_IMAGE_SIZE = 64
_VOCABULARY = 120

# Sizes by config names; smaller values are kept.
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
    **dict.fromkeys(("vocab_size",), _VOCABULARY),
    **dict.fromkeys(("codebook_size",), 128),  # several configs require a power of two
    **dict.fromkeys(("codebook_dim",), 32),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_target_positions"), 64),
    **dict.fromkeys(("max_source_positions",), 30),
    **dict.fromkeys(("num_queries",), 10),
    **dict.fromkeys(("image_size",), _IMAGE_SIZE),
    **dict.fromkeys(("prediction_length", "context_length"), 8),
}
# If sizes depend on each other in other ways, a net of the usual widths has fewer layers.
_COUNTS = {
    name: size
    for name, size in _SIZES.items()
    if size in (2, 4, _VOCABULARY) and re.search("layers|depth|blocks|vocab|experts|n_layer", name)
}
_REQUIRED: dict[str, Any] = {"prediction_length": 8}  # no default
# Lists with an element per stage, and multipliers, that have to fit the widths above.
_OF_STAGES: dict[str, Any] = {
    "num_heads": [2, 4, 8, 16],
    "embed_dim_per_stage": [32, 64, 128, 256],
    "num_attention_heads_per_stage": [1, 2, 4, 8],
    "backbone_channel_list": [256, 128, 64, 32],
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
}
_OF_TIMM = ("backbone", "use_timm_backbone", "out_indices", "out_features")  # of nested configs


def transformers_models() -> Iterator[PackageModel]:
    """Base models, with two layers, of all types whose config has the usual size names."""
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    for kind in sorted(auto.MODEL_MAPPING_NAMES):
        yield PackageModel(kind, _transformers(kind), find=usual_axes)


def _small(config: Any, sizes: dict[str, int]) -> dict[str, Any]:
    """Sizes for a config's constructor, nested configs included."""
    from transformers import PretrainedConfig

    given = {name: value for name, value in vars(config).items() if type(value) is int}
    found: dict[str, Any] = {name: min(size, given[name]) for name, size in sizes.items() if name in given}
    found.update({name: size for name, size in _REQUIRED.items() if vars(config).get(name, size) is None})
    if isinstance(getattr(config, "depths", None), list):
        found["depths"] = [1] * len(config.depths)
    if sizes is _SIZES:
        found.update({name: each for name, each in _OF_STAGES.items() if type(vars(config).get(name)) is type(each)})
        if isinstance(rope := getattr(config, "rope_parameters", None), dict) and "rope_type" in rope:
            found["rope_parameters"] = _sections(rope)
    tokens = [name for name in sorted(given) if name.endswith(("_token_id", "_token_index"))]
    found.update({name: 100 + place for place, name in enumerate(tokens) if given[name] >= 100})
    nested = {name: value for name, value in vars(config).items() if isinstance(value, PretrainedConfig)}
    kinds = {name: _kind(value) for name, value in nested.items()}
    return {**found, **{name: {**kinds[name], **_small(value, sizes)} for name, value in nested.items()}}


def _kind(config: Any) -> dict[str, Any]:
    """Type of a nested config; a network of timm is named, with the stages that are used."""
    names = ["model_type", *(_OF_TIMM if getattr(config, "backbone", None) else ())]
    return {name: getattr(config, name) for name in names if getattr(config, name, None)}


def _sections(rope: dict[str, Any]) -> dict[str, Any]:
    """Rotary parameters whose sections (time, height, width) fit heads of 8."""
    half = int(8 * rope.get("partial_rotary_factor", 1.0)) // 2
    return {**rope, "mrope_section": [half - half // 3 * 2, half // 3, half // 3]}


def _transformers(kind: str) -> Build:
    def build() -> tuple[Any, tuple[Any, ...]]:
        failed: Exception | None = None
        for sizes in (_SIZES, _COUNTS):
            try:
                config, net = _net(kind, sizes)
                return _called(config, net)
            except Exception as error:  # packages raise anything for sizes that do not fit each other
                failed = failed or error
        raise failed or ValueError("no sizes")

    return build


def _net(kind: str, sizes: dict[str, int]) -> tuple[Any, Any]:
    """Config and network with random weights. Raises ValueError if it would be large."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(kind, **_small(transformers.AutoConfig.for_model(kind), sizes))
    with torch.device("meta"):
        parameters = transformers.AutoModel.from_config(config).parameters()
    if sum(each.numel() for each in parameters) > _MAX_PARAMETERS:
        raise ValueError("its config does not take the usual names of sizes")
    net = transformers.AutoModel.from_config(config).eval()
    draw_weights(net)
    return config, net


def _called(config: Any, net: Any) -> tuple[Any, tuple[Any, ...]]:
    """The network and the first set of inputs that it accepts."""
    options = {"use_cache": False} if hasattr(config, "use_cache") else {}
    failed: Exception = ValueError(f"its main input is {net.main_input_name}")
    for names in _signatures(net):
        for _ in range(_MAX_TRIES):
            try:
                return _that_runs(config, net, names, options)
            except Exception as error:  # try another set of inputs: models need different ones
                failed = error
            wanted = _missing(net, failed, names)
            if wanted is None:
                break
            names = (*names, wanted)
    raise failed


def _that_runs(config: Any, net: Any, names: tuple[str, ...], options: dict[str, Any]) -> tuple[Any, tuple[Any, ...]]:
    """A call with these input names, in the first of their usual shapes that works."""
    import torch

    grid = {"grid_thw": torch.tensor([_GRID])} if "grid_thw" in inspect.signature(net.forward).parameters else {}
    called = with_call(net, _Call(names, options), **grid)
    failed: Exception | None = None
    for inputs in itertools.product(*(_values(config, name) for name in names)):
        try:
            with torch.no_grad():
                called(*inputs)
            return called, inputs
        except Exception as error:  # report the error of the first shapes, the most likely ones
            failed = failed or error
    raise failed or ValueError("no inputs")


def _missing(net: Any, error: Exception, names: tuple[str, ...]) -> str | None:
    """The first input that an error message asks for; the next of the usual ones if something is None."""
    known = inspect.signature(net.forward).parameters
    words = re.findall(r"\w+", str(error))
    found = next((word for word in words if word in known and word not in names and word in _ASKED_FOR), None)
    if found is None and "NoneType" in words:
        return next((each for each in known if each in _ASKED_FOR and each not in names), None)
    return found


class _Call:
    """A call with inputs by name."""

    def __init__(self, names: tuple[str, ...], options: dict[str, Any]) -> None:
        self.names, self.options = names, options

    def __call__(self, net: Any, *inputs: Any, **constants: Any) -> Any:
        return net(**dict(zip(self.names, inputs, strict=True)), **constants, **self.options, return_dict=False)


def _signatures(net: Any) -> Iterator[tuple[str, ...]]:
    """Sets of inputs to try."""
    known = list(inspect.signature(net.forward).parameters)
    main = net.main_input_name if net.main_input_name in known else known[0]
    if "future_values" in known and hasattr(net.config, "lags_sequence"):
        yield main, "past_time_features", "past_observed_mask", "future_values", "future_time_features"
    yield (main,)
    yield main, "decoder_input_ids"
    for other in ("pixel_values", "input_values", "input_features"):
        yield "input_ids", other


_ASKED_FOR = {
    *("input_ids", "decoder_input_ids", "inputs_embeds", "query_embeds", "bbox", "attention_mask", "pixel_mask"),
    *("pixel_values", "pixel_values_videos", "input_values", "input_features", "past_values", "padding_mask"),
    *(
        "past_observed_mask",
        "past_time_features",
        "past_values_padding",
        "freq",
        "decoder_inputs_embeds",
        "encoder_hidden_states",
        "hidden_states",
    ),
    *("visual_feats", "visual_pos", "xpath_tags_seq", "xpath_subs_seq", "input_embeds"),
    *("states", "actions", "returns_to_go", "timesteps", "decoder_input_values", "input_features_mask"),
    *("audio_mel", "audio_mel_mask", "prompt_pixel_values", "prompt_masks"),
}
_LENGTH, _FRAMES, _SAMPLES = 7, 60, 4000
_GRID = (1, 4, 4)  # times, rows and columns of patches


def _values(config: Any, name: str) -> list[Any]:
    """Tensors in the usual shapes of an input with this name."""
    import torch

    if name.endswith("input_ids"):
        return [torch.randint(1, 100, (2, _LENGTH if name == "input_ids" else 5))]
    width = getattr(getattr(config, "text_config", config), "hidden_size", 32)
    shapes: dict[str, list[tuple[int, ...]]] = {
        "pixel_values": [*_image_shapes(config), *_patch_shapes(config)],
        "pixel_values_videos": _image_shapes(config)[1:],
        "prompt_pixel_values": _image_shapes(config),
        "prompt_masks": _image_shapes(config),
        "input_features": _spectrogram_shapes(config),
        "input_values": [(2, _SAMPLES), (2, 1, _SAMPLES), *_spectrogram_shapes(config), (2, _LENGTH, width)],
        "decoder_input_values": [(2, 5, width)],
        "audio_mel": _spectrogram_shapes(config)[1:2],
        "query_embeds": [(2, getattr(config, "num_query_tokens", 4), width)],
        **_series_shapes(config),
        "visual_feats": [(2, 3, getattr(config, "visual_feat_dim", 16))],
        "visual_pos": [(2, 3, 4)],
    }
    if name in shapes:
        return [torch.randn(shape) for shape in shapes[name]]
    if name == "bbox":
        return [torch.randint(0, 60, (2, _LENGTH, 4)).sort(-1).values]
    if name.endswith(("_embeds", "hidden_states")):
        return [torch.randn(2, _LENGTH, width), *(torch.randn(shape) for shape in _patch_shapes(config))]
    if name == "past_observed_mask":
        return [torch.ones(_series_shapes(config)["past_values"][0])]
    if name == "past_values_padding":
        return [torch.zeros(2, 16)]
    if name in ("timesteps", "freq"):
        return [torch.arange(_LENGTH).expand(2, _LENGTH), torch.zeros(2, 1, dtype=torch.int64)]
    if name == "pixel_mask":
        return [torch.ones(shape[0], *shape[-2:], dtype=torch.int64) for shape in _image_shapes(config)]
    if name in ("input_features_mask", "audio_mel_mask"):
        frames = _spectrogram_shapes(config)[0][-1]
        return [torch.ones(2, frames, dtype=torch.int64), torch.zeros(2, frames, dtype=torch.bool)]
    if name.endswith("mask"):
        return [torch.ones(2, _LENGTH, dtype=torch.int64)]
    raise ValueError(f"an input is {name}")


def _series_shapes(config: Any) -> dict[str, list[tuple[int, ...]]]:
    """Shapes of time series values, and of features of past and future times."""
    context, later = (getattr(config, name, None) or 16 for name in ("context_length", "prediction_length"))
    before, known = (
        context + max(getattr(config, "lags_sequence", None) or [0]),
        getattr(config, "num_time_features", 0),
    )
    return {
        "past_values": [(2, before), (2, context, getattr(config, "num_input_channels", 1)), (2, 16)],
        "past_time_features": [(2, before, known)],
        "future_values": [(2, later)],
        "future_time_features": [(2, later, known)],
        "states": [(2, _LENGTH, getattr(config, "state_dim", 1))],
        "actions": [(2, _LENGTH, getattr(config, "act_dim", 1))],
        "returns_to_go": [(2, _LENGTH, 1)],
    }


def _image_shapes(config: Any) -> list[tuple[int, ...]]:
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None) or _IMAGE_SIZE
    size = tuple(size) if isinstance(size, list | tuple) else (size, size)
    channels = getattr(vision, "num_channels", 3)
    return [(2, channels, *size), (1, getattr(vision, "num_frames", 4), channels, *size), (2, channels, 224, 224)]


def _patch_shapes(config: Any) -> list[tuple[int, int]]:
    """Shape of an image as flattened patches, where the network takes their grid beside them."""
    names = ("in_channels", "in_chans", "num_channels", "patch_size")
    known = {name: value for name in names if type(value := getattr(config, name, None)) is int}
    if "patch_size" not in known:
        return []
    channels = next((value for name, value in known.items() if name != "patch_size"), 3)
    patch = channels * known["patch_size"] ** 2
    return [(math.prod(_GRID), patch * frames) for frames in {getattr(config, "temporal_patch_size", None) or 1, 1}]


def _spectrogram_shapes(config: Any) -> list[tuple[int, ...]]:
    audio = getattr(config, "audio_config", getattr(config, "encoder_config", config))
    names = ("num_mel_bins", "feature_size", "input_feat_per_channel", "input_dim", "mel_bins")
    bins = next((int(value) for each in names if (value := getattr(audio, each, 0))), 80)
    frames = 2 * (getattr(audio, "max_source_positions", 0) or _FRAMES // 2)
    longest = getattr(audio, "max_length", None) or frames
    return [(2, bins, frames), (2, frames, bins), (2, bins, 3000), (2, longest, bins), (2, 1, frames, bins)]
