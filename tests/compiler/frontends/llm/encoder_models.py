"""Small random models with an encoder in transformers' format, and transformers' results."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from compiler.artifact.language_model import TilePacking
from compiler.generation.packed_tiles import nearest_size, packed_rows
from tests.compiler.generation.models import byte_tokenizer

START, END, IMAGE = 257, 256, "<image>"
WHISPER_TOKENS = [
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|de|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|notimestamps|>",
]
_TILES = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
IMAGE_TOKENS = ["<|end|>", "<|start|>", IMAGE, "<fake_token_around_image>", "<global-img>", *_TILES]
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type in ('image', 'audio') %}<image>{% else %}{{ part.text }}"
    "{% endif %}{% endfor %}{% endif %}\n{% endfor %}a: "
)
_VOCABULARY = 280
_TEXT = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": _VOCABULARY,
    "pad_token_id": 0,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
_VISION = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
_TOKENS = {"bos_token_id": START, "eos_token_id": END, "pad_token_id": 0, "decoder_start_token_id": START}


@dataclass(frozen=True)
class EncoderModel:
    """Recipe of a model.

    Attributes:
        kind: the class of transformers, without "Config" or "ForConditionalGeneration".
        config: settings for a number of positions.
        reads: kind of the encoder's input, by its name.
        frames: number of frames in a patch of an image of any size; 0 for images of one size.
        processor: settings in preprocessor_config.json; none for no file.
        factors: factors of weights whose names contain a text, chosen with the seed so that greedy tokens differ.
    """

    kind: str
    config: Callable[[int], dict[str, Any]]
    reads: str
    frames: int = 0
    processor: Mapping[str, Any] = field(default_factory=dict)
    factors: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0


def _of_parts(**names: Any) -> dict[str, Any]:
    """Settings of an encoder and a decoder of one layer."""
    each = {"layers": 1, "attention_heads": 2, "ffn_dim": 48}
    both = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in each.items()}
    return {"d_model": 32, "vocab_size": _VOCABULARY, "tie_word_embeddings": False, **both, **_TOKENS, **names}


def _whisper(positions: int) -> dict[str, Any]:
    return _of_parts(num_mel_bins=8, max_source_positions=50, max_target_positions=positions, init_std=0.3)


def _whisper_tiny(_: int) -> dict[str, Any]:
    """The sizes of openai/whisper-tiny."""
    each = {"layers": 4, "attention_heads": 6, "ffn_dim": 1536}
    both = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in each.items()}
    return {"d_model": 384, "vocab_size": 51865, "num_mel_bins": 80, "init_std": 0.05, **both, **_TOKENS}


def _bart(positions: int) -> dict[str, Any]:
    return _of_parts(max_position_embeddings=positions, init_std=0.3)


def _t5(positions: int) -> dict[str, Any]:
    return {
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 48,
        "num_layers": 1,
        "num_heads": 2,
        "vocab_size": _VOCABULARY,
        "n_positions": positions,
        "tie_word_embeddings": False,
        "dropout_rate": 0.0,
        **_TOKENS,
    }


def _t5gemma(positions: int) -> dict[str, Any]:
    """Layers with and without a window in both parts."""
    part = {
        **{key: value for key, value in _TEXT.items() if key != "model_type"},
        "num_hidden_layers": 2,
        "head_dim": 8,
        "sliding_window": 9,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 8,
        "max_position_embeddings": positions,
        **_TOKENS,
    }
    return {"encoder": part, "decoder": dict(part), "vocab_size": _VOCABULARY, "tie_word_embeddings": False, **_TOKENS}


def _idefics(positions: int) -> dict[str, Any]:
    return {
        "vision_config": {**_VISION, "image_size": 16, "patch_size": 4},
        "text_config": {**_TEXT, "max_position_embeddings": positions},
        "image_token_id": 258,
        "scale_factor": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }


def _llava(positions: int) -> dict[str, Any]:
    vision = {**_VISION, "model_type": "clip_vision_model", "image_size": 16, "patch_size": 8, "projection_dim": 24}
    return {
        "vision_config": {**vision, "num_hidden_layers": 2},
        "text_config": {**_TEXT, "max_position_embeddings": positions},
        "image_token_index": 258,
        "tie_word_embeddings": False,
    }


def _gemma3(positions: int) -> dict[str, Any]:
    """Layers with and without a window, which is shorter than an image."""
    text = {
        **_TEXT,
        "model_type": "gemma3_text",
        "num_hidden_layers": 2,
        "head_dim": 8,
        "sliding_window": 3,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 8,
        "max_position_embeddings": positions,
    }
    vision = {**_VISION, "model_type": "siglip_vision_model", "image_size": 16, "patch_size": 4}
    return {
        "vision_config": vision,
        "text_config": text,
        "image_token_index": 258,
        "mm_tokens_per_image": 4,
        "boi_token_index": 259,
        "eoi_token_index": 260,
        "tie_word_embeddings": False,
    }


def _gemma4(positions: int, **text: Any) -> dict[str, Any]:
    """Images of all sizes, and layers with and without a window, the last of which read the keys of others."""
    decoder = {
        **_TEXT,
        "model_type": "gemma4_text",
        "num_hidden_layers": 4,
        "head_dim": 8,
        "global_head_dim": 16,
        "sliding_window": 3,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": _VOCABULARY,
        "final_logit_softcapping": 2.0,
        "max_position_embeddings": positions,
        **text,
    }
    vision = {**_VISION, "num_key_value_heads": 2, "head_dim": 12, "patch_size": 4, "pooling_kernel_size": 2}
    return {
        "vision_config": {**vision, "standardize": True, "position_embedding_size": 64},
        "audio_config": None,
        "text_config": decoder,
        "image_token_id": 258,
        "video_token_id": 261,
        "audio_token_id": 262,
        "boi_token_id": 259,
        "eoi_token_id": 260,
        "tie_word_embeddings": False,
    }


def _gemma4_mixture(positions: int) -> dict[str, Any]:
    """Tokens of an image see one another, and layers are mixtures without inputs of their own."""
    mixture = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24}
    plain = {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "use_bidirectional_attention": "vision"}
    return _gemma4(positions, **mixture, **plain)


def _mistral3(positions: int) -> dict[str, Any]:
    """Images of all sizes, with a token after each line of rows."""
    vision = {**_VISION, "model_type": "pixtral", "patch_size": 4, "image_size": 64, "head_dim": 12}
    return {
        "vision_config": {**vision, "num_hidden_layers": 2},
        "text_config": {**_TEXT, "model_type": "mistral", "head_dim": 8, "max_position_embeddings": positions},
        "image_token_index": 258,
        "tie_word_embeddings": False,
    }


def _patches(kind: str, positions: int, vision: dict[str, Any], **text: Any) -> dict[str, Any]:
    """Models with patch inputs: images of all sizes, and positions in three dimensions."""
    sections = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    layers = {"head_dim": 8, "rope_parameters": sections, "max_position_embeddings": positions}
    return {
        "vision_config": {"depth": 1, "num_heads": 2, "patch_size": 4, **vision},
        "text_config": {**_TEXT, **layers, "model_type": f"{kind}_text", **text},
        "image_token_id": 258,
        "video_token_id": 261,
        "vision_start_token_id": 259,
        "vision_end_token_id": 260,
        "tie_word_embeddings": False,
    }


def _qwen2_vl(positions: int) -> dict[str, Any]:
    return _patches("qwen2_vl", positions, {"embed_dim": 24, "hidden_size": 32})


def _qwen2_5_vl(positions: int) -> dict[str, Any]:
    """A layer within windows of 2 x 2 rows, and one without."""
    vision = {"depth": 2, "hidden_size": 24, "intermediate_size": 32, "out_hidden_size": 32, "window_size": 16}
    return _patches("qwen2_5_vl", positions, {**vision, "fullatt_block_indexes": [1]})


def _qwen3_vl(positions: int) -> dict[str, Any]:
    """Rows of an encoder layer are added after the first layer of the decoder."""
    sizes = {"hidden_size": 24, "intermediate_size": 32, "out_hidden_size": 32, "num_position_embeddings": 25}
    vision = {"depth": 2, **sizes, "deepstack_visual_indexes": [0]}
    return _patches("qwen3_vl", positions, vision, num_hidden_layers=2)


def _qwen3_5(positions: int) -> dict[str, Any]:
    """Layers of linear attention, and a part of each head that is rotated by interleaved positions."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}
    linear = {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_hidden_layers": 2,
        "layer_types": ["linear_attention", "full_attention"],
    }
    sizes = {"hidden_size": 24, "intermediate_size": 32, "out_hidden_size": 32, "num_position_embeddings": 25}
    config = _patches("qwen3_5", positions, sizes, **linear)
    text = {**config["text_config"], "head_dim": 16, "rope_parameters": {**rope, "mrope_interleaved": True}}
    return {**config, "text_config": text}


def _qwen3_5_moe(positions: int) -> dict[str, Any]:
    mixture = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    config, shared = _qwen3_5(positions), {"shared_expert_intermediate_size": 24}
    return {**config, "text_config": {**config["text_config"], "model_type": "qwen3_5_moe_text", **mixture, **shared}}


def _qwen3_vl_moe(positions: int) -> dict[str, Any]:
    mixture = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    config = _qwen3_vl(positions)
    return {**config, "text_config": {**config["text_config"], "model_type": "qwen3_vl_moe_text", **mixture}}


def _glm(positions: int, **text: Any) -> dict[str, Any]:
    """Learned positions, which are interpolated."""
    sizes = {"hidden_size": 24, "intermediate_size": 32, "out_hidden_size": 32, "image_size": 20}
    config = _patches("glm4v", positions, sizes, **text)
    rope = {**config["text_config"]["rope_parameters"], "partial_rotary_factor": 1.0}
    return {**config, "text_config": {**config["text_config"], "rope_parameters": rope}}


def _glm4v_moe(positions: int) -> dict[str, Any]:
    mixture = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1}
    sizes = {"moe_intermediate_size": 24, "num_hidden_layers": 2, "n_group": 1, "topk_group": 1}
    return _glm(positions, model_type="glm4v_moe_text", **mixture, **sizes)


def _glm_ocr(positions: int) -> dict[str, Any]:
    return _glm(positions, model_type="glm_ocr_text")


def _glm46v(positions: int) -> dict[str, Any]:
    config = _glm(positions)
    return {**config, "vision_config": {**config["vision_config"], "model_type": "glm4v_vision"}}


def _exaone4_5(positions: int) -> dict[str, Any]:
    """Shared keys in the encoder, a layer within windows of 2 x 2 rows, and one without."""
    sizes = {"depth": 2, "hidden_size": 24, "intermediate_size": 32, "out_hidden_size": 32, "window_size": 16}
    vision = {**sizes, "fullatt_block_indexes": [1], "num_key_value_heads": 1}
    return _plain_patches(positions, vision, model_type="exaone4", layer_types=["full_attention"])


def _plain_patches(positions: int, vision: dict[str, Any], **text: Any) -> dict[str, Any]:
    """Positions of the text in one dimension."""
    sizes = {"depth": 1, "num_heads": 2, "patch_size": 4, **vision}
    return _of_images(positions, sizes, text={"head_dim": 8, **text}, video_token_id=261)


def _of_images(
    positions: int,
    vision: dict[str, Any],
    *,
    text: Mapping[str, Any] | None = None,
    token: str = "image_token_id",
    **names: Any,
) -> dict[str, Any]:
    """An encoder of images and a decoder; `token`: the setting for the placeholder."""
    decoder = {**_TEXT, "max_position_embeddings": positions, **(text or {})}
    return {"vision_config": vision, "text_config": decoder, token: 258, "tie_word_embeddings": False, **names}


def _lfm3_vl(positions: int) -> dict[str, Any]:
    """Layers of the encoder with a convolution over patches, and with attention of shared keys."""
    layers = {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}
    vision = {**_VISION, **layers, "num_key_value_heads": 1, "patch_size": 4, "temporal_patch_size": 2}
    config = _plain_patches(positions, {}, model_type="lfm3", **layers)
    return {**config, "vision_config": vision, "projector_hidden_size": 40}


def _llava_onevision1_5(positions: int) -> dict[str, Any]:
    """A class token for each image."""
    vision = {"depth": 2, "hidden_size": 24, "intermediate_size": 32, "out_hidden_size": 32}
    return _plain_patches(positions, vision, model_type="qwen3")


def _paddleocr_vl(positions: int) -> dict[str, Any]:
    vision = {**_VISION, "patch_size": 4, "image_size": 20}
    config = _patches("paddleocr_vl", positions, {}, use_bias=True)
    return {**config, "vision_config": {**vision, "spatial_merge_size": 2}}


def _lighton_ocr(positions: int) -> dict[str, Any]:
    config = _mistral3(positions)
    text = {**config["text_config"], "model_type": "qwen3"}
    del config["image_token_index"]
    return {**config, "text_config": text, "image_token_id": 258}


def _lfm2_vl(positions: int) -> dict[str, Any]:
    """Learned positions, which are smoothed in small images, and a decoder with a short convolution."""
    vision = {**_VISION, "model_type": "siglip2_vision_model", "patch_size": 4, "num_patches": 25}
    layers = {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}
    return {
        "vision_config": {**vision, "vision_use_head": False},
        "text_config": {**_TEXT, **layers, "model_type": "lfm2", "max_position_embeddings": positions},
        "projector_hidden_size": 40,
        "image_token_id": 258,
        "tie_word_embeddings": False,
    }


def _internvl(positions: int) -> dict[str, Any]:
    vision = {**_VISION, "image_size": [16, 16], "patch_size": [4, 4], "model_type": "internvl_vision"}
    return {
        "vision_config": {**vision, "layer_norm_eps": 1e-6},
        "text_config": {**_TEXT, "model_type": "qwen2", "max_position_embeddings": positions},
        "image_token_id": 258,
        "tie_word_embeddings": False,
    }


def _tiles(positions: int, vision: str = "siglip_vision_model", **names: Any) -> dict[str, Any]:
    """Images of one size, and tiles of large images."""
    sizes = {**_VISION, "model_type": vision, "image_size": 16, "patch_size": 4, "num_hidden_layers": 2}
    return _of_images(positions, sizes, **names)


def _vipllava(positions: int) -> dict[str, Any]:
    """Features of several layers."""
    return {**_llava(positions), "vision_feature_layer": [-1, -2]}


def _cohere(positions: int, **names: Any) -> dict[str, Any]:
    text = {"model_type": "cohere2", "sliding_window": 3, "layer_types": ["sliding_attention"], "logit_scale": 1.0}
    return _tiles(positions, text=text, downsample_factor=2, alignment_intermediate_size=40, **names)


def _aya_vision(positions: int) -> dict[str, Any]:
    return _cohere(positions, vision_feature_select_strategy="full", token="image_token_index")


_GRIDS_OF_TILES = [[16, 32], [32, 16], [32, 32]]


def _llava_next(positions: int) -> dict[str, Any]:
    """Tiles whose rows are put together, of features of two layers."""
    tiles = {"image_grid_pinpoints": _GRIDS_OF_TILES, "vision_feature_layer": [-2, -1]}
    return _tiles(positions, "clip_vision_model", token="image_token_index", **tiles)


def _llava_onevision(positions: int) -> dict[str, Any]:
    """The same, with rows interpolated to those of one tile."""
    tiles: dict[str, Any] = {
        "image_grid_pinpoints": _GRIDS_OF_TILES,
        "vision_feature_layer": -1,
        "vision_aspect_ratio": "anyres_max_1",
    }
    text = {"model_type": "qwen2"}
    return _tiles(positions, token="image_token_index", text=text, video_token_index=261, **tiles)


def _got_ocr2(positions: int) -> dict[str, Any]:
    """Layers with and without a window, with relative positions."""
    sizes = {"image_size": 32, "patch_size": 4, "num_hidden_layers": 2, "mlp_dim": 32, "output_channels": 12}
    vision = {**_VISION, **sizes, "window_size": 3, "global_attn_indexes": [1]}
    return _of_images(positions, vision, text={"model_type": "qwen2"}, token="image_token_index")


def _deepseek_vl(positions: int) -> dict[str, Any]:
    config = _tiles(positions)
    return {**config, "vision_config": {**config["vision_config"], "image_size": 8, "vision_use_head": False}}


def _janus(positions: int) -> dict[str, Any]:
    sizes = {
        "hidden_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "mlp_ratio": 2.0,
        "projection_dim": 32,
    }
    codes = {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "num_embeddings": 8, "embed_dim": 8}
    config = _tiles(positions, vq_config={**codes, "latent_channels": 32, "projection_dim": 8})
    return {**config, "vision_config": {**sizes, "image_size": 8, "patch_size": 4, "num_image_tokens": 4}}


def _qianfan_ocr(positions: int) -> dict[str, Any]:
    config = _internvl(positions)
    vision = {**config["vision_config"], "model_type": "qianfan_ocr_vision"}
    return {**config, "vision_config": vision, "text_config": {**config["text_config"], "model_type": "qwen3"}}


def _sounds(positions: int, **audio: Any) -> dict[str, Any]:
    encoder = {"num_mel_bins": 8, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    return {
        "audio_config": {**encoder, "d_model": 24, "max_source_positions": 50, **audio},
        "text_config": {**_TEXT, "max_position_embeddings": positions},
        "tie_word_embeddings": False,
    }


def _qwen2_audio(positions: int) -> dict[str, Any]:
    config = _sounds(positions, model_type="qwen2_audio_encoder")
    return {**config, "text_config": {**config["text_config"], "model_type": "qwen2"}, "audio_token_index": 258}


def _voxtral(positions: int) -> dict[str, Any]:
    """One row per four adjacent frames of the encoder."""
    return {**_sounds(positions, model_type="voxtral_encoder", encoder_ffn_dim=48), "audio_token_id": 258}


_GRIDS = [(1, 4, 8), (1, 12, 6), (1, 2, 2)]  # frames, rows and columns of patches of images
_PATCHES = {"patch_size": 4, "size": {"shortest_edge": 8 * 8, "longest_edge": 40 * 40}}
_FILLED = {"patch_size": 4, "pooling_kernel_size": 2, "max_soft_tokens": 70, "do_normalize": False}
_SPLIT = {
    "encoder_patch_size": 4,
    "tile_size": 16,
    "min_image_tokens": 4,
    "max_image_tokens": 16,
    "max_tiles": 6,
}
_PIXTRAL = {"patch_size": {"height": 8, "width": 8}, "size": {"longest_edge": 48}}
_TILED = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}}
_CROPPED = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
_SMALL = {"size": {"height": 8, "width": 8}, "min_size": 2}
_CANVAS = {"size": {"height": 16, "width": 16}, "max_patches": 6}
_PACKED = {**_CROPPED, "image_grid_pinpoints": _GRIDS_OF_TILES}
_PACKED_SIZES = {"size": {"height": 16, "width": 16}, "image_grid_pinpoints": _GRIDS_OF_TILES}
_SIZES = [(16, 32), (21, 9), (40, 35)]  # heights and widths of images in packed tiles
_HEARD = {"feature_size": 8, "chunk_length": 1}
_FRAMES = [100, 37, 80]  # of sounds, without padding
_POSITIONS = {"decoder.embed_positions": 4.0, "decoder.layers.0.self_attn.v_proj": 4.0}
_ATTENTION = {"shared": 0.1, "SelfAttention.v": 8.0, "SelfAttention.o": 8.0}
ENCODER_MODELS = {
    "whisper": EncoderModel("Whisper", _whisper, "input_features"),
    "whisper-tiny": EncoderModel("Whisper", _whisper_tiny, "input_features"),
    "aya_vision": EncoderModel("AyaVision", _aya_vision, "pixel_values", processor=_CANVAS),
    "bart": EncoderModel("Bart", _bart, "input_ids", factors=_POSITIONS, seed=1),
    "t5": EncoderModel("T5", _t5, "input_ids", factors=_ATTENTION, seed=2),
    "t5gemma": EncoderModel("T5Gemma", _t5gemma, "input_ids", seed=3),
    "llava": EncoderModel("Llava", _llava, "pixel_values", processor=_CROPPED),
    "smolvlm": EncoderModel("SmolVLM", _idefics, "pixel_values", processor=_TILED),
    "idefics3": EncoderModel("Idefics3", _idefics, "pixel_values", processor=_TILED),
    "cohere2_vision": EncoderModel("Cohere2Vision", _cohere, "pixel_values", processor=_CANVAS),
    "deepseek_vl": EncoderModel("DeepseekVL", _deepseek_vl, "pixel_values", processor=_SMALL),
    "exaone4_5": EncoderModel("Exaone4_5_", _exaone4_5, "pixel_values", 2, _PATCHES),
    "gemma3": EncoderModel("Gemma3", _gemma3, "pixel_values", processor={"size": {"height": 16, "width": 16}}),
    "gemma4": EncoderModel("Gemma4", _gemma4, "pixel_values", 1, _FILLED),
    "gemma4_mixture": EncoderModel("Gemma4", _gemma4_mixture, "pixel_values", 1, _FILLED),
    "glm4v": EncoderModel("Glm4v", _glm, "pixel_values", 2, _PATCHES),
    "glm4v_moe": EncoderModel("Glm4vMoe", _glm4v_moe, "pixel_values", 2, _PATCHES),
    "glm46v": EncoderModel("Glm46V", _glm46v, "pixel_values", 2, _PATCHES),
    "glm_ocr": EncoderModel("GlmOcr", _glm_ocr, "pixel_values", 2, _PATCHES),
    "got_ocr2": EncoderModel("GotOcr2", _got_ocr2, "pixel_values", processor={"size": {"height": 32, "width": 32}}),
    "internvl": EncoderModel("InternVL", _internvl, "pixel_values", processor=_CANVAS),
    "janus": EncoderModel("Janus", _janus, "pixel_values", processor=_SMALL),
    "lfm2_vl": EncoderModel("Lfm2Vl", _lfm2_vl, "pixel_values", 1, _SPLIT),
    "lfm3_vl": EncoderModel("Lfm3Vl", _lfm3_vl, "pixel_values", 2, _PATCHES),
    "lighton_ocr": EncoderModel("LightOnOcr", _lighton_ocr, "pixel_values", 1, _PIXTRAL),
    "llava_next": EncoderModel("LlavaNext", _llava_next, "pixel_values", processor=_PACKED),
    "llava_next_video": EncoderModel("LlavaNextVideo", _llava_next, "pixel_values", processor=_PACKED),
    "llava_onevision": EncoderModel("LlavaOnevision", _llava_onevision, "pixel_values", processor=_PACKED_SIZES),
    "llava_onevision1_5": EncoderModel(
        "LlavaOnevision15", _llava_onevision1_5, "pixel_values", 1, {**_PATCHES, "temporal_patch_size": 1}
    ),
    "mistral3": EncoderModel("Mistral3", _mistral3, "pixel_values", 1, _PIXTRAL),
    "paddleocr_vl": EncoderModel("PaddleOCRVL", _paddleocr_vl, "pixel_values", 1, _PATCHES),
    "qianfan_ocr": EncoderModel("QianfanOCR", _qianfan_ocr, "pixel_values", processor=_CANVAS),
    "qwen2_vl": EncoderModel("Qwen2VL", _qwen2_vl, "pixel_values", 2, _PATCHES),
    "qwen2_5_vl": EncoderModel("Qwen2_5_VL", _qwen2_5_vl, "pixel_values", 2, _PATCHES),
    "qwen3_5": EncoderModel("Qwen3_5", _qwen3_5, "pixel_values", 2, _PATCHES),
    "qwen3_5_moe": EncoderModel("Qwen3_5Moe", _qwen3_5_moe, "pixel_values", 2, _PATCHES),
    "qwen3_vl": EncoderModel("Qwen3VL", _qwen3_vl, "pixel_values", 2, _PATCHES),
    "qwen3_vl_moe": EncoderModel("Qwen3VLMoe", _qwen3_vl_moe, "pixel_values", 2, _PATCHES),
    "qwen2_audio": EncoderModel("Qwen2Audio", _qwen2_audio, "input_features", processor=_HEARD),
    "vipllava": EncoderModel("VipLlava", _vipllava, "pixel_values", processor=_CROPPED),
    "voxtral": EncoderModel("Voxtral", _voxtral, "input_features", processor=_HEARD),
}


def save_encoder_model(name: str, folder: Path, positions: int = 160) -> Any:
    """Write a random model, its tokenizer and its processor; returns the torch module, in evaluation mode."""
    import torch
    import transformers

    made = ENCODER_MODELS[name]
    torch.manual_seed(made.seed or len(name))
    config = getattr(transformers, f"{made.kind}Config")(**made.config(positions))
    model = getattr(transformers, f"{made.kind}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            # Large enough that tokens differ: positions and what the encoder found count as much as the last token.
            scale = 0.05 if name == "whisper-tiny" else 0.12
            parameter.add_((5 * scale if "embed_positions" in key else scale) * torch.randn_like(parameter))
            for text, factor in made.factors.items():
                parameter.mul_(factor if text in key else 1.0)
    model.generation_config.eos_token_id = None
    if name not in ("whisper", "whisper-tiny") and made.reads != "input_ids":
        model.generation_config.suppress_tokens = [258]  # a text that goes on with an image cannot be read again
    model.save_pretrained(folder)
    tokens = WHISPER_TOKENS if made.kind == "Whisper" else IMAGE_TOKENS
    (folder / "tokenizer.json").write_text(json.dumps(byte_tokenizer(tokens)))
    special = {"boi_token": "<a>", "eoi_token": "<z>", "img_line_break_token": "|"}
    settings = {"chat_template": TEMPLATE, "extra_special_tokens": special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if made.processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(made.processor))
    return model


def encoder_input(name: str, random: np.random.Generator, size: int = 12) -> dict[str, np.ndarray[Any, Any]]:
    """Random inputs of the encoder; `size`: tokens of a text, images or sounds."""
    made = ENCODER_MODELS[name]
    if reads_patches(name):
        grids = np.array(_GRIDS[:size])
        patches = random.standard_normal((grids.prod(1).sum(), 3 * made.frames * 4 * 4)).astype(np.float32)
        return {made.reads: patches, "image_grid_thw": grids}
    if reads_packed_tiles(name):
        packed = _packed(name, size)
        tiles = random.standard_normal((packed.tiles, 3, 16, 16)).astype(np.float32)
        return {made.reads: tiles, "taps": np.concatenate(packed.taps), "weights": np.concatenate(packed.weights)}
    if name in ("qwen2_audio", "voxtral"):
        features = random.standard_normal((size, 8, 100)).astype(np.float32)
        mask = (np.arange(100) < np.array(_FRAMES[:size])[:, None]).astype(np.int64)
        return {made.reads: features, **({"feature_attention_mask": mask} if name == "qwen2_audio" else {})}
    if made.reads == "input_ids":
        return {made.reads: random.integers(1, 256, (1, size))}
    shapes = {"whisper": (1, 8, 100), "whisper-tiny": (1, 80, 3000), "llava": (size, 3, 16, 16)}
    for each in ("aya_vision", "cohere2_vision", "gemma3", "internvl", "qianfan_ocr", "vipllava"):
        shapes[each] = shapes["llava"]
    shapes["deepseek_vl"] = shapes["janus"] = (size, 3, 8, 8)
    shapes["got_ocr2"] = (size, 3, 32, 32)
    shape = shapes.get(name, (1, size, 3, 16, 16))
    return {made.reads: random.standard_normal(shape).astype(np.float32)}


def reads_patches(name: str) -> bool:
    """True for encoders of images of all sizes."""
    return ENCODER_MODELS[name].frames > 0


def reads_packed_tiles(name: str) -> bool:
    """True for encoders of tiles whose rows are put together."""
    return name.startswith(("llava_next", "llava_onevision")) and not reads_patches(name)


class _Packed(NamedTuple):
    tiles: int
    taps: list[np.ndarray[Any, Any]]
    weights: list[np.ndarray[Any, Any]]


def _packed(name: str, images: int) -> _Packed:
    """The rows of images of `_SIZES`."""
    packing = TilePacking(
        sizes=tuple((down, across) for down, across in _GRIDS_OF_TILES),
        side=4,
        most=1 if name == "llava_onevision" else None,
    )
    tiles, rows = 0, []
    for size in _SIZES[:images]:
        target = nearest_size(size, packing.sizes)
        grid = (target[0] // 16, target[1] // 16)
        rows.append(packed_rows(tiles, grid, size, packing))
        tiles += 1 + grid[0] * grid[1]
    return _Packed(tiles, [each[0] for each in rows], [each[1] for each in rows])


def tiles_of_images(pixel_values: Any, taps: Any, weights: Any) -> dict[str, Any]:
    """The tiles as LLaVA-NeXT takes them: padded to the largest number, with the sizes of images."""
    import torch

    counts = {sum(numbers): numbers for numbers in ([3], [3, 3], [3, 3, 5])}[len(pixel_values)]
    images = pixel_values.split(counts)
    padded = [torch.cat([each, torch.zeros((max(counts) - len(each), 3, 16, 16))]) for each in images]
    return {"pixel_values": torch.stack(padded), "image_sizes": torch.tensor(_SIZES[: len(counts)])}


def _images(pixel_values: Any, image_grid_thw: Any) -> Iterator[tuple[int, int, Any]]:
    """Rows and columns of patches of each image, and patches (rows / 2, columns / 2, 2, 2, channels, height, width)."""
    images = pixel_values.split(image_grid_thw.prod(1).tolist())
    for image, (_, rows, columns) in zip(images, image_grid_thw.tolist(), strict=True):
        yield rows, columns, image.reshape(rows // 2, columns // 2, 2, 2, 3, 4, 4)


def padded_patches(pixel_values: Any, image_grid_thw: Any) -> dict[str, Any]:
    """The patches as Gemma 4 takes them: row by row with positions (x, y), each image padded to the longest."""
    import torch

    counts, longest = image_grid_thw.prod(1).tolist(), int(image_grid_thw.prod(1).max())
    values, places = torch.zeros((len(counts), longest, pixel_values.shape[1])), -torch.ones((len(counts), longest, 2))
    for index, (rows, columns, blocks) in enumerate(_images(pixel_values, image_grid_thw)):
        values[index, : counts[index]] = blocks.permute(0, 2, 1, 3, 5, 6, 4).reshape(counts[index], -1)
        at = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(-1)
        places[index, : counts[index]] = at.float()
    return {"pixel_values": values, "image_position_ids": places.long()}


def shaped_patches(pixel_values: Any, image_grid_thw: Any) -> dict[str, Any]:
    """The patches as LFM2-VL takes them: row by row, each image padded to the longest."""
    padded = padded_patches(pixel_values, image_grid_thw)
    mask = (padded.pop("image_position_ids")[..., 0] >= 0).int()
    return {**padded, "spatial_shapes": image_grid_thw[:, 1:], "pixel_attention_mask": mask}


def images_of_patches(pixel_values: Any, image_grid_thw: Any) -> dict[str, Any]:
    """The images as Mistral 3 takes them: pixels padded to the largest, with sizes."""
    import torch

    _, down, across = (4 * image_grid_thw.max(0).values).tolist()
    pixels = torch.zeros((len(image_grid_thw), 3, down, across))
    for index, (rows, columns, blocks) in enumerate(_images(pixel_values, image_grid_thw)):
        image = blocks.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, 4 * rows, 4 * columns)
        pixels[index, :, : 4 * rows, : 4 * columns] = image
    return {"pixel_values": pixels, "image_sizes": 4 * image_grid_thw[:, 1:]}


def rows_of_patches(pixel_values: Any, image_grid_thw: Any) -> dict[str, Any]:
    """The patches as PaddleOCR-VL takes them: row by row, each (3, height, width)."""
    import torch

    images = [
        blocks.permute(0, 2, 1, 3, 4, 5, 6).reshape(-1, 3, 4, 4)
        for _, _, blocks in _images(pixel_values, image_grid_thw)
    ]
    return {"pixel_values": torch.cat(images), "image_grid_thw": image_grid_thw}


# How transformers takes what `encoder_input` returns, by model type.
_REFERENCE_INPUTS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "gemma4": padded_patches,
    "lfm2_vl": shaped_patches,
    "lighton_ocr": images_of_patches,
    **dict.fromkeys(["llava_next", "llava_next_video", "llava_onevision"], tiles_of_images),
    "mistral3": images_of_patches,
    "paddleocr_vl": rows_of_patches,
}


def media_prompt(name: str, size: int) -> list[int]:
    """A prompt with placeholders for this many images or sounds of `encoder_input`."""
    if reads_patches(name):
        rows = [height * width // 4 for _, height, width in _GRIDS[:size]]
    elif reads_packed_tiles(name):
        rows = [len(each) for each in _packed(name, size).taps]
    elif name == "qwen2_audio":
        rows = [((frames - 1) // 2 + 1 - 2) // 2 + 1 for frames in _FRAMES[:size]]
    else:
        rows = [25 if name == "voxtral" else 4] * size
    return [5, 6, *(token for count in rows for token in (259, *[258] * count, 260, 9))]


def encoder_greedy(model: Any, prompt: list[int], count: int, **inputs: Any) -> tuple[list[Any], list[int]]:
    """Logits and tokens, each computed from the whole text."""
    import torch

    name = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
    given = {key: torch.as_tensor(value) for key, value in inputs.items()}
    rows, tokens, kind = [], list(prompt), model.config.model_type
    if given and kind in _REFERENCE_INPUTS:
        given = _REFERENCE_INPUTS[kind](**given)
    kinds = (
        "token_type_ids"
        if kind == "gemma3"
        else "mm_token_type_ids"
        if given.keys() & {"image_grid_thw", "image_position_ids"}
        else None
    )
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            given = {"encoder_outputs": model.get_encoder()(*given.values())}
        for _ in range(count):
            if kinds is not None:  # 1 for tokens of images
                given[kinds] = torch.tensor([[int(token == 258) for token in tokens]])
            if "feature_attention_mask" in given:
                given["attention_mask"] = torch.ones((1, len(tokens)), dtype=torch.int64)
            rows.append(model(**{name: torch.tensor([tokens])}, **given).logits[0, -1].numpy())
            best = rows[-1].copy()
            best[model.generation_config.suppress_tokens or []] = -np.inf
            tokens.append(int(best.argmax()))
    return rows, tokens[len(prompt) :]
